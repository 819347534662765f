//! From the objects of a base to the files of a data directory.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hindsight_catalog::RestorePlan;
use hindsight_engine::{EngineError, FailureKind, Job, Result};
use hindsight_format::{ObjectRef, SnapshotManifest};
use hindsight_repository::{ClusterRepository, ObjectReader};
use tokio_util::task::AbortOnDropHandle;

use super::place::{Made, Place};
use crate::base::{
    BackupManifest, TarEvent, TarHeader, TarKind, TarReader, Verified, Verifier, VerifyOptions, archive_of,
};
use crate::feed::{blocking, feed};
use crate::server::{Folder, local};
use crate::wire::ManifestChecksums;

/// Objects that are unpacked at the same time at most: each takes some 24 MiB of memory.
const AT_ONCE: usize = 8;
/// Objects that are opened, or read through, at the same time.
const READ_AT_ONCE: usize = 4;
/// Frames of each that are decompressed ahead.
const FRAMES_AHEAD: usize = 1;
/// Files that are not for the server: the map would lead it to where tablespaces were, the others would make it a standby.
const LEFT_OUT: [&[u8]; 4] = [b"tablespace_map", b"standby.signal", b"recovery.signal", b"backup_manifest"];

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// An object with a part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    object: ObjectRef,
    /// The tablespace's OID; none for the main data directory.
    pub(crate) tablespace: Option<u32>,
}

impl Part {
    /// Bytes before compression.
    pub(crate) fn raw_bytes(&self) -> u64 {
        self.object.raw_bytes
    }
}

/// The parts of a base.
///
/// # Errors
/// One that is of no archive.
pub(crate) fn parts(manifest: &SnapshotManifest) -> Result<Vec<Part>> {
    let data = manifest.objects.iter().filter(|object| object.name.starts_with("data/"));
    let parts = data.map(|object| {
        let archive = archive_of(&object.name);
        let tablespace =
            archive.ok_or_else(|| EngineError::damaged(format!("{} is of no archive of a base", object.name)))?;
        Ok(Part { object: object.clone(), tablespace })
    });
    let parts: Vec<Part> = parts.collect::<Result<_>>()?;
    if parts.iter().any(|part| part.tablespace.is_none()) {
        return Ok(parts);
    }
    Err(EngineError::damaged(format!("snapshot {} has no data", manifest.id)))
}

/// Opens all data objects, which checks their footers.
///
/// # Errors
/// One is missing or damaged.
pub(crate) async fn open(cluster: &ClusterRepository, id: &str, parts: &[Part]) -> Result<()> {
    let open = |part: Part| async move { reader(cluster, id, &part).await.map(drop) };
    stream::iter(parts.iter().cloned().map(open)).buffer_unordered(AT_ONCE).try_collect().await
}

async fn reader(cluster: &ClusterRepository, id: &str, part: &Part) -> Result<ObjectReader> {
    let key = cluster.keys().snapshot_object(id, &part.object.name);
    Ok(cluster.object_reader(&key, Some(&part.object)).await?)
}

/// Reads all data through, and makes sure that they are as they were written. They are not decompressed for that.
///
/// # Errors
/// One is damaged.
pub(crate) async fn check(job: &Job, id: &str, parts: &[Part]) -> Result<()> {
    let one = |part: Part| async move {
        job.check()?;
        let reader = reader(&job.cluster, id, &part).await?;
        let checked = reader.check_stored(|_| true, |bytes| job.progress.add(bytes));
        tokio::select! {
            checked = checked => Ok(checked?),
            () = job.cancel.cancelled() => Err(EngineError::cancelled()),
        }
    };
    stream::iter(parts.iter().cloned().map(one)).buffer_unordered(READ_AT_ONCE).try_collect().await
}

/// Bytes stored of the data.
pub(crate) fn stored_bytes(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.object.stored_bytes).fold(0, u64::saturating_add)
}

/// Unpacks all parts to their place, which has been made, and compares what they hold with the list.
///
/// # Errors
/// Something cannot be written, or is not what it was.
pub(crate) async fn run(
    job: &Job,
    plan: &RestorePlan,
    parts: &[Part],
    (place, made): (&Place, &Arc<Made>),
    manifest: BackupManifest,
) -> Result<Unpacked> {
    let options = VerifyOptions { checksums: manifest.checksums().unwrap_or(ManifestChecksums::Sha256), pages: None };
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(AT_ONCE);
    let one = |part: Part| {
        let (job, id, made) = (job.clone(), plan.base.id.clone(), made.clone());
        async move {
            let unpacking = tokio::spawn(async move { part_of(&job, &id, part, &made, options).await });
            let unpacked = AbortOnDropHandle::new(unpacking).await;
            unpacked.map_err(|error| EngineError::new(FailureKind::Local, format!("unpacking ended: {error}")))?
        }
    };
    let mut unpacked = stream::iter(parts.iter().cloned().map(one)).buffer_unordered(workers);
    let mut all = Verified::default();
    while let Some(verified) = unpacked.try_next().await? {
        all.absorb(verified);
    }
    let (place, made, id) = (place.clone(), made.clone(), plan.base.id.clone());
    blocking(move || {
        link(&place, &made)?;
        let report = all.compare(&manifest);
        let Some(first) = report.findings.first() else {
            return Ok(Unpacked { files: report.files, bytes: report.bytes });
        };
        let more = match report.findings.len() {
            1 => String::new(),
            all => format!(", and {} more", all - 1),
        };
        Err(EngineError::damaged(format!("snapshot {id} is not what the server sent: {first}{more}"))
            .hint("restore from another snapshot"))
    })
    .await
}

/// Links to tablespaces: made when nothing is unpacked any more that could be led through them.
fn link(place: &Place, made: &Made) -> Result<()> {
    for space in place.tablespaces() {
        let name = Path::new("pg_tblspc").join(space.oid.to_string());
        let link = made.data().here().join(&name);
        let linked = symlink(&space.folder, &link).and_then(|()| place.owner().give(&link));
        linked.map_err(|error| local(&place.directory().join(name), &error))?;
    }
    Ok(())
}

async fn part_of(job: &Job, id: &str, part: Part, made: &Made, options: VerifyOptions) -> Result<Verified> {
    let reader = reader(&job.cluster, id, &part).await?;
    let unpacker = Unpacker::new(made, part.tablespace, options)?;
    let name = part.object.name;
    let frames = reader.stream(|_| true, FRAMES_AHEAD).then(|frame| async move {
        let (_, frame) = frame?;
        job.pass(frame.len() as u64).await?;
        job.progress.add(frame.len() as u64);
        Ok::<_, EngineError>(frame)
    });
    let unpacking = feed(Box::pin(frames), move |frames| unpacker.unpack(&name, frames));
    tokio::select! {
        verified = unpacking => verified,
        () = job.cancel.cancelled() => Err(EngineError::cancelled()),
    }
}

/// Unpacks one part.
struct Unpacker {
    /// Where its paths begin.
    root: Folder,
    tablespace: Option<u32>,
    verifier: Verifier,
    /// Directories that are known to be there.
    known: HashSet<Vec<u8>>,
    file: Option<(PathBuf, File)>,
}

impl Unpacker {
    fn new(made: &Made, tablespace: Option<u32>, options: VerifyOptions) -> Result<Self> {
        let root = tablespace.map_or(Some(made.data()), |oid| made.space(oid)).cloned();
        let root =
            root.ok_or_else(|| EngineError::damaged("the snapshot has data of a tablespace that it does not name"))?;
        let verifier = Verifier::new(options, tablespace);
        Ok(Self { root, tablespace, verifier, known: HashSet::new(), file: None })
    }

    fn unpack(mut self, name: &str, frames: &mut crate::feed::Feed) -> Result<Verified> {
        let damaged = |why: &dyn std::fmt::Display| EngineError::damaged(format!("{name} is damaged: {why}"));
        let mut reader = TarReader::new();
        let mut failed = None;
        for frame in frames {
            let read = reader.feed(&frame, &mut |event| {
                if failed.is_none() {
                    failed = self.take(event).err();
                }
            });
            if let Some(error) = failed.take() {
                return Err(error);
            }
            read.map_err(|error| damaged(&error))?;
        }
        reader.finish().map_err(|error| damaged(&error))?;
        Ok(self.verifier.finish())
    }

    fn take(&mut self, event: TarEvent<'_>) -> Result<()> {
        self.verifier.take(event);
        match event {
            TarEvent::File(header) => self.begin(header),
            TarEvent::Data(data) => match &mut self.file {
                Some((path, file)) => file.write_all(data).map_err(|error| failed(path, &error)),
                None => Ok(()),
            },
            TarEvent::End { .. } => {
                self.file = None;
                Ok(())
            }
        }
    }

    fn begin(&mut self, header: &TarHeader) -> Result<()> {
        let inside = |folder: &[u8]| header.path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'));
        let is_main = self.tablespace.is_none();
        match &header.kind {
            // They are made by us, for the tablespaces that are known.
            TarKind::Link { .. } => return Ok(()),
            // Links will be there.
            _ if is_main && inside(b"pg_tblspc") => {
                let path = String::from_utf8_lossy(&header.path);
                let what = format!("a tablespace lies within the data directory ({path}), which is not supported");
                return Err(EngineError::new(FailureKind::Unsupported, what));
            }
            TarKind::Directory => {
                self.directory(&header.path)?;
                let mode = fs::Permissions::from_mode(header.mode & 0o777);
                let set = fs::set_permissions(self.path(&header.path), mode);
                return set.map_err(|error| failed(&self.shown(&header.path), &error));
            }
            // What the server needs of the log, and no more, it gets from us.
            TarKind::File if is_main && (LEFT_OUT.contains(&&header.path[..]) || inside(b"pg_wal")) => return Ok(()),
            TarKind::File => {}
        }
        if let Some(slash) = header.path.iter().rposition(|byte| *byte == b'/') {
            let folder = header.path.get(..slash).unwrap_or_default().to_vec();
            self.directory(&folder)?;
        }
        let path = self.path(&header.path);
        let open = || {
            let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.set_permissions(fs::Permissions::from_mode(header.mode & 0o777))?;
            self.root.owner().give_file(&file)?;
            Ok(file)
        };
        let shown = self.shown(&header.path);
        let file = open().map_err(|error: io::Error| failed(&shown, &error))?;
        self.file = Some((shown, file));
        Ok(())
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        self.root.here().join(OsStr::from_bytes(path))
    }

    /// The same as it is told.
    fn shown(&self, path: &[u8]) -> PathBuf {
        self.root.path().join(OsStr::from_bytes(path))
    }

    /// Makes a directory, with those that it is in: of another part they may come later.
    fn directory(&mut self, path: &[u8]) -> Result<()> {
        if self.known.contains(path) {
            return Ok(());
        }
        if let Some(slash) = path.iter().rposition(|byte| *byte == b'/') {
            let above = path.get(..slash).unwrap_or_default().to_vec();
            self.directory(&above)?;
        }
        let made = self.path(path);
        match DirBuilder::new().mode(0o700).create(&made) {
            Ok(()) => self.root.owner().give(&made).map_err(|error| failed(&self.shown(path), &error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(&made) => {}
            Err(error) => return Err(failed(&self.shown(path), &error)),
        }
        self.known.insert(path.to_vec());
        Ok(())
    }
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn failed(path: &Path, error: &io::Error) -> EngineError {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return EngineError::damaged(format!("the snapshot has {} twice", path.display()));
    }
    local(path, error)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::base::tar_tests::{file, header, sealed};
    use crate::restore::settings::tests::base;

    /// Unpacks an archive into a new directory below `folder`.
    async fn unpack(folder: &Path, tablespace: Option<u32>, archive: Vec<u8>) -> Result<Verified> {
        let directory = hindsight_engine::Directory::new(folder.join("data"));
        let mut base = base();
        if tablespace.is_some() {
            let (name, location) = ("fast".to_owned(), "/mnt/fast".to_owned());
            base.tablespaces.push(crate::base::StoredTablespace { oid: 16385, name, location });
        }
        // As root it would have to be somebody else's.
        let place = Place::for_tests(&directory, &base)?;
        let made = place.make()?;
        let options = VerifyOptions { checksums: ManifestChecksums::Crc32c, pages: None };
        let unpacker = Unpacker::new(&made, tablespace, options)?;
        let pieces: Vec<_> = archive.chunks(700).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let verified = feed(stream::iter(pieces), move |frames| unpacker.unpack("x.tar", frames)).await?;
        fs::create_dir_all(folder.join("data/pg_tblspc"))?;
        link(&place, &made)?;
        Ok(verified)
    }

    #[tokio::test]
    async fn files_come_with_their_modes_and_what_is_not_for_the_server_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = header(b"open/", b'5', 0, b"");
        open[100..108].copy_from_slice(b"0000750 ");
        let archive = [
            file("base/5/1", b"data"),
            sealed(open),
            file("open/x", b""),
            file("standby.signal", b""),
            file("tablespace_map", b"16385 /mnt/fast\n"),
            file("pg_wal/000000010000000000000001", b"log"),
            header(b"pg_wal/archive_status/", b'5', 0, b""),
            header(b"pg_tblspc/", b'5', 0, b""),
            header(b"pg_tblspc/16385/", b'2', 0, b"/mnt/fast"),
        ]
        .concat();
        unpack(folder.path(), None, archive).await.unwrap();
        let data = folder.path().join("data");
        let mode = |path: &str| fs::metadata(data.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(fs::read(data.join("base/5/1")).unwrap(), b"data");
        assert_eq!([mode("base/5/1"), mode("base/5"), mode("open"), mode("open/x")], [0o600, 0o700, 0o750, 0o600]);
        for gone in ["standby.signal", "tablespace_map", "pg_wal/000000010000000000000001", "pg_tblspc/16385"] {
            assert!(fs::symlink_metadata(data.join(gone)).is_err(), "{gone}");
        }
        assert!(data.join("pg_wal/archive_status").is_dir());
    }

    #[tokio::test]
    async fn a_tablespace_goes_to_its_folder_with_a_link_to_it() {
        let folder = tempfile::tempdir().unwrap();
        unpack(folder.path(), Some(16385), file("PG_15_202209061/5/1", b"data")).await.unwrap();
        let link = folder.path().join("data/pg_tblspc/16385");
        assert_eq!(fs::read_link(&link).unwrap(), folder.path().join("data.tablespaces/16385"));
        assert_eq!(fs::read(link.join("PG_15_202209061/5/1")).unwrap(), b"data");
    }

    #[tokio::test]
    async fn nothing_is_written_elsewhere() {
        for archive in [
            file("../x", b"data"),
            file("/x", b"data"),
            file("base/../../x", b"data"),
            [header(b"pg_tblspc/7/", b'2', 0, b"/tmp"), file("pg_tblspc/7/x", b"data")].concat(),
            file("pg_tblspc/7/x", b"data"),
            header(b"base", b'2', 0, b"/tmp"),
            [file("x", b"data"), file("x", b"other")].concat(),
            [file("x", b"data"), file("x/y", b"data")].concat(),
            file("x", b"data")[..700].to_vec(),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let refused = unpack(folder.path(), None, archive.clone()).await.unwrap_err();
            assert!(!refused.what.is_empty());
            let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["data"], "{}", refused.what);
        }
    }
}
