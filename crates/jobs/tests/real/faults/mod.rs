//! Every call of the repository goes wrong, one at a time: refused, delayed, answered never or twice, cut short; in
//! each kind of job. Whatever comes of the job itself, what is listed afterwards is whole, and the next job works.
//!
//! A sample by default. All of them: `make faults`, or `FAULTS_STEP=1 cargo test -p hindsight-jobs --test real faults`.

mod stored;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Protected, logging, same, this_moment};
use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use hindsight_catalog::Target;
use hindsight_engine::{Engine, Selection};
use hindsight_jobs::register;
use hindsight_mongodb::MongoEngine;
use hindsight_repository::Repository;
use hindsight_testkit::{CallFault, ClusterState, FaultyStore, ReplicaSet};
use mongodb::Client;

/// A job that hangs longer than this has failed, whatever the store did.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to go wrong with which of so many calls: a sample, each `step`-th, or what `FAULTS_STEP` says.
fn faults(calls: u64, step: u64) -> impl Iterator<Item = (u64, CallFault)> {
    let step: u64 = std::env::var("FAULTS_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(step);
    CallFault::ALL.into_iter().enumerate().flat_map(move |(index, fault)| {
        (index as u64 % step..calls).step_by(step as usize).map(move |call| (call, fault))
    })
}

/// Runs `job` with a fault. Gives what came of it, none when it hangs, and the fault in words.
async fn strike<T>(
    store: &FaultyStore,
    (call, fault): (u64, CallFault),
    mut job: impl AsyncFnMut() -> Result<T>,
) -> (Option<Result<T>>, String) {
    store.arm(Some((call, fault)));
    let done = tokio::time::timeout(PATIENCE, job()).await.ok();
    let struck = store.struck().unwrap_or_else(|| "not reached".to_owned());
    store.arm(None);
    (done, format!("call {call}, {struck}"))
}

/// A source and a target with a repository between them that can be made to fail.
struct Scene {
    store: FaultyStore,
    here: Protected,
    there: Protected,
    source: Client,
    target: Client,
    _servers: (ReplicaSet, ReplicaSet),
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Result<Self> {
        logging();
        let servers = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
        let folder = tempfile::tempdir()?;
        let store = FaultyStore::new(folder.path())?;
        let repository = Repository::over(Arc::new(store.clone()), "faulty://").await?;
        let protect = async |set: &ReplicaSet, name: &str| {
            let engine: Arc<dyn Engine> = Arc::new(MongoEngine::new(set.uri()));
            let cluster = register(&repository, Some(name), &engine.probe().await?).await?;
            anyhow::Ok(Protected { repository: repository.clone(), engine, cluster })
        };
        let (here, there) = (protect(&servers.0, "source").await?, protect(&servers.1, "target").await?);
        let (source, target) = (servers.0.client().await?, servers.1.client().await?);
        let things = source.database("app").collection::<Document>("things");
        things.insert_many((0..500).map(|n| doc! {"_id": n, "text": "something ".repeat(20)})).await?;
        let index = doc! {"createIndexes": "things", "indexes": [{"key": {"text": 1}, "name": "by_text"}]};
        source.database("app").run_command(index).await?;
        source.database("app").collection("more").insert_one(doc! {"_id": 1}).await?;
        Ok(Self { store, here, there, source, target, _servers: servers, _folder: folder })
    }

    /// Runs `job` once without a fault to count its calls, then with faults. `judge` is called after each run with
    /// what came of it, when all goes well again.
    async fn one_at_a_time<T>(
        &self,
        name: &str,
        mut job: impl AsyncFnMut() -> Result<T>,
        mut judge: impl AsyncFnMut(Result<T>) -> Result<()>,
    ) -> Result<()> {
        self.store.arm(None);
        let done = job().await;
        let calls = self.store.calls();
        ensure!(done.is_ok(), "{name} fails without a fault: {:#}", done.err().context("no error")?);
        judge(done).await?;
        let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
        for fault in faults(calls, 11) {
            let (done, about) = strike(&self.store, fault, &mut job).await;
            let about = format!("{name}, {about}");
            let done = done.with_context(|| format!("{about}: hangs"))?;
            *outcomes.entry(if done.is_ok() { "done" } else { "failed" }).or_default() += 1;
            judge(done).await.with_context(|| about)?;
        }
        println!("{name}: {calls} calls, {outcomes:?}");
        Ok(())
    }

    /// What the repository holds is whole, and the last state of the source comes back exactly.
    async fn restores(&self, target: Target) -> Result<()> {
        let expected = ClusterState::read(&self.source).await?;
        self.here.restore_into(&self.there, target, Selection::default()).await?;
        same(&self.target, &expected).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup() -> Result<()> {
    let scene = Scene::new().await?;
    scene
        .one_at_a_time(
            "backup",
            async || scene.here.backup().await,
            async |done| {
                let listed = scene.here.cluster.snapshots().await?;
                if let Ok(manifest) = &done {
                    ensure!(listed.contains(manifest), "done, and not listed");
                }
                // The newest that is listed: one that failed only in being told is whole all the same.
                let newest = listed.last().context("no snapshot")?;
                scene.restores(Target::Snapshot(newest.id.clone())).await?;
                // Nothing is in the way of the next one.
                scene.here.backup().await.map(drop).context("the next backup")
            },
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture() -> Result<()> {
    let scene = Scene::new().await?;
    scene.here.set("pitr.enabled", "true").await?;
    scene.here.set("pitr.uploadIntervalSec", "1").await?;
    scene.here.backup().await?;
    let number = std::cell::Cell::new(0);
    let writes = scene.source.database("app").collection("writes");
    scene
        .one_at_a_time(
            "capture",
            async || {
                let agent = scene.here.agent();
                number.set(number.get() + 1);
                writes.insert_one(doc! {"_id": number.get()}).await?;
                tokio::time::sleep(Duration::from_millis(1500)).await;
                writes.insert_one(doc! {"_id": -number.get()}).await?;
                agent.stop().await
            },
            async |_| {
                // What the last one had not stored is still in the server's log.
                let moment = this_moment(&scene.source).await?;
                let agent = scene.here.agent();
                scene.here.captured(&moment).await?;
                agent.stop().await?;
                let gaps = hindsight_jobs::overview(&scene.here.cluster).await?.timeline.gaps;
                ensure!(gaps.is_empty(), "gaps: {gaps:?}");
                scene.restores(moment).await
            },
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore() -> Result<()> {
    let scene = Scene::new().await?;
    scene.here.set("pitr.enabled", "true").await?;
    scene.here.set("pitr.uploadIntervalSec", "1").await?;
    let agent = scene.here.agent();
    scene.here.based().await?;
    scene.source.database("app").collection("late").insert_one(doc! {"_id": 1}).await?;
    let moment = this_moment(&scene.source).await?;
    scene.here.captured(&moment).await?;
    agent.stop().await?;
    let expected = ClusterState::read(&scene.source).await?;
    let junk = scene.target.database("app").collection("junk");
    scene
        .one_at_a_time(
            "restore",
            async || {
                scene.there.cluster.restores().await?;
                scene.here.restore_into(&scene.there, moment.clone(), Selection::default()).await
            },
            async |done| {
                match done {
                    Ok(_) => same(&scene.target, &expected).await.context("done")?,
                    // What failed before it touched anything has left everything as it was; one that failed later is
                    // done again.
                    Err(_) => scene.restores(moment.clone()).await.context("again")?,
                }
                junk.insert_one(doc! {"_id": 1}).await.map(drop).map_err(Into::into)
            },
        )
        .await
}
