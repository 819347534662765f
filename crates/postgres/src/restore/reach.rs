//! Where in the log a restore ends: found before anything is touched, in the few slices around it.

use std::sync::Arc;

use hindsight_catalog::{Cut, RestorePlan};
use hindsight_engine::{EngineError, FailureKind, Reached};
use hindsight_format::format_time;
use jiff::Timestamp;

use super::log::{StoredLog, only_stream, position};
use crate::base::StoredBase;
use crate::feed::{Feed, feed};
use crate::wal::{Event, Expect, Resolution, Resolver, Span, Target, Unreachable, WalError, WalReader, What};
use crate::{Lsn, point};

/// A result, of a failure that is told unless it says otherwise.
type Result<T, E = EngineError> = std::result::Result<T, E>;

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

/// Where the log ends with a record, of which so much is stored: a switch ends with its segment, of whose unused rest not all
/// may be stored. It has no data, and is left out then.
fn end_within(last: Span, stored: Lsn, expect: &Expect) -> Lsn {
    if last.end <= stored { last.end } else { end_before(last.start, expect) }
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

/// After all records that end at or before `limit`.
async fn through(log: &Arc<StoredLog>, limit: Lsn) -> Result<(usize, Around)> {
    let mut found = None;
    for (index, source) in log.sources().iter().enumerate() {
        let ((start, _), (end, _)) = (position(&source.name().start)?, position(&source.name().end)?);
        if start < limit && limit <= end {
            found = Some((index, end));
        }
    }
    let (index, end) = found.ok_or_else(|| {
        let (from, to) = (log.segments().start(), log.segments().cut());
        EngineError::damaged(format!("the log from {from} to {to} does not hold {limit}"))
    })?;
    for index in (0..=index).rev() {
        // What else was stored of the last one ends elsewhere.
        let (start, end) = (begin(log, index)?, end.min(log.segments().cut()));
        let expect = log.segments().expect();
        let read = feed(log.read(start..end), move |pieces| Ok(read_through(reader(start, expect), limit, pieces)));
        match read.await? {
            Err(error) => return Err(damaged(log, &error)),
            Ok((Some(last), around)) => {
                let cut = end_within(last, limit, &log.segments().expect());
                return Ok((index, Around { cut, ..around }));
            }
            // All of it is in the midst of a record that is longer than the slice.
            Ok((None, _)) => {}
        }
    }
    Err(EngineError::damaged(format!("no record of the log ends at {limit} or before")))
}

/// Reads on to the end of a slice. Gives the last record that begins before `limit` and was read by then, and what is
/// around it.
fn read_through(mut reader: WalReader, limit: Lsn, pieces: &mut Feed) -> Result<(Option<Span>, Around), WalError> {
    let (mut around, mut cut) = (Around::default(), None);
    for piece in pieces {
        let before = usize::try_from(limit.0.saturating_sub(reader.position().0)).unwrap_or(usize::MAX);
        let (now, later) = piece.split_at_checked(before).unwrap_or((&piece, &[]));
        let mut see = |event: Event| around.see(event, limit);
        if cut.is_none() {
            reader.feed(now, &mut see)?;
            if reader.position() >= limit {
                cut = Some(reader.last_record());
            }
        }
        // What is wrong behind it does not matter.
        if cut.is_some() && reader.feed(later, &mut see).is_err() {
            break;
        }
    }
    Ok((cut.flatten(), around))
}

/// Where a slice begins, of what is read of it.
fn begin(log: &StoredLog, index: usize) -> Result<Lsn> {
    let source = log.sources().get(index).ok_or_else(|| EngineError::damaged("there is no log to recover from"))?;
    Ok(position(&source.name().start)?.0.max(log.segments().start()))
}

/// Whether a slice begins in the midst of a record: the rest of it was passed over.
fn passed_over(reader: &WalReader, start: Lsn) -> bool {
    reader.first_record().is_none_or(|first| ![0, 24, 40].contains(&first.0.saturating_sub(start.0)))
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
    let first = log.sources().iter().position(may_hold).unwrap_or(log.sources().len().saturating_sub(1));
    for index in (0..=first).rev() {
        let (start, end) = (begin(log, index)?, log.segments().cut());
        let (expect, consistent_at) = (log.segments().expect(), base.stop);
        let resolver = Resolver::new(Target::Before(time), consistent_at);
        let read = feed(log.read(start..end), move |pieces| Ok(read_before(reader(start, expect), resolver, pieces)));
        let Resolved { resolution, read, last, left_out, passed_over } = read.await?;
        // A record longer than the slice could be what is looked for.
        if passed_over && index > 0 {
            continue;
        }
        let resolution = resolution.map_err(|error| unreachable(log, time, &error))?;
        let cut = match read {
            Some(last) if resolution.stop.inclusive => end_within(last, end, &expect),
            _ => end_before(resolution.stop.lsn, &expect),
        };
        let (commit, overtaken) = (resolution.before, resolution.overtaken);
        return Ok((index, Around { cut, commit, last, left_out, overtaken }));
    }
    Err(EngineError::damaged("there is no log to recover from"))
}

/// What was read to find a time.
struct Resolved {
    resolution: Result<Resolution, Unreachable>,
    /// The last record that was read.
    read: Option<Span>,
    /// The last event before the cut.
    last: Option<Event>,
    left_out: Option<Timestamp>,
    passed_over: bool,
}

fn read_before(mut reader: WalReader, mut resolver: Resolver, pieces: &mut Feed) -> Resolved {
    let (start, mut last, mut left_out, mut failed) = (reader.position(), None, None, None);
    for piece in pieces {
        let fed = reader.feed(&piece, &mut |event: Event| {
            resolver.see(&event);
            if !resolver.is_found() {
                last = Some(event);
            } else if event.what.is_commit() && left_out.is_none() {
                left_out = event.what.time();
            }
        });
        if let Err(error) = fed {
            // What is wrong behind it does not matter.
            failed = Some(error).filter(|_| !resolver.is_decided());
            break;
        }
        if resolver.is_decided() && left_out.is_some() {
            break;
        }
    }
    let (read, passed_over) = (reader.last_record(), passed_over(&reader, start));
    let resolution = match failed {
        Some(error) => Err(Unreachable::Damaged(error)),
        None => resolver.finish(read),
    };
    Resolved { resolution, read, last, left_out, passed_over }
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
        let switch = Span { start: Lsn(0x100_2018), end: Lsn(0x200_0000) };
        assert_eq!(end_within(switch, Lsn(0x200_0000), &expect), Lsn(0x200_0000));
        assert_eq!(end_within(switch, Lsn(0x180_0000), &expect), Lsn(0x100_2000));
        let lsn: Lsn = "1/2000028".parse().unwrap();
        assert_eq!(of_order("0000000102000028").unwrap(), lsn);
        for wrong in ["102000028", "1612339716.0000000002", "000000010200002a"] {
            assert!(of_order(wrong).is_err());
        }
    }
}
