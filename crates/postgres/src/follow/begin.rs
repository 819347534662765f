//! The beginning of a stream, read before it is known from where on it is delivered.

use bytes::Bytes;
use hindsight_engine::{EngineError, FailureKind};
use jiff::Timestamp;

use super::{odd, unreadable};
use crate::wal::{Event, Expect, WalError, WalReader};
use crate::wire::{self, Connection, StandbyStatus, WalEvent, WalStream};
use crate::{Lsn, TimelineId};

/// SQLSTATE of a segment that the server has no more (`undefined_file`).
const REMOVED: &str = "58P01";

/// A stream that has begun.
pub(super) struct Beginning {
    pub(super) stream: WalStream,
    pub(super) timeline: TimelineId,
    pub(super) reader: WalReader,
    pub(super) events: Vec<Event>,
    /// What was read.
    pub(super) bytes: Vec<u8>,
    /// What came with it.
    pub(super) later: Bytes,
    /// The server's clock when it had sent that.
    pub(super) clock: Timestamp,
    /// That was all that the server had.
    pub(super) all: bool,
    /// The server has nothing more on this timeline.
    pub(super) ended: bool,
}

/// Why a stream does not begin.
pub(super) enum Failure {
    /// The server no longer has the log there.
    Removed,
    /// What it has there is not to be read.
    Unreadable(WalError),
    /// Anything else.
    Other(EngineError),
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Removed => Self::new(FailureKind::Server, "the server has already removed the log that is needed")
                .hint("raise wal_keep_size on the server, so that it keeps its log for longer"),
            Failure::Unreadable(error) => unreadable(error),
            Failure::Other(error) => error,
        }
    }
}

impl From<wire::Error> for Failure {
    fn from(error: wire::Error) -> Self {
        if error.sqlstate() == Some(REMOVED) { Self::Removed } else { Self::Other(error.into()) }
    }
}

impl Beginning {
    /// Begins a stream at the beginning of a page.
    pub(super) async fn at(
        connection: Connection,
        slot: Option<&str>,
        from: Lsn,
        expect: Expect,
    ) -> Result<Self, Failure> {
        let mut stream = connection.start_replication(slot, from, expect.timeline).await?;
        // The answer comes also where there is no log to send.
        stream.send_status(StandbyStatus { written: from, reply: true, ..StandbyStatus::default() }).await?;
        Ok(Self {
            stream,
            timeline: expect.timeline,
            reader: WalReader::new(from, expect),
            events: Vec::new(),
            bytes: Vec::new(),
            later: Bytes::new(),
            clock: Timestamp::UNIX_EPOCH,
            all: false,
            ended: false,
        })
    }

    /// Reads what comes next, but nothing after `until`.
    pub(super) async fn more(&mut self, until: Lsn) -> Result<(), Failure> {
        match self.stream.next().await? {
            WalEvent::Data(mut data) => {
                let position = self.reader.position();
                if data.start != position {
                    let what = format!("the log goes on at {} where {position} was to come", data.start);
                    return Err(Failure::Other(odd(what)));
                }
                self.all = data.start.0.saturating_add(data.bytes.len() as u64) >= data.end.0;
                let room = usize::try_from(until.since(position).unwrap_or(0)).unwrap_or(usize::MAX);
                self.later = data.bytes.split_off(room.min(data.bytes.len()));
                self.clock = data.sent_at;
                self.read(&data.bytes).map_err(Failure::Unreadable)
            }
            WalEvent::Keepalive(alive) => {
                self.clock = alive.sent_at;
                if alive.reply_requested {
                    // Or it gives us up (wal_sender_timeout).
                    let status = StandbyStatus { written: self.reader.position(), ..StandbyStatus::default() };
                    self.stream.send_status(status).await?;
                }
                Ok(())
            }
            // It is told again when it is asked for again.
            WalEvent::TimelineEnd(_) => {
                self.ended = true;
                Ok(())
            }
        }
    }

    /// Reads what came with the last piece.
    pub(super) fn rest(&mut self) -> Result<(), WalError> {
        let later = std::mem::take(&mut self.later);
        self.read(&later)
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        self.bytes.extend_from_slice(bytes);
        self.reader.feed(bytes, &mut |event| self.events.push(event))
    }

    /// Forgets what was read.
    pub(super) fn forget(&mut self) {
        self.bytes.clear();
        self.events.clear();
    }
}
