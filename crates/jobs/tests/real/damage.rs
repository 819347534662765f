//! What is damaged in the repository is named, and the target stays as it is.

use anyhow::{Context, Result};
use bson::doc;
use hindsight_catalog::Target;
use hindsight_engine::{FailureKind, Progress, Selection};
use hindsight_jobs::{JobError, RestoreRequest, propose, restore};
use hindsight_testkit::{ClusterState, ReplicaSet};
use tokio_util::sync::CancellationToken;

use crate::support::harm::files;
use crate::support::{Store, logging, same, this_moment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_or_a_cut_object_is_refused_before_the_target_is_touched() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let (store, root) = Store::in_folder().await?;
    let here = store.protect(&set.uri(), None).await?;
    let things = client.database("app").collection("things");
    things.insert_many((0..5000).map(|n| doc! {"_id": n, "text": format!("thing number {n}")})).await?;
    let manifest = here.backup().await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    things.update_many(doc! {}, doc! {"$set": {"seen": true}}).await?;
    let moment = this_moment(&client).await?;
    here.captured(&moment).await?;
    agent.stop().await?;
    let before = ClusterState::read(&client).await?;

    let all = files(&root.join("clusters"))?;
    let one =
        |part: &str| all.iter().find(|path| path.display().to_string().contains(part)).cloned().context("no such file");
    let flip = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 3;
        bytes[middle] ^= 0x10;
        bytes
    };
    let cut = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    type Harm<'a> = (&'a str, &'a dyn Fn(&[u8]) -> Vec<u8>);
    let harms: [Harm; 6] = [
        ("/log/", &flip),
        ("/log/", &cut),
        ("data/000001", &cut),
        ("data/000001", &flip),
        ("catalog.bson", &flip),
        ("manifest.json", &flip),
    ];
    for (part, harm) in harms {
        let path = one(part)?;
        let good = std::fs::read(&path)?;
        std::fs::write(&path, harm(&good))?;
        let refused = here.restore_into(&here, moment.clone(), Selection::default()).await.unwrap_err();
        std::fs::write(&path, &good)?;
        let refused = refused.downcast::<JobError>()?;
        assert_eq!(refused.kind(), Some(FailureKind::Damaged), "{part}: {refused}");
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(refused.to_string().contains(&name), "{part}: {refused}");
        same(&client, &before).await?;
    }
    let path = one("data/000001")?;
    let good = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    let refused = here.restore_into(&here, Target::Snapshot(manifest.id), Selection::default()).await.unwrap_err();
    assert!(refused.to_string().contains("000001"), "{refused}");
    same(&client, &before).await?;
    std::fs::write(&path, &good)?;
    here.restore_into(&here, moment, Selection::default()).await?;
    same(&client, &before).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_check_damage_in_the_data_is_found_too_late() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let (store, root) = Store::in_folder().await?;
    let here = store.protect(&set.uri(), None).await?;
    let things = client.database("app").collection("things");
    things.insert_many((0..5000).map(|n| doc! {"_id": n, "text": format!("thing number {n}")})).await?;
    let target = Target::Snapshot(here.backup().await?.id);
    let before = ClusterState::read(&client).await?;
    let data: Vec<_> = files(&root)?.into_iter().filter(|path| path.display().to_string().contains("/data/")).collect();
    // The largest holds the things; the others hold what the server keeps itself.
    let largest = data.iter().max_by_key(|path| path.metadata().map_or(0, |meta| meta.len())).context("no data")?;
    let mut bytes = std::fs::read(largest)?;
    bytes[200] ^= 1;
    std::fs::write(largest, bytes)?;

    let name = largest.file_name().context("no name")?.to_string_lossy().into_owned();
    for selection in [Selection::default(), Selection::new(vec!["app.things".to_owned()])?] {
        let refused = here.restore_into(&here, target.clone(), selection).await.unwrap_err();
        assert!(refused.to_string().contains(&name), "{refused}");
        same(&client, &before).await?;
    }
    let other = Selection::new(vec!["elsewhere.*".to_owned()])?;
    here.restore_into(&here, target.clone(), other).await.context("what is not read cannot hurt")?;
    let request = RestoreRequest { skip_check: true, ..RestoreRequest::to(target) };
    let proposal = propose(&*here.engine, &here.repository, &here.cluster, request).await?;
    let failed = restore(&*here.engine, &proposal, &Progress::default(), &CancellationToken::new()).await.unwrap_err();
    assert!(failed.to_string().contains(&name), "{failed}");
    assert!(here.cluster.restores().await?.last().is_some_and(|record| record.touched));
    Ok(())
}
