//! Capturing one stream under a lease: from the database's log to slices.

use std::sync::Arc;
use std::time::Duration;

use hindsight_engine::{EngineError, FailureKind, LogBuffer, LogReader};
use hindsight_format::{PitrConfig, Point, SliceName, StoredSlice};
use hindsight_repository::{ClusterRepository, Lease};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;

use crate::Result;
use crate::agent::Tuning;
use crate::metrics::Metrics;
use crate::standstill::Standing;

/// Bytes of log after which a slice is stored whatever its age.
const SLICE: usize = 16 << 20;

/// The log gets no rest after an answer as large as this: there may be more.
const LARGE: usize = 4 << 20;

/// Where slices go.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) cluster: ClusterRepository,
    pub(crate) stream: String,
    pub(crate) epoch: u64,
}

/// Who is told how it goes.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) standing: Standing,
}

/// A slice on its way.
struct Storing {
    task: JoinHandle<Result<StoredSlice>>,
    /// The buffer goes on with what is in it.
    idle: bool,
}

/// A capture that is going on.
pub(crate) struct Capture {
    place: Place,
    lease: Arc<Lease>,
    tuning: Tuning,
    told: Told,
    reader: Box<dyn LogReader>,
    buffer: LogBuffer,
    /// When the first record that matters came into the buffer.
    waiting_since: Option<Instant>,
    /// When the buffer was stored last while nothing but signs of life came.
    idle_since: Instant,
    /// The log is not asked before.
    rest_until: Instant,
    /// Holds the beginning of the buffer, and is replaced when more of it is stored.
    idle_tail: Option<StoredSlice>,
    storing: Option<Storing>,
    /// Slices stored since the last merge.
    stored: Vec<StoredSlice>,
    /// The end of what is stored without a gap.
    pub(crate) durable: Point,
    /// Bytes of log read since the beginning.
    pub(crate) read: u64,
}

impl Capture {
    /// Begins after `start`, where the reader stands.
    pub(crate) fn new(
        place: Place,
        lease: Arc<Lease>,
        tuning: Tuning,
        told: Told,
        reader: Box<dyn LogReader>,
        start: Point,
    ) -> Self {
        Self {
            place,
            lease,
            tuning,
            told,
            reader,
            buffer: LogBuffer::starting_at(start.clone()),
            waiting_since: None,
            idle_since: Instant::now() - tuning.idle_interval,
            rest_until: Instant::now(),
            idle_tail: None,
            storing: None,
            stored: Vec::new(),
            durable: start,
            read: 0,
        }
    }

    /// Reads what comes next, for about a second at most, and stores what is due. Failures of the
    /// repository are not errors: the log waits on the server until it is back.
    pub(crate) async fn step(&mut self, config: &PitrConfig) -> Result<()> {
        // What is full waits for the slice before it to be stored: memory stays bounded, and the
        // server keeps what is not read yet.
        if self.buffer.len() < SLICE {
            tokio::time::sleep_until(self.rest_until).await;
            let before = self.buffer.len();
            self.reader.read(&mut self.buffer).await?;
            let read = self.buffer.len() - before;
            self.read += read as u64;
            if (1..LARGE).contains(&read) && !config.synchronous {
                self.rest_until = Instant::now() + self.reader.rest();
            }
        }
        if self.buffer.substantial && self.waiting_since.is_none() {
            self.waiting_since = Some(Instant::now());
        }
        if self.storing.as_ref().is_some_and(|storing| storing.task.is_finished()) {
            self.settle().await?;
        }
        if self.is_due(config) {
            self.flush(config).await?;
        }
        let all_is_stored = !self.buffer.substantial && self.storing.is_none();
        self.told.metrics.captured_until(if all_is_stored { Timestamp::now() } else { self.durable.time });
        Ok(())
    }

    /// The slices stored since this was asked last. One that will be replaced is not among them: merged
    /// with others it could not be any more.
    pub(crate) fn take_settled(&mut self) -> Vec<StoredSlice> {
        let (tail, settled) = self.stored.drain(..).partition(|slice| Some(slice) == self.idle_tail.as_ref());
        self.stored = tail;
        settled
    }

    fn is_due(&self, config: &PitrConfig) -> bool {
        let interval = Duration::from_secs(config.upload_interval_sec.into());
        match self.waiting_since {
            _ if self.buffer.len() >= SLICE => true,
            _ if self.is_waited_for(config) => true,
            Some(since) => since.elapsed() >= interval,
            None => !self.buffer.is_empty() && self.idle_since.elapsed() >= self.tuning.idle_interval,
        }
    }

    /// Whether commits may be waiting for something in the buffer.
    fn is_waited_for(&self, config: &PitrConfig) -> bool {
        config.synchronous && (1..).contains(&self.buffer.len())
    }

    /// Hands the buffer over to be stored, once the one before it is.
    async fn flush(&mut self, config: &PitrConfig) -> Result<()> {
        self.settle().await?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        if self.lease.lost().is_cancelled() {
            return Ok(());
        }
        let substantial = self.buffer.substantial;
        let spanned = self.buffer.summary.end.time.duration_since(self.buffer.summary.start.time);
        let is_long = spanned >= SignedDuration::from_mins(config.oplog_span_min.into());
        // What holds nothing becomes no longer by waiting.
        let at_once = self.is_waited_for(config);
        let full = at_once || substantial || (is_long && !self.buffer.holds_nothing());
        // Signs of life stay in the buffer: the next slice holds them too, and replaces this one.
        let piece = if full { self.buffer.take() } else { self.buffer.copy() };
        let replaces = self.idle_tail.take();
        self.waiting_since = None;
        self.idle_since = match substantial {
            true => Instant::now() - self.tuning.idle_interval,
            false => Instant::now(),
        };
        let work = store(
            self.place.clone(),
            self.lease.clone(),
            Arc::new(piece),
            config.compression_level,
            replaces,
            self.tuning.retry_pause,
            self.told.clone(),
        );
        self.storing = Some(Storing { task: tokio::spawn(work.in_current_span()), idle: !full });
        // What comes meanwhile is stored together, as soon as this is.
        if full && !at_once { Ok(()) } else { self.settle().await }
    }

    /// Waits for what is being stored. Giving up the wait loses nothing.
    async fn settle(&mut self) -> Result<()> {
        let Some(storing) = &mut self.storing else { return Ok(()) };
        let idle = storing.idle;
        let ended = (&mut storing.task).await;
        self.storing = None;
        let slice =
            ended.map_err(|e| EngineError::new(FailureKind::Local, format!("storing a slice ended: {e}")))??;
        self.idle_tail = idle.then(|| slice.clone());
        self.stored.retain(|known| known.name.start != slice.name.start);
        self.stored.push(slice.clone());
        self.durable = slice.name.end.clone();
        self.reader.stored(&self.durable);
        self.told.metrics.stored(slice.stored_bytes);
        self.lease.set_detail(format!("captured until {}", self.durable));
        tracing::debug!(slice = %slice.name, bytes = slice.stored_bytes, "stored");
        Ok(())
    }

    /// Reads to the present end of the log, and stores all of it.
    pub(crate) async fn finish(mut self, config: &PitrConfig, head: Option<&Point>) -> Result<Point> {
        let begun = Instant::now();
        let behind = |capture: &Self| {
            head.is_some_and(|head| capture.buffer.summary.end.position.order() < head.position.order())
        };
        while behind(&self) && begun.elapsed() < self.tuning.farewell {
            self.step(config).await?;
        }
        self.flush(config).await?;
        self.settle().await?;
        Ok(self.durable)
    }
}

/// Stores a slice, however long the repository is away; then removes the one that it replaces.
async fn store(
    place: Place,
    lease: Arc<Lease>,
    piece: Arc<LogBuffer>,
    level: i32,
    replaces: Option<StoredSlice>,
    pause: Duration,
    told: Told,
) -> Result<StoredSlice> {
    let (Place { cluster, stream, epoch }, Told { metrics, standing }) = (place, told);
    loop {
        standing.tries();
        let name =
            SliceName { start: piece.summary.start.clone(), end: piece.summary.end.clone(), fence: lease.fence() };
        let key = cluster.keys().slice(&stream, epoch, &name);
        match piece.store(&cluster, key, level).await {
            Ok(written) => {
                standing.stored(&name.end);
                let slice = StoredSlice { stream, epoch, name, stored_bytes: written.stored_bytes };
                // Where another agent captures by now, the past of its epoch may end with the old one.
                if let Some(old) = replaces.filter(|old| *old != slice && !lease.lost().is_cancelled())
                    && let Err(error) = cluster.delete_slice(&old).await
                {
                    tracing::info!(%error, "a replaced slice stays behind until the next merge");
                }
                return Ok(slice);
            }
            Err(error) => {
                metrics.upload_failed();
                if lease.lost().is_cancelled() {
                    return Err(error.into());
                }
                if standing.fails(error.to_string()) {
                    tracing::warn!(%error, "the log cannot be stored, trying again");
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}
