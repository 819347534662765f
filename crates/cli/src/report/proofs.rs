//! Evidence: how well it is known that a snapshot can be restored.

use hindsight_format::{ProofKind, ProofRecord, SnapshotManifest, format_time};
use jiff::Timestamp;
use serde::Serialize;

use crate::text;

/// The best evidence about one snapshot, or the worst.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Proven {
    kind: ProofKind,
    passed: bool,
    at: String,
    /// Milliseconds that a restore of it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_ms: Option<u64>,
    #[serde(skip)]
    pub(crate) text: String,
}

impl Proven {
    /// What is known about `snapshot`; none when nobody has looked. A failure counts until the same has succeeded.
    pub(crate) fn of(proofs: &[ProofRecord], snapshot: &SnapshotManifest, now: Timestamp) -> Option<Self> {
        let newest = |kind| {
            let about = proofs.iter().filter(|proof| proof.kind == kind && proof.snapshots.contains(&snapshot.id));
            about.max_by_key(|proof| proof.finished_at)
        };
        let (read, drill) = (newest(ProofKind::Read), newest(ProofKind::Drill));
        let failed = |proof: &&&ProofRecord| proof.broken.contains(&snapshot.id);
        let proof = [read, drill].iter().flatten().find(failed).copied().or(drill).or(read)?;
        let passed = !failed(&&proof);
        let ago = ago(proof, now);
        let text = match (proof.kind, passed) {
            (ProofKind::Read, true) => format!("read {ago}"),
            (ProofKind::Read, false) => format!("DAMAGED (read {ago})"),
            (ProofKind::Drill, true) => format!("proven {ago}, {}", recovery(proof.recovery_ms.unwrap_or(0))),
            (ProofKind::Drill, false) => format!("DRILL FAILED {ago}"),
        };
        let at = format_time(proof.finished_at);
        Some(Self { kind: proof.kind, passed, at, recovery_ms: proof.recovery_ms, text })
    }
}

/// What was found wrong, and has not been found right since; a line each.
pub(crate) fn warnings(proofs: &[ProofRecord], now: Timestamp, program: &str) -> Vec<String> {
    let newest = |kind| proofs.iter().filter(move |proof| proof.kind == kind).rfind(|proof| !proof.passed);
    let mended = |failed: &ProofRecord| {
        proofs.iter().any(|later| {
            let covers = failed.broken.iter().all(|id| later.snapshots.contains(id)) && (later.log || !failed.log);
            later.kind == failed.kind && later.passed && later.finished_at > failed.finished_at && covers
        })
    };
    let open = [ProofKind::Read, ProofKind::Drill].into_iter().filter_map(newest).filter(|failed| !mended(failed));
    let line = |failed: &ProofRecord| {
        let first = failed.told.first().map(|first| format!(": {first}")).unwrap_or_default();
        let more = match failed.findings {
            0 | 1 => String::new(),
            n => format!(" and {} more", text::count(n - 1)),
        };
        let ago = ago(failed, now);
        match failed.kind {
            ProofKind::Read => format!("the verification {ago} found damage{first}{more}; see `{program} verify`"),
            ProofKind::Drill => {
                let point = failed.restore_point.as_deref().unwrap_or("-");
                format!("the drill of {point} {ago} failed{first}{more}; see `{program} verify --drill`")
            }
        }
    };
    open.map(line).collect()
}

fn ago(proof: &ProofRecord, now: Timestamp) -> String {
    match now.duration_since(proof.finished_at).as_secs() {
        ..1 => "just now".to_owned(),
        seconds => format!("{} ago", text::span(seconds)),
    }
}

/// How long a restore took.
pub(crate) fn recovery(milliseconds: u64) -> String {
    match milliseconds {
        ..1000 => format!("{milliseconds} ms"),
        _ => text::span(i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX)),
    }
}
