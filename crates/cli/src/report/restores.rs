//! Restores that were, and how they ended.

use hindsight_engine::Words;
use hindsight_format::{DamagedRecord, Place, RestoreRecord, RestoreState, format_time};
use hindsight_jobs::Overview;
use serde::Serialize;

use super::{Keyed, yaml};
use crate::output::Report;
use crate::text;

/// How a restore stands, in one or two words. One whose record says that it runs, while nobody
/// runs it, was cut off.
pub(crate) fn standing(record: &RestoreRecord, restoring: &[String]) -> &'static str {
    match record.state {
        RestoreState::InProgress if restoring.contains(&record.id) => "in_progress",
        RestoreState::InProgress => "cut off",
        RestoreState::Success => "success",
        RestoreState::Error => "error",
    }
}

/// A restore that changed its target and did not end well, which no later one has mended.
pub(crate) fn unmended<'a>(overview: &'a Overview) -> Option<&'a RestoreRecord> {
    let own = overview.descriptor.as_ref().map(|descriptor| &descriptor.identity);
    let mut broken: Option<&'a RestoreRecord> = None;
    for record in overview.restores.iter().filter(|record| own == Some(&record.into) && record.touched) {
        let whole = record.namespaces.is_empty();
        match record.state {
            RestoreState::Success if whole || broken.is_some_and(|b| b.namespaces == record.namespaces) => {
                broken = None
            }
            RestoreState::Success => {}
            // What is broken as a whole is not less so by a restore of a part.
            _ if broken.is_some_and(|b| b.namespaces.is_empty()) && !whole => {}
            _ => broken = Some(record),
        }
    }
    broken.filter(|record| standing(record, &overview.restoring) != "in_progress")
}

/// The warning about such a restore, in plain words.
pub(crate) fn half_restored(overview: &Overview, program: &str) -> Vec<String> {
    let Some(record) = unmended(overview) else { return Vec::new() };
    let what = match record.namespaces.as_slice() {
        [] => "the cluster is half restored".to_owned(),
        [one] => format!("{one} is half restored"),
        some => format!("{} are half restored", some.join(", ")),
    };
    vec![format!(
        "{what}: the restore {} {}. The data are not whole until a restore has succeeded: run `{program} restore` again",
        record.id,
        how(record)
    )]
}

/// How a restore ended that did not end well.
fn how(record: &RestoreRecord) -> String {
    match &record.error {
        Some(error) => format!("failed while {}: {error}", record.step),
        None => format!("was cut off while {}", record.step),
    }
}

/// The warning about one that was to replace the cluster in one step, and did not end well: whether it came to that is not known
/// here. What the capture or a backup stores of the new history comes from whatever is there, and ends it.
pub(crate) fn replaced_or_not(overview: &Overview, program: &str) -> Option<String> {
    let own = overview.descriptor.as_ref().map(|descriptor| &descriptor.identity);
    let is_own = |record: &&RestoreRecord| own == Some(&record.into) && (record.touched || record.kept.is_some());
    let record = overview.restores.iter().rev().find(is_own)?;
    let is_followed = overview.history.snapshots.iter().any(|snapshot| snapshot.epoch == overview.epoch)
        || overview.history.slices.iter().any(|slice| slice.epoch == overview.epoch);
    let is_last = record.new_epoch == Some(overview.epoch) && !is_followed;
    if !is_last || matches!(standing(record, &overview.restoring), "in_progress" | "success") {
        return None;
    }
    let whole = whole(record, program)?;
    Some(format!("the restore {} in place {}; {whole}", record.id, how(record)))
}

/// What the target of a restore is that replaces it in one step, for who can see where it is.
pub(crate) fn whole(record: &RestoreRecord, program: &str) -> Option<String> {
    let kept = record.kept.as_ref()?;
    Some(format!(
        "the data are whole all the same: if {kept} is there, they are what was restored, and else what was there before; start \
         the server, and all goes on with them; where its directory is missing, `{program} restore` with --in-place says how to put \
         it back"
    ))
}

/// The history of restores.
#[derive(Debug, Serialize)]
pub(crate) struct Restores {
    restores: Vec<Entry>,
    /// Records that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<DamagedRecord>,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    status: &'static str,
    snapshot: String,
    target: String,
    into: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    started_at: String,
    finished_at: Option<String>,
    touched: bool,
    error: Option<String>,
}

impl Restores {
    /// The last `size` restores, or all.
    pub(crate) fn of(overview: &Overview, size: Option<usize>) -> Self {
        let skipped = overview.restores.len().saturating_sub(size.unwrap_or(usize::MAX));
        let entry = |record: &RestoreRecord| Entry {
            name: record.id.clone(),
            status: standing(record, &overview.restoring),
            snapshot: record.snapshot.clone(),
            target: record.target.clone(),
            into: record.into_hosts.clone(),
            namespaces: record.namespaces.clone(),
            started_at: format_time(record.started_at),
            finished_at: record.finished_at.map(format_time),
            touched: record.touched,
            error: record.error.clone(),
        };
        let damaged = overview.damaged.iter().filter(|record| matches!(record.place, Place::Restore(_)));
        Self {
            restores: overview.restores.iter().skip(skipped).map(entry).collect(),
            damaged: damaged.cloned().collect(),
        }
    }
}

impl Report for Restores {
    fn text(&self) -> String {
        let damaged: String = self.damaged.iter().map(|record| format!("  WARNING: {record}\n")).collect();
        if self.restores.is_empty() && self.damaged.is_empty() {
            return "Restores history:\n  none\n".to_owned();
        }
        let mut rows = vec![["NAME", "STATUS", "RESTORE POINT", "BASE", "INTO"].map(str::to_owned).to_vec()];
        for entry in &self.restores {
            let target = match entry.namespaces.as_slice() {
                [] => entry.target.clone(),
                some => format!("{} ({})", entry.target, some.join(", ")),
            };
            rows.push(vec![
                entry.name.clone(),
                entry.status.to_owned(),
                target,
                entry.snapshot.clone(),
                entry.into.clone(),
            ]);
        }
        let mut text = format!("Restores history:\n{}", text::table_with_head(&rows, &[]));
        for entry in &self.restores {
            if let Some(error) = &entry.error {
                text.push_str(&format!("  {} failed: {error}\n", entry.name));
            }
        }
        text.push_str(&damaged);
        text
    }
}

/// One restore with all that is known about it.
#[derive(Debug, Serialize)]
pub(crate) struct RestoreReport {
    name: String,
    status: &'static str,
    restore_point: String,
    backup: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    renamed: Option<String>,
    into: String,
    into_id: String,
    target_changed: bool,
    step: String,
    started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_epoch: Option<u64>,
    /// Where the target is kept as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
    /// Where in the log it came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<String>,
    #[serde(flatten)]
    totals: Keyed,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    hindsight_version: String,
}

impl RestoreReport {
    pub(crate) fn of(record: &RestoreRecord, restoring: &[String], words: &Words) -> Self {
        Self {
            name: record.id.clone(),
            status: standing(record, restoring),
            restore_point: record.target.clone(),
            backup: record.snapshot.clone(),
            namespaces: record.namespaces.clone(),
            renamed: record.renamed.clone(),
            into: record.into_hosts.clone(),
            into_id: record.into.id.clone(),
            target_changed: record.touched,
            step: record.step.clone(),
            started_at: format_time(record.started_at),
            finished_at: record.finished_at.map(format_time),
            duration: record.finished_at.map(|end| text::took(record.started_at, end)),
            new_epoch: record.new_epoch,
            kept: record.kept.clone(),
            reached: record.reached.as_ref().map(ToString::to_string),
            totals: Keyed::totals(words, &record.totals),
            error: record.error.clone(),
            hindsight_version: record.run_by.clone(),
        }
    }
}

impl Report for RestoreReport {
    fn text(&self) -> String {
        yaml(self)
    }
}
