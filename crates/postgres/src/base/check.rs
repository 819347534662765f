//! Checking the stored data of a base against the server's own manifest.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use hindsight_engine::{DataCheck, Result};
use hindsight_format::{SnapshotManifest, SnapshotTotals};
use hindsight_repository::ClusterRepository;

use super::damage::lines;
use super::manifest::BackupManifest;
use super::stored::{StoredBase, archive_of, load_backup_manifest};
use super::tar::{TarError, TarReader};
use super::verify::{Verified, Verifier, VerifyOptions, Wrong};

/// Checks the data of one base: that its archives can be read, that every file is the one that the server listed, and that no
/// page is damaged where there are checksums of them.
#[derive(Debug)]
pub struct SnapshotCheck {
    manifest: BackupManifest,
    totals: SnapshotTotals,
    /// The objects with data, by name.
    objects: HashMap<String, Object>,
}

#[derive(Debug)]
struct Object {
    /// Bytes that it has.
    bytes: u64,
    /// Whether it is the last of its archive.
    last: bool,
    /// None once all was.
    reading: Mutex<Option<Reading>>,
}

/// An object that is being read.
#[derive(Debug)]
struct Reading {
    bytes: u64,
    reader: TarReader,
    verifier: Verifier,
    failed: Option<TarError>,
}

impl SnapshotCheck {
    /// A check of the snapshot `manifest`.
    ///
    /// # Errors
    /// Its catalog or the server's manifest cannot be read, or make no sense.
    pub async fn of(cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Self> {
        let base = StoredBase::load(cluster, manifest).await?;
        let listed = load_backup_manifest(cluster, manifest).await?;
        let sizes = base.pages();
        // A manifest whose files have several kinds of checksums is none that a server has written.
        let checksums = listed.checksums().unwrap_or(crate::wire::ManifestChecksums::Sha256);
        let pages = sizes.filter(|_| base.data_checksums).map(|sizes| (sizes, base.start));
        let increments = sizes.filter(|_| manifest.parent.is_some());
        let options = VerifyOptions { checksums, pages, increments };
        Ok(Self::new(listed, manifest, options))
    }

    fn new(listed: BackupManifest, manifest: &SnapshotManifest, options: VerifyOptions) -> Self {
        let parts = || manifest.objects.iter().filter_map(|object| Some((archive_of(&object.name)?, object)));
        let mut last = HashMap::<Option<u32>, &str>::new();
        for (archive, object) in parts() {
            let name = last.entry(archive).or_default();
            *name = (*name).max(&object.name);
        }
        let objects = parts().map(|(archive, object)| {
            let verifier = Verifier::new(options, archive);
            let reading = Reading { bytes: 0, reader: TarReader::new(), verifier, failed: None };
            let last = last.get(&archive) == Some(&object.name.as_str());
            (object.name.clone(), Object { bytes: object.raw_bytes, last, reading: Mutex::new(Some(reading)) })
        });
        Self { objects: objects.collect(), manifest: listed, totals: manifest.totals }
    }
}

impl Object {
    /// What it holds, once every frame was given.
    fn finish(&self) -> std::result::Result<Verified, String> {
        let reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Reading { bytes, reader, verifier, failed }) = reading else { return Ok(Verified::default()) };
        if bytes != self.bytes {
            return Err(format!("{bytes} of {} bytes could be read: its files were not compared", self.bytes));
        }
        match (failed.map_or_else(|| reader.finish(), Err), self.last) {
            (Err(error), _) => Err(error.to_string()),
            (Ok(false), true) => Err("the archive has no end".to_owned()),
            (Ok(true), false) => Err("the archive ends here, and another object goes on with it".to_owned()),
            (Ok(_), _) => Ok(verifier.finish()),
        }
    }
}

impl DataCheck for SnapshotCheck {
    /// Finds nothing wrong yet: behind a frame that was left out everything looks damaged, and only at the end it is known
    /// whether all have come.
    fn frame(&self, object: &str, _segment: u32, raw: &[u8]) -> std::result::Result<(), String> {
        let Some(object) = self.objects.get(object) else { return Ok(()) };
        let mut reading = object.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Reading { bytes, reader, verifier, failed }) = &mut *reading else { return Ok(()) };
        *bytes += raw.len() as u64;
        if failed.is_none() {
            *failed = reader.feed(raw, &mut |event| verifier.take(event)).err();
        }
        Ok(())
    }

    fn finish(&self) -> Vec<String> {
        let (mut wrong, mut verified, mut whole) = (Vec::new(), Verified::default(), true);
        let mut objects: Vec<_> = self.objects.iter().collect();
        objects.sort_by_key(|(name, _)| *name);
        for (name, object) in objects {
            match object.finish() {
                Ok(found) => verified.absorb(found),
                Err(why) => {
                    whole = false;
                    wrong.push(format!("{name}: {why}"));
                }
            }
        }
        let mut report = verified.compare(&self.manifest);
        if !whole {
            // Its files may be those of an object that could not be read.
            report.findings.retain(|finding| finding.what != Wrong::Missing);
        }
        wrong.extend(lines(&report));
        if whole && report.files != self.totals.documents {
            wrong.push(format!("{} files are stored, the manifest says {}", report.files, self.totals.documents));
        }
        wrong
    }
}
