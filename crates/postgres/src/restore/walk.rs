//! All of the log that a restore replays, read before anything is touched.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use hindsight_engine::{EngineError, FailureKind, Job, Result};

use super::log::StoredLog;
use super::place::quoted;
use super::reach::damaged;
use crate::Lsn;
use crate::base::{CopiedDatabase, StoredBase};
use crate::feed::feed;
use crate::server::{Owner, local};
use crate::wal::{Span, WalLevel, WalReader, What};

/// What there is in the log from where the base begins to the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    /// The last record, which ends at the cut.
    pub(crate) last: Span,
    /// How many there are.
    pub(crate) records: u64,
    /// Folders of tablespaces that are created.
    folders: Vec<(Lsn, String)>,
    /// Where the source began to log too little for any recovery.
    minimal: Option<Lsn>,
    /// What spoilt the base while it was taken.
    copied: Option<CopiedDatabase>,
}

/// Reads all of the log up to the cut, and verifies every record.
///
/// # Errors
/// It is damaged, or cannot be cut there.
pub(crate) async fn walk(job: &Job, log: &Arc<StoredLog>, base: &StoredBase) -> Result<Walked> {
    let (start, stop, cut, expect) = (base.start, base.stop, log.segments().cut(), log.segments().expect());
    let bytes = log.read(start..cut).then(|piece| async move {
        let piece = piece?;
        job.check()?;
        job.progress.add(piece.len() as u64);
        Ok::<_, EngineError>(piece)
    });
    let walking = feed(Box::pin(bytes), move |pieces| {
        let (mut reader, mut folders) = (WalReader::at_record(start, expect), Vec::new());
        let (mut minimal, mut copied) = (None, None);
        for piece in pieces {
            let read = reader.feed(&piece, &mut |event| {
                copied = copied.or_else(|| CopiedDatabase::of(&event).filter(|copied| copied.at < stop));
                match event.what {
                    What::CreateTablespace { location, .. } => folders.push((event.span.start, location)),
                    What::ParameterChange { wal_level: WalLevel::Minimal } => {
                        minimal = minimal.or(Some(event.span.start));
                    }
                    _ => {}
                }
            });
            if let Err(error) = read {
                return Ok(Err(error));
            }
        }
        Ok(Ok((reader.last_record(), reader.counts().total(), folders, minimal, copied)))
    });
    let walked = tokio::select! {
        walked = walking => walked?,
        () = job.cancel.cancelled() => return Err(EngineError::cancelled()),
    };
    let (last, records, folders, minimal, copied) = walked.map_err(|error| damaged(log, &error))?;
    match last {
        Some(last) if last.end == cut => Ok(Walked { last, records, folders, minimal, copied }),
        _ => Err(EngineError::damaged(format!("no record of the log ends at {cut}, where it was to be cut"))
            .hint("name the restore point again")),
    }
}

impl Walked {
    /// Makes sure that a server can replay it on this machine.
    ///
    /// # Errors
    /// It cannot, or must not.
    pub(crate) fn require(&self, owner: &Owner) -> Result<()> {
        if let Some(at) = self.minimal {
            let what =
                format!("from {at} on the log was written with wal_level = minimal, which no recovery gets past");
            let hint = "restore to before that, or from a snapshot that was taken after it";
            return Err(EngineError::new(FailureKind::Unsupported, what).hint(hint));
        }
        if let Some(CopiedDatabase { at, database }) = self.copied {
            let what = format!(
                "while the snapshot was taken the database with the OID {database} was copied or moved to another tablespace (at {at}): \
                 a server that replays that over the snapshot loses it"
            );
            let hint = "restore from another snapshot: --base-snapshot NAME";
            return Err(EngineError::new(FailureKind::Unsupported, what).hint(hint));
        }
        self.require_free_folders(owner)
    }

    /// Makes sure that no tablespace is created in a folder that somebody uses: a server that replays that makes itself at
    /// home in the very folder that is named in the log, also where that is its source's.
    fn require_free_folders(&self, owner: &Owner) -> Result<()> {
        for (at, folder) in self.folders.iter().filter(|(_, folder)| !folder.is_empty()) {
            let path = Path::new(folder);
            let refused = |why: &str, hint: String| {
                let what = format!("the log creates a tablespace in {folder} (at {at}), {why}");
                Err(EngineError::new(FailureKind::Unsupported, what).hint(hint))
            };
            let another = "restore from a snapshot that was taken after that";
            match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
                Ok(false) => {}
                Ok(true) => {
                    return refused(
                        "which is not empty on this machine: whoever uses it would lose it",
                        format!("{another}, or where there is no such folder yet"),
                    );
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return refused(
                        "and there is no such folder on this machine",
                        format!("make it: install -d -o {} -m 700 {}; or {another}", owner.name(), quoted(path)),
                    );
                }
                Err(error) => return Err(local(path, &error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_replayed_here_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let walked = |folders: &[&Path]| Walked {
            last: Span { start: Lsn(1), end: Lsn(2) },
            records: 1,
            folders: folders.iter().map(|path| (Lsn(7), path.display().to_string())).collect(),
            minimal: None,
            copied: None,
        };
        let require = |path: &Path| walked(&[path]).require(&Owner::us());
        let minimal = Walked { minimal: Some(Lsn(9)), ..walked(&[]) };
        assert!(minimal.require(&Owner::us()).unwrap_err().what.contains("from 0/9 on"));
        let copied = Walked { copied: Some(CopiedDatabase { at: Lsn(8), database: 16_400 }), ..walked(&[]) };
        assert!(copied.require(&Owner::us()).unwrap_err().what.contains("16400"));
        require(folder.path()).unwrap();
        require(Path::new("")).unwrap();
        assert!(require(&folder.path().join("none")).unwrap_err().hint.unwrap().starts_with("make it: install -d"));
        fs::create_dir(folder.path().join("PG_15_202209061")).unwrap();
        assert!(require(folder.path()).unwrap_err().what.contains("not empty"));
    }
}
