//! Servers start, stop, crash and come back as the other crates' tests expect.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bson::{Document, doc};
use hindsight_testkit::{Mongod, ReplicaSet, mongod_version};
use mongodb::options::{Acknowledgment, ReadPreference, SelectionCriteria, WriteConcern};

#[tokio::test]
async fn standalone_has_no_oplog() {
    let mongod = Mongod::standalone().await.unwrap();
    let client = mongod.client().await.unwrap();
    let hello = client.database("admin").run_command(doc! {"hello": 1}).await.unwrap();
    assert!(hello.get("setName").is_none());
    let info = client.database("admin").run_command(doc! {"buildInfo": 1}).await.unwrap();
    let (major, minor, patch) = mongod_version().unwrap();
    assert_eq!(info.get_str("version").unwrap(), format!("{major}.{minor}.{patch}"));
}

#[tokio::test]
async fn one_member_survives_a_crash_and_a_restart() {
    let set = ReplicaSet::builder().oplog_mb(16).start().await.unwrap();
    let things = set.client().await.unwrap().database("app").collection::<Document>("things");
    // Journaled, as it is by default from 5.0 on only.
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
    things.insert_one(doc! {"_id": 1}).write_concern(majority).await.unwrap();

    set.member(0).kill9();
    assert!(!set.member(0).is_running());
    set.member(0).restart().await.unwrap();
    set.wait_primary().await.unwrap();
    things.insert_one(doc! {"_id": 2}).await.unwrap();

    set.member(0).stop().await.unwrap();
    set.member(0).restart().await.unwrap();
    set.wait_primary().await.unwrap();
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 2);

    let before = set.member(0).pid().unwrap();
    assert_eq!(set.step_down().await.unwrap(), 0);
    assert_eq!(set.member(0).pid().unwrap(), before);
    things.insert_one(doc! {"_id": 3}).await.unwrap();
}

#[tokio::test]
async fn three_members_with_authentication_change_their_primary() {
    let set = ReplicaSet::builder()
        .members(3)
        .name("trio")
        .auth()
        .member_options(2, doc! {"tags": {"room": "east"}})
        .start()
        .await
        .unwrap();
    assert!(set.uri().contains("replicaSet=trio"));
    let client = set.client().await.unwrap();
    let things = client.database("app").collection::<Document>("things");
    things.insert_one(doc! {"_id": 1}).await.unwrap();

    let config = client.database("admin").run_command(doc! {"replSetGetConfig": 1}).await.unwrap();
    let members = config.get_document("config").unwrap().get_array("members").unwrap();
    let tags = members[2].as_document().unwrap().get_document("tags").unwrap();
    assert_eq!(tags, &doc! {"room": "east"});

    let anonymous = set.member(0).client().await.unwrap();
    anonymous.list_database_names().await.expect_err("no login, no names");

    let old = set.primary_index().await.unwrap();
    let new = set.step_down().await.unwrap();
    assert_ne!(old, new);
    things.insert_one(doc! {"_id": 2}).await.unwrap();

    // A frozen primary is replaced, and finds itself a secondary afterwards.
    set.member(new).sigstop().unwrap();
    while set.primary_index().await.is_none_or(|index| index == new) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    set.member(new).sigcont().unwrap();
    set.wait_members().await.unwrap();

    let secondary = set.direct_client(2).await.unwrap();
    let count = secondary
        .database("app")
        .collection::<Document>("things")
        .find(doc! {})
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Nearest { options: None }))
        .await
        .unwrap()
        .advance()
        .await
        .unwrap();
    assert!(count);
}
