//! Restore points that are no times: positions, names, transactions. Found in what is stored, without a server.

use std::collections::BTreeSet;
use std::ops::Range;

use futures::{StreamExt as _, stream};
use hindsight_catalog::{History, Target, plan};
use hindsight_engine::{EngineError, FailureKind, Result, Spoken};
use hindsight_format::{Ancestry, StoredSlice, format_time};
use hindsight_repository::{ClusterRepository, ObjectReader};
use jiff::Timestamp;

use crate::base::StoredBase;
use crate::feed::feed;
use crate::restore::log::{order, position};
use crate::restore::reach::reader;
use crate::summary::restore_point;
use crate::wal::{Event, Expect, What, Xid};
use crate::{Lsn, TimelineId};

/// Slices whose footers are read, and slices that are read through, at the same time.
const OPENED: usize = 16;
const READ: usize = 2;
/// Names, or stretches of log, that are told where something else was looked for.
const TOLD: usize = 10;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sought {
    Position(Lsn),
    Name(String),
    Transaction(Xid),
}

impl Sought {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(name) = text.strip_prefix("name:") {
            return Some(Self::Name(name.to_owned())).filter(|_| !name.is_empty());
        }
        if let Some(xid) = text.strip_prefix("xid:") {
            return xid.trim().parse().ok().map(Self::Transaction);
        }
        text.parse().ok().filter(|lsn: &Lsn| lsn.is_valid()).map(Self::Position)
    }
}

/// The restore point meant by a position (`16/B374D848`: everything up to it), by `name:X` (a restore point that was set with
/// `pg_create_restore_point`) or by `xid:N` (everything up to the end of that transaction). All are to be found.
pub fn parse(text: &str) -> Option<Spoken> {
    Sought::parse(text).map(|_| Spoken::ToFind(text.trim().to_owned()))
}

/// Finds what [`parse`] has recognised, the newest where there are several.
///
/// # Errors
/// It is not in what is stored; with what is.
pub async fn find(source: &ClusterRepository, history: &History, text: &str) -> Result<Target> {
    let sought = Sought::parse(text).ok_or_else(|| {
        refused(format!("{text:?} is no position, name or transaction"), "such as 16/B374D848, name:X or xid:733")
    })?;
    let mut slices = history
        .slices
        .iter()
        .filter(|slice| !slice.name.is_sign_of_life())
        .map(Slice::of)
        .collect::<Result<Vec<_>>>()?;
    // Newest first.
    slices.sort_by_key(|slice| std::cmp::Reverse((slice.stored.epoch, slice.end)));
    let log = Log { source, history, slices };
    match sought {
        Sought::Position(lsn) => log.position(lsn),
        Sought::Name(name) => log.name(&name).await,
        Sought::Transaction(xid) => log.transaction(xid).await,
    }
}

fn refused(what: impl Into<String>, hint: impl Into<String>) -> EngineError {
    EngineError::new(FailureKind::Unsupported, what).hint(hint)
}

/// A slice with its bounds.
#[derive(Clone)]
struct Slice {
    stored: StoredSlice,
    start: Lsn,
    end: Lsn,
    timeline: TimelineId,
}

impl Slice {
    fn of(stored: &StoredSlice) -> Result<Self> {
        let ((start, _), (end, timeline)) = (position(&stored.name.start)?, position(&stored.name.end)?);
        Ok(Self { stored: stored.clone(), start, end, timeline })
    }

    fn holds(&self, lsn: Lsn) -> bool {
        self.start < lsn && lsn <= self.end
    }
}

/// Something that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    epoch: u64,
    lsn: Lsn,
    time: Timestamp,
}

impl At {
    fn target(self) -> Target {
        Target::Through { time: self.time, order: order(self.lsn) }
    }
}

/// Keeps the first damage, and goes on: what is looked for may be elsewhere.
fn past_damage<T>(read: Result<T>, damage: &mut Option<EngineError>) -> Result<Option<T>> {
    match read {
        Err(error) if error.kind == FailureKind::Damaged => {
            damage.get_or_insert(error);
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// All log that is stored.
struct Log<'a> {
    source: &'a ClusterRepository,
    history: &'a History,
    slices: Vec<Slice>,
}

impl Log<'_> {
    fn position(&self, lsn: Lsn) -> Result<Target> {
        if let Some(slice) = self.slices.iter().find(|slice| slice.holds(lsn)) {
            let time = slice.stored.name.end.time;
            return Ok(Target::Through { time, order: order(lsn) });
        }
        // Where no log was captured, snapshots end somewhere all the same.
        let ends = self.history.snapshots.iter().flat_map(|snapshot| snapshot.streams.values().map(|part| &part.last));
        let time = ends.filter(|last| last.position.order() == order(lsn)).map(|last| last.time).max();
        if let Some(time) = time {
            return Ok(Target::Through { time, order: order(lsn) });
        }
        Err(refused(format!("no log that is stored holds {lsn}"), self.what_is_stored()))
    }

    /// The stretches of log that there are, newest first.
    fn what_is_stored(&self) -> String {
        let mut stretches: Vec<(u64, Range<Lsn>)> = Vec::new();
        for slice in self.slices.iter().rev() {
            match stretches.last_mut() {
                Some((epoch, stretch)) if *epoch == slice.stored.epoch && slice.start <= stretch.end => {
                    stretch.start = stretch.start.min(slice.start);
                    stretch.end = stretch.end.max(slice.end);
                }
                _ => stretches.push((slice.stored.epoch, slice.start..slice.end)),
            }
        }
        let told: Vec<_> = stretches
            .iter()
            .rev()
            .take(TOLD)
            .map(|(epoch, stretch)| format!("{} to {} (epoch {epoch})", stretch.start, stretch.end))
            .collect();
        if told.is_empty() { "no log is stored".to_owned() } else { format!("stored is {}", told.join(", ")) }
    }

    async fn name(&self, name: &str) -> Result<Target> {
        let opened = stream::iter(self.slices.clone()).map(|slice| async move {
            let reader = self.source.slice_reader(&slice.stored).await;
            (slice, reader.map_err(EngineError::from))
        });
        let mut opened = opened.buffered(OPENED);
        let (mut known, prefix, mut damage) = (BTreeSet::new(), restore_point(""), None);
        while let Some((slice, reader)) = opened.next().await {
            let Some(reader) = past_damage(reader, &mut damage)? else { continue };
            let counts = reader.footer().log.iter().flat_map(|log| log.counts.keys());
            let names: Vec<String> = counts.filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect();
            if names.iter().any(|found| found == name) {
                let wanted = name.to_owned();
                let is = move |what: &What| matches!(what, What::RestorePoint { name, .. } if *name == wanted);
                if let Some(at) = self.last_in(&slice, reader, is).await? {
                    return self.reached(at, &slice.stored, &format!("the restore point {name:?}"));
                }
            }
            known.extend(names);
        }
        if let Some(damage) = damage {
            return Err(damage);
        }
        let told: Vec<_> = known.iter().take(TOLD).map(|name| format!("{name:?}")).collect();
        let more = if known.len() > TOLD { ", and others" } else { "" };
        let hint = match told.as_slice() {
            [] => "no restore point is in the log that is stored (pg_create_restore_point sets one)".to_owned(),
            _ => format!("there are {}{more}", told.join(", ")),
        };
        Err(refused(format!("no restore point {name:?} is in the log that is stored"), hint))
    }

    async fn transaction(&self, xid: Xid) -> Result<Target> {
        let looked = stream::iter(self.slices.clone()).map(|slice| async move {
            let found = async {
                let reader = self.source.slice_reader(&slice.stored).await?;
                self.last_in(&slice, reader, move |what| what.transaction() == Some(xid)).await
            };
            let found = found.await;
            (slice, found)
        });
        let (mut looked, mut damage) = (looked.buffered(READ), None);
        while let Some((slice, found)) = looked.next().await {
            if let Some(at) = past_damage(found, &mut damage)?.flatten() {
                return self.reached(at, &slice.stored, &format!("the end of transaction {xid}"));
            }
        }
        if let Some(damage) = damage {
            return Err(damage);
        }
        Err(refused(format!("no transaction {xid} ends in the log that is stored"), self.what_is_stored()))
    }

    /// The last record of a slice that tells what is wanted.
    async fn last_in(
        &self,
        slice: &Slice,
        objects: ObjectReader,
        is: impl Fn(&What) -> bool + Send + 'static,
    ) -> Result<Option<At>> {
        let expect = self.expect(slice).await?;
        let (start, key) = (slice.start, objects.key().to_owned());
        let frames = objects.stream(|_| true, 2).map(|frame| Ok(frame?.1));
        let found = feed(frames, move |frames| {
            let (mut reader, mut found) = (reader(start, expect), None);
            for frame in frames {
                let read = reader.feed(&frame, &mut |event: Event| {
                    if is(&event.what) {
                        found = Some(event);
                    }
                });
                read.map_err(|error| EngineError::damaged(format!("{key}: {error}")))?;
            }
            Ok(found)
        });
        let end = slice.stored.name.end.time;
        Ok(found.await?.map(|Event { span, what }| At {
            epoch: slice.stored.epoch,
            lsn: span.end,
            time: what.time().unwrap_or(end),
        }))
    }

    /// What the log of a slice has to be like, which a base of its epoch tells, or any.
    async fn expect(&self, slice: &Slice) -> Result<Expect> {
        let of_epoch = |epoch: Option<u64>| {
            let snapshots =
                self.history.snapshots.iter().filter(move |snapshot| epoch.is_none_or(|e| snapshot.epoch == e));
            snapshots.max_by_key(|snapshot| snapshot.finished_at)
        };
        let snapshot = of_epoch(Some(slice.stored.epoch)).or_else(|| of_epoch(None));
        let snapshot =
            snapshot.ok_or_else(|| refused("there is no snapshot to restore from", "take one: hindsight backup"))?;
        let base = StoredBase::load(self.source, snapshot).await?;
        base.expect(slice.timeline).ok_or_else(|| crate::restore::log::unknown_version(&base))
    }

    /// Positions do not tell epochs apart: where a later one that does not come from there has the same position, that is where a
    /// restore would lead.
    fn reached(&self, at: At, slice: &StoredSlice, what: &str) -> Result<Target> {
        let ancestry = Ancestry::new(&self.history.epochs);
        let epoch = ancestry.epochs_of(slice).max().unwrap_or(at.epoch);
        let holding = self.slices.iter().filter(|other| other.holds(at.lsn));
        let newest = holding.flat_map(|other| ancestry.epochs_of(&other.stored)).max();
        if newest <= Some(epoch) {
            return Ok(at.target());
        }
        let then = self.history.clone().until_epoch(epoch);
        let hint = match plan(&then, &at.target(), None, Timestamp::now()) {
            Ok(_) => format!("name both: --time {} --epoch {epoch}", at.lsn),
            Err(refusal) => format!("no snapshot leads there: {refusal}"),
        };
        Err(refused(
            format!(
                "{what} (at {}, {}) lies in an older history of this cluster, epoch {epoch}",
                at.lsn,
                format_time(at.time),
            ),
            hint,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_told_from_times() {
        assert_eq!(Sought::parse(" 0/4a0028 "), Some(Sought::Position(Lsn(0x4A_0028))));
        assert_eq!(Sought::parse("name:before it"), Some(Sought::Name("before it".to_owned())));
        assert_eq!(Sought::parse("xid:733"), Some(Sought::Transaction(733)));
        for text in
            ["", "0/0", "name:", "xid:", "xid:-1", "xid:4294967296", "2026-03-01T10:00:00Z", "1612666799,4", "-5m"]
        {
            assert_eq!(Sought::parse(text), None, "{text}");
        }
        assert_eq!(parse("0/4A0028"), Some(Spoken::ToFind("0/4A0028".to_owned())));
    }
}
