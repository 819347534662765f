//! Backup, capture and restore in a sealed repository: exact, and nothing of the data to be seen.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bson::doc;
use hindsight_engine::{Progress, Selection};
use hindsight_jobs::{JobError, verify};
use hindsight_repository::{Error, Identity};
use hindsight_testkit::{ClusterState, ReplicaSet};
use tokio_util::sync::CancellationToken;

use crate::support::{Store, logging, same, this_moment};

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Where one of `words` stands in a folder.
fn find(folder: &Path, words: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in files(folder)? {
        let bytes = std::fs::read(&path)?;
        let text = String::from_utf8_lossy(&bytes).into_owned() + &path.display().to_string();
        // What is compressed shows no words: as far as zstd goes, it is looked into.
        let inside = zstd::decode_all(&bytes[..]).map(|raw| String::from_utf8_lossy(&raw).into_owned());
        let text = text + &inside.unwrap_or_default();
        found.extend(
            words.iter().filter(|word| text.contains(**word)).map(|word| format!("{word} in {}", path.display())),
        );
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_repository_shows_nothing_and_restores_exactly() -> Result<()> {
    logging();
    const WORDS: [&str; 4] = ["secretdb", "hushcoll", "confidential words", "latecoll"];
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let identity = Identity::generate();
    let (store, folder) = Store::sealed(&identity.recipients()).await?;
    let here = store.protect(&set.uri(), None).await?;
    let hush = client.database("secretdb").collection("hushcoll");
    hush.insert_many((0..3000).map(|n| doc! {"_id": n, "text": format!("confidential words {n}")})).await?;
    here.backup().await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.oplogSpanMin", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    hush.update_many(doc! {"_id": {"$lt": 100}}, doc! {"$set": {"more": "confidential words"}}).await?;
    client.database("secretdb").collection("latecoll").insert_one(doc! {"_id": 1}).await?;
    let wanted = ClusterState::read(&client).await?;
    let moment = this_moment(&client).await?;
    client.database("secretdb").drop().await?;
    here.captured(&moment).await?;

    // Without the private key a restore is refused, and nothing is changed.
    let before = ClusterState::read(&client).await?;
    for opened in [None, Some(Identity::generate())] {
        let there = match opened {
            Some(identity) => here.with_identity(identity).await?,
            None => here.clone(),
        };
        let refused = there.restore_into(&there, moment.clone(), Selection::default()).await.unwrap_err();
        let refused = refused.downcast::<JobError>()?;
        assert!(matches!(&refused, JobError::Repository(Error::Sealed { .. })), "{refused}");
        assert!(refused.to_string().contains(&identity.recipients()[0].to_string()), "{refused}");
        same(&client, &before).await?;
        assert!(here.cluster.restores().await?.is_empty());
    }

    let opened = here.with_identity(identity).await?;
    let some = Selection::new(vec!["secretdb.hushcoll".to_owned()])?;
    let record = opened.restore_into(&opened, moment.clone(), some).await?;
    assert_eq!(record.namespaces, ["secretdb.hushcoll"]);
    opened.restore_into(&opened, moment, Selection::default()).await?;
    same(&client, &wanted).await?;
    agent.stop().await?;
    let restored = here.cluster.restores().await?;
    assert_eq!(restored.len(), 2);
    assert_eq!(find(&folder, &WORDS)?, Vec::<String>::new());

    // Everything can be verified, with the private key only; damage is found under the key that the store knows.
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let refused = verify(&here.engine, &here.cluster, None, &progress, &cancel).await.unwrap_err();
    assert!(matches!(&refused, JobError::Repository(Error::Sealed { .. })), "{refused}");
    let verified = verify(&opened.engine, &opened.cluster, None, &progress, &cancel).await?;
    assert_eq!(verified.findings.iter().map(|finding| &finding.what).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(verified.proof.passed && verified.slices > 0);
    let data = files(&folder)?.into_iter().find(|path| path.display().to_string().ends_with(".bson.zst.age"));
    let data = data.context("an object with documents")?;
    let mut bytes = std::fs::read(&data)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes)?;
    let verified = verify(&opened.engine, &opened.cluster, None, &progress, &cancel).await?;
    let named: Vec<_> = verified.damage().map(|finding| finding.key.as_str()).collect();
    assert!(named.len() == 1 && data.ends_with(named[0]), "{named:?}");
    assert_eq!(find(&folder, &WORDS)?, Vec::<String>::new());
    // Such a search finds what is there: the same in a repository that is not sealed.
    let plain = Store::new().await?;
    plain.protect(&set.uri(), None).await?.backup().await?;
    let root = PathBuf::from(plain.repository.url().strip_prefix("file://").context("a folder")?);
    assert!(find(&root, &WORDS)?.len() >= WORDS.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_a_private_key_merges_what_it_captured() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    let first = Identity::generate();
    let (store, _folder) = Store::sealed(&first.recipients()).await?;
    let here = store.protect(&set.uri(), None).await?;
    let notes = client.database("app").collection("notes");
    notes.insert_one(doc! {"_id": -1}).await?;
    here.backup().await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.oplogSpanMin", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    here.based().await?;
    // Small slices come and come, until a minute is over and they became one.
    let begun = std::time::Instant::now();
    let mut number = 0;
    let merged = loop {
        anyhow::ensure!(begun.elapsed() < std::time::Duration::from_secs(150), "nothing was merged");
        notes.insert_one(doc! {"_id": number}).await?;
        number += 1;
        let slices = here.cluster.slices().await?;
        let merged = slices.into_iter().find(|slice| {
            let name = &slice.name;
            name.end.time.duration_since(name.start.time).as_secs() > 4 && !here.cluster.can_read(slice)
        });
        match merged {
            Some(merged) => break merged,
            None => tokio::time::sleep(std::time::Duration::from_millis(300)).await,
        }
    };
    // New recipients are followed without a restart.
    let second = Identity::generate();
    here.repository.change_recipients(&second.recipients(), &first.recipients()).await?;
    notes.insert_one(doc! {"_id": "last"}).await?;
    let wanted = ClusterState::read(&client).await?;
    let moment = this_moment(&client).await?;
    here.captured(&moment).await?;
    agent.stop().await?;
    assert!(here.with_identity(first.clone()).await?.cluster.slice_reader(&merged).await.is_ok());

    // The base is sealed to one, the end of the log to the other: both are needed, and one is refused early.
    let one = here.with_identity(first.clone()).await?;
    let refused = one.restore_into(&one, moment.clone(), Selection::default()).await.unwrap_err();
    assert!(matches!(refused.downcast::<JobError>()?, JobError::Repository(Error::Sealed { .. })));
    same(&client, &wanted).await?;
    notes.delete_many(doc! {}).await?;
    let both = here.with_identity(first.and(second)).await?;
    both.restore_into(&both, moment, Selection::default()).await?;
    same(&client, &wanted).await?;
    Ok(())
}
