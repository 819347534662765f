//! Capture, judged by real servers: what is stored of a log is what the server has of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod breaks;
mod capture;
mod captured;
mod histories;
mod members;
mod slots;

use std::time::Duration;

use hindsight_engine::{EngineError, LogReader, LogRequest, LogStart};
use hindsight_format::Point;
use hindsight_postgres::{Address, Lsn, TimelineId, cluster, follow, of_point};
use hindsight_repository::{ClusterRepository, Repository, RepositorySpec};
use hindsight_testkit::{Postgres, PostgresOptions};
use tempfile::TempDir;

/// Nothing here takes longer, unless it hangs.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what).await.expect("it hangs")
}

fn address(server: &Postgres) -> Address {
    Address::parse(&server.uri()).unwrap()
}

/// Settings under which the log stays, to be compared.
fn options() -> PostgresOptions {
    PostgresOptions::default().set("wal_keep_size", "8GB").set("max_prepared_transactions", "20")
}

/// A repository for the log of a server.
async fn repository(server: &Postgres) -> (TempDir, ClusterRepository) {
    let folder = tempfile::tempdir().unwrap();
    let spec = RepositorySpec::new(folder.path().display().to_string());
    let repository = Repository::open_or_create(&spec).await.unwrap();
    let cluster = repository.cluster("shop").unwrap();
    cluster.register(&cluster::probe(&address(server)).await.unwrap().identity).await.unwrap();
    (folder, cluster)
}

async fn open(server: &Postgres, cluster: &ClusterRepository, after: Option<&Point>) -> Result<LogStart, EngineError> {
    soon(async {
        loop {
            match follow::open(&address(server), &LogRequest { cluster, after, synchronous: false }).await {
                // The server may not have noticed yet that the one before is gone.
                Err(error) if error.what.contains("is active for PID") => {}
                opened => return opened,
            }
        }
    })
    .await
}

/// What follows, where it goes on.
async fn reader(server: &Postgres, cluster: &ClusterRepository, after: Option<&Point>) -> (Box<dyn LogReader>, Point) {
    match open(server, cluster, after).await.unwrap() {
        LogStart::Continues { reader, at } => (reader, at),
        LogStart::Lost { cause } | LogStart::Left { cause } => panic!("it does not go on: {cause}"),
    }
}

/// Why it does not go on.
async fn lost(server: &Postgres, cluster: &ClusterRepository, after: &Point) -> String {
    match open(server, cluster, Some(after)).await.unwrap() {
        LogStart::Continues { at, .. } => panic!("it goes on at {at}"),
        LogStart::Left { cause } => panic!("it was left: {cause}"),
        LogStart::Lost { cause } => cause,
    }
}

/// Why the history here is another one.
async fn left(server: &Postgres, cluster: &ClusterRepository, after: &Point) -> String {
    match open(server, cluster, Some(after)).await.unwrap() {
        LogStart::Continues { at, .. } => panic!("it goes on at {at}"),
        LogStart::Lost { cause } => panic!("it is lost: {cause}"),
        LogStart::Left { cause } => cause,
    }
}

/// Which of these points of what is stored the server has come by before it left, if it is known.
async fn came_by(server: &Postgres, cluster: &ClusterRepository, stored: &[&Point]) -> Option<Point> {
    let stored: Vec<_> = stored.iter().map(|point| (*point).clone()).collect();
    soon(follow::came_by(&address(server), cluster, &stored)).await.unwrap()
}

/// Up to where the server has written its log.
async fn written(server: &Postgres) -> Lsn {
    server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
}

fn place(point: &Point) -> (Lsn, TimelineId) {
    of_point(point).unwrap()
}
