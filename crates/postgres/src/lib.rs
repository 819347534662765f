//! PostgreSQL: what a point-in-time recovery of it is made of.
//!
//! `wire` speaks the protocol for replication and simple queries, `wal` reads what comes over it.

mod lsn;
pub mod wal;
pub mod wire;

pub use lsn::{Lsn, TimelineId};
