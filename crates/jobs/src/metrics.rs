//! Figures of an agent at work, in the words of Prometheus.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hindsight_engine::FailureKind;
use hindsight_format::SnapshotManifest;
use hindsight_repository::{ClusterRepository, Error as RepositoryError};
use jiff::{SignedDuration, Timestamp};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};
use tokio_util::sync::CancellationToken;

use crate::JobError;

/// The repository is looked through this often for what others have done.
const LOOK: Duration = Duration::from_secs(60);

/// A figure that may not be known: then it is `NaN`, and no alert that compares it goes off.
type Seconds = Gauge<f64, AtomicU64>;

/// Figures of one agent. What it does changes them; whoever asks gets them as text.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    enabled: Gauge,
    running: Gauge,
    lag: Seconds,
    log_left: Seconds,
    stored_bytes: Counter,
    stored_slices: Counter,
    failed_uploads: Counter,
    repository_errors: Counter,
    snapshot_at: Seconds,
    snapshot_success: Gauge,
    proven_at: Seconds,
    proof_success: Gauge,
    /// All that was committed until then is stored; none while nothing is captured.
    captured_until: Mutex<Option<Timestamp>>,
    /// When this agent failed to take a snapshot.
    snapshot_failed_at: Mutex<Option<Timestamp>>,
}

impl Metrics {
    pub(crate) fn new(cluster: &str) -> Self {
        let mut registry =
            Registry::with_prefix_and_labels("hindsight", [("cluster".into(), cluster.to_owned().into())].into_iter());
        let metrics = Self {
            enabled: add(&mut registry, "capture_enabled", "Whether the settings want the log captured"),
            running: add(&mut registry, "capture_running", "Whether this agent captures the log"),
            lag: timed(&mut registry, "capture_lag", "How long ago it was that everything written was stored"),
            log_left: timed(
                &mut registry,
                "capture_log_left",
                "How much longer the server's own log holds what is not captured yet, at its present pace",
            ),
            stored_bytes: sized(&mut registry, "capture_stored", "What was stored of the log by this agent"),
            stored_slices: add(&mut registry, "capture_stored_slices", "Slices of the log stored by this agent"),
            failed_uploads: add(&mut registry, "capture_failed_uploads", "Slices that could not be stored at once"),
            repository_errors: add(&mut registry, "repository_errors", "Failures of the repository met by this agent"),
            snapshot_at: timed(&mut registry, "last_snapshot_timestamp", "When the newest full snapshot was complete"),
            snapshot_success: add(
                &mut registry,
                "last_snapshot_success",
                "Whether there is a full snapshot, and this agent failed to take none since",
            ),
            proven_at: timed(&mut registry, "last_proven_timestamp", "When a verification or drill passed last"),
            proof_success: add(&mut registry, "last_proof_success", "Whether the last verification or drill passed"),
            captured_until: Mutex::default(),
            snapshot_failed_at: Mutex::default(),
            registry,
        };
        for unknown in [&metrics.lag, &metrics.log_left, &metrics.snapshot_at, &metrics.proven_at] {
            unknown.set(f64::NAN);
        }
        metrics
    }

    /// All figures as they are now, in the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let until = *self.captured_until.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = |until: Timestamp| Timestamp::now().duration_since(until).as_secs_f64().max(0.0);
        self.lag.set(until.map_or(f64::NAN, lag));
        let mut text = String::new();
        // Writing into a text does not fail.
        encode(&mut text, &self.registry).ok();
        text
    }

    pub(crate) fn enabled(&self, is: bool) {
        self.enabled.set(is.into());
    }

    /// This agent captures, until what this gives is dropped.
    pub(crate) fn running(&self) -> Running<'_> {
        self.running.set(1);
        Running(self)
    }

    /// All that was committed until `time` is stored.
    pub(crate) fn captured_until(&self, time: Timestamp) {
        let mut until = self.captured_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(until.map_or(time, |known| known.max(time)));
    }

    pub(crate) fn log_left(&self, left: Option<SignedDuration>) {
        self.log_left.set(left.map_or(f64::NAN, |left| left.as_secs_f64()));
    }

    pub(crate) fn stored(&self, bytes: u64) {
        self.stored_bytes.inc_by(bytes);
        self.stored_slices.inc();
    }

    pub(crate) fn upload_failed(&self) {
        self.failed_uploads.inc();
        self.repository_errors.inc();
    }

    /// Counts a failure, if it is one of the repository.
    pub(crate) fn failed(&self, error: &JobError) {
        if matches!(error, JobError::Repository(_)) || error.kind() == Some(FailureKind::Repository) {
            self.repository_errors.inc();
        }
    }

    /// This agent could not take a snapshot.
    pub(crate) fn snapshot_failed(&self) {
        *self.snapshot_failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Timestamp::now());
        self.snapshot_success.set(0);
    }

    /// This is the newest full snapshot.
    pub(crate) fn snapshot(&self, newest: &SnapshotManifest) {
        let failed = *self.snapshot_failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.snapshot_at.set(unix(newest.finished_at));
        self.snapshot_success.set(failed.is_none_or(|failed| failed < newest.finished_at).into());
    }

    /// Keeps an eye on what others do in the repository, until cancelled.
    pub async fn watch(&self, cluster: &ClusterRepository, cancel: &CancellationToken) {
        let mut proofs = Proofs::default();
        loop {
            if let Err(error) = self.look(cluster, &mut proofs).await {
                self.repository_errors.inc();
                tracing::debug!(%error, "the repository does not answer");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn look(&self, cluster: &ClusterRepository, proofs: &mut Proofs) -> Result<(), RepositoryError> {
        if let Some(newest) = newest_full(cluster).await? {
            self.snapshot(&newest);
        }
        for id in cluster.proof_ids().await? {
            if let Entry::Vacant(unread) = proofs.entry(id) {
                let proof = cluster.proof(unread.key()).await?;
                unread.insert(proof.map(|proof| (proof.finished_at, proof.passed)));
            }
        }
        let readable = || proofs.values().flatten();
        let passed = readable().filter(|(_, passed)| *passed).map(|(time, _)| *time).max();
        self.proven_at.set(passed.map_or(f64::NAN, unix));
        self.proof_success.set(readable().max().is_some_and(|(_, passed)| *passed).into());
        Ok(())
    }
}

/// While it lives, an agent captures.
pub(crate) struct Running<'a>(&'a Metrics);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(0);
        self.0.log_left(None);
        *self.0.captured_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The evidence, each record of it read once: by its id when it was complete, and whether it passed. None where it
/// cannot be read.
type Proofs = BTreeMap<String, Option<(Timestamp, bool)>>;

/// The newest full snapshot that can be read: names are times, so that few manifests are read.
async fn newest_full(cluster: &ClusterRepository) -> Result<Option<SnapshotManifest>, RepositoryError> {
    let mut ids = cluster.snapshot_ids_in_use().await?;
    ids.sort_unstable();
    for id in ids.iter().rev() {
        match cluster.snapshot(id).await {
            Ok(Some(manifest)) if manifest.namespaces.is_empty() => return Ok(Some(manifest)),
            Ok(_) => {}
            Err(error) if error.is_unreadable() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn unix(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn timed(registry: &mut Registry, name: &str, help: &str) -> Seconds {
    let metric = Seconds::default();
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn sized(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let metric = Counter::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}
