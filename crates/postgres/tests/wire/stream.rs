//! The log as it is written.

use std::time::Duration;

use hindsight_engine::FailureKind;
use hindsight_postgres::wire::{Connection, Replication, StandbyStatus, TimelineEnd, WalEvent, WalStream};
use hindsight_postgres::{Address, Lsn, TargetSession};
use hindsight_testkit::{Postgres, PostgresOptions};

use crate::{connect, soon, told};

/// Streams until `until`, checks that pieces meet, and reports each as flushed.
async fn follow(stream: &mut WalStream, from: Lsn, until: Lsn) -> Vec<u8> {
    let (mut at, mut log) = (from, Vec::new());
    while at < until {
        match soon(stream.next()).await.unwrap() {
            WalEvent::Data(data) => {
                assert_eq!(data.start, at);
                at = at.checked_add(data.bytes.len().try_into().unwrap()).unwrap();
                assert!(data.end >= at);
                log.extend_from_slice(&data.bytes);
            }
            WalEvent::Keepalive(keepalive) => assert!(keepalive.end >= at),
            WalEvent::TimelineEnd(end) => panic!("{end:?} at {at}"),
        }
        stream.send_status(StandbyStatus { written: at, flushed: at, ..Default::default() }).await.unwrap();
    }
    log
}

async fn position(server: &Postgres) -> Lsn {
    server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_log_is_followed_while_pgbench_writes_it() {
    // The files are kept for the comparison, not by the slot.
    let server = Postgres::start(PostgresOptions::default().set("wal_keep_size", "1GB")).await.unwrap();
    server.pgbench(&["-i", "-s", "3", "-q"]).await.unwrap();
    let mut connection = connect(&server.uri(), Replication::Physical).await.unwrap();
    assert_eq!(connection.read_slot("keeper").await.unwrap(), None);
    connection.create_physical_slot("keeper", true).await.unwrap();
    assert_eq!(connection.create_physical_slot("keeper", true).await.unwrap_err().sqlstate(), Some("42710"));
    let kept = connection.read_slot("keeper").await.unwrap().unwrap();
    let from = kept.restart.unwrap();
    assert_eq!(kept.timeline, Some(1));

    let mut stream = soon(connection.start_replication(Some("keeper"), from, 1)).await.unwrap();
    let (_, log) = tokio::join!(async { server.pgbench(&["-c", "2", "-T", "3"]).await.unwrap() }, async {
        // So far that it is still being written.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let until = position(&server).await;
        follow(&mut stream, from, until).await
    });
    server.sql("CHECKPOINT").await.unwrap();
    let until = position(&server).await;
    let mut at = from.checked_add(log.len().try_into().unwrap()).unwrap();
    let rest = follow(&mut stream, at, until).await;
    at = at.checked_add(rest.len().try_into().unwrap()).unwrap();
    assert!(log.len() > 1 << 20, "{} bytes", log.len());

    // What was streamed is what is in the files.
    let whole = [log, rest].concat();
    const SEGMENT: u64 = 16 << 20;
    let mut compared = 0;
    while compared < whole.len() {
        let position = from.0 + u64::try_from(compared).unwrap();
        let (number, offset) = (position / SEGMENT, usize::try_from(position % SEGMENT).unwrap());
        let name = format!("{:08X}{:08X}{:08X}", 1, number >> 8, number & 0xFF);
        let file = std::fs::read(server.data_dir().join("pg_wal").join(name)).unwrap();
        let length = (file.len() - offset).min(whole.len() - compared);
        assert!(whole.get(compared..compared + length) == file.get(offset..offset + length), "at {position:X}");
        compared += length;
    }

    // The slot keeps nothing that was reported as flushed, and somebody else cannot have it.
    let mut other = connect(&server.uri(), Replication::Physical).await.unwrap();
    soon(async {
        while other.read_slot("keeper").await.unwrap().unwrap().restart != Some(at) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let failure = other.start_replication(Some("keeper"), at, 1).await.unwrap_err();
    assert_eq!(failure.sqlstate(), Some("55006"));
    assert_eq!(told(failure).0, FailureKind::Server);

    // A status that asks for an answer gets one; a clean end gives the session back.
    stream.send_status(StandbyStatus { written: at, flushed: at, applied: Lsn::INVALID, reply: true }).await.unwrap();
    soon(async { while !matches!(stream.next().await.unwrap(), WalEvent::Keepalive(_)) {} }).await;
    let mut connection = soon(stream.finish()).await.unwrap();
    assert_eq!(connection.identify_system().await.unwrap().timeline, 1);
    connection.drop_slot("keeper", true).await.unwrap();
    assert_eq!(connection.read_slot("keeper").await.unwrap(), None);
    connection.close().await;
}

#[tokio::test]
async fn what_cannot_be_streamed() {
    let server = Postgres::start(PostgresOptions::default().set("wal_keep_size", "0")).await.unwrap();
    let begin = async || connect(&server.uri(), Replication::Physical).await.unwrap();
    let here = position(&server).await;
    let failure = begin().await.start_replication(Some("nobody's"), here, 1).await.unwrap_err();
    assert!(failure.hint().unwrap().contains("there may be a gap"), "{failure}");
    assert!(told(failure).1.contains("\"nobody's\" does not exist"));
    let mut connection = begin().await;
    assert!(connection.drop_slot("no \"body", false).await.is_err());
    assert!(connection.drop_slot("nobody", false).await.unwrap_err().hint().is_some());

    // A log that goes on without anybody keeping it.
    for _ in 0..4 {
        server
            .sql("SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS t (a int); INSERT INTO t VALUES (1); CHECKPOINT")
            .await
            .unwrap();
    }
    let failure = match begin().await.start_replication(None, Lsn(0x100_0000), 1).await {
        Ok(mut stream) => soon(stream.next()).await.unwrap_err(),
        Err(failure) => failure,
    };
    assert_eq!(failure.sqlstate(), Some("58P01"), "{failure}");
    assert!(failure.hint().unwrap().contains("there is a gap"), "{failure}");
    // A timeline that is not in its history, and a position that has not been written.
    assert!(begin().await.start_replication(None, here, 7).await.is_err());
    let future = here.checked_add(1 << 40).unwrap();
    // The server looks at it only after it has begun to copy.
    let mut stream = begin().await.start_replication(None, future, 1).await.unwrap();
    assert!(soon(stream.next()).await.unwrap_err().to_string().contains("is ahead of the WAL flush position"));
}

#[tokio::test]
async fn a_server_that_ends_while_it_streams() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    for killed in [true, false] {
        let connection = connect(&server.uri_of("postgres"), Replication::Physical).await.unwrap();
        let from = position(&server).await;
        let mut stream = connection.start_replication(None, Lsn(from.0 & !0xFF_FFFF), 1).await.unwrap();
        let stop = async {
            if killed {
                server.kill9();
            } else {
                server.stop().await.unwrap();
            }
        };
        let (failure, ()) = tokio::join!(
            soon(async {
                loop {
                    match stream.next().await {
                        Ok(WalEvent::Data(data)) => {
                            let at = Lsn(data.start.0 + u64::try_from(data.bytes.len()).unwrap());
                            let status = StandbyStatus { written: at, flushed: at, ..Default::default() };
                            if let Err(failure) = stream.send_status(status).await {
                                return failure;
                            }
                        }
                        Ok(_) => {}
                        Err(failure) => return failure,
                    }
                }
            }),
            stop
        );
        let (kind, what) = told(failure);
        assert_eq!(kind, FailureKind::Unreachable, "{what}");
        assert!(stream.finish().await.is_err() || !killed);
        server.restart().await.unwrap();
    }
}

#[tokio::test]
async fn a_standby_that_is_promoted_ends_its_timeline() {
    let primary = Postgres::start(PostgresOptions::default()).await.unwrap();
    let standby = primary.standby(PostgresOptions::default()).await.unwrap();

    // The right one of two, whatever their order.
    let both =
        format!("{},127.0.0.1:{}/postgres", primary.uri_of("postgres").trim_end_matches("/postgres"), standby.port());
    for (target, port) in [
        ("any", primary.port()),
        ("primary", primary.port()),
        ("read-write", primary.port()),
        ("standby", standby.port()),
        ("read-only", standby.port()),
        ("prefer-standby", standby.port()),
    ] {
        for replication in [Replication::No, Replication::Physical] {
            let connection = connect(&format!("{both}?target_session_attrs={target}"), replication).await.unwrap();
            assert_eq!(connection.host().port, port, "{target}");
        }
    }
    let address = Address::parse(&primary.uri()).unwrap();
    let failure = Connection::connect(&address.with_target(TargetSession::Standby), Replication::No).await.unwrap_err();
    assert_eq!(told(failure).0, FailureKind::Unreachable);
    Connection::connect(&address.with_target(TargetSession::PreferStandby), Replication::No).await.unwrap();

    // From a standby, through its promotion, into the next timeline.
    let mut connection = connect(&standby.uri(), Replication::Physical).await.unwrap();
    assert!(connection.in_recovery().await.unwrap());
    connection.create_physical_slot("s", true).await.unwrap();
    let from = connection.read_slot("s").await.unwrap().unwrap().restart.unwrap();
    let mut stream = connection.start_replication(Some("s"), from, 1).await.unwrap();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100000) AS a").await.unwrap();
    let until = position(&primary).await;
    let log = follow(&mut stream, from, until).await;
    let (mut at, promoted) = (from.checked_add(log.len().try_into().unwrap()).unwrap(), standby.promote());
    let (end, ()) = tokio::join!(
        soon(async {
            loop {
                match stream.next().await.unwrap() {
                    WalEvent::Data(data) => {
                        assert_eq!(data.start, at);
                        at = at.checked_add(data.bytes.len().try_into().unwrap()).unwrap();
                        stream
                            .send_status(StandbyStatus { written: at, flushed: at, ..Default::default() })
                            .await
                            .unwrap();
                    }
                    WalEvent::Keepalive(_) => {}
                    WalEvent::TimelineEnd(end) => return end,
                }
            }
        }),
        async { promoted.await.unwrap() }
    );
    assert_eq!(end, TimelineEnd { next: 2, start: at });
    let mut connection = soon(stream.finish()).await.unwrap();
    let history = connection.timeline_history(2).await.unwrap().unwrap();
    assert_eq!(history.file, "00000002.history");
    assert!(String::from_utf8_lossy(&history.content).starts_with(&format!("1\t{at}\t")), "{history:?}");
    assert!(!connection.in_recovery().await.unwrap());

    // Asked for right there, the old timeline has no more; the new one goes on from there.
    let mut stream = connection.start_replication(Some("s"), end.start, 1).await.unwrap();
    assert_eq!(soon(stream.next()).await.unwrap(), WalEvent::TimelineEnd(end));
    let connection = stream.finish().await.unwrap();
    let mut stream = connection.start_replication(Some("s"), end.start, end.next).await.unwrap();
    standby.sql("INSERT INTO t VALUES (0)").await.unwrap();
    let until = position(&standby).await;
    follow(&mut stream, end.start, until).await;
}
