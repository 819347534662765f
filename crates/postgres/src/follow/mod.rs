//! Following the log of a live server.
//!
//! What is delivered is the log itself, byte for byte, in whole records: a slice begins where a record or a page begins, and
//! ends where a record ends. Only a record longer than [`LONG`] is delivered in parts, up to the end of a page each.
//!
//! A record of which only the beginning has come stays here. The server may die, and its record never be finished: after a crash
//! the same server writes another one in the place of the rest, and the beginning is delivered with that
//! (`XLOG_OVERWRITE_CONTRECORD`); but another server that takes its place goes on, on a timeline of its own, where the last whole
//! record ends, and what has come of the broken one is dropped with the old timeline.
//!
//! Times are those that records carry, as far as they went up. A server that writes is asked for its clock every other second:
//! once everything it had was received, nothing that was committed some seconds before is missing, and the end of what is
//! delivered may be as late as that. (Where a disk stalls for longer, it can be: so restores to a time read on behind it.) A server
//! that nobody works with writes a checkpoint after the last work, and then nothing: what is delivered then has no bytes, but an
//! end that is later than its start.

mod begin;
mod keeper;
mod open;
mod pump;

use std::time::Duration;

use async_trait::async_trait;
use hindsight_engine::{EngineError, FailureKind, LogBuffer, LogReader, Result};
use hindsight_format::{Point, PositionError};
use hindsight_repository::FRAME_TARGET;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::base::CopiedDatabase;
use crate::summary::{LONG, count};
use crate::wal::{Event, Expect, Extent, WalError, WalReader};
use crate::wire::{Connection, Replication, TimelineEnd};
use crate::{Address, Lsn, of_point, point};

use keeper::Keeper;
pub use open::{Reserved, came_by, open};
use pump::{PATIENCE, Piece, Pump, Says};

/// How long to wait for news before there are none.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Bytes after which no more is taken at once, although there is more.
const ENOUGH: usize = 8 << 20;
/// Transactions take their time before their place in the log, and are sent once that is written to disk: so long a disk may take for
/// that. What nobody waits for (`synchronous_commit=off`) is written up to three `wal_writer_delay` later, which come on top.
const MARGIN: SignedDuration = SignedDuration::from_secs(5);

/// The log of a server, followed.
pub struct Follower {
    address: Address,
    slot: Option<String>,
    pieces: mpsc::Receiver<Result<Piece>>,
    /// Up to where all is in the repository.
    stored: watch::Sender<Lsn>,
    reader: WalReader,
    expect: Expect,
    /// Received and not delivered.
    pending: Vec<u8>,
    /// What is told in it.
    events: Vec<Event>,
    /// What was delivered.
    delivered: Extent,
    /// The latest time that is known to be over there.
    time: Timestamp,
    /// What was committed so long before a moment is sent by then.
    margin: SignedDuration,
    /// What the server is told of what is safe.
    says: Says,
    /// What looks after the other members.
    keeper: Option<Keeper>,
    /// Of what is read for a base: where that begins, and the first database that was copied since.
    base: Option<(Lsn, Option<CopiedDatabase>)>,
}

impl Follower {
    /// Looks out from here on for what spoils a base that begins at `start`.
    pub(crate) fn read_for_base(&mut self, start: Lsn) {
        self.base = Some((start, None));
    }

    /// What spoilt it.
    pub(crate) fn copied(&self) -> Option<CopiedDatabase> {
        self.base.and_then(|(_, copied)| copied)
    }

    /// Takes what came, and delivers what is whole.
    fn take(&mut self, piece: Piece, buffer: &mut LogBuffer) -> Result<()> {
        let clock = match piece {
            Piece::Log { start, bytes, clock } => {
                if start != self.reader.position() {
                    return Err(odd(format!(
                        "the log goes on at {start} where {} was to come",
                        self.reader.position()
                    )));
                }
                self.reader.feed(&bytes, &mut |event| self.events.push(event)).map_err(unreadable)?;
                self.pending.extend_from_slice(&bytes);
                self.deliver(buffer)?;
                clock
            }
            Piece::Quiet(clock) => Some(clock),
            Piece::Switch(end) => {
                self.switch(end)?;
                None
            }
        };
        if let Some(clock) = clock {
            self.nothing_is_missing_at(clock, buffer)?;
        }
        Ok(())
    }

    fn deliver(&mut self, buffer: &mut LogBuffer) -> Result<()> {
        let whole = self.reader.whole().filter(|whole| whole.end > self.delivered.end);
        let Some(until) = whole.or_else(|| self.part_of_a_long_record()) else { return Ok(()) };
        let bytes = until.end.0.saturating_sub(self.delivered.end.0) as usize;
        let records = until.records.saturating_sub(self.delivered.records);
        let housekeeping = until.housekeeping.saturating_sub(self.delivered.housekeeping);
        let told = self.events.partition_point(|event| event.span.start < until.end);
        self.time = self.events.iter().take(told).filter_map(|event| event.what.time()).fold(self.time, Ord::max);

        if let Some((start, copied)) = &mut self.base {
            let mut copies = self.events.iter().take(told).filter_map(CopiedDatabase::of);
            *copied = copied.or_else(|| copies.find(|copy| copy.at >= *start));
        }
        buffer.begin_segment(self.expect.timeline);
        for part in self.pending.get(..bytes).unwrap_or_default().chunks(FRAME_TARGET) {
            buffer.push(part);
        }
        count(&mut buffer.summary, records, self.events.iter().take(told));
        buffer.summary.end = point(self.time, until.end, self.expect.timeline).map_err(no_point)?;
        buffer.substantial |= records > housekeeping;

        self.events.drain(..told);
        self.pending.drain(..bytes);
        if self.pending.is_empty() && self.pending.capacity() > FRAME_TARGET {
            self.pending = Vec::new();
        }
        self.delivered = until;
        Ok(())
    }

    /// The pages that are there of a record that is too long to wait for its end.
    fn part_of_a_long_record(&self) -> Option<Extent> {
        let page = u64::from(self.expect.block_size);
        let extent = self.reader.extent();
        let end = Lsn(extent.end.0 - extent.end.0 % page);
        // A page more, so that every record that comes in parts is a long one.
        (self.pending.len() as u64 > LONG + page).then_some(Extent { end, ..extent })
    }

    /// At this time by the server's clock it had nothing that was not received.
    fn nothing_is_missing_at(&mut self, clock: Timestamp, buffer: &mut LogBuffer) -> Result<()> {
        let summary = &mut buffer.summary;
        if !self.pending.is_empty() {
            return Ok(());
        }
        self.time = self.time.max(clock.checked_sub(self.margin).unwrap_or(clock));
        let (end, timeline) = of_point(&summary.end).map_err(no_point)?;
        summary.end = point(self.time, end, timeline).map_err(no_point)?;
        Ok(())
    }

    /// Goes on with the next timeline, which begins where the last whole record of this one ends.
    fn switch(&mut self, end: TimelineEnd) -> Result<()> {
        let TimelineEnd { next, start } = end;
        let (timeline, delivered) = (self.expect.timeline, self.delivered.end);
        if next <= timeline || start != delivered {
            return Err(odd(format!(
                "the server left timeline {timeline} at {start} for timeline {next}, and its log was received up to {delivered}"
            )));
        }
        self.pending.clear();
        self.events.clear();
        self.expect.timeline = next;
        self.reader = match self.reader.last_record().filter(|last| last.end == start) {
            Some(last) => WalReader::after(last, self.expect),
            None => WalReader::at_record(start, self.expect),
        };
        self.reader.only(next);
        self.delivered = self.reader.extent();
        tracing::info!(timeline = next, at = %start, "the server began another timeline, which is followed");
        Ok(())
    }

    /// Asks again for the log from where it was received: nobody had read it for long.
    async fn again(&mut self) -> Result<()> {
        let mut connection = Connection::connect(&self.address, Replication::Physical).await?;
        let (received, timeline) = (self.reader.position(), self.expect.timeline);
        let system = connection.identify_system().await?;
        let primary = !connection.in_recovery().await? && system.timeline == timeline;
        let all = system.flushed <= received;
        let stream = connection.start_replication(self.slot.as_deref(), received, timeline).await?;
        let (slot, stored) = (self.slot.clone(), self.stored.subscribe());
        let (says, patience) = (self.says, Some(PATIENCE));
        self.pieces = Pump { stream, slot, received, all, primary, patience, says, stored }.start();
        Ok(())
    }
}

#[async_trait]
impl LogReader for Follower {
    async fn read(&mut self, buffer: &mut LogBuffer) -> Result<()> {
        let (end, _) = of_point(&buffer.summary.end).map_err(no_point)?;
        if end != self.delivered.end {
            return Err(odd(format!("the log after {end} is asked for, and it was read up to {}", self.delivered.end)));
        }
        if let Some(keeper) = &self.keeper {
            keeper.check()?;
        }
        // What came with the opening.
        self.deliver(buffer)?;
        if self.delivered.end == end {
            match timeout(HEARTBEAT, self.pieces.recv()).await {
                Ok(Some(piece)) => self.take(piece?, buffer)?,
                Ok(None) => return self.again().await,
                Err(_) => return Ok(()),
            }
        }
        while self.delivered.end.0 - end.0 < ENOUGH as u64
            && let Ok(piece) = self.pieces.try_recv()
        {
            self.take(piece?, buffer)?;
        }
        Ok(())
    }

    fn stored(&mut self, until: &Point) {
        if let Ok((until, _)) = of_point(until) {
            self.stored.send_replace(until);
        }
    }
}

/// Something that no server does.
fn odd(what: String) -> EngineError {
    EngineError::new(FailureKind::Server, what).hint("see whether another server answers at this address now")
}

fn unreadable(error: WalError) -> EngineError {
    EngineError::new(FailureKind::Server, format!("the server's log cannot be followed: {error}"))
        .hint("see what pg_waldump says of it there; if that reads it, this version of Hindsight is too old for it")
        .caused_by(error)
}

fn no_point(error: PositionError) -> EngineError {
    EngineError::damaged(error.to_string()).caused_by(error)
}
