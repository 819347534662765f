//! `list`: the snapshots, and the times that can be restored.

use hindsight_catalog::parents;
use hindsight_format::{DamagedRecord, SnapshotManifest, format_time};
use hindsight_jobs::Overview;
use jiff::Timestamp;
use serde::Serialize;

use super::pitr::Pitr;
use super::proofs::{Proven, warnings};
use crate::output::Report;
use crate::text;

/// The snapshots, and the times that can be restored.
#[derive(Debug, Serialize)]
pub(crate) struct Listing {
    snapshots: Snapshots,
    pitr: Pitr,
    /// Records that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<DamagedRecord>,
}

/// The snapshots, oldest first.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Snapshots {
    shown: Vec<Row>,
    #[serde(skip)]
    hidden: usize,
    #[serde(skip)]
    several_epochs: bool,
    /// What verifications and drills have found wrong, for people.
    #[serde(skip)]
    warnings: Vec<String>,
    #[serde(skip)]
    program: String,
}

/// A snapshot, or what is known of one that cannot be read.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Row {
    Whole(Entry),
    Damaged { name: String, status: &'static str, error: String },
}

/// A snapshot; the names of the fields are those of `pbm list -o json` where it has them.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    #[serde(rename = "nss", skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    size: u64,
    status: &'static str,
    #[serde(rename = "restoreTo")]
    restore_to: i64,
    restore_time: String,
    #[serde(rename = "type")]
    kind: String,
    /// The snapshot that it builds upon.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    epoch: u64,
    /// How well it is known that it can be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<Proven>,
}

impl Listing {
    pub(crate) fn of(overview: &Overview, size: Option<usize>, unbacked: bool, now: Timestamp, program: &str) -> Self {
        Self {
            snapshots: Snapshots::of(overview, size, now, program),
            pitr: Pitr::of(overview, unbacked, now, program),
            damaged: overview.damaged.clone(),
        }
    }
}

impl Snapshots {
    /// The last `size` snapshots, or all.
    pub(crate) fn of(overview: &Overview, size: Option<usize>, now: Timestamp, program: &str) -> Self {
        let mut all: Vec<_> = overview.history.snapshots.iter().collect();
        all.sort_by_key(|snapshot| (snapshot.epoch, snapshot.restore_time(), snapshot.id.clone()));
        let hidden = all.len().saturating_sub(size.unwrap_or(usize::MAX));
        let several_epochs = overview.epoch > 1;
        let entry = |snapshot| Row::Whole(Entry::of(snapshot, Proven::of(&overview.proofs, snapshot, now)));
        let damaged = overview.damaged.iter().filter_map(|record| {
            let name = record.snapshot()?.to_owned();
            Some(Row::Damaged { name, status: "damaged", error: record.why.clone() })
        });
        let shown = all.into_iter().skip(hidden).map(entry).chain(damaged).collect();
        let mut warnings = warnings(&overview.proofs, now, program);
        warnings.extend(overview.damaged.iter().map(ToString::to_string));
        let whole = overview.history.snapshots.iter().map(|snapshot| parents(&overview.history, snapshot));
        warnings.extend(whole.filter_map(|chain| chain.err().map(|torn| torn.to_string())));
        Self { shown, hidden, several_epochs, warnings, program: program.to_owned() }
    }

    /// `Backup snapshots:` and what follows.
    pub(crate) fn text(&self) -> String {
        let mut head = vec!["NAME", "TYPE", "SIZE", "SELECTIVE", "RESTORE TIME"];
        if self.several_epochs {
            head.push("EPOCH");
        }
        let any_proof = self.shown.iter().any(|row| matches!(row, Row::Whole(entry) if entry.proof.is_some()));
        if any_proof {
            head.push("PROOF");
        }
        let any_parent = self.shown.iter().any(|row| matches!(row, Row::Whole(Entry { parent: Some(_), .. })));
        if any_parent {
            head.push("BUILDS UPON");
        }
        if self.shown.is_empty() && self.hidden == 0 {
            return format!("Backup snapshots:\n  none yet: take one with `{} backup`\n", self.program);
        }
        let columns = head.len();
        let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for row in &self.shown {
            let entry = match row {
                Row::Whole(entry) => entry,
                Row::Damaged { name, .. } => {
                    let unknown = (2..columns).map(|_| "-".to_owned());
                    rows.push([name.clone(), "DAMAGED".to_owned()].into_iter().chain(unknown).collect());
                    continue;
                }
            };
            let selective = if entry.namespaces.is_empty() { "no".to_owned() } else { entry.namespaces.join(",") };
            let size = text::bytes(entry.size);
            let mut row = vec![entry.name.clone(), entry.kind.clone(), size, selective, entry.restore_time.clone()];
            if self.several_epochs {
                row.push(entry.epoch.to_string());
            }
            if any_proof {
                row.push(entry.proof.as_ref().map_or_else(|| "-".to_owned(), |proof| proof.text.clone()));
            }
            if any_parent {
                row.push(entry.parent.clone().unwrap_or_else(|| "-".to_owned()));
            }
            rows.push(row);
        }
        let older = match self.hidden as u64 {
            0 => String::new(),
            hidden => format!("  and {}\n", text::things(hidden, "older snapshot", "older snapshots")),
        };
        let warnings: String = self.warnings.iter().map(|warning| format!("  WARNING: {warning}\n")).collect();
        format!("Backup snapshots:\n{}{older}{warnings}", text::table_with_head(&rows, &[2]))
    }
}

impl Entry {
    fn of(snapshot: &SnapshotManifest, proof: Option<Proven>) -> Self {
        Self {
            name: snapshot.id.clone(),
            namespaces: snapshot.namespaces.clone(),
            size: snapshot.totals.stored_bytes,
            status: "done",
            restore_to: snapshot.restore_time().as_second(),
            restore_time: format_time(snapshot.restore_time()),
            kind: snapshot.kind.to_string(),
            parent: snapshot.parent.clone(),
            epoch: snapshot.epoch,
            proof,
        }
    }
}

impl Report for Listing {
    fn text(&self) -> String {
        format!("{}\n{}", self.snapshots.text(), self.pitr.text())
    }
}
