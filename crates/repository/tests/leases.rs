//! Leases on stores that misbehave.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Mood, MoodyStore};
use hindsight_format::{LeaseState, Operation, OperationKind};
use hindsight_repository::{Acquired, ClusterRepository, Lease, Repository};

const TTL: Duration = Duration::from_secs(2);

async fn acquire(cluster: &ClusterRepository) -> Option<Lease> {
    let operation = Operation { kind: OperationKind::Restore, id: "r".into(), detail: String::new() };
    match cluster.acquire("operation", operation, TTL).await.unwrap() {
        Acquired::Held(lease) => Some(lease),
        Acquired::Busy(_) => None,
    }
}

async fn over(store: &MoodyStore) -> ClusterRepository {
    Repository::over(Arc::new(store.clone()), "moody://").await.unwrap().cluster("rs0").unwrap()
}

#[tokio::test]
async fn a_stalled_holder_knows_that_it_lost_before_anybody_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let stalls = MoodyStore::new(folder.path(), Mood::Fine);
    let (one, two) = (over(&stalls).await, over(&MoodyStore::new(folder.path(), Mood::Fine)).await);
    let lease = acquire(&one).await.unwrap();
    stalls.set(Mood::Hangs);
    let lost_at = tokio::spawn({
        let lost = lease.lost();
        async move {
            lost.cancelled().await;
            Instant::now()
        }
    });
    let next = loop {
        if let Some(next) = acquire(&two).await {
            break next;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let taken_at = Instant::now();
    assert!(lease.lost().is_cancelled() && lost_at.await.unwrap() < taken_at);
    assert!(next.fence() > lease.fence());
    // It wakes up, and changes nothing.
    stalls.set(Mood::Fine);
    lease.release().await.unwrap();
    tokio::time::sleep(TTL).await;
    assert!(!next.lost().is_cancelled());
    next.release().await.unwrap();
}

#[tokio::test]
async fn answers_that_get_lost_cost_no_lease() {
    let folder = tempfile::tempdir().unwrap();
    let store = MoodyStore::new(folder.path(), Mood::Fine);
    let cluster = over(&store).await;
    let lease = acquire(&cluster).await.unwrap();
    for _ in 0..4 {
        store.set(Mood::LosesAnswers);
        tokio::time::sleep(TTL / 2).await;
        store.set(Mood::Fine);
        tokio::time::sleep(TTL / 2).await;
        assert!(!lease.lost().is_cancelled());
    }
    assert!(lease.fence() > 4);
    lease.release().await.unwrap();
    let state = cluster.lease_state("operation").await.unwrap().unwrap();
    assert_eq!(state.state, LeaseState::Released);
}

#[tokio::test]
async fn a_store_that_recovers_in_time_costs_no_lease() {
    let folder = tempfile::tempdir().unwrap();
    let store = MoodyStore::new(folder.path(), Mood::Fine);
    let lease = acquire(&over(&store).await).await.unwrap();
    for mood in [Mood::Hangs, Mood::ReadOnly] {
        store.set(mood);
        tokio::time::sleep(TTL / 2).await;
        store.set(Mood::Fine);
        tokio::time::sleep(TTL).await;
        assert!(!lease.lost().is_cancelled(), "{mood:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_racy_store_settling_leaves_one_winner() {
    let folder = tempfile::tempdir().unwrap();
    let store = MoodyStore::new(folder.path(), Mood::RacyCreate);
    let mut views = Vec::new();
    for _ in 0..8 {
        views.push(over(&store).await);
    }
    let tasks = views.into_iter().map(|cluster| tokio::spawn(async move { acquire(&cluster).await }));
    let held = futures::future::join_all(tasks).await.into_iter().filter_map(Result::unwrap).count();
    assert_eq!(held, 1);
}
