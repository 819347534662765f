//! Failovers under load, with a capture that commits wait for: the primary is killed or stopped at a random moment, its standby
//! promoted, over and over. Afterwards every commit that a client saw acknowledged is there, in whatever moment is restored.
//!
//! Short by default. The long form: `make torture-postgres-failover`, or `FAILOVER_SEEDS=1,2 FAILOVER_ROUNDS=10 FAILOVER_MOMENTS=20
//! cargo test --release -p hindsight --test cli failover`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hindsight_postgres::wire::{Connection, Replication, Row};
use hindsight_postgres::{Address, TargetSession};
use hindsight_testkit::{Postgres, PostgresOptions};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::support::{Cli, Started, captured, seeds, setting, wait_for};

/// Connections that write.
const WRITERS: u32 = 4;
/// How long anything here may take. Machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_acknowledged_commit_is_lost_in_failovers() -> Result<()> {
    for seed in seeds("FAILOVER_SEEDS")? {
        let begun = Instant::now();
        let mut scene = Scene::new(seed).await?;
        let done = scene.play(setting("FAILOVER_ROUNDS", 2), setting("FAILOVER_MOMENTS", 2)).await;
        if let Err(error) = &done {
            eprintln!("{error:?}");
            eprintln!("{}", std::fs::read_to_string(scene.cli.folder().join("agent.log")).unwrap_or_default());
            eprintln!("the repository is kept in {}", scene.cli.keep().display());
        }
        println!(
            "seed {seed}: {}, {:.0} s",
            done.with_context(|| format!("seed {seed}"))?,
            begun.elapsed().as_secs_f32()
        );
    }
    Ok(())
}

/// Restores a moment, and gives what a query finds there.
async fn restored(cli: &Cli, how: &str, query: &str) -> Result<Vec<Row>> {
    let target = Postgres::prepare(PostgresOptions::default())?;
    let directory = target.data_dir();
    cli.ok(&format!("restore --time {how} --target-dir {} --port {} -y", directory.display(), target.port()));
    let mut session = Connection::connect(&Address::parse(&target.uri_of("postgres"))?, Replication::No).await?;
    let rows = session.query(query, "reading").await?;
    session.close().await;
    target.end_of_others().await?;
    Ok(rows)
}

/// How many slots of ours there are on a member.
async fn slots(member: &Postgres) -> Result<String> {
    member.sql("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'hindsight_shop_%'").await
}

fn members(all: &[Postgres; 2]) -> String {
    let [one, other] = all.each_ref().map(Postgres::port);
    format!("postgresql://postgres@127.0.0.1:{one},127.0.0.1:{other}/postgres")
}

/// The epochs that can be restored.
fn epochs(cli: &Cli) -> BTreeSet<u64> {
    let status = cli.json("status");
    let ranges = status["pitr"]["ranges"].as_array().cloned().unwrap_or_default();
    ranges.iter().filter_map(|range| range["epoch"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_promoted_standby_never_had_stays_in_the_old_history() -> Result<()> {
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let standby = primary.standby(PostgresOptions::default()).await?;
    let both = [primary, standby];
    let cli = Cli::new(&members(&both)).installed_in(&both[0].new_folder("bin")?);
    let [primary, standby] = &both;
    cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1");
    let log = cli.folder().join("agent.log");
    let agent = cli.start_logged("agent", &log);
    wait_for("a base", || cli.json("list")["snapshots"].as_array().is_some_and(|all| !all.is_empty()).then_some(()));
    primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await?;
    let begun = Instant::now();
    while standby.sql("SELECT count(*) FROM t").await.ok().as_deref() != Some("1") {
        ensure!(begun.elapsed() < PATIENCE, "the standby does not follow");
        sleep(Duration::from_millis(50)).await;
    }
    standby.stop().await?;
    primary.sql("INSERT INTO t VALUES (2)").await?;
    let left = primary.sql("SELECT pg_current_wal_flush_lsn()").await?;
    captured(&cli, &left);
    primary.crash();
    standby.restart().await?;
    standby.promote().await?;
    standby.sql("INSERT INTO t VALUES (3)").await?;
    wait_for("the new history", || epochs(&cli).contains(&2).then_some(()));
    let third = standby.sql("SELECT pg_current_wal_flush_lsn()").await?;
    standby.sql("INSERT INTO t VALUES (4)").await?;
    let end = standby.sql("SELECT pg_current_wal_flush_lsn()").await?;
    captured(&cli, &end);
    ensure!(agent.end("TERM").code == 0);
    let said = std::fs::read_to_string(&log)?;
    ensure!(said.contains("a new history begins: the server left timeline 1 at"), "{said}");
    ensure!(cli.json("list")["snapshots"].as_array().map_or(0, Vec::len) == 1, "another base was taken: {said}");
    for (how, expected) in [
        ("latest", vec!["1", "3", "4"]),
        (third.as_str(), vec!["1", "3"]),
        (format!("{left} --epoch 1").as_str(), vec!["1", "2"]),
        ("latest --epoch 1", vec!["1", "2"]),
    ] {
        let rows = restored(&cli, how, "SELECT n FROM t ORDER BY n").await?;
        let found: Vec<_> = rows.iter().filter_map(|row| row.at(0)).collect();
        ensure!(found == expected, "{how}: {found:?}");
    }
    Ok(())
}

/// A transaction that a client asked for.
struct Commit {
    writer: u32,
    id: u64,
    begun: Timestamp,
    /// When it was told that it is committed; none where it was told nothing, or an error.
    acknowledged: Option<Timestamp>,
}

/// Connections that write, whoever is the primary.
struct Writers {
    commits: Arc<Mutex<Vec<Commit>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(members: &str) -> Result<Self> {
        let address = Address::parse(members)?.with_target(TargetSession::Primary);
        let (commits, stop) = (Arc::<Mutex<Vec<Commit>>>::default(), Arc::<AtomicBool>::default());
        let write = |writer| {
            let (address, commits, stop) = (address.clone(), commits.clone(), stop.clone());
            async move {
                let (mut session, mut id) = (None, 0);
                while !stop.load(Ordering::SeqCst) {
                    let mut connected: Connection = match session.take() {
                        Some(session) => session,
                        None => match timeout(Duration::from_secs(5), Connection::connect(&address, Replication::No))
                            .await
                        {
                            Ok(Ok(session)) => session,
                            _ => {
                                sleep(Duration::from_millis(50)).await;
                                continue;
                            }
                        },
                    };
                    id += 1;
                    let begun = Timestamp::now();
                    let statement = format!("INSERT INTO commits VALUES ({writer}, {id})");
                    let done = connected.query(&statement, "writing").await;
                    let acknowledged = done.is_ok().then(Timestamp::now);
                    commits.lock().unwrap().push(Commit { writer, id, begun, acknowledged });
                    session = done.is_ok().then_some(connected);
                }
            }
        };
        let tasks = (1..=WRITERS).map(|writer| tokio::spawn(write(writer))).collect();
        Ok(Self { commits, stop, tasks })
    }

    fn acknowledged(&self) -> usize {
        self.commits.lock().unwrap().iter().filter(|commit| commit.acknowledged.is_some()).count()
    }

    /// Waits until so many more are acknowledged.
    async fn go_on_for(&self, more: usize) -> Result<()> {
        let (begun, before) = (Instant::now(), self.acknowledged());
        while self.acknowledged() < before + more {
            ensure!(begun.elapsed() < PATIENCE, "{} of {more} commits were acknowledged", self.acknowledged() - before);
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<Vec<Commit>> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            timeout(PATIENCE, task).await.context("a commit is not acknowledged")??;
        }
        Ok(std::mem::take(&mut *self.commits.lock().unwrap()))
    }
}

/// Two members, an agent, and what was written.
struct Scene {
    random: StdRng,
    /// The primary first.
    members: [Postgres; 2],
    uri: String,
    cli: Cli,
    agent: Option<Started>,
}

impl Scene {
    async fn new(seed: u64) -> Result<Self> {
        // Both are called so, the standby as a standby too.
        let options = || PostgresOptions::default().set("cluster_name", "shop").set("wal_keep_size", "0");
        let primary = Postgres::start(options()).await?;
        // In force with the next start or reload.
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 (hindsight_shop, shop)'").await?;
        let standby = primary.standby(options()).await?;
        let members = [primary, standby];
        let uri = self::members(&members);
        let cli = Cli::new(&uri).installed_in(&members[0].new_folder("bin")?);
        Ok(Self { random: StdRng::seed_from_u64(seed), members, uri, cli, agent: None })
    }

    async fn play(&mut self, rounds: u64, moments: u64) -> Result<String> {
        self.begin().await?;
        let writers = Writers::start(&self.uri)?;
        for round in 0..rounds {
            writers.go_on_for(self.random.random_range(50..200)).await?;
            sleep(Duration::from_millis(self.random.random_range(0..1500))).await;
            let [primary, standby] = &self.members;
            // One that joined just now keeps its log only since the agent's next visit.
            let begun = Instant::now();
            while slots(standby).await? != "1" {
                ensure!(begun.elapsed() < PATIENCE, "no slot on {}", standby.port());
                sleep(Duration::from_millis(100)).await;
            }
            // Killed, or switched over in good order.
            if round % 2 == 0 {
                primary.crash()
            } else {
                primary.stop().await?
            }
            standby.promote().await?;
            primary.follow(standby).await?;
            self.members.reverse();
            writers.go_on_for(20).await.with_context(|| format!("after failover {}", round + 1))?;
        }
        // A history that began anew rests on the base of the one before, where the server still had its log, or on one of its own.
        let now = Timestamp::now().as_second();
        wait_for("a range that goes on", || {
            let status = self.cli.json("status");
            let ranges = status["pitr"]["ranges"].as_array()?;
            ranges.iter().any(|range| range["range"]["end"].as_i64() > Some(now)).then_some(())
        });
        let commits = writers.stop().await?;
        ensure!(self.agent.take().context("no agent")?.end("TERM").code == 0);
        let timeline = self.members[0].sql("SELECT timeline_id FROM pg_control_checkpoint()").await?;
        let acknowledged = commits.iter().filter(|commit| commit.acknowledged.is_some()).count();

        self.check(&commits, "latest", None).await?;
        let status = self.cli.json("status");
        let ranges = status["pitr"]["ranges"].as_array().context("no ranges")?.clone();
        let epochs = epochs(&self.cli);
        // A primary that died with more than its standby had leaves that behind, and nothing makes a gap.
        let gaps = status["pitr"]["gaps"].as_array().context("no gaps")?;
        ensure!(gaps.is_empty(), "{}", status["pitr"]);
        for _ in 0..moments {
            let range = &ranges[self.random.random_range(0..ranges.len())]["range"];
            let (from, to) = (range["start"].as_i64().context("no start")?, range["end"].as_i64().context("no end")?);
            let moment = Timestamp::from_second(self.random.random_range(from..=to))?;
            self.check(&commits, &moment.to_string(), Some(moment)).await?;
        }
        let said = format!(
            "{rounds} failovers (timeline {timeline}), {} epochs, {acknowledged} of {} commits acknowledged, {} exact restores",
            epochs.len(),
            commits.len(),
            moments + 1
        );
        self.end().await?;
        Ok(said)
    }

    /// Commits wait for the standby and for the capture, which rests on a base.
    async fn begin(&mut self) -> Result<()> {
        let [primary, standby] = &self.members;
        let line = "config --set pitr.enabled=true pitr.synchronous=true";
        self.cli
            .run(line)
            .ends(0, "commits do not wait for the capture yet; to make them wait, on every member: ALTER SYSTEM");
        for member in [primary, standby] {
            ensure!(slots(member).await? == "1", "no slot on {}", member.port());
        }
        self.agent = Some(self.cli.start_logged("agent", &self.cli.folder().join("agent.log")));
        wait_for("a base", || {
            self.cli.json("list")["snapshots"].as_array().is_some_and(|all| !all.is_empty()).then_some(())
        });
        primary.sql("CREATE TABLE commits (writer int, id bigint, PRIMARY KEY (writer, id))").await?;
        primary.sql("SELECT pg_reload_conf()").await?;
        wait_for("waiting commits", || (self.cli.json("status")["pitr"]["synchronous"] == "always").then_some(()));
        self.cli.run("status").ends(0, "commits wait until they are in the repository");
        Ok(())
    }

    /// Restores a moment, which has all that was acknowledged before it, and of each writer nothing without what it wrote before.
    async fn check(&self, commits: &[Commit], how: &str, moment: Option<Timestamp>) -> Result<()> {
        let rows = restored(&self.cli, how, "SELECT writer, id FROM commits").await?;
        let read = |row: &Row| Some((row.get("writer")?.parse().ok()?, row.get("id")?.parse().ok()?));
        let found: BTreeSet<(u32, u64)> = rows.iter().filter_map(read).collect();
        let is_before = |time: Timestamp| moment.is_none_or(|moment| time < moment);
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        for &(writer, id) in &found {
            last.insert(writer, id);
        }
        for Commit { writer, id, begun, acknowledged } in commits {
            let is_there = found.contains(&(*writer, *id));
            let acknowledged_before = acknowledged.is_some_and(is_before);
            ensure!(
                is_there || !acknowledged_before,
                "{how}: {writer}/{id}, acknowledged at {acknowledged:?}, is missing"
            );
            ensure!(!is_there || is_before(*begun), "{how}: {writer}/{id}, begun at {begun}, is there");
            let earlier = last.get(writer).is_some_and(|last| id < last);
            ensure!(
                is_there || !earlier || acknowledged.is_none(),
                "{how}: {writer}/{id}, acknowledged at {acknowledged:?}, is missing, and a later one is there"
            );
        }
        Ok(())
    }

    /// Nobody is left waiting, and no server keeps its log for nobody.
    async fn end(&self) -> Result<()> {
        let refused = self.cli.run("config --set pitr.enabled=false").ends(3, "would wait for ever");
        ensure!(refused.err.contains("synchronous_standby_names = 'FIRST 1 (shop)'"), "{refused}");
        for member in &self.members {
            member.sql("ALTER SYSTEM SET synchronous_standby_names = ''").await?;
            member.sql("SELECT pg_reload_conf()").await?;
        }
        wait_for("the setting", || (self.cli.run("config --set pitr.enabled=false").code == 0).then_some(()));
        for member in &self.members {
            ensure!(member.sql("SELECT count(*) FROM pg_replication_slots").await? == "0");
        }
        Ok(())
    }
}
