//! Verification: every object is read and checked, and whatever is wrong is told with what it means.

mod consequence;
mod finding;
mod reading;
mod records;
mod survey;

use std::collections::BTreeSet;
use std::sync::Arc;

use hindsight_catalog::{Loss, Refusal, Target, plan};
use hindsight_engine::{Engine, Progress};
use hindsight_format::{OperationKind, Place, ProofKind, ProofRecord};
use hindsight_repository::ClusterRepository;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::Result;
use crate::journal::{RESULT, job};
use crate::operation::while_reading;
use crate::proof;
use finding::About;
use reading::Reading;
use survey::Survey;

pub use finding::{Finding, Level};

/// Surveys in which something new has come that is read as well; an agent that captures goes on for ever.
const ROUNDS: usize = 5;

/// What a verification gave.
#[derive(Debug)]
pub struct Verified {
    /// Everything found, damage first.
    pub findings: Vec<Finding>,
    /// What cannot be restored with all the damage together.
    pub lost: Vec<Loss>,
    /// Records that were read.
    pub records: u64,
    /// Captured slices that were read.
    pub slices: u64,
    /// The evidence that was stored.
    pub proof: ProofRecord,
}

impl Verified {
    /// The damage among the findings.
    pub fn damage(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.level == Level::Damage)
    }
}

/// Reads and checks everything that is stored of a cluster, or of its snapshot `only`, and keeps the result as
/// evidence. Damage is no error; what is no damage but a failure of the store is.
pub async fn verify(
    engine: &Arc<dyn Engine>,
    cluster: &ClusterRepository,
    only: Option<&str>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Verified> {
    let work = async {
        tracing::info!(target: RESULT, "begins");
        let cancel = cancel.child_token();
        let reading = read_all(engine, cluster, only, progress, &cancel);
        let read = while_reading(cluster, OperationKind::Verify, &cancel, reading).await;
        match &read {
            Ok(verified) if verified.proof.passed => tracing::info!(
                target: RESULT,
                "done: {} objects, {} bytes read, nothing is wrong",
                verified.proof.objects,
                verified.proof.bytes
            ),
            Ok(verified) => verified.damage().for_each(|finding| {
                tracing::error!(target: RESULT, "{}: {} ({})", finding.key, finding.what, finding.means);
            }),
            Err(error) => tracing::error!(target: RESULT, hint = error.hint(), "failed: {error}"),
        }
        read
    };
    work.instrument(job("verify", only)).await
}

async fn read_all(
    engine: &Arc<dyn Engine>,
    cluster: &ClusterRepository,
    only: Option<&str>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Verified> {
    let started_at = Timestamp::now();
    progress.step("reading the records", None);
    let mut survey = Survey::take(cluster, only).await?;
    if let Some(name) = only.filter(|name| !survey.knows(name)) {
        return Err(unknown(&survey, name));
    }
    let first = survey.horizon();
    let mut reading = Reading::new(engine, cluster, progress, cancel);
    let mut gaps;
    let mut rounds = 0;
    loop {
        reading.read(survey.works(), &first).await?;
        gaps = survey.unexplained_gaps();
        rounds += 1;
        // What an agent has merged, replaced or removed meanwhile is no damage.
        survey = Survey::take(cluster, only).await?;
        if rounds == ROUNDS || !reading.has_news(&survey.works(), &first) {
            break;
        }
    }
    let still: BTreeSet<String> = survey.works().iter().map(|work| work.key(cluster)).collect();
    let mut findings = std::mem::take(&mut survey.findings);
    findings.extend(reading.findings.into_iter().filter(|found| match &found.about {
        About::Snapshot(id) if found.is_of_a_whole() => survey.knows(id),
        _ => still.contains(&found.key),
    }));
    let now = survey.unexplained_gaps();
    findings.extend(gaps.into_iter().filter(|gap| now.contains(gap)).map(|gap| survey::missing_log(cluster, &gap)));
    findings.extend(survey.loose_ends());
    consequence::tell(&mut findings, &survey.history);
    for finding in &mut findings {
        if matches!(cluster.keys().place(&finding.key), Some(Place::SnapshotObject { .. } | Place::Slice { .. })) {
            finding.key = cluster.stored_key(&finding.key);
        }
    }
    findings.sort_by(|a, b| (a.level, &a.key).cmp(&(b.level, &b.key)));

    let damage: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Damage).collect();
    let broken: BTreeSet<_> = damage
        .iter()
        .filter_map(|finding| match &finding.about {
            About::Snapshot(id) => Some(id.clone()),
            _ => None,
        })
        .collect();
    let record = proof::Draft {
        kind: ProofKind::Read,
        started_at,
        snapshots: survey.snapshots(),
        broken: broken.into_iter().collect(),
        log: only.is_none(),
        problems: damage.iter().map(|finding| format!("{}: {}", finding.key, finding.what)).collect(),
        objects: reading.objects,
        bytes: reading.bytes,
        ..proof::Draft::default()
    };
    let proof = record.store(cluster).await?;
    let lost = consequence::all(&findings, &survey.history);
    Ok(Verified { findings, lost, records: survey.records, slices: reading.slices, proof })
}

/// There is no snapshot of this name: which may be meant?
fn unknown(survey: &Survey, name: &str) -> crate::JobError {
    let refusal = plan(&survey.history, &Target::Snapshot(name.to_owned()), None, Timestamp::now());
    refusal.err().unwrap_or(Refusal::NoSnapshots).into()
}
