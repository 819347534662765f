//! Several members: their slots, who of them is followed, and what a promotion makes of it.

use std::time::Duration;

use hindsight_engine::{EngineError, FailureKind, Kept, LogRequest, LogStart};
use hindsight_format::Point;
use hindsight_postgres::{Address, Lsn, cluster, follow, slot};
use hindsight_repository::ClusterRepository;
use hindsight_testkit::{Postgres, PostgresOptions};
use tokio::time::sleep;

use crate::captured::{Capture, check, counted, frames};
use crate::{place, repository, soon, written};

/// All members, in this order, as connection strings name them.
fn address(members: &[&Postgres]) -> Address {
    let hosts: Vec<_> = members.iter().map(|member| format!("127.0.0.1:{}", member.port())).collect();
    Address::parse(&format!("postgresql://postgres@{}/postgres", hosts.join(","))).unwrap()
}

async fn open(address: &Address, cluster: &ClusterRepository, after: Option<&Point>) -> Result<LogStart, EngineError> {
    soon(async {
        loop {
            match follow::open(address, &LogRequest { cluster, after, synchronous: false }).await {
                Err(error) if error.what.contains("is active for PID") => {}
                opened => return opened,
            }
        }
    })
    .await
}

async fn capture<'a>(address: &Address, cluster: &'a ClusterRepository, after: Option<&Point>) -> Capture<'a> {
    match open(address, cluster, after).await.unwrap() {
        LogStart::Continues { reader, at } => Capture::of(cluster, reader, at),
        LogStart::Lost { cause } | LogStart::Left { cause } => panic!("it does not go on: {cause}"),
    }
}

/// Where the slot of a member is.
async fn kept(member: &Postgres) -> Option<Lsn> {
    let statement = "select restart_lsn from pg_replication_slots where slot_name like 'hindsight_shop_%'";
    member.sql(statement).await.unwrap().parse().ok()
}

/// Reads and stores until a failure comes; gives it.
async fn until_it_fails(capture: &mut Capture<'_>) -> EngineError {
    soon(async {
        loop {
            match capture.read().await {
                Ok(()) => capture.store().await,
                Err(error) => return error,
            }
        }
    })
    .await
}

async fn caught_up(standby: &Postgres, end: Lsn) {
    soon(async {
        while standby.sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'")).await.unwrap() != "t" {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn wal_is_removed_but_for_slots(server: &Postgres) {
    for _ in 0..3 {
        for statement in
            ["create table if not exists filler (n int)", "insert into filler values (1)", "select pg_switch_wal()"]
        {
            server.sql(statement).await.unwrap();
        }
    }
    server.sql("checkpoint").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_promoted_still_has_what_is_not_stored() {
    let options = || PostgresOptions::default().set("wal_keep_size", "0");
    let server = Postgres::start(options()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let standby = server.standby(options()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    // The standby is named first, and the primary is followed.
    let address = address(&[&standby, &server]);
    let made = soon(slot::keep(&address, &cluster, true)).await.unwrap();
    assert!(matches!(&made, Kept::Made(what) if what.matches("was made").count() == 2), "{made:?}");
    assert!(kept(&server).await.is_some() && kept(&standby).await.is_some());
    let mut capture = self::capture(&address, &cluster, None).await;
    assert_eq!(
        cluster::probe(&address).await.unwrap().members.len(),
        1,
        "the standby by itself, as the first that answers"
    );

    // The slot of the standby comes after what is stored, and never before that.
    capture.limit = usize::MAX;
    for _ in 0..2 {
        server.pgbench(&["-c", "2", "-t", "100", "-n"]).await.unwrap();
        let end = written(&server).await;
        caught_up(&standby, end).await;
        capture.until(end).await;
        let stored = place(&capture.stored.last().unwrap().name.end).0;
        server.pgbench(&["-c", "2", "-t", "50", "-n"]).await.unwrap();
        soon(async {
            loop {
                capture.read().await.unwrap();
                let at = kept(&standby).await.unwrap();
                assert!(at <= stored, "{at} is kept of what is stored up to {stored} only");
                if at == stored {
                    break;
                }
            }
        })
        .await;
    }

    // What was read and is not stored is lost with the primary; the standby has gone on without keeping more than it has to.
    let stored = capture.stored.last().unwrap().name.end.clone();
    wal_is_removed_but_for_slots(&server).await;
    caught_up(&standby, written(&server).await).await;
    standby.sql("checkpoint").await.unwrap();
    server.crash();
    let failed = until_it_fails_without_storing(&mut capture).await;
    assert_eq!(failed.kind, FailureKind::Unreachable, "{}", failed.what);
    let mut slices = std::mem::take(&mut capture.stored);
    drop(capture);
    standby.promote().await.unwrap();
    standby.pgbench(&["-c", "2", "-t", "50", "-n"]).await.unwrap();
    let mut capture = self::capture(&address, &cluster, Some(&stored)).await;
    capture.until(written(&standby).await).await;
    assert_eq!(place(&capture.stored.last().unwrap().name.end).1, 2);
    slices.append(&mut capture.stored);
    check(&cluster, &slices).await;
    assert!(frames(&cluster, &slices).await.iter().any(|(_, timeline, _)| *timeline == 2));
    // 2 x 100 and 2 x 50 twice before, 2 x 50 after; and what the tables cost.
    assert!(counted(&cluster, &slices, "", "commit").await >= 700);

    // An old primary that comes back is another history, and is not followed while the new one is there.
    server.restart().await.unwrap();
    let end = capture.buffer.summary.end.clone();
    drop(capture);
    let mut capture = self::capture(&address, &cluster, Some(&end)).await;
    assert_eq!(place(&end).1, 2);
    standby.sql("create table after (n int)").await.unwrap();
    capture.until(written(&standby).await).await;
    let end = capture.stored.last().unwrap().name.end.clone();
    drop(capture);
    // Nor while the new one is away, however far the old one comes.
    standby.stop().await.unwrap();
    while written(&server).await <= place(&end).0 {
        wal_is_removed_but_for_slots(&server).await;
    }
    let Err(refused) = open(&address, &cluster, Some(&end)).await else { panic!("the old primary was followed") };
    assert!(refused.what.contains("does not answer, and may have gone on"), "{}", refused.what);

    // A member that is away is told of, not waited for; the others have no slot any more.
    let released = soon(slot::keep(&address, &cluster, false)).await.unwrap();
    assert!(matches!(&released, Kept::Released(what) if what.matches("was dropped").count() == 1), "{released:?}");
    assert_eq!(kept(&server).await, None);
    standby.restart().await.unwrap();
    assert!(kept(&standby).await.is_some());
    soon(slot::keep(&address, &cluster, false)).await.unwrap();
    assert_eq!(kept(&standby).await, None);
}

async fn until_it_fails_without_storing(capture: &mut Capture<'_>) -> EngineError {
    capture.limit = usize::MAX;
    soon(async {
        loop {
            if let Err(error) = capture.read().await {
                return error;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_capture_goes_where_the_newest_timeline_is() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let standby = server.standby(PostgresOptions::default()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    let address = address(&[&server, &standby]);
    soon(slot::keep(&address, &cluster, true)).await.unwrap();
    let mut capture = self::capture(&address, &cluster, None).await;
    server.sql("create table t (n int); insert into t values (1)").await.unwrap();
    let end = written(&server).await;
    capture.until(end).await;
    caught_up(&standby, end).await;
    // The old primary runs on, as somebody cut it off, or has forgotten it.
    standby.promote().await.unwrap();
    let failed = until_it_fails(&mut capture).await;
    assert!(failed.what.contains("leads now instead of") && failed.what.contains("timeline 2"), "{}", failed.what);
    let mut slices = std::mem::take(&mut capture.stored);
    drop(capture);
    let end = slices.last().unwrap().name.end.clone();
    match open(&address, &cluster, Some(&end)).await.unwrap() {
        // It may have written something by itself, such as a checkpoint, which the new one does not have.
        LogStart::Left { cause } => assert!(cause.contains("left timeline 1"), "{cause}"),
        LogStart::Lost { cause } => panic!("{cause}"),
        LogStart::Continues { reader, at } => {
            let mut capture = Capture::of(&cluster, reader, at);
            standby.sql("insert into t values (2)").await.unwrap();
            capture.until(written(&standby).await).await;
            slices.append(&mut capture.stored);
            check(&cluster, &slices).await;
        }
    }

    // What only the old one has is another history.
    server.sql("insert into t values (3)").await.unwrap();
    let alone = self::address(&[&server]);
    let mut capture = self::capture(&alone, &cluster, Some(&end)).await;
    capture.until(written(&server).await).await;
    let ahead = capture.stored.last().unwrap().name.end.clone();
    drop(capture);
    let LogStart::Left { cause } = open(&address, &cluster, Some(&ahead)).await.unwrap() else { panic!("it goes on") };
    assert!(cause.contains("left timeline 1 at"), "{cause}");
}
