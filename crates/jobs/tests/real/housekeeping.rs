//! Deleting: nothing but what was told, and what is left restores exactly.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bson::{Document, doc};
use hindsight_catalog::{Refusal, Target, Wish, timeline, without};
use hindsight_engine::{Progress, Selection};
use hindsight_format::{Operation, OperationKind, SnapshotManifest};
use hindsight_jobs::{JobError, history, propose_removal, remove};
use hindsight_repository::{Acquired, DEFAULT_TTL, Lease};
use hindsight_testkit::{ClusterState, ReplicaSet};
use jiff::{SignedDuration, Timestamp};
use mongodb::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{Protected, Running, Store, logging, same, this_moment};

/// Snapshots with log between and after them, and moments in it.
struct Past {
    snapshots: Vec<SnapshotManifest>,
    /// Between the first and the second snapshot, and after the second.
    moments: Vec<(Target, ClusterState)>,
}

/// Two snapshots at different seconds, writes after each, and all of it captured.
async fn past(here: &Protected, client: &Client) -> Result<(Past, Running)> {
    let notes = client.database("app").collection::<Document>("notes");
    notes.insert_one(doc! {"_id": -1}).await?;
    let mut past = Past { snapshots: vec![here.backup().await?], moments: Vec::new() };
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    for round in 0..2 {
        for n in 0..20 {
            notes.insert_one(doc! {"_id": round * 100 + n}).await?;
        }
        let moment = this_moment(client).await?;
        past.moments.push((moment.clone(), ClusterState::read(client).await?));
        here.captured(&moment).await?;
        if round == 0 {
            // A second later, so that seconds tell the two apart.
            let before = past.snapshots[0].restore_time();
            while Timestamp::now().duration_since(before) < SignedDuration::from_secs(2) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            notes.insert_one(doc! {"_id": "between"}).await?;
            past.snapshots.push(here.backup().await?);
        }
    }
    Ok((past, agent))
}

async fn delete(here: &Protected, wish: &Wish) -> Result<hindsight_catalog::Removal, JobError> {
    let plan = propose_removal(&here.cluster, wish).await?;
    remove(&here.cluster, wish, &plan, &Progress::default(), &CancellationToken::new()).await
}

async fn take(here: &Protected, name: &str, kind: OperationKind) -> Result<Lease> {
    let operation = Operation { kind, id: "x".to_owned(), detail: String::new() };
    match here.cluster.acquire(name, operation, DEFAULT_TTL).await? {
        Acquired::Held(lease) => Ok(lease),
        Acquired::Busy(record) => anyhow::bail!("busy: {record:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_base_that_pitr_needs_is_refused_and_the_rest_of_a_cleanup_restores_exactly() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let (past, agent) = past(&here, &client).await?;
    let [first, second] = past.snapshots.as_slice() else { unreachable!() };

    // The older one leads to the present too, so that the newer one may go; then the older may not.
    let before = history(&here.cluster).await?;
    assert_eq!(propose_removal(&here.cluster, &Wish::Snapshot(second.id.clone())).await?.losses, []);
    let cleaned =
        delete(&here, &Wish::Everything { before: second.restore_time() + SignedDuration::from_secs(1) }).await?;
    assert_eq!(cleaned.snapshots.iter().map(|s| &s.id).collect::<Vec<_>>(), [&first.id]);
    assert!(!cleaned.slices.is_empty() && cleaned.losses.len() == 1, "{cleaned:?}");
    let refused = propose_removal(&here.cluster, &Wish::Snapshot(second.id.clone())).await.unwrap_err();
    assert!(matches!(&refused, JobError::Refused(Refusal::LastPitrBase { name }) if *name == second.id), "{refused}");
    for wish in [Wish::Everything { before: Timestamp::now() }, Wish::Log { before: None }] {
        let plan = propose_removal(&here.cluster, &wish).await?;
        assert!(plan.snapshots.is_empty() && plan.losses.is_empty(), "{plan:?}");
    }
    agent.stop().await?;

    // What is left is what the plan left, and what was captured since.
    let after = history(&here.cluster).await?;
    let expected = without(&before, &cleaned);
    assert_eq!(after.snapshots, expected.snapshots);
    assert!(expected.slices.iter().all(|slice| after.slices.contains(slice)), "{:?}", expected.slices);
    assert!(after.slices.iter().all(|slice| !cleaned.slices.contains(slice)));
    assert_eq!(timeline(&after).ranges.len(), 1);
    assert!(here.cluster.unfinished_snapshots().await?.is_empty());

    let other = ReplicaSet::single().await?;
    let there = store.protect(&other.uri(), Some("there")).await?;
    let (moment, state) = &past.moments[1];
    here.restore_into(&there, moment.clone(), Selection::default()).await?;
    same(&other.client().await?, state).await?;
    let (moment, _) = &past.moments[0];
    ensure!(here.restore_into(&there, moment.clone(), Selection::default()).await.is_err(), "it was told to be lost");
    same(&other.client().await?, state).await?;
    // The restore into another cluster has left no right to read behind.
    assert_eq!(here.cluster.lease_names().await?.iter().filter(|name| name.starts_with("reading.")).count(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deleted_from_under_a_restore_or_a_backup() -> Result<()> {
    logging();
    let (set, other) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), Some("here")).await?;
    let there = store.protect(&other.uri(), Some("there")).await?;
    let snapshot = here.backup().await?;
    let wish = Wish::Snapshot(snapshot.id.clone());

    for name in ["operation", "reading.x"] {
        let lease = take(&here, name, OperationKind::Restore).await?;
        let busy = delete(&here, &wish).await.unwrap_err();
        assert!(matches!(&busy, JobError::Busy(record) if record.operation.id == "x"), "{busy}");
        assert!(here.cluster.snapshot(&snapshot.id).await?.is_some());
        lease.release().await?;
    }
    // The other way round: a restore into another cluster finds the cleanup.
    let before = ClusterState::read(&other.client().await?).await?;
    let lease = take(&here, "operation", OperationKind::Cleanup).await?;
    let target = Target::Snapshot(snapshot.id.clone());
    let busy = here.restore_into(&there, target.clone(), Selection::default()).await.unwrap_err();
    assert!(busy.to_string().contains("cleanup x"), "{busy}");
    lease.release().await?;
    assert_eq!(here.cluster.lease_names().await?, ["operation", "reading.x"]);

    // Planned before, deleted meanwhile: refused before anything is touched.
    let request = hindsight_jobs::RestoreRequest::to(target);
    let proposal = hindsight_jobs::propose(&*there.engine, &store.repository, &here.cluster, request).await?;
    delete(&here, &wish).await?;
    assert_eq!(here.cluster.lease_names().await?, ["operation"]);
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let failed = hindsight_jobs::restore(&*there.engine, &proposal, &progress, &cancel).await.unwrap_err();
    assert!(matches!(failed, JobError::Refused(Refusal::UnknownSnapshot { .. })), "{failed}");
    assert!(here.cluster.restores().await?.iter().all(|record| !record.touched));
    same(&other.client().await?, &before).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_was_shown_is_not_deleted() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let wish = Wish::Everything { before: Timestamp::now() + SignedDuration::from_hours(1) };
    let shown = propose_removal(&here.cluster, &wish).await?;
    assert!(shown.is_empty());
    let snapshot = here.backup().await?;
    let changed = remove(&here.cluster, &wish, &shown, &Progress::default(), &CancellationToken::new()).await;
    assert!(matches!(changed, Err(JobError::Changed)), "{changed:?}");
    assert!(here.cluster.snapshot(&snapshot.id).await?.is_some());
    // What nobody finished is a leftover, unless it is in the making.
    let lease = take(&here, "operation", OperationKind::Backup).await?;
    let key = here.cluster.keys().snapshot_object("x", "data/000001.bson.zst");
    let writer = here.cluster.object_writer(key, hindsight_format::ObjectKind::Data).await;
    writer.finish(None).await?;
    let leftovers = async || anyhow::Ok(propose_removal(&here.cluster, &wish).await?.unfinished.len());
    assert_eq!(leftovers().await?, 0);
    lease.release().await?;
    assert_eq!(leftovers().await?, 1);
    delete(&here, &Wish::Snapshot("x".to_owned())).await?;
    assert!(here.cluster.unfinished_snapshots().await?.is_empty());
    assert!(here.cluster.snapshot(&snapshot.id).await?.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_keeps_to_the_rules_of_retention() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let (past, agent) = past(&here, &client).await?;
    let all = here.cluster.slices().await?;
    assert_eq!(here.cluster.snapshots().await?.len(), 2);

    here.set("retention.count", "1").await?;
    let begun = Instant::now();
    while here.cluster.snapshots().await?.len() > 1 {
        ensure!(begun.elapsed() < Duration::from_secs(30), "the old snapshot is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The log before the newest goes with it, and the capture goes on as if nothing were.
    let base = past.snapshots[1].streams.values().next().unwrap().last.position.order().to_owned();
    let old = |slice: &&hindsight_format::StoredSlice| slice.name.end.position.order() <= base.as_str();
    assert!(all.iter().any(|slice| old(&slice)));
    while here.cluster.slices().await?.iter().any(|slice| old(&slice)) {
        ensure!(begun.elapsed() < Duration::from_secs(30), "the old log is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.database("app").collection("notes").insert_one(doc! {"_id": "after"}).await?;
    let (moment, state) = (this_moment(&client).await?, ClusterState::read(&client).await?);
    here.captured(&moment).await?;
    agent.stop().await?;
    let told = timeline(&history(&here.cluster).await?);
    assert_eq!((told.ranges.len(), told.gaps.len()), (1, 0), "{told:?}");
    here.restore_into(&here, moment, Selection::default()).await?;
    same(&client, &state).await
}
