//! All of the log that a restore replays, read before anything is touched.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hindsight_engine::{EngineError, FailureKind, Job, Result};
use hindsight_repository::ObjectReader;

use super::log::{OPENED_AHEAD, StoredLog, holding};
use super::place::quoted;
use super::reach::{damaged, reader};
use crate::Lsn;
use crate::base::{CopiedDatabase, StoredBase};
use crate::feed::feed;
use crate::server::{Owner, local};
use crate::wal::{Event, Span, WalLevel, WalReader, What};

/// What there is in the log from where the base begins to the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    /// The last record, which ends at the cut.
    pub(crate) last: Span,
    /// How many there are, as what is stored counts them; of a part of a slice its share by bytes.
    pub(crate) records: u64,
    obstacles: Obstacles,
}

/// What may keep a server from replaying it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Obstacles {
    /// Folders of tablespaces that are created.
    folders: Vec<(Lsn, String)>,
    /// Where the source began to log too little for any recovery.
    minimal: Option<Lsn>,
    /// What spoilt the base while it was taken.
    copied: Option<CopiedDatabase>,
}

/// Reads all of the log up to the cut, and makes sure that it is as it was written. What follows the base, of which a slice says
/// that no record in it is notable, is not decompressed for that, but for the last segments before the cut; of the rest every
/// record is verified.
///
/// # Errors
/// It is damaged, or cannot be cut there.
pub(crate) async fn walk(job: &Job, log: &Arc<StoredLog>, base: &StoredBase) -> Result<Walked> {
    let cut = log.segments().cut();
    for all in [false, true] {
        let mut walk = Walk { job, log, base, last: None, records: 0, obstacles: Obstacles::default() };
        walk.run(all).await?;
        match walk.last {
            Some(last) if last.end == cut => {
                return Ok(Walked { last, records: walk.records, obstacles: walk.obstacles });
            }
            // It may begin before what was read record by record.
            _ => continue,
        }
    }
    Err(EngineError::damaged(format!("no record of the log ends at {cut}, where it was to be cut"))
        .hint("name the restore point again"))
}

/// A part of a slice that is not read record by record.
struct Told {
    reader: ObjectReader,
    /// Its bytes within the slice.
    bytes: Range<u64>,
    /// Records in it: of a part of a slice its share.
    records: u64,
}

struct Walk<'a> {
    job: &'a Job,
    log: &'a Arc<StoredLog>,
    base: &'a StoredBase,
    /// The last record that was read.
    last: Option<Span>,
    records: u64,
    obstacles: Obstacles,
}

impl Walk<'_> {
    async fn run(&mut self, all: bool) -> Result<()> {
        let (log, stop, end) = (self.log, self.base.stop, end(self.log));
        let parts = log.segments().runs(self.base.start).map(|(slice, offset, part)| async move {
            // The records that belong to the base, and the last ones, have to be looked at.
            let is_told = !all && part.start >= stop;
            let told = if is_told { told(log, slice, offset, part.start..part.end.min(end)).await? } else { None };
            Ok::<_, EngineError>((part, told))
        });
        let parts: Vec<_> = parts.collect();
        let mut parts = stream::iter(parts).buffered(OPENED_AHEAD);
        let mut walked: Option<Range<Lsn>> = None;
        while let Some((mut part, told)) = parts.try_next().await? {
            if let Some(told) = told {
                if let Some(part) = walked.take() {
                    self.read(part).await?;
                }
                part.start = Lsn(part.start.0 + self.check(told).await?);
            }
            if !part.is_empty() {
                walked = Some(walked.map_or(part.start, |before| before.start)..part.end);
            }
        }
        match walked {
            Some(part) => self.read(part).await,
            None => Ok(()),
        }
    }

    /// Makes sure that a part of a slice is as it was written; gives how long it is.
    async fn check(&mut self, Told { reader, bytes, records }: Told) -> Result<u64> {
        self.job.check()?;
        let len = bytes.end - bytes.start;
        tokio::select! {
            checked = reader.check_stored(holding(bytes), |_| ()) => checked?,
            () = self.job.cancel.cancelled() => return Err(EngineError::cancelled()),
        }
        self.records = self.records.saturating_add(records);
        self.job.progress.add(len);
        Ok(len)
    }

    /// Reads and verifies the records of a part.
    async fn read(&mut self, part: Range<Lsn>) -> Result<()> {
        let (job, log, expect) = (self.job, self.log, self.log.segments().expect());
        let base = self.base.start..self.base.stop;
        let mut reader = match part.start == base.start {
            true => WalReader::at_record(part.start, expect),
            false => reader(part.start, expect),
        };
        let bytes = log.read(part).then(|piece| async move {
            let piece = piece?;
            job.check()?;
            job.progress.add(piece.len() as u64);
            Ok::<_, EngineError>(piece)
        });
        let mut obstacles = std::mem::take(&mut self.obstacles);
        let reading = feed(Box::pin(bytes), move |pieces| {
            for piece in pieces {
                if let Err(error) = reader.feed(&piece, &mut |event| obstacles.see(event, &base)) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok((reader, obstacles)))
        });
        let read = tokio::select! {
            read = reading => read?,
            () = job.cancel.cancelled() => return Err(EngineError::cancelled()),
        };
        let (reader, obstacles) = read.map_err(|error| damaged(log, &error))?;
        self.last = reader.last_record();
        self.records = self.records.saturating_add(reader.counts().total());
        self.obstacles = obstacles;
        Ok(())
    }
}

/// From where on everything is read: the beginning of the segment before the one with the cut, as of a segment the end may be
/// nothing but zeros, and its first record may have begun in the one before.
fn end(log: &StoredLog) -> Lsn {
    let (cut, size) = (log.segments().cut(), u64::from(log.segments().expect().segment_size.bytes()));
    Lsn((cut.0.saturating_sub(1) / size).saturating_sub(1) * size)
}

/// What a slice says of a part of it that begins at `offset`: that none of its records is notable.
async fn told(log: &StoredLog, slice: usize, offset: u64, part: Range<Lsn>) -> Result<Option<Told>> {
    let Some(len) = part.end.since(part.start).filter(|len| *len > 0) else { return Ok(None) };
    let reader = log.open(slice).await?;
    let records = reader.footer().log.as_ref().filter(|told| told.notable == Some(0)).map(|told| told.records);
    let Some(records) = records else { return Ok(None) };
    let share = u128::from(records) * u128::from(len) / u128::from(reader.raw_bytes().max(1));
    let records = u64::try_from(share).unwrap_or(records);
    Ok(Some(Told { reader, bytes: offset..offset.saturating_add(len), records }))
}

impl Walked {
    /// Makes sure that a server can replay it on this machine.
    ///
    /// # Errors
    /// It cannot, or must not.
    pub(crate) fn require(&self, owner: &Owner) -> Result<()> {
        self.obstacles.require_none(owner)
    }
}

impl Obstacles {
    fn see(&mut self, event: Event, base: &Range<Lsn>) {
        self.copied = self.copied.or_else(|| CopiedDatabase::of(&event).filter(|copied| base.contains(&copied.at)));
        match event.what {
            What::CreateTablespace { location, .. } => self.folders.push((event.span.start, location)),
            What::ParameterChange { wal_level: WalLevel::Minimal } => {
                self.minimal = self.minimal.or(Some(event.span.start));
            }
            // Slices without any are not read for them.
            other => debug_assert!(!other.is_notable(), "{other:?} is seen nowhere"),
        }
    }

    fn require_none(&self, owner: &Owner) -> Result<()> {
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
        let require = |path: &Path| {
            let folders = vec![(Lsn(7), path.display().to_string())];
            Obstacles { folders, ..Obstacles::default() }.require_none(&Owner::us())
        };
        let minimal = Obstacles { minimal: Some(Lsn(9)), ..Obstacles::default() };
        assert!(minimal.require_none(&Owner::us()).unwrap_err().what.contains("from 0/9 on"));
        let copied = CopiedDatabase { at: Lsn(8), database: 16_400 };
        let copied = Obstacles { copied: Some(copied), ..Obstacles::default() };
        assert!(copied.require_none(&Owner::us()).unwrap_err().what.contains("16400"));
        require(folder.path()).unwrap();
        require(Path::new("")).unwrap();
        assert!(require(&folder.path().join("none")).unwrap_err().hint.unwrap().starts_with("make it: install -d"));
        fs::create_dir(folder.path().join("PG_15_202209061")).unwrap();
        assert!(require(folder.path()).unwrap_err().what.contains("not empty"));
    }
}
