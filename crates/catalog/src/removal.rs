//! Removal plans: exactly what is deleted for a wish, what stays although it was asked for, and what
//! can not be restored afterwards. Decided before anything is touched.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use hindsight_format::{DamagedRecord, SnapshotKind, SnapshotManifest, StoredGap, StoredSlice, UnfinishedSnapshot};
use jiff::{SignedDuration, Timestamp};

use crate::footing::{Footing, Ground, rank};
use crate::history::History;
use crate::losses::{self, Loss};
use crate::merge::redundant;
use crate::parents::{children, parents};
use crate::refusal::Refusal;
use crate::refuse::unknown_snapshot;
use crate::timeline::{Range, Timeline, ranges};

/// What somebody wants to be rid of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// This snapshot, complete or not.
    Snapshot(String),
    /// Snapshots older than a time, but for what restoring to that time or later needs.
    Snapshots {
        /// The time.
        before: Timestamp,
        /// Only of this sort.
        sort: Option<SnapshotSort>,
    },
    /// The captured log older than a time, or all of it, but for what restoring to that time or
    /// later needs. Snapshots stay.
    Log {
        /// The time; none for all.
        before: Option<Timestamp>,
    },
    /// Whatever is older than a time, but for what restoring to that time or later needs; and what
    /// belongs to nothing.
    Everything {
        /// The time.
        before: Timestamp,
    },
    /// Whatever no rule of retention keeps. The newest full snapshot is always kept.
    Retention {
        /// Restoring to this time or later stays possible; none: there is no such rule.
        before: Option<Timestamp>,
        /// So many full snapshots are kept, with all log after them; 0: there is no such rule.
        count: u32,
    },
}

/// Sorts of snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotSort {
    /// Full ones, made in this way.
    Full(SnapshotKind),
    /// Those of some namespaces.
    Selective,
}

/// Exactly what is deleted for a wish.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Removal {
    /// Snapshots, oldest first; of a chain those that build upon others before these.
    pub snapshots: Vec<SnapshotManifest>,
    /// Snapshots that were named and cannot be read: what they hold is not known.
    pub damaged: Vec<String>,
    /// Slices of captured log, oldest first.
    pub slices: Vec<StoredSlice>,
    /// Those of the slices that nothing is lost with, as others hold the same.
    pub redundant: u64,
    /// Records of gaps around which nothing is left.
    pub gaps: Vec<StoredGap>,
    /// What was stored of snapshots that were never finished.
    pub unfinished: Vec<UnfinishedSnapshot>,
    /// Snapshots that were asked for and stay, oldest first, each with what needs it.
    pub kept_snapshots: Vec<(String, Need)>,
    /// Log that was asked for and stays.
    pub kept_log: Vec<KeptLog>,
    /// What can be restored now, and not afterwards.
    pub losses: Vec<Loss>,
    /// What can be restored afterwards.
    pub left: Vec<Range>,
}

/// What needs a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is the last one that leads to the end of the log that is being captured.
    Capture,
    /// These build upon it, and stay.
    Children(Vec<String>),
    /// It cannot be read: what would be lost is not known, and it goes only by its name.
    Unreadable,
    /// The record of this later epoch cannot be read, which may rest on it: it goes only by its name, too.
    UnreadEpoch(u64),
    /// Restoring to these times, which are not to be lost.
    Restores {
        /// The first.
        from: Timestamp,
        /// The last.
        to: Timestamp,
    },
}

/// What needs old log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This snapshot leads through it.
    Snapshot(String),
    /// This one may: it cannot be read.
    UnreadSnapshot(String),
    /// This epoch may have branched off behind it: its record cannot be read.
    UnreadEpoch(u64),
}

/// Old log that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLog {
    /// What needs it, or may.
    pub holder: Holder,
    /// Number of slices.
    pub slices: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Where the first of them starts.
    pub from: Timestamp,
    /// Where the last of them ends.
    pub to: Timestamp,
}

impl Removal {
    /// Whether there is nothing to delete.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
            && self.damaged.is_empty()
            && self.slices.is_empty()
            && self.gaps.is_empty()
            && self.unfinished.is_empty()
    }

    /// Bytes stored of what is deleted.
    pub fn stored_bytes(&self) -> u64 {
        let snapshots = self.snapshots.iter().map(|snapshot| snapshot.totals.stored_bytes);
        let unfinished = self.unfinished.iter().map(|unfinished| unfinished.stored_bytes);
        snapshots.chain(self.slices.iter().map(|slice| slice.stored_bytes)).chain(unfinished).sum()
    }

    /// Whether this takes no snapshot, and loses nothing, that `told` does not.
    pub fn is_covered_by(&self, told: &Self) -> bool {
        let known = |id: &str| told.snapshots.iter().any(|snapshot| snapshot.id == id);
        self.snapshots.iter().all(|snapshot| known(&snapshot.id))
            && self.damaged.iter().all(|id| told.damaged.contains(id))
            && self.losses.iter().all(|loss| told.losses.iter().any(|other| other.covers(loss)))
    }
}

/// What is deleted of `history` for `wish`. `unfinished` is what is stored of snapshots that nobody is
/// making any more; `capturing` is the epoch whose log is being captured, when capture is on.
///
/// Whatever is restorable afterwards was so before, and nothing is lost that [`Removal::losses`] does
/// not tell. While capture is on, some full snapshot keeps leading to the end of what is captured.
///
/// # Errors
/// There is no such snapshot; or it is the last one that what is being captured rests on.
pub fn removal(
    history: &History,
    unfinished: &[UnfinishedSnapshot],
    wish: &Wish,
    capturing: Option<u64>,
) -> Result<Removal, Refusal> {
    let ground = Ground::new(history);
    let Some(scope) = Scope::of(wish, history, &ground) else {
        return Ok(Removal { left: Timeline::of(history, &ground).ranges, ..Removal::default() });
    };
    let (dropped, mut kept_snapshots) = scope.drop_snapshots(history, &ground, capturing);
    // Of what stays for the sake of its children alone, the log after it is not needed.
    let leading_nowhere = dropped.clone();
    let dropped = keep_parents(history, dropped, &mut kept_snapshots);
    let mut removal = Removal::default();
    match wish {
        Wish::Snapshot(id) if history.damaged_snapshot(id).is_some() => removal.damaged.push(id.clone()),
        Wish::Snapshot(id) if history.snapshot(id).is_none() => {
            removal.unfinished = unfinished.iter().filter(|unfinished| unfinished.id == *id).cloned().collect();
            if removal.unfinished.is_empty() {
                return Err(unknown_snapshot(history, id));
            }
        }
        Wish::Snapshot(id) => match kept_snapshots.first() {
            Some((_, Need::Children(children))) => {
                return Err(Refusal::HasChildren { name: id.clone(), children: children.clone() });
            }
            Some(_) => return Err(Refusal::LastPitrBase { name: id.clone() }),
            None => {}
        },
        Wish::Everything { .. } | Wish::Retention { .. } => removal.unfinished = unfinished.to_vec(),
        _ => {}
    }
    if let Some(bound) = scope.log {
        let (mut gone, kept) = old_slices(history, &ground, &leading_nowhere, bound);
        removal.kept_log = kept;
        if let Some(id) = history.damaged_snapshots().next() {
            let holder = Holder::UnreadSnapshot(id.to_owned());
            removal.kept_log.extend(KeptLog::of(holder, gone.iter().copied()));
            gone.clear();
        }
        let unread = unread_epoch(history);
        if let Some(epoch) = unread {
            let older = gone.iter().copied().filter(|slice| slice.epoch < epoch);
            removal.kept_log.extend(KeptLog::of(Holder::UnreadEpoch(epoch), older));
            gone.retain(|slice| slice.epoch >= epoch);
        }
        let mut superfluous = if scope.tidies { superfluous(history, &gone, bound) } else { HashSet::new() };
        superfluous.retain(|slice| unread.is_none_or(|epoch| slice.epoch >= epoch));
        removal.redundant = superfluous.len() as u64;
        removal.slices =
            history.slices.iter().filter(|s| gone.contains(s) || superfluous.contains(s)).cloned().collect();
    }
    if scope.snapshots {
        removal.snapshots = history.snapshots.iter().filter(|s| dropped.contains(s.id.as_str())).cloned().collect();
        sort_for_removal(history, &mut removal.snapshots);
        removal.kept_snapshots = kept_snapshots;
        let unreadable = history.damaged_snapshots().filter(|id| !removal.damaged.iter().any(|gone| gone == id));
        if !matches!(wish, Wish::Snapshot(_)) {
            removal.kept_snapshots.extend(unreadable.map(|id| (id.to_owned(), Need::Unreadable)));
        }
    }
    removal.slices.sort_by(|a, b| rank(&a.name.start).cmp(&rank(&b.name.start)));

    let mut after = without(history, &removal);
    if let Some(bound) = scope.log {
        removal.gaps = history.gaps.iter().filter(|gap| is_forgotten(gap, &after, bound)).cloned().collect();
        after.gaps.retain(|gap| !removal.gaps.contains(gap));
    }
    let ground_after = Ground::new(&after);
    removal.left = Timeline::of(&after, &ground_after).ranges;
    removal.losses = losses::between(&ground, &ground_after);
    Ok(removal)
}

/// Of what would go, what can: what no other one builds upon that stays.
fn keep_parents<'a>(
    history: &'a History,
    mut dropped: HashSet<&'a str>,
    kept: &mut Vec<(String, Need)>,
) -> HashSet<&'a str> {
    let needed: Vec<_> = dropped
        .iter()
        .filter_map(|id| {
            let stay = children(history, id).into_iter().filter(|child| !dropped.contains(child.id.as_str()));
            let stay: Vec<_> = stay.map(|child| child.id.clone()).collect();
            (!stay.is_empty()).then_some((*id, stay))
        })
        .collect();
    for (id, children) in needed {
        dropped.remove(id);
        kept.push((id.to_owned(), Need::Children(children)));
    }
    let place = |id: &str| history.snapshot(id).map(|snapshot| (snapshot.restore_time(), snapshot.id.as_str()));
    kept.sort_by(|a, b| place(&a.0).cmp(&place(&b.0)));
    dropped
}

/// Chains by where they begin, the oldest first. Wherever the removal is cut off, nothing is left that lacks a part.
fn sort_for_removal(history: &History, snapshots: &mut [SnapshotManifest]) {
    snapshots.sort_by_cached_key(|snapshot| {
        let chain = parents(history, snapshot).unwrap_or_default();
        let first = chain.last().copied().unwrap_or(snapshot);
        let begins = (first.restore_time(), first.id.clone());
        (begins, std::cmp::Reverse(chain.len()), snapshot.restore_time(), snapshot.id.clone())
    });
}

/// What is left of `history` once `removal` is done.
pub fn without(history: &History, removal: &Removal) -> History {
    let mut left = history.clone();
    let ids: HashSet<_> = removal.snapshots.iter().map(|snapshot| snapshot.id.as_str()).collect();
    let slices: HashSet<_> = removal.slices.iter().collect();
    left.damaged.retain(|record| record.snapshot().is_none_or(|id| !removal.damaged.iter().any(|gone| gone == id)));
    left.snapshots.retain(|snapshot| !ids.contains(snapshot.id.as_str()));
    left.slices.retain(|slice| !slices.contains(slice));
    left.gaps.retain(|gap| !removal.gaps.contains(gap));
    left
}

/// What a wish means.
struct Scope<'a> {
    /// Snapshots that go unless something needs them.
    candidates: BTreeSet<&'a str>,
    /// What can be restored to this time or later is not to be lost; none: it may.
    demand: Option<Timestamp>,
    /// Whether snapshots are deleted at all; otherwise those that stay needlessly need no log.
    snapshots: bool,
    /// Log that is older than this goes.
    log: Option<Timestamp>,
    /// Whether what belongs to nothing goes too.
    tidies: bool,
}

impl<'a> Scope<'a> {
    /// None when the wish is for nothing.
    fn of(wish: &Wish, history: &'a History, ground: &Ground<'a>) -> Option<Self> {
        let older = |time: Timestamp| {
            let old = history.snapshots.iter().filter(move |snapshot| snapshot.restore_time() < time);
            old.map(|snapshot| snapshot.id.as_str())
        };
        let scope = |candidates: BTreeSet<&'a str>, demand: Timestamp| Self {
            candidates,
            demand: Some(demand),
            snapshots: true,
            log: Some(demand),
            tidies: true,
        };
        Some(match wish {
            Wish::Snapshot(id) => {
                let candidates = history.snapshot(id).map(|snapshot| snapshot.id.as_str()).into_iter().collect();
                Self { demand: None, log: None, tidies: false, ..scope(candidates, Timestamp::MAX) }
            }
            Wish::Snapshots { before, sort } => {
                let is_meant = |id: &&str| history.snapshot(id).is_some_and(|s| sort.is_none_or(|sort| sort.holds(s)));
                Self { log: None, tidies: false, ..scope(older(*before).filter(is_meant).collect(), *before) }
            }
            Wish::Log { before } => {
                let before = before.unwrap_or(Timestamp::MAX);
                Self { snapshots: false, tidies: false, ..scope(older(before).collect(), before) }
            }
            Wish::Everything { before } => scope(older(*before).collect(), *before),
            Wish::Retention { before, count } => {
                let mut full: Vec<_> = ground.full().collect();
                full.sort_by_key(|footing| std::cmp::Reverse((footing.epoch, rank(footing.start))));
                // In the newest of the epochs that each counts for.
                let mut known = HashSet::new();
                full.retain(|footing| known.insert(footing.snapshot.id.as_str()));
                full.truncate((*count).max(1) as usize);
                // The first second that can be restored from the oldest that the count keeps.
                let first = full.iter().map(|footing| footing.start.time).min().filter(|_| *count > 0);
                let first = first.map(|time| time.checked_add(SignedDuration::from_secs(1)).unwrap_or(time));
                let demand = before.iter().copied().chain(first).min()?;
                let newest: HashSet<_> = full.iter().map(|footing| footing.snapshot.id.as_str()).collect();
                scope(older(demand).filter(|id| !newest.contains(id)).collect(), demand)
            }
        })
    }

    /// The candidates that go, and those that something needs. Of several that would do, the newest
    /// stays.
    fn drop_snapshots(
        &self,
        history: &'a History,
        ground: &Ground<'a>,
        capturing: Option<u64>,
    ) -> (HashSet<&'a str>, Vec<(String, Need)>) {
        let (mut dropped, mut known): (HashSet<&str>, HashSet<&str>) = Default::default();
        let mut kept = Vec::new();
        let mut remaining: Vec<&Footing<'a>> = ground.full().collect();
        for footing in ground.footings.iter().filter(|footing| self.candidates.contains(footing.snapshot.id.as_str())) {
            let id = footing.snapshot.id.as_str();
            // It goes in all the epochs that it counts for, or in none.
            if !known.insert(id) {
                continue;
            }
            if !footing.is_selective() {
                if let Some(need) = self.unread(history, footing.snapshot) {
                    kept.push((id.to_owned(), need));
                    continue;
                }
                let without: Vec<_> = remaining.iter().copied().filter(|other| other.snapshot.id != id).collect();
                if let Some(need) = self.need(&remaining, &without, id, capturing) {
                    kept.push((id.to_owned(), need));
                    continue;
                }
                remaining = without;
            }
            dropped.insert(id);
        }
        // What names no stream leads nowhere.
        let lost = history.snapshots.iter().filter(|snapshot| snapshot.streams.is_empty());
        dropped.extend(lost.map(|snapshot| snapshot.id.as_str()).filter(|id| self.candidates.contains(id)));
        // Nor does what builds upon something that is not there.
        let torn = history.snapshots.iter().filter(|snapshot| parents(history, snapshot).is_err());
        dropped.extend(torn.map(|snapshot| snapshot.id.as_str()).filter(|id| self.candidates.contains(id)));
        (dropped, kept)
    }

    /// Where it is not known whether a later epoch rests on a snapshot. What is named goes all the same.
    fn unread(&self, history: &History, snapshot: &SnapshotManifest) -> Option<Need> {
        let later = unread_epoch(history).filter(|epoch| *epoch > snapshot.epoch);
        later.filter(|_| self.demand.is_some()).map(Need::UnreadEpoch)
    }

    /// What needs the snapshot `id`, without which `remaining` is `without`, in whichever epoch it counts for, the newest first.
    fn need(
        &self,
        remaining: &[&Footing<'a>],
        without: &[&Footing<'a>],
        id: &str,
        capturing: Option<u64>,
    ) -> Option<Need> {
        let epochs: BTreeSet<u64> = remaining.iter().filter(|f| f.snapshot.id == id).map(|f| f.epoch).collect();
        epochs.into_iter().rev().find_map(|epoch| self.need_in(epoch, remaining, without, capturing))
    }

    fn need_in(
        &self,
        epoch: u64,
        remaining: &[&Footing<'a>],
        without: &[&Footing<'a>],
        capturing: Option<u64>,
    ) -> Option<Need> {
        let end = |footings: &[&Footing<'a>]| footings.iter().filter(|f| f.epoch == epoch).map(|f| rank(f.end)).max();
        if capturing == Some(epoch) && end(without) < end(remaining) {
            return Some(Need::Capture);
        }
        let demand = self.demand?;
        let of_epoch = |footings: &[&Footing<'a>]| -> Vec<Range> {
            ranges(footings.iter().copied().filter(|footing| footing.epoch == epoch))
        };
        let lost = losses::of_ranges(&of_epoch(remaining), &of_epoch(without));
        let lost = lost.into_iter().find(|loss| loss.reaches(demand))?;
        Some(Need::Restores { from: lost.first().max(demand), to: lost.last() })
    }
}

impl SnapshotSort {
    fn holds(self, snapshot: &SnapshotManifest) -> bool {
        match self {
            Self::Full(kind) => snapshot.namespaces.is_empty() && snapshot.kind == kind,
            Self::Selective => !snapshot.namespaces.is_empty(),
        }
    }
}

/// A stretch of one stream that a snapshot leads through, by `order`.
struct Held<'a> {
    start: &'a str,
    end: &'a str,
    snapshot: &'a str,
}

/// The slices that hold nothing of `bound` or later and that no snapshot leads through, those that are
/// `dropped` not counted; and the old ones that stay because one does.
fn old_slices<'a>(
    history: &'a History,
    ground: &Ground<'a>,
    dropped: &HashSet<&str>,
    bound: Timestamp,
) -> (HashSet<&'a StoredSlice>, Vec<KeptLog>) {
    let mut held: BTreeMap<(u64, &str), Vec<Held<'a>>> = BTreeMap::new();
    for footing in ground.footings.iter().filter(|footing| !dropped.contains(footing.snapshot.id.as_str())) {
        for hold in footing.streams.iter().filter(|hold| hold.start != hold.end) {
            let (start, end) = (hold.start.position.order(), hold.end.position.order());
            let all = held.entry((footing.epoch, hold.stream)).or_default();
            all.push(Held { start, end, snapshot: &footing.snapshot.id });
        }
    }
    for all in held.values_mut() {
        all.sort_by_key(|held| held.start);
        // One stretch where they overlap, in the name of the oldest.
        let mut merged: Vec<Held<'a>> = Vec::with_capacity(all.len());
        for next in all.drain(..) {
            match merged.last_mut().filter(|last| next.start < last.end) {
                Some(last) => last.end = last.end.max(next.end),
                None => merged.push(next),
            }
        }
        *all = merged;
    }

    let mut gone = HashSet::new();
    let mut kept: BTreeMap<&str, Vec<&StoredSlice>> = BTreeMap::new();
    for slice in history.slices.iter().filter(|slice| slice.name.end.time < bound) {
        let (start, end) = (slice.name.start.position.order(), slice.name.end.position.order());
        // A sign of life is of use right where a stretch ends.
        let touch = slice.name.is_sign_of_life();
        let holder = |epoch: u64| {
            let all = held.get(&(epoch, slice.stream.as_str())).map_or(&[][..], Vec::as_slice);
            let first = all.partition_point(|held| held.end < start || held.end == start && !touch);
            all.get(first).filter(|held| held.start < end || held.start == end && touch)
        };
        match ground.ancestry.epochs_of(slice).find_map(holder) {
            None => drop(gone.insert(slice)),
            Some(held) => kept.entry(held.snapshot).or_default().push(slice),
        }
    }
    let kept = kept.into_iter();
    let kept = kept.filter_map(|(id, slices)| KeptLog::of(Holder::Snapshot(id.to_owned()), slices.into_iter()));
    (gone, kept.collect())
}

/// The newest epoch of which the record cannot be read: what of older ones it has is not known.
fn unread_epoch(history: &History) -> Option<u64> {
    history.damaged.iter().filter_map(DamagedRecord::epoch).max()
}

impl KeptLog {
    fn of<'s>(holder: Holder, slices: impl Iterator<Item = &'s StoredSlice> + Clone) -> Option<Self> {
        Some(Self {
            holder,
            slices: slices.clone().count() as u64,
            stored_bytes: slices.clone().map(|slice| slice.stored_bytes).sum(),
            from: slices.clone().map(|slice| slice.name.start.time).min()?,
            to: slices.map(|slice| slice.name.end.time).max()?,
        })
    }
}

/// Of what stays, the old slices whose content others hold.
fn superfluous(history: &History, gone: &HashSet<&StoredSlice>, bound: Timestamp) -> HashSet<StoredSlice> {
    let (mut found, mut needed) = (HashSet::new(), HashSet::new());
    // What one of two epochs has twice, the one that branches off may have once.
    for slices in history.slices_by_stream().into_values() {
        let slices: Vec<_> = slices.into_iter().filter(|slice| !gone.contains(slice)).cloned().collect();
        let redundant: HashSet<_> = redundant(&slices).into_iter().collect();
        needed.extend(slices.into_iter().filter(|slice| !redundant.contains(slice)));
        found.extend(redundant);
    }
    found.retain(|slice| slice.name.end.time < bound && !needed.contains(slice));
    found
}

/// Whether the record of a gap is old, and nothing is stored before the gap any more.
fn is_forgotten(gap: &StoredGap, left: &History, bound: Timestamp) -> bool {
    let end = gap.record.end.position.order();
    let slices = left.slices_of(gap.epoch).filter(|slice| slice.stream == gap.stream);
    let snapshots = left.snapshots_of(gap.epoch);
    let points = slices
        .map(|slice| &slice.name.start)
        .chain(snapshots.filter_map(|snapshot| snapshot.consistent_at(&gap.stream)));
    gap.record.end.time < bound && points.into_iter().all(|point| point.position.order() >= end)
}
