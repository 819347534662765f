//! Restore plans: exactly what is read for a restore, decided before anything is touched.

use hindsight_format::{Point, SliceName, SnapshotManifest, StoredSlice};
use jiff::{SignedDuration, Timestamp};

use crate::footing::{Foothold, Footing, Ground, rank};
use crate::history::History;
use crate::log::Log;
use crate::parents::parents;
use crate::refusal::Refusal;
use crate::refuse::{refuse, refuse_base, selective, unknown_snapshot};
use crate::timeline::{Range, Timeline};

/// How far past a time the log of a physical snapshot is read. Its order is not that of the times in it: a transaction
/// takes its time before its place, and may wait in between. Which is the first of that time or later is for the engine
/// to find.
const LATE: SignedDuration = SignedDuration::from_secs(60);

/// What to restore to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The state at the end of this snapshot.
    Snapshot(String),
    /// Everything strictly before this time, nothing else.
    Before(Timestamp),
    /// Everything up to and including a position.
    Through {
        /// The time of the position.
        time: Timestamp,
        /// Its `order`, as its engine writes it.
        order: String,
    },
    /// The last state that can be restored.
    Latest,
}

/// Where the log is cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// At the end of the snapshot's own log.
    AtSnapshotEnd,
    /// Before the first record of this time or later.
    Before(Timestamp),
    /// After the record at this position.
    Through {
        /// The `order` of the position.
        order: String,
    },
}

/// Exactly what is read for a restore.
#[derive(Clone, Debug, PartialEq)]
pub struct RestorePlan {
    /// The base snapshot. When it is selective, the caller restricts the restore to its namespaces.
    pub base: SnapshotManifest,
    /// The snapshots that the base builds upon, nearest first; none where it holds everything itself.
    pub parents: Vec<SnapshotManifest>,
    /// The epoch of the cluster's history in which the target lies.
    pub epoch: u64,
    /// Where the log is cut off.
    pub cut: Cut,
    /// What is read of each of the base's streams.
    pub streams: Vec<StreamPlan>,
    /// Bytes stored of the captured slices that are read.
    pub log_bytes: u64,
    /// Bytes stored of the base snapshot, its own log included, and of what it builds upon.
    pub data_bytes: u64,
    /// First and last second that can be restored around the target; none for a snapshot that no
    /// log follows.
    pub range: Option<(Timestamp, Timestamp)>,
}

/// What is read of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPlan {
    /// The stream.
    pub stream: String,
    /// The snapshot's own slices, in order.
    pub own: Vec<SliceName>,
    /// The captured slices, in order, each starting where the one before ends. The first one starts
    /// at the base's consistent point or holds it in its midst. The cut is in the last one, or in one of those before it
    /// where the log may hold records of a time after others of a later one.
    pub log: Vec<StoredSlice>,
}

/// What to read to restore `target`, from the base snapshot named `base` or else the newest fit one.
///
/// The newest fit base is the latest full snapshot with all that it holds before the target and an
/// unbroken log from there to it, in the newest epoch that has one, of its own or of the one that it branches off. (What
/// only an older epoch has is planned with [`History::until_epoch`].) `base` may name any snapshot
/// that fits, a selective one too. `now` only serves to tell a target in the future from one that
/// is not captured yet.
///
/// # Errors
/// A [`Refusal`] that says why not, and what can be restored instead.
pub fn plan(history: &History, target: &Target, base: Option<&str>, now: Timestamp) -> Result<RestorePlan, Refusal> {
    plan_from_readable(history, target, base, now).map_err(|refusal| refusal.beside_damage(history))
}

fn plan_from_readable(
    history: &History,
    target: &Target,
    base: Option<&str>,
    now: Timestamp,
) -> Result<RestorePlan, Refusal> {
    let named = base.map(|name| find(history, name)).transpose()?;
    named.map(|named| parents(history, named)).transpose()?;
    let ground = Ground::new(history);
    let aim = match target {
        Target::Snapshot(name) => {
            let snapshot = find(history, name)?;
            return match named {
                Some(other) if other.id != snapshot.id => {
                    Err(Refusal::TwoBases { snapshot: name.clone(), base: other.id.clone() })
                }
                _ => assemble(history, &ground, snapshot, None, None),
            };
        }
        Target::Latest => return latest(history, &ground, named),
        Target::Before(time) => Aim::Before(*time),
        Target::Through { time, order } => Aim::Through { time: *time, order },
    };

    // Footings are sorted by epoch, then oldest first.
    let newest = ground.full().rev().find(|footing| aim.is_reached_from(footing));
    let fit = match named {
        None => newest,
        Some(named) => ground.footings.iter().rev().find(|f| f.snapshot.id == named.id && aim.is_reached_from(f)),
    };
    if let Some(footing) = fit {
        return assemble(history, &ground, footing.snapshot, Some(footing), Some(aim));
    }
    Err(match named {
        Some(named) => refuse_base(history, &ground, aim, named, newest, now),
        None => refuse(history, &ground, aim, now),
    })
}

/// The snapshot called `name`, which can be read.
pub(crate) fn find<'a>(history: &'a History, name: &str) -> Result<&'a SnapshotManifest, Refusal> {
    history.snapshot(name).ok_or_else(|| match history.damaged_snapshot(name) {
        Some(record) => Refusal::Damaged { what: record.to_string() },
        None => unknown_snapshot(history, name),
    })
}

/// A point of history to restore to, as it compares with the points of one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim<'a> {
    Before(Timestamp),
    Through { time: Timestamp, order: &'a str },
}

impl<'a> Aim<'a> {
    /// The point that a target names by itself, without looking anything up.
    pub(crate) fn of(target: &'a Target) -> Option<Self> {
        match target {
            Target::Before(time) => Some(Self::Before(*time)),
            Target::Through { time, order } => Some(Self::Through { time: *time, order }),
            Target::Snapshot(_) | Target::Latest => None,
        }
    }

    /// Whether something can lie from here (inclusive) to `end`.
    pub(crate) fn is_before(self, end: Self) -> bool {
        match (self, end) {
            (Self::Through { order: from, .. }, Self::Through { order: to, .. }) => from <= to,
            (from, Self::Through { time, .. }) => from.time() <= time,
            (from, Self::Before(time)) => from.time() < time,
        }
    }

    /// When it is.
    pub(crate) fn time(self) -> Timestamp {
        match self {
            Self::Before(time) | Self::Through { time, .. } => time,
        }
    }

    /// Whether a base that is consistent at `point` may hold more than is wanted.
    pub(crate) fn is_too_early_for(self, point: &Point) -> bool {
        match self {
            Self::Before(time) => point.time >= time,
            Self::Through { order, .. } => point.position.order() > order,
        }
    }

    /// Whether a log that is captured up to `point` holds all that is wanted.
    pub(crate) fn is_captured_at(self, point: &Point) -> bool {
        match self {
            Self::Before(time) => point.time >= time,
            Self::Through { order, .. } => point.position.order() >= order,
        }
    }

    /// Whether a base, and an unbroken log from it, lead here.
    pub(crate) fn is_reached_from(self, footing: &Footing<'_>) -> bool {
        footing.streams.iter().all(|hold| !self.is_too_early_for(hold.start) && self.is_captured_at(hold.end))
    }

    fn cut(self) -> Cut {
        match self {
            Self::Before(time) => Cut::Before(time),
            Self::Through { order, .. } => Cut::Through { order: order.to_owned() },
        }
    }

    /// The same, a while later.
    fn later(self, by: SignedDuration) -> Self {
        match self {
            Self::Before(time) => Self::Before(time.checked_add(by).unwrap_or(Timestamp::MAX)),
            through @ Self::Through { .. } => through,
        }
    }

    /// The slices with which to go on from a foothold, up to the one that holds the cut. (A slice
    /// holds what comes after its start, so that none is needed after the first one that ends at
    /// the time aimed at or later.)
    fn slices(self, log: &Log<'_>, hold: &Foothold<'_>) -> Vec<StoredSlice> {
        let mut slices = Vec::new();
        let mut captured = self.is_captured_at(hold.start);
        for index in hold.entry.into_iter().flat_map(|entry| log.path(entry)) {
            if captured {
                break;
            }
            slices.push(log.slices()[index].clone());
            captured = self.is_captured_at(&log.slices()[index].name.end);
        }
        slices
    }
}

/// The last state that can be restored, in the newest epoch that has a base.
fn latest(history: &History, ground: &Ground<'_>, named: Option<&SnapshotManifest>) -> Result<RestorePlan, Refusal> {
    let key = |footing: &&Footing<'_>| (footing.epoch, rank(footing.end).0, rank(footing.end).1.to_owned());
    let best = match named {
        Some(named) => ground.footings.iter().rev().find(|footing| footing.snapshot.id == named.id),
        // Of several that lead there the last one, which is the newest.
        None => ground.full().max_by_key(key),
    };
    let Some(footing) = best else {
        return Err(match (named, ground.footings.iter().max_by_key(key)) {
            (None, Some(footing)) => selective(footing.snapshot, footing.end.time),
            _ => Refusal::NoSnapshots,
        });
    };
    let aim = match footing.streams.as_slice() {
        [only] if only.entry.is_some() => Some(Aim::Through { time: only.end.time, order: only.end.position.order() }),
        // Positions of several streams do not compare, their times do.
        _ => footing.seconds().map(|(_, to)| Aim::Before(to)),
    };
    assemble(history, ground, footing.snapshot, Some(footing), aim)
}

/// The plan for `base` as it is, or for going on from it along the log of the epoch in which it is meant.
fn assemble(
    history: &History,
    ground: &Ground<'_>,
    base: &SnapshotManifest,
    footing: Option<&Footing<'_>>,
    aim: Option<Aim<'_>>,
) -> Result<RestorePlan, Refusal> {
    let parents: Vec<_> = parents(history, base)?.into_iter().cloned().collect();
    let log = |stream: &str| -> Vec<StoredSlice> {
        let Some((footing, aim)) = footing.zip(aim) else { return Vec::new() };
        let aim = if base.kind.copies_files() { aim.later(LATE) } else { aim };
        let hold = footing.streams.iter().find(|hold| hold.stream == stream);
        let found = hold.zip(ground.logs.get(&(footing.epoch, stream)));
        found.map(|(hold, log)| aim.slices(log, hold)).unwrap_or_default()
    };
    let streams: Vec<_> = base
        .streams
        .iter()
        .map(|(stream, part)| StreamPlan { stream: stream.clone(), own: part.slices.clone(), log: log(stream) })
        .collect();
    let of_parents = parents.iter().map(|parent| parent.totals.stored_bytes);
    Ok(RestorePlan {
        base: base.clone(),
        epoch: footing.map_or(base.epoch, |footing| footing.epoch),
        cut: aim.map_or(Cut::AtSnapshotEnd, Aim::cut),
        log_bytes: streams
            .iter()
            .flat_map(|plan| &plan.log)
            .map(|slice| slice.stored_bytes)
            .fold(0, u64::saturating_add),
        data_bytes: of_parents.fold(base.totals.stored_bytes, u64::saturating_add),
        parents,
        range: range_around(history, ground, base, footing.map(|footing| footing.epoch)),
        streams,
    })
}

/// The range that rests on `base`, in the epoch that is meant or else the newest; a selective snapshot has one of its own.
fn range_around(
    history: &History,
    ground: &Ground<'_>,
    base: &SnapshotManifest,
    epoch: Option<u64>,
) -> Option<(Timestamp, Timestamp)> {
    let timeline = Timeline::of(history, ground);
    let is_meant = |other: u64| epoch.is_none_or(|epoch| epoch == other);
    let resting = |range: &&Range| is_meant(range.epoch) && range.bases.contains(&base.id);
    match timeline.ranges.iter().rev().find(resting) {
        Some(range) => range.from.zip(range.to),
        None => {
            let footings = ground.footings.iter().rev();
            footings.filter(|footing| is_meant(footing.epoch)).find(|footing| footing.snapshot.id == base.id)?.seconds()
        }
    }
}
