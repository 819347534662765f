//! What a verification and a drill have found.

use hindsight_engine::{Examined, Words};
use hindsight_format::ProofRecord;
use hindsight_jobs::{Drilled, Finding, Level, Verified};
use serde::Serialize;

use super::proofs::recovery;
use super::stretch::Stretch;
use super::{Keyed, written};
use crate::output::Report;
use crate::text;

/// Findings of each kind that are shown to people.
const SHOWN: usize = 100;

/// What a verification has found, and the drill after it.
#[derive(Debug, Serialize)]
pub(crate) struct Verification {
    passed: bool,
    snapshots: Vec<String>,
    objects: u64,
    slices: u64,
    records: u64,
    bytes: u64,
    seconds: u64,
    findings: Vec<Finding>,
    /// What cannot be restored with all the damage together.
    lost: Vec<Stretch>,
    proof: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    drill: Option<Drill>,
    /// Why there was no drill although there should have been one.
    #[serde(skip)]
    no_drill: bool,
}

#[derive(Debug, Serialize)]
struct Drill {
    passed: bool,
    restore_point: String,
    base: String,
    recovery_ms: Option<u64>,
    server_version: Option<String>,
    totals: Option<Keyed>,
    examined: Option<Checked>,
    problems: Vec<String>,
    proof: String,
    /// What was restored, for people.
    #[serde(skip)]
    restored: Option<String>,
    /// What was checked, for people.
    #[serde(skip)]
    validated: Option<String>,
}

/// What the server said.
#[derive(Debug, Serialize)]
struct Checked {
    #[serde(flatten)]
    counts: Keyed,
    hashes_compared: Option<u64>,
    problems: Vec<String>,
}

impl Checked {
    fn of(examined: Examined, words: &Words) -> Self {
        Self {
            counts: Keyed(vec![(words.container.1, examined.containers), (words.item.1, examined.items)]),
            hashes_compared: examined.hashes_compared,
            problems: examined.problems,
        }
    }
}

impl Verification {
    /// `wanted` says whether a drill was asked for.
    pub(crate) fn of(verified: Verified, drilled: Option<Drilled>, wanted: bool, words: &Words) -> Self {
        let Verified { findings, lost, records, slices, proof } = verified;
        let drill = drilled.map(|drilled| Drill::of(drilled, words));
        Self {
            passed: proof.passed && drill.as_ref().is_none_or(|drill| drill.passed),
            seconds: seconds(&proof),
            objects: proof.objects - slices,
            slices,
            records,
            bytes: proof.bytes,
            findings,
            lost: lost.iter().map(Stretch::lost).collect(),
            proof: proof.id,
            snapshots: proof.snapshots,
            no_drill: wanted && drill.is_none(),
            drill,
        }
    }

    /// Whether nothing is wrong.
    pub(crate) fn passed(&self) -> bool {
        self.passed
    }

    fn list(&self, level: Level, title: &str) -> String {
        let found: Vec<_> = self.findings.iter().filter(|finding| finding.level == level).collect();
        if found.is_empty() {
            return String::new();
        }
        let mut text = format!("{title} ({}):\n", text::count(found.len() as u64));
        for finding in found.iter().take(SHOWN) {
            text.push_str(&format!("  {}: {}\n    {}\n", finding.key, finding.what, finding.means));
        }
        if found.len() > SHOWN {
            text.push_str(&format!("  and {} more\n", text::count((found.len() - SHOWN) as u64)));
        }
        text
    }
}

impl Drill {
    fn of(drilled: Drilled, words: &Words) -> Self {
        let Drilled { problems, totals, examined, proof } = drilled;
        Self {
            passed: proof.passed,
            restore_point: proof.restore_point.unwrap_or_default(),
            base: proof.snapshots.into_iter().next().unwrap_or_default(),
            recovery_ms: proof.recovery_ms,
            server_version: proof.server_version,
            restored: totals.as_ref().map(|totals| written(words, totals)),
            totals: totals.map(|totals| Keyed::totals(words, &totals)),
            validated: examined.as_ref().map(|examined| text::counted(examined.containers, words.container)),
            examined: examined.map(|examined| Checked::of(examined, words)),
            problems,
            proof: proof.id,
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![("restore point", self.restore_point.clone())];
        if let Some(restored) = &self.restored {
            let version = self.server_version.as_deref().unwrap_or("-");
            rows.push(("restored", restored.clone()));
            rows.push(("into", format!("a server of version {version}, which is gone again")));
            rows.push(("recovery time", recovery(self.recovery_ms.unwrap_or(0))));
        }
        if let (Some(examined), Some(validated)) = (&self.examined, &self.validated) {
            rows.push(("validated", validated.clone()));
            rows.push((
                "hashes",
                match examined.hashes_compared {
                    Some(n) => format!("{} compared with those of backup time", text::count(n)),
                    None => "none to compare with".to_owned(),
                },
            ));
        }
        let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        let mut text = format!("Drill {} of snapshot {}:\n{}", self.proof, self.base, text::table(&rows, &[]));
        match self.problems.as_slice() {
            [] => text.push_str("It can be restored, and is what it should be.\n"),
            problems => {
                text.push_str("DRILL FAILED:\n");
                problems.iter().for_each(|problem| text.push_str(&format!("  {problem}\n")));
            }
        }
        text
    }
}

impl Report for Verification {
    fn text(&self) -> String {
        let mut text = format!(
            "Read {} with {}, {} of log, {}: {} in {}.\n",
            text::things(self.snapshots.len() as u64, "snapshot", "snapshots"),
            text::things(self.objects, "object", "objects"),
            text::things(self.slices, "slice", "slices"),
            text::things(self.records, "record", "records"),
            text::bytes(self.bytes),
            if self.seconds == 0 {
                "under 1s".to_owned()
            } else {
                text::span(self.seconds.try_into().unwrap_or(i64::MAX))
            },
        );
        text.push_str(&self.list(Level::Damage, "DAMAGE"));
        text.push_str(&self.list(Level::Note, "Notes"));
        if !self.lost.is_empty() {
            text.push_str("Cannot be restored, with all of this together:\n");
        }
        self.lost.iter().for_each(|lost| text.push_str(lost.text()));
        if !self.findings.iter().any(|finding| finding.level == Level::Damage) {
            text.push_str("Nothing is damaged.\n");
        }
        if let Some(drill) = &self.drill {
            text.push_str(&drill.text());
        }
        if self.no_drill {
            text.push_str("No drill was made of what is damaged.\n");
        }
        text
    }
}

fn seconds(proof: &ProofRecord) -> u64 {
    proof.finished_at.duration_since(proof.started_at).as_secs().try_into().unwrap_or(0)
}
