//! The least rights that suffice, and what is said when they are missing.

use anyhow::Result;
use bson::{Bson, doc};
use hindsight_catalog::Target;
use hindsight_engine::{FailureKind, Selection};
use hindsight_jobs::JobError;
use hindsight_testkit::{ClusterState, ReplicaSet};

use crate::support::{Store, logging, same};

async fn user(set: &ReplicaSet, name: &str, roles: &[&str]) -> Result<String> {
    let roles: Vec<Bson> = roles.iter().map(|role| doc! {"role": *role, "db": "admin"}.into()).collect();
    let admin = set.client().await?.database("admin");
    admin.run_command(doc! {"createUser": name, "pwd": "pw", "roles": roles}).await?;
    Ok(set.uri_as(name, "pw"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_capture_and_restore_need_three_roles_between_them() -> Result<()> {
    logging();
    let set = ReplicaSet::builder().auth().start().await?;
    let client = set.client().await?;
    let backup = user(&set, "saver", &["backup", "clusterMonitor"]).await?;
    let restore = user(&set, "restorer", &["restore", "clusterMonitor"]).await?;
    user(&set, "app", &["readWriteAnyDatabase"]).await?;
    let odd = doc! {"_id": 7, "empty": bson::Timestamp { time: 0, increment: 0 }};
    client.database("app").collection("things").insert_many((0..100).map(|n| doc! {"_id": n})).await?;
    // Only an update can bring an empty timestamp into a document of a running server.
    let things = client.database("app").collection::<bson::Document>("things");
    things.update_one(doc! {"_id": 7}, vec![doc! {"$replaceWith": {"$literal": odd}}]).await?;
    let script = doc! {"_id": "f", "value": Bson::JavaScriptCode("function() {}".into())};
    client.database("app").collection("system.js").insert_one(script).await?;
    client.database("app").run_command(doc! {"create": "v", "viewOn": "things", "pipeline": []}).await?;
    client
        .database("app")
        .run_command(doc! {"create": "ts", "timeseries": {"timeField": "t"}, "expireAfterSeconds": 1_000_000_000_i64})
        .await?;
    client.database("app").collection("ts").insert_one(doc! {"t": bson::DateTime::now(), "v": 1}).await?;

    let store = Store::new().await?;
    let saver = store.protect(&backup, None).await?;
    saver.set("pitr.enabled", "true").await?;
    saver.set("pitr.uploadIntervalSec", "1").await?;
    let agent = saver.agent();
    let manifest = saver.backup().await?;
    let expected = ClusterState::read(&client).await?;
    agent.stop().await?;

    things.drop().await?;
    client.database("app").collection::<bson::Document>("system.js").delete_many(doc! {}).await?;
    client.database("admin").run_command(doc! {"dropUser": "app"}).await?;
    client.database("admin").run_command(doc! {"createRole": "extra", "privileges": [], "roles": []}).await?;
    let restorer = store.protect(&restore, None).await?;
    // The one thing for which the role is not enough: functions that are there already.
    let target = Target::Snapshot(manifest.id);
    let refused = restorer.restore_into(&restorer, target.clone(), Selection::default()).await.unwrap_err();
    assert!(refused.to_string().contains("app.system.js holds stored functions"), "{refused}");
    client.database("app").drop().await?;
    restorer.restore_into(&restorer, target, Selection::default()).await?;
    same(&client, &expected).await?;
    // The user who restored is still let in.
    store.protect(&restore, None).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_named_before_anything_is_done() -> Result<()> {
    logging();
    let set = ReplicaSet::builder().auth().start().await?;
    let client = set.client().await?;
    client.database("app").collection("things").insert_one(doc! {"_id": 1}).await?;
    let store = Store::new().await?;
    let nothing = user(&set, "nobody", &["read"]).await?;
    let error = store.protect(&nothing, None).await.err().expect("refused").to_string();
    assert!(error.contains("lacks the privilege \"replSetGetConfig\" on admin"), "{error}");

    let saver = store.protect(&user(&set, "saver", &["backup", "clusterMonitor"]).await?, None).await?;
    let manifest = saver.backup().await?;
    let before = ClusterState::read(&client).await?;
    let error = saver.restore_into(&saver, Target::Snapshot(manifest.id), Selection::default()).await.unwrap_err();
    let error = error.downcast::<JobError>()?;
    assert_eq!(error.kind(), Some(FailureKind::Privilege), "{error}");
    assert!(error.hint().unwrap().contains("restore and clusterMonitor"), "{error}");
    same(&client, &before).await?;

    let wrong = set.uri_as("saver", "wrong");
    let error =
        store.protect(&wrong, None).await.err().expect("refused").downcast::<hindsight_engine::EngineError>()?;
    assert_eq!(error.kind, FailureKind::Authentication, "{error}");
    Ok(())
}
