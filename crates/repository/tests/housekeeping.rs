//! What keeps a repository tidy.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{cluster, file, manifest, sealed, write_object};
use hindsight_format::{FORMAT_VERSION, JournalBatch, JournalLine, Severity, WITHHELD};
use jiff::{SignedDuration, Timestamp};

fn batch(message: &str, severity: Severity) -> JournalBatch {
    let line =
        JournalLine { time: Timestamp::UNIX_EPOCH, severity, event: "backup".to_owned(), message: message.to_owned() };
    JournalBatch { format: FORMAT_VERSION, host: "db1".to_owned(), pid: 1, lines: vec![line] }
}

#[tokio::test]
async fn damaged_lines_do_not_hide_the_others_and_old_ones_go() {
    let (folder, cluster) = cluster().await;
    let at = |second: i64| Timestamp::from_second(second).unwrap() + SignedDuration::from_micros(7);
    for (second, message) in [(10, "first"), (20, "second"), (30, "third")] {
        cluster.put_journal(at(second), 1, &batch(message, Severity::Info)).await.unwrap();
    }
    std::fs::write(file(&folder, &cluster.keys().journal_batch(at(20), 1)), "{}").unwrap();
    let messages = async |after: Option<Timestamp>| -> Vec<String> {
        let found = cluster.journal(cluster.journal_keys(after).await.unwrap()).await.unwrap();
        found.into_iter().flat_map(|batch| batch.lines).map(|line| line.message).collect()
    };
    assert_eq!(messages(None).await, ["first", "third"]);
    assert_eq!(messages(Some(at(25))).await, ["third"]);
    assert_eq!(cluster.delete_journal_before(at(25)).await.unwrap(), 2);
    assert_eq!(messages(None).await, ["third"]);
}

#[tokio::test]
async fn what_went_wrong_is_not_told_by_a_sealed_repository() {
    let (_folder, cluster, _identity) = sealed().await;
    let now = Timestamp::now();
    cluster.put_journal(now, 1, &batch("shop.orders failed", Severity::Error)).await.unwrap();
    let found = cluster.journal(cluster.journal_keys(None).await.unwrap()).await.unwrap();
    assert_eq!(found[0].lines[0].message, WITHHELD);
}

#[tokio::test]
async fn a_snapshot_is_unfinished_until_it_has_a_manifest() {
    let (folder, cluster) = cluster().await;
    for id in ["a", "b"] {
        write_object(&cluster, &cluster.keys().snapshot_object(id, "data/000001.bson.zst"), &[]).await.unwrap();
    }
    cluster.put_manifest(&manifest("a")).await.unwrap();
    // What a process that was killed had not written to its end.
    let half = file(&folder, &format!("{}#1", cluster.keys().snapshot_object("b", "data/000002.bson.zst")));
    let alone = file(&folder, &format!("{}#12", cluster.keys().snapshot_object("c", "data/000001.bson.zst")));
    std::fs::create_dir_all(alone.parent().unwrap()).unwrap();
    for path in [&half, &alone] {
        std::fs::write(path, "half of it").unwrap();
    }
    let found = cluster.unfinished_snapshots().await.unwrap();
    assert_eq!(found.iter().map(|left| (left.id.as_str(), left.objects)).collect::<Vec<_>>(), [("b", 2), ("c", 1)]);
    for id in ["b", "c"] {
        cluster.delete_snapshot(id).await.unwrap();
    }
    assert!(cluster.unfinished_snapshots().await.unwrap().is_empty());
    assert!(!half.exists() && !alone.exists());
}
