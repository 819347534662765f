//! Where following begins, and whether that is where what is stored ends.
//!
//! A position and a timeline alone do not tell one history from another: a server that was set back, by a snapshot of its machine or
//! somebody's restore, comes by the same positions again, and two restores of one backup begin timelines of the same number. So what
//! the server has right before is read too: a record has to end there, and where the repository can be read the bytes have to be
//! those that are stored.

use std::time::Duration;

use hindsight_engine::{EngineError, FailureKind, LogRequest, LogStart, Result};
use hindsight_format::Point;
use hindsight_repository::{ClusterRepository, Error as RepositoryError};
use jiff::SignedDuration;
use tokio::sync::watch;

use super::begin::{Beginning, Failure};
use super::keeper::{Keeper, Members};
use super::pump::{PATIENCE, Pump, Says};
use super::{Follower, MARGIN, no_point, odd};
use crate::address::Host;
use crate::cluster::{history, milliseconds, parameters};
use crate::wal::{Expect, Extent, History, Problem, Span, WalReader};
use crate::wire::{Connection, Replication, SystemIdentity};
use crate::{Address, Lsn, NAME, STREAM, TimelineId, members, of_point, point, slot, synchronous};

/// Begins to follow the log: after a point that is stored, through the slot that was made for it where there is one; or
/// from its present end on. Of several servers that were named the one that leads is followed, and the slots of the others are looked
/// after.
///
/// # Errors
/// The server cannot be reached or refuses, is not the one that is captured, or has not come as far as what is stored.
pub async fn open(address: &Address, request: &LogRequest<'_>) -> Result<LogStart> {
    let leader = members::leader(address).await?;
    let mut followed = leader.address;
    if request.synchronous {
        followed.application_name = synchronous::name(request.cluster);
    }
    let mut connection = Connection::connect(&followed, Replication::Physical).await?;
    let mut site = Site::of(&followed, &mut connection).await?;
    site.must_be_captured(request.cluster).await?;
    site.silent = leader.silent;
    site.says = if request.synchronous { Says::AllIsStored } else { Says::Stored };
    site.members = (address.hosts().len() > 1).then(|| (address.clone(), connection.host().clone()));
    let slot = slot::name(request.cluster);
    // One that keeps nothing was given up by the server.
    let keeps = connection.read_slot(&slot).await?.is_some_and(|position| position.restart.is_some());
    site.slot = Some(slot).filter(|_| keeps);
    match request.after {
        Some(after) => {
            let stored = stored_end(request.cluster, after, site.expect).await?;
            site.after(connection, after, stored).await
        }
        None => {
            let (follower, at) = site.at_end(connection).await?;
            Ok(LogStart::Continues { reader: Box::new(follower), at })
        }
    }
}

/// Of points of a stored history that the leader has left, in their order, the last one that it has come by before it did. Timelines
/// tell; where they do not, as it was set back, only a point of which the bytes are stored, which [`open`] compares then.
///
/// # Errors
/// The server cannot be reached or refuses, or is not the one that is captured.
pub async fn came_by(address: &Address, cluster: &ClusterRepository, stored: &[Point]) -> Result<Option<Point>> {
    let followed = members::leader(address).await?.address;
    let mut connection = Connection::connect(&followed, Replication::Physical).await?;
    let site = Site::of(&followed, &mut connection).await?;
    connection.close().await;
    site.must_be_captured(cluster).await?;
    let Some((end, before)) = stored.split_last() else { return Ok(None) };
    let mut last = None;
    for point in before {
        let (at, timeline) = of_point(point).map_err(no_point)?;
        if at > site.system.flushed || site.left_before(at, timeline).is_some() {
            break;
        }
        last = Some(point);
    }
    let Some(last) = last else { return Ok(None) };
    // The next one tells why it is the last.
    let next = stored.iter().find(|point| point.position.order() > last.position.order()).unwrap_or(end);
    let (next, timeline) = of_point(next).map_err(no_point)?;
    let told = site.left_before(next, timeline).is_some();
    Ok((told || stored_end(cluster, last, site.expect).await?.is_some()).then(|| last.clone()))
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
        // Where commits wait for standbys they are not to wait for this one; the log then stays until the session ends.
        let waits = !self.connection.show("synchronous_standby_names").await?.is_empty();
        let says = if waits { Says::Nothing } else { Says::Stored };
        let site = Site { slot: Some(self.slot), patience: None, says, ..site };
        let start = Lsn(from.0 - from.0 % u64::from(site.expect.segment_size.bytes()));
        let slot = site.slot.as_deref();
        let mut begun = site.begin(self.connection, slot, start, site.timeline_at(start)).await?;
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
    /// How long a stream is kept while nobody reads it.
    patience: Option<Duration>,
    /// What the server is told of what is safe.
    says: Says,
    /// All servers that were named, where there are several, and which of them this is.
    members: Option<(Address, Host)>,
    /// Those that did not answer.
    silent: Vec<Host>,
}

/// What is stored right before a point.
struct StoredEnd {
    /// The last frame.
    bytes: Vec<u8>,
    /// The record that ends at the point, where that is between two segments.
    last: Option<Span>,
}

impl Site {
    async fn of(address: &Address, connection: &mut Connection) -> Result<Self> {
        let system = connection.identify_system().await?;
        let expect = parameters(connection, &system).await?;
        let history = history(connection, system.timeline).await?;
        let primary = !connection.in_recovery().await?;
        let delay = milliseconds(&connection.show("wal_writer_delay").await?)?;
        let margin = MARGIN.saturating_add(SignedDuration::from_millis(3 * i64::from(delay)));
        let address = address.clone();
        Ok(Self {
            address,
            system,
            primary,
            expect,
            history,
            slot: None,
            margin,
            patience: Some(PATIENCE),
            says: Says::Stored,
            members: None,
            silent: Vec::new(),
        })
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

    /// Whether the server left a timeline before a position, so that it never comes there.
    fn has_left(&self, at: Lsn, timeline: TimelineId) -> bool {
        let range = self.history.as_ref().and_then(|history| history.range(timeline));
        matches!(range, Some((_, Some(end))) if end < at)
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

    /// What is stored ends on a timeline that the server has not come by, or not so far.
    fn other_history(&self, stored: TimelineId, cause: String) -> Result<LogStart> {
        match self.silent.first() {
            // An old primary that came back while the one that was promoted is away.
            Some(host) if self.system.timeline <= stored => Err(EngineError::new(
                FailureKind::Unreachable,
                format!("{cause}; {host} does not answer, and may have gone on with what is stored"),
            )
            .hint("start it, or leave it out of the connection string if it is gone for good")),
            _ => Ok(LogStart::Left { cause }),
        }
    }

    fn begins_segment(&self, lsn: Lsn) -> bool {
        lsn.0.is_multiple_of(self.expect.segment_size.bytes().into())
    }

    /// Begins a stream at the beginning of a page.
    async fn begin(
        &self,
        connection: Connection,
        slot: Option<&str>,
        from: Lsn,
        timeline: TimelineId,
    ) -> std::result::Result<Beginning, Failure> {
        let mut begun = Beginning::at(connection, slot, from, Expect { timeline, ..self.expect }).await?;
        // Where there is nothing to send, its first answer is awaited all the same: what came meanwhile is sent before the next one.
        begun.all = from >= self.system.flushed;
        Ok(begun)
    }

    /// Reads on to `at`, and the first of what there is after it.
    async fn lead(&self, mut begun: Beginning, at: Lsn) -> std::result::Result<Beginning, Failure> {
        loop {
            begun.more(at).await?;
            let there = begun.reader.position() == at;
            if there && (begun.ended || !begun.later.is_empty() || at >= self.system.flushed) {
                return Ok(begun);
            }
            if begun.ended {
                let what = format!("the log of timeline {} ends before {at}", begun.timeline);
                return Err(Failure::Other(odd(what)));
            }
        }
    }

    /// Follows from a point on that is stored, with what is stored right before it.
    async fn after(self, mut connection: Connection, after: &Point, stored: Option<StoredEnd>) -> Result<LogStart> {
        let (at, timeline) = of_point(after).map_err(no_point)?;
        let (left, flushed) = (self.left_before(at, timeline), self.system.flushed);
        // It may still come there, unless it has left for good.
        if at > flushed && !self.has_left(at, timeline) {
            let what = match left {
                Some(left) => format!("{left}; its own has come to {flushed}"),
                None => format!("the log is stored up to {at}, and the server's has come to {flushed} only"),
            };
            return Err(EngineError::new(FailureKind::Server, what).hint(
                "a standby that is behind comes there by itself; a server that was set back is captured again, after a gap, once \
                 it has come further than that",
            ));
        }
        if let Some(cause) = left {
            return self.other_history(timeline, cause);
        }
        let other =
            format!("what the server has before {at} is not what is stored: it was set back, or is another one");
        let differs = |read: &[u8]| stored.as_ref().is_some_and(|stored| !end_alike(&stored.bytes, read));
        let page = self.page_before(at);
        // The slot keeps the segment that has the next byte; the one before may be gone, or have nothing in its last page.
        let begins_segment = self.begins_segment(at);
        if begins_segment {
            let read = async { self.lead(self.begin(connection, None, page, timeline).await?, at).await };
            connection = match read.await {
                Ok(begun) if differs(&begun.bytes) => return self.other_history(timeline, other),
                Ok(begun) => begun.stream.finish().await?,
                Err(Failure::Removed | Failure::Unreadable(_)) => {
                    Connection::connect(&self.address, Replication::Physical).await?
                }
                Err(Failure::Other(error)) => return Err(error),
            };
        }
        let lead = async {
            let from = if begins_segment { at } else { page };
            let mut begun = self.begin(connection, self.slot.as_deref(), from, timeline).await?;
            if let Some(last) = stored.as_ref().and_then(|stored| stored.last).filter(|_| begins_segment) {
                // The next one has to name it.
                begun.reader = WalReader::after(last, Expect { timeline, ..self.expect });
            }
            self.lead(begun, at).await
        };
        let mut begun = match lead.await {
            Ok(begun) => begun,
            Err(Failure::Removed) => {
                let cause = format!("the server has removed its log after {at}, which was not captured yet");
                return Ok(LogStart::Lost { cause });
            }
            Err(Failure::Unreadable(error)) => return self.other_history(timeline, format!("{other} ({error})")),
            Err(Failure::Other(error)) => return Err(error),
        };
        // Slices end with records, but for the parts of a long one.
        let begins_page = at.0.is_multiple_of(self.expect.block_size.into());
        let ends_record = begun.reader.whole().is_some_and(|whole| whole.end == at);
        if !(begins_page || ends_record) || differs(&begun.bytes) {
            return self.other_history(timeline, other);
        }
        let delivered = begun.reader.extent();
        begun.forget();
        begun.reader.only(timeline);
        match begun.rest() {
            Err(error) if matches!(error.problem, Problem::PreviousRecord { .. }) => {
                return self.other_history(timeline, format!("{other} ({error})"));
            }
            rest => rest.map_err(Failure::Unreadable)?,
        }
        Ok(LogStart::Continues { reader: Box::new(self.follower(begun, after, delivered)), at: after.clone() })
    }

    /// Follows from the last place on where a record ends.
    async fn at_end(self, connection: Connection) -> Result<(Follower, Point)> {
        let flushed = self.system.flushed;
        let (slot, timeline) = (self.slot.as_deref(), self.timeline_before(flushed));
        let mut begun = self.begin(connection, slot, self.page_before(flushed), timeline).await?;
        let whole = loop {
            begun.more(Lsn(u64::MAX)).await?;
            match begun.reader.whole() {
                Some(whole) if begun.reader.position() >= flushed => break whole,
                // The segment before was left early, and nothing has come after it.
                None if begun.reader.position() == flushed
                    && begun.reader.is_lost()
                    && self.begins_segment(flushed) =>
                {
                    begun.reader = WalReader::at_record(flushed, Expect { timeline, ..self.expect });
                    break begun.reader.extent();
                }
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
            all: begun.all && begun.later.is_empty(),
            // What there is on the timelines after this one its clock knows nothing of.
            primary: self.primary && begun.timeline == self.system.timeline,
            patience: self.patience,
            says: self.says,
            stored: stored.subscribe(),
        };
        let keeper = self.members.zip(self.slot.clone()).map(|((address, followed), slot)| {
            let system = self.system.system;
            Keeper::start(Members { address, followed, slot, system, stored: stored.subscribe() })
        });
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
            says: self.says,
            keeper,
            base: None,
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

/// The last record in parts of a slice; only its first part is known to begin with one. The unused rest of a segment need not
/// be readable, and has none.
fn last_record(parts: &[&[u8]], start: Lsn, begins: bool, expect: Expect) -> Option<Span> {
    let page = start.0.is_multiple_of(expect.block_size.into());
    let mut reader = if begins && !page { WalReader::at_record(start, expect) } else { WalReader::new(start, expect) };
    for part in parts {
        if reader.feed(part, &mut |_| {}).is_err() {
            break;
        }
    }
    reader.last_record()
}

/// What is stored before a point, as far as it can be read.
async fn stored_end(cluster: &ClusterRepository, after: &Point, expect: Expect) -> Result<Option<StoredEnd>> {
    let (at, timeline) = of_point(after).map_err(no_point)?;
    let expect = Expect { timeline, ..expect };
    let begins_segment = at.0.is_multiple_of(expect.segment_size.bytes().into());
    let epoch = cluster.current_epoch().await?;
    let mut slices = cluster.slices_of(STREAM, epoch).await?;
    slices.retain(|slice| slice.name.end.position == after.position && !slice.name.is_sign_of_life());
    slices.retain(|slice| cluster.can_read(slice));
    let Some(slice) = slices.last() else { return Ok(None) };
    let read = async {
        let reader = cluster.slice_reader(slice).await?;
        let (mut found, mut until, mut next) = (None, at, Vec::new());
        for index in (0..reader.footer().frames.len()).rev() {
            let bytes = reader.frame(index).await?;
            until = Lsn(until.0.saturating_sub(bytes.len() as u64));
            let last = if begins_segment { last_record(&[&bytes, &next], until, index == 0, expect) } else { None };
            next = bytes.get(..expect.block_size as usize).unwrap_or(&bytes).to_vec();
            let stored = found.get_or_insert(StoredEnd { bytes, last: None });
            stored.last = last.filter(|last| last.end == at);
            if last.is_some() || !begins_segment {
                break;
            }
        }
        Ok(found)
    };
    match read.await {
        // Damage is found out by others, and keeps nobody from capturing what comes.
        Err(RepositoryError::Damaged { .. } | RepositoryError::Missing { .. }) => Ok(None),
        read => Ok(read?),
    }
}
