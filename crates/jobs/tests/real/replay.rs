//! Replaying the log on top of a state that came from elsewhere.

use anyhow::{Context, Result};
use hindsight_catalog::Target;
use hindsight_engine::{Progress, Selection};
use hindsight_jobs::{propose_replay, replay};
use hindsight_testkit::workload::{Workload, WorkloadOptions};
use hindsight_testkit::{ClusterState, ReplicaSet};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::support::{Store, logging, same};

fn through((secs, inc, _): (u32, u32, i64)) -> Result<Target> {
    Ok(Target::Through { time: Timestamp::from_second(secs.into())?, order: format!("{secs:010}.{inc:010}") })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_replayed_on_a_restored_state_leads_to_the_later_state() -> Result<()> {
    logging();
    let (source, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let client = source.client().await?;
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), Some("source")).await?;
    here.set("pitr.enabled", "true").await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    let agent = here.agent();
    let seed = std::env::var("REPLAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
    let workload = Workload::start(client.clone(), seed, WorkloadOptions::default()).await?;
    here.based().await?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let paused = workload.pause_settled().await?;
    let early = through(paused.optime)?;
    let state = ClusterState::read(&client).await?;
    paused.resume();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let paused = workload.pause_settled().await?;
    let late = through(paused.optime)?;
    let expected = ClusterState::read(&client).await?;
    paused.resume();
    println!("{}", workload.stop().await?);
    here.captured(&late).await?;
    agent.stop().await?;

    let there = store.protect(&target.uri(), Some("target")).await?;
    here.restore_into(&there, early.clone(), Selection::default()).await?;
    let into = target.client().await?;
    same(&into, &state).await.context("the state to replay on")?;
    let plan = propose_replay(&*there.engine, &store.repository, &here.cluster, &early, &late).await?;
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let (record, totals) = replay(&*there.engine, &plan, &progress, &cancel).await.context("the replay")?;
    assert!(totals.operations > 100 && record.totals.log_records == totals.operations, "{totals:?}");
    same(&into, &expected).await.context("after the replay")
}
