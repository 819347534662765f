//! PostgreSQL: what a point-in-time recovery of it is made of.
//!
//! `wire` speaks the protocol for replication and simple queries, `wal` and `base` read what comes over it, `restore` gives
//! it back to a server.

mod address;
pub mod base;
pub mod check;
pub mod cluster;
pub mod follow;
pub mod grants;
mod lsn;
mod point;
pub mod restore;
pub mod slot;
mod summary;
pub mod wal;
pub mod wire;

pub use address::{Address, ChannelBinding, Host, RootCertificates, Seat, SslMode, TargetSession};
pub use lsn::{Lsn, NotAnLsn, TimelineId};
pub use point::{of_point, of_position, point};

/// Name of the engine in everything stored.
pub const NAME: &str = "postgresql";

/// Name of the only stream of its log.
pub const STREAM: &str = "wal";
