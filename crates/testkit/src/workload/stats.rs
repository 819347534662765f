//! What a workload did.

use std::collections::BTreeMap;
use std::fmt;

/// Counts of operations, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kind of operation, as `update $push`, to its counts.
    pub kinds: BTreeMap<&'static str, Counts>,
    /// Pauses so far.
    pub pauses: u64,
    /// Transactions that were open during a pause, counted once per pause.
    pub held_transactions: u64,
}

/// How the operations of one kind ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// They changed something.
    pub done: u64,
    /// They were accepted and changed nothing, or were not tried as a transaction is open there.
    pub nothing: u64,
    /// The server refused them, for a reason that is legitimate here.
    pub refused: u64,
    /// Error code to how often it was tolerated; one operation can have several.
    pub errors: BTreeMap<i32, u64>,
}

impl Stats {
    /// All operations that changed something.
    pub fn done(&self) -> u64 {
        self.kinds.values().map(|counts| counts.done).sum()
    }

    /// Tolerated errors of all kinds of operations, by code.
    pub fn errors(&self) -> BTreeMap<i32, u64> {
        let mut errors = BTreeMap::new();
        for (code, count) in self.kinds.values().flat_map(|counts| &counts.errors) {
            *errors.entry(*code).or_default() += count;
        }
        errors
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, counts) in &self.kinds {
            let Counts { done, nothing, refused, errors } = counts;
            writeln!(f, "{kind:28} {done:6} done {nothing:6} nothing {refused:6} refused {errors:?}")?;
        }
        write!(f, "{} pauses, {} transactions open in them", self.pauses, self.held_transactions)
    }
}
