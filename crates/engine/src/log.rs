//! Following a log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hindsight_format::{LogSummary, ObjectKind, Point};
use hindsight_repository::{ClusterRepository, FRAME_TARGET, WrittenObject, encode_frame};
use serde::Serialize;

use crate::{EngineError, FailureKind, Result};

/// Which log to follow, and from where.
#[derive(Clone, Copy, Debug)]
pub struct LogRequest<'a> {
    /// The cluster's part of the repository.
    pub cluster: &'a ClusterRepository,
    /// What is stored ends here; none to begin at the log's present end.
    pub after: Option<&'a Point>,
    /// Whether commits of the server may wait for what is stored: see [`crate::Synchronous`].
    pub synchronous: bool,
}

/// How following a log begins.
pub enum LogStart {
    /// The log goes on.
    Continues {
        /// What follows it.
        reader: Box<dyn LogReader>,
        /// After which point: the one asked for, where one was.
        at: Point,
    },
    /// The log no longer holds the point asked for.
    Lost {
        /// One sentence for people.
        cause: String,
    },
    /// The history of the server is another one there, and has taken the place of what is stored: its positions may be
    /// stored already, with something else.
    Left {
        /// One sentence for people.
        cause: String,
    },
}

/// Whether the server's commits wait until they are in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Each that is waited for at all.
    Always,
    /// Or for something else instead.
    Sometimes,
    /// None does.
    Never,
}

/// How the commits of a server wait for the capture, which tells it that something is safe only once it is in the
/// repository (`pitr.synchronous`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synchronous {
    /// Whether they do.
    pub wait: Wait,
    /// That as a sentence, with what to do where they do not yet.
    pub told: String,
    /// What to do that they wait no longer.
    pub release: String,
}

/// A log that is being followed. Only what can never be rolled back is delivered.
#[async_trait]
pub trait LogReader: Send {
    /// Appends what comes next, as soon as something comes; returns with nothing new after about a
    /// second, so that the caller can look after other things.
    async fn read(&mut self, buffer: &mut LogBuffer) -> Result<()>;

    /// How long who follows it for long does well to leave it alone after an answer with little in it, so that what comes
    /// meanwhile comes in one answer too: under load, asking for each write by itself costs both sides more than the
    /// writes do. Not at all where an answer with little in it does not mean that there was no more.
    fn rest(&self) -> Duration {
        Duration::ZERO
    }

    /// Everything up to `until` is in the repository: where a server keeps its log for whoever follows it, it may forget
    /// that much. Must not wait.
    fn stored(&mut self, _until: &Point) {}
}

/// How a server keeps its log for the capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nobody has to ask it to.
    ByItself,
    /// It was not asked before; what was made for that, as a sentence.
    Made(String),
    /// It was as it should be already; what there is, as a sentence.
    Already(String),
    /// It keeps the log no longer; what was removed, as a sentence.
    Released(String),
}

/// Frames whose memory is kept for the next ones: a slice of the usual size has so many.
const KEPT: usize = 4;

/// Memory of frames that were stored. Under load, having the system clear new memory for each costs more than reading
/// the records does.
#[derive(Clone, Debug, Default)]
struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        let kept = self.0.lock().ok().and_then(|mut kept| kept.pop());
        kept.unwrap_or_else(|| Vec::with_capacity(FRAME_TARGET))
    }

    /// Its memory comes back when nobody has the bytes any more.
    fn lend(&self, frame: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { frame, spare: self.clone() })
    }
}

/// A full frame.
struct Lent {
    frame: Vec<u8>,
    spare: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut frame = std::mem::take(&mut self.frame);
        // What a single large record took is given back.
        if frame.capacity() <= FRAME_TARGET
            && let Ok(mut kept) = self.spare.0.lock()
            && kept.len() < KEPT
        {
            frame.clear();
            kept.push(frame);
        }
    }
}

/// Log records on their way to a slice.
#[derive(Debug)]
pub struct LogBuffer {
    /// Full frames with their segments. They end between records, so that each can be read alone.
    full: Vec<(u32, Bytes)>,
    /// The frame that is being filled.
    frame: Vec<u8>,
    /// The segment it belongs to.
    segment: u32,
    spare: Spare,
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
        let (full, frame, spare) = (Vec::new(), Vec::new(), Spare::default());
        Self { full, frame, segment: 0, spare, bytes: 0, summary, substantial: false }
    }

    /// What is pushed from now on belongs to `segment`, in this buffer and those that go on where it ends: a part of the
    /// log that an engine tells apart from others, such as a timeline. It is 0 in the beginning.
    pub fn begin_segment(&mut self, segment: u32) {
        if segment != self.segment {
            self.close_frame();
            self.segment = segment;
        }
    }

    /// Appends a record, as it will be stored.
    pub fn push(&mut self, record: &[u8]) {
        if self.frame.len() + record.len() > FRAME_TARGET && !self.frame.is_empty() {
            self.close_frame();
        }
        if self.frame.capacity() == 0 {
            self.frame = self.spare.take();
        }
        self.frame.extend_from_slice(record);
        self.bytes += record.len();
    }

    /// It is stored as it is, without being copied.
    fn close_frame(&mut self) {
        if !self.frame.is_empty() {
            self.full.push((self.segment, self.spare.lend(std::mem::take(&mut self.frame))));
        }
    }

    /// Bytes of records.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.summary.start == self.summary.end
    }

    /// Whether there is no log in it: nothing was read, or only that time has passed.
    pub fn holds_nothing(&self) -> bool {
        self.bytes == 0
    }

    /// A copy of what was read, which also stays.
    pub fn copy(&self) -> Self {
        Self {
            full: self.full.clone(),
            frame: self.frame.clone(),
            segment: self.segment,
            spare: self.spare.clone(),
            bytes: self.bytes,
            summary: self.summary.clone(),
            substantial: self.substantial,
        }
    }

    /// Takes what was read, leaving an empty buffer that goes on where it ends.
    pub fn take(&mut self) -> Self {
        let next =
            Self { segment: self.segment, spare: self.spare.clone(), ..Self::starting_at(self.summary.end.clone()) };
        let mut taken = std::mem::replace(self, next);
        // Nothing more comes to its last frame.
        taken.close_frame();
        taken
    }

    /// Stores the records as a slice under `key`. Nothing is lost when that fails: the buffer can
    /// be stored again.
    pub async fn store(&self, cluster: &ClusterRepository, key: String, level: i32) -> Result<WrittenObject> {
        let mut writer = cluster.object_writer(key, ObjectKind::Slice).await;
        let last = Some(&self.frame).filter(|frame| !frame.is_empty());
        let last = last.map(|frame| (self.segment, Bytes::copy_from_slice(frame)));
        for (segment, raw) in self.full.iter().cloned().chain(last) {
            let encoded = tokio::task::spawn_blocking(move || encode_frame(&raw, level, segment)).await;
            writer.write(encoded.map_err(|e| EngineError::new(FailureKind::Local, e.to_string()))??).await?;
        }
        Ok(writer.finish(Some(self.summary.clone())).await?)
    }
}

#[cfg(test)]
mod tests {
    use hindsight_format::Position;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_frame_belongs_to_one_segment_and_what_goes_on_to_the_last() {
        let position = Position::new("1", "1").unwrap();
        let mut buffer = LogBuffer::starting_at(Point { time: Timestamp::UNIX_EPOCH, position });
        buffer.begin_segment(7);
        buffer.push(b"a");
        buffer.push(b"b");
        buffer.begin_segment(7);
        buffer.push(b"c");
        buffer.begin_segment(8);
        buffer.push(b"d");
        let taken = buffer.take();
        assert_eq!(taken.full, [(7, Bytes::from_static(b"abc")), (8, Bytes::from_static(b"d"))]);
        assert_eq!((taken.len(), buffer.len(), buffer.segment), (4, 0, 8));
        buffer.push(b"e");
        assert_eq!((buffer.copy().segment, buffer.take().full), (8, vec![(8, Bytes::from_static(b"e"))]));
    }
}
