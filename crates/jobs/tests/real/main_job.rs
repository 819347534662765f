//! The main job on real servers: backup, capture, restore to a moment.
use std::time::Duration;

use crate::support::{Store, logging, same};
use anyhow::Result;
use bson::doc;
use hindsight_catalog::Target;
use hindsight_engine::Selection;
use hindsight_testkit::{ClusterState, ReplicaSet, last_optime};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_restored_into_another_cluster() -> Result<()> {
    logging();
    let (source, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let client = source.client().await?;
    let orders = client.database("shop").collection("orders");
    for batch in 0..20 {
        let documents =
            (0..500).map(|n| doc! {"_id": batch * 500 + n, "item": format!("item {n}"), "tags": ["a", "b"]});
        orders.insert_many(documents).await?;
    }
    client
        .database("shop")
        .run_command(doc! {"createIndexes": "orders", "indexes": [{"key": {"item": 1}, "name": "by_item"}]})
        .await?;
    client
        .database("shop")
        .run_command(doc! {"create": "cheap", "viewOn": "orders", "pipeline": [{"$match": {"_id": {"$lt": 5}}}]})
        .await?;
    let expected = ClusterState::read(&client).await?;

    let store = Store::new().await?;
    let here = store.protect(&source.uri(), Some("source")).await?;
    let there = store.protect(&target.uri(), Some("target")).await?;
    let manifest = here.backup().await?;
    assert_eq!(manifest.totals.documents, 10_000 + 1);
    orders.delete_many(doc! {}).await?;

    let record = here.restore_into(&there, Target::Snapshot(manifest.id), Selection::default()).await?;
    assert_eq!(record.totals.documents, 10_000);
    same(&target.client().await?, &expected).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_before_a_disaster_is_restored_in_place() -> Result<()> {
    logging();
    let source = ReplicaSet::single().await?;
    let client = source.client().await?;
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), None).await?;
    let orders = client.database("shop").collection("orders");
    orders.insert_many((0..1000).map(|n| doc! {"_id": n, "n": 0})).await?;
    here.backup().await?;
    here.set("pitr.enabled", "true").await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    let agent = here.agent();
    orders.update_many(doc! {"_id": {"$lt": 500}}, doc! {"$inc": {"n": 1}}).await?;
    client.database("shop").collection("late").insert_one(doc! {"_id": 1}).await?;
    let expected = ClusterState::read(&client).await?;
    let (secs, inc, _) = last_optime(&client).await?;

    client.database("shop").collection::<bson::Document>("orders").drop().await?;
    client.database("junk").collection("junk").insert_one(doc! {"_id": 1}).await?;
    let target =
        Target::Through { time: jiff::Timestamp::from_second(secs.into())?, order: format!("{secs:010}.{inc:010}") };
    here.captured(&target).await?;

    let record = here.restore_into(&here, target, Selection::default()).await?;
    assert_eq!(record.new_epoch, Some(2));
    same(&client, &expected).await?;

    // The agent goes on by itself: a fresh snapshot in the new epoch, and capture after it.
    let begun = std::time::Instant::now();
    while !hindsight_jobs::overview(&here.cluster).await?.timeline.ranges.iter().any(|range| range.epoch == 2) {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(30), "no new range within 30 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    agent.stop().await
}
