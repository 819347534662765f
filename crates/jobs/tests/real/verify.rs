//! What `verify` says about logs that were never right, about what lies around, and about what changes meanwhile.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bson::{Document, Timestamp, doc};
use hindsight_engine::{Engine, LogBuffer, Progress};
use hindsight_format::{ClusterIdentity, ObjectKind, Point, Position, SliceName, StoredSlice};
use hindsight_jobs::{Level, Verified, verify};
use hindsight_mongodb::MongoEngine;
use hindsight_repository::{ClusterRepository, encode_frame, merge_slices};
use tokio_util::sync::CancellationToken;

use crate::support::{Store, logging};

const BASE: u32 = 1_700_000_000;

async fn cluster(store: &Store) -> Result<ClusterRepository> {
    let cluster = store.repository.cluster("rs0")?;
    cluster.register(&ClusterIdentity { engine: hindsight_mongodb::NAME.to_owned(), id: "1".to_owned() }).await?;
    Ok(cluster)
}

async fn verified(cluster: &ClusterRepository) -> Result<Verified> {
    let engine: Arc<dyn Engine> = Arc::new(MongoEngine::new(""));
    Ok(verify(&engine, cluster, None, &Progress::default(), &CancellationToken::new()).await?)
}

fn point(second: u32) -> Result<Point> {
    let position = Position::new(format!("{:010}.0000000001", BASE + second), "1")?;
    Ok(Point { time: jiff::Timestamp::from_second((BASE + second).into())?, position })
}

fn entry(second: u32) -> Document {
    let ts = Timestamp { time: BASE + second, increment: 1 };
    doc! {"ts": ts, "t": 1_i64, "op": "i", "ns": "app.things", "o": {"_id": second, "n": [true, {"a": "b"}]}}
}

fn bytes(document: &Document) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    document.to_writer(&mut bytes)?;
    Ok(bytes)
}

/// Stores a slice of these seconds, each of which has one record; `change` may spoil it before.
async fn slice(
    cluster: &ClusterRepository,
    seconds: std::ops::Range<u32>,
    change: impl Fn(&mut LogBuffer, &mut Vec<Document>) -> Result<()>,
) -> Result<StoredSlice> {
    let mut buffer = LogBuffer::starting_at(point(seconds.start)?);
    let mut entries = Vec::new();
    for second in seconds.start + 1..=seconds.end {
        entries.push(entry(second));
        buffer.summary.count("app.things", "i", (BASE + second).into(), 1);
    }
    buffer.summary.end = point(seconds.end)?;
    let name = SliceName { start: point(seconds.start)?, end: point(seconds.end)?, fence: 1 };
    change(&mut buffer, &mut entries)?;
    for entry in &entries {
        buffer.push(&bytes(entry)?);
    }
    let mut stored = StoredSlice { stream: "rs0".to_owned(), epoch: 1, name, stored_bytes: 0 };
    stored.stored_bytes = buffer.store(cluster, cluster.slice_key(&stored), 3).await?.stored_bytes;
    Ok(stored)
}

fn unspoiled(_: &mut LogBuffer, _: &mut Vec<Document>) -> Result<()> {
    Ok(())
}

#[tokio::test]
async fn a_slice_must_hold_what_its_name_and_footer_promise() -> Result<()> {
    type Spoil = fn(&mut LogBuffer, &mut Vec<Document>) -> Result<()>;
    let spoils: [(&str, Spoil); 8] = [
        ("does not come after", |_, entries| {
            entries.swap(1, 2);
            Ok(())
        }),
        ("does not come after", |_, entries| {
            entries[0] = entry(10);
            Ok(())
        }),
        ("lies after the end", |_, entries| {
            entries.push(entry(21));
            Ok(())
        }),
        ("should end with", |_, entries| {
            entries.pop();
            Ok(())
        }),
        ("9 records are in it, its footer says 10", |_, entries| {
            entries.remove(3);
            Ok(())
        }),
        ("not those that its footer counts", |_, entries| {
            entries[3].insert("op", "d");
            Ok(())
        }),
        ("malformed", |buffer, entries| {
            let mut broken = bytes(&entries.remove(0))?;
            let at = broken.iter().rposition(|byte| *byte == b'b').context("no text")?;
            broken[at + 1] = b'!';
            buffer.push(&broken);
            Ok(())
        }),
        ("unknown kind", |_, entries| {
            entries[3].insert("op", "zz");
            Ok(())
        }),
    ];
    for (says, spoil) in spoils {
        let store = Store::new().await?;
        let cluster = cluster(&store).await?;
        slice(&cluster, 0..10, unspoiled).await?;
        let bad = slice(&cluster, 10..20, spoil).await?;
        let found = verified(&cluster).await?;
        let damage: Vec<_> = found.damage().collect();
        ensure!(damage.len() == 1 && damage[0].key == cluster.slice_key(&bad), "{says}: {damage:?}");
        ensure!(damage[0].what.contains(says), "{says}: {damage:?}");
    }
    Ok(())
}

#[tokio::test]
async fn holes_leftovers_and_foreign_objects_are_told_for_what_they_are() -> Result<()> {
    let (store, root) = Store::in_folder().await?;
    let cluster = cluster(&store).await?;
    slice(&cluster, 0..10, unspoiled).await?;
    slice(&cluster, 20..30, unspoiled).await?;
    let leftover = cluster.keys().snapshot_object("2021-02-03T08:08:36Z", "data/000001.bson.zst");
    let mut writer = cluster.object_writer(leftover, ObjectKind::Data).await;
    writer.write(encode_frame(b"x", 1, 1)?).await?;
    writer.finish(None).await?;
    std::fs::write(root.join("clusters/rs0/log/rs0/000001/notes.txt"), "hello")?;

    let found = verified(&cluster).await?;
    let damage: Vec<_> = found.damage().collect();
    ensure!(damage.len() == 1 && damage[0].what.contains(&point(10)?.key_text()), "{damage:?}");
    ensure!(
        damage[0].what.contains(&point(20)?.key_text()) && damage[0].means.contains("cannot be restored"),
        "{damage:?}"
    );
    let note = |key: &str, what: &str| {
        let mut notes = found.findings.iter().filter(|finding| finding.level == Level::Note);
        notes.any(|finding| finding.key.contains(key) && finding.what.contains(what))
    };
    ensure!(note("notes.txt", "nothing in a repository is called so"), "{:?}", found.findings);
    ensure!(note("snapshots/2021-02-03T08:08:36Z/", "1 objects"), "{:?}", found.findings);
    ensure!(note("log of rs0", "no snapshot leads into"), "{:?}", found.findings);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_merged_while_it_is_read_is_no_damage() -> Result<()> {
    logging();
    let store = Store::new().await?;
    let cluster = cluster(&store).await?;
    let mut slices = Vec::new();
    for number in 0..150 {
        slices.push(slice(&cluster, number * 2..number * 2 + 2, unspoiled).await?);
    }
    let merging = cluster.clone();
    let merger = tokio::spawn(async move {
        while slices.len() > 1 {
            let mut merged = Vec::new();
            for pair in slices.chunks(2) {
                merged.push(merge_slices(&merging, "rs0", 1, pair, 2, 1).await?);
            }
            slices = merged;
        }
        anyhow::Ok(())
    });
    let mut times = 0;
    loop {
        let last = merger.is_finished();
        let found = verified(&cluster).await?;
        let damage: Vec<_> = found.damage().collect();
        ensure!(damage.is_empty(), "after {times} times: {damage:?}");
        times += 1;
        if last {
            break;
        }
    }
    merger.await??;
    ensure!(times > 1, "it was over before it began");
    Ok(())
}
