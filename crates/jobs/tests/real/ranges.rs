//! Large collections, which are read in ranges of `_id`.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use bson::{Binary, Bson, DateTime, Document, Timestamp, doc, oid::ObjectId, spec::BinarySubtype};
use hindsight_engine::{Progress, Selection};
use hindsight_format::SnapshotManifest;
use hindsight_jobs::{BackupRequest, backup};
use hindsight_testkit::{ClusterState, ReplicaSet};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Protected, Store, logging, same, this_moment};

/// Documents in the collection, of about 1 KiB.
const DOCUMENTS: i64 = 12_000;

/// An `_id` of each kind in turn: ranges are bounded by some of them, and lie across kinds.
fn id(n: i64) -> Bson {
    match n % 10 {
        0 => Bson::Int32(n as i32),
        1 => Bson::Int64(-n),
        2 => Bson::Double(n as f64 + 0.5),
        3 => Bson::String(format!("{n:06}")),
        4 => doc! {"part": n % 7, "number": n}.into(),
        5 => Bson::ObjectId(ObjectId::new()),
        6 => Bson::DateTime(DateTime::from_millis(n * 1000)),
        7 => Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: n.to_be_bytes().to_vec() }),
        8 => Bson::Timestamp(Timestamp { time: n as u32, increment: 1 }),
        _ => doc! {"deep": {"null": Bson::Null, "n": n}}.into(),
    }
}

fn documents() -> Vec<Document> {
    let only_once = [Bson::Null, Bson::Boolean(true), Bson::Boolean(false), Bson::MinKey, Bson::MaxKey];
    let ids = (0..DOCUMENTS).map(id).chain(only_once);
    ids.map(|id| doc! {"_id": id, "text": "x".repeat(1000), "version": 0}).collect()
}

/// The scans of which frames are stored.
async fn scans(here: &Protected, manifest: &SnapshotManifest) -> Result<usize> {
    let mut scans = BTreeSet::new();
    for object in manifest.objects.iter().filter(|object| object.name.starts_with("data/")) {
        let key = here.cluster.keys().snapshot_object(&manifest.id, &object.name);
        let reader = here.cluster.object_reader(&key, Some(object)).await?;
        scans.extend(reader.footer().frames.iter().map(|frame| frame.segment));
    }
    Ok(scans.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_read_in_ranges_of_ids_of_every_kind_comes_back_whole() -> Result<()> {
    logging();
    let (source, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let client = source.client().await?;
    let large = client.database("app").collection::<Document>("large");
    large.insert_many(documents()).await?;
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), Some("source")).await?;
    let there = store.protect(&target.uri(), Some("target")).await?;
    here.set("backup.checkpointMib", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    here.based().await?;

    // Documents come, go, change and grow while they are read; a rename ends all cursors.
    let mut writers = JoinSet::new();
    for writer in 0..2 {
        let client = client.clone();
        writers.spawn(async move {
            for round in 0..200 {
                let n = writer + round * 53;
                let (one, another) = (id(n % DOCUMENTS), id((n * 31) % DOCUMENTS));
                for name in ["large", "renamed"] {
                    let large = client.database("app").collection::<Document>(name);
                    let grow = doc! {"$inc": {"version": 1}, "$set": {"more": "y".repeat(500)}};
                    large.update_one(doc! {"_id": &one}, grow).await?;
                    large.delete_one(doc! {"_id": &another}).await?;
                }
            }
            Ok::<_, mongodb::error::Error>(())
        });
    }
    // Not before it is known how large it is: that is asked by name.
    let progress = Progress::default();
    let renaming = async {
        let mut steps = progress.watch();
        steps.wait_for(|step| step.name == "copying documents").await?;
        let admin = client.database("admin");
        for (from, to) in [("app.large", "app.renamed"), ("app.renamed", "app.large")] {
            admin.run_command(doc! {"renameCollection": from, "to": to}).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (request, cancel) = (BackupRequest::default(), CancellationToken::new());
    let work = backup(&*here.engine, &here.cluster, &request, &progress, &cancel);
    let (manifest, renamed) = tokio::join!(work, renaming);
    renamed?;
    let manifest = manifest?;
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let read = scans(&here, &manifest).await?;
    ensure!(read >= 12, "only {read} scans: the collection was not read in ranges");

    let (expected, now) = (ClusterState::read(&client).await?, this_moment(&client).await?);
    here.captured(&now).await?;
    agent.stop().await?;
    let record = here.restore_into(&there, now, Selection::default()).await?;
    assert_eq!(record.snapshot, manifest.id, "the snapshot that was taken meanwhile is the base");
    same(&target.client().await?, &expected).await
}
