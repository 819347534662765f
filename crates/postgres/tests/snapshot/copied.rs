//! A database that is copied as files while a base is taken.

use std::collections::BTreeMap;
use std::time::Duration;

use hindsight_engine::{FailureKind, Job, Throttle};
use hindsight_repository::ClusterRepository;
use hindsight_testkit::{Postgres, PostgresOptions};

use crate::checked::check;
use crate::restored::unpack;
use crate::{back_up, hint, job, repository, server_with};

/// Where a database is moved to and fro, and so much is in the tablespace, which comes first, that the database is still to come when
/// the copying has begun.
async fn server() -> Postgres {
    let server = server_with(&[
        "CREATE TABLE much TABLESPACE fast AS SELECT repeat('much', 400) FROM generate_series(1, 30000)",
        "CREATE DATABASE moved",
    ])
    .await;
    server.sql_in("moved", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS a").await.unwrap();
    server
}

/// Not held altogether: a server that can send nothing keeps whoever moves a database waiting, too (`WaitForProcSignalBarrier`).
fn slow(cluster: &ClusterRepository) -> Job {
    Job { throttle: Throttle::new(16 << 20), ..job(cluster) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_moved_meanwhile_is_not_lost() {
    let (server, (cluster, _folder)) = (server().await, repository().await);
    let job = slow(&cluster);
    let mut steps = job.progress.watch();
    let moving = async {
        steps.wait_for(|step| step.name == "copying files").await.unwrap();
        server.sql("ALTER DATABASE moved SET TABLESPACE fast").await.unwrap();
        // The first attempt came to nothing.
        while job.progress.warnings().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let uri = server.uri();
    let (manifest, ()) = tokio::join!(back_up(&uri, &job), moving);
    let manifest = manifest.unwrap();
    assert_eq!(check(&cluster, &manifest).await, Vec::<String>::new());

    let restored = Postgres::prepare(PostgresOptions::default()).unwrap();
    let oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await.unwrap();
    let tablespaces = BTreeMap::from([(oid.parse().unwrap(), restored.new_folder("fast").unwrap())]);
    unpack(&cluster, &manifest, &restored, &tablespaces).await;
    restored.restart().await.unwrap();
    assert_eq!(restored.sql_in("moved", "SELECT count(*) FROM t").await.unwrap(), "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_databases_are_moved_again_and_again_there_is_no_backup() {
    let (server, (cluster, _folder)) = (server().await, repository().await);
    let job = slow(&cluster);
    let moving = async {
        for space in ["fast", "pg_default"].iter().cycle() {
            server.sql(&format!("ALTER DATABASE moved SET TABLESPACE {space}")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let uri = server.uri();
    let taken = tokio::select! {
        taken = back_up(&uri, &job) => taken,
        () = moving => unreachable!(),
    };
    let error = taken.unwrap_err();
    assert_eq!(error.kind, FailureKind::Server, "{error}");
    assert!(error.what.contains("moved to another tablespace") && hint(&error).contains("again"), "{error:?}");
}
