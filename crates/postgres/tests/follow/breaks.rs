//! Servers that crash, stop and lose their log.

use std::process::Stdio;

use hindsight_engine::FailureKind;
use hindsight_postgres::wal::What;
use hindsight_postgres::wal::{Expect, SegmentSize, Version, WalReader};
use hindsight_postgres::{point, slot};
use hindsight_testkit::{Postgres, PostgresOptions, postgres_version};

use crate::captured::{Capture, check, compare, frames};
use crate::{address, left, lost, open, options, place, repository, soon, written};

#[tokio::test]
async fn a_server_that_crashed_is_captured_on() {
    // Buffers so small that records are written to disk in parts.
    let server = Postgres::start(options().set("wal_buffers", "64kB")).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    let mut capture = Capture::open(&server, &cluster, None).await;
    let mut slices = Vec::new();
    let mut given_up = 0;
    for round in 1.. {
        let mut psql = server.program("psql");
        psql.args(["-c", "select pg_logical_emit_message(false, 'x', repeat('y', 60000000))"]);
        let mut psql = psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut failed = false;
        let begun = capture.end();
        soon(async {
            loop {
                match capture.read().await {
                    // In the midst of the record.
                    Ok(()) if capture.end().0 > begun.0 + (20 << 20) && !failed => {
                        server.crash();
                        failed = true;
                    }
                    Ok(()) => {}
                    Err(error) => {
                        assert!(failed, "{}", error.what);
                        assert_eq!(error.kind, FailureKind::Unreachable, "{}", error.what);
                        break;
                    }
                }
            }
        })
        .await;
        psql.wait().unwrap();
        server.restart().await.unwrap();
        server.sql("create table if not exists after (n int); insert into after values (1)").await.unwrap();
        slices.append(&mut capture.stored);
        let after = slices.last().map_or_else(|| capture.buffer.summary.start.clone(), |slice| slice.name.end.clone());
        capture = Capture::open(&server, &cluster, Some(&after)).await;
        capture.until(written(&server).await).await;
        slices.append(&mut capture.stored);

        let start = place(&slices[0].name.start).0;
        let system = server.sql("select system_identifier from pg_control_system()").await.unwrap();
        let expect = Expect {
            system_identifier: system.parse().unwrap(),
            version: Version::from_major(postgres_version().unwrap()).unwrap(),
            timeline: 1,
            segment_size: SegmentSize::DEFAULT,
            block_size: 8192,
        };
        let mut reader = WalReader::at_record(start, expect);
        for (_, _, raw) in frames(&cluster, &slices).await {
            let gives_up = |what: &What| matches!(what, What::OverwriteContrecord { .. });
            reader.feed(&raw, &mut |event| given_up += usize::from(gives_up(&event.what))).unwrap();
        }
        if given_up > 0 || round == 10 {
            break;
        }
    }
    assert!(given_up > 0, "no crash was within a record");
    compare(&server, &cluster, &slices).await;
    check(&cluster, &slices).await;
}

#[tokio::test]
async fn a_server_that_shuts_down_does_not_wait_for_the_repository() {
    let server = Postgres::start(options()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    let mut capture = Capture::open(&server, &cluster, None).await;
    let start = capture.buffer.summary.start.clone();
    server.sql("create table t as select generate_series(1, 10000)").await.unwrap();
    let failure = async {
        loop {
            // Nothing is stored.
            if let Err(error) = soon(capture.reader.read(&mut capture.buffer)).await {
                break error;
            }
        }
    };
    let (failure, ()) = tokio::join!(failure, async { server.stop().await.unwrap() });
    assert!(failure.what.contains("shut down"), "{}", failure.what);
    let read = capture.end();
    drop(capture);
    server.restart().await.unwrap();
    let mut again = Capture::open(&server, &cluster, Some(&start)).await;
    // The last that came was the record with which it shut down.
    again.until(read).await;
    again.until(written(&server).await).await;
    compare(&server, &cluster, &again.stored).await;
    check(&cluster, &again.stored).await;
}

/// Fills segments, so that the oldest are removed.
async fn go_on(server: &Postgres) {
    for _ in 0..6 {
        let statements =
            ["create table if not exists t (a int); insert into t values (1)", "select pg_switch_wal()", "checkpoint"];
        for statement in statements {
            server.sql(statement).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_log_that_is_gone_is_lost() {
    let server = Postgres::start(PostgresOptions::default().set("wal_keep_size", "0")).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    let mut capture = Capture::open(&server, &cluster, None).await;
    go_on(&server).await;
    capture.until(written(&server).await).await;
    let end = capture.stored.last().unwrap().name.end.clone();
    check(&cluster, &capture.stored).await;
    drop(capture);

    // The slot keeps it.
    go_on(&server).await;
    Capture::open(&server, &cluster, Some(&end)).await;
    // Without it, it is there for as long as nobody removes it.
    slot::keep(&address(&server), &cluster, false).await.unwrap();
    Capture::open(&server, &cluster, Some(&end)).await;
    go_on(&server).await;
    let cause = lost(&server, &cluster, &end).await;
    assert!(cause.contains("has removed its log after"), "{cause}");
    // A new slot does not bring it back; what comes then is there.
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    assert_eq!(lost(&server, &cluster, &end).await, cause);
    let mut capture = Capture::open(&server, &cluster, None).await;
    go_on(&server).await;
    capture.until(written(&server).await).await;
    check(&cluster, &capture.stored).await;
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_is_made_anew() {
    let options = PostgresOptions::default().set("wal_keep_size", "0").set("max_slot_wal_keep_size", "32MB");
    let server = Postgres::start(options.set("min_wal_size", "32MB").set("max_wal_size", "64MB")).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    let mut capture = Capture::open(&server, &cluster, None).await;
    server.sql("create table item (n int)").await.unwrap();
    capture.until(written(&server).await).await;
    let end = capture.stored.last().unwrap().name.end.clone();
    drop(capture);
    let warnings = async || hindsight_postgres::cluster::probe(&address(&server)).await.unwrap().warnings;
    assert!(warnings().await.is_empty());
    soon(async {
        while !warnings().await.iter().any(|said| said.contains("not captured yet, and is given up when it is")) {
            server.sql("insert into item values (0)").await.unwrap();
            server.sql("select pg_switch_wal()").await.unwrap();
        }
    })
    .await;
    soon(async {
        while server.sql("select count(*) from pg_replication_slots where wal_status = 'lost'").await.unwrap() != "1" {
            go_on(&server).await;
        }
    })
    .await;
    assert!(lost(&server, &cluster, &end).await.contains("has removed its log after"));
    assert!(warnings().await.iter().any(|said| said.contains("has given up")), "{:?}", warnings().await);
    let made = slot::keep(&address(&server), &cluster, true).await.unwrap();
    assert!(format!("{made:?}").contains("made anew"), "{made:?}");
    let again = slot::keep(&address(&server), &cluster, true).await.unwrap();
    assert!(format!("{again:?}").starts_with("Already"), "{again:?}");
    let mut capture = Capture::open(&server, &cluster, None).await;
    server.sql("insert into item values (1)").await.unwrap();
    capture.until(written(&server).await).await;
    check(&cluster, &capture.stored).await;
}

#[tokio::test]
async fn a_point_that_the_server_has_not_reached_is_waited_for() {
    let server = Postgres::start(options()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    let written = written(&server).await;
    let ahead = point(jiff::Timestamp::now(), written.checked_add(1 << 30).unwrap(), 1).unwrap();
    let Err(error) = open(&server, &cluster, Some(&ahead)).await else { panic!("it was opened") };
    assert!(error.what.contains("has come to") && error.hint.is_some(), "{}", error.what);
    // Amid a record.
    let amid = point(jiff::Timestamp::now(), hindsight_postgres::Lsn(written.0 - 8), 1).unwrap();
    assert!(left(&server, &cluster, &amid).await.contains("is not what is stored"));
    // Another server altogether.
    let other = Postgres::start(options()).await.unwrap();
    let Err(error) = open(&other, &cluster, None).await else { panic!("it was opened") };
    assert!(error.kind == FailureKind::Unsupported && error.what.contains("another server"), "{}", error.what);
}
