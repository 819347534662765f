//! The log of real servers, compared with what their own programs say of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod compare;
mod segments;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use compare::compare;
use hindsight_postgres::Lsn;
use hindsight_postgres::wal::{
    Event, Expect, History, Problem, Resolution, Segment, SegmentSize, Stop, Target, Version, WalFile, WalReader, What,
    resolve,
};
use hindsight_testkit::{Postgres, PostgresOptions, postgres_version};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// What is read at once where the whole log would take long.
const PART: usize = 1 << 20;

/// Settings under which everything is logged, in pieces that a crash breaks, and kept.
fn options() -> PostgresOptions {
    PostgresOptions::default()
        .set("wal_level", "logical")
        .set("max_prepared_transactions", "20")
        .set("wal_keep_size", "8GB")
        .set("wal_buffers", "64kB")
}

async fn expect(server: &Postgres, timeline: u32) -> Expect {
    let identifier = server.sql("select system_identifier from pg_control_system()").await.unwrap();
    Expect {
        system_identifier: identifier.parse().unwrap(),
        version: Version::from_major(postgres_version().unwrap()).unwrap(),
        timeline,
        segment_size: SegmentSize::DEFAULT,
        block_size: 8192,
    }
}

/// Statements, each a transaction of its own unless it says otherwise.
async fn run(server: &Postgres, statements: &[&str]) {
    for statement in statements {
        server.sql(statement).await.unwrap();
    }
}

/// The log on disk, from the oldest segment of a timeline on.
fn log(server: &Postgres, timeline: u32) -> (Lsn, Vec<u8>) {
    let folder = server.data_dir().join("pg_wal");
    let size = SegmentSize::DEFAULT;
    let files = fs::read_dir(&folder).unwrap().filter_map(|f| WalFile::parse(f.unwrap().file_name().to_str()?, size));
    let mut segments: Vec<Segment> = files
        .filter_map(|file| match file {
            WalFile::Segment(segment) if segment.timeline == timeline => Some(segment),
            _ => None,
        })
        .collect();
    segments.sort();
    let start = segments[0].start(size).unwrap();
    (start, segments.iter().flat_map(|segment| fs::read(folder.join(segment.name(size))).unwrap()).collect())
}

/// Reads a log to where it ends.
fn read(start: Lsn, log: &[u8], expect: Expect) -> (Vec<Event>, WalReader) {
    let mut reader = WalReader::new(start, expect);
    let mut events = Vec::new();
    let end = reader.feed(log, &mut |event| events.push(event));
    let last = reader.last_record().unwrap();
    if let Err(end) = end {
        // Zeros, or what a file that is used again had before.
        assert!(matches!(end.problem, Problem::NoRecord | Problem::PageAddress(_)), "{end}");
        assert!(end.at.since(last.end).is_some_and(|gap| gap <= 40), "{end}");
    }
    (events, reader)
}

/// Transactions of all kinds.
async fn work(server: &Postgres) {
    let statements = [
        "create table if not exists item (id serial primary key, text text)",
        "insert into item (text) select repeat('x', 100) from generate_series(1, 5000)",
        "begin; insert into item (text) values ('p'); prepare transaction 'order 17'",
        "commit prepared 'order 17'",
        "begin; insert into item (text) values ('p'); drop table if exists gone; prepare transaction 'order 18'",
        "rollback prepared 'order 18'",
        "begin; insert into item (text) values ('r'); rollback",
        "select pg_create_restore_point('before it')",
        "select pg_switch_wal()",
        "select pg_logical_emit_message(false, 'x', repeat('y', 3000000))",
        "begin; select pg_logical_emit_message(true, 'x', repeat('y', 500000)); insert into item (text) values ('m'); commit",
        "checkpoint",
        "update item set text = text || 'z' where id % 7 = 0",
        "create table gone as select * from item",
        "create index on gone (text)",
        "drop table gone",
        // more subtransactions than a server keeps in memory, in a transaction that is prepared
        "begin; do $$ begin for i in 1..3000 loop begin insert into item (text) values ('s'); \
         exception when division_by_zero then null; end; end loop; end $$; prepare transaction 'many'",
        "commit prepared 'many'",
        "vacuum item",
    ];
    run(server, &statements).await;
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    server.pgbench(&["-c", "4", "-t", "200", "-n"]).await.unwrap();
}

#[tokio::test]
async fn everything_is_read_as_pg_waldump_reads_it() {
    let server = Postgres::start(options()).await.unwrap();
    let folder = server.new_folder(&format!("a fast disk {}", "x".repeat(200))).unwrap();
    run(&server, &[&format!("create tablespace fast location '{}'", folder.display())]).await;
    work(&server).await;
    let expect = expect(&server, 1).await;
    server.stop().await.unwrap();
    let (start, bytes) = log(&server, 1);
    let (events, reader) = read(start, &bytes, expect);
    compare(&server, 1, &events, &reader);
    let gids = events.iter().filter_map(|event| match &event.what {
        What::CommitPrepared { gid, .. } | What::AbortPrepared { gid, .. } => gid.as_deref(),
        _ => None,
    });
    assert_eq!(gids.collect::<Vec<_>>(), ["order 17", "order 18", "many"]);

    // from anywhere, in any pieces
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let end = (reader.last_record().unwrap().end.0 - start.0) as usize;
    for _ in 0..60 {
        let from = random.random_range(0..end);
        let end = end.min(from + 6 * PART);
        let mut some = WalReader::new(Lsn(start.0 + from as u64), expect);
        let (mut found, mut rest) = (Vec::new(), &bytes[from..end]);
        let piece = [1, 100, 10_000, 1_000_000][random.random_range(0..4)];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.random_range(1..=piece).min(rest.len()));
            some.feed(now, &mut |event| found.push(event)).unwrap();
            rest = later;
        }
        // no more is passed over than the rest of a page and what began in it
        let (next, until) = ((start.0 + from as u64).next_multiple_of(8192), start.0 + end as u64);
        // where a segment is left, its end belongs to the record
        let end_of = |event: &Event| match event.what {
            What::SegmentSwitch => event.span.start.0 + 24,
            _ => event.span.end.0,
        };
        let within = |event: &&Event| event.span.start.0 >= next && end_of(event) <= until;
        let wanted: Vec<_> = events.iter().filter(within).cloned().collect();
        assert_eq!(found, wanted, "seed {seed}");
    }

    // a flipped bit in any record that tells something, and in any other place, never makes it tell something else
    for _ in 0..200 {
        let event = &events[random.random_range(0..events.len())];
        let told = random.random_bool(0.5);
        let at = if told {
            // its header
            (event.span.start.0 - start.0) as usize + random.random_range(0..24)
        } else {
            random.random_range(0..end)
        };
        let part = at / PART * PART;
        let until = (part + 2 * PART).min(bytes.len());
        let mut piece = bytes[part..until].to_vec();
        piece[at - part] ^= 1 << random.random_range(0..8);
        let mut reader = WalReader::new(Lsn(start.0 + part as u64), expect);
        let mut found = Vec::new();
        let result = reader.feed(&piece, &mut |event| found.push(event));
        let begin = reader.first_record().unwrap_or(Lsn(u64::MAX));
        let mut true_ones = events.iter().filter(|event| event.span.start >= begin);
        assert!(found.iter().all(|event| true_ones.any(|t| t == event)), "seed {seed}, {at}");
        // a page header can lie in between, which has bytes of no meaning
        let across = event.span.start.0 % 8192 > 8192 - 24;
        assert!(result.is_err() || !told || across || begin > event.span.start, "seed {seed}, {at}");
    }
}

/// Kills the server and its backends at once, as a failing machine would.
fn crash(server: &Postgres) {
    let id = fs::read_to_string(server.data_dir().join("postmaster.pid")).unwrap();
    let id = id.lines().next().unwrap();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    server.kill9();
    let kill = Command::new("kill").arg("-KILL").args(children.split_whitespace()).stderr(Stdio::null()).status();
    kill.unwrap();
}

#[tokio::test]
async fn a_crash_within_a_record_is_read_over() {
    let server = Postgres::start(options()).await.unwrap();
    let expect = expect(&server, 1).await;
    let segments = || fs::read_dir(server.data_dir().join("pg_wal")).unwrap().count();
    let mut broken = 0;
    for round in 1.. {
        let before = segments();
        let mut psql = server.program("psql");
        psql.args(["-c", "select pg_logical_emit_message(false, 'x', repeat('y', 200000000))"]);
        let mut psql = psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while segments() < before + 2 && psql.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        crash(&server);
        psql.wait().unwrap();
        server.restart().await.unwrap();
        run(&server, &["create table if not exists after (n int)", "insert into after values (1)"]).await;
        let (start, bytes) = log(&server, 1);
        let (events, reader) = read(start, &bytes, expect);
        compare(&server, 1, &events, &reader);
        broken = events.iter().filter(|event| matches!(event.what, What::OverwriteContrecord { .. })).count();
        if broken > 0 || round == 10 {
            break;
        }
    }
    assert!(broken > 0, "no crash was within a record");
}

#[tokio::test]
async fn the_log_goes_on_through_a_promotion() {
    let server = Postgres::start(options()).await.unwrap();
    run(&server, &["create table item (n int)", "insert into item values (1)"]).await;
    let standby = server.standby(options()).await.unwrap();
    run(&server, &["insert into item values (2)", "select pg_create_restore_point('last')"]).await;
    let end = server.sql("select pg_current_wal_lsn()").await.unwrap();
    while standby.sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'")).await.unwrap() != "t" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    standby.promote().await.unwrap();
    run(&standby, &["insert into item values (3)", "checkpoint"]).await;
    let expect = expect(&standby, 2).await;
    standby.stop().await.unwrap();

    let name = WalFile::History(2).name(SegmentSize::DEFAULT);
    let text = fs::read_to_string(standby.data_dir().join("pg_wal").join(name)).unwrap();
    let history = History::parse(2, &text).unwrap();
    let switch = history.range(2).unwrap().0;
    assert_eq!((history.at(Lsn(switch.0 - 1)), history.at(switch)), (1, 2));

    // the new timeline's first segment begins with a copy of the old one's
    let (start, bytes) = log(&standby, 2);
    assert!(start <= switch);
    let (events, reader) = read(start, &bytes, expect);
    compare(&standby, 2, &events, &reader);
    let ends = |what: &What| matches!(what, What::EndOfRecovery { timeline: 2, previous: 1, .. });
    assert!(
        events.iter().any(|event| ends(&event.what) && event.span.start.since(switch).is_some_and(|gap| gap <= 40))
    );

    // both as a stream: the first to where it is left, then the second from there
    let (old_start, old) = log(&server, 1);
    let mut followed = WalReader::new(old_start, Expect { timeline: 1, ..expect });
    let mut found = Vec::new();
    followed.feed(&old[..(switch.0 - old_start.0) as usize], &mut |event| found.push(event)).unwrap();
    followed.follow(2);
    let end = (reader.last_record().unwrap().end.0 - start.0) as usize;
    followed.feed(&bytes[(switch.0 - start.0) as usize..end], &mut |event| found.push(event)).unwrap();
    assert_eq!(found.iter().filter(|event| event.span.start >= start).cloned().collect::<Vec<_>>(), events);
}

/// Recovers a base with some settings, and gives what is in it.
async fn recover(base: &Path, archive: &Path, target: &[(&str, &str)]) -> String {
    recover_to(base, archive, target).await.0
}

/// The same, with what the server had to say.
async fn recover_to(base: &Path, archive: &Path, target: &[(&str, &str)]) -> (String, String) {
    let command = format!("cp '{}/%f' %p", archive.display());
    let restore = options().set("restore_command", &command).set("recovery_target_action", "promote");
    let options = target.iter().fold(restore, |options, (name, value)| options.set(name, value));
    let restored = Postgres::prepare(options).unwrap();
    let copied = Command::new("cp").arg("-aT").arg(base).arg(restored.data_dir()).status();
    assert!(copied.unwrap().success());
    fs::write(restored.data_dir().join("recovery.signal"), "").unwrap();
    restored.restart().await.unwrap();
    while restored.sql("select pg_is_in_recovery()").await.unwrap() != "f" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (restored.sql("select count(*), max(id) from event").await.unwrap(), restored.log())
}

#[tokio::test]
async fn a_resolved_target_stops_a_recovery_where_the_servers_own_does() {
    let server = Postgres::start(options()).await.unwrap();
    run(&server, &["create table event (id serial primary key)"]).await;
    let folder = tempfile::tempdir().unwrap();
    let (base, insert) = (folder.path().join("base"), folder.path().join("insert"));
    let mut backup = server.program("pg_basebackup");
    backup.arg("-D").arg(&base).args(["-X", "none", "-c", "fast", "--no-manifest"]);
    assert!(backup.status().unwrap().success());
    fs::write(&insert, "insert into event default values;\n").unwrap();
    for name in ["one", "two"] {
        server.pgbench(&["-n", "-c", "8", "-t", "50", "-f", insert.to_str().unwrap()]).await.unwrap();
        run(&server, &[&format!("select pg_create_restore_point('{name}')")]).await;
    }
    run(&server, &["begin; insert into event default values; rollback"]).await;
    let expect = expect(&server, 1).await;
    server.stop().await.unwrap();

    let (start, bytes) = log(&server, 1);
    let (events, reader) = read(start, &bytes, expect);
    let backup_end = |event: &Event| match event.what {
        What::BackupEnd { start } => Some((start, event.span.end)),
        _ => None,
    };
    let (redo, consistent_at) = events.iter().find_map(backup_end).unwrap();
    let until = reader.last_record().unwrap();
    let log = &bytes[(redo.0 - start.0) as usize..(until.end.0 - start.0) as usize];
    let resolved = |target: Target| {
        let reader = WalReader::at_record(redo, expect);
        resolve(reader, log.chunks(10_000), target, consistent_at)
    };
    let commits: Vec<_> = events.iter().filter(|e| e.what.is_commit() && e.span.start > consistent_at).collect();
    assert_eq!(commits.len(), 800);
    let time = commits[333].what.time().unwrap();
    let xid = commits[444].what.transaction().unwrap();
    let archive = server.data_dir().join("pg_wal");
    let same = async |stop: Stop, target: &[(&str, &str)]| {
        let (lsn, inclusive) = (stop.lsn.to_string(), stop.inclusive.to_string());
        let ours = [("recovery_target_lsn", lsn.as_str()), ("recovery_target_inclusive", inclusive.as_str())];
        let ours = recover(&base, &archive, &ours).await;
        assert_eq!(ours, recover(&base, &archive, target).await, "{stop:?}, {target:?}");
        ours
    };
    let found = resolved(Target::Before(time)).unwrap();
    let shown = compare::shown(time);
    same(found.stop, &[("recovery_target_time", &shown), ("recovery_target_inclusive", "off")]).await;
    let found = resolved(Target::Transaction(xid)).unwrap();
    same(found.stop, &[("recovery_target_xid", &xid.to_string())]).await;
    let found = resolved(Target::RestorePoint("one".to_owned())).unwrap();
    assert!(same(found.stop, &[("recovery_target_name", "one")]).await.starts_with("400|"));
    let Resolution { stop, at, .. } = resolved(Target::Latest).unwrap();
    assert!(same(stop, &[]).await.starts_with("800|"));
    assert_eq!((at, stop.lsn), (None, until.start));
    let future = resolved(Target::Before("2100-01-01T00:00:00Z".parse().unwrap())).unwrap();
    assert_eq!((future.stop, future.before), (stop, commits.last().map(|e| (*e).clone())));
}
