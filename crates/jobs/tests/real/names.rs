//! Names that would be trouble in a path, a shell, a pattern or a terminal are only names.

use anyhow::Result;
use bson::{Document, doc};
use hindsight_catalog::Target;
use hindsight_engine::Selection;
use hindsight_testkit::{ClusterState, ReplicaSet, mongod_version};

use crate::support::{Store, logging, same, this_moment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_are_stored_captured_and_restored() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let longest = "x".repeat(255 - "names.".len());
    let names = [
        "a/b/../../../etc/passwd",
        "..",
        "../x",
        ".",
        "a.b.c",
        "with space",
        "new\nline\r\ttab",
        "\u{1b}[2J\u{1b}]0;gone\u{7}",
        "quote\"'`;--",
        "back\\slash%2e%00",
        "ünï\u{202e}cödé\u{1f4a9}",
        "*",
        "data/000001.bson.zst",
        "manifest.json",
        "{\"$ne\": 1}",
        "a=b,c",
        &longest,
    ];
    let mut made = Vec::new();
    for name in names {
        let collection = client.database("names").collection::<Document>(name);
        match collection.insert_one(doc! {"_id": 1, "name": name}).await {
            Ok(_) => made.push(name),
            // What the server itself does not take needs no protection.
            Err(error) => assert!(name.contains('$') || name.starts_with('.'), "{name:?}: {error}"),
        }
    }
    assert!(made.len() >= 13, "{made:?}");
    for db in ["..", "ünï", "a-b;c", "-rf", &"d".repeat(63)] {
        if client.database(db).collection("c").insert_one(doc! {"_id": 1}).await.is_ok() {
            made.push("");
        }
    }
    assert!(made.len() >= 16, "some names of databases are taken");

    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let manifest = here.backup().await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    for name in made.iter().filter(|name| !name.is_empty()) {
        client.database("names").collection(name).insert_one(doc! {"_id": 2}).await?;
        let key = doc! {"name": 1};
        let index = doc! {"createIndexes": *name, "indexes": [{"key": key, "name": "../i\n"}]};
        // With the name of the collection, that of an index may be too long for some servers.
        let _ = client.database("names").run_command(index).await;
    }
    client.database("names").collection("late/\n..").insert_one(doc! {"_id": 1}).await?;
    let wanted = ClusterState::read(&client).await?;
    let moment = this_moment(&client).await?;
    here.captured(&moment).await?;
    client.database("names").drop().await?;
    agent.stop().await?;

    let described = here.engine.describe(&here.cluster, &manifest).await?;
    assert!(described.iter().any(|info| info.name == "names.a/b/../../../etc/passwd"));
    here.restore_into(&here, moment, Selection::default()).await?;
    same(&client, &wanted).await
}

/// A crash at the wrong moment can leave the buckets of a time-series that is none any more. Servers hide what is called as
/// the time-series was behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_that_outlived_their_time_series_are_restored_beside_what_has_its_name() -> Result<()> {
    logging();
    if mongod_version()? < (5, 0, 0) {
        return Ok(());
    }
    let (set, other) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let client = set.client().await?;
    let database = client.database("d");
    database.run_command(doc! {"create": "weather", "timeseries": {"timeField": "t"}}).await?;
    let measured: Vec<_> = (0..20).map(|n| doc! {"t": bson::DateTime::from_millis(n), "n": n}).collect();
    database.collection::<Document>("weather").insert_many(measured).await?;
    let forget = doc! {"applyOps": [{"op": "d", "ns": "d.system.views", "o": {"_id": "d.weather"}}]};
    client.database("admin").run_command(forget).await?;
    database.run_command(doc! {"create": "weather"}).await?;
    let wanted = ClusterState::read(&client).await?;
    assert!(
        wanted.databases["d"].contains_key("weather") && wanted.databases["d"].contains_key("system.buckets.weather")
    );

    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let snapshot = Target::Snapshot(here.backup().await?.id);
    let there = store.protect(&other.uri(), Some("other")).await?;
    here.restore_into(&there, snapshot.clone(), Selection::default()).await?;
    same(&other.client().await?, &wanted).await?;
    here.restore_into(&here, snapshot, Selection::default()).await?;
    same(&client, &wanted).await
}
