//! From a backup and a capture, as they are made, to a server.

use hindsight_catalog::Target;
use hindsight_engine::{LogBuffer, LogRequest, LogStart, SnapshotRequest};
use hindsight_format::{Point, SliceName};
use hindsight_postgres::{Address, Lsn, STREAM, base, follow, of_point, slot};
use hindsight_testkit::Postgres;
use tokio::sync::watch;

use super::moments::contents;
use super::stored::{Stored, clock};
use super::{job, restored, source, target};

/// Follows the log from a point on, and stores each piece that comes.
async fn capture(stored: &Stored, address: &Address, after: &Point, captured: &watch::Sender<Lsn>) {
    let request = LogRequest { cluster: &stored.cluster, after: Some(after), synchronous: false };
    let LogStart::Continues { mut reader, at } = follow::open(address, &request).await.unwrap() else {
        panic!("no log")
    };
    let mut buffer = LogBuffer::starting_at(at);
    loop {
        reader.read(&mut buffer).await.unwrap();
        if buffer.is_empty() {
            continue;
        }
        let piece = buffer.take();
        let name = SliceName { start: piece.summary.start.clone(), end: piece.summary.end.clone(), fence: 1 };
        piece.store(&stored.cluster, stored.cluster.keys().slice(STREAM, 1, &name), 3).await.unwrap();
        reader.stored(&name.end);
        captured.send_replace(of_point(&name.end).unwrap().0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_and_captured_comes_back() {
    let server = Postgres::start(source()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let stored = Stored::new().await;
    let address = Address::parse(&server.uri()).unwrap();
    slot::keep(&address, &stored.cluster, true).await.unwrap();
    let request = SnapshotRequest {
        id: "2026-01-01T00:00:00Z".to_owned(),
        epoch: 1,
        wanted: None,
        parent: None,
        namespaces: Vec::new(),
        compression_level: 3,
        parallel: 0,
        hash: false,
        checkpoint: 1 << 30,
        resume: false,
    };
    let job = job(&stored.cluster);
    let (manifest, _) = tokio::join!(base::take(&address, &job, &request), async {
        server.pgbench(&["-n", "-c", "4", "-T", "2"]).await.unwrap()
    });
    let manifest = manifest.unwrap();
    stored.cluster.put_manifest(&manifest).await.unwrap();

    let (captured, mut seen) = watch::channel(Lsn::INVALID);
    let work = async {
        let mut moments = Vec::new();
        for name in ["one", "two"] {
            server.pgbench(&["-n", "-c", "4", "-T", "2"]).await.unwrap();
            let lsn = server.sql(&format!("SELECT pg_create_restore_point('{name}')")).await.unwrap();
            // One that is longer than a slice may be.
            server.sql("SELECT pg_logical_emit_message(false, 'x', repeat('y', 40000000))").await.unwrap();
            moments.push((name, clock(&server).await, lsn, contents(&server).await));
        }
        server.pgbench(&["-n", "-c", "4", "-T", "3"]).await.unwrap();
        let end: Lsn = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap();
        seen.wait_for(|captured| *captured >= end).await.unwrap();
        moments.push(("end", clock(&server).await, end.to_string(), contents(&server).await));
        moments
    };
    let last = manifest.streams[STREAM].last.clone();
    let moments = tokio::select! {
        () = capture(&stored, &address, &last, &captured) => unreachable!(),
        moments = work => moments,
    };
    server.stop().await.unwrap();
    for (name, time, lsn, was) in &moments {
        let texts = if *name == "end" { vec![lsn.clone()] } else { vec![time.to_string(), format!("name:{name}")] };
        for text in texts {
            let (found, preview, _) = restored(&stored, &target(&stored, &text).await.unwrap()).await;
            assert_eq!(contents(&found).await, *was, "{text}: {preview:?}");
        }
    }
    let (found, _, done) = restored(&stored, &Target::Snapshot(manifest.id)).await;
    assert_eq!(found.sql("SELECT count(*) FROM pgbench_accounts").await.unwrap(), "100000");
    assert_eq!(done.totals.collections, 3);
}
