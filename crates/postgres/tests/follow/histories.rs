//! Timelines that go on, and histories that part.

use std::process::Command;

use hindsight_postgres::wal::{Segment, SegmentSize};
use hindsight_postgres::{Lsn, point, slot};
use hindsight_testkit::Postgres;

use crate::captured::{Capture, check, compare, frames};
use crate::{address, came_by, left, open, options, place, repository, soon, written};

async fn caught_up(standby: &Postgres, server: &Postgres) {
    let end = written(server).await;
    soon(async {
        while standby.sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'")).await.unwrap() != "t" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_standby_is_captured_through_its_promotion() {
    let server = Postgres::start(options()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let standby = server.standby(options()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&standby), &cluster, true).await.unwrap();
    let mut capture = Capture::open(&standby, &cluster, None).await;
    server.pgbench(&["-c", "2", "-t", "200", "-n"]).await.unwrap();
    caught_up(&standby, &server).await;
    capture.until(written_by_standby(&standby).await).await;
    let before = capture.stored.last().unwrap().name.end.clone();
    assert_eq!(place(&before).1, 1);

    // One slice holds the switch.
    capture.limit = usize::MAX;
    server.sql("select pg_switch_wal()").await.unwrap();
    server.pgbench(&["-c", "2", "-t", "20", "-n"]).await.unwrap();
    caught_up(&standby, &server).await;
    standby.promote().await.unwrap();
    standby.pgbench(&["-c", "2", "-t", "200", "-n"]).await.unwrap();
    capture.until(written(&standby).await).await;
    let slices = capture.stored.clone();
    let last = slices.last().unwrap();
    assert_eq!((&last.name.start, place(&last.name.end).1), (&before, 2));
    let parts = frames(&cluster, &slices).await;
    let switch = parts.iter().find(|(_, timeline, _)| *timeline == 2).unwrap().0;
    let history = std::fs::read_to_string(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
    assert!(history.starts_with(&format!("1\t{switch}\t")), "{history}");
    check(&cluster, &slices).await;
    // The old timeline is compared with the server that wrote it, the new one with the one that it is of.
    for (at, timeline, raw) in parts {
        let end = at.checked_add(raw.len() as u64).unwrap();
        let server = if timeline == 1 { &server } else { &standby };
        assert!(raw == crate::captured::of_server(server, timeline, at, end), "{at} to {end}");
    }
    drop(capture);

    // From the switch itself, and from any place before and after.
    let at_switch = point(before.time, switch, 1).unwrap();
    for after in [&before, &at_switch, &last.name.end] {
        let mut capture = Capture::open(&standby, &cluster, Some(after)).await;
        standby.sql("create table if not exists t (a int); insert into t values (1)").await.unwrap();
        let until = written(&standby).await;
        soon(async {
            while capture.end() < until {
                capture.read().await.unwrap();
            }
        })
        .await;
        assert_eq!(place(&capture.buffer.summary.end).1, 2);
    }

    // The server that was left behind goes on by itself, and nothing of it is taken for the other's, nor the other way round.
    server.pgbench(&["-c", "2", "-t", "3000", "-n"]).await.unwrap();
    let on_the_old = point(before.time, written(&server).await, 1).unwrap();
    assert!(written(&standby).await < place(&on_the_old).0);
    let cause = left(&standby, &cluster, &on_the_old).await;
    assert!(cause.contains(&format!("left timeline 1 at {switch}")), "{cause}");
    let by_the_new = came_by(&standby, &cluster, &[&before, &at_switch, &on_the_old]).await;
    assert_eq!(by_the_new, Some(at_switch.clone()));
    // One that may be behind is waited for.
    let on_the_new = point(before.time, Lsn(place(&on_the_old).0.0 + (1 << 20)), 2).unwrap();
    let Err(error) = open(&server, &cluster, Some(&on_the_new)).await else { panic!("it was opened") };
    assert!(error.what.contains("does not come from"), "{}", error.what);
    let cause = left(&server, &cluster, &last.name.end).await;
    assert!(cause.contains("is on timeline 1, which does not come from"), "{cause}");
    let by_the_old = came_by(&server, &cluster, &[&before, &last.name.end]).await;
    assert_eq!(by_the_old, Some(before.clone()));
    assert_eq!(came_by(&server, &cluster, &[&last.name.end]).await, None);
    standby.pgbench(&["-c", "2", "-t", "6000", "-n"]).await.unwrap();
    assert!(written(&standby).await > place(&on_the_old).0);
    let cause = left(&standby, &cluster, &on_the_old).await;
    assert!(cause.contains(&format!("left timeline 1 at {switch}")), "{cause}");
}

async fn written_by_standby(standby: &Postgres) -> Lsn {
    standby.sql("select pg_last_wal_replay_lsn()").await.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_server_that_was_set_back_is_not_taken_for_the_same() {
    let server = Postgres::start(options()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let (folder, cluster) = repository(&server).await;
    let mut capture = Capture::open(&server, &cluster, None).await;
    server.pgbench(&["-c", "1", "-t", "100", "-n"]).await.unwrap();
    capture.until(written(&server).await).await;
    drop(capture);
    server.stop().await.unwrap();
    let copy = folder.path().join("copy");
    let copied = Command::new("cp").arg("-aT").arg(server.data_dir()).arg(&copy).status();
    assert!(copied.unwrap().success());
    server.restart().await.unwrap();
    let cluster_after = cluster.slices().await.unwrap().last().unwrap().name.end.clone();
    let mut capture = Capture::open(&server, &cluster, Some(&cluster_after)).await;
    // What is read at once can be one slice.
    for _ in 0..2 {
        server.pgbench(&["-c", "1", "-t", "150", "-n"]).await.unwrap();
        capture.until(written(&server).await).await;
    }
    compare(&server, &cluster, &capture.stored).await;
    let ends: Vec<_> = capture.stored.iter().map(|slice| slice.name.end.clone()).collect();
    let end = ends.last().unwrap().clone();
    drop(capture);

    server.stop().await.unwrap();
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    let copied = Command::new("cp").arg("-aT").arg(&copy).arg(server.data_dir()).status();
    assert!(copied.unwrap().success());
    server.restart().await.unwrap();
    let Err(error) = open(&server, &cluster, Some(&end)).await else { panic!("it was opened") };
    assert!(error.what.contains("the server's has come to"), "{}", error.what);
    server.pgbench(&["-c", "1", "-t", "2000", "-n"]).await.unwrap();
    assert!(written(&server).await > place(&end).0);
    assert!(left(&server, &cluster, &end).await.contains("it was set back"));
    // Timelines do not tell where: only what is stored counts, and is compared.
    assert_eq!(came_by(&server, &cluster, &[&cluster_after, &end]).await, Some(cluster_after.clone()));
    let [.., next_to_last, _] = ends.as_slice() else { panic!("one slice alone") };
    assert_eq!(came_by(&server, &cluster, &[&cluster_after, next_to_last, &end]).await, Some(next_to_last.clone()));
    assert!(left(&server, &cluster, next_to_last).await.contains("it was set back"));
    let unknown = point(end.time, Lsn(place(&cluster_after).0.0 + 8), 1).unwrap();
    assert_eq!(came_by(&server, &cluster, &[&cluster_after, &unknown, &end]).await, None);
    // What is stored from before the copy was made is still what it has.
    Capture::open(&server, &cluster, Some(&cluster_after)).await;
}

/// Leaves the segment, with nothing after it.
async fn leave_segment(server: &Postgres) -> Lsn {
    server.sql("select pg_switch_wal()").await.unwrap();
    let end = written(server).await;
    assert!(end.0.is_multiple_of(16 << 20), "{end}");
    end
}

#[tokio::test]
async fn a_server_that_was_set_back_is_known_at_the_end_of_a_segment_too() {
    // Nothing is written but by the test.
    let quiet = || options().set("autovacuum", "off").set("checkpoint_timeout", "1h");
    let server = Postgres::start(quiet()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    server.sql("checkpoint").await.unwrap();
    let (folder, cluster) = repository(&server).await;
    server.stop().await.unwrap();
    let copy = folder.path().join("copy");
    let copied = Command::new("cp").arg("-aT").arg(server.data_dir()).arg(&copy).status();
    assert!(copied.unwrap().success());
    server.restart().await.unwrap();
    let mut capture = Capture::open(&server, &cluster, None).await;
    server.pgbench(&["-c", "1", "-t", "100", "-n"]).await.unwrap();
    let boundary = leave_segment(&server).await;
    capture.until(boundary).await;
    let end = capture.stored.last().unwrap().name.end.clone();
    assert_eq!(place(&end).0, boundary);
    drop(capture);
    let segment = Segment { timeline: 1, number: boundary.0 / (16 << 20) - 1 }.name(SegmentSize::DEFAULT);
    let before = server.data_dir().join("pg_wal").join(segment);

    // It goes on where nothing was written yet, and where something was; also without the segment before.
    Capture::open(&server, &cluster, Some(&end)).await;
    server.sql("create table t (a int)").await.unwrap();
    for gone in [false, true] {
        if gone {
            std::fs::remove_file(&before).unwrap();
        }
        let mut capture = Capture::open(&server, &cluster, Some(&end)).await;
        let until = written(&server).await;
        soon(async {
            while capture.end() < until {
                capture.read().await.unwrap();
            }
        })
        .await;
    }

    server.stop().await.unwrap();
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    let copied = Command::new("cp").arg("-aT").arg(&copy).arg(server.data_dir()).status();
    assert!(copied.unwrap().success());
    server.restart().await.unwrap();
    server.pgbench(&["-c", "1", "-t", "150", "-n"]).await.unwrap();
    assert_eq!(leave_segment(&server).await, boundary);
    server.sql("create table other (a int)").await.unwrap();
    // The unused rest of the segment before is alike: what comes next names another record.
    for gone in [false, true] {
        if gone {
            std::fs::remove_file(&before).unwrap();
        }
        let cause = left(&server, &cluster, &end).await;
        assert!(cause.contains("it was set back"), "{cause}");
    }
}

#[tokio::test]
async fn it_can_begin_where_a_segment_was_left_and_nothing_came_after() {
    let server = Postgres::start(options().set("autovacuum", "off").set("checkpoint_timeout", "1h")).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    server.sql("create table t (a int)").await.unwrap();
    let boundary = leave_segment(&server).await;
    let mut capture = Capture::open(&server, &cluster, None).await;
    assert_eq!(capture.end(), boundary);
    server.sql("insert into t values (1)").await.unwrap();
    capture.until(written(&server).await).await;
    compare(&server, &cluster, &capture.stored).await;
    check(&cluster, &capture.stored).await;
}
