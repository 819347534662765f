//! What is deleted, what stays, and what cannot be restored afterwards.

use hindsight_catalog::{Holder, KeptLog, Need, Removal};
use hindsight_format::{SnapshotManifest, StoredSlice, UnfinishedSnapshot, format_time};
use serde::Serialize;

use super::stretch::Stretch;
use crate::output::Report;
use crate::text;

/// What would be deleted, or was.
#[derive(Debug, Serialize)]
pub(crate) struct RemovalReport {
    /// Whether it was done.
    deleted: bool,
    snapshots: Vec<Snapshot>,
    /// Snapshots that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<String>,
    log: Vec<Log>,
    /// What was left of snapshots that were never finished.
    unfinished: Vec<UnfinishedSnapshot>,
    /// What was asked for, and stays.
    kept: Vec<Kept>,
    /// What can be restored before, and not afterwards.
    lost: Vec<Stretch>,
    /// What can be restored afterwards.
    left: Vec<Stretch>,
    stored_bytes: u64,
    #[serde(skip)]
    slices: u64,
    #[serde(skip)]
    gaps: u64,
    #[serde(skip)]
    is_empty: bool,
}

#[derive(Debug, Serialize)]
struct Snapshot {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    stored_bytes: u64,
    restore_time: String,
}

/// Slices that follow each other.
#[derive(Debug, Serialize)]
struct Log {
    stream: String,
    epoch: u64,
    from: String,
    to: String,
    slices: u64,
    stored_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Kept {
    what: String,
    why: String,
}

impl RemovalReport {
    pub(crate) fn of(plan: &Removal, deleted: bool) -> Self {
        let snapshots = plan.kept_snapshots.iter().map(|(name, need)| kept_snapshot(name, need));
        Self {
            deleted,
            snapshots: plan.snapshots.iter().map(Snapshot::of).collect(),
            damaged: plan.damaged.clone(),
            log: runs(&plan.slices),
            unfinished: plan.unfinished.clone(),
            kept: snapshots.chain(plan.kept_log.iter().map(kept_log)).collect(),
            lost: plan.losses.iter().map(Stretch::lost).collect(),
            left: plan.left.iter().map(Stretch::left).collect(),
            stored_bytes: plan.stored_bytes(),
            slices: plan.slices.len() as u64,
            gaps: plan.gaps.len() as u64,
            is_empty: plan.is_empty(),
        }
    }

    /// What was done, in one line.
    fn done(&self) -> String {
        let mut parts = Vec::new();
        let mut part = |number: u64, one: &str, many: &str| {
            if number > 0 {
                parts.push(text::things(number, one, many));
            }
        };
        part(self.snapshots.len() as u64, "snapshot", "snapshots");
        part(self.damaged.len() as u64, "snapshot that could not be read", "snapshots that could not be read");
        part(self.slices, "slice of log", "slices of log");
        part(self.unfinished.len() as u64, "unfinished snapshot", "unfinished snapshots");
        part(self.gaps, "record of a gap", "records of gaps");
        format!("Deleted: {} ({}).\n", parts.join(", "), text::bytes(self.stored_bytes))
    }
}

impl Snapshot {
    fn of(snapshot: &SnapshotManifest) -> Self {
        Self {
            name: snapshot.id.clone(),
            kind: snapshot.kind.to_string(),
            namespaces: snapshot.namespaces.clone(),
            stored_bytes: snapshot.totals.stored_bytes,
            restore_time: format_time(snapshot.restore_time()),
        }
    }
}

/// The stretches that slices make up, in order.
fn runs(slices: &[StoredSlice]) -> Vec<Log> {
    let mut slices: Vec<_> = slices.iter().collect();
    slices.sort_by_key(|s| (&s.stream, s.epoch, s.name.start.position.order(), s.name.end.position.order()));
    let mut runs: Vec<(Log, &str)> = Vec::new();
    for slice in slices {
        let (start, end) = (&slice.name.start, &slice.name.end);
        match runs.last_mut() {
            Some((log, reached))
                if (&log.stream, log.epoch) == (&slice.stream, slice.epoch) && start.position.order() <= *reached =>
            {
                if end.position.order() > *reached {
                    *reached = end.position.order();
                    log.to = format_time(end.time);
                }
                log.slices += 1;
                log.stored_bytes += slice.stored_bytes;
            }
            _ => {
                let log = Log {
                    stream: slice.stream.clone(),
                    epoch: slice.epoch,
                    from: format_time(start.time),
                    to: format_time(end.time),
                    slices: 1,
                    stored_bytes: slice.stored_bytes,
                };
                runs.push((log, end.position.order()));
            }
        }
    }
    runs.into_iter().map(|(log, _)| log).collect()
}

fn kept_snapshot(name: &str, need: &Need) -> Kept {
    let why = match need {
        Need::Capture => "the last one that PITR rests on, and PITR is on".to_owned(),
        Need::Children(children) => match children.as_slice() {
            [child] => format!("{child} builds upon it"),
            children => format!("{} build upon it", children.join(", ")),
        },
        Need::Unreadable => "it cannot be read; delete it by its name".to_owned(),
        Need::UnreadEpoch(epoch) => {
            format!("the record of epoch {epoch} cannot be read, which may rest on it; delete it by its name")
        }
        Need::Restores { from, to } if from >= to => format!("restoring to {} needs it", format_time(*to)),
        Need::Restores { from, to } => {
            format!("restoring to {} - {} needs it", format_time(*from), format_time(*to))
        }
    };
    Kept { what: format!("snapshot {name}"), why }
}

fn kept_log(log: &KeptLog) -> Kept {
    let what = format!(
        "log {} - {} ({}, {})",
        format_time(log.from),
        format_time(log.to),
        text::things(log.slices, "slice", "slices"),
        text::bytes(log.stored_bytes)
    );
    let why = match &log.holder {
        Holder::Snapshot(name) => format!("it leads on from snapshot {name}"),
        Holder::UnreadSnapshot(name) => format!("snapshot {name} cannot be read, and may need it"),
        Holder::UnreadEpoch(epoch) => format!("the record of epoch {epoch} cannot be read, which may rest on it"),
    };
    Kept { what, why }
}

fn section(title: &str, rows: &[Vec<String>], right: &[usize]) -> String {
    if rows.is_empty() { String::new() } else { format!("{title}:\n{}", text::table(rows, right)) }
}

impl Report for RemovalReport {
    fn text(&self) -> String {
        if self.deleted {
            return self.done();
        }
        let kept: Vec<_> = self.kept.iter().map(|kept| vec![format!("{}: {}", kept.what, kept.why)]).collect();
        if self.is_empty {
            return format!("nothing to delete\n{}", section("Stays, though asked for", &kept, &[]));
        }
        let snapshots: Vec<_> = self
            .snapshots
            .iter()
            .map(|snapshot| {
                let sort = if snapshot.namespaces.is_empty() { "" } else { ", selective" };
                let at = format!("restore time {}", snapshot.restore_time);
                vec![snapshot.name.clone(), format!("{}{sort}", snapshot.kind), text::bytes(snapshot.stored_bytes), at]
            })
            .collect();
        let log: Vec<_> = self
            .log
            .iter()
            .map(|log| {
                let slices = text::things(log.slices, "slice", "slices");
                vec![format!("{} - {}", log.from, log.to), slices, text::bytes(log.stored_bytes)]
            })
            .collect();
        let unfinished: Vec<_> = self
            .unfinished
            .iter()
            .map(|left| {
                let objects = text::things(left.objects, "object", "objects");
                let way = if left.resumable { "`backup --resume` could go on with it" } else { "" };
                vec![left.id.clone(), objects, text::bytes(left.stored_bytes), way.to_owned()]
            })
            .collect();
        let mut out = section("Snapshots to delete", &snapshots, &[2]);
        let damaged: Vec<_> = self.damaged.iter().map(|name| vec![name.clone()]).collect();
        out.push_str(&section("Cannot be read, to delete with whatever is in it", &damaged, &[]));
        out.push_str(&section("Log to delete", &log, &[1, 2]));
        out.push_str(&section("Left by backups that were never finished, to delete", &unfinished, &[1, 2]));
        out.push_str(&section("Stays, though asked for", &kept, &[]));
        if self.lost.is_empty() {
            out.push_str("Every moment that can be restored now stays so.\n");
        } else {
            out.push_str("No longer restorable afterwards:\n");
            self.lost.iter().for_each(|lost| out.push_str(lost.text()));
            if self.left.is_empty() {
                out.push_str("NOTHING can be restored afterwards.\n");
            } else {
                out.push_str("Restorable afterwards:\n");
                self.left.iter().for_each(|left| out.push_str(left.text()));
            }
        }
        out.push_str(&format!("This frees {}.\n", text::bytes(self.stored_bytes)));
        out
    }
}
