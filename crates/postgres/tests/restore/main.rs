//! Restores of real servers into new directories.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod drill;
mod histories;
mod in_place;
mod moments;
mod refused;
mod stored;
mod whole;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use hindsight_catalog::{Target, plan};
use hindsight_engine::{
    Destination, Directory, EngineError, Gate, Job, Preview, Progress, RestoreOptions, Restored, Selection, Spoken,
    Throttle,
};
use hindsight_postgres::{find, restore};
use hindsight_repository::ClusterRepository;
use hindsight_testkit::{Postgres, PostgresOptions};
use jiff::Timestamp;
use stored::Stored;
use tokio_util::sync::CancellationToken;

/// What a recovering server runs, over its `restore_command`: this test, which does nothing where nobody asks.
#[test]
fn ask() {
    let (Ok(file), Ok(to)) = (std::env::var("HINDSIGHT_ASK_FILE"), std::env::var("HINDSIGHT_ASK_TO")) else { return };
    let code = restore::serve::code("hindsight.restore/wal".as_ref(), &file, to.as_ref());
    std::process::exit(code.into());
}

fn command() -> String {
    let program = std::env::current_exe().unwrap();
    format!("HINDSIGHT_ASK_FILE=%f HINDSIGHT_ASK_TO=%p '{}' --exact ask --nocapture >/dev/null 2>&1", program.display())
}

/// Counts how often it was crossed.
#[derive(Default)]
struct Crossed(AtomicU64);

#[async_trait]
impl Gate for Crossed {
    async fn cross(&self) -> hindsight_engine::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn job(cluster: &ClusterRepository) -> Job {
    Job {
        cluster: cluster.clone(),
        progress: Progress::default(),
        cancel: CancellationToken::new(),
        throttle: Throttle::default(),
    }
}

fn options(gate: Arc<dyn Gate>) -> RestoreOptions {
    RestoreOptions { gate, parallel: 0, fold_memory: 0, scratch: std::env::temp_dir(), skip_check: false }
}

/// A server to be restored, in which everything is logged, and kept on its disk.
fn source() -> PostgresOptions {
    PostgresOptions::default()
        .set("wal_keep_size", "8GB")
        .set("track_commit_timestamp", "on")
        .set("max_prepared_transactions", "10")
        .set("checkpoint_timeout", "1h")
}

/// The target that a text stands for.
async fn target(stored: &Stored, text: &str) -> Result<Target, EngineError> {
    match find::parse(text) {
        Some(Spoken::ToFind(text)) => find::find(&stored.cluster, &stored.history().await, &text).await,
        Some(Spoken::Target(target)) => Ok(target),
        None => Ok(Target::Before(text.parse::<Timestamp>().unwrap())),
    }
}

/// Prepares and carries out a restore.
async fn restore_to(
    stored: &Stored,
    target: &Target,
    directory: &Directory,
    gate: Arc<dyn Gate>,
) -> Result<(Preview, Restored), EngineError> {
    restore_asking(stored, target, directory, gate, command()).await
}

/// The same with another `restore_command`.
async fn restore_asking(
    stored: &Stored,
    target: &Target,
    directory: &Directory,
    gate: Arc<dyn Gate>,
    command: String,
) -> Result<(Preview, Restored), EngineError> {
    let plan = plan(&stored.history().await, target, None, Timestamp::now()).unwrap();
    let (everything, destination) = (Selection::default(), Destination::Directory(directory.clone()));
    let preview = restore::prepare(&stored.cluster, &plan, &everything, &destination).await?;
    let (job, options) = (job(&stored.cluster), options(gate));
    let done = restore::run_asking(&job, &plan, &everything, &destination, &preview, &options, command).await?;
    Ok((preview, done))
}

/// A server that was restored, started by the test.
async fn restored(stored: &Stored, target: &Target) -> (Postgres, Preview, Restored) {
    let server = Postgres::prepare(PostgresOptions::default().set("max_prepared_transactions", "10")).unwrap();
    let directory = Directory { start: false, ..Directory::new(server.data_dir()) };
    let gate = Arc::new(Crossed::default());
    let (preview, done) = restore_to(stored, target, &directory, gate.clone()).await.unwrap();
    assert_eq!(gate.0.load(Ordering::SeqCst), 1);
    server.restart().await.unwrap();
    (server, preview, done)
}
