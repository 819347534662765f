//! PostgreSQL: what a point-in-time recovery of it is made of.
//!
//! `wire` speaks the protocol for replication and simple queries, `wal` and `base` read what comes over it, `restore` gives
//! it back to a server.

mod address;
pub mod base;
mod feed;
pub mod find;
mod lsn;
mod point;
pub mod restore;
pub mod scratch;
mod server;
pub mod wal;
pub mod wire;

/// Name of the engine in everything stored.
pub const NAME: &str = "postgresql";

pub use address::{Address, ChannelBinding, Host, RootCertificates, Seat, SslMode, TargetSession};
pub use lsn::{Lsn, NotAnLsn, TimelineId};
pub use point::{of_point, of_position, point};
