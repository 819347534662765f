//! The least rights that suffice, and what is said when they are missing.

use anyhow::Result;
use bson::{Bson, Document, doc};
use hindsight_catalog::Target;
use hindsight_engine::{Engine, FailureKind, Progress, Selection};
use hindsight_jobs::{JobError, propose_replay, replay};
use hindsight_mongodb::MongoEngine;
use hindsight_testkit::{ClusterState, ReplicaSet, mongod_version};
use tokio_util::sync::CancellationToken;

use crate::support::{Store, logging, same, this_moment};

async fn user(set: &ReplicaSet, name: &str, roles: &[&str]) -> Result<String> {
    let roles: Vec<Bson> = roles.iter().map(|role| doc! {"role": *role, "db": "admin"}.into()).collect();
    create(set, doc! {"createUser": name, "roles": roles}).await
}

async fn create(set: &ReplicaSet, mut statement: Document) -> Result<String> {
    statement.insert("pwd", "pw");
    let name = statement.get_str("createUser")?.to_owned();
    set.client().await?.database("admin").run_command(statement).await?;
    Ok(set.uri_as(&name, "pw"))
}

/// The statement that `hindsight roles` gives for a user.
fn statement(user: &str) -> Result<Document> {
    let grants = MongoEngine::new("").grants();
    let grant = grants.iter().find(|grant| grant.user == user).expect("a grant");
    Ok(bson::serialize_to_document(&grant.statement)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_capture_and_restore_need_three_roles_between_them() -> Result<()> {
    logging();
    let set = ReplicaSet::builder().auth().start().await?;
    let client = set.client().await?;
    let backup = create(&set, statement("hindsight_backup")?).await?;
    let restore = create(&set, statement("hindsight_restore")?).await?;
    user(&set, "app", &["readWriteAnyDatabase"]).await?;
    let odd = doc! {"_id": 7, "empty": bson::Timestamp { time: 0, increment: 0 }};
    client.database("app").collection("things").insert_many((0..100).map(|n| doc! {"_id": n})).await?;
    // Only an update can bring an empty timestamp into a document of a running server.
    let things = client.database("app").collection::<bson::Document>("things");
    things.update_one(doc! {"_id": 7}, vec![doc! {"$replaceWith": {"$literal": odd}}]).await?;
    let script = doc! {"_id": "f", "value": Bson::JavaScriptCode("function() {}".into())};
    client.database("app").collection("system.js").insert_one(script).await?;
    client.database("app").run_command(doc! {"create": "v", "viewOn": "things", "pipeline": []}).await?;
    let version = mongod_version()?;
    if version >= (5, 0, 0) {
        let series = doc! {"create": "ts", "timeseries": {"timeField": "t"}, "expireAfterSeconds": 1_000_000_000_i64};
        client.database("app").run_command(series).await?;
        client.database("app").collection("ts").insert_one(doc! {"t": bson::DateTime::now(), "v": 1}).await?;
    }

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
    if (version.0, version.1) == (5, 0) {
        // The role of this version lacks what the document with the empty timestamp needs.
        let refused = restorer.restore_into(&restorer, target.clone(), Selection::default()).await.unwrap_err();
        let refused = refused.downcast::<JobError>()?;
        assert!(refused.hint().is_some_and(|hint| hint.contains("dbAdminAnyDatabase")), "{refused}");
        let root = store.protect(&set.uri(), None).await?;
        root.restore_into(&root, target, Selection::default()).await?;
    } else {
        restorer.restore_into(&restorer, target, Selection::default()).await?;
    }
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

/// Each role is needed: without it the work is refused, and the privilege that is missing is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_is_granted_in_vain() -> Result<()> {
    logging();
    let set = ReplicaSet::builder().auth().start().await?;
    let client = set.client().await?;
    let things = client.database("app").collection("things");
    things.insert_one(doc! {"_id": 1}).await?;
    let store = Store::new().await?;
    let root = store.protect(&set.uri(), None).await?;
    root.set("pitr.enabled", "true").await?;
    let agent = root.agent();
    root.based().await?;
    things.insert_one(doc! {"_id": 2}).await?;
    client.database("gone").collection("things").insert_one(doc! {"_id": 1}).await?;
    let from = this_moment(&client).await?;
    things.update_one(doc! {"_id": 1}, doc! {"$set": {"n": 1}}).await?;
    client.database("app").run_command(doc! {"collMod": "things", "validationLevel": "off"}).await?;
    client.database("gone").drop().await?;
    client.database("app").run_command(doc! {"createUser": "one", "pwd": "pw", "roles": []}).await?;
    let to = this_moment(&client).await?;
    root.captured(&to).await?;
    agent.stop().await?;
    root.set("pitr.enabled", "false").await?;

    for grant in MongoEngine::new("").grants() {
        let whole = statement(&grant.user)?;
        let roles = whole.get_array("roles")?;
        for left_out in (0..roles.len()).map(Some).chain([None]) {
            let mut some = whole.clone();
            some.insert("createUser", format!("{}_{left_out:?}", grant.user).replace(['(', ')'], ""));
            let kept = roles.iter().enumerate().filter(|(index, _)| Some(*index) != left_out);
            some.insert("roles", kept.map(|(_, role)| role.clone()).collect::<Vec<_>>());
            let uri = create(&set, some).await?;
            let done = async {
                let user = store.protect(&uri, None).await?;
                match grant.user.as_str() {
                    "hindsight_backup" => user.backup().await.map(drop),
                    "hindsight_restore" => user.restore_into(&user, from.clone(), Selection::default()).await.map(drop),
                    _ => {
                        let plan = propose_replay(&*user.engine, &store.repository, &user.cluster, &from, &to).await?;
                        let (progress, cancel) = (Progress::default(), CancellationToken::new());
                        Ok(replay(&*user.engine, &plan, &progress, &cancel).await.map(drop)?)
                    }
                }
            };
            let done: Result<()> = done.await;
            let without = left_out.map(|index| format!("{} without {:?}", grant.user, roles[index]));
            match (done, without) {
                (done, None) => done?,
                (Ok(()), Some(without)) => panic!("{without} suffices"),
                (Err(error), Some(without)) => {
                    assert!(error.to_string().contains("lacks the privilege"), "{without}: {error}")
                }
            }
        }
    }
    Ok(())
}
