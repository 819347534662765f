//! Writes that a primary took and that were rolled back later must never be kept.

use anyhow::Result;
use bson::{Document, doc};
use hindsight_catalog::Target;
use hindsight_engine::Selection;
use hindsight_testkit::{ClusterState, ReplicaSet};
use mongodb::options::WriteConcern;

use crate::support::{Store, logging, same, this_moment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rolled_back_is_not_captured() -> Result<()> {
    logging();
    let (set, target) = tokio::try_join!(ReplicaSet::builder().members(3).start(), ReplicaSet::single())?;
    let client = set.client().await?;
    let things = client.database("app").collection::<Document>("things");
    things.insert_many((0..100).map(|n| doc! {"_id": n})).await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), Some("source")).await?;
    here.set("pitr.enabled", "true").await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    let agent = here.agent();
    here.based().await?;

    // The primary is cut off from the others and goes on by itself, as long as it does not notice.
    let old = set.wait_primary().await?;
    let others: Vec<_> = (0..3).filter(|index| *index != old).collect();
    let alone = set.direct_client(old).await?;
    for &index in &others {
        set.member(index).kill9();
    }
    let journaled = WriteConcern::builder().w(mongodb::options::Acknowledgment::Nodes(1)).journal(true).build();
    let doomed = alone.database("app").collection::<Document>("things");
    doomed.insert_many((1000..1100).map(|n| doc! {"_id": n})).write_concern(journaled.clone()).await?;
    doomed.delete_one(doc! {"_id": 1}).write_concern(journaled).await?;
    // Long enough for an agent that does not wait for a majority to store it.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    set.member(old).kill9();
    for &index in &others {
        set.member(index).restart().await?;
    }
    set.wait_primary().await?;
    things.insert_one(doc! {"_id": "after"}).await?;
    set.member(old).restart().await?;
    set.wait_members().await?;
    things.insert_one(doc! {"_id": "later"}).await?;
    let moment = this_moment(&client).await?;
    let expected = ClusterState::read(&client).await?;
    assert_eq!(things.count_documents(doc! {}).await?, 102, "what the old primary had taken was rolled back");

    here.captured(&moment).await?;
    agent.stop().await?;
    let there = store.protect(&target.uri(), Some("target")).await?;
    here.restore_into(&there, moment, Selection::default()).await?;
    same(&target.client().await?, &expected).await?;
    // A snapshot after it is of the history that counts as well.
    let manifest = here.backup().await?;
    here.restore_into(&there, Target::Snapshot(manifest.id), Selection::default()).await?;
    same(&target.client().await?, &expected).await
}
