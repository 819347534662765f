//! The main job with its repository in a bucket.

use anyhow::Result;
use bson::doc;
use hindsight_engine::Selection;
use hindsight_testkit::{ClusterState, Fault, ReplicaSet, S3Op, S3Server};

use crate::support::{Store, logging, same, this_moment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_serves_as_well_as_a_folder_also_when_it_fails_now_and_then() -> Result<()> {
    logging();
    let server = S3Server::start("backups")?;
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let store = Store::in_bucket(&server, "s3://backups/p").await?;
    let here = store.protect(&set.uri(), None).await?;
    let bulk = client.database("app").collection("bulk");
    let text = "lorem ipsum ".repeat(80);
    bulk.insert_many((0..20_000).map(|n| doc! {"_id": n, "text": &text, "r": n * 7919 % 10_007})).await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    here.based().await?;

    // Slices that cannot be stored wait, and are stored when they can.
    server.faults().plan(S3Op::Put, "/log/", 12, Fault::Error);
    bulk.update_many(doc! {"_id": {"$lt": 1000}}, doc! {"$set": {"r": -1}}).await?;
    let moment = this_moment(&client).await?;
    let expected = ClusterState::read(&client).await?;
    here.captured(&moment).await?;
    agent.stop().await?;

    bulk.drop().await?;
    here.restore_into(&here, moment, Selection::default()).await?;
    same(&client, &expected).await
}
