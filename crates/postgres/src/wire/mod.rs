//! A client for PostgreSQL's protocol: simple queries, base backups and the stream of the log.
//!
//! It stands on `postgres-protocol`, which brings SCRAM and the codecs of nearly all messages, is what `tokio-postgres`
//! rests on, and is maintained with it. `tokio-postgres` itself has no replication. `pgwire-replication` is for logical
//! replication only. `pg_walstream` does physical replication and base backups, but logical replication is what it is made for:
//! it is young, changes with each release, is many times of what is needed here, and brings its own connection strings, TLS and errors.
//!
//! Nothing is buffered but one message at a time: a server is as fast as what it sends is asked for. What comes in copies is
//! handed on as it lies in the buffer that it was read into.

mod backup;
mod channel;
mod commands;
mod connect;
mod connection;
mod error;
mod refusal;
mod socket;
mod startup;
mod stream;
mod tls;
mod upload;
mod verifier;

#[cfg(test)]
pub(crate) mod scripted;

pub use backup::{
    BackupEvent, BackupOptions, BackupPosition, BaseBackup, Compression, CompressionMethod, ManifestChecksums,
    Tablespace,
};
pub use commands::{SlotPosition, SystemIdentity, TimelineHistory};
pub use connection::{Connection, Row, quote_name, quote_text};
pub use error::{Error, Result, ServerError};
pub(crate) use refusal::code;
pub use startup::Replication;
pub use stream::{Keepalive, StandbyStatus, TimelineEnd, WalData, WalEvent, WalStream};
