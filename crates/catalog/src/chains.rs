//! Chains: the runs of log whose slices really meet.

use hindsight_format::{Point, StoredSlice};

use crate::history::History;
use crate::log::Log;

/// An unbroken run of one stream: each slice starts at the very position where the one before ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The stream.
    pub stream: String,
    /// The epoch of the cluster's history.
    pub epoch: u64,
    /// Where it starts (exclusive).
    pub start: Point,
    /// Where it ends (inclusive).
    pub end: Point,
    /// The slices that make it up, in order: of all paths that reach the end the one with the
    /// fewest slices.
    pub slices: Vec<StoredSlice>,
}

/// The chains of all streams, by epoch, stream and start; an epoch that branches off another has what counts of its slices in its chains, too.
///
/// A chain begins at a position where no slice ends and takes the path that reaches furthest, and among
/// those the latest time; among equals the one over the fewest slices, then over the higher fence. A chain that lies within
/// another one is left out. Chains may overlap, where slices do without meeting. The time it takes
/// grows with the number of slices as sorting them does.
pub fn chains(history: &History) -> Vec<Chain> {
    let mut chains = Vec::new();
    for ((epoch, stream), log) in Log::by_stream(history) {
        for first in log.runs() {
            let slices: Vec<_> = log.path(first).map(|index| log.slices()[index].clone()).collect();
            let start = log.slices()[first].name.start.clone();
            chains.push(Chain { stream: stream.to_owned(), epoch, start, end: log.reach(first).clone(), slices });
        }
    }
    chains
}
