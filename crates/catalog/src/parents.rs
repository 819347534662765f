//! Chains of snapshots: which one builds upon which.

use std::collections::HashSet;

use hindsight_format::SnapshotManifest;

use crate::footing::{Ground, rank};
use crate::history::History;
use crate::plan::find;
use crate::refusal::Refusal;

/// The snapshots that `snapshot` builds upon, nearest first; none where it holds everything itself.
///
/// # Errors
/// One of them is not stored, or cannot be read, or they go round in a circle.
pub fn parents<'a>(history: &'a History, snapshot: &SnapshotManifest) -> Result<Vec<&'a SnapshotManifest>, Refusal> {
    let mut chain: Vec<&SnapshotManifest> = Vec::new();
    let mut next = snapshot.parent.as_deref();
    while let Some(id) = next {
        let lacks = |lacks: String| Refusal::NotWhole { name: snapshot.id.clone(), lacks };
        let Some(parent) = history.snapshot(id) else {
            return Err(lacks(match history.damaged_snapshot(id) {
                Some(record) => format!("it builds upon {id}, and {record}"),
                None => format!("it builds upon {id}, which is not stored"),
            }));
        };
        if parent.id == snapshot.id || chain.iter().any(|known| known.id == parent.id) {
            return Err(lacks(format!("it builds upon {id}, which builds upon itself")));
        }
        chain.push(parent);
        next = parent.parent.as_deref();
    }
    Ok(chain)
}

/// The snapshots that build upon `id`, directly or not, oldest first.
pub fn children<'a>(history: &'a History, id: &str) -> Vec<&'a SnapshotManifest> {
    let (mut found, mut known) = (Vec::new(), HashSet::from([id]));
    // Round by round, as far as there are new ones.
    loop {
        let next = |snapshot: &&SnapshotManifest| {
            !known.contains(snapshot.id.as_str()) && snapshot.parent.as_deref().is_some_and(|id| known.contains(id))
        };
        let more: Vec<_> = history.snapshots.iter().filter(next).collect();
        if more.is_empty() {
            break;
        }
        known.extend(more.iter().map(|snapshot| snapshot.id.as_str()));
        found.extend(more);
    }
    found.sort_by_key(|snapshot| (snapshot.restore_time(), &snapshot.id));
    found
}

/// The snapshot that another one of `epoch` can build upon: the one that is `named`, or else the newest of all data that lacks
/// nothing.
///
/// # Errors
/// There is none, or the one that is named will not do.
pub fn to_build_upon<'a>(
    history: &'a History,
    epoch: u64,
    named: Option<&str>,
) -> Result<&'a SnapshotManifest, Refusal> {
    let Some(name) = named else {
        let ground = Ground::new(history);
        let of_epoch = ground.full().filter(|footing| footing.epoch == epoch);
        let newest = of_epoch.max_by_key(|footing| rank(footing.start)).map(|footing| footing.snapshot);
        return newest.ok_or(Refusal::NothingToBuildUpon);
    };
    let found = find(history, name)?;
    parents(history, found)?;
    if found.namespaces.is_empty() { Ok(found) } else { Err(Refusal::OnlyAPart { name: name.to_owned() }) }
}
