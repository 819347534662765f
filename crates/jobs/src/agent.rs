//! The agent: captures the log of a cluster for as long as it is told to.
//!
//! It is a loop over one question: may I capture now, and from where? The answer changes with the
//! settings, with restores, with other agents, and with what the server's log still holds.

use std::sync::Arc;
use std::time::Duration;

use hindsight_catalog::{History, chains};
use hindsight_engine::{Engine, EngineError, Kept, LogReader, LogRequest, LogStart, Progress, Wait};
use hindsight_format::{
    Branch, ClusterConfig, EpochCause, GapRecord, LeaseRecord, Operation, OperationKind, PitrConfig, Point,
    RestoreState, StoredSlice, format_time,
};
use hindsight_repository::{Acquired, ClusterRepository, DEFAULT_TTL, Lease};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backup::{BackupRequest, backup};
use crate::capture::{Capture, Place, Told};
use crate::journal::job;
use crate::metrics::Metrics;
use crate::operation::OPERATION_LEASE;
use crate::retention::keep_to_the_rules;
use crate::room::Room;
use crate::standstill::Standing;
use crate::{JobError, Result, merge, overview};

/// Name of the lease under which one agent captures.
pub const CAPTURE_LEASE: &str = "capture";

/// How often and how long the agent does things; the defaults are right outside of tests.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Settings, restores and other agents are looked for this often.
    pub poll: Duration,
    /// Pause before a failed store is tried again.
    pub retry_pause: Duration,
    /// How long to read on when asked to stop.
    pub farewell: Duration,
    /// Signs of life of an idle server are stored this often, in one slice that is replaced.
    pub idle_interval: Duration,
    /// Small slices are looked through this often.
    pub merge_every: Duration,
    /// Pause before a snapshot that could not be taken is tried again.
    pub snapshot_pause: Duration,
    /// The server is asked this often how much longer it keeps its log.
    pub room_every: Duration,
    /// What is too old by the settings is looked for this often.
    pub tidy_every: Duration,
    /// The right to capture lasts this long without a sign of life.
    pub lease: Duration,
    /// A standstill is told when it has lasted this long.
    pub standstill: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(3),
            retry_pause: Duration::from_secs(2),
            farewell: Duration::from_secs(5),
            idle_interval: Duration::from_secs(60),
            merge_every: Duration::from_secs(60),
            snapshot_pause: Duration::from_secs(60),
            room_every: Duration::from_secs(30),
            tidy_every: Duration::from_secs(600),
            lease: DEFAULT_TTL,
            standstill: Duration::from_secs(15),
        }
    }
}

/// The agent of one cluster.
#[derive(Clone)]
pub struct Agent {
    engine: Arc<dyn Engine>,
    cluster: ClusterRepository,
    tuning: Tuning,
    metrics: Arc<Metrics>,
}

/// Why capture rests.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rest {
    SwitchedOff,
    Restore(String),
    HalfRestored(String),
    OtherAgent(String),
}

impl std::fmt::Display for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SwitchedOff => f.write_str("capture is switched off (pitr.enabled=false)"),
            Self::Restore(id) => write!(f, "capture waits for restore {id}"),
            Self::HalfRestored(id) => {
                write!(f, "the cluster is half restored by {id}: capture waits until a restore has succeeded")
            }
            Self::OtherAgent(host) => write!(f, "standing by: the agent on {host} captures"),
        }
    }
}

impl Agent {
    /// An agent for the cluster that `engine` is connected to, kept in `cluster`.
    pub fn new(engine: Arc<dyn Engine>, cluster: ClusterRepository) -> Self {
        let metrics = Arc::new(Metrics::new(cluster.name()));
        Self { engine, cluster, tuning: Tuning::default(), metrics }
    }

    /// What it does, in figures.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// The same with other times.
    #[must_use]
    pub fn tuned(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// Works until cancelled; then stores what it has and returns.
    pub async fn run(&self, cancel: CancellationToken) -> Result<()> {
        let tidying = keep_to_the_rules(self.cluster.clone(), self.tuning.tidy_every, cancel.clone());
        let tidying = tokio::spawn(tidying.instrument(job("retention", None)));
        let standing = Standing::default();
        let work = async {
            tokio::select! {
                () = self.turns(&standing, cancel) => {}
                () = standing.watch(&*self.engine, self.tuning.standstill) => {}
            }
        };
        work.instrument(job("pitr", None)).await;
        tidying.await.ok();
        Ok(())
    }

    async fn turns(&self, standing: &Standing, cancel: CancellationToken) {
        let mut told = None;
        while !cancel.is_cancelled() {
            standing.tries();
            match self.turn(told.as_ref(), standing, &cancel).await {
                Ok(rest) => {
                    if rest.is_some() {
                        standing.goes_on();
                    }
                    if rest.is_some()
                        && rest != told
                        && let Some(rest) = &rest
                    {
                        tracing::info!("{rest}");
                    }
                    told = rest;
                }
                Err(error) => {
                    self.metrics.failed(&error);
                    // What lasts is told by who watches.
                    if standing.fails(error.to_string()) {
                        tracing::error!(hint = error.hint(), "{error}");
                    }
                    told = None;
                    self.pause(self.tuning.retry_pause, &cancel).await;
                }
            }
            self.pause(self.tuning.poll, &cancel).await;
        }
    }

    async fn pause(&self, time: Duration, cancel: &CancellationToken) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = cancel.cancelled() => {}
        }
    }

    /// One attempt to capture; returns why there is nothing to do, which is `told` where it was so before, or after a
    /// session.
    async fn turn(&self, told: Option<&Rest>, standing: &Standing, cancel: &CancellationToken) -> Result<Option<Rest>> {
        let config = self.cluster.config().await?.1;
        if let Some(rest) = self.must_rest(&config).await? {
            if rest == Rest::SwitchedOff && told != Some(&rest) {
                self.keep_log(false).await?;
            }
            return Ok(Some(rest));
        }
        let operation =
            Operation { kind: OperationKind::Capture, id: self.cluster.name().to_owned(), detail: String::new() };
        let lease = match self.cluster.acquire(CAPTURE_LEASE, operation, self.tuning.lease).await? {
            Acquired::Held(lease) => Arc::new(lease),
            Acquired::Busy(record) => return Ok(Some(Rest::OtherAgent(record.holder.host))),
        };
        let session = self.session(lease.clone(), config, standing, cancel).await;
        if let Some(lease) = Arc::into_inner(lease)
            && let Err(error) = lease.release().await
        {
            tracing::warn!(%error, "the right to capture could not be given back, and runs out by itself");
        }
        session.map(|()| None)
    }

    async fn must_rest(&self, config: &ClusterConfig) -> Result<Option<Rest>> {
        self.metrics.enabled(config.pitr.enabled);
        if !config.pitr.enabled {
            return Ok(Some(Rest::SwitchedOff));
        }
        let running = self.cluster.lease_state(OPERATION_LEASE).await?;
        let running = running.filter(|lease| self.cluster.lease_is_live(OPERATION_LEASE, lease));
        if let Some(LeaseRecord { operation: Operation { kind: OperationKind::Restore, id, .. }, .. }) = running
            && self.is_replaced_by(&id).await?
        {
            return Ok(Some(Rest::Restore(id)));
        }
        let epoch = self.cluster.current_epoch().await?;
        if epoch > 1 {
            let restores = self.cluster.list_restores().await?;
            let newest = restores.records.iter().rev().find(|record| record.new_epoch == Some(epoch));
            match newest {
                Some(record) if record.touched && record.state != RestoreState::Success => {
                    return Ok(Some(Rest::HalfRestored(record.id.clone())));
                }
                Some(_) => {}
                // The restore that began the epoch may be one whose record cannot be read: how it ended is not known.
                None if restores.damaged.is_empty() => {}
                None => drop(self.cluster.restores().await?),
            }
        }
        Ok(None)
    }

    /// Whether the restore of this id replaces the data of this cluster. One into another cluster does
    /// not, and one of some namespaces only adds to the history.
    async fn is_replaced_by(&self, id: &str) -> Result<bool> {
        // The right to restore is taken before the record is written.
        let Some(record) = self.cluster.restore(id).await? else { return Ok(true) };
        let own = self.cluster.descriptor().await?.is_some_and(|own| own.identity == record.into);
        Ok(own && record.namespaces.is_empty())
    }

    /// Captures under the lease until it must rest, the lease is lost, or the epoch ends.
    async fn session(
        &self,
        lease: Arc<Lease>,
        config: ClusterConfig,
        standing: &Standing,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let probe = self.engine.probe().await?;
        let epoch = self.cluster.current_epoch().await?;
        let stream = probe.streams.first().cloned().unwrap_or_default();
        let place = Place { cluster: self.cluster.clone(), stream: stream.clone(), epoch };
        let history = overview::history(&self.cluster).await?;
        overview::warn_of_damage(&history);
        let synchronous = config.pitr.synchronous;
        let Some((reader, start)) = self.open(&history, &place, synchronous).await? else { return Ok(()) };
        tracing::info!(cluster = self.cluster.name(), epoch, after = %start, "capture begins");
        if synchronous {
            self.tell_who_waits().await;
        }
        let chain_start = chain_start(&history, &place, &start);
        // What is stored under an older epoch is left as it is: this one's past may end between any two of its slices.
        let mut slices: Vec<StoredSlice> =
            history.slices.into_iter().filter(|slice| slice.stream == stream && slice.epoch == epoch).collect();
        slices.retain(|slice| slice.name.end.position.order() <= start.position.order());
        standing.stored(&start);
        let told = Told { metrics: self.metrics.clone(), standing: standing.clone() };
        let mut capture = Capture::new(place, lease.clone(), self.tuning, told, reader, start.clone());
        let mut snapshot = Snapshots::new(self.clone(), chain_start, epoch);
        let (tell, told) = watch::channel((0, start));
        let room = Room::new(self.engine.clone(), self.metrics.clone(), told, self.tuning.room_every);
        let _running = self.metrics.running();
        let mut config = config;
        let following = async {
            let mut polled = Instant::now();
            let mut merged = Instant::now();
            loop {
                let ended = tokio::select! {
                    step = capture.step(&config.pitr) => step.map(|()| None),
                    () = cancel.cancelled() => Ok(Some("asked to stop")),
                    () = lost(&lease) => Ok(Some("the right to it is lost")),
                };
                let mut ended = ended?;
                tell.send_replace((capture.read, capture.durable.clone()));
                if ended.is_none() && polled.elapsed() >= self.tuning.poll {
                    polled = Instant::now();
                    match while_held(&lease, self.look_around(epoch)).await {
                        // The next step ends it.
                        None => continue,
                        Some(Ok(Ok(fresh))) if fresh.pitr.synchronous != synchronous => {
                            ended = Some("pitr.synchronous was changed");
                        }
                        Some(Ok(Ok(fresh))) => {
                            config = fresh;
                            while_held(&lease, snapshot.tend(cancel)).await;
                        }
                        Some(Ok(Err(why))) => ended = Some(why),
                        // The repository is away: what is captured waits, and so does this.
                        Some(Err(error)) => {
                            self.metrics.failed(&error);
                            tracing::debug!(%error, "the repository does not answer");
                        }
                    }
                }
                if let Some(why) = ended {
                    snapshot.stop().await;
                    if lease.lost().is_cancelled() {
                        let why =
                            lease.take_failure().map(|error| format!("the right to it could not be renewed: {error}"));
                        tracing::info!("capture ends: {}", why.as_deref().unwrap_or("another agent took over"));
                        return Ok(());
                    }
                    tracing::info!("capture ends: {why}");
                    let head = self.engine.probe().await.ok().map(|probe| probe.head);
                    let durable = capture.finish(&config.pitr, head.as_ref()).await?;
                    tracing::info!(until = %durable, "everything captured is stored");
                    return Ok(());
                }
                if merged.elapsed() >= self.tuning.merge_every {
                    merged = Instant::now();
                    slices.append(&mut capture.take_settled());
                    self.merge(&lease, &config.pitr, &mut slices).await;
                }
            }
        };
        tokio::select! {
            ended = following => ended,
            // Beside it: the server's log rolls over while a store that is away holds the capture back.
            () = room.watch() => Ok(()),
        }
    }

    /// Makes long slices of short ones, of those that this session knows. Never fails: it is tried again later.
    async fn merge(&self, lease: &Lease, pitr: &PitrConfig, slices: &mut Vec<StoredSlice>) {
        let (span, level) = (pitr.oplog_span_min, pitr.compression_level);
        let merging = merge::merge(&self.cluster, lease, slices.clone(), span, level, None);
        match while_held(lease, merging).await {
            None => {}
            Some(Ok(left)) => *slices = left,
            // Somebody deleted what is too old.
            Some(Err(JobError::Repository(error))) if error.is_missing() => {
                let Some(StoredSlice { stream, epoch, .. }) = slices.first() else { return };
                match self.cluster.slices_from(stream, *epoch, None).await {
                    Ok(stored) => slices.retain(|slice| stored.contains(slice)),
                    Err(error) => tracing::debug!(%error, "the repository does not answer"),
                }
            }
            Some(Err(error)) => {
                self.metrics.failed(&error);
                tracing::warn!(%error, "slices could not be merged");
            }
        }
    }

    /// The present settings, or why this session is over.
    async fn look_around(&self, epoch: u64) -> Result<std::result::Result<ClusterConfig, &'static str>> {
        let config = self.cluster.config().await?.1;
        if self.cluster.current_epoch().await? != epoch {
            return Ok(Err("a new history began"));
        }
        Ok(match self.must_rest(&config).await? {
            None => Ok(config),
            Some(Rest::SwitchedOff) => Err("it was switched off"),
            Some(_) => Err("a restore is about to begin"),
        })
    }

    /// Opens the log where the stored chain ends; or, when the server no longer has that, at the
    /// newest snapshot or at the present end, with a record of the gap. None when it has begun an epoch instead, as
    /// the history of the server is another one.
    async fn open(
        &self,
        history: &History,
        place: &Place,
        synchronous: bool,
    ) -> Result<Option<(Box<dyn LogReader>, Point)>> {
        self.keep_log(true).await?;
        let mut lost = None;
        let ends =
            chains(history).into_iter().filter(|chain| chain.stream == place.stream && chain.epoch == place.epoch);
        let end = ends.map(|chain| chain.end).max_by(|a, b| a.position.order().cmp(b.position.order()));
        if let Some(end) = &end {
            match self.open_log(Some(end), synchronous).await? {
                LogStart::Continues { reader, at } => return Ok(Some((reader, at))),
                LogStart::Left { cause } => {
                    let branch = self.branch(history, place, synchronous).await?;
                    if self.begins_anew(&cause, branch, place).await? {
                        return Ok(None);
                    }
                    lost = Some(cause);
                }
                LogStart::Lost { cause } => lost = Some(cause),
            }
        }
        let newest = history
            .snapshots_of(place.epoch)
            .filter(|snapshot| snapshot.namespaces.is_empty())
            .filter_map(|s| s.consistent_at(&place.stream))
            .max_by(|a, b| a.position.order().cmp(b.position.order()));
        let later = newest.filter(|at| end.as_ref().is_none_or(|end| at.position.order() > end.position.order()));
        if let Some(at) = later {
            match self.open_log(Some(at), synchronous).await? {
                LogStart::Continues { reader, at } => {
                    self.record_gap(place, end, &at, lost).await?;
                    return Ok(Some((reader, at)));
                }
                // What the snapshot holds is no part of what comes now.
                LogStart::Left { cause } if self.begins_anew(&cause, None, place).await? => return Ok(None),
                LogStart::Lost { cause } | LogStart::Left { cause } => lost = Some(cause),
            }
        }
        match self.open_log(None, synchronous).await? {
            LogStart::Continues { reader, at } => {
                let back = end.as_ref().is_some_and(|end| at.position.order() < end.position.order());
                if let Some(cause) = lost.as_ref().filter(|_| back)
                    && self.begins_anew(cause, None, place).await?
                {
                    return Ok(None);
                }
                self.record_gap(place, end, &at, lost).await?;
                Ok(Some((reader, at)))
            }
            LogStart::Lost { cause } | LogStart::Left { cause } => Err(EngineError::new(
                hindsight_engine::FailureKind::Server,
                format!("the log cannot be followed: {cause}"),
            )
            .into()),
        }
    }

    async fn open_log(&self, after: Option<&Point>, synchronous: bool) -> Result<LogStart> {
        Ok(self.engine.open_log(&LogRequest { cluster: &self.cluster, after, synchronous }).await?)
    }

    /// Where the history of the server left the one that is stored, as far as slices end or begin there and the server still has
    /// its log after that: what is stored up to there is its past, too.
    async fn branch(&self, history: &History, place: &Place, synchronous: bool) -> Result<Option<Branch>> {
        let slices = history.slices_of(place.epoch).filter(|slice| slice.stream == place.stream);
        let mut bounds: Vec<_> = slices.flat_map(|slice| [&slice.name.start, &slice.name.end]).cloned().collect();
        bounds.sort_by(|a, b| (a.position.order(), a.time).cmp(&(b.position.order(), b.time)));
        // Of signs of life the place alone counts.
        bounds.dedup_by(|later, earlier| later.position == earlier.position);
        let Some(at) = self.engine.came_by(&self.cluster, &bounds).await? else { return Ok(None) };
        match self.open_log(Some(&at), synchronous).await? {
            LogStart::Continues { .. } => Ok(Some(Branch { epoch: place.epoch, stream: place.stream.clone(), at })),
            LogStart::Lost { cause } | LogStart::Left { cause } => {
                tracing::warn!("what is stored up to {at} is no past of the new history: {cause}");
                Ok(None)
            }
        }
    }

    /// Begins an epoch, as what the server writes now has positions that are stored already, with something else. What was
    /// stored before stays, and can be restored.
    async fn begins_anew(&self, cause: &str, branch: Option<Branch>, place: &Place) -> Result<bool> {
        let past = branch.as_ref().map(|branch| format!("; its past is what is stored up to {}", branch.at));
        let epoch = self.cluster.begin_epoch(EpochCause::Left(cause.to_owned()), branch).await?.number;
        if epoch != place.epoch {
            tracing::error!(epoch, "a new history begins: {cause}{}", past.unwrap_or_default());
        }
        Ok(epoch != place.epoch)
    }

    /// Commits that do not wait although they are wanted to are worth a warning; they are captured all the same.
    async fn tell_who_waits(&self) {
        match self.engine.synchronous(&self.cluster).await {
            Ok(now) if now.wait == Wait::Always => tracing::info!("{}", now.told),
            Ok(now) => tracing::warn!("pitr.synchronous is on, but {}", now.told),
            Err(error) => tracing::warn!(hint = error.hint, "pitr.synchronous is on, but {}", error.what),
        }
    }

    /// The server keeps its log for as long as it is to be captured, and no longer: it would fill its disk.
    async fn keep_log(&self, keep: bool) -> Result<()> {
        match self.engine.keep_log(&self.cluster, keep).await? {
            Kept::Made(what) | Kept::Released(what) => tracing::info!("{what}"),
            Kept::Already(what) => tracing::debug!("{what}"),
            Kept::ByItself => {}
        }
        Ok(())
    }

    async fn record_gap(&self, place: &Place, start: Option<Point>, end: &Point, cause: Option<String>) -> Result<()> {
        let Some(cause) = cause else { return Ok(()) };
        tracing::error!(
            "gap in the log from {} to {}: {cause}",
            start.as_ref().map_or("-".to_owned(), ToString::to_string),
            end
        );
        let gap = GapRecord { start, end: end.clone(), cause, detected_at: Timestamp::now() };
        Ok(self.cluster.put_gap(&place.stream, place.epoch, &gap).await?)
    }
}

/// Where the chain begins that goes on after `start`.
fn chain_start(history: &History, place: &Place, start: &Point) -> Point {
    let slices = history.slices_of(place.epoch).filter(|slice| slice.stream == place.stream);
    let before = slices.filter(|slice| slice.name.end.position.order() <= start.position.order());
    let slices = before.cloned().collect();
    let history = History { slices, epochs: history.epochs.clone(), ..History::default() };
    let chain = chains(&history).into_iter().find(|chain| {
        chain.stream == place.stream && chain.epoch == place.epoch && chain.end.position == start.position
    });
    chain.map_or_else(|| start.clone(), |chain| chain.start)
}

async fn lost(lease: &Lease) {
    lease.lost().cancelled().await;
}

/// What comes of `work`, which may wait for a repository that never answers; none when the lease is lost before.
async fn while_held<T>(lease: &Lease, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = lost(lease) => None,
    }
}

/// Sees to it that what is captured rests on a snapshot.
struct Snapshots {
    agent: Agent,
    /// Where the captured chain begins: a base must not be older.
    chain_start: Point,
    epoch: u64,
    based: bool,
    running: Option<(tokio::task::JoinHandle<()>, CancellationToken)>,
    not_before: Instant,
}

impl Snapshots {
    fn new(agent: Agent, chain_start: Point, epoch: u64) -> Self {
        Self { agent, chain_start, epoch, based: false, running: None, not_before: Instant::now() }
    }

    /// Takes a snapshot where there is none to rest on. Never fails: it is tried again later.
    async fn tend(&mut self, cancel: &CancellationToken) {
        if self.based || Instant::now() < self.not_before {
            return;
        }
        if self.running.as_ref().is_some_and(|(task, _)| !task.is_finished()) {
            return;
        }
        match self.has_base().await {
            Ok(true) => self.based = true,
            Ok(false) => {
                self.not_before = Instant::now() + self.agent.tuning.snapshot_pause;
                tracing::info!("no snapshot covers what is captured: taking one");
                let (agent, stop) = (self.agent.clone(), cancel.child_token());
                let cancelled = stop.clone();
                let work = async move {
                    let progress = Progress::default();
                    match backup(&*agent.engine, &agent.cluster, &BackupRequest::default(), &progress, &cancelled).await
                    {
                        Ok(manifest) => {
                            agent.metrics.snapshot(&manifest);
                            let at = format_time(manifest.restore_time());
                            tracing::info!(snapshot = manifest.id, at, "snapshot taken");
                        }
                        Err(JobError::Busy(record)) => {
                            tracing::info!("no snapshot yet: a {} is running", record.operation.kind)
                        }
                        Err(error) => {
                            agent.metrics.snapshot_failed();
                            agent.metrics.failed(&error);
                            tracing::error!(hint = error.hint(), "no snapshot could be taken: {error}");
                        }
                    }
                };
                let task = tokio::spawn(work.in_current_span());
                self.running = Some((task, stop));
            }
            Err(error) => tracing::debug!(%error, "the repository does not answer"),
        }
    }

    async fn has_base(&self) -> Result<bool> {
        let (snapshots, epochs) =
            futures::try_join!(self.agent.cluster.list_snapshots(), self.agent.cluster.list_epochs())?;
        let stored = History { snapshots: snapshots.records, epochs: epochs.records, ..History::default() };
        Ok(stored.snapshots_of(self.epoch).filter(|s| s.namespaces.is_empty()).any(|snapshot| {
            snapshot.streams.values().all(|part| part.last.position.order() >= self.chain_start.position.order())
        }))
    }

    async fn stop(&mut self) {
        if let Some((task, stop)) = self.running.take() {
            stop.cancel();
            if let Err(error) = task.await {
                tracing::warn!(%error, "the snapshot ended badly");
            }
        }
    }
}
