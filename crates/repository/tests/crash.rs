//! A holder that is killed: its lease is free at once on the same machine.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hindsight_format::{Operation, OperationKind};
use hindsight_repository::{Acquired, DEFAULT_TTL, Repository, RepositorySpec};

const FOLDER: &str = "HINDSIGHT_TEST_LEASE_FOLDER";

fn operation() -> Operation {
    Operation { kind: OperationKind::Backup, id: "b".into(), detail: String::new() }
}

/// Not a test by itself: the process that the other test kills.
#[tokio::test]
async fn holds_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let cluster = Repository::open_or_create(&RepositorySpec::new(folder)).await.unwrap().cluster("rs0").unwrap();
    let Acquired::Held(lease) = cluster.acquire("operation", operation(), DEFAULT_TTL).await.unwrap() else {
        panic!("it is free")
    };
    println!("\nholds {}", lease.fence());
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test]
async fn a_killed_holder_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r").display().to_string();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_until_it_is_killed", "--nocapture"])
        .env(FOLDER, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.starts_with("holds")));

    let cluster = Repository::open(&RepositorySpec::new(path)).await.unwrap().unwrap().cluster("rs0").unwrap();
    let busy = cluster.acquire("operation", operation(), DEFAULT_TTL).await.unwrap();
    assert!(matches!(busy, Acquired::Busy(record) if record.holder.pid == child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    let taken = cluster.acquire("operation", operation(), DEFAULT_TTL).await.unwrap();
    assert!(matches!(taken, Acquired::Held(_)) && killed.elapsed() < Duration::from_secs(2));
}
