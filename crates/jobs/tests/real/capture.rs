//! The agent: what it stores, what it says when it cannot.

use std::time::Duration;

use anyhow::Result;
use bson::{Document, doc};
use hindsight_engine::Selection;
use hindsight_jobs::{overview, time_left};
use hindsight_testkit::{ClusterState, ReplicaSet};

use crate::support::{Protected, Store, logging, same, this_moment, until};

async fn pitr(here: &Protected) -> Result<()> {
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_follows_the_settings_and_ends_with_everything_stored() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let notes = client.database("app").collection::<Document>("notes");
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let agent = here.agent();
    notes.insert_one(doc! {"_id": 0}).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(here.cluster.slices().await?.is_empty(), "switched off, nothing is captured");

    pitr(&here).await?;
    here.based().await?;
    here.set("pitr.uploadIntervalSec", "3600").await?;
    // Seen by the agent when it has polled; nothing tells when, but twice its interval is enough.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    notes.insert_one(doc! {"_id": 1}).await?;
    let moment = this_moment(&client).await?;
    let expected = ClusterState::read(&client).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let history = hindsight_jobs::history(&here.cluster).await?;
    let planned = hindsight_catalog::plan(&history, &moment, None, jiff::Timestamp::now());
    assert!(planned.is_err(), "nothing is due within an hour");
    agent.stop().await?;
    here.captured(&moment).await?;

    // Where it ended, it goes on: no gap, one range.
    notes.insert_one(doc! {"_id": 2}).await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    let agent = here.agent();
    here.based().await?;
    agent.stop().await?;
    let timeline = overview(&here.cluster).await?.timeline;
    assert_eq!((timeline.ranges.len(), timeline.gaps.len()), (1, 0), "{timeline:?}");
    here.restore_into(&here, moment, Selection::default()).await?;
    same(&client, &expected).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_costs_no_object_for_every_sign_of_life() -> Result<()> {
    logging();
    // Signs of life every second, so that the test need not wait for ten.
    let set = ReplicaSet::builder().arg("--setParameter").arg("periodicNoopIntervalSecs=1").start().await?;
    let client = set.client().await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    here.set("pitr.oplogSpanMin", "1").await?;
    pitr(&here).await?;
    let agent = here.agent();
    here.based().await?;
    let before = here.cluster.slices().await?.len();
    // On over the border of a minute, at which slices are merged.
    let second = || jiff::Timestamp::now().as_second();
    let until = (second() + 8) / 60 * 60 + 60 + 5;
    while second() < until {
        let now = here.cluster.slices().await?.len();
        assert!(now <= before + 3, "{before} slices became {now}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let moment = this_moment(&client).await?;
    agent.stop().await?;
    here.captured(&moment).await?;
    let timeline = overview(&here.cluster).await?.timeline;
    assert_eq!((timeline.ranges.len(), timeline.gaps.len()), (1, 0), "{timeline:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oplog_that_rolled_over_leaves_a_gap_with_its_cause_and_a_new_range() -> Result<()> {
    logging();
    let set = ReplicaSet::builder().oplog_mb(1).arg("--syncdelay").arg("1").start().await?;
    let client = set.client().await?;
    let bulk = client.database("app").collection::<Document>("bulk");
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    pitr(&here).await?;
    let agent = here.agent();
    here.based().await?;
    bulk.insert_one(doc! {"_id": "first"}).await?;
    let first = this_moment(&client).await?;
    here.captured(&first).await?;
    agent.stop().await?;

    let end = here.cluster.slices().await?.into_iter().map(|slice| slice.name.end).max_by_key(|end| end.time).unwrap();
    let left = async || anyhow::Ok(time_left(&here.engine.probe().await?, &end, None));
    assert!(left().await?.unwrap().as_secs() > 0, "what is captured is still in the oplog");
    let text = "x".repeat(100_000);
    until("the oplog rolls over", async || {
        for _ in 0..50 {
            bulk.insert_one(doc! {"text": &text}).await?;
        }
        bulk.delete_many(doc! {"text": {"$exists": true}}).await?;
        let log_start = here.engine.probe().await?.log_start;
        Ok(log_start.is_some_and(|start| start.position.order() > end.position.order()))
    })
    .await?;
    assert_eq!(left().await?.unwrap().as_secs(), 0);
    bulk.insert_one(doc! {"_id": "second"}).await?;
    let agent = here.agent();
    let expected = ClusterState::read(&client).await?;
    until("a new range after a snapshot of its own", async || {
        Ok(overview(&here.cluster).await?.timeline.ranges.len() == 2)
    })
    .await?;
    bulk.insert_one(doc! {"_id": "third"}).await?;
    let third = this_moment(&client).await?;
    here.captured(&third).await?;
    agent.stop().await?;

    let gaps = overview(&here.cluster).await?.timeline.gaps;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(gaps[0].cause.contains("the oplog rolled over"), "{}", gaps[0].cause);
    here.restore_into(&here, first, Selection::default()).await?;
    assert_eq!(bulk.count_documents(doc! {}).await?, 1);
    here.restore_into(&here, third, Selection::default()).await?;
    bulk.delete_one(doc! {"_id": "third"}).await?;
    same(&client, &expected).await
}
