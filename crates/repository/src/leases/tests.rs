#![allow(clippy::unwrap_used)]

use std::path::Path as FilePath;

use futures::future::join_all;
use hindsight_format::OperationKind;
use tempfile::TempDir;

use super::*;
use crate::repository::Repository;
use crate::spec::RepositorySpec;

const TTL: Duration = Duration::from_secs(2);

fn operation(id: &str) -> Operation {
    Operation { kind: OperationKind::Capture, id: id.to_owned(), detail: "starts".to_owned() }
}

/// A view of its own on the repository, with its own memory of what it saw: like another process.
async fn view(folder: &FilePath) -> ClusterRepository {
    let spec = RepositorySpec::new(folder.join("repository").display().to_string());
    Repository::open_or_create(&spec).await.unwrap().cluster("rs0").unwrap()
}

async fn acquire(cluster: &ClusterRepository, ttl: Duration) -> Option<Lease> {
    match cluster.acquire("capture", operation("x"), ttl).await.unwrap() {
        Acquired::Held(lease) => Some(lease),
        Acquired::Busy(_) => None,
    }
}

/// Calls again and again until the lease is free, and says how long that took.
async fn wait_for(cluster: &ClusterRepository, ttl: Duration) -> (Lease, Duration) {
    let started = Instant::now();
    loop {
        if let Some(lease) = acquire(cluster, ttl).await {
            return (lease, started.elapsed());
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the lease was never free");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn numbers(cluster: &ClusterRepository) -> Vec<u64> {
    cluster.numbers(&cluster.keys().leases("capture"), |number| cluster.keys().lease("capture", number)).await.unwrap()
}

/// Writes a state as another process would have, on another machine.
async fn stranger(cluster: &ClusterRepository, number: u64, age: SignedDuration) -> LeaseRecord {
    let renewed_at = Timestamp::now() - age;
    let record = LeaseRecord {
        number,
        state: LeaseState::Held,
        holder: LeaseHolder { id: "them".into(), host: "there".into(), pid: 1, pid_space: None, version: "1".into() },
        operation: operation("theirs"),
        acquired_at: renewed_at,
        renewed_at,
        ttl_secs: 2,
    };
    assert!(cluster.repository().create_record(&cluster.keys().lease("capture", number), &record).await.unwrap());
    record
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_exactly_one_wins() {
    let folder = folder();
    let views = join_all((0..16).map(|_| view(folder.path()))).await;
    let tasks = views.iter().cloned().map(|cluster| tokio::spawn(async move { acquire(&cluster, TTL).await }));
    let held: Vec<_> = join_all(tasks).await.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(held.len(), 1);
    let state = views[0].lease_state("capture").await.unwrap().unwrap();
    assert_eq!((state.number, state.state), (held[0].fence(), LeaseState::Held));
    assert!(views[0].lease_is_live("capture", &state));
}

#[tokio::test]
async fn a_lease_lives_on_while_it_is_held_and_is_free_when_released() {
    let folder = folder();
    let (one, two) = (view(folder.path()).await, view(folder.path()).await);
    assert!(one.lease_state("capture").await.unwrap().is_none());
    let lease = acquire(&one, TTL).await.unwrap();
    lease.set_detail("half way".to_owned());
    let started = Instant::now();
    while started.elapsed() < TTL * 3 {
        assert!(acquire(&two, TTL).await.is_none(), "it is renewed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!lease.lost().is_cancelled() && lease.fence() > 5);
    let state = two.lease_state("capture").await.unwrap().unwrap();
    assert_eq!(state.operation.detail, "half way");
    assert!(numbers(&one).await.len() <= 3, "old states are removed");

    let (fence, lost) = (lease.fence(), lease.lost());
    lease.release().await.unwrap();
    assert!(lost.is_cancelled());
    let state = two.lease_state("capture").await.unwrap().unwrap();
    assert!(state.state == LeaseState::Released && state.number > fence && !two.lease_is_live("capture", &state));
    let next = acquire(&two, TTL).await.unwrap();
    assert_eq!(next.fence(), state.number + 1, "numbers only grow");
}

#[tokio::test]
async fn a_lease_that_was_dropped_runs_out() {
    let folder = folder();
    let (one, two) = (view(folder.path()).await, view(folder.path()).await);
    let lease = acquire(&one, TTL).await.unwrap();
    let (lost, fence) = (lease.lost(), lease.fence());
    drop(lease);
    assert!(lost.is_cancelled());
    assert!(acquire(&two, TTL).await.is_none(), "nobody can know yet");
    let (lease, waited) = wait_for(&two, TTL).await;
    assert!(lease.fence() > fence && waited >= TTL - Duration::from_millis(200), "{waited:?}");
    assert!(waited < TTL * 2, "{waited:?}");
}

#[tokio::test]
async fn a_holder_that_was_overtaken_learns_it() {
    let folder = folder();
    let (one, two) = (view(folder.path()).await, view(folder.path()).await);
    let lease = acquire(&one, TTL).await.unwrap();
    stranger(&two, lease.fence() + 1, SignedDuration::ZERO).await;
    tokio::time::timeout(TTL, lease.lost().cancelled()).await.unwrap();
    // releasing what is not ours changes nothing
    let before = numbers(&one).await;
    lease.release().await.unwrap();
    assert_eq!(numbers(&one).await, before);
}

#[tokio::test]
async fn a_number_that_was_cleared_away_gives_no_lease() {
    let folder = folder();
    let (one, two) = (view(folder.path()).await, view(folder.path()).await);
    let lease = acquire(&one, TTL).await.unwrap();
    // Meanwhile others took it and went on, and cleared away what this holder would create next.
    stranger(&two, lease.fence() + 5, SignedDuration::ZERO).await;
    tokio::time::timeout(TTL, lease.lost().cancelled()).await.unwrap();
    assert_eq!(numbers(&one).await.last(), Some(&6));
}

#[tokio::test]
async fn time_that_is_over_by_the_clock_is_watched_before_it_is_believed() {
    let folder = folder();
    let (one, two) = (view(folder.path()).await, view(folder.path()).await);
    stranger(&one, 1, SignedDuration::from_mins(10)).await;
    let started = Instant::now();
    let lease = acquire(&two, TTL).await.unwrap();
    assert!(started.elapsed() >= TTL / 3 + Duration::from_secs(1) && lease.fence() == 2);

    // A holder whose clock is far behind is at work all the same.
    lease.release().await.unwrap();
    let number = numbers(&one).await.last().unwrap() + 1;
    stranger(&one, number, SignedDuration::from_mins(10)).await;
    let renewing = tokio::spawn({
        let one = one.clone();
        async move {
            for step in 1..12 {
                tokio::time::sleep(Duration::from_millis(400)).await;
                stranger(&one, number + step, SignedDuration::from_mins(10)).await;
            }
        }
    });
    let taken = tokio::time::timeout(Duration::from_secs(4), two.acquire("capture", operation("x"), TTL)).await;
    assert!(matches!(taken, Ok(Ok(Acquired::Busy(_)))), "{taken:?}");
    renewing.abort();
}

#[tokio::test]
async fn a_clock_that_is_ahead_does_not_block() {
    let folder = folder();
    let (one, two) = (view(folder.path()).await, view(folder.path()).await);
    stranger(&one, 1, SignedDuration::from_hours(-24)).await;
    let (lease, waited) = wait_for(&two, TTL).await;
    assert!(lease.fence() == 2 && waited < TTL * 2, "{waited:?}");
}

#[tokio::test]
async fn a_holder_whose_process_is_gone_is_not_waited_for() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    let folder = folder();
    let cluster = view(folder.path()).await;
    let mut record = stranger(&cluster, 1, SignedDuration::ZERO).await;
    record.number = 2;
    record.holder = LeaseHolder { pid, ..holder() };
    record.ttl_secs = 3600;
    assert!(!is_gone(&record.holder), "it is a zombie at least, until it is waited for");
    child.wait().unwrap();
    assert!(cluster.repository().create_record(&cluster.keys().lease("capture", 2), &record).await.unwrap());
    assert_eq!(acquire(&cluster, TTL).await.unwrap().fence(), 3);
    // The same number in another container means nothing.
    record.holder.pid_space = Some("elsewhere".to_owned());
    assert!(!is_gone(&record.holder));
    assert!(!is_gone(&holder()));
}

#[tokio::test]
async fn names_are_checked() {
    let folder = folder();
    let cluster = view(folder.path()).await;
    assert!(matches!(cluster.lease_state("../x").await, Err(Error::Name(_))));
    assert!(matches!(cluster.acquire("", operation("x"), TTL).await, Err(Error::Name(_))));
}
