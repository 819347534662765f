//! The oplog: its entries, its transactions, its updates.

pub mod diff;
pub mod docid;
pub mod entry;
pub(crate) mod reader;
pub(crate) mod transactions;
