//! Keeps transactions and changes of the catalog out of each other's way.
//!
//! A transaction holds its locks until its end, and commands that need a stronger lock (drop, rename, index builds) wait
//! for it, with everyone else queueing behind them. A worker that waits for its own transaction would wait forever, so
//! such commands are left out where a transaction is open, and the other way round. Commands of the same side don't
//! exclude each other: the server has to cope with drops during index builds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::names::Namespace;

/// Who pins a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// An open transaction.
    Transaction,
    /// A command that changes the catalog.
    Catalog,
}

/// The names pinned now: databases, and namespaces (which have a dot and thus differ from databases).
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Mutex<HashMap<String, (Side, usize)>>>);

/// A pinned name, free again when dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Pins,
    name: String,
}

impl Pins {
    /// Pins a collection, for a change of the catalog that leaves the rest of the database alone.
    pub(super) fn catalog(&self, namespace: &Namespace) -> Option<Pin> {
        self.pin(namespace.to_string(), Side::Catalog)
    }

    /// Pins a whole database, for a change of the catalog that locks all of it.
    pub(super) fn catalog_database(&self, database: &str) -> Option<Pin> {
        self.pin(database.to_owned(), Side::Catalog)
    }

    /// Pins a collection for a transaction.
    pub(super) fn transaction(&self, namespace: &Namespace) -> Option<[Pin; 2]> {
        let database = self.pin(namespace.database.to_owned(), Side::Transaction)?;
        Some([database, self.pin(namespace.to_string(), Side::Transaction)?])
    }

    fn pin(&self, name: String, side: Side) -> Option<Pin> {
        let mut pinned = self.lock();
        let (by, count) = pinned.entry(name.clone()).or_insert((side, 0));
        if *by != side {
            return None;
        }
        *count += 1;
        Some(Pin { pins: self.clone(), name })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Side, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.pins.lock();
        if let Some((_, count)) = pinned.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                pinned.remove(&self.name);
            }
        }
    }
}
