//! Folding the oplog: from a base and the entries after it to what exists at the restore point,
//! without a server.
//!
//! The entries are walked once. Commands change the [`catalog`]; inserts, updates and deletes become one net
//! [`effects`] per document. What is asked for afterwards: which collections there are, with which
//! options and indexes, and for each document of the base, what has become of it.

mod catalog;
mod effects;
mod pass;
mod spill;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use hindsight_engine::EngineError;

pub(crate) use catalog::{Catalog, Collection, rebuildable};
pub(crate) use pass::{Buffers, Pass};

use crate::namespace;
use crate::oplog::entry::{Entry, Op, Operation};
use crate::oplog::transactions::{Sink, Transactions};
use crate::optime::Optime;
use effects::Effects;

/// Where the log ends for a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All of it counts.
    Nowhere,
    /// Entries before this second count.
    Before(u32),
    /// Entries up to this `ts` count.
    Through(u32, u32),
}

impl Cut {
    /// Whether an entry counts.
    pub(crate) fn includes(self, at: Optime) -> bool {
        match self {
            Self::Nowhere => true,
            Self::Before(secs) => at.secs < secs,
            Self::Through(secs, inc) => (at.secs, at.inc) <= (secs, inc),
        }
    }
}

/// What the base is, as far as folding needs to know.
pub(crate) struct Base {
    /// Its collections.
    pub(crate) catalog: Catalog,
    /// The data were read after this: what commits up to here is in them.
    pub(crate) read_from: Optime,
    /// The data and the log up to here give a consistent state.
    pub(crate) consistent_at: Optime,
    /// Not all collections are in it.
    pub(crate) selective: bool,
}

/// A fold that is going on.
pub(crate) struct Fold {
    transactions: Transactions,
    state: State,
    cut: Cut,
    last: Option<Optime>,
    records: u64,
}

struct State {
    catalog: Catalog,
    effects: Effects,
    consistent_at: Optime,
    selective: bool,
}

/// The result: what there is at the restore point.
pub(crate) struct Folded {
    /// The collections that exist.
    pub(crate) catalog: Catalog,
    /// What became of the documents, in one or more passes over the base.
    pub(crate) effects: pass::Passes,
    /// Entries that counted.
    pub(crate) records: u64,
}

impl Fold {
    /// Begins with `base`. `memory` bounds (about) the bytes kept before they spill to `scratch`.
    pub(crate) fn new(base: Base, cut: Cut, memory: usize, scratch: PathBuf) -> Self {
        Self {
            transactions: Transactions::new(base.read_from, scratch.clone()),
            state: State {
                catalog: base.catalog,
                effects: Effects::new(memory, scratch),
                consistent_at: base.consistent_at,
                selective: base.selective,
            },
            cut,
            last: None,
            records: 0,
        }
    }

    /// Takes the next entry. Entries already taken are passed over, so that pieces of log may
    /// overlap. False once the cut is reached: nothing after it will count.
    pub(crate) fn feed(&mut self, raw: &[u8]) -> Result<bool, EngineError> {
        let entry = Entry::parse(raw)?;
        if !self.cut.includes(entry.at) {
            return Ok(false);
        }
        if self.last.is_some_and(|last| entry.at <= last) {
            return Ok(true);
        }
        self.last = Some(entry.at);
        self.records += 1;
        self.transactions.feed(&entry, &mut self.state).map_err(|error| at(error, entry.at))?;
        Ok(true)
    }

    /// The optime of the last entry that counted.
    pub(crate) fn last(&self) -> Option<Optime> {
        self.last
    }

    /// Ends the fold. Transactions that are still open did not happen.
    pub(crate) fn finish(self) -> Result<Folded, EngineError> {
        self.state.catalog.check_names()?;
        let effects = self.state.effects.finish(&self.state.catalog)?;
        Ok(Folded { catalog: self.state.catalog, effects, records: self.records })
    }
}

fn at(mut error: EngineError, optime: Optime) -> EngineError {
    error.what = format!("at {optime} of the log: {}", error.what);
    error
}

impl Sink for State {
    fn operation(&mut self, operation: &Operation<'_>, at: Optime) -> Result<(), EngineError> {
        if operation.op == Op::Command {
            for gone in self.catalog.apply(operation)? {
                self.effects.forget(&gone);
            }
            if let Some(emptied) = self.catalog.take_emptied() {
                self.effects.empty(emptied);
            }
            return Ok(());
        }
        let (db, coll) = namespace::split(operation.ns);
        if !namespace::is_protected(db, coll) {
            return Ok(());
        }
        let uuid = operation.uuid.or_else(|| self.catalog.find(operation.ns));
        let Some(uuid) = uuid.filter(|uuid| at <= self.consistent_at || self.catalog.contains(uuid)) else {
            if self.selective || at <= self.consistent_at {
                return Ok(());
            }
            return Err(EngineError::damaged(format!("a write to {}, which the snapshot does not know", operation.ns))
                .hint("this is a defect: restore from another snapshot, and report it"));
        };
        self.effects.apply(uuid, operation, at > self.consistent_at)?;
        if self.effects.is_over_budget() {
            self.effects.spill(&self.catalog)?;
        }
        Ok(())
    }
}
