//! The disk of the repository is full: what fails says so, nothing that is half written is taken for whole, deleting
//! makes room, and the capture goes on by itself.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bson::{Binary, Bson, Document, doc, spec::BinarySubtype};
use hindsight_catalog::Wish;
use hindsight_engine::{Progress, Selection};
use hindsight_format::{FORMAT_VERSION, JournalBatch};
use hindsight_jobs::{
    BackupRequest, Captured, JobError, backup, history, overview, propose_removal, register, remove, verify,
};
use hindsight_mongodb::MongoEngine;
use hindsight_repository::{Repository, RepositorySpec};
use hindsight_testkit::{ClusterState, FaultyStore, ReplicaSet, SmallDisk};
use jiff::Timestamp;
use rand::RngExt;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::harm::files;
use crate::support::{Protected, logging, same, this_moment, until};

const MIB: u64 = 24;

/// A disk that is full indeed, or a store that says so.
enum Disk {
    Small(SmallDisk),
    Faulty(FaultyStore, TempDir),
}

impl Disk {
    async fn repository(&self) -> Result<Repository> {
        match self {
            Self::Small(disk) => {
                let spec = RepositorySpec::new(disk.path().join("repository").display().to_string());
                Ok(Repository::open_or_create(&spec).await?)
            }
            Self::Faulty(store, _) => {
                store.set_room(Some(MIB << 20));
                Ok(Repository::over(Arc::new(store.clone()), "faulty://").await?)
            }
        }
    }

    fn fill(&self) -> Result<()> {
        match self {
            Self::Small(disk) => disk.fill(),
            Self::Faulty(store, _) => {
                store.set_room(Some(0));
                Ok(())
            }
        }
    }

    fn make_room(&self) -> Result<()> {
        match self {
            Self::Small(disk) => disk.make_room(),
            Self::Faulty(store, _) => {
                store.set_room(Some(1 << 20));
                Ok(())
            }
        }
    }

    fn path(&self) -> &std::path::Path {
        match self {
            Self::Small(disk) => disk.path(),
            Self::Faulty(_, folder) => folder.path(),
        }
    }
}

async fn backup_of(here: &Protected) -> Result<String, JobError> {
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let taken = backup(&*here.engine, &here.cluster, &BackupRequest::default(), &progress, &cancel).await?;
    Ok(taken.id)
}

async fn delete(here: &Protected, name: &str) -> Result<(), JobError> {
    let wish = Wish::Snapshot(name.to_owned());
    let plan = propose_removal(&here.cluster, &wish).await?;
    remove(&here.cluster, &wish, &plan, &Progress::default(), &CancellationToken::new()).await.map(drop)
}

async fn is_sound(here: &Protected) -> Result<()> {
    let verified = verify(&here.engine, &here.cluster, None, &Progress::default(), &CancellationToken::new()).await?;
    ensure!(verified.damage().next().is_none(), "damage: {:?}", verified.findings);
    Ok(())
}

async fn story(disk: &Disk) -> Result<()> {
    logging();
    let (set, other) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let repository = disk.repository().await?;
    let protect = async |uri: String, name: &str| {
        let engine: Arc<dyn hindsight_engine::Engine> = Arc::new(MongoEngine::new(uri));
        let cluster = register(&repository, Some(name), &engine.probe().await?).await?;
        anyhow::Ok(Protected { repository: repository.clone(), engine, cluster })
    };
    let (here, there) = (protect(set.uri(), "here").await?, protect(other.uri(), "there").await?);
    let (client, target) = (set.client().await?, other.client().await?);
    let noise = || {
        Bson::Binary(Binary {
            subtype: BinarySubtype::Generic,
            bytes: (0..128 << 10).map(|_| rand::rng().random()).collect(),
        })
    };
    let things = client.database("app").collection::<Document>("things");
    things.insert_many((0..72).map(|n| doc! {"_id": n, "noise": noise()})).await?;
    this_moment(&client).await?;

    // It fills up in the middle of a backup.
    let mut names = Vec::new();
    let failed = loop {
        match backup_of(&here).await {
            Ok(name) => names.push(name),
            Err(error) => break error,
        }
        ensure!(names.len() < 5, "{names:?} fit on {MIB} MiB");
    };
    ensure!(failed.is_full() && failed.to_string().contains("full"), "{failed}");
    ensure!(names.len() == 2, "{names:?} fit on {MIB} MiB");
    let listed: Vec<_> = here.cluster.snapshots().await?.into_iter().map(|manifest| manifest.id).collect();
    ensure!(listed == names, "{listed:?}");
    ensure!(here.cluster.unfinished_snapshots().await?.is_empty(), "something is left of it");
    until("the end of temporary files", async || {
        Ok(!files(disk.path())?.iter().any(|file| file.to_string_lossy().contains('#')))
    })
    .await?;
    is_sound(&here).await?;

    // In the middle of the capture.
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.short_lived_agent();
    let small = client.database("app").collection::<Document>("small");
    small.insert_one(doc! {"_id": 0}).await?;
    let before = this_moment(&client).await?;
    here.captured(&before).await?;
    disk.fill()?;
    small.insert_many((1..50).map(|n| doc! {"_id": n, "text": "x".repeat(500)})).await?;
    let during = (this_moment(&client).await?, ClusterState::read(&client).await?);
    until("the loss of the right to capture", async || {
        Ok(matches!(overview(&here.cluster).await?.capture, Captured::Idle(_)))
    })
    .await?;
    small.insert_one(doc! {"_id": 50}).await?;
    let late = this_moment(&client).await?;

    // A restore keeps its books in the repository, and touches nothing when it cannot.
    let untouched = ClusterState::read(&target).await?;
    let failed = here.restore_into(&there, before.clone(), Selection::default()).await.err().context("restored")?;
    ensure!(failed.downcast_ref::<JobError>().is_some_and(JobError::is_full), "{failed:#}");
    same(&target, &untouched).await?;
    let failed = backup_of(&here).await.err().context("stored")?;
    ensure!(failed.is_full(), "{failed}");

    // Deleting takes some bytes too: the logs of jobs make room for them.
    let failed = delete(&here, &names[0]).await.err().context("deleted")?;
    ensure!(matches!(failed, JobError::NoRoomToDelete(_)), "{failed}");
    ensure!(failed.hint().is_some_and(|hint| hint.contains("make that much room")), "{:?}", failed.hint());
    disk.make_room()?;
    for number in 0..40 {
        let batch = JournalBatch { format: FORMAT_VERSION, host: "x".to_owned(), pid: 1, lines: Vec::new() };
        here.cluster.put_journal(Timestamp::now(), number, &batch).await?;
    }
    here.captured(&late).await?;
    disk.fill()?;
    small.insert_one(doc! {"_id": 51}).await?;
    let last = (this_moment(&client).await?, ClusterState::read(&client).await?);
    until("the loss of the right to capture", async || {
        Ok(matches!(overview(&here.cluster).await?.capture, Captured::Idle(_)))
    })
    .await?;
    delete(&here, &names[0]).await?;
    ensure!(here.cluster.journal_keys(None).await?.len() < 40, "the logs of jobs made room");

    // And the agent goes on by itself.
    here.captured(&last.0).await?;
    agent.stop().await?;
    let gaps = overview(&here.cluster).await?.timeline.gaps;
    ensure!(gaps.is_empty(), "gaps: {gaps:?}");
    ensure!(history(&here.cluster).await?.snapshots.len() == 1, "one was deleted, and none was taken");
    is_sound(&here).await?;
    for (moment, state) in [during, last] {
        here.restore_into(&there, moment, Selection::default()).await?;
        same(&target, &state).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_room() -> Result<()> {
    let folder = tempfile::tempdir()?;
    story(&Disk::Faulty(FaultyStore::new(folder.path())?, folder)).await
}

/// Where the test may mount one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_room() -> Result<()> {
    match SmallDisk::mount(MIB)? {
        Some(disk) => story(&Disk::Small(disk)).await,
        None => {
            eprintln!("no disk can be mounted here: see a_store_without_room");
            Ok(())
        }
    }
}
