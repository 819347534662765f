//! Parts of a cluster, and other names.

use anyhow::Result;
use bson::{Document, doc};
use hindsight_catalog::Target;
use hindsight_engine::{Progress, Selection};
use hindsight_jobs::{BackupRequest, backup};
use hindsight_testkit::{ClusterState, ReplicaSet, mongod_version};
use mongodb::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{Store, logging, same, this_moment};

async fn fill(client: &Client) -> Result<()> {
    for db in ["shop", "blog"] {
        for coll in ["one", "two"] {
            client.database(db).collection(coll).insert_many((0..100).map(|n| doc! {"_id": n, "x": n % 7})).await?;
            let indexes = doc! {"createIndexes": coll, "indexes": [{"key": {"x": 1}, "name": "x"}]};
            client.database(db).run_command(indexes).await?;
        }
        client.database(db).run_command(doc! {"create": "view", "viewOn": "one", "pipeline": []}).await?;
    }
    // Before 5.0 it is a collection like others.
    if mongod_version()? >= (5, 0, 0) {
        let series = doc! {"create": "series", "timeseries": {"timeField": "at", "metaField": "m"}};
        client.database("shop").run_command(series).await?;
    }
    let points = (0..50).map(|n| doc! {"at": bson::DateTime::from_millis(1_700_000_000_000 + n), "m": n % 3, "v": n});
    client.database("shop").collection("series").insert_many(points).await?;
    Ok(())
}

async fn count(client: &Client, db: &str, coll: &str) -> Result<u64> {
    Ok(client.database(db).collection::<Document>(coll).count_documents(doc! {}).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_collection_comes_back_and_nothing_else_moves() -> Result<()> {
    logging();
    let source = ReplicaSet::single().await?;
    let client = source.client().await?;
    fill(&client).await?;
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), None).await?;
    here.set("pitr.enabled", "true").await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    let agent = here.agent();
    here.based().await?;
    client.database("shop").collection::<Document>("one").delete_many(doc! {"_id": {"$lt": 50}}).await?;
    let target = this_moment(&client).await?;
    let expected = ClusterState::read(&client).await?;

    client.database("shop").collection::<Document>("one").drop().await?;
    client.database("shop").collection::<Document>("two").delete_many(doc! {"_id": {"$lt": 90}}).await?;
    client.database("blog").drop().await?;
    here.captured(&this_moment(&client).await?).await?;
    agent.stop().await?;

    here.restore_into(&here, target.clone(), Selection::new(vec!["shop.one".into()])?).await?;
    assert_eq!((count(&client, "shop", "one").await?, count(&client, "shop", "two").await?), (50, 10));
    assert_eq!(client.database("blog").list_collection_names().await?, Vec::<String>::new());

    here.restore_into(&here, target.clone(), Selection::new(vec!["blog.*".into(), "shop.two".into()])?).await?;
    same(&client, &expected).await?;

    let series = Selection::new(vec!["shop.series".into()])?;
    client.database("shop").collection::<Document>("series").drop().await?;
    here.restore_into(&here, target, series).await?;
    same(&client, &expected).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_and_a_database_come_back_under_other_names() -> Result<()> {
    logging();
    let source = ReplicaSet::single().await?;
    let client = source.client().await?;
    fill(&client).await?;
    let before = ClusterState::read(&client).await?;
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), None).await?;
    let snapshot = Target::Snapshot(here.backup().await?.id);

    here.restore_into(&here, snapshot.clone(), Selection::renamed("shop.one", "shop.one_again")?).await?;
    assert_eq!(count(&client, "shop", "one_again").await?, 100);
    let names = client.database("shop").collection::<Document>("one_again").list_index_names().await?;
    assert_eq!(names, ["_id_", "x"]);
    let taken = here.restore_into(&here, snapshot.clone(), Selection::renamed("shop.one", "shop.two")?).await;
    assert!(taken.unwrap_err().to_string().contains("exists already"));

    here.restore_into(&here, snapshot, Selection::renamed("shop.*", "shop_copy.*")?).await?;
    assert_eq!(count(&client, "shop_copy", "two").await?, 100);
    assert_eq!(count(&client, "shop_copy", "series").await?, 50);
    assert_eq!(count(&client, "shop_copy", "view").await?, 100);
    client.database("shop_copy").drop().await?;
    client.database("shop").collection::<Document>("one_again").drop().await?;
    same(&client, &before).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selective_snapshot_holds_what_was_asked_for() -> Result<()> {
    logging();
    let source = ReplicaSet::single().await?;
    let client = source.client().await?;
    fill(&client).await?;
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), None).await?;
    let request = BackupRequest { namespaces: vec!["shop.one".into(), "blog.*".into()], ..BackupRequest::default() };
    let manifest =
        backup(&*here.engine, &here.cluster, &request, &Progress::default(), &CancellationToken::new()).await?;
    assert_eq!(manifest.namespaces, ["shop.one", "blog.*"]);
    let before = ClusterState::read(&client).await?;

    client.database("shop").collection::<Document>("one").drop().await?;
    client.database("blog").collection::<Document>("two").drop().await?;
    let all = here.restore_into(&here, Target::Snapshot(manifest.id.clone()), Selection::default()).await;
    assert!(all.unwrap_err().to_string().contains("holds only"));
    let both = Selection::new(vec!["shop.one".into(), "blog.*".into()])?;
    here.restore_into(&here, Target::Snapshot(manifest.id), both).await?;
    same(&client, &before).await
}
