//! Where in the log a restore ends: found before anything is touched, in the few slices around it.

use std::sync::Arc;

use hindsight_catalog::{Cut, RestorePlan};
use hindsight_engine::{EngineError, FailureKind, Reached, Result};
use hindsight_format::format_time;
use jiff::Timestamp;

use super::log::{StoredLog, only_stream, position};
use crate::base::StoredBase;
use crate::feed::feed;
use crate::wal::{Event, Expect, Resolver, Span, Target, Unreachable, WalError, WalReader, What};
use crate::{Lsn, point};

/// Slices that are gone back through for the last commit before the cut. An idle server's have none.
const LOOK_BACK: usize = 16;

/// Where a restore ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What is told of it.
    pub(crate) reached: Reached,
    /// Where it is.
    pub(crate) cut: Lsn,
    /// Commits that are left out although their time is before the one asked for, as far as was read.
    pub(crate) overtaken: u64,
}

/// What was read around the cut.
#[derive(Debug, Default)]
struct Around {
    cut: Lsn,
    /// The last commit before it.
    commit: Option<Event>,
    /// The last event before it, whatever it is.
    last: Option<Event>,
    /// The first commit after it.
    left_out: Option<Timestamp>,
    overtaken: u64,
}

/// Finds where the log of a plan is cut. `log` is all that the plan names.
///
/// # Errors
/// The log is damaged there, or it does not lead there.
pub(crate) async fn resolve(log: &Arc<StoredLog>, plan: &RestorePlan, base: &StoredBase) -> Result<Found> {
    let (first, mut around) = match &plan.cut {
        Cut::Before(time) => before(log, base, *time).await?,
        Cut::Through { order } => through(log, of_order(order)?).await?,
        Cut::AtSnapshotEnd => through(log, log.segments().cut()).await?,
    };
    if around.cut < base.stop {
        return Err(EngineError::damaged(format!(
            "snapshot {} is whole only at {}, and its log ends at {}",
            plan.base.id, base.stop, around.cut
        ))
        .hint("restore from another snapshot"));
    }
    if around.commit.is_none() {
        around.commit = look_back(log, first).await?;
    }
    let last_commit = around.commit.as_ref().and_then(|commit| commit.what.time());
    let own = plan.base.streams.get(&only_stream(plan)?.stream).map(|part| part.last.time);
    let time = last_commit.or(own).unwrap_or(plan.base.finished_at);
    let timeline = log.segments().history().at(Lsn(around.cut.0 - 1));
    let point = point(time, around.cut, timeline).map_err(|error| EngineError::damaged(error.to_string()))?;
    let through = around.last.filter(|last| last.span.end == around.cut).and_then(|last| told(&last.what));
    let through = match through {
        Some(what) => format!("{}, {what}", around.cut),
        None => around.cut.to_string(),
    };
    let reached = Reached { point, through: Some(through), last_commit, left_out: around.left_out };
    Ok(Found { reached, cut: around.cut, overtaken: around.overtaken })
}

fn told(what: &What) -> Option<String> {
    Some(match what {
        What::Commit { xid, .. } | What::CommitPrepared { xid, .. } => format!("the commit of transaction {xid}"),
        What::Abort { xid, .. } | What::AbortPrepared { xid, .. } => format!("the rollback of transaction {xid}"),
        What::RestorePoint { name, .. } => format!("the restore point {name:?}"),
        What::BackupEnd { .. } => "the end of the backup".to_owned(),
        _ => return None,
    })
}

fn of_order(order: &str) -> Result<Lsn> {
    let lsn = u64::from_str_radix(order, 16).ok().filter(|lsn| super::log::order(Lsn(*lsn)) == order);
    lsn.map(Lsn).ok_or_else(|| EngineError::damaged(format!("{order} is no position of a PostgreSQL log")))
}

/// A reader of what a slice begins with: where that is amid a page, a record begins there.
pub(crate) fn reader(start: Lsn, expect: Expect) -> WalReader {
    if start.0.is_multiple_of(u64::from(expect.block_size)) {
        WalReader::new(start, expect)
    } else {
        WalReader::at_record(start, expect)
    }
}

/// Where the record before one ends: there, or before the header of the page that it begins.
fn end_before(start: Lsn, expect: &Expect) -> Lsn {
    let (page, segment) = (u64::from(expect.block_size), u64::from(expect.segment_size.bytes()));
    let header = if start.0 % segment < page { 40 } else { 24 };
    if start.0 % page == header { Lsn(start.0 - header) } else { start }
}

/// Damage, with the slice that it is in.
pub(crate) fn damaged(log: &StoredLog, error: &WalError) -> EngineError {
    let holds = |source: &&super::log::Source| {
        let bounds = [&source.name().start, &source.name().end].map(position);
        matches!(bounds, [Ok((start, _)), Ok((end, _))] if start <= error.at && error.at <= end)
    };
    let what = match log.sources().iter().find(holds) {
        Some(source) => format!("{error} (slice {})", source.name()),
        None => error.to_string(),
    };
    EngineError::damaged(what)
        .hint("`hindsight verify` tells what else is wrong; a restore point before it may be reached")
}

/// What is read of a slice, with the damage that ends it.
type Read<T> = (T, Option<WalError>);

/// After all records that end at or before `limit`.
async fn through(log: &Arc<StoredLog>, limit: Lsn) -> Result<(usize, Around)> {
    let mut found = None;
    for (index, source) in log.sources().iter().enumerate() {
        let ((start, _), (end, _)) = (position(&source.name().start)?, position(&source.name().end)?);
        if start < limit && limit <= end {
            found = Some((index, start, end));
        }
    }
    let (index, start, end) = found.ok_or_else(|| {
        let (from, to) = (log.segments().start(), log.segments().cut());
        EngineError::damaged(format!("the log from {from} to {to} does not hold {limit}"))
    })?;
    // What else was stored of it ends elsewhere.
    let (start, end) = (start.max(log.segments().start()), end.min(log.segments().cut()));
    let expect = log.segments().expect();
    let read = feed(log.read(start..end), move |pieces| {
        let (mut reader, mut around) = (reader(start, expect), Around { cut: start, ..Around::default() });
        let mut cut = None;
        for piece in pieces {
            let before = usize::try_from(limit.0.saturating_sub(reader.position().0)).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at_checked(before).unwrap_or((&piece, &[]));
            let mut see = |event: Event| around.see(event, limit);
            let mut fed = reader.feed(now, &mut see);
            if cut.is_none() && reader.position() >= limit && fed.is_ok() {
                cut = Some(reader.last_record());
            }
            if fed.is_ok() {
                fed = reader.feed(later, &mut see);
            }
            match fed {
                // What is wrong behind it does not matter.
                Err(_) if cut.is_some() => break,
                Err(error) => return Ok((around, Some(error))),
                Ok(()) => {}
            }
        }
        if let Some(last) = cut.flatten() {
            around.cut = if last.end <= limit { last.end } else { end_before(last.start, &expect) };
        }
        Ok::<Read<Around>, _>((around, None))
    });
    match read.await? {
        (_, Some(error)) => Err(damaged(log, &error)),
        (around, None) => Ok((index, around)),
    }
}

impl Around {
    fn see(&mut self, event: Event, limit: Lsn) {
        if event.span.end <= limit {
            if event.what.is_commit() {
                self.commit = Some(event.clone());
            }
            self.last = Some(event);
        } else if event.what.is_commit() && self.left_out.is_none() {
            self.left_out = event.what.time();
        }
    }
}

/// Before the first transaction that ended at `time` or later.
async fn before(log: &Arc<StoredLog>, base: &StoredBase, time: Timestamp) -> Result<(usize, Around)> {
    // Slices are named after the latest time in them or before, in whole seconds.
    let may_hold = |source: &super::log::Source| source.name().end.time.as_second() >= time.as_second();
    let index = log.sources().iter().position(may_hold).unwrap_or(log.sources().len().saturating_sub(1));
    let first = log.sources().get(index).ok_or_else(|| EngineError::damaged("there is no log to recover from"))?;
    let (start, end) = (position(&first.name().start)?.0.max(log.segments().start()), log.segments().cut());
    let (expect, consistent_at) = (log.segments().expect(), base.stop);
    let read = feed(log.read(start..end), move |pieces| {
        let mut reader = reader(start, expect);
        let mut resolver = Resolver::new(Target::Before(time), consistent_at);
        let (mut last, mut left_out) = (None, None);
        for piece in pieces {
            let fed = reader.feed(&piece, &mut |event: Event| {
                resolver.see(&event);
                if !resolver.is_found() {
                    last = Some(event);
                } else if event.what.is_commit() && left_out.is_none() {
                    left_out = event.what.time();
                }
            });
            if resolver.is_decided() && left_out.is_some() {
                break;
            }
            match fed {
                Err(_) if resolver.is_decided() => break,
                Err(error) => return Ok((Err(Unreachable::Damaged(error)), None, last, left_out)),
                Ok(()) => {}
            }
        }
        let read: Option<Span> = reader.last_record();
        Ok((resolver.finish(read), read, last, left_out))
    });
    let (resolution, read, last, left_out) = read.await?;
    let resolution = resolution.map_err(|error| unreachable(log, time, &error))?;
    let cut = match read {
        Some(last) if resolution.stop.inclusive => last.end,
        _ => end_before(resolution.stop.lsn, &expect),
    };
    let commit = resolution.before;
    Ok((index, Around { cut, commit, last, left_out, overtaken: resolution.overtaken }))
}

fn unreachable(log: &StoredLog, time: Timestamp, error: &Unreachable) -> EngineError {
    let refused = |what: String| EngineError::new(FailureKind::Unsupported, what);
    match error {
        Unreachable::Damaged(error) => damaged(log, error),
        Unreachable::TooEarly { latest: Some(latest), .. } => refused(format!(
            "what the snapshot holds goes beyond {}: by the server's clock, it ended with transactions of {}",
            format_time(time),
            format_time(*latest)
        ))
        .hint("restore to a later time, or name an older snapshot with --base-snapshot"),
        other => refused(other.to_string()).hint("name an older snapshot with --base-snapshot"),
    }
}

/// The last commit in the slices before one.
async fn look_back(log: &Arc<StoredLog>, index: usize) -> Result<Option<Event>> {
    let before = log.sources().get(..index).unwrap_or_default();
    for source in before.iter().rev().take(LOOK_BACK) {
        let ((start, _), (end, _)) = (position(&source.name().start)?, position(&source.name().end)?);
        let (start, expect) = (start.max(log.segments().start()), log.segments().expect());
        let last = feed(log.read(start..end), move |pieces| {
            let (mut reader, mut last) = (reader(start, expect), None);
            for piece in pieces {
                let read = reader.feed(&piece, &mut |event: Event| {
                    if event.what.is_commit() {
                        last = Some(event);
                    }
                });
                // It is only told of; the whole log is checked later.
                if read.is_err() {
                    break;
                }
            }
            Ok(last)
        });
        if let Some(last) = last.await? {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{SegmentSize, Version};

    #[test]
    fn a_record_ends_before_the_header_of_the_next_page() {
        let expect = Expect {
            system_identifier: 1,
            version: Version::V15,
            timeline: 1,
            segment_size: SegmentSize::DEFAULT,
            block_size: 8192,
        };
        for (start, end) in [
            (0x100_0028, 0x100_0000),
            (0x100_0018, 0x100_0018),
            (0x100_2018, 0x100_2000),
            (0x100_2028, 0x100_2028),
            (0x100_2020, 0x100_2020),
            (0x100_3FF8, 0x100_3FF8),
        ] {
            assert_eq!(end_before(Lsn(start), &expect), Lsn(end), "{start:X}");
        }
        let lsn: Lsn = "1/2000028".parse().unwrap();
        assert_eq!(of_order("0000000102000028").unwrap(), lsn);
        for wrong in ["102000028", "1612339716.0000000002", "000000010200002a"] {
            assert!(of_order(wrong).is_err());
        }
    }
}
