//! Following a log.

use async_trait::async_trait;
use bytes::Bytes;
use hindsight_format::{LogSummary, ObjectKind, Point};
use hindsight_repository::{ClusterRepository, FRAME_TARGET, WrittenObject, encode_frame};

use crate::{EngineError, FailureKind, Result};

/// How following a log begins.
pub enum LogStart {
    /// The log goes on right after the point asked for.
    Continues(Box<dyn LogReader>),
    /// The log no longer holds that point, or holds another history there.
    Lost {
        /// One sentence for people.
        cause: String,
    },
}

/// A log that is being followed. Only what can never be rolled back is delivered.
#[async_trait]
pub trait LogReader: Send {
    /// Appends what comes next, as soon as something comes; returns with nothing new after about a
    /// second, so that the caller can look after other things.
    async fn read(&mut self, buffer: &mut LogBuffer) -> Result<()>;
}

/// Log records on their way to a slice.
#[derive(Debug)]
pub struct LogBuffer {
    /// Full frames. They end between records, so that each can be read alone.
    full: Vec<Bytes>,
    /// The frame that is being filled.
    frame: Vec<u8>,
    bytes: usize,
    /// What the records are, and the points between which they lie.
    pub summary: LogSummary,
    /// Whether there is anything else than signs of life.
    pub substantial: bool,
}

impl LogBuffer {
    /// An empty buffer for what follows `start`.
    pub fn starting_at(start: Point) -> Self {
        let summary = LogSummary::starting_at(start);
        Self { full: Vec::new(), frame: Vec::new(), bytes: 0, summary, substantial: false }
    }

    /// Appends a record, as it will be stored.
    pub fn push(&mut self, record: &[u8]) {
        if self.frame.len() + record.len() > FRAME_TARGET && !self.frame.is_empty() {
            let full = std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME_TARGET));
            self.full.push(full.into());
        }
        self.frame.extend_from_slice(record);
        self.bytes += record.len();
    }

    /// Bytes of records.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.summary.start == self.summary.end
    }

    /// A copy of what was read, which also stays.
    pub fn copy(&self) -> Self {
        Self {
            full: self.full.clone(),
            frame: self.frame.clone(),
            bytes: self.bytes,
            summary: self.summary.clone(),
            substantial: self.substantial,
        }
    }

    /// Takes what was read, leaving an empty buffer that goes on where it ends.
    pub fn take(&mut self) -> Self {
        let next = Self::starting_at(self.summary.end.clone());
        let mut taken = std::mem::replace(self, next);
        // Nothing more comes to its last frame: it is stored as it is, without being copied.
        if !taken.frame.is_empty() {
            taken.full.push(std::mem::take(&mut taken.frame).into());
        }
        taken
    }

    /// Stores the records as a slice under `key`. Nothing is lost when that fails: the buffer can
    /// be stored again.
    pub async fn store(&self, cluster: &ClusterRepository, key: String, level: i32) -> Result<WrittenObject> {
        let mut writer = cluster.object_writer(key, ObjectKind::Slice).await;
        let last = Some(&self.frame).filter(|frame| !frame.is_empty()).map(|frame| Bytes::copy_from_slice(frame));
        for raw in self.full.iter().cloned().chain(last) {
            let encoded = tokio::task::spawn_blocking(move || encode_frame(&raw, level, 0)).await;
            writer.write(encoded.map_err(|e| EngineError::new(FailureKind::Local, e.to_string()))??).await?;
        }
        Ok(writer.finish(Some(self.summary.clone())).await?)
    }
}
