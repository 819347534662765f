//! What there is and what goes on: the basis of `list` and `status`.

use hindsight_catalog::{History, Timeline, timeline};
use hindsight_format::{
    ClusterConfig, ClusterDescriptor, DamagedRecord, LeaseRecord, OperationKind, Point, ProofRecord, RestoreRecord,
    RestoreState,
};
use hindsight_repository::ClusterRepository;

use crate::Result;
use crate::agent::CAPTURE_LEASE;
use crate::operation::{READING, running_operation};

/// Everything about one cluster that the repository tells.
#[derive(Debug)]
pub struct Overview {
    /// Which cluster it is.
    pub descriptor: Option<ClusterDescriptor>,
    /// Its settings.
    pub config: ClusterConfig,
    /// What is stored.
    pub history: History,
    /// What can be restored.
    pub timeline: Timeline,
    /// The epoch in which it is now.
    pub epoch: u64,
    /// Restores of its history, oldest first.
    pub restores: Vec<RestoreRecord>,
    /// Records that cannot be read: whatever does not need them is shown all the same.
    pub damaged: Vec<DamagedRecord>,
    /// Verifications and drills, oldest first.
    pub proofs: Vec<ProofRecord>,
    /// The backup or restore that runs.
    pub operation: Option<LeaseRecord>,
    /// Names of the restores that run: into this cluster, or into another from this one's history.
    pub restoring: Vec<String>,
    /// The capture.
    pub capture: Captured,
}

impl Overview {
    /// The end of what is stored of the present epoch's log.
    pub fn captured_until(&self) -> Option<&Point> {
        let slices = self.history.slices_of(self.epoch);
        slices.map(|slice| &slice.name.end).max_by_key(|point| (point.position.order(), point.time))
    }
}

/// The state of the capture.
#[derive(Debug)]
pub enum Captured {
    /// An agent is at work.
    Running(LeaseRecord),
    /// No agent has it; the last one that had, if any.
    Idle(Option<LeaseRecord>),
}

/// Reads everything that timelines and plans are made of.
pub async fn history(cluster: &ClusterRepository) -> Result<History> {
    // Slices first: a snapshot that is stored meanwhile is then at worst not connected yet.
    let slices = cluster.slices().await?;
    let (snapshots, epochs, gaps) =
        futures::try_join!(cluster.list_snapshots(), cluster.list_epochs(), cluster.gaps())?;
    let damaged = [snapshots.damaged, epochs.damaged].concat();
    let (snapshots, epochs) = (snapshots.records, epochs.records);
    Ok(History { cluster: cluster.name().to_owned(), snapshots, slices, epochs, gaps, damaged })
}

/// Warns of what is damaged, and so is left out.
pub(crate) fn warn_of_damage(history: &History) {
    history.damaged.iter().for_each(|record| tracing::warn!("{record}"));
}

/// Reads everything about a cluster.
pub async fn overview(cluster: &ClusterRepository) -> Result<Overview> {
    let history = history(cluster).await?;
    let (descriptor, config, restores, proofs, operation, capture) = futures::try_join!(
        cluster.descriptor(),
        cluster.config(),
        cluster.list_restores(),
        cluster.proofs(),
        running_operation(cluster),
        cluster.lease_state(CAPTURE_LEASE),
    )?;
    let live = |name: &str, lease: &LeaseRecord| cluster.lease_is_live(name, lease);
    let mut restoring = Vec::new();
    for record in restores.records.iter().filter(|record| record.state == RestoreState::InProgress) {
        let reading = format!("{READING}{}", record.id);
        let runs = operation.as_ref().is_some_and(|lease| {
            matches!(lease.operation.kind, OperationKind::Restore | OperationKind::Replay)
                && lease.operation.id == record.id
        });
        if runs || cluster.lease_state(&reading).await?.is_some_and(|lease| live(&reading, &lease)) {
            restoring.push(record.id.clone());
        }
    }
    Ok(Overview {
        descriptor,
        config: config.1,
        timeline: timeline(&history),
        epoch: cluster.current_epoch().await?,
        damaged: [history.damaged.as_slice(), &restores.damaged].concat(),
        history,
        restores: restores.records,
        proofs,
        operation,
        restoring,
        capture: match capture {
            Some(lease) if live(CAPTURE_LEASE, &lease) => Captured::Running(lease),
            other => Captured::Idle(other),
        },
    })
}
