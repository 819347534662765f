//! The jobs that only change what is stored: merging, cleaning up, deleting. Each run has a copy of one past of its own.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use hindsight_catalog::{Refusal, Target, Wish, plan};
use hindsight_engine::{Engine, Progress, Selection};
use hindsight_format::{Operation, OperationKind};
use hindsight_jobs::{CAPTURE_LEASE, JobError, history, merge, propose_removal, remove, verify};
use hindsight_mongodb::MongoEngine;
use hindsight_repository::{Acquired, ClusterRepository, DEFAULT_TTL, Repository};
use hindsight_testkit::{ClusterState, FaultyStore, ReplicaSet};
use jiff::{SignedDuration, Timestamp};
use mongodb::Client;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{faults, strike};
use crate::support::harm::files;
use crate::support::{Protected, Store, logging, same, this_moment};

/// A repository with two snapshots, small slices of log, and what an unfinished snapshot has left; and where
/// to restore it.
struct Past {
    folder: std::path::PathBuf,
    source: Arc<dyn Engine>,
    second: Timestamp,
    first: String,
    /// Restore points with what they give.
    moments: Vec<(Target, ClusterState)>,
    target: Client,
    into: Arc<dyn Engine>,
    /// What was proven to restore exactly.
    proven: HashSet<blake3::Hash>,
    _servers: (ReplicaSet, ReplicaSet),
    _store: Store,
}

/// A copy of it.
struct Copied {
    store: FaultyStore,
    here: Protected,
    folder: TempDir,
}

impl Past {
    async fn new() -> Result<Self> {
        logging();
        let servers = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
        let (store, folder) = Store::in_folder().await?;
        let here = store.protect(&servers.0.uri(), Some("source")).await?;
        here.set("pitr.enabled", "true").await?;
        here.set("pitr.uploadIntervalSec", "1").await?;
        let client = servers.0.client().await?;
        let notes = client.database("app").collection::<Document>("notes");
        notes.insert_one(doc! {"_id": -1}).await?;
        let mut snapshots = vec![here.backup().await?];
        let mut moments = vec![(Target::Snapshot(snapshots[0].id.clone()), ClusterState::read(&client).await?)];
        let agent = here.unmerging_agent();
        for round in 0..4 {
            if round == 2 {
                // A second later, so that seconds tell the two apart.
                while Timestamp::now().duration_since(snapshots[0].restore_time()) < SignedDuration::from_secs(2) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                notes.insert_one(doc! {"_id": "between"}).await?;
                let taken = here.backup().await?;
                moments.push((Target::Snapshot(taken.id.clone()), ClusterState::read(&client).await?));
                snapshots.push(taken);
            }
            notes.insert_many((0..20).map(|n| doc! {"_id": round * 100 + n, "text": "x".repeat(500)})).await?;
            let moment = this_moment(&client).await?;
            moments.push((moment.clone(), ClusterState::read(&client).await?));
            here.captured(&moment).await?;
        }
        agent.stop().await?;
        let leftover = folder.join("clusters/source/snapshots/2001-01-01T00:00:00Z/data");
        std::fs::create_dir_all(&leftover)?;
        std::fs::write(leftover.join("000001.bson.zst"), "half of something")?;
        Ok(Self {
            folder,
            source: here.engine,
            second: snapshots[1].restore_time(),
            first: snapshots[0].id.clone(),
            moments,
            target: servers.1.client().await?,
            into: Arc::new(MongoEngine::new(servers.1.uri())),
            proven: HashSet::new(),
            _servers: servers,
            _store: store,
        })
    }

    async fn copy(&self) -> Result<Copied> {
        let folder = tempfile::tempdir()?;
        for file in files(&self.folder)? {
            let to = folder.path().join(file.strip_prefix(&self.folder)?);
            std::fs::create_dir_all(to.parent().context("no folder")?)?;
            std::fs::copy(file, to)?;
        }
        let store = FaultyStore::new(folder.path())?;
        let repository = Repository::over(Arc::new(store.clone()), "faulty://").await?;
        let cluster = repository.cluster("source")?;
        Ok(Copied { store, here: Protected { repository, engine: self.source.clone(), cluster }, folder })
    }

    /// Runs `job` with each fault on a copy of its own, and judges what is there afterwards: all is sound, what
    /// could be restored before still can but for what was to go, and comes back exactly; the same again ends as it
    /// would have without a fault.
    async fn one_at_a_time(&mut self, name: &str, job: impl AsyncFn(&ClusterRepository) -> Result<()>) -> Result<()> {
        let copy = self.copy().await?;
        let before = self.restorable(&copy).await?;
        copy.store.arm(None);
        job(&copy.here.cluster).await.with_context(|| format!("{name} without a fault"))?;
        let calls = copy.store.calls();
        let wanted = self.restorable(&copy).await?;
        let stored = stored(copy.folder.path())?;
        self.judge(&copy, &before, &wanted).await?;
        let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
        for fault in faults(calls, 37) {
            let copy = self.copy().await?;
            let (done, about) = strike(&copy.store, fault, async || job(&copy.here.cluster).await).await;
            let about = format!("{name}, {about}");
            let done = done.with_context(|| format!("{about}: hangs"))?;
            *outcomes.entry(if done.is_ok() { "done" } else { "failed" }).or_default() += 1;
            let judged = async {
                self.judge(&copy, &before, &wanted).await.context("afterwards")?;
                job(&copy.here.cluster).await.context("the same again")?;
                self.judge(&copy, &wanted, &wanted).await.context("after the same again")?;
                let now = self::stored(copy.folder.path())?;
                ensure!(now == stored, "it should end with {stored:?}, and ended with {now:?}");
                Ok(())
            };
            judged.await.with_context(|| format!("{about}; it was {done:?}"))?;
        }
        println!("{name}: {calls} calls, {outcomes:?}, {} states proven", self.proven.len());
        Ok(())
    }

    /// Which of the moments can be restored, by what is listed.
    async fn restorable(&self, copy: &Copied) -> Result<BTreeSet<usize>> {
        let history = history(&copy.here.cluster).await?;
        let can = |target| plan(&history, target, None, Timestamp::now()).is_ok();
        Ok((0..self.moments.len()).filter(|&index| can(&self.moments[index].0)).collect())
    }

    async fn judge(&mut self, copy: &Copied, before: &BTreeSet<usize>, least: &BTreeSet<usize>) -> Result<()> {
        let (here, cluster) = (&copy.here, &copy.here.cluster);
        let can = self.restorable(copy).await?;
        ensure!(can.is_superset(least) && can.is_subset(before), "{can:?}, not from {least:?} to {before:?}");
        let verified = verify(&here.engine, cluster, None, &Progress::default(), &CancellationToken::new()).await?;
        ensure!(verified.damage().next().is_none(), "damage: {:?}", verified.findings);
        // The same bytes restore the same.
        if self.proven.contains(&digest(copy.folder.path())?) {
            return Ok(());
        }
        for &index in &can {
            let (target, state) = &self.moments[index];
            here.restore_through(&*self.into, target.clone(), Selection::default()).await?;
            same(&self.target, state).await.with_context(|| format!("{target:?}"))?;
        }
        self.proven.insert(digest(copy.folder.path())?);
        Ok(())
    }
}

/// What can be restored from, without numbers of leases: keys of slices and snapshots.
fn stored(folder: &Path) -> Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for file in files(&folder.join("clusters/source"))? {
        let key = file.strip_prefix(folder)?.display().to_string();
        if key.contains("/log/") {
            keys.insert(key.rsplitn(4, '.').last().unwrap_or_default().to_owned());
        } else if key.contains("/snapshots/") {
            keys.insert(key);
        }
    }
    Ok(keys)
}

/// All of that with its bytes.
fn digest(folder: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut all = files(&folder.join("clusters/source"))?;
    all.sort();
    for file in all {
        let key = file.strip_prefix(folder)?.display().to_string();
        if ["/log/", "/snapshots/", "/epochs/", "/gaps/"].iter().any(|part| key.contains(part)) {
            hasher.update(key.as_bytes()).update(&std::fs::read(&file)?);
        }
    }
    Ok(hasher.finalize())
}

/// Merges everything, whenever it was captured.
async fn merge_all(cluster: &ClusterRepository) -> Result<()> {
    let operation = Operation { kind: OperationKind::Capture, id: "source".to_owned(), detail: String::new() };
    let lease = match cluster.acquire(CAPTURE_LEASE, operation, DEFAULT_TTL).await? {
        Acquired::Held(lease) => lease,
        Acquired::Busy(record) => anyhow::bail!("busy: {record:?}"),
    };
    let merged = async {
        let (year, later) = (365 * 24 * 60, Timestamp::MAX);
        anyhow::Ok(merge(cluster, &lease, cluster.slices().await?, year, 3, Some(later)).await?)
    };
    let merged = merged.await;
    lease.release().await?;
    ensure!(merged?.len() == 1, "not merged");
    Ok(())
}

async fn delete(cluster: &ClusterRepository, wish: &Wish) -> Result<()> {
    let plan = match propose_removal(cluster, wish).await {
        // It was done the first time.
        Err(JobError::Refused(Refusal::UnknownSnapshot { .. })) => return Ok(()),
        plan => plan?,
    };
    remove(cluster, wish, &plan, &Progress::default(), &CancellationToken::new()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merging_and_deleting() -> Result<()> {
    let mut past = Past::new().await?;
    let cleanup = Wish::Everything { before: past.second + SignedDuration::from_secs(1) };
    let wishes = [
        ("cleanup", cleanup.clone()),
        ("delete-backup", Wish::Snapshot(past.first.clone())),
        ("delete-pitr", Wish::Log { before: None }),
    ];
    for (name, wish) in wishes {
        past.one_at_a_time(name, async |cluster| delete(cluster, &wish).await).await?;
    }
    let copy = past.copy().await?;
    let slices = copy.here.cluster.slices().await?;
    ensure!(slices.len() > 3, "only {} slices", slices.len());
    past.one_at_a_time("merge", merge_all).await?;

    // What a merge that was cut off has left: the parts, and the whole.
    merge_all(&copy.here.cluster).await?;
    for file in files(&copy.folder.path().join("clusters/source/log"))? {
        std::fs::copy(&file, past.folder.join(file.strip_prefix(copy.folder.path())?))?;
    }
    past.one_at_a_time("merge of what is merged", merge_all).await?;
    past.one_at_a_time("cleanup of what is merged", async |cluster| delete(cluster, &cleanup).await).await
}
