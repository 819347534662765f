//! Jobs that leave a busy server room.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bson::{Binary, doc, spec::BinarySubtype};
use hindsight_catalog::Target;
use hindsight_engine::Progress;
use hindsight_jobs::{BackupRequest, RestoreRequest, backup, propose, restore};
use hindsight_testkit::{ClusterState, ReplicaSet};
use mongodb::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{Store, logging, same, until};

const MIB: u64 = 1 << 20;

async fn fill(client: &Client, mib: u64) -> Result<()> {
    let document = |id: u64| {
        let bytes = vec![u8::try_from(id % 251).unwrap_or_default(); 64 << 10];
        doc! {"_id": id as i64, "bytes": Binary { subtype: BinarySubtype::Generic, bytes }}
    };
    client.database("app").collection("things").insert_many((0..mib * 16).map(document)).await?;
    Ok(())
}

/// A limit holds: less time than it asks for would be too fast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_and_restore_keep_to_a_limit() -> Result<()> {
    logging();
    let (set, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let client = set.client().await?;
    fill(&client, 24).await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    // Frames are of 4 MiB; the last one that begins is not waited for.
    let at_least = Duration::from_secs_f64(20.0 / 8.0);

    let begun = Instant::now();
    let request = BackupRequest { rate_limit: Some(8 * MIB), ..BackupRequest::default() };
    let taken = backup(&*here.engine, &here.cluster, &request, &progress, &cancel).await?;
    ensure!(begun.elapsed() >= at_least, "backup took {:?}", begun.elapsed());

    here.set("restore.rateLimitMib", "8").await?;
    let there = store.protect(&target.uri(), Some("there")).await?;
    let request = RestoreRequest::to(Target::Snapshot(taken.id));
    let begun = Instant::now();
    let proposal = propose(&*there.engine, &store.repository, &here.cluster, request).await?;
    restore(&*there.engine, &proposal, &progress, &cancel).await?;
    ensure!(begun.elapsed() >= at_least, "restore took {:?}", begun.elapsed());
    same(&target.client().await?, &ClusterState::read(&client).await?).await
}

/// Reading waits while a member that kept up before falls behind, and goes on when it has caught up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_waits_for_members_that_fall_behind() -> Result<()> {
    logging();
    let set = ReplicaSet::builder().members(3).start().await?;
    let client = set.client().await?;
    fill(&client, 64).await?;
    let primary = set.wait_primary().await?;
    let behind = set.direct_client((primary + 2) % 3).await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;

    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let request = BackupRequest { rate_limit: Some(MIB), parallel: Some(1), ..BackupRequest::default() };
    let working = tokio::spawn({
        let (progress, cancel, here) = (progress.clone(), cancel.clone(), here.clone());
        async move { backup(&*here.engine, &here.cluster, &request, &progress, &cancel).await }
    });
    until("the first documents", async || Ok(progress.done() > 0)).await?;
    // A lock keeps a secondary from applying what it gets.
    behind.database("admin").run_command(doc! {"fsync": 1, "lock": true}).await?;
    let writing = tokio::spawn(async move {
        loop {
            client.database("app").collection("ticks").insert_one(doc! {}).await.ok();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    until("the backup to wait", async || Ok(progress.warnings().iter().any(|warning| warning.contains("s behind"))))
        .await?;
    // What was on its way has passed by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = progress.done();
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(progress.done() == before, "something was read meanwhile");
    behind.database("admin").run_command(doc! {"fsyncUnlock": 1}).await?;
    until("the backup to go on", async || Ok(progress.done() > before)).await?;
    writing.abort();
    cancel.cancel();
    ensure!(working.await?.is_err(), "it was stopped");
    Ok(())
}
