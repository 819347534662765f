//! Where following begins, and whether that is where what is stored ends.
//!
//! A position and a timeline alone do not tell one history from another: a server that was set back, by a snapshot of its machine or
//! somebody's restore, comes by the same positions again, and two restores of one backup begin timelines of the same number. So what
//! the server has right before is read too: a record has to end there, and where the repository can be read the bytes have to be
//! those that are stored.

use hindsight_engine::{EngineError, FailureKind, LogRequest, LogStart, Result};
use hindsight_format::Point;
use hindsight_repository::{ClusterRepository, Error as RepositoryError};
use jiff::SignedDuration;
use tokio::sync::watch;

use super::begin::{Beginning, Failure};
use super::pump::Pump;
use super::{Follower, MARGIN, no_point, odd};
use crate::cluster::{history, milliseconds, parameters};
use crate::wal::{Expect, Extent, History};
use crate::wire::{Connection, Replication, SystemIdentity};
use crate::{Address, Lsn, NAME, STREAM, TimelineId, of_point, point, slot};

/// Begins to follow the log: after a point that is stored, through the slot that was made for it where there is one; or
/// from its present end on.
///
/// # Errors
/// The server cannot be reached or refuses, is not the one that is captured, or has not come as far as what is stored.
pub async fn open(address: &Address, request: &LogRequest<'_>) -> Result<LogStart> {
    let mut connection = Connection::connect(address, Replication::Physical).await?;
    let mut site = Site::of(address, &mut connection).await?;
    site.must_be_captured(request.cluster).await?;
    let slot = slot::name(request.cluster);
    // One that keeps nothing was given up by the server.
    let keeps = connection.read_slot(&slot).await?.is_some_and(|position| position.restart.is_some());
    site.slot = Some(slot).filter(|_| keeps);
    match request.after {
        Some(after) => {
            let stored = stored_end(request.cluster, after).await?;
            site.after(connection, after, stored.as_deref()).await
        }
        None => {
            let (follower, at) = site.at_end(connection).await?;
            Ok(LogStart::Continues { reader: Box::new(follower), at })
        }
    }
}

/// The log of a server, kept from a moment on for one session: what a snapshot needs of it.
#[derive(Debug)]
pub struct Reserved {
    address: Address,
    connection: Connection,
    system: u64,
    slot: String,
}

impl Reserved {
    /// Keeps the log from the last checkpoint on, by a slot that goes with the session.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn new(address: &Address) -> Result<Self> {
        let mut connection = Connection::connect(address, Replication::Physical).await?;
        let system = connection.identify_system().await?.system;
        let slot = slot::passing();
        connection.create_temporary_slot(&slot).await?;
        Ok(Self { address: address.clone(), connection, system, slot })
    }

    /// The identifier of the system whose log it is.
    pub fn system(&self) -> u64 {
        self.system
    }

    /// Follows it from the beginning of the segment on that holds `from`; gives that point too. All of the segment is delivered,
    /// so the first bytes may be the rest of a record.
    ///
    /// # Errors
    /// The server does not have that part of its log.
    pub async fn follow(mut self, from: Lsn) -> Result<(Follower, Point)> {
        let site = Site::of(&self.address, &mut self.connection).await?;
        let site = Site { slot: Some(self.slot), lasting: true, ..site };
        let start = Lsn(from.0 - from.0 % u64::from(site.expect.segment_size.bytes()));
        let mut begun = site.begin(self.connection, start, site.timeline_at(start)).await?;
        while begun.bytes.is_empty() && !begun.ended {
            begun.more(Lsn(u64::MAX)).await?;
        }
        let at = point(begun.clock, start, site.timeline_before(start)).map_err(no_point)?;
        Ok((site.follower(begun, &at, Extent { end: start, records: 0, housekeeping: 0 }), at))
    }
}

/// A server, and what has to be known to read its log.
struct Site {
    address: Address,
    system: SystemIdentity,
    primary: bool,
    expect: Expect,
    /// Of the timeline that it is on; none if it does not know.
    history: Option<History>,
    slot: Option<String>,
    /// What was committed so long before a moment is sent by then.
    margin: SignedDuration,
    /// Whether a stream is kept although nobody reads it.
    lasting: bool,
}

impl Site {
    async fn of(address: &Address, connection: &mut Connection) -> Result<Self> {
        let system = connection.identify_system().await?;
        let expect = parameters(connection, &system).await?;
        let history = history(connection, system.timeline).await?;
        let primary = !connection.in_recovery().await?;
        let delay = milliseconds(&connection.show("wal_writer_delay").await?)?;
        let margin = MARGIN.saturating_add(SignedDuration::from_millis(3 * i64::from(delay)));
        Ok(Self { address: address.clone(), system, primary, expect, history, slot: None, margin, lasting: false })
    }

    /// Refuses a server that is another one than that whose log is stored.
    async fn must_be_captured(&self, cluster: &ClusterRepository) -> Result<()> {
        let Some(descriptor) = cluster.descriptor().await? else { return Ok(()) };
        let (known, found) = (descriptor.identity, self.system.system.to_string());
        if known.engine == NAME && known.id == found {
            return Ok(());
        }
        let (name, known) = (cluster.name(), known.id);
        let what = format!("this is another server (system identifier {found}) than {name} stands for ({known})");
        Err(EngineError::new(FailureKind::Unsupported, what)
            .hint("check the connection string, or keep this server under another name with --cluster"))
    }

    /// The timeline that the byte at a position is of.
    fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.history.as_ref().map_or(self.system.timeline, |history| history.at(lsn))
    }

    /// The same of the byte before, which is what points name.
    fn timeline_before(&self, lsn: Lsn) -> TimelineId {
        self.timeline_at(before(lsn))
    }

    /// Where the page begins that has the byte before `at`.
    fn page_before(&self, at: Lsn) -> Lsn {
        Lsn(before(at).0 - before(at).0 % u64::from(self.expect.block_size))
    }

    /// Why the server's history does not lead over a position, if it does not.
    fn left_before(&self, at: Lsn, timeline: TimelineId) -> Option<String> {
        let present = self.system.timeline;
        match &self.history {
            Some(history) if history.at(before(at)) == timeline => None,
            Some(history) => Some(match history.range(timeline) {
                Some((_, Some(end))) if end < at => {
                    format!("the server left timeline {timeline} at {end}, and the log is stored up to {at} of it")
                }
                _ => format!(
                    "the server is on timeline {present}, which does not come from {at} on timeline {timeline}, up to where the \
                     log is stored"
                ),
            }),
            None if timeline == present => None,
            None => Some(format!("the server is on timeline {present}, and does not know where that comes from")),
        }
    }

    /// Begins a stream at the beginning of a page.
    async fn begin(
        &self,
        connection: Connection,
        from: Lsn,
        timeline: TimelineId,
    ) -> std::result::Result<Beginning, Failure> {
        Beginning::at(connection, self.slot.as_deref(), from, Expect { timeline, ..self.expect }).await
    }

    /// Follows from a point on that is stored. `stored` are bytes right before it.
    async fn after(self, connection: Connection, after: &Point, stored: Option<&[u8]>) -> Result<LogStart> {
        let (at, timeline) = of_point(after).map_err(no_point)?;
        let (left, flushed) = (self.left_before(at, timeline), self.system.flushed);
        if at > flushed {
            let what = match left {
                Some(left) => format!("{left}; its own has come to {flushed}"),
                None => format!("the log is stored up to {at}, and the server's has come to {flushed} only"),
            };
            return Err(EngineError::new(FailureKind::Server, what).hint(
                "a standby that is behind comes there by itself; a server that was set back, or took the place of another, is \
                 captured again, after a gap, once it has come further than that",
            ));
        }
        if let Some(cause) = left {
            return Ok(LogStart::Lost { cause });
        }
        // The segment before may be gone: the slot keeps the one that has the next byte.
        let begins_segment = at.0.is_multiple_of(self.expect.segment_size.bytes().into());
        let from = if begins_segment { at } else { self.page_before(at) };
        let other =
            format!("what the server has before {at} is not what is stored: it was set back, or is another one");
        let lead = async {
            let mut begun = self.begin(connection, from, timeline).await?;
            loop {
                begun.more(at).await?;
                if begun.reader.position() == at {
                    return Ok(begun);
                }
                if begun.ended {
                    return Err(Failure::Other(odd(format!("the log of timeline {timeline} ends before {at}"))));
                }
            }
        };
        let mut begun = match lead.await {
            Ok(begun) => begun,
            Err(Failure::Removed) => {
                let cause = format!("the server has removed its log after {at}, which was not captured yet");
                return Ok(LogStart::Lost { cause });
            }
            Err(Failure::Unreadable(error)) => return Ok(LogStart::Lost { cause: format!("{other} ({error})") }),
            Err(Failure::Other(error)) => return Err(error),
        };
        // Slices end with records, but for the parts of a long one.
        let begins_page = at.0.is_multiple_of(self.expect.block_size.into());
        let ends_record = begun.reader.whole().is_some_and(|whole| whole.end == at);
        if !(begins_page || ends_record) || !stored.is_none_or(|stored| end_alike(stored, &begun.bytes)) {
            return Ok(LogStart::Lost { cause: other });
        }
        let delivered = begun.reader.extent();
        begun.forget();
        begun.reader.only(timeline);
        begun.rest().map_err(Failure::Unreadable)?;
        Ok(LogStart::Continues { reader: Box::new(self.follower(begun, after, delivered)), at: after.clone() })
    }

    /// Follows from the last place on where a record ends.
    async fn at_end(self, connection: Connection) -> Result<(Follower, Point)> {
        let flushed = self.system.flushed;
        let mut begun = self.begin(connection, self.page_before(flushed), self.timeline_before(flushed)).await?;
        let whole = loop {
            begun.more(Lsn(u64::MAX)).await?;
            match begun.reader.whole() {
                Some(whole) if begun.reader.position() >= flushed => break whole,
                // All of it is the midst of a long record, the end of which is to be waited for.
                None => begun.forget(),
                Some(_) => {}
            }
            if begun.ended {
                return Err(odd(format!("the log of the server ends before {flushed}")));
            }
        };
        let kept = begun.reader.position().since(whole.end).unwrap_or(0) as usize;
        begun.bytes.drain(..begun.bytes.len().saturating_sub(kept));
        begun.events.retain(|event| event.span.start >= whole.end);
        let at = point(begun.clock, whole.end, self.timeline_before(whole.end)).map_err(no_point)?;
        Ok((self.follower(begun, &at, whole), at))
    }

    /// What follows a stream, of which what was read after `delivered` is yet to be delivered.
    fn follower(self, begun: Beginning, at: &Point, delivered: Extent) -> Follower {
        let stored = watch::Sender::new(delivered.end);
        let pump = Pump {
            stream: begun.stream,
            slot: self.slot.clone(),
            received: begun.reader.position(),
            primary: self.primary,
            lasting: self.lasting,
            stored: stored.subscribe(),
        };
        Follower {
            address: self.address,
            slot: self.slot,
            pieces: pump.start(),
            stored,
            expect: Expect { timeline: begun.timeline, ..self.expect },
            reader: begun.reader,
            pending: begun.bytes,
            events: begun.events,
            delivered,
            time: at.time,
            margin: self.margin,
        }
    }
}

fn before(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_sub(1))
}

/// Whether the shorter of the two is the end of the other.
fn end_alike(a: &[u8], b: &[u8]) -> bool {
    a.iter().rev().zip(b.iter().rev()).all(|(a, b)| a == b)
}

/// The last bytes that are stored before a point, as far as they can be read.
async fn stored_end(cluster: &ClusterRepository, after: &Point) -> Result<Option<Vec<u8>>> {
    let epoch = cluster.current_epoch().await?;
    let mut slices = cluster.slices_from(STREAM, epoch, None).await?;
    slices.retain(|slice| slice.name.end.position == after.position && cluster.can_read(slice));
    let Some(slice) = slices.last() else { return Ok(None) };
    let read = async {
        let reader = cluster.slice_reader(slice).await?;
        match reader.footer().frames.len().checked_sub(1) {
            Some(last) => reader.frame(last).await.map(Some),
            None => Ok(None),
        }
    };
    match read.await {
        // Damage is found out by others, and keeps nobody from capturing what comes.
        Err(RepositoryError::Damaged { .. } | RepositoryError::Missing { .. }) => Ok(None),
        read => Ok(read?),
    }
}
