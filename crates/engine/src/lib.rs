//! What a database has to offer so that Hindsight can protect it.
//!
//! An [`Engine`] knows one database: who it is, how to take a snapshot, how to follow its log, how
//! to bring back a state. It does not know who calls it, nor what else is in the repository.
//! Leases, epochs, settings and records are the business of the jobs above.

mod check;
mod destination;
mod error;
mod log;
mod progress;
mod restore;
mod scratch;
mod throttle;
mod words;

use async_trait::async_trait;
use hindsight_catalog::{History, RestorePlan, Stretch, Target};
use hindsight_format::{ClusterIdentity, Point, SnapshotManifest};
use hindsight_repository::ClusterRepository;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use check::{DataCheck, LogCheck};
pub use destination::{Destination, Directory};
pub use error::{EngineError, FailureKind};
pub use log::{Kept, LogBuffer, LogReader, LogRequest, LogStart, Synchronous, Wait};
pub use progress::{Progress, Step};
pub use restore::{NamespaceChange, Preview, Reached, Renaming, Restored, Selection, SelectionError};
pub use scratch::{Examined, Scratch, ScratchRequest};
pub use throttle::Throttle;
pub use words::{Noun, Words};

/// Result of an engine's work.
pub type Result<T> = std::result::Result<T, EngineError>;

/// One database cluster, reached over its own protocol.
#[async_trait]
pub trait Engine: Send + Sync {
    /// What it calls things.
    fn words(&self) -> &'static Words;

    /// The restore point meant by `text` when it is no time but something else that this database knows, such as a
    /// position (MongoDB: `T,I`); none when it is not that. Needs no connection.
    fn parse_point(&self, text: &str) -> Option<Spoken>;

    /// Looks for a restore point that [`Engine::parse_point`] left to be found in what is stored of `source`. Needs no
    /// database.
    async fn find(&self, _source: &ClusterRepository, _history: &History, text: &str) -> Result<Target> {
        Err(EngineError::new(FailureKind::Unsupported, format!("{text:?} cannot be looked for in the log")))
    }

    /// The users to create for each kind of work, with the least rights that suffice. Needs no connection.
    fn grants(&self) -> Vec<Grant>;

    /// Who this is and how it is. Refuses what cannot be protected, saying why.
    async fn probe(&self) -> Result<Probe>;

    /// Whether a copy of a database has its identity, so that [`Engine::departure`] has something to tell them apart by.
    fn copies_share_identity(&self) -> bool {
        false
    }

    /// Why this database does not go on from what is stored, as a sentence; none where it does. `stored` are points of one stream
    /// that whoever goes on has come by, oldest first; the last is the newest. A copy left that history there or before, and so did
    /// a server that took the place of another that had come further. Where the identity of a database is that of its history,
    /// there is nothing to ask.
    async fn departure(&self, _stored: &[Point]) -> Result<Option<String>> {
        Ok(None)
    }

    /// Refuses a way to make snapshots that it does not have, saying which to use instead. Nothing else decides on that. Needs no
    /// database.
    fn accept_type(&self, wanted: Option<BackupType>) -> Result<()>;

    /// Takes a snapshot, in a way that it accepts, and stores all of it but the manifest, which is returned. How far it came is noted below
    /// [`hindsight_format::CHECKPOINTS`], so that another call can go on with one that was cut off.
    async fn snapshot(&self, job: &Job, request: &SnapshotRequest) -> Result<SnapshotManifest>;

    /// What a snapshot holds, by name. Reads the repository alone: no database is needed.
    async fn describe(&self, cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Vec<Content>>;

    /// Sees to it that the server keeps its log until it is captured, or no longer does; refuses where it cannot, saying
    /// why. May be called again and again. Where servers keep their log by themselves, as long as it has room, there is
    /// nothing to do.
    async fn keep_log(&self, _cluster: &ClusterRepository, _keep: bool) -> Result<Kept> {
        Ok(Kept::ByItself)
    }

    /// Whether the server's commits wait until they are in the repository. Refuses, saying why, where none ever can.
    async fn synchronous(&self, _cluster: &ClusterRepository) -> Result<Synchronous> {
        Err(EngineError::new(FailureKind::Unsupported, "the commits of this database cannot wait for the capture")
            .hint("leave pitr.synchronous off: what is committed is stored within pitr.uploadIntervalSec"))
    }

    /// Of points of a stored history that this database has left ([`LogStart::Left`]), in their order, the last one that its own
    /// has come by, too; none where that is not known. That it really goes on from there is for [`Engine::open_log`] to say.
    async fn came_by(&self, _cluster: &ClusterRepository, _stored: &[Point]) -> Result<Option<Point>> {
        Ok(None)
    }

    /// Starts to follow the log.
    async fn open_log(&self, request: &LogRequest<'_>) -> Result<LogStart>;

    /// Refuses a destination into which it restores nothing, saying what to name instead. Needs no database.
    fn accept(&self, destination: &Destination) -> Result<()>;

    /// Everything that can be checked and told before a restore, without changing anything. `destination` is one that it
    /// accepts.
    async fn prepare_restore(
        &self,
        source: &ClusterRepository,
        plan: &RestorePlan,
        selection: &Selection,
        destination: &Destination,
    ) -> Result<Preview>;

    /// Brings the data to the state that `plan` names. `preview` is what was shown before.
    async fn restore(
        &self,
        job: &Job,
        plan: &RestorePlan,
        selection: &Selection,
        destination: &Destination,
        preview: &Preview,
        options: &RestoreOptions,
    ) -> Result<Restored>;

    /// Refuses, saying why, where the log can only be applied as a part of a restore. Needs no database.
    fn accept_replay(&self) -> Result<()> {
        Ok(())
    }

    /// Applies a stretch of the log on top of what the database holds. `scratch` takes what does not fit in
    /// memory.
    async fn replay(&self, job: &Job, stretch: &Stretch, scratch: std::path::PathBuf) -> Result<ReplayTotals>;

    /// What checks the stored data of a snapshot. Reads its catalog from the repository; needs no database.
    async fn check_data(&self, cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Box<dyn DataCheck>>;

    /// What checks a slice that holds the log after `start`, up to and including `end`. Needs no database.
    fn check_log(&self, start: &Point, end: &Point) -> Result<Box<dyn LogCheck>>;

    /// Starts a server of its own, to restore into. Needs no database.
    async fn start_scratch(&self, request: &ScratchRequest) -> Result<Box<dyn Scratch>>;
}

/// A restore point that is no time, as it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// It is known which it is.
    Target(Target),
    /// It is to be looked for in what is stored: a position alone does not tell its time, a name not even the position.
    ToFind(String),
}

/// A user with the least rights for a kind of work.
#[derive(Clone, Debug, Serialize)]
pub struct Grant {
    /// What for.
    pub purpose: String,
    /// Name of the user.
    pub user: String,
    /// The command for the database's own shell, which asks for the password.
    pub command: String,
    /// The same for programs, without a password.
    pub statement: serde_json::Value,
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplayTotals {
    /// Operations carried out.
    pub operations: u64,
    /// Writes to what was not there: the data had come further than that already.
    pub passed_over: u64,
}

/// What every long job has: where it stores or reads, how it tells its progress, how it is stopped.
#[derive(Clone, Debug)]
pub struct Job {
    /// The cluster's part of the repository.
    pub cluster: ClusterRepository,
    /// Where progress is told.
    pub progress: Progress,
    /// Cancelled when the job must stop: asked to, or its lease was lost.
    pub cancel: CancellationToken,
    /// How fast it may read or write the database.
    pub throttle: Throttle,
}

impl Job {
    /// An error once the job was cancelled; called between the steps of long work.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(EngineError::cancelled()) } else { Ok(()) }
    }

    /// Waits until `bytes` more may be read from or written to the database. An error once the job was cancelled.
    pub async fn pass(&self, bytes: u64) -> Result<()> {
        tokio::select! {
            () = self.throttle.pass(bytes) => self.check(),
            () = self.cancel.cancelled() => Err(EngineError::cancelled()),
        }
    }
}

/// What kind of snapshot to take.
#[derive(Clone, Debug)]
pub struct SnapshotRequest {
    /// Its name.
    pub id: String,
    /// The epoch it belongs to.
    pub epoch: u64,
    /// How it is to be made, as the engine accepts it; none for its own way.
    pub wanted: Option<BackupType>,
    /// The snapshot that an incremental one is to build upon, which lacks nothing itself; none for all others.
    pub parent: Option<SnapshotManifest>,
    /// Namespace patterns it is limited to; empty for all.
    pub namespaces: Vec<String>,
    /// zstd level.
    pub compression_level: i32,
    /// Readers at the same time; 0 lets the engine choose.
    pub parallel: u32,
    /// Whether to keep hashes of the data, where the moment allows it.
    pub hash: bool,
    /// Bytes, before compression, after which each reader notes how far it came.
    pub checkpoint: u64,
    /// Whether to go on with what is stored under this name, from where that was noted last.
    pub resume: bool,
}

/// How a snapshot can be asked to be made. Which of them there are is the engine's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupType {
    /// By reading rows or documents.
    Logical,
    /// By copying files.
    Physical,
    /// By copying what has changed in them.
    Incremental,
    /// By somebody else, who is told when.
    External,
}

impl std::fmt::Display for BackupType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Logical => "logical",
            Self::Physical => "physical",
            Self::Incremental => "incremental",
            Self::External => "external",
        })
    }
}

/// A container in a snapshot, as it was when it was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub name: String,
    /// Items in it.
    pub items: u64,
    /// Bytes before compression.
    pub bytes: u64,
    /// Its indexes, where the engine counts them.
    pub indexes: u64,
}

/// Stands between what only reads and what changes the target.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Called once, when everything that can be read and checked beforehand was; the target is
    /// changed only after this has returned.
    async fn cross(&self) -> Result<()>;

    /// Called after that when the target is again what it was before, untouched: the restore has failed, but did no harm.
    async fn undone(&self) -> Result<()> {
        Ok(())
    }
}

/// How to restore, where the user has a say.
#[derive(Clone)]
pub struct RestoreOptions {
    /// To be crossed before the first change.
    pub gate: std::sync::Arc<dyn Gate>,
    /// Connections that write at the same time; 0 lets the engine choose.
    pub parallel: u32,
    /// Bytes of memory for the folded log before it spills to disk, where the engine folds it.
    pub fold_memory: usize,
    /// Folder for what spills.
    pub scratch: std::path::PathBuf,
    /// Whether to touch the target without having read all data of the base before.
    pub skip_check: bool,
}

/// What an engine found out about its cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Name of the engine.
    pub engine: &'static str,
    /// Which cluster it is.
    pub identity: ClusterIdentity,
    /// The name it has by itself, used where the user gave none.
    pub natural_name: String,
    /// Its streams.
    pub streams: Vec<String>,
    /// Server version.
    pub version: String,
    /// Its members.
    pub members: Vec<Member>,
    /// The end of what is safely committed.
    pub head: Point,
    /// The oldest point that its own log still holds; none where its log does not tell the time of that.
    pub log_start: Option<Point>,
    /// How much its own log holds; none where it has no bounds.
    pub log_room: Option<LogRoom>,
    /// What is about to go wrong with it, as sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The bounds of a server's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogRoom {
    /// Bytes in it now. Where it is kept for the capture alone, these are not captured yet.
    pub used: u64,
    /// Bytes from which on it forgets its oldest part.
    pub capacity: u64,
    /// Seconds for which it keeps everything whatever the bytes; 0 where it does not promise any.
    pub kept_secs: u64,
}

/// A member of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    /// Host and port.
    pub host: String,
    /// What it is, such as `primary`.
    pub role: String,
    /// Whether it answers and is up to date.
    pub healthy: bool,
    /// Seconds behind the primary, where known.
    pub lag_secs: Option<i64>,
}
