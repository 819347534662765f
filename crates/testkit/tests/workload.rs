//! The workload does everything it promises, and stands still when it is told to.
//!
//! `HINDSIGHT_WORKLOAD_SECONDS` lets it run longer, `HINDSIGHT_WORKLOAD_SEED` otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use bson::{RawDocumentBuf, Timestamp, doc};
use hindsight_testkit::workload::{Paused, Stats, Workload, WorkloadOptions};
use hindsight_testkit::{ClusterState, ReplicaSet, last_optime};
use mongodb::Client;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The last oplog entry that tells of a change in data. Servers write no-ops and look after their sessions by themselves.
async fn last_change(client: &Client) -> Timestamp {
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let filter = doc! {"op": {"$ne": "n"}, "ns": {"$nin": ["config.system.sessions", "config.$cmd"]}};
    // Raw, as documents of this depth could overflow the stack.
    let last = oplog.find_one(filter).sort(doc! {"$natural": -1}).await.unwrap().unwrap();
    last.get_timestamp("ts").unwrap()
}

/// The kinds of operations that never had an effect.
fn undone(stats: &Stats) -> Vec<String> {
    stats.kinds.iter().filter(|(_, counts)| counts.done == 0).map(|(kind, _)| kind.to_string()).collect()
}

/// Runs the workload for a while and calls `look` in pauses; every third one waits for all transactions to end.
async fn run(set: &ReplicaSet, options: WorkloadOptions, look: impl AsyncFn(&Paused)) -> Stats {
    let seconds = setting("HINDSIGHT_WORKLOAD_SECONDS", 8);
    let client = set.client().await.unwrap();
    let seed = setting("HINDSIGHT_WORKLOAD_SEED", 7);
    let workload = Workload::start(client.clone(), seed, options).await.unwrap();
    let begun = Instant::now();
    let mut changes = Vec::new();
    // Rare ones need their time.
    let allowed = |stats: &Stats| if seconds >= 60 { 0 } else { stats.kinds.len() / 2 };
    // A machine with other things to do needs longer for as much.
    let is_over = || {
        let (elapsed, stats) = (begun.elapsed().as_secs(), workload.stats());
        elapsed >= seconds && (undone(&stats).len() <= allowed(&stats) || elapsed >= 10 * seconds)
    };
    while !is_over() && !workload.has_failed() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let paused = match changes.len() % 3 {
            2 => workload.pause_settled().await.unwrap(),
            _ => workload.pause().await.unwrap(),
        };
        let last = last_change(&client).await;
        assert!((last.time, last.increment) <= (paused.optime.0, paused.optime.1));
        let stats = workload.stats();
        look(&paused).await;
        assert_eq!(last, last_change(&client).await, "something was written during a pause");
        assert_eq!(stats, workload.stats());
        changes.push(last);
        paused.resume();
    }
    let stats = workload.stop().await.unwrap();
    println!("{stats}");
    assert!(changes.is_sorted_by(|a, b| a < b), "nothing happens between pauses: {changes:?}");
    let undone = undone(&stats);
    assert!(undone.len() <= allowed(&stats), "never done: {undone:?}");
    assert!(stats.held_transactions > 0);
    stats
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member() {
    let set = ReplicaSet::builder().arg("--setParameter").arg("enableTestCommands=1").start().await.unwrap();
    let client = set.client().await.unwrap();
    let options = WorkloadOptions { test_commands: true, ..WorkloadOptions::default() };
    run(&set, options, async |paused| {
        // With open transactions the one member can't tell the state.
        if paused.open_transactions == 0 {
            let state = ClusterState::read(&client).await.unwrap();
            assert_eq!(state.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members() {
    let set = ReplicaSet::builder().members(3).start().await.unwrap();
    let primary = set.primary_index().await.unwrap();
    let secondary = async |n| set.direct_client((primary + n) % 3).await.unwrap();
    let (one, other) = (secondary(1).await, secondary(2).await);
    run(&set, WorkloadOptions::default(), async |paused| {
        let state = async |member: &Client| {
            while last_optime(member).await.unwrap() < paused.optime {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            ClusterState::read(member).await.unwrap()
        };
        assert_eq!(state(&one).await.diff(&state(&other).await), Vec::<String>::new());
    })
    .await;
}
