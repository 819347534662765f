//! Torture: a hostile workload and `pgbench` go on while snapshots are taken and the log is captured, and while programs and
//! the server are killed, frozen and started again. At random quiet moments everything is summed up; afterwards each of them is
//! restored by its time and by its position, and compared.
//!
//! Short by default; what is replayed grows with each moment, so that twice as many take four times as long. The long form:
//! `make torture-postgres`, or `TORTURE_SEEDS=1,2,3 TORTURE_MOMENTS=40 cargo test --release -p hindsight --test cli postgres::torture`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hindsight_format::{Operation, OperationKind, StoredSlice};
use hindsight_jobs::CAPTURE_LEASE;
use hindsight_repository::{Acquired, DEFAULT_TTL, Repository, RepositorySpec, merge_slices};
use hindsight_testkit::{PgState, PgWorkload, PgWorkloadOptions, Postgres, PostgresOptions};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::sleep;

use crate::support::{Cli, Ran, Started, seeds, setting};

/// What the workload calls its tablespaces.
const SPACES: [&str; 2] = ["space_a", "space_b"];
/// Blows before each moment.
const BLOWS_EACH: usize = 3;
/// Moments that are restored at a time.
const PROVEN_AT_ONCE: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_moment_comes_back_whatever_happened() -> Result<()> {
    for seed in seeds("TORTURE_SEEDS")? {
        let begun = Instant::now();
        let mut scene = Scene::new(seed).await?;
        if let Err(error) = scene.play(setting("TORTURE_MOMENTS", 2)).await {
            eprintln!("{}", scene.last_words());
            return Err(error.context(format!("seed {seed}")));
        }
        let (played, merged, proven) = (scene.played.clone(), scene.merged, scene.proven);
        scene.end().await.with_context(|| format!("seed {seed}"))?;
        println!(
            "seed {seed}: {played:?}, {merged} merges, {proven} exact restores, {:.0} s",
            begun.elapsed().as_secs_f32()
        );
    }
    Ok(())
}

/// What happens to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillAgent,
    FreezeAgent,
    KillBackup,
    FreezeBackup,
    KillRestore,
    FreezeRestore,
    /// All processes at the same moment, in the midst of a long record.
    CrashServer,
    FreezeServer,
    RestartServer,
}

/// Those first that hurt most.
const BLOWS: [Blow; 9] = [
    Blow::KillAgent,
    Blow::CrashServer,
    Blow::KillBackup,
    Blow::FreezeAgent,
    Blow::KillRestore,
    Blow::FreezeServer,
    Blow::RestartServer,
    Blow::FreezeBackup,
    Blow::FreezeRestore,
];

/// What a server is told meanwhile.
const WHIMS: [&str; 7] = [
    "CHECKPOINT",
    "SELECT pg_switch_wal()",
    "ALTER SYSTEM SET full_page_writes = off",
    "ALTER SYSTEM SET full_page_writes = on",
    "ALTER SYSTEM SET wal_compression = on",
    "ALTER SYSTEM SET wal_compression = off",
    "SELECT pg_logical_emit_message(true, 'long', repeat('long', 1000000))",
];

/// A moment that must come back.
#[derive(Clone)]
struct Moment {
    time: String,
    lsn: String,
    state: PgState,
}

/// A server, the programs beside it, and what was seen.
struct Scene {
    random: StdRng,
    server: Arc<Postgres>,
    cli: Arc<Cli>,
    agent: Option<Started>,
    /// A backup that goes on beside all else.
    backup: Option<Started>,
    workload: Option<PgWorkload>,
    moments: Vec<Moment>,
    played: BTreeMap<Blow, u64>,
    merged: usize,
    proven: usize,
}

impl Scene {
    async fn new(seed: u64) -> Result<Self> {
        // Small buffers, so that records are on disk in parts; and who is silent is given up soon.
        let options = PostgresOptions::default().set("wal_buffers", "64kB").set("wal_sender_timeout", "4s");
        let server = Arc::new(Postgres::start(options).await?);
        // In its configuration, which comes back with it.
        for setting in ["max_prepared_transactions = 20", "max_wal_size = '100MB'"] {
            server.sql(&format!("ALTER SYSTEM SET {setting}")).await?;
        }
        server.restart().await?;
        let cli = Arc::new(Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin")?));
        cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1 pitr.oplogSpanMin=1");
        let mut scene = Self {
            random: StdRng::seed_from_u64(seed),
            server: Arc::clone(&server),
            cli,
            agent: None,
            backup: None,
            workload: None,
            moments: Vec::new(),
            played: BTreeMap::new(),
            merged: 0,
            proven: 0,
        };
        scene.start_agent();
        let options = PgWorkloadOptions {
            tablespaces: true,
            restarts: true,
            bench: 30,
            pause: Duration::from_millis(15),
            ..PgWorkloadOptions::default()
        };
        scene.workload = Some(PgWorkload::start(server, seed, options).await?);
        Ok(scene)
    }

    fn start_agent(&mut self) {
        self.agent = Some(self.cli.start_logged("agent", &self.agents_log()));
    }

    fn agent(&self) -> Result<&Started> {
        self.agent.as_ref().context("no agent")
    }

    fn workload(&self) -> Result<&PgWorkload> {
        self.workload.as_ref().context("no workload")
    }

    fn agents_log(&self) -> PathBuf {
        self.cli.folder().join("agent.log")
    }

    /// The end of what agent and server said.
    fn last_words(&self) -> String {
        let tail = |text: &str| {
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        let agent = std::fs::read_to_string(self.agents_log()).unwrap_or_default();
        format!("agent:\n{}\nserver:\n{}", tail(&agent), tail(&self.server.log()))
    }

    async fn play(&mut self, moments: u64) -> Result<()> {
        // The first base is the agent's own, amid the load.
        let based = |scene: &Self| Ok((!scene.list()["ranges"][0].is_null()).then_some(()));
        self.until("a first base", 60, based).await?;
        self.record().await.context("the first moment")?;
        // Every seed begins with one of each.
        let mut first = BLOWS.iter();
        for moment in 1..=moments {
            for _ in 0..BLOWS_EACH {
                let blow = *first.next().or_else(|| BLOWS.choose(&mut self.random)).context("no blow")?;
                self.whim().await?;
                self.rest(300..1000).await;
                self.strike(blow).await.with_context(|| format!("before moment {moment}: {blow:?}"))?;
                *self.played.entry(blow).or_default() += 1;
            }
            self.record().await.with_context(|| format!("moment {moment}"))?;
            if self.moments.len() >= PROVEN_AT_ONCE {
                self.prove().await.with_context(|| format!("after moment {moment}"))?;
            }
        }
        self.prove().await
    }

    async fn rest(&mut self, millis: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.random.random_range(millis))).await;
    }

    /// Something that servers are told every day; and a backup now and then that nobody waits for.
    async fn whim(&mut self) -> Result<()> {
        let whim = WHIMS.choose(&mut self.random).context("no whim")?;
        self.server.sql(whim).await?;
        self.server.sql("SELECT pg_reload_conf()").await?;
        if let Some(backup) = self.backup.take() {
            self.may_fail(backup).await?;
        } else if self.random.random_bool(0.4) {
            self.backup = Some(self.cli.start("backup"));
        }
        Ok(())
    }

    /// Waits for a backup that may have lost its server, or have found another one at work.
    async fn may_fail(&self, backup: Started) -> Result<()> {
        let ran = tokio::task::spawn_blocking(move || backup.ended()).await?;
        let is_known = [0, 4, 5].contains(&ran.code) || is_overtaken(&ran);
        ensure!(is_known && (ran.code == 0 || ran.err.contains("hint: ")), "{ran}");
        Ok(())
    }

    async fn strike(&mut self, blow: Blow) -> Result<()> {
        match blow {
            Blow::KillAgent => {
                self.agent = None;
                if self.random.random_bool(0.7) {
                    self.merge().await?;
                }
                self.start_agent();
            }
            Blow::FreezeAgent => {
                self.agent()?.signal("STOP");
                self.rest(500..6000).await;
                self.agent()?.signal("CONT");
            }
            Blow::KillBackup => {
                let backup = self.cli.start("backup");
                self.rest(0..1500).await;
                drop(backup);
                // Nothing of it is in the way of the next one.
                self.alone("backup").await?;
            }
            Blow::FreezeBackup => {
                let backup = self.cli.start("backup");
                self.rest(0..800).await;
                backup.signal("STOP");
                self.rest(500..6000).await;
                backup.signal("CONT");
                self.may_fail(backup).await?;
            }
            Blow::KillRestore | Blow::FreezeRestore => {
                let captured = self.captured();
                let Some(moment) = captured.choose(&mut self.random).cloned() else { return Ok(()) };
                let restore = Restore::new(&moment, &format!("--time {}", moment.lsn), self.random.random())?;
                let running = self.cli.start(&restore.line());
                self.rest(200..3000).await;
                match blow {
                    Blow::FreezeRestore => {
                        running.signal("STOP");
                        self.rest(500..5000).await;
                        running.signal("CONT");
                        let ran = tokio::task::spawn_blocking(move || running.ended()).await?;
                        ensure!(ran.code == 0, "{ran}");
                    }
                    _ => restore.again_after(&self.cli, running.end("KILL")).await?,
                }
                restore.check().await?;
                self.proven += 1;
            }
            Blow::CrashServer => {
                // A process that is killed while it writes a page of 8 KiB may leave half of it (tried on ext4 with folios of
                // 4 KiB): without images of whole pages since the last checkpoint, the server's data is damaged.
                self.server.sql("ALTER SYSTEM SET full_page_writes = on").await?;
                self.server.sql("SELECT pg_reload_conf()").await?;
                while self.server.sql("SELECT full_page_writes FROM pg_control_checkpoint()").await? != "t" {
                    self.server.sql("CHECKPOINT").await?;
                }
                let mut psql = self.server.program("psql");
                psql.args(["-c", "SELECT pg_logical_emit_message(false, 'x', repeat('y', 20000000))"]);
                let mut psql = psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
                self.rest(20..200).await;
                self.server.crash();
                psql.wait()?;
                self.rest(0..1500).await;
                self.server.restart().await?;
            }
            Blow::FreezeServer => {
                self.server.freeze();
                self.rest(500..6000).await;
                self.server.thaw();
            }
            Blow::RestartServer => self.server.restart().await?,
        }
        Ok(())
    }

    /// Makes one of some slices that follow each other, as an agent does every minute.
    async fn merge(&mut self) -> Result<()> {
        let repository = Repository::open(&RepositorySpec::new(self.cli.repository().display().to_string())).await?;
        let repository = repository.context("no repository")?;
        let name = repository.clusters().await?.pop().context("no cluster")?.name;
        let cluster = repository.cluster(&name)?;
        let operation = Operation { kind: OperationKind::Capture, id: name, detail: String::new() };
        let begun = Instant::now();
        let lease = loop {
            match cluster.acquire(CAPTURE_LEASE, operation.clone(), DEFAULT_TTL).await? {
                Acquired::Held(lease) => break lease,
                Acquired::Busy(_) => ensure!(begun.elapsed() < Duration::from_secs(60), "the right to capture is held"),
            }
            sleep(Duration::from_millis(100)).await;
        };
        let slices = cluster.slices().await?;
        let meet =
            |a: &StoredSlice, b: &StoredSlice| a.name.end.position == b.name.start.position && a.epoch == b.epoch;
        let runs: Vec<_> = slices.chunk_by(meet).filter(|run| run.len() > 1).collect();
        if let Some(run) = runs.choose(&mut self.random) {
            let from = self.random.random_range(0..run.len() - 1);
            let to = self.random.random_range(from + 2..=run.len());
            merge_slices(&cluster, &run[0].stream, run[0].epoch, &run[from..to], lease.fence(), 2).await?;
            self.merged += 1;
        }
        Ok(lease.release().await?)
    }

    /// Runs a command that has to be alone, once whoever runs has ended.
    async fn alone(&mut self, line: &'static str) -> Result<()> {
        self.until(line, 60, |scene| {
            let ran = scene.cli.run(line);
            ensure!([0, 4].contains(&ran.code) || is_overtaken(&ran), "{ran}");
            Ok((ran.code == 0).then_some(()))
        })
        .await
    }

    async fn until<T>(&self, what: &str, secs: u64, mut look: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = tokio::task::block_in_place(|| look(self))? {
                return Ok(found);
            }
            ensure!(begun.elapsed() < Duration::from_secs(secs), "{what} did not come within {secs} s");
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn list(&self) -> serde_json::Value {
        self.cli.json("list")["pitr"].clone()
    }

    /// Sums up what there is while nothing happens.
    async fn record(&mut self) -> Result<()> {
        self.workload()?.goes_on_for(30).await?;
        let paused = self.workload()?.pause().await?;
        let state = PgState::read(&self.server.uri()).await?;
        self.moments.push(Moment { time: paused.time.clone(), lsn: paused.lsn.clone(), state });
        paused.resume();
        Ok(())
    }

    /// The moments that can be restored already.
    fn captured(&self) -> Vec<Moment> {
        let until = self.list()["capture"]["captured_until"].as_str().unwrap_or_default().to_owned();
        self.moments.iter().filter(|moment| moment.time < until).cloned().collect()
    }

    /// All moments are captured in the end, without a gap, and come back.
    async fn prove(&mut self) -> Result<()> {
        if let Some(backup) = self.backup.take() {
            self.may_fail(backup).await?;
        }
        self.workload()?.goes_on_for(20).await?;
        let all = self.moments.len();
        self.until("the capture of the last moment", 90, |scene| Ok((scene.captured().len() == all).then_some(())))
            .await?;
        // Restores are not to be slowed down by it.
        let paused = self.workload()?.pause().await?;
        let gaps = self.list()["gaps"].clone();
        ensure!(gaps.as_array().is_some_and(Vec::is_empty), "there are gaps: {gaps}");
        self.alone("verify").await?;
        let bases = self.cli.json("list")["snapshots"].as_array().cloned().unwrap_or_default();
        for moment in std::mem::take(&mut self.moments) {
            // By its position from the oldest base that leads there, so that much log is replayed.
            let leads = |base: &&serde_json::Value| base["restore_time"].as_str().is_some_and(|at| at <= &*moment.time);
            let base = bases.iter().find(leads).and_then(|base| base["name"].as_str()).context("no base")?;
            let ways = [format!("--time {}", moment.time), format!("--time {} --base-snapshot {base}", moment.lsn)];
            let restores = ways.map(|how| (Restore::new(&moment, &how, self.random.random()), Arc::clone(&self.cli)));
            let tasks = restores.map(|(restore, cli)| {
                tokio::spawn(async move {
                    let restore = restore?;
                    let ran = tokio::task::block_in_place(|| cli.run(&restore.line()));
                    ensure!(ran.code == 0 && ran.out.contains("is done."), "{ran}");
                    restore.check().await
                })
            });
            for task in tasks {
                task.await??;
                self.proven += 1;
            }
        }
        paused.resume();
        Ok(())
    }

    /// Nobody is left behind, on the server neither.
    async fn end(mut self) -> Result<()> {
        self.workload.take().context("no workload")?.stop().await?;
        let ran = self.agent.take().context("no agent")?.end("TERM");
        ensure!(ran.code == 0, "{ran}");
        let cli = &self.cli;
        cli.run("config --set pitr.enabled=false").ends(0, "slot");
        let slots = self.server.sql("SELECT count(*) FROM pg_replication_slots").await?;
        ensure!(slots == "0", "{slots} slots are left");
        // Everything else that there is to do with what is stored.
        cli.run("list").ends(0, "physical");
        cli.run("status").ends(0, "postgresql 1");
        cli.run("logs").ends(0, "restore");
        cli.run("list --restore").ends(0, "success");
        cli.ok("delete-pitr --all -y");
        for snapshot in cli.json("list")["snapshots"].as_array().context("no list")? {
            let name = snapshot["name"].as_str().context("no name")?;
            cli.run(&format!("describe-backup {name} --with-collections")).ends(0, "databases:");
            cli.ok(&format!("delete-backup {name} -y"));
        }
        cli.ok("cleanup --older-than 0d -y");
        ensure!(cli.json("list")["snapshots"][0].is_null(), "not all is deleted");
        Ok(())
    }
}

/// Databases are moved here more often than anywhere, so that a backup may find no time for itself, and says so.
fn is_overtaken(ran: &Ran) -> bool {
    ran.code == 1 && ran.err.contains("was copied or moved to another tablespace")
}

/// A moment on its way back.
struct Restore {
    moment: Moment,
    how: String,
    target: Postgres,
    /// Tablespaces with the folders that they are to go to.
    mapped: Vec<(&'static str, PathBuf)>,
}

impl Restore {
    fn new(moment: &Moment, how: &str, map: bool) -> Result<Self> {
        let target = Postgres::prepare(PostgresOptions::default())?;
        let spaces = SPACES.iter().filter(|_| map).map(|space| Ok((*space, target.new_folder(space)?)));
        Ok(Self { moment: moment.clone(), how: how.to_owned(), mapped: spaces.collect::<Result<_>>()?, target })
    }

    fn line(&self) -> String {
        let (directory, port) = (self.target.data_dir(), self.target.port());
        let maps: String = self.mapped.iter().map(|(name, path)| format!(" --map {name}={}", path.display())).collect();
        format!("restore {} --target-dir {} --port {port} -y{maps}", self.how, directory.display())
    }

    /// What is there is what was there at that moment, and where it was to be.
    async fn check(self) -> Result<()> {
        let found = PgState::read(&self.target.uri_of("postgres")).await?;
        self.target.end_of_others().await?;
        let differences = self.moment.state.differences(&found);
        ensure!(
            differences.is_empty(),
            "`{}` ({}, {}) gives something else:\n{}",
            self.line(),
            self.moment.time,
            self.moment.lsn,
            differences.join("\n")
        );
        let own = self.target.data_dir().with_file_name("");
        for link in std::fs::read_dir(self.target.data_dir().join("pg_tblspc"))? {
            let leads = std::fs::read_link(link?.path())?;
            let right = match self.mapped.is_empty() {
                true => leads.starts_with(&own),
                false => self.mapped.iter().any(|(_, path)| leads == *path),
            };
            ensure!(right, "`{}` has a tablespace in {}", self.line(), leads.display());
        }
        Ok(())
    }

    /// Restores again to the same place after a restore was killed: what is in the way is told, with what to do about it.
    async fn again_after(&self, cli: &Cli, killed: Ran) -> Result<()> {
        // It was faster.
        if killed.code == 0 {
            return Ok(());
        }
        // Its server ends by itself, unless it is the one that stays.
        let begun = Instant::now();
        while self.has_server() && !self.is_whole() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "a server outlives its restore");
            sleep(Duration::from_millis(50)).await;
        }
        if self.is_whole() {
            self.target.end_of_others().await?;
            return self.target.restart().await;
        }
        let ran = cli.run(&self.line());
        if ran.code == 0 {
            return Ok(());
        }
        ensure!(ran.code == 3 && ran.err.contains("half restored"), "{ran}");
        let hint = ran.err.lines().find_map(|line| line.split_once("hint: ")).context("no hint")?.1;
        let remedy = hint.split_once(": ").map(|(_, remedy)| remedy).filter(|remedy| remedy.starts_with("rm -r "));
        let remedy = remedy.with_context(|| ran.to_string())?;
        ensure!(Command::new("sh").args(["-c", remedy]).status()?.success(), "{remedy}");
        let ran = cli.run(&self.line());
        ensure!(ran.code == 0, "after {remedy}: {ran}");
        Ok(())
    }

    /// Whether all that was left was to start a server and to say so.
    fn is_whole(&self) -> bool {
        let data = self.target.data_dir();
        data.join("PG_VERSION").exists() && !data.join("hindsight.restore").exists()
    }

    fn has_server(&self) -> bool {
        let text = std::fs::read_to_string(self.target.data_dir().join("postmaster.pid")).unwrap_or_default();
        text.lines().next().is_some_and(|pid| PathBuf::from(format!("/proc/{}", pid.trim())).exists())
    }
}
