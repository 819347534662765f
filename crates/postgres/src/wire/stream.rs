//! `START_REPLICATION`: the log as it is written
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>).

use bytes::{Buf as _, BufMut as _, Bytes};
use jiff::Timestamp;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::channel::Incoming;
use super::connection::{Answer, Connection, quote_name};
use super::error::{Error, Result};
use crate::{Lsn, TimelineId};

const DOING: &str = "following the log";
/// Clocks of PostgreSQL count microseconds since the beginning of 2000.
const EPOCH: i64 = 946_684_800_000_000;

/// What comes over a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// A piece of the log.
    Data(WalData),
    /// A sign of life.
    Keepalive(Keepalive),
    /// The timeline has ended, and all of it has come.
    TimelineEnd(TimelineEnd),
}

/// A piece of the log. Pieces follow each other without gaps; they may begin and end in the midst of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalData {
    /// The position of its first byte.
    pub start: Lsn,
    /// How far the log of the server went when this was sent.
    pub end: Lsn,
    /// When it was sent, by the clock of the server.
    pub sent_at: Timestamp,
    /// The log, as it lies in the buffer that it was read into: who keeps a piece for long keeps some 256 KiB.
    pub bytes: Bytes,
}

/// A sign of life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How far its log goes.
    pub end: Lsn,
    /// When it was sent, by the clock of the server.
    pub sent_at: Timestamp,
    /// Whether it wants a status soon, or it will give us up. A server that shuts down waits until all that it
    /// sent is reported as flushed.
    pub reply_requested: bool,
}

/// How a timeline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineEnd {
    /// The timeline that goes on from it, as the server knows it.
    pub next: TimelineId,
    /// Where that begins.
    pub start: Lsn,
}

/// How far we are. What is reported as flushed the server will not keep for us any longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyStatus {
    /// What has arrived.
    pub written: Lsn,
    /// What is safe. Decides where the slot keeps the log from.
    pub flushed: Lsn,
    /// What is replayed; [`Lsn::INVALID`] for who replays nothing.
    pub applied: Lsn,
    /// Whether the server should answer at once.
    pub reply: bool,
}

/// A stream of log that is running.
#[derive(Debug)]
pub struct WalStream {
    connection: Connection,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Log comes in.
    Streaming,
    /// The server has ended its side; our answer may not have gone out yet, and the result has not come.
    Ending(Answer),
    /// All is over; there is no next timeline where we ended it ourselves.
    Ended(Option<TimelineEnd>),
    /// It has failed, and nothing more will come.
    Failed,
}

impl Connection {
    /// Begins to stream the log of `timeline` from `from` on, which a slot may be keeping for us. The session has to be one
    /// for physical replication.
    ///
    /// # Errors
    /// There is no such slot or somebody uses it, or the server does not have that part of the log (any more).
    pub async fn start_replication(mut self, slot: Option<&str>, from: Lsn, timeline: TimelineId) -> Result<WalStream> {
        let doing = format!("asking for the log of timeline {timeline} from {from} on");
        let slot = slot.map(|slot| format!("SLOT {} ", quote_name(slot))).unwrap_or_default();
        self.ask(&format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}"), &doing).await?;
        let stage = match self.answer(&doing).await? {
            Incoming::CopyBoth => Stage::Streaming,
            Incoming::Failed(server) => return Err(self.failed(server, &doing).await),
            // The timeline ends right there: no copy, only the result.
            Incoming::Message(message) => {
                let mut answer = Answer::default();
                if answer.take(message, &doing)? {
                    return Err(Error::garbled(&doing, "it is empty"));
                }
                Stage::Ending(answer)
            }
            Incoming::CopyData(_) => return Err(Error::garbled(&doing, "data before the copy")),
        };
        Ok(WalStream { connection: self, stage })
    }
}

impl WalStream {
    /// What comes next. May be given up at any moment, and be called again. After the end of the timeline it gives
    /// that again.
    ///
    /// # Errors
    /// The server ends the stream, or the connection breaks.
    pub async fn next(&mut self) -> Result<WalEvent> {
        let next = self.try_next().await;
        if next.is_err() {
            self.stage = Stage::Failed;
        }
        next
    }

    async fn try_next(&mut self) -> Result<WalEvent> {
        loop {
            match &mut self.stage {
                Stage::Streaming => {}
                Stage::Ending(answer) => {
                    self.connection.channel.flush(DOING).await?;
                    self.connection.rest(answer, DOING).await?;
                    let row = answer.rows.first().ok_or_else(|| Error::garbled(DOING, "an end without a reason"))?;
                    let end = TimelineEnd {
                        next: row.need("next_tli", DOING)?,
                        start: row.need("next_tli_startpos", DOING)?,
                    };
                    self.stage = Stage::Ended(Some(end));
                }
                Stage::Ended(Some(end)) => return Ok(WalEvent::TimelineEnd(*end)),
                Stage::Ended(None) | Stage::Failed => return Err(Error::garbled(DOING, "it has ended before")),
            }
            if !matches!(self.stage, Stage::Streaming) {
                continue;
            }
            match self.connection.answer(DOING).await? {
                Incoming::CopyData(data) => return event(data),
                Incoming::Message(Message::CopyDone) => self.end_our_side()?,
                // A server that shuts down says "COPY 0" in the midst of the copy (WalSndDone in walsender.c), and is gone.
                Incoming::Message(Message::CommandComplete(_)) => {
                    return Err(Error::Unreachable {
                        what: format!("the server shut down while {DOING}"),
                        hint: "connect again when it runs again, or to the server that took its place".to_owned(),
                        source: None,
                    });
                }
                Incoming::Failed(server) => return Err(self.connection.failed(server, DOING).await),
                Incoming::Message(_) | Incoming::CopyBoth => {
                    return Err(Error::garbled(DOING, "a message out of place"));
                }
            }
        }
    }

    /// Leaves alone what comes, without even being woken for it, until something is read or told.
    ///
    /// # Errors
    /// The connection cannot be left alone, and is lost.
    pub fn pause(&mut self) -> Result<()> {
        self.connection.channel.pause(DOING)
    }

    /// Tells the server how far we are.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn send_status(&mut self, status: StandbyStatus) -> Result<()> {
        // Who has ended its side must not send anything more.
        if !matches!(self.stage, Stage::Streaming) {
            return Ok(());
        }
        let mut body = Vec::with_capacity(34);
        body.put_u8(b'r');
        body.put_u64(status.written.0);
        body.put_u64(status.flushed.0);
        body.put_u64(status.applied.0);
        body.put_i64(Timestamp::now().as_microsecond().saturating_sub(EPOCH));
        body.put_u8(status.reply.into());
        self.connection.channel.queue(DOING, |buffer| {
            frontend::CopyData::new(body.as_slice())?.write(buffer);
            Ok(())
        })?;
        self.connection.channel.flush(DOING).await
    }

    /// Ends the stream, wherever it is, and gives the session back. What is still on its way is passed over.
    ///
    /// # Errors
    /// The server fails, or the connection breaks.
    pub async fn finish(mut self) -> Result<Connection> {
        if matches!(self.stage, Stage::Failed) {
            return Err(Error::garbled(DOING, "it has failed before"));
        }
        if matches!(self.stage, Stage::Streaming) {
            self.end_our_side()?;
        }
        if let Stage::Ending(answer) = &mut self.stage {
            self.connection.channel.flush(DOING).await?;
            self.connection.rest(answer, DOING).await?;
        }
        Ok(self.connection)
    }

    fn end_our_side(&mut self) -> Result<()> {
        self.connection.channel.queue(DOING, |buffer| {
            frontend::copy_done(buffer);
            Ok(())
        })?;
        self.stage = Stage::Ending(Answer::default());
        Ok(())
    }
}

/// A message within the copy.
fn event(mut message: Bytes) -> Result<WalEvent> {
    let short = |_| Error::garbled(DOING, "a message shorter than it has to be");
    let kind = message.try_get_u8().map_err(short)?;
    match kind {
        b'w' => Ok(WalEvent::Data(WalData {
            start: Lsn(message.try_get_u64().map_err(short)?),
            end: Lsn(message.try_get_u64().map_err(short)?),
            sent_at: timestamp(message.try_get_i64().map_err(short)?),
            bytes: message,
        })),
        b'k' => Ok(WalEvent::Keepalive(Keepalive {
            end: Lsn(message.try_get_u64().map_err(short)?),
            sent_at: timestamp(message.try_get_i64().map_err(short)?),
            reply_requested: message.try_get_u8().map_err(short)? != 0,
        })),
        _ => Err(Error::garbled(DOING, format!("a piece of an unknown kind {kind}"))),
    }
}

/// A clock that is out of all bounds is not worth an error.
fn timestamp(micros: i64) -> Timestamp {
    let micros = micros.saturating_add(EPOCH);
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}
