//! Capped collections that hold more than their size allows.

use anyhow::Result;
use bson::doc;
use hindsight_catalog::Target;
use hindsight_engine::Selection;
use hindsight_testkit::{ClusterState, ReplicaSet};

use crate::support::{Store, logging, same};

/// Whether the server is one that lets the size of a capped collection be changed.
async fn has_sizes_that_change(database: &mongodb::Database) -> Result<bool> {
    let version = database.run_command(doc! {"buildInfo": 1}).await?;
    Ok(version.get_array("versionArray")?.first().and_then(bson::Bson::as_i32) >= Some(6))
}

/// What does not fit goes with the next insert, and not before: documents that grew, and a size that was made smaller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capped_collection_comes_back_with_all_that_it_held() -> Result<()> {
    logging();
    let (source, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let client = source.client().await?;
    let app = client.database("app");
    if !has_sizes_that_change(&app).await? {
        return Ok(()); // Nothing can be done there: a restore says what is left out.
    }
    for name in ["grown", "cut", "clustered"] {
        match name {
            "clustered" => {
                app.run_command(doc! {"create": name, "clusteredIndex": {"key": {"_id": 1}, "unique": true}}).await?
            }
            _ => app.run_command(doc! {"create": name, "capped": true, "size": 8192, "max": 50}).await?,
        };
        let documents = (0..10).map(|n| doc! {"_id": n, "line": "x".repeat(500)});
        app.collection(name).insert_many(documents).await?;
    }
    app.run_command(doc! {"convertToCapped": "clustered", "size": 20_000}).await?;
    let documents = app.collection::<bson::Document>("grown");
    documents.update_many(doc! {}, doc! {"$set": {"more": "y".repeat(2_000)}}).await?;
    app.run_command(doc! {"collMod": "cut", "cappedMax": 3}).await?;
    app.run_command(doc! {"collMod": "clustered", "cappedSize": 1_000}).await?;
    let expected = ClusterState::read(&client).await?;
    for name in ["grown", "cut", "clustered"] {
        assert_eq!(app.collection::<bson::Document>(name).count_documents(doc! {}).await?, 10, "{name}");
    }

    let store = Store::new().await?;
    let here = store.protect(&source.uri(), Some("source")).await?;
    let there = store.protect(&target.uri(), Some("target")).await?;
    let manifest = here.backup().await?;
    here.restore_into(&there, Target::Snapshot(manifest.id), Selection::default()).await?;
    let restored = target.client().await?;
    same(&restored, &expected).await?;

    // Their sizes count again.
    for client in [&client, &restored] {
        client.database("app").collection("cut").insert_one(doc! {"_id": 10}).await?;
    }
    same(&restored, &ClusterState::read(&client).await?).await
}

/// Buckets that a time-series which is no more has left: commands with its name are for them, as long as they are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capped_collection_that_buckets_hide_comes_back_with_its_size() -> Result<()> {
    logging();
    let (source, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let client = source.client().await?;
    let app = client.database("app");
    if !has_sizes_that_change(&app).await? {
        return Ok(()); // There is nothing to change a size with.
    }
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), Some("source")).await?;
    let there = store.protect(&target.uri(), Some("target")).await?;
    let series = doc! {"timeField": "t", "granularity": "seconds", "bucketMaxSpanSeconds": 3600};
    app.run_command(doc! {"create": "system.buckets.line", "clusteredIndex": true, "timeseries": series.clone()})
        .await?;
    app.run_command(doc! {"create": "line", "capped": true, "size": 65_536, "max": 50}).await?;
    let expected = ClusterState::read(&client).await?;
    // It says that it was done.
    app.run_command(doc! {"collMod": "line", "cappedSize": 4_096}).await?;
    same(&client, &expected).await?;

    let manifest = here.backup().await?;
    here.restore_into(&there, Target::Snapshot(manifest.id), Selection::default()).await?;
    same(&target.client().await?, &expected).await?;

    // What would be written to the buckets instead is refused, though they would take it.
    app.collection("point").insert_one(doc! {"t": bson::DateTime::now()}).await?;
    app.run_command(doc! {"create": "system.buckets.point", "clusteredIndex": true, "timeseries": series}).await?;
    let manifest = here.backup().await?;
    let failed = here.restore_into(&there, Target::Snapshot(manifest.id), Selection::default()).await.unwrap_err();
    let failed = format!("{failed:#}");
    assert!(failed.contains("app.point cannot be filled: system.buckets.point"), "{failed}");
    Ok(())
}
