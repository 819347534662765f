//! The oracle sees every kind of difference, and none where there is none.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bson::{DateTime, Document, doc};
use hindsight_testkit::{ClusterState, ReplicaSet, last_optime, mongod_version};
use mongodb::{Client, Database};

async fn run(database: &Database, command: Document) {
    database.run_command(command).await.unwrap();
}

/// Makes one thing of each kind.
async fn fill(client: &Client) {
    let app = client.database("app");
    run(&app, doc! {"insert": "things", "documents": [{"_id": 1, "a": 1}, {"_id": 2, "a": 2}]}).await;
    run(&app, doc! {"createIndexes": "things", "indexes": [{"name": "a", "key": {"a": 1, "b": 1}}]}).await;
    run(&app, doc! {"create": "view", "viewOn": "things", "pipeline": [{"$match": {"a": 1}}]}).await;
    run(&app, doc! {"create": "log", "capped": true, "size": 4096}).await;
    run(&app, doc! {"insert": "log", "documents": [{"_id": 2}, {"_id": 1}]}).await;
    run(&app, doc! {"create": "empty", "validator": {"a": {"$exists": true}}}).await;
    if mongod_version().unwrap() >= (5, 0, 0) {
        run(&app, doc! {"create": "weather", "timeseries": {"timeField": "at"}}).await;
        let at = DateTime::from_millis(1_700_000_000_000);
        run(&app, doc! {"insert": "weather", "documents": [{"_id": 1, "at": at, "t": 3.5}]}).await;
    }
}

#[tokio::test]
async fn equal_sets_are_equal_and_each_change_is_seen() {
    let set = ReplicaSet::single().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client).await;
    let before = ClusterState::read(&client).await.unwrap();
    assert_eq!(before.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
    let names: Vec<&str> = before.databases["app"].keys().map(String::as_str).collect();
    if mongod_version().unwrap() >= (5, 0, 0) {
        assert_eq!(names, ["empty", "log", "system.buckets.weather", "things", "view", "weather"]);
    }

    let other_set = ReplicaSet::single().await.unwrap();
    let other = other_set.client().await.unwrap();
    fill(&other).await;
    let there = ClusterState::read(&other).await.unwrap();
    // Every insert into a time-series collection invents the id of a new bucket.
    let plain = |_: &str, name: &str| !name.starts_with("system.buckets.");
    assert_eq!(before.clone().retain(plain).diff(&there.retain(plain)), Vec::<String>::new());

    let app = client.database("app");
    let json = serde_json::to_string(&before).unwrap();
    assert_eq!(serde_json::from_str::<ClusterState>(&json).unwrap(), before);
    let mut last = before;
    let changes = [
        (
            doc! {"update": "things", "updates": [{"q": {"_id": 1}, "u": {"$set": {"a": 1_i64}}}]},
            "app.things: documents",
        ),
        (doc! {"delete": "things", "deletes": [{"q": {"_id": 2}, "limit": 1}]}, "app.things: documents"),
        (
            doc! {"createIndexes": "things", "indexes": [{"name": "b", "key": {"b": 1}}]},
            "app.things: index b should not",
        ),
        (doc! {"dropIndexes": "things", "index": "a"}, "app.things: index a is missing"),
        (doc! {"collMod": "view", "pipeline": []}, "app.view: option pipeline"),
        (doc! {"collMod": "empty", "validationLevel": "moderate"}, "app.empty: option validationLevel"),
        (doc! {"insert": "log", "documents": [{"_id": 3}]}, "app.log: documents"),
        (doc! {"drop": "empty"}, "app.empty: collection is missing"),
        (doc! {"create": "new"}, "app.new: collection should not exist"),
        (doc! {"createUser": "alice", "pwd": "x", "roles": ["read"]}, "user app.alice"),
        (doc! {"createRole": "reader", "privileges": [], "roles": []}, "role app.reader"),
        (doc! {"updateUser": "alice", "pwd": "y"}, "user app.alice: expected"),
    ];
    for (change, line) in changes {
        run(&app, change).await;
        let state = ClusterState::read(&client).await.unwrap();
        let diff = last.diff(&state);
        assert!(diff.iter().any(|found| found.starts_with(line)), "expected {line:?}, found {diff:#?}");
        last = state;
    }
    assert!(!last.users.is_empty());
    assert!(last.without_users().users.is_empty());
}

#[tokio::test]
async fn order_counts_in_capped_collections_only() {
    let set = ReplicaSet::single().await.unwrap();
    let client = set.client().await.unwrap();
    let app = client.database("app");
    let mut states = Vec::new();
    for ids in [[1, 2], [2, 1]] {
        app.drop().await.unwrap();
        run(&app, doc! {"create": "log", "capped": true, "size": 4096}).await;
        for name in ["log", "things"] {
            run(&app, doc! {"insert": name, "documents": ids.map(|id| doc! {"_id": id}).to_vec()}).await;
        }
        states.push(ClusterState::read(&client).await.unwrap());
    }
    let diff = states[0].diff(&states[1]);
    assert!(diff.iter().all(|line| line.starts_with("app.log: ")) && !diff.is_empty(), "{diff:#?}");
}

#[tokio::test]
async fn optime_moves_with_writes() {
    let set = ReplicaSet::builder().members(3).auth().start().await.unwrap();
    let client = set.client().await.unwrap();
    let before = last_optime(&client).await.unwrap();
    run(&client.database("app"), doc! {"insert": "things", "documents": [{"_id": 1}]}).await;
    let after = last_optime(&client).await.unwrap();
    assert!(after > before, "{before:?} {after:?}");

    // The oracle works with authentication, and on secondaries.
    let state = ClusterState::read(&client).await.unwrap();
    let primary = set.primary_index().await.unwrap();
    let secondary = set.direct_client((primary + 1) % 3).await.unwrap();
    while last_optime(&secondary).await.unwrap() < after {}
    let there = ClusterState::read(&secondary).await.unwrap();
    assert_eq!(state.diff(&there), Vec::<String>::new());
    assert!(state.users.contains_key("user admin.root"));
}

#[tokio::test]
async fn an_index_in_the_making_is_none() {
    let set = ReplicaSet::builder().arg("--setParameter").arg("enableTestCommands=1").start().await.unwrap();
    let client = set.client().await.unwrap();
    let (admin, app) = (client.database("admin"), client.database("app"));
    run(&app, doc! {"insert": "things", "documents": [{"_id": 1}]}).await;
    // A measurement of a time-series can be indexed since 6.0.
    let series = mongod_version().unwrap() >= (6, 0, 0);
    let mut names = vec!["things"];
    if series {
        run(&app, doc! {"create": "weather", "timeseries": {"timeField": "at", "metaField": "of"}}).await;
        run(&app, doc! {"insert": "weather", "documents": [{"at": DateTime::now(), "of": 1, "a": 1}]}).await;
        names.push("system.buckets.weather");
    }
    let before = ClusterState::read(&client).await.unwrap();

    run(&admin, doc! {"configureFailPoint": "hangAfterStartingIndexBuild", "mode": "alwaysOn"}).await;
    let builds = names.iter().map(|name| {
        let (app, name) = (app.clone(), name.trim_start_matches("system.buckets.").to_owned());
        tokio::spawn(async move {
            run(&app, doc! {"createIndexes": name, "indexes": [{"name": "a", "key": {"a": 1}}]}).await
        })
    });
    let builds: Vec<_> = builds.collect();
    // The server lists them from their start on.
    for name in &names {
        let collection = app.collection::<Document>(name);
        while !collection.list_index_names().await.unwrap().contains(&"a".to_owned()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    assert_eq!(before.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());

    run(&admin, doc! {"configureFailPoint": "hangAfterStartingIndexBuild", "mode": "off"}).await;
    for build in builds {
        build.await.unwrap();
    }
    let diff = before.diff(&ClusterState::read(&client).await.unwrap());
    let names: &[&str] = if series { &["system.buckets.weather", "things", "weather"] } else { &["things"] };
    let expected: Vec<_> = names.iter().map(|name| format!("app.{name}: index a should not exist")).collect();
    assert_eq!(diff, expected);
}
