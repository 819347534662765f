//! A backup that is looked at while it comes.

use bytes::Bytes;
use hindsight_engine::{EngineError, FailureKind, Result};

use super::damage::in_archive;
use super::manifest::{BackupManifest, ManifestError, ManifestReader};
use super::source::odd;
use super::stored::archive_folder;
use super::tar::TarReader;
use super::verify::{Report, Verified, Verifier, VerifyOptions};

/// What is to be looked at.
pub(super) enum Look {
    /// The archive of a tablespace, or of the main data directory, begins.
    Archive(Option<u32>),
    /// The server's manifest begins.
    Manifest,
    Bytes(Bytes),
    /// There is no more of it.
    End,
}

/// What came of looking.
pub(super) struct Looked {
    pub(super) manifest: BackupManifest,
    pub(super) report: Report,
}

/// Looks at everything: reads the archives, computes the checksums of their files, and compares them with the manifest, which
/// comes last.
pub(super) struct Looker {
    options: VerifyOptions,
    archive: Option<(Option<u32>, TarReader, Verifier)>,
    manifest: Option<ManifestReader>,
    verified: Verified,
}

impl Looker {
    pub(super) fn new(options: VerifyOptions) -> Self {
        Self { options, archive: None, manifest: None, verified: Verified::default() }
    }

    pub(super) fn take(&mut self, next: Look) -> Result<()> {
        match next {
            Look::Archive(tablespace) => {
                self.archive = Some((tablespace, TarReader::new(), Verifier::new(self.options, tablespace)));
            }
            Look::Manifest => self.manifest = Some(ManifestReader::new()),
            Look::Bytes(bytes) => match (&mut self.archive, &mut self.manifest) {
                (Some((tablespace, reader, verifier)), _) => {
                    let fed = reader.feed(&bytes, &mut |event| verifier.take(event));
                    fed.map_err(|error| in_archive(&archive_folder(*tablespace), &error))?;
                }
                (None, Some(manifest)) => manifest.feed(&bytes).map_err(in_manifest)?,
                (None, None) => {}
            },
            Look::End => {
                let Some((tablespace, reader, verifier)) = self.archive.take() else { return Ok(()) };
                let folder = archive_folder(tablespace);
                if !reader.finish().map_err(|error| in_archive(&folder, &error))? {
                    let what = format!("the archive {folder} that the server sends has no end");
                    return Err(EngineError::damaged(what).hint("start the backup again"));
                }
                self.verified.absorb(verifier.finish());
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Looked> {
        let missing = || odd("the server sends no manifest with the backup");
        let manifest = self.manifest.ok_or_else(missing)?.finish().map_err(in_manifest)?;
        let report = self.verified.compare(&manifest);
        Ok(Looked { manifest, report })
    }
}

fn in_manifest(error: ManifestError) -> EngineError {
    let kind = match error {
        ManifestError::Version(_) => FailureKind::Unsupported,
        _ => FailureKind::Damaged,
    };
    EngineError::new(kind, format!("what the server sends: {error}")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::super::tar::tests::file;
    use super::*;

    #[test]
    fn looking_wants_whole_archives_and_a_manifest() {
        let options = VerifyOptions::files(crate::wire::ManifestChecksums::Crc32c);
        let mut looker = Looker::new(options);
        looker.take(Look::Archive(Some(7))).unwrap();
        looker.take(Look::Bytes(file("f", b"data").into())).unwrap();
        let error = looker.take(Look::End).unwrap_err();
        assert!(error.what.contains("data/7/") && error.what.contains("has no end"), "{error}");
        assert_eq!(Looker::new(options).finish().err().unwrap().kind, FailureKind::Server);
    }
}
