//! MongoDB replica sets: snapshots, the oplog, restores.
//!
//! - [`oplog`] reads entries, puts transactions together, applies updates, follows a live oplog;
//! - `snapshot` dumps, with the piece of oplog that makes the dump consistent;
//! - `fold` turns a base and the log after it into what exists at a restore point;
//! - `restore` streams the base, merged with the fold, into a server that only sees inserts;
//! - `check` reads what is stored without a server, `scratch` starts one to restore into for a trial.

mod check;
mod cluster;
mod failure;
mod fold;
#[doc(hidden)]
pub mod fuzzing;
mod grants;
mod namespace;
pub mod oplog;
mod optime;
mod replay;
mod restore;
mod scratch;
mod snapshot;

use std::path::PathBuf;

use async_trait::async_trait;
use hindsight_catalog::{RestorePlan, Stretch, Target};
use hindsight_engine::{
    BackupType, Content, DataCheck, Destination, Engine, EngineError, FailureKind, Grant, Job, LogCheck, LogRequest,
    LogStart, Preview, Probe, ReplayTotals, RestoreOptions, Restored, Result, Scratch, ScratchRequest, Selection,
    SnapshotRequest, Spoken, Words,
};
use hindsight_format::{Point, SnapshotManifest};
use hindsight_repository::ClusterRepository;

use cluster::{Cluster, progress};
use oplog::reader::{self, Opened, OplogReader};
use optime::Optime;

/// Name of the engine in everything stored.
pub const NAME: &str = "mongodb";

/// What things are called.
pub const WORDS: Words = Words {
    container: ("collection", "collections"),
    item: ("document", "documents"),
    index: Some(("index", "indexes")),
    log: "oplog",
    comment: "//",
};

/// A MongoDB replica set, by its connection string.
pub struct MongoEngine {
    uri: String,
}

impl MongoEngine {
    /// Whether a connection string is for this engine.
    pub fn accepts(uri: &str) -> bool {
        uri.starts_with("mongodb://") || uri.starts_with("mongodb+srv://")
    }

    /// An engine for `uri`; nothing is connected yet.
    pub fn new(uri: impl Into<String>) -> Self {
        Self { uri: uri.into() }
    }

    async fn cluster(&self) -> Result<Cluster> {
        Cluster::connect(&self.uri).await
    }
}

#[async_trait]
impl Engine for MongoEngine {
    fn words(&self) -> &'static Words {
        &WORDS
    }

    fn parse_point(&self, text: &str) -> Option<Spoken> {
        let (secs, inc) = text.split_once(',')?;
        let (secs, inc): (u32, u32) = (secs.trim().parse().ok()?, inc.trim().parse().ok()?);
        let time = jiff::Timestamp::from_second(secs.into()).ok()?;
        Some(Spoken::Target(Target::Through { time, order: Optime::order_text(secs, inc) }))
    }

    fn grants(&self) -> Vec<Grant> {
        grants::grants()
    }

    async fn probe(&self) -> Result<Probe> {
        let cluster = self.cluster().await?;
        let head = progress(&cluster.client).await?.committed.point()?;
        let log_start = Some(reader::oldest(&cluster.client).await?.point()?);
        let log_room = reader::room(&cluster.client).await;
        Ok(Probe {
            engine: NAME,
            members: cluster.members(),
            identity: cluster.identity,
            natural_name: cluster.set_name.clone(),
            streams: vec![cluster.set_name],
            version: cluster.version,
            head,
            log_start,
            log_room,
            warnings: Vec::new(),
        })
    }

    fn accept_type(&self, wanted: Option<BackupType>) -> Result<()> {
        snapshot::require_logical(wanted)
    }

    async fn snapshot(&self, job: &Job, request: &SnapshotRequest) -> Result<SnapshotManifest> {
        snapshot::take(&self.cluster().await?, job, request).await
    }

    async fn describe(&self, cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Vec<Content>> {
        let catalog = snapshot::stored::load(cluster, manifest).await?;
        let mut collections: Vec<_> =
            catalog.collections.iter().map(snapshot::stored::StoredCollection::info).collect();
        collections.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(collections)
    }

    async fn open_log(&self, request: &LogRequest<'_>) -> Result<LogStart> {
        let source = self.cluster().await?.source().await?;
        let after = match request.after {
            Some(point) => Optime::from_point(point)?,
            None => source.progress().await?.committed,
        };
        Ok(match OplogReader::open(&source.client, after).await? {
            Opened::Continues(reader) => LogStart::Continues { reader, at: after.point()? },
            Opened::Lost(cause) => LogStart::Lost { cause },
        })
    }

    fn accept(&self, destination: &Destination) -> Result<()> {
        match destination {
            Destination::Connected => Ok(()),
            Destination::Directory(_) => Err(EngineError::new(
                FailureKind::Unsupported,
                "MongoDB is restored into a replica set that runs, not into a directory",
            )
            .hint("start a replica set, and name it with --uri instead of --target-dir")),
        }
    }

    async fn prepare_restore(
        &self,
        source: &ClusterRepository,
        plan: &RestorePlan,
        selection: &Selection,
        _destination: &Destination,
    ) -> Result<Preview> {
        restore::prepare(&self.cluster().await?, source, plan, selection).await
    }

    async fn restore(
        &self,
        job: &Job,
        plan: &RestorePlan,
        selection: &Selection,
        _destination: &Destination,
        _preview: &Preview,
        options: &RestoreOptions,
    ) -> Result<Restored> {
        let totals = restore::run(&self.cluster().await?, job, plan, selection, options).await?;
        Ok(Restored { totals, ..Restored::default() })
    }

    async fn replay(&self, job: &Job, stretch: &Stretch, scratch: PathBuf) -> Result<ReplayTotals> {
        replay::run(&self.cluster().await?, job, stretch, scratch).await
    }

    async fn check_data(&self, cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Box<dyn DataCheck>> {
        Ok(Box::new(check::SnapshotCheck::of(cluster, manifest).await?))
    }

    fn check_log(&self, start: &Point, end: &Point) -> Result<Box<dyn LogCheck>> {
        Ok(Box::new(check::OplogCheck::new(start, end)?))
    }

    async fn start_scratch(&self, request: &ScratchRequest) -> Result<Box<dyn Scratch>> {
        Ok(Box::new(scratch::ScratchServer::start(request).await?))
    }
}

/// Where a log ends.
pub(crate) fn cut(cut: &hindsight_catalog::Cut) -> Result<fold::Cut> {
    Ok(match cut {
        hindsight_catalog::Cut::AtSnapshotEnd => fold::Cut::Nowhere,
        hindsight_catalog::Cut::Before(time) => {
            // Whole seconds: nothing of the second of T itself, and nothing after it.
            let ceiling = time.as_second() + i64::from(time.subsec_nanosecond() > 0);
            fold::Cut::Before(
                u32::try_from(ceiling).map_err(|_| EngineError::damaged(format!("{time} is no time of an oplog")))?,
            )
        }
        hindsight_catalog::Cut::Through { order } => {
            let parse = || {
                let (secs, inc) = order.split_once('.')?;
                Some(fold::Cut::Through(secs.parse().ok()?, inc.parse().ok()?))
            };
            parse().ok_or_else(|| EngineError::damaged(format!("{order} is no position of an oplog")))?
        }
    })
}

#[cfg(test)]
mod tests {
    use hindsight_engine::Directory;

    use super::*;

    #[test]
    fn files_are_never_copied() {
        let engine = MongoEngine::new("");
        for wanted in [None, Some(BackupType::Logical)] {
            engine.accept_type(wanted).unwrap();
        }
        for wanted in [BackupType::Physical, BackupType::Incremental, BackupType::External] {
            let refused = engine.accept_type(Some(wanted)).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Unsupported);
            assert!(refused.hint.is_some_and(|hint| hint.contains("--type logical")), "{}", refused.what);
        }
    }

    #[test]
    fn directories_are_refused() {
        let engine = MongoEngine::new("");
        let refused = engine.accept(&Destination::Directory(Directory::new("/data"))).unwrap_err();
        assert!(refused.hint.is_some_and(|hint| hint.contains("--target-dir")), "{}", refused.what);
        assert!(engine.accept(&Destination::Connected).is_ok());
    }
}
