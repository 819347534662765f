//! Backups that come to nothing.

use std::sync::Arc;
use std::time::Duration;

use hindsight_engine::{FailureKind, Job};
use hindsight_repository::Repository;
use hindsight_testkit::{FaultyStore, Postgres, PostgresOptions};
use tempfile::TempDir;

use crate::{back_up, hint, job, repository, soon, taken};

#[tokio::test]
async fn what_cannot_be_backed_up_is_refused_with_its_remedy() {
    let (cluster, _folder) = repository().await;
    let server = Postgres::start(PostgresOptions::default().set("max_wal_senders", "1")).await.unwrap();
    server.sql("CREATE ROLE anybody LOGIN").await.unwrap();
    let error = back_up(&server.uri_of("anybody"), &job(&cluster)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Privilege, "{error}");
    assert!(hint(&error).contains("REPLICATION"), "{error:?}");

    let error = back_up(&server.uri(), &job(&cluster)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Server, "{error}");
    assert!(error.what.contains("max_wal_senders") && hint(&error).contains("raise"), "{error:?}");

    let minimal = PostgresOptions::default().set("wal_level", "minimal").set("max_wal_senders", "0");
    let server = Postgres::start(minimal).await.unwrap();
    let error = back_up(&server.uri(), &job(&cluster)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Unsupported, "{error}");
    assert!(error.what.contains("wal_level is minimal") && hint(&error).contains("wal_level = replica"), "{error:?}");

    let server = Postgres::start(PostgresOptions::default().set("max_replication_slots", "0")).await.unwrap();
    let error = back_up(&server.uri(), &job(&cluster)).await.unwrap_err();
    assert!(hint(&error).contains("max_replication_slots"), "{error:?}");
}

#[tokio::test]
async fn a_damaged_page_of_the_server_is_named() {
    let (cluster, _folder) = repository().await;
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS a; CHECKPOINT").await.unwrap();
    let path = server.sql("SELECT pg_relation_filepath('t')").await.unwrap();
    server.stop().await.unwrap();
    let file = server.data_dir().join(&path);
    let mut data = std::fs::read(&file).unwrap();
    data[3 * 8192 + 5000] ^= 4;
    data[7 * 8192 + 5000] ^= 4;
    std::fs::write(&file, data).unwrap();
    server.restart().await.unwrap();
    let error = back_up(&server.uri(), &job(&cluster)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Damaged, "{error}");
    assert!(error.what.contains(&format!("{path:?} is damaged in page 3")), "{error}");
    assert!(hint(&error).contains(&format!("pg_relation_filepath(oid) = '{path}'")), "{error:?}");
}

/// A backup that stands still in the midst of its files, on a server where its slot is; `end` ends it.
async fn in_the_midst(server: &Postgres, job: &Job, end: impl AsyncFnOnce()) -> hindsight_engine::EngineError {
    job.throttle.hold(true);
    let mut steps = job.progress.watch();
    let (uri, ending) = (server.uri(), async {
        steps.wait_for(|step| step.name == "copying files").await.unwrap();
        assert_eq!(server.sql("SELECT count(*) FROM pg_replication_slots WHERE temporary").await.unwrap(), "1");
        end().await;
    });
    tokio::join!(back_up(&uri, job), ending).0.unwrap_err()
}

#[tokio::test]
async fn a_backup_that_is_cancelled_leaves_nothing_on_the_server() {
    let (cluster, _folder) = repository().await;
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let job = job(&cluster);
    let error = in_the_midst(&server, &job, async || job.cancel.cancel()).await;
    assert_eq!(error.kind, FailureKind::Cancelled);
    let left =
        "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_progress_basebackup)";
    soon(async {
        while server.sql(left).await.unwrap() != "0" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(cluster.snapshots().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_server_that_dies_fails_its_backup_at_once() {
    let (cluster, _folder) = repository().await;
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let job = job(&cluster);
    let error = in_the_midst(&server, &job, async || server.kill9()).await;
    assert_eq!(error.kind, FailureKind::Unreachable, "{error}");
    hint(&error);
}

#[tokio::test]
async fn a_standby_that_is_promoted_meanwhile_has_no_backup() {
    let (cluster, _folder) = repository().await;
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let standby = server.standby(PostgresOptions::default()).await.unwrap();
    let job = job(&cluster);
    let promoted = async || {
        standby.promote().await.unwrap();
        job.throttle.hold(false);
    };
    let error = in_the_midst(&standby, &job, promoted).await;
    assert_eq!(error.kind, FailureKind::Server, "{error}");
    assert!(error.what.contains("was promoted") && hint(&error).contains("another"), "{error:?}");
    // The next one is of the new timeline.
    let (cluster, _folder) = repository().await;
    let manifest = taken(&standby, &cluster).await;
    assert_eq!(manifest.streams["wal"].last.position.tag(), "2");
}

#[tokio::test]
async fn a_repository_that_is_full_is_told_as_such() {
    let folder = TempDir::new().unwrap();
    let store = FaultyStore::new(folder.path()).unwrap();
    let repository = Repository::over(Arc::new(store.clone()), "file:///full").await.unwrap();
    let cluster = repository.cluster("shop").unwrap();
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    store.set_room(Some(100_000));
    let error = back_up(&server.uri(), &job(&cluster)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Repository, "{error}");
}
