//! The repository is away for a while: refuses connections, or hangs. The agent makes up for it without a gap; what
//! cannot wait ends in time with a clear error.
//!
//! Short by default. For longer: `AWAY_SECS=180 cargo test -p hindsight --test cli away`.

use std::time::{Duration, Instant};

use crate::support::{Cli, Ran, Started};
use anyhow::{Context, Result, ensure};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use hindsight_testkit::workload::{Workload, WorkloadOptions};
use hindsight_testkit::{ClusterState, Fault, ReplicaSet, S3Op, S3Server};
use rand::RngExt;

/// More than two slices and what the server sends at once would take; debug builds take more.
const MEMORY: u64 = 256 << 20;

fn away() -> Duration {
    Duration::from_secs(std::env::var("AWAY_SECS").ok().and_then(|secs| secs.parse().ok()).unwrap_or(10))
}

struct Scene {
    server: S3Server,
    set: ReplicaSet,
    target: ReplicaSet,
    cli: Cli,
    agent: Started,
    workload: Workload,
    moments: Vec<(String, ClusterState)>,
}

impl Scene {
    async fn new(seed: u64) -> Result<Self> {
        let server = S3Server::start("bkt")?;
        let (set, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
        let options = WorkloadOptions {
            huge_documents: false,
            big_transactions: false,
            max_bytes: 8 << 20,
            rate: Some(60),
            ..WorkloadOptions::default()
        };
        let workload = Workload::start(set.client().await?, seed, options).await?;
        let cli = Cli::new(&set.uri()).with(server.env()).with([("HINDSIGHT_REPOSITORY", "s3://bkt".to_owned())]);
        cli.ok("--cluster source config --set pitr.enabled=true --set pitr.uploadIntervalSec=1");
        let agent = cli.start_logged("agent", &cli.folder().join("agent.log"));
        let mut scene = Self { server, set, target, cli, agent, workload, moments: Vec::new() };
        scene.until("a first base", 60, |scene| !scene.cli.json("list")["pitr"]["ranges"][0].is_null()).await?;
        scene.record().await?;
        Ok(scene)
    }

    async fn until(&mut self, what: &str, secs: u64, mut holds: impl FnMut(&mut Self) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !tokio::task::block_in_place(|| holds(self)) {
            ensure!(begun.elapsed() < Duration::from_secs(secs), "no {what} within {secs} s:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.cli.folder().join("agent.log")).unwrap_or_default()
    }

    /// Notes the state of this moment.
    async fn record(&mut self) -> Result<()> {
        let paused = self.workload.pause_settled().await?;
        let state = ClusterState::read(&self.set.client().await?).await?;
        let (secs, inc, _) = paused.optime;
        paused.resume();
        self.moments.push((format!("{secs},{inc}"), state));
        Ok(())
    }

    /// More than the agent could keep in memory.
    async fn flood(&self) -> Result<()> {
        let flood = self.set.client().await?.database("flood").collection::<Document>("flood");
        let noise = || (0..1 << 20).map(|_| rand::rng().random()).collect();
        for number in 0..64 {
            let bytes = if number % 8 == 0 { noise() } else { vec![number as u8; 1 << 20] };
            flood
                .insert_one(doc! {"n": number, "b": Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes })})
                .await?;
        }
        flood.drop().await?;
        Ok(())
    }

    /// Everything is made up for: no gap, nothing damaged, and each moment comes back.
    async fn turns_out_whole(mut self) -> Result<()> {
        self.record().await?;
        let restore = |scene: &Self, position: &str| {
            format!("restore --cluster source --uri {} --time {position}", scene.target.uri())
        };
        let last = self.moments.last().context("no moment")?.0.clone();
        self.until("capture of the last moment", 120, |scene| {
            scene.cli.run(&format!("{} --dry-run", restore(scene, &last))).code == 0
        })
        .await?;
        let gaps = self.cli.json("list --cluster source")["pitr"]["gaps"].clone();
        ensure!(gaps.as_array().is_some_and(Vec::is_empty), "there are gaps: {gaps}");
        self.cli.run("verify --all").ends(0, "Nothing is damaged.");
        for (position, state) in &self.moments {
            self.cli.ok(&format!("{} -y", restore(&self, position)));
            let differences = state.diff(&ClusterState::read(&self.target.client().await?).await?);
            ensure!(differences.is_empty(), "{position}: not what it was:\n{}", differences.join("\n"));
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse::<u64>()? << 10;
        println!("peak of the agent: {} MiB", peak >> 20);
        ensure!(peak < MEMORY, "the agent took {} MiB", peak >> 20);
        self.agent.end("TERM").ends(0, "");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_refuses_connections() -> Result<()> {
    let mut scene = Scene::new(1).await?;
    scene.server.stop();
    let begun = Instant::now();
    scene.flood().await?;
    scene.record().await?;
    tokio::time::sleep(away().saturating_sub(begun.elapsed())).await;
    scene.record().await?;
    scene.server.go_on()?;
    scene.turns_out_whole().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_hangs_under_a_backup_and_a_restore() -> Result<()> {
    let mut scene = Scene::new(2).await?;
    let (name, uri) = (scene.cli.json("list --cluster source")["snapshots"][0]["name"].clone(), scene.target.uri());
    let name = name.as_str().context("no name")?.to_owned();
    // Known to the repository, the target has a right of its own to be alone.
    scene.cli.ok(&format!("backup --cluster target --uri {uri}"));
    // Both are in the middle of their work then.
    scene.server.faults().plan(S3Op::Put, "/data/", 1, Fault::Delay(Duration::from_secs(600)));
    let backup = scene.cli.start("backup --cluster source --log-level info");
    scene
        .until("backup", 30, |scene| !scene.cli.json("status -s running --cluster source")["running"].is_null())
        .await?;
    scene.server.faults().plan(S3Op::Get, "/data/", 100, Fault::Delay(Duration::from_secs(3)));
    let restore = scene.cli.start(&format!("restore {name} --cluster source --uri {uri} -y --log-level info"));
    let runs = |scene: &mut Scene, cluster| {
        scene.cli.ok(&format!("list --restore --cluster {cluster}")).contains("in_progress")
    };
    scene.until("restore", 60, |scene| runs(scene, "target") && runs(scene, "source")).await?;
    scene.server.faults().hang(true);
    let begun = Instant::now();
    scene.record().await?;
    for started in [backup, restore] {
        let ran: Ran = tokio::task::spawn_blocking(move || started.ended()).await?;
        println!("after {} s: {ran}", begun.elapsed().as_secs());
        let ran = ran.ends(7, "no answer within");
        ensure!(ran.err.contains("s3://bkt"), "{ran}");
        ensure!(begun.elapsed() < Duration::from_secs(60), "it took {} s", begun.elapsed().as_secs());
    }
    tokio::time::sleep(away().saturating_sub(begun.elapsed())).await;
    scene.until("warning", 60, |scene| scene.log().contains("the capture stands still since")).await?;
    scene.record().await?;
    scene.server.faults().clear();
    scene.until("end of it", 60, |scene| scene.log().contains("the capture goes on, after a standstill of")).await?;
    let log = scene.log();
    let told = log.lines().find(|line| line.contains("stands still since")).context("no line")?;
    println!("{told}");
    ensure!(told.contains("captured until") && told.contains(" s behind") && told.contains("s longer"), "{told}");
    scene.turns_out_whole().await
}
