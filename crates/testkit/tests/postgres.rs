//! The oracle for PostgreSQL sees every kind of difference, and none where there is none; the workload does everything it
//! promises, and stands still when it is told to. `HINDSIGHT_WORKLOAD_SEED` lets it run otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use hindsight_testkit::{PgState, PgWorkload, PgWorkloadOptions, Postgres, PostgresOptions};

async fn state(server: &Postgres) -> PgState {
    PgState::read(&server.uri()).await.unwrap()
}

#[tokio::test]
async fn each_change_is_seen_and_nothing_else() {
    let options = PostgresOptions::default().set("max_prepared_transactions", "2").set("autovacuum", "off");
    let server = Postgres::start(options).await.unwrap();
    server
        .sql(
            "CREATE TABLE things (id int PRIMARY KEY, t text); INSERT INTO things VALUES (1, 'a'), (2, 'b');
             CREATE UNLOGGED TABLE quick (id int); CREATE SEQUENCE s; SELECT nextval('s'); SELECT lo_from_bytea(1234, 'x');
             CREATE MATERIALIZED VIEW seen AS SELECT * FROM things",
        )
        .await
        .unwrap();
    let mut last = state(&server).await;
    assert_eq!(last.databases["postgres"].tables.len(), 2, "{last:?}");
    // What can't be seen, or does not survive a recovery, is no difference.
    server.sql("INSERT INTO quick VALUES (1); UPDATE things SET t = t; SELECT nextval('s')").await.unwrap();
    assert_eq!(last.differences(&state(&server).await), Vec::<String>::new());
    server.kill9();
    server.restart().await.unwrap();
    assert_eq!(last.differences(&state(&server).await), Vec::<String>::new());

    for (change, line) in [
        ("UPDATE things SET t = 'c' WHERE id = 2", "postgres: table public.things: expected 2 rows, "),
        ("DELETE FROM things WHERE id = 2", "postgres: table public.things: expected 2 rows, "),
        ("REFRESH MATERIALIZED VIEW seen", "postgres: table public.seen: "),
        ("ALTER TABLE things ADD COLUMN more int", "postgres: schema "),
        ("CREATE INDEX named ON things (t)", "postgres: schema should not have \"CREATE INDEX named "),
        ("COMMENT ON TABLE things IS 'said'", "postgres: schema should not have \"COMMENT "),
        ("CREATE TABLE other ()", "postgres: table public.other (0 rows, none) should not exist"),
        ("DROP TABLE other", "postgres: table public.other (0 rows, none) is missing"),
        ("SELECT setval('s', 99)", "postgres: sequence public.s: expected "),
        ("SELECT lo_put(1234, 1, 'y')", "postgres: large object 1234: expected 1 bytes, "),
        ("SELECT lo_unlink(1234)", "postgres: large object 1234 (2 bytes, "),
        ("CREATE ROLE alice PASSWORD 'x'", "roles and tablespaces: schema should not have \"CREATE ROLE alice;\""),
        ("ALTER ROLE alice PASSWORD 'y'", "roles and tablespaces: schema should not have \"ALTER ROLE alice "),
        ("BEGIN; DELETE FROM things; PREPARE TRANSACTION 'p'", "prepared p in postgres of postgres: should not exist"),
        ("COMMIT PREPARED 'p'", "prepared p in postgres of postgres: is missing"),
        ("CREATE DATABASE another", "another: database should not exist"),
        ("ALTER DATABASE another CONNECTION LIMIT 3", "another: schema "),
        ("DROP DATABASE another", "another: database is missing"),
    ] {
        server.sql(change).await.unwrap();
        let state = state(&server).await;
        let differences = last.differences(&state);
        assert!(differences.iter().any(|found| found.starts_with(line)), "expected {line:?}, found {differences:#?}");
        last = state;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workload_does_everything_and_rests() {
    let options = PostgresOptions::default().set("max_prepared_transactions", "10").set("max_wal_size", "200MB");
    let server = Arc::new(Postgres::start(options).await.unwrap());
    let options = PgWorkloadOptions { tablespaces: true, restarts: true, bench: 50, ..PgWorkloadOptions::default() };
    let seed = std::env::var("HINDSIGHT_WORKLOAD_SEED").map_or(7, |seed| seed.parse().unwrap());
    let workload = PgWorkload::start(Arc::clone(&server), seed, options).await.unwrap();
    let mut last = String::new();
    for turn in 0..3 {
        workload.goes_on_for(200).await.unwrap();
        let paused = workload.pause().await.unwrap();
        let (scripts, before) = (workload.scripts(), state(&server).await);
        assert!(paused.time > last, "{} after {last}", paused.time);
        last.clone_from(&paused.time);
        if turn == 1 {
            // All of it was flushed.
            server.kill9();
            server.restart().await.unwrap();
        }
        assert_eq!(before.differences(&state(&server).await), Vec::<String>::new());
        assert_eq!(scripts, workload.scripts());
        paused.resume();
    }
    // Rare ones need their time.
    let undone = || -> Vec<_> { workload.stats().into_iter().filter(|(_, counts)| counts.done == 0).collect() };
    while undone().len() > 3 {
        workload.goes_on_for(100).await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(60), workload.stop()).await.unwrap().unwrap();
}
