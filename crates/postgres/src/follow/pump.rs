//! What owns the connection: takes what comes as long as there is room, and tells the server how far we are.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use hindsight_engine::{EngineError, Result};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::unconstrained;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::Lsn;
use crate::wire::{StandbyStatus, TimelineEnd, WalEvent, WalStream};

/// Pieces that wait to be read: 8 MiB of log, as servers send at most 16 pages at once (`MAX_SEND_SIZE`, walsender.c).
const WAITING: usize = 64;
/// How often the server hears of us, and is asked for its clock. It gives up who is silent for `wal_sender_timeout`, which
/// is a minute unless it is set otherwise.
const STATUS: Duration = Duration::from_secs(2);
/// How long the stream is left alone once all has been read. A busy server sends a piece for every commit, and waking up for
/// each would take from it what it needs for the next.
const REST: Duration = Duration::from_millis(100);
/// How long a stream that nobody reads is kept. A server that shuts down waits until it has sent all of its log
/// (`WalSndDone`), for ever if it has to.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What comes next.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes of the log. With the server's clock where it had no more to send then.
    Log { start: Lsn, bytes: Bytes, clock: Option<Timestamp> },
    /// By the server's clock, it still had no more to send.
    Quiet(Timestamp),
    /// The timeline has ended; what comes next is of the one that follows it.
    Switch(TimelineEnd),
}

/// What a server is told of how far we are. Who tells what is safe counts as a standby, and commits may wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// Only what has arrived.
    Nothing,
    /// Also what is stored.
    Stored,
    /// Only what is stored, as if nothing else had arrived: whatever a commit waits for (`remote_write`, `on`, `remote_apply`), it waits
    /// until then.
    AllIsStored,
}

/// A stream that is read by a task of its own.
pub(super) struct Pump {
    pub(super) stream: WalStream,
    pub(super) slot: Option<String>,
    /// Up to here it was received.
    pub(super) received: Lsn,
    /// Whether that was all that the server had.
    pub(super) all: bool,
    /// Whether the server is one that writes, and on this timeline: what another one has not yet received, or what comes on the next
    /// timeline, is not told by its clock.
    pub(super) primary: bool,
    /// How long it is kept while nobody reads it; none for as long as it lasts.
    pub(super) patience: Option<Duration>,
    /// What the server is told of what is safe.
    pub(super) says: Says,
    /// Up to where all is safe.
    pub(super) stored: watch::Receiver<Lsn>,
}

impl Pump {
    /// Hands on what comes, until the stream fails, nobody reads for long, or the reader is gone.
    pub(super) fn start(self) -> mpsc::Receiver<Result<Piece>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        // Unconstrained: what is not ready then is not there, and there are never more pieces than have room.
        tokio::spawn(unconstrained(async move {
            if let Err(error) = self.run(&sender).await {
                // Nobody may be there to hear it.
                sender.send(Err(error)).await.ok();
            }
        }));
        receiver
    }

    async fn run(mut self, sender: &mpsc::Sender<Result<Piece>>) -> Result<()> {
        let mut ticks = interval(STATUS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut place, mut since) = (None, Instant::now());
        // Until when nothing is read, and whether anything was since.
        let (mut rest, mut awake) = (None, false);
        loop {
            let event = tokio::select! {
                biased;
                free = sender.reserve(), if place.is_none() => match free {
                    Ok(free) => {
                        place = Some(free);
                        continue;
                    }
                    Err(_) => return self.part().await,
                },
                changed = self.stored.changed() => {
                    if changed.is_err() {
                        return self.part().await;
                    }
                    self.tell(false).await?;
                    continue;
                }
                _ = ticks.tick() => {
                    if place.is_none() && self.patience.is_some_and(|patience| since.elapsed() > patience) {
                        tracing::debug!(at = %self.received, "the log is not read: the connection ends");
                        return self.part().await;
                    }
                    self.tell(self.primary).await?;
                    continue;
                }
                () = sleep_until(rest.unwrap_or(since)), if rest.is_some() => {
                    rest = None;
                    continue;
                }
                event = self.stream.next(), if place.is_some() && rest.is_none() => event?,
                // Nothing is there, and nobody waits for what comes: no commit, and no backup that is about to end.
                () = ready(()), if awake && self.all && self.says == Says::Stored && place.is_some() => {
                    self.stream.pause()?;
                    (rest, awake) = (Some(Instant::now() + REST), false);
                    continue;
                }
            };
            awake = true;
            let piece = match event {
                WalEvent::Data(data) => {
                    self.received = Lsn(data.start.0.saturating_add(data.bytes.len() as u64));
                    self.all = self.received >= data.end;
                    let clock = Some(data.sent_at).filter(|_| self.primary && self.all);
                    Piece::Log { start: data.start, bytes: data.bytes, clock }
                }
                WalEvent::Keepalive(alive) => {
                    if alive.reply_requested {
                        self.let_go().await?;
                    }
                    // Its end is what was sent, not what there is: who was not done with sending says nothing by its clock.
                    if !self.primary || !self.all || alive.end > self.received {
                        continue;
                    }
                    Piece::Quiet(alive.sent_at)
                }
                WalEvent::TimelineEnd(end) => {
                    self = self.switch(end).await?;
                    Piece::Switch(end)
                }
            };
            if let Some(place) = place.take() {
                place.send(Ok(piece));
            }
            since = Instant::now();
        }
    }

    /// Says how far we are; with `reply` the server answers with its clock.
    async fn tell(&mut self, reply: bool) -> Result<()> {
        let stored = *self.stored.borrow_and_update();
        let (written, flushed, applied) = match self.says {
            Says::Nothing => (self.received, Lsn::INVALID, Lsn::INVALID),
            Says::Stored => (self.received, stored, Lsn::INVALID),
            Says::AllIsStored => (stored, stored, stored),
        };
        Ok(self.stream.send_status(StandbyStatus { written, flushed, applied, reply }).await?)
    }

    /// Says that all has come, and nothing of what is stored. So much a server waits for that shuts down, which asks for a reply
    /// (`WalSndDone`): what is not stored yet its slot still has when it runs again. Where commits wait for us, it waits for what is
    /// stored, which is soon: who says that nothing is safe is passed over, and commits no longer wait for it.
    async fn let_go(&mut self) -> Result<()> {
        if self.says == Says::AllIsStored {
            return self.tell(false).await;
        }
        let status = StandbyStatus { written: self.received, ..StandbyStatus::default() };
        Ok(self.stream.send_status(status).await?)
    }

    /// Goes on with the next timeline.
    async fn switch(self, end: TimelineEnd) -> Result<Self> {
        let mut connection = self.stream.finish().await?;
        let primary = !connection.in_recovery().await? && connection.identify_system().await?.timeline == end.next;
        let stream = connection.start_replication(self.slot.as_deref(), end.start, end.next).await?;
        Ok(Self { stream, received: end.start, all: false, primary, ..self })
    }

    /// Says how far we came, and goodbye. The slot is free then.
    async fn part(mut self) -> Result<()> {
        let farewell = async {
            self.tell(false).await?;
            self.stream.finish().await?.close().await;
            Ok::<_, EngineError>(())
        };
        // The server notices by itself that we are gone.
        timeout(FAREWELL, farewell).await.ok();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::wire::scripted::streaming;

    /// The next message that the server gets.
    async fn message(server: &mut DuplexStream) -> (u8, Vec<u8>) {
        let tag = timeout(Duration::from_secs(60), server.read_u8()).await.unwrap().unwrap();
        let mut body = vec![0; server.read_u32().await.unwrap() as usize - 4];
        server.read_exact(&mut body).await.unwrap();
        (tag, body)
    }

    /// Reads until the server is told so much to be written and flushed.
    async fn told(server: &mut DuplexStream, wanted: (u64, u64)) {
        loop {
            let (tag, body) = message(server).await;
            if tag == b'd' && status(&body) == wanted {
                return;
            }
        }
    }

    /// What is told to be written and flushed.
    fn status(body: &[u8]) -> (u64, u64) {
        assert_eq!(body.first(), Some(&b'r'));
        let number = |at: usize| u64::from_be_bytes(*body.get(at..).unwrap().first_chunk().unwrap());
        (number(1), number(9))
    }

    /// A sign of life that wants a reply.
    async fn ask(server: &mut DuplexStream) {
        let alive = [&b"k"[..], &4_u64.to_be_bytes(), &[0; 8], &[1]].concat();
        server.write_all(&[&b"d"[..], &(alive.len() as u32 + 4).to_be_bytes(), &alive].concat()).await.unwrap();
    }

    /// A stream of as many pieces of one byte; only the last is all that there is.
    async fn pump(
        pieces: u64,
        patience: Option<Duration>,
        says: Says,
    ) -> (mpsc::Receiver<Result<Piece>>, watch::Sender<Lsn>, DuplexStream) {
        let all: Vec<_> = (1..=pieces).map(|at| (Lsn(at), &b"x"[..], Lsn(pieces + 1))).collect();
        let (stream, server) = streaming(&all).await;
        let stored = watch::Sender::new(Lsn(1));
        let at = stored.subscribe();
        let pump = Pump { stream, slot: None, received: Lsn(1), all: false, primary: true, patience, says, stored: at };
        (pump.start(), stored, server)
    }

    #[tokio::test]
    async fn what_nobody_reads_is_given_up() {
        for patience in [Some(Duration::ZERO), None] {
            let says = if patience.is_some() { Says::Stored } else { Says::Nothing };
            let (mut pieces, _stored, mut server) = pump(WAITING as u64 + 20, patience, says).await;
            // The server hears of it meanwhile, and what it is told to be here is what was read.
            let mut full = 0;
            while full < 3 {
                let (tag, body) = message(&mut server).await;
                if tag == b'c' {
                    break;
                }
                if tag == b'd' {
                    let (written, safe) = status(&body);
                    assert!(written <= WAITING as u64 + 1);
                    // Who is silent never tells what is safe.
                    assert_eq!(safe, u64::from(patience.is_some()));
                    full += usize::from(written == WAITING as u64 + 1);
                }
            }
            assert_eq!(full < 3, patience.is_some());
            // What was read before is there.
            for at in 1..=WAITING as u64 {
                let Some(Ok(Piece::Log { start, clock: None, .. })) = pieces.recv().await else { panic!("{at}") };
                assert_eq!(start, Lsn(at));
            }
            match patience {
                Some(_) => assert!(pieces.recv().await.is_none()),
                None => assert!(matches!(pieces.recv().await, Some(Ok(Piece::Log { .. })))),
            }
        }
    }

    #[tokio::test]
    async fn where_commits_wait_nothing_counts_before_it_is_stored() {
        let (mut pieces, stored, mut server) = pump(3, Some(PATIENCE), Says::AllIsStored).await;
        for _ in 0..3 {
            pieces.recv().await.unwrap().unwrap();
        }
        for (at, asked) in [(1, false), (1, true), (3, false), (3, true), (4, false)] {
            stored.send_replace(Lsn(at));
            if asked {
                ask(&mut server).await;
            }
            loop {
                let (tag, body) = message(&mut server).await;
                // The first of all asks for the log.
                if tag != b'd' {
                    continue;
                }
                let (written, flushed) = status(&body);
                // Also what is applied.
                assert_eq!((written, body.get(17..25).unwrap()), (flushed, &flushed.to_be_bytes()[..]));
                assert!(flushed > 0 && flushed <= at);
                if flushed == at {
                    break;
                }
            }
        }
    }

    #[tokio::test]
    async fn who_shuts_down_is_told_that_all_has_come() {
        let (mut pieces, stored, mut server) = pump(3, Some(PATIENCE), Says::Stored).await;
        for clock in [false, false, true] {
            let Some(Ok(Piece::Log { clock: told, .. })) = pieces.recv().await else { panic!("no piece") };
            // The clock counts where nothing is missing.
            assert_eq!(told.is_some(), clock);
        }
        stored.send_replace(Lsn(2));
        told(&mut server, (4, 2)).await;
        ask(&mut server).await;
        told(&mut server, (4, 0)).await;
        assert!(matches!(pieces.recv().await, Some(Ok(Piece::Quiet(_)))));
        // Who reads is gone: so is the stream, after it has told what is stored.
        stored.send_replace(Lsn(3));
        drop((pieces, stored));
        told(&mut server, (4, 3)).await;
        while message(&mut server).await.0 != b'c' {}
    }
}
