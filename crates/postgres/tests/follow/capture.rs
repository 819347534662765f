//! The log, captured while it is written.

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hindsight_engine::{LogBuffer, LogReader};
use hindsight_postgres::follow::Reserved;
use hindsight_postgres::wal::{Expect, SegmentSize, Version, WalReader, What};
use hindsight_postgres::{Lsn, point, slot};
use hindsight_repository::merge_slices;
use hindsight_testkit::{Postgres, postgres_version};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::captured::{Capture, check, checked, compare, counted, frames};
use crate::{address, options, place, repository, soon, written};

/// Work of all kinds, beside others.
async fn work(server: &Postgres) {
    let statements = [
        "create table item (id serial primary key, text text)",
        "insert into item (text) select repeat('x', 100) from generate_series(1, 20000)",
        "begin; insert into item (text) values ('p'); prepare transaction 'order 17'",
        "commit prepared 'order 17'",
        "begin; insert into item (text) values ('r'); rollback",
        "select pg_create_restore_point('before it')",
        "select pg_switch_wal()",
        "select pg_logical_emit_message(false, 'x', repeat('y', 5000000))",
        // longer than what is delivered at once
        "select pg_logical_emit_message(false, 'x', repeat('y', 40000000))",
        "update item set text = text || 'z' where id % 7 = 0",
        "select pg_create_restore_point('before it')",
        "checkpoint",
        "select pg_switch_wal()",
        "vacuum item",
    ];
    for statement in statements {
        server.sql(statement).await.unwrap();
    }
}

async fn expect(server: &Postgres) -> Expect {
    let system = server.sql("select system_identifier from pg_control_system()").await.unwrap();
    Expect {
        system_identifier: system.parse().unwrap(),
        version: Version::from_major(postgres_version().unwrap()).unwrap(),
        timeline: 1,
        segment_size: SegmentSize::DEFAULT,
        block_size: 8192,
    }
}

#[tokio::test]
async fn what_is_stored_is_what_the_server_has() {
    let server = Postgres::start(options()).await.unwrap();
    server.pgbench(&["-i", "-s", "2", "-q"]).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    let mut capture = Capture::open(&server, &cluster, None).await;
    let done = AtomicBool::new(false);
    let busy = async {
        let bench = async { server.pgbench(&["-c", "4", "-t", "500", "-n"]).await.unwrap() };
        tokio::join!(bench, work(&server));
        done.store(true, Ordering::SeqCst);
    };
    let captured = async {
        while !done.load(Ordering::SeqCst) {
            capture.read().await.unwrap();
        }
    };
    tokio::join!(busy, captured);
    capture.until(written(&server).await).await;
    let slices = capture.stored.clone();
    assert!(slices.len() > 5, "{}", slices.len());
    compare(&server, &cluster, &slices).await;
    check(&cluster, &slices).await;
    assert!(slices.iter().any(|slice| place(&slice.name.end).0.0.is_multiple_of(8192)), "a long record comes in parts");

    // It is counted as what a reader tells of the whole.
    let start = place(&slices[0].name.start).0;
    let raw: Vec<u8> = frames(&cluster, &slices).await.into_iter().flat_map(|(_, _, raw)| raw).collect();
    let (mut reader, mut events) = (WalReader::at_record(start, expect(&server).await), Vec::new());
    reader.feed(&raw, &mut |event| events.push(event)).unwrap();
    let told = |kind: fn(&What) -> bool| events.iter().filter(|event| kind(&event.what)).count() as u64;
    assert_eq!(counted(&cluster, &slices, "", "commit").await, told(What::is_commit));
    assert_eq!(counted(&cluster, &slices, "", "prepare").await, 1);
    assert_eq!(counted(&cluster, &slices, "", "checkpoint").await, told(|what| matches!(what, What::Checkpoint(_))));
    assert_eq!(counted(&cluster, &slices, "restore point/before it", "set").await, 2);
    let latest = events.iter().filter_map(|event| event.what.time()).max().unwrap();
    assert!(slices.last().unwrap().name.end.time.as_second() >= latest.as_second());
    assert!(slices.iter().all(|slice| slice.name.start.time <= slice.name.end.time));

    // Together they are counted as they are apart.
    let merged = merge_slices(&cluster, "wal", 1, &slices, 2, 1).await.unwrap();
    check(&cluster, std::slice::from_ref(&merged)).await;

    // A bit that flips is found.
    let parts = frames(&cluster, std::slice::from_ref(&merged)).await;
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..20 {
        let span = events[random.random_range(0..events.len())].span;
        // In the header of the record, which has no bytes that do not count; unless a page begins in it.
        let at = span.start.0 + random.random_range(0..24);
        if at / 8192 != span.start.0 / 8192 {
            continue;
        }
        let mut flipped = parts.clone();
        let (begin, _, frame) = flipped.iter_mut().rfind(|(begin, ..)| begin.0 <= at).unwrap();
        frame[(at - begin.0) as usize] ^= 1 << random.random_range(0..8);
        let flipped: Vec<_> = flipped.iter().map(|(_, segment, raw)| (*segment, raw.as_slice())).collect();
        assert!(checked(&merged.name, &flipped).is_err(), "{}", Lsn(at));
    }
    // So are bytes that are missing, or a name that promises something else.
    let whole: Vec<_> = parts.iter().map(|(_, segment, raw)| (*segment, raw.as_slice())).collect();
    assert!(checked(&merged.name, &whole[..whole.len() - 1]).unwrap_err().contains("bytes of log are in it"));
    let other: Vec<_> = whole.iter().map(|(_, raw)| (2, *raw)).collect();
    assert!(checked(&merged.name, &other).unwrap_err().contains("timeline 2"));
    // All of it may be of one second.
    let mut early = merged.name.clone();
    early.start.time -= jiff::SignedDuration::from_secs(1);
    early.end.time = early.start.time;
    assert!(checked(&early, &whole).unwrap_err().contains("later time"));
}

#[tokio::test]
async fn it_goes_on_exactly_where_it_was_stored_last() {
    let server = Postgres::start(options()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    let name = server.sql("select slot_name from pg_replication_slots").await.unwrap();
    let restart = async || -> Lsn {
        let statement = format!("select restart_lsn from pg_replication_slots where slot_name = '{name}'");
        server.sql(&statement).await.unwrap().parse().unwrap()
    };
    let mut capture = Capture::open(&server, &cluster, None).await;
    capture.limit = usize::MAX;
    let mut slices = Vec::new();
    for round in 0..6 {
        server.pgbench(&["-c", "2", "-t", "100", "-n"]).await.unwrap();
        let until = written(&server).await;
        let stored = place(&capture.buffer.summary.start).0;
        soon(async {
            while capture.end() < until {
                capture.read().await.unwrap();
            }
        })
        .await;
        // Only what is stored lets the server forget.
        if round > 0 {
            assert_eq!(restart().await, stored);
        }
        if round % 2 == 0 {
            // What was read and not stored is read again.
            let after = capture.buffer.summary.start.clone();
            drop(capture);
            capture = Capture::open(&server, &cluster, Some(&after)).await;
            capture.limit = usize::MAX;
        }
        capture.until(until).await;
        slices.append(&mut capture.stored);
        let stored = place(&slices.last().unwrap().name.end).0;
        soon(async { while restart().await != stored {} }).await;
    }
    compare(&server, &cluster, &slices).await;
    check(&cluster, &slices).await;
}

#[tokio::test]
async fn it_can_begin_at_any_moment() {
    let server = Postgres::start(options()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    let long = "select pg_logical_emit_message(false, 'x', repeat('y', 300000)) from generate_series(1, 300)";
    let bench = async {
        tokio::join!(server.pgbench(&["-c", "2", "-t", "2000", "-n"]), server.sql(long)).0.unwrap();
    };
    let mut slices = Vec::new();
    let mut bench = std::pin::pin!(bench);
    loop {
        let once = async {
            let mut capture = Capture::open(&server, &cluster, None).await;
            capture.limit = usize::MAX;
            while capture.buffer.is_empty() {
                capture.read().await.unwrap();
            }
            capture.store().await;
            capture.stored
        };
        tokio::select! {
            () = &mut bench => break,
            mut stored = once => slices.append(&mut stored),
        }
    }
    assert!(slices.len() > 10, "{}", slices.len());
    for slice in slices {
        let slice = [slice];
        compare(&server, &cluster, &slice).await;
        check(&cluster, &slice).await;
    }
    // Also where nothing is written.
    let until = written(&server).await;
    let idle = Capture::open(&server, &cluster, None).await;
    assert!(idle.end() >= until);
}

#[tokio::test]
async fn the_end_goes_with_the_servers_clock() {
    let server = Postgres::start(options()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    let mut capture = Capture::open(&server, &cluster, None).await;
    let begun = capture.buffer.summary.end.clone();
    for _ in 0..3 {
        capture.read().await.unwrap();
    }
    if capture.buffer.holds_nothing() {
        assert_eq!(capture.buffer.summary.end.position, begun.position, "time alone leads nowhere");
    }
    server.sql("create table t (a int)").await.unwrap();
    let until = written(&server).await;
    soon(async {
        while capture.end() < until {
            capture.read().await.unwrap();
        }
    })
    .await;
    let then = capture.buffer.summary.end.clone();
    // Later than anything in it.
    soon(async {
        while capture.buffer.summary.end.time.duration_since(then.time).as_secs() < 3 {
            capture.read().await.unwrap();
        }
    })
    .await;
    let now: i64 = server.sql("select extract(epoch from clock_timestamp())::bigint").await.unwrap().parse().unwrap();
    assert!(capture.buffer.summary.end.time.as_second() <= now - 5, "and not later than what a disk may take before");
    capture.store().await;
    check(&cluster, &capture.stored).await;

    // What a server writes by itself is no reason to store at once.
    assert!(!capture.buffer.substantial);
    server.sql("checkpoint").await.unwrap();
    let until = written(&server).await;
    soon(async {
        while capture.end() < until {
            capture.read().await.unwrap();
        }
    })
    .await;
    assert!(!capture.buffer.substantial && !capture.buffer.is_empty());
    server.sql("insert into t values (1)").await.unwrap();
    soon(async {
        while !capture.buffer.substantial {
            capture.read().await.unwrap()
        }
    })
    .await;
}

#[tokio::test]
async fn a_snapshots_own_log_begins_with_a_segment() {
    let server = Postgres::start(options()).await.unwrap();
    let (folder, cluster) = repository(&server).await;
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let reserved = Reserved::new(&address(&server)).await.unwrap();
    let temporary = "select count(*) from pg_replication_slots where temporary";
    assert_eq!(server.sql(temporary).await.unwrap(), "1");
    let from = written(&server).await;
    server.pgbench(&["-c", "2", "-t", "1000", "-n"]).await.unwrap();
    server.sql("select pg_switch_wal()").await.unwrap();
    server.sql("create table after (a int)").await.unwrap();
    let until = written(&server).await;

    let (reader, at) = soon(reserved.follow(from)).await.unwrap();
    let begin = Lsn(from.0 - from.0 % (16 << 20));
    assert_eq!(at.position, point(at.time, begin, 1).unwrap().position);
    let reader: Box<dyn LogReader> = Box::new(reader);
    let buffer = LogBuffer::starting_at(at);
    let mut capture = Capture { cluster: &cluster, reader, buffer, limit: 1 << 20, stored: Vec::new() };
    capture.until(until).await;
    let slices = capture.stored.clone();
    drop(capture);
    soon(async { while server.sql(temporary).await.unwrap() != "0" {} }).await;
    compare(&server, &cluster, &slices).await;
    check(&cluster, &slices).await;

    // Cut into segments, it is what the server's programs read.
    let raw: Vec<u8> = frames(&cluster, &slices).await.into_iter().flat_map(|(_, _, raw)| raw).collect();
    let size = SegmentSize::DEFAULT;
    for (number, part) in raw.chunks(16 << 20).enumerate() {
        let segment = hindsight_postgres::wal::Segment { timeline: 1, number: begin.0 / (16 << 20) + number as u64 };
        let mut file = fs::File::create(folder.path().join(segment.name(size))).unwrap();
        file.write_all(part).unwrap();
        file.set_len(16 << 20).unwrap();
    }
    let mut dump: Command = server.program("pg_waldump");
    dump.arg("--path").arg(folder.path()).arg("--start").arg(begin.to_string()).arg("--end").arg(until.to_string());
    let dump = dump.output().unwrap();
    let lines = String::from_utf8_lossy(&dump.stdout).lines().filter(|line| line.contains("COMMIT")).count() as u64;
    assert_eq!(lines, counted(&cluster, &slices, "", "commit").await, "{}", String::from_utf8_lossy(&dump.stderr));
}

#[tokio::test]
async fn time_goes_on_where_no_log_is_written() {
    let server = Postgres::start(options()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    let mut capture = Capture::open(&server, &cluster, None).await;
    server.sql("create table t (a int)").await.unwrap();
    capture.until(written(&server).await).await;
    // What it writes by itself after the last work comes first.
    loop {
        let begun = capture.buffer.summary.end.clone();
        soon(async {
            while capture.buffer.summary.end.time.duration_since(begun.time).as_secs() < 2 {
                capture.reader.read(&mut capture.buffer).await.unwrap();
            }
        })
        .await;
        let now = server.sql("select extract(epoch from clock_timestamp())::bigint").await.unwrap();
        assert!(capture.buffer.summary.end.time.as_second() <= now.parse::<i64>().unwrap() - 5);
        let rests = capture.buffer.holds_nothing();
        capture.store().await;
        let stored = capture.stored.pop().unwrap();
        assert_eq!(stored.name.is_sign_of_life(), rests, "{}", stored.name);
        check(&cluster, &[stored]).await;
        if rests {
            return;
        }
        // Who goes on there later knows the same.
        let end = capture.buffer.summary.end.clone();
        capture = Capture::open(&server, &cluster, Some(&end)).await;
    }
}
