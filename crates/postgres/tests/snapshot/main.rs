//! Base backups of real servers: taken, checked, given back to a server; and those that cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checked;
mod copied;
mod refused;
mod restored;

use std::time::Duration;

use hindsight_engine::{EngineError, Job, Progress, Result, SnapshotRequest, Throttle};
use hindsight_format::{ObjectRef, SnapshotManifest};
use hindsight_postgres::{Address, base};
use hindsight_repository::{ClusterRepository, Repository, RepositorySpec};
use hindsight_testkit::{Postgres, PostgresOptions};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The name of every backup here.
const ID: &str = "2026-03-01T10:00:00Z";

/// Nothing here takes longer, unless it hangs.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(300), what).await.expect("it hangs")
}

/// A repository in a folder of its own.
async fn repository() -> (ClusterRepository, TempDir) {
    let folder = TempDir::new().unwrap();
    let spec = RepositorySpec::new(folder.path().display().to_string());
    (Repository::open_or_create(&spec).await.unwrap().cluster("shop").unwrap(), folder)
}

fn job(cluster: &ClusterRepository) -> Job {
    Job {
        cluster: cluster.clone(),
        progress: Progress::default(),
        cancel: CancellationToken::new(),
        throttle: Throttle::default(),
    }
}

fn request() -> SnapshotRequest {
    SnapshotRequest {
        id: ID.to_owned(),
        epoch: 1,
        wanted: None,
        parent: None,
        namespaces: Vec::new(),
        compression_level: 3,
        parallel: 0,
        hash: true,
        checkpoint: 1 << 30,
        resume: false,
    }
}

/// A server with a tablespace `fast`, and what the statements make.
async fn server_with(statements: &[&str]) -> Postgres {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let folder = server.new_folder("fast").unwrap().display().to_string();
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{folder}'")).await.unwrap();
    for statement in statements {
        server.sql(statement).await.unwrap();
    }
    server
}

/// Backs up the server of a connection string.
async fn back_up(uri: &str, job: &Job) -> Result<SnapshotManifest> {
    soon(base::take(&Address::parse(uri).unwrap(), job, &request())).await
}

/// The same into a repository where all goes well.
async fn taken(server: &Postgres, cluster: &ClusterRepository) -> SnapshotManifest {
    back_up(&server.uri(), &job(cluster)).await.unwrap()
}

/// A failure, which has to have a line on what to do.
fn hint(error: &EngineError) -> &str {
    let hint = error.hint.as_deref().unwrap_or_else(|| panic!("no hint: {error}"));
    assert!(!error.what.contains('\n') && !hint.contains('\n'), "{error}: {hint}");
    hint
}

/// What an object holds, frame by frame, each with its segment.
async fn frames(cluster: &ClusterRepository, name: &str, object: Option<&ObjectRef>) -> Vec<(u32, Vec<u8>)> {
    let reader = cluster.object_reader(&cluster.keys().snapshot_object(ID, name), object).await.unwrap();
    let mut frames = Vec::new();
    for (index, entry) in reader.footer().frames.iter().enumerate() {
        frames.push((entry.segment, reader.frame(index).await.unwrap()));
    }
    frames
}

/// All of what it holds.
async fn raw(cluster: &ClusterRepository, name: &str) -> Vec<u8> {
    frames(cluster, name, None).await.into_iter().flat_map(|(_, frame)| frame).collect()
}
