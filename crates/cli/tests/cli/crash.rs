//! Bad weather: programs and servers are killed or frozen at random moments, over and over, while a hostile
//! workload goes on. Afterwards everything that is listed can be restored exactly, and nothing is in the way.
//!
//! Short by default. The long form: `make crash`, or `CRASH_SEEDS=1,2 CRASH_RUNS=100 cargo test --release -p hindsight --test cli crash`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::{Cli, Started, seeds, setting};
use anyhow::{Context, Result, ensure};
use hindsight_testkit::workload::{Workload, WorkloadOptions};
use hindsight_testkit::{ClusterState, ReplicaSet, last_optime};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn whatever_is_killed_nothing_is_lost() -> Result<()> {
    for seed in seeds("CRASH_SEEDS")? {
        let begun = Instant::now();
        let mut scene = Scene::new(seed).await?;
        let done = scene.play(setting("CRASH_RUNS", 8)).await;
        if done.is_err() {
            eprintln!("{}", scene.last_words());
            eprintln!("the repository is kept in {}", scene.cli.keep().display());
        }
        done.with_context(|| format!("seed {seed}"))?;
        println!(
            "seed {seed}: {:?}, {} exact restores, {:.0} s",
            scene.played,
            scene.proven,
            begun.elapsed().as_secs_f32()
        );
    }
    Ok(())
}

/// What happens to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// The agent that captures, or the one that stands by.
    KillAgent,
    /// The one that captures stands still for longer than its lease lasts, and wakes up again.
    FreezeAgent,
    KillBackup,
    KillRestore,
    KillCleanup,
    KillSecondary,
    KillPrimary,
}

/// How often each happens.
const BLOWS: [(Blow, u32); 7] = [
    (Blow::KillAgent, 30),
    (Blow::FreezeAgent, 2),
    (Blow::KillBackup, 20),
    (Blow::KillRestore, 20),
    (Blow::KillCleanup, 10),
    (Blow::KillSecondary, 8),
    (Blow::KillPrimary, 8),
];

/// A moment that must come back.
struct Moment {
    position: String,
    /// As the primary has it.
    state: ClusterState,
    /// As the others have it, with their addresses.
    others: Vec<(String, ClusterState)>,
}

impl Moment {
    /// How `found` differs from what it was. Where the members themselves differ after what was done to them, it must be as
    /// one of them had it; what no two of them have alike, nobody can say what it was.
    fn diff(&self, found: &ClusterState) -> Vec<String> {
        let told = |database: &str, name: &str| {
            let states = [&self.state].into_iter().chain(self.others.iter().map(|(_, state)| state));
            let all: Vec<_> = states.map(|state| state.databases.get(database).and_then(|all| all.get(name))).collect();
            let alike = all.len() < 3
                || all.iter().enumerate().any(|(at, one)| all.iter().skip(at + 1).any(|other| other == one));
            if !alike {
                println!("{}: no two members have the same {database}.{name}", self.position);
            }
            alike
        };
        let mut expected = self.state.clone().retain(told);
        let found = &found.clone().retain(told);
        for (address, state) in &self.others {
            for (database, collections) in &state.databases {
                let restored = |name: &str| found.databases.get(database).and_then(|restored| restored.get(name));
                for (name, collection) in collections.iter().filter(|(name, other)| restored(name) == Some(other)) {
                    let at_primary =
                        expected.databases.get_mut(database).and_then(|at_primary| at_primary.get_mut(name));
                    if let Some(at_primary) = at_primary.filter(|at_primary| *at_primary != collection) {
                        println!("{}: {database}.{name} is as {address} had it, not as the primary", self.position);
                        at_primary.clone_from(collection);
                    }
                }
            }
        }
        let mut lines = expected.diff(found);
        if !lines.is_empty() {
            for (address, state) in &self.others {
                let others = self.state.diff(state).into_iter();
                lines.extend(others.map(|line| format!("at that time, {address} differed from the primary: {line}")));
            }
        }
        lines
    }
}

/// Servers, agents, and what was seen.
struct Scene {
    random: StdRng,
    set: ReplicaSet,
    target: ReplicaSet,
    cli: Cli,
    agents: Vec<Started>,
    workload: Workload,
    moments: Vec<Moment>,
    played: BTreeMap<Blow, u64>,
    proven: u64,
}

impl Scene {
    async fn new(seed: u64) -> Result<Self> {
        let (set, target) = tokio::try_join!(ReplicaSet::builder().members(3).start(), ReplicaSet::single())?;
        let client = set.client().await?;
        let options = WorkloadOptions {
            failovers: true,
            huge_documents: false,
            big_transactions: false,
            max_bytes: 8 << 20,
            rate: Some(300),
            ..WorkloadOptions::default()
        };
        let workload = Workload::start(client, seed, options).await?;
        let cli = Cli::new(&set.uri());
        for setting in
            ["pitr.enabled=true", "pitr.uploadIntervalSec=1", "pitr.oplogSpanMin=1", "backup.checkpointMib=1"]
        {
            cli.ok(&format!("--cluster source config --set {setting}"));
        }
        let mut scene = Self {
            random: StdRng::seed_from_u64(seed),
            agents: Vec::new(),
            moments: Vec::new(),
            played: BTreeMap::new(),
            proven: 0,
            set,
            target,
            cli,
            workload,
        };
        for _ in 0..2 {
            scene.start_agent();
        }
        Ok(scene)
    }

    fn start_agent(&mut self) {
        self.agents.push(self.cli.start_logged("agent", &self.cli.folder().join("agents.log")));
    }

    /// The end of what the agents said.
    fn last_words(&self) -> String {
        let said = std::fs::read_to_string(self.cli.folder().join("agents.log")).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    async fn play(&mut self, runs: u64) -> Result<()> {
        self.until("a first base", 60, |scene| Ok(scene.ranges().then_some(()))).await?;
        // Every seed begins with one of each, as far as its runs go.
        let mut first: Vec<_> = BLOWS.iter().map(|(blow, _)| *blow).filter(|blow| *blow != Blow::FreezeAgent).collect();
        for run in 0..runs {
            let blow = match first.is_empty() {
                true => BLOWS.choose_weighted(&mut self.random, |(_, weight)| *weight)?.0,
                false => first.swap_remove(self.random.random_range(0..first.len())),
            };
            self.rest(1500).await;
            self.strike(blow).await.with_context(|| format!("run {run}: {blow:?}"))?;
            *self.played.entry(blow).or_default() += 1;
            self.record().await.with_context(|| format!("recording after run {run}: {blow:?}"))?;
            if run % 10 == 9 {
                self.prove().await.with_context(|| format!("after run {run}: {blow:?}"))?;
            }
        }
        self.prove().await
    }

    async fn rest(&mut self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..millis))).await;
    }

    async fn strike(&mut self, blow: Blow) -> Result<()> {
        match blow {
            Blow::KillAgent => {
                let victim = self.random.random_range(0..self.agents.len());
                drop(self.agents.swap_remove(victim));
                self.start_agent();
            }
            Blow::FreezeAgent => self.freeze().await?,
            Blow::KillBackup => {
                let backup = self.cli.start("backup");
                self.rest(1500).await;
                drop(backup);
                // Nothing of it is in the way of the next one, and it can be gone on with if it came far enough.
                match self.random.random_range(0..10) {
                    0..3 => self.alone("backup", &[0]).await?,
                    3..8 => self.alone("backup --resume", &[0, 3]).await?,
                    _ => {}
                }
            }
            Blow::KillRestore => {
                if let Some(index) = self.captured()? {
                    let line = self.restore_line(index);
                    let restore = self.cli.start(&line);
                    self.rest(3000).await;
                    drop(restore);
                    self.restore(index).await?;
                }
            }
            Blow::KillCleanup => {
                let cleanup = self.cli.start("cleanup --older-than 1970-01-01 -y");
                self.rest(300).await;
                drop(cleanup);
                self.alone("cleanup --older-than 1970-01-01 -y", &[0]).await?;
            }
            Blow::KillSecondary | Blow::KillPrimary => {
                let primary = self.set.wait_primary().await?;
                let victim = if blow == Blow::KillPrimary { primary } else { (primary + 1) % 3 };
                let member = self.set.member(victim);
                member.kill9();
                self.rest(3000).await;
                self.set.member(victim).restart().await?;
                self.set.wait_members().await?;
            }
        }
        Ok(())
    }

    /// The one that captures stands still; the other takes over within 30 s of that; the first wakes up.
    async fn freeze(&mut self) -> Result<()> {
        let holder = |scene: &Self| {
            let capture = scene.cli.json("status")["pitr"]["capture"].clone();
            Ok(capture["process"].as_u64().filter(|_| capture["running"] == true))
        };
        let captures = self.until("an agent that captures", 60, holder).await?;
        let Some(index) = self.agents.iter().position(|agent| u64::from(agent.id()) == captures) else {
            return Ok(());
        };
        self.agents[index].signal("STOP");
        let taken_over =
            self.until("the other agent to take over", 30, |scene| {
                Ok(holder(scene)?.filter(|process| *process != captures))
            })
            .await;
        self.agents[index].signal("CONT");
        taken_over.map(drop)
    }

    /// Runs a command that has to be alone, once whoever runs has ended: an agent may take a snapshot of its own. It must end
    /// with one of these codes.
    async fn alone(&mut self, line: &str, ends: &[i32]) -> Result<()> {
        let line = line.to_owned();
        self.until(&line.clone(), 60, move |scene| {
            let ran = scene.cli.run(&line);
            ensure!(ran.code == 4 || ends.contains(&ran.code), "{ran}");
            Ok((ran.code != 4).then_some(()))
        })
        .await
    }

    fn ranges(&self) -> bool {
        !self.cli.json("list")["pitr"]["ranges"].as_array().unwrap().is_empty()
    }

    async fn until<T>(&mut self, what: &str, secs: u64, mut look: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = tokio::task::block_in_place(|| look(self))? {
                return Ok(found);
            }
            ensure!(begun.elapsed() < Duration::from_secs(secs), "{what} did not come within {secs} s");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Notes the state of this moment.
    async fn record(&mut self) -> Result<()> {
        let paused = self.workload.pause_settled().await?;
        let (state, optime) = ClusterState::at_rest(&self.set.client().await?).await?;
        let (secs, inc, _) = optime;
        let primary = self.set.wait_primary().await?;
        let mut others = Vec::new();
        for member in (0..3).filter(|member| *member != primary) {
            let client = self.set.direct_client(member).await?;
            let begun = Instant::now();
            while last_optime(&client).await.ok().is_none_or(|at| at < optime) {
                ensure!(begun.elapsed() < Duration::from_secs(60), "member {member} lags");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            others.push((self.set.member(member).address(), ClusterState::read(&client).await?));
        }
        paused.resume();
        self.moments.push(Moment { position: format!("{secs},{inc}"), state, others });
        Ok(())
    }

    fn restore_line(&self, index: usize) -> String {
        let (target, position) = (self.target.uri(), &self.moments[index].position);
        format!("restore --cluster source --uri {target} --time {position} -y")
    }

    /// A moment that can be restored already; an old one as well as a new one.
    fn captured(&mut self) -> Result<Option<usize>> {
        if self.moments.is_empty() {
            return Ok(None);
        }
        let index = self.random.random_range(0..self.moments.len());
        let ran = self.cli.run(&format!("{} --dry-run", self.restore_line(index).replace(" -y", "")));
        Ok((ran.code == 0).then_some(index))
    }

    async fn restore(&mut self, index: usize) -> Result<()> {
        let line = self.restore_line(index);
        self.alone(&line, &[0]).await?;
        let found = ClusterState::read(&self.target.client().await?).await?;
        let differences = self.moments[index].diff(&found);
        ensure!(
            differences.is_empty(),
            "{}: not what it was:\n{}",
            self.moments[index].position,
            differences.join("\n")
        );
        self.proven += 1;
        Ok(())
    }

    /// The last moment is captured in the end, and it and another one are restored exactly. What is listed as one
    /// range is one: nothing acknowledged is lost, nothing rolled back is kept.
    async fn prove(&mut self) -> Result<()> {
        let last = self.moments.len() - 1;
        let line = format!("{} --dry-run", self.restore_line(last).replace(" -y", ""));
        self.until("the capture of the last moment", 90, |scene| {
            let ran = scene.cli.run(&line);
            ensure!([0, 3].contains(&ran.code), "{ran}");
            Ok((ran.code == 0).then_some(()))
        })
        .await?;
        let gaps = self.cli.json("list")["pitr"]["gaps"].clone();
        ensure!(gaps.as_array().is_some_and(Vec::is_empty), "there are gaps: {gaps}");
        self.alone("verify --all", &[0]).await?;
        self.restore(last).await?;
        let other = self.random.random_range(0..=last);
        self.restore(other).await
    }
}
