//! PostgreSQL: base backups, the write-ahead log, recoveries into a new cluster.
//!
//! - [`wire`] speaks the protocol for replication and simple queries, [`Address`] says with whom;
//! - [`base`] takes base backups, and checks what is stored of them;
//! - [`wal`] reads the log; [`slot`] and [`follow`] see to it that none of it is lost, [`synchronous`] that commits wait for it;
//!   [`check`] reads what is stored of it;
//! - [`lineage`] tells a server from a copy of it;
//! - [`find`] looks for restore points that are no times; [`restore`] unpacks a base, and gives a server its log up to one;
//! - [`scratch`] does so for a trial.

mod address;
pub mod base;
pub mod check;
pub mod cluster;
mod feed;
pub mod find;
pub mod follow;
#[doc(hidden)]
pub mod fuzzing;
pub mod grants;
pub mod lineage;
mod lsn;
mod members;
mod point;
pub mod restore;
pub mod scratch;
mod server;
pub mod slot;
mod summary;
pub mod synchronous;
pub mod wal;
pub mod wire;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use async_trait::async_trait;
use hindsight_catalog::{History, RestorePlan, Stretch, Target};
use hindsight_engine::{
    BackupType, Content, DataCheck, Destination, Engine, EngineError, FailureKind, Grant, Job, Kept, LogCheck,
    LogRequest, LogStart, Preview, Probe, ReplayTotals, RestoreOptions, Restored, Result, Scratch, ScratchRequest,
    Selection, SnapshotRequest, Spoken, Synchronous, Words,
};
use hindsight_format::{Point, SnapshotManifest};
use hindsight_repository::ClusterRepository;
use secrecy::{ExposeSecret as _, SecretString};

pub use address::{Address, ChannelBinding, Host, RootCertificates, Seat, SslMode, TargetSession};
pub use lsn::{Lsn, NotAnLsn, TimelineId};
pub use point::{of_point, of_position, point};

/// Name of the engine in everything stored.
pub const NAME: &str = "postgresql";

/// Name of its only stream.
pub const STREAM: &str = "wal";

/// What things are called.
pub const WORDS: Words =
    Words { container: ("database", "databases"), item: ("file", "files"), index: None, log: "WAL", comment: "--" };

/// The verb that a server runs which recovers: see [`help`].
pub const HELPER: &str = "restore-wal";

/// Gets a server that recovers a file of the log: `--socket SOCKET FILE TO`. The exit code is for that server.
pub fn help(arguments: &[OsString]) -> ExitCode {
    match arguments {
        [flag, socket, file, to] if flag == "--socket" => {
            // No file of the log has another name than one of plain letters.
            restore::serve::ask(Path::new(socket), &file.to_string_lossy(), Path::new(to))
        }
        // Above 125: the recovery ends.
        _ => ExitCode::from(u8::MAX),
    }
}

/// A PostgreSQL cluster, by its connection string.
pub struct PostgresEngine {
    uri: SecretString,
}

impl PostgresEngine {
    /// Whether a connection string is for this engine.
    pub fn accepts(uri: &str) -> bool {
        uri.starts_with("postgresql://") || uri.starts_with("postgres://")
    }

    /// An engine for `uri`; nothing is connected yet.
    pub fn new(uri: impl Into<String>) -> Self {
        Self { uri: SecretString::from(uri.into()) }
    }

    fn address(&self) -> Result<Address> {
        match self.uri.expose_secret() {
            "" => Err(EngineError::new(FailureKind::Address, "no server was named")),
            uri => Ok(Address::parse(uri)?),
        }
    }

    /// The server that is meant, of several that were named.
    async fn leader(&self) -> Result<Address> {
        Ok(members::leader(&self.address()?).await?.address)
    }
}

#[async_trait]
impl Engine for PostgresEngine {
    fn words(&self) -> &'static Words {
        &WORDS
    }

    fn parse_point(&self, text: &str) -> Option<Spoken> {
        find::parse(text)
    }

    async fn find(&self, source: &ClusterRepository, history: &History, text: &str) -> Result<Target> {
        find::find(source, history, text).await
    }

    fn grants(&self) -> Vec<Grant> {
        grants::grants()
    }

    async fn probe(&self) -> Result<Probe> {
        cluster::probe(&self.leader().await?).await
    }

    async fn keep_log(&self, cluster: &ClusterRepository, keep: bool) -> Result<Kept> {
        slot::keep(&self.address()?, cluster, keep).await
    }

    fn copies_share_identity(&self) -> bool {
        true
    }

    async fn departure(&self, stored: &[Point]) -> Result<Option<String>> {
        lineage::departure(&self.leader().await?, stored).await
    }

    fn accept_type(&self, wanted: Option<BackupType>) -> Result<()> {
        base::accept_type(wanted)
    }

    async fn snapshot(&self, job: &Job, request: &SnapshotRequest) -> Result<SnapshotManifest> {
        base::take(&self.leader().await?, job, request).await
    }

    async fn describe(&self, cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Vec<Content>> {
        base::describe(cluster, manifest).await
    }

    async fn synchronous(&self, cluster: &ClusterRepository) -> Result<Synchronous> {
        synchronous::look(&self.address()?, cluster).await
    }

    async fn came_by(&self, cluster: &ClusterRepository, stored: &[Point]) -> Result<Option<Point>> {
        follow::came_by(&self.address()?, cluster, stored).await
    }

    async fn open_log(&self, request: &LogRequest<'_>) -> Result<LogStart> {
        follow::open(&self.address()?, request).await
    }

    fn accept(&self, destination: &Destination) -> Result<()> {
        restore::accept(destination)
    }

    async fn prepare_restore(
        &self,
        source: &ClusterRepository,
        plan: &RestorePlan,
        selection: &Selection,
        destination: &Destination,
    ) -> Result<Preview> {
        restore::prepare(source, plan, selection, destination).await
    }

    async fn restore(
        &self,
        job: &Job,
        plan: &RestorePlan,
        selection: &Selection,
        destination: &Destination,
        preview: &Preview,
        options: &RestoreOptions,
    ) -> Result<Restored> {
        restore::run(job, plan, selection, destination, preview, options).await
    }

    fn accept_replay(&self) -> Result<()> {
        Err(EngineError::new(FailureKind::Unsupported, "PostgreSQL applies its log as a part of a restore alone")
            .hint("restore with --target-dir: it ends at any moment, with the log until then applied"))
    }

    async fn replay(&self, _job: &Job, _stretch: &Stretch, _scratch: std::path::PathBuf) -> Result<ReplayTotals> {
        self.accept_replay().map(|()| ReplayTotals::default())
    }

    async fn check_data(&self, cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Box<dyn DataCheck>> {
        Ok(Box::new(base::SnapshotCheck::of(cluster, manifest).await?))
    }

    fn check_log(&self, start: &Point, end: &Point) -> Result<Box<dyn LogCheck>> {
        Ok(Box::new(check::LogPieceCheck::new(start, end)?))
    }

    async fn start_scratch(&self, request: &ScratchRequest) -> Result<Box<dyn Scratch>> {
        Ok(Box::new(scratch::ScratchServer::start(request).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_are_told_from_those_of_others() {
        assert!(PostgresEngine::accepts("postgresql://h/") && PostgresEngine::accepts("postgres:///x"));
        assert!(!PostgresEngine::accepts("mongodb://h/") && !PostgresEngine::accepts("host=/run/postgresql"));
    }

    #[tokio::test]
    async fn without_a_server_there_is_nothing_to_ask_and_the_log_is_never_applied_alone() {
        let engine = PostgresEngine::new("");
        assert!(engine.probe().await.is_err());
        let refused = engine.accept_replay().unwrap_err();
        assert!(refused.hint.is_some_and(|hint| hint.contains("--target-dir")), "{}", refused.what);
    }
}
