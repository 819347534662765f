//! PostgreSQL: failovers that lose a part of what is stored. Every moment comes back without another base: before the server left,
//! between the promotion and now, and what only the old one had.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hindsight_testkit::{PgState, Postgres, PostgresOptions};
use jiff::Timestamp;
use tokio::time::sleep;

use crate::support::{Cli, Started, same, setting, state_at, wait_for};

/// How long anything here may take. Machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// A moment, in the history of an epoch, with all that was there.
struct Moment {
    what: String,
    epoch: u64,
    /// Whether a later failover has lost it.
    is_lost: bool,
    time: String,
    lsn: String,
    state: PgState,
}

/// A primary, which comes first, its standby, and an agent that knows both.
struct Scene {
    members: [Postgres; 2],
    cli: Cli,
    agent: Option<Started>,
    epoch: u64,
    /// Moments that there were.
    made: usize,
    moments: Vec<Moment>,
}

impl Scene {
    async fn new() -> Result<Self> {
        let primary = Postgres::start(PostgresOptions::default()).await?;
        primary.pgbench(&["-i", "-s", "1", "-q"]).await?;
        let standby = primary.standby(PostgresOptions::default()).await?;
        let members = [primary, standby];
        let [one, other] = members.each_ref().map(Postgres::port);
        let uri = format!("postgresql://postgres@127.0.0.1:{one},127.0.0.1:{other}/postgres");
        let cli = Cli::new(&uri).installed_in(&members[0].new_folder("bin")?);
        cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1");
        let agent = Some(cli.start_logged("agent", &cli.folder().join("agent.log")));
        let scene = Self { members, cli, agent, epoch: 1, made: 0, moments: Vec::new() };
        wait_for("a base", || (!scene.list("snapshots").is_empty()).then_some(()));
        scene.base_is_over().await?;
        Ok(scene)
    }

    fn list(&self, what: &str) -> Vec<serde_json::Value> {
        let list = self.cli.json("list");
        let found = if what == "snapshots" { &list[what] } else { &list["pitr"][what] };
        found.as_array().cloned().unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.cli.folder().join("agent.log")
    }

    /// Times can be restored from the second on that begins after a base: waits until the newest one is that old.
    async fn base_is_over(&self) -> Result<()> {
        let snapshots = self.list("snapshots");
        let ends = snapshots.iter().filter_map(|snapshot| snapshot["restore_time"].as_str());
        let end = ends.max().context("no base")?;
        self.members[0].sql(&format!("SELECT pg_sleep_until('{end}')")).await.map(|_| ())
    }

    /// Writes, sums up what is there, and waits until that can be restored in its own epoch.
    async fn moment(&mut self, what: &str, is_lost: bool) -> Result<()> {
        let server = &self.members[0];
        self.made += 1;
        let number = self.made;
        server.pgbench(&["-c", "2", "-t", "40", "-n"]).await?;
        server.sql(&format!("CREATE TABLE made_{number} AS SELECT generate_series(1, 500) AS n")).await?;
        let state = PgState::read(&server.uri()).await?;
        let lsn = server.sql("SELECT pg_current_wal_flush_lsn()").await?;
        let next = "(date_trunc('second', clock_timestamp()) + interval '1 second')";
        let time = format!(r#"SELECT to_char({next} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"#);
        let time = server.sql(&time).await?;
        server.sql(&format!("SELECT pg_sleep_until('{time}')")).await?;
        // What comes after it in the log.
        server.sql(&format!("CREATE TABLE after_{number} (n int)")).await?;
        let second = time.parse::<Timestamp>()?.as_second();
        let epoch = self.epoch;
        wait_for(&format!("{what} in epoch {epoch}"), || {
            let reached = |range: &serde_json::Value| {
                range["epoch"] == epoch && range["range"]["end"].as_i64().is_some_and(|end| end > second)
            };
            self.list("ranges").iter().any(reached).then_some(())
        });
        self.moments.push(Moment { what: what.to_owned(), epoch, is_lost, time, lsn, state });
        Ok(())
    }

    async fn caught_up(&self) -> Result<()> {
        let [primary, standby] = &self.members;
        let end = primary.sql("SELECT pg_current_wal_flush_lsn()").await?;
        let begun = Instant::now();
        while standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")).await.ok().as_deref() != Some("t") {
            ensure!(begun.elapsed() < PATIENCE, "the standby does not follow");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The primary goes on alone, with what is captured, and dies; its standby, which has nothing of that, takes over.
    async fn fail_over(&mut self) -> Result<()> {
        self.moment("what both have", false).await?;
        self.caught_up().await?;
        // Amid what is written, so that it has a part of a slice.
        let [primary, standby] = &self.members;
        let leave = async {
            sleep(Duration::from_millis(1700)).await;
            standby.stop().await
        };
        let (written, stopped) = tokio::join!(primary.pgbench(&["-c", "2", "-T", "4", "-n"]), leave);
        written.and(stopped.map(|()| String::new()))?;
        self.moment("what only the old one had", true).await?;
        self.members[0].crash();
        self.members[1].restart().await?;
        self.members[1].promote().await?;
        self.members.reverse();
        self.epoch += 1;
        self.moment("what the promoted one wrote first", false).await?;
        self.moment("what it wrote then", false).await?;
        // The old one comes back as its standby.
        self.members[1].follow(&self.members[0]).await?;
        Ok(())
    }

    /// Restores each moment by its position, and by its time too if that is asked for.
    async fn prove(&self, by_time: bool) -> Result<()> {
        for Moment { what, epoch, is_lost, time, lsn, state } in &self.moments {
            let flag = if *is_lost { format!(" --epoch {epoch}") } else { String::new() };
            for how in [Some(lsn), Some(time).filter(|_| by_time)].into_iter().flatten() {
                let how = format!("--time {how}{flag}");
                println!("{what} (epoch {epoch}): {how}");
                same(state, &state_at(&self.cli, &how).await);
            }
        }
        Ok(())
    }

    async fn play(&mut self, failovers: u64) -> Result<()> {
        for _ in 0..failovers {
            self.fail_over().await?;
        }
        ensure!(self.agent.take().context("no agent")?.end("TERM").code == 0);
        ensure!(self.list("snapshots").len() == 1, "another base was taken");
        ensure!(self.list("gaps").is_empty(), "{:?}", self.list("gaps"));
        let ranges = self.list("ranges");
        let left: Vec<_> = ranges.iter().filter(|range| range["left_behind"].is_string()).collect();
        ensure!(left.len() as u64 == failovers && ranges.len() as u64 == failovers + 1, "{ranges:?}");
        let told = self.cli.ok("list");
        ensure!(
            told.contains("    left behind ") && told.contains(", --epoch 1): the server left timeline 1 at"),
            "{told}"
        );
        self.cli.run("verify").ends(0, "");
        self.prove(true).await?;

        // The only base stays for as long as the capture rests on it.
        let base = self.list("snapshots")[0]["name"].as_str().context("no name")?.to_owned();
        self.cli.run(&format!("delete-backup {base} -y")).ends(3, "last PITR base snapshot");
        self.cli.ok("cleanup --older-than 0d -y");
        self.cli.ok("delete-pitr --all -y");
        self.prove(false).await?;
        // Then it goes, and the log before the other one with it.
        let other = self.cli.json("backup")["name"].as_str().context("no name")?.to_owned();
        self.base_is_over().await?;
        let agent = self.cli.start_logged("agent", &self.log());
        self.epoch = failovers + 1;
        self.moments.clear();
        self.moment("what was written since", false).await?;
        ensure!(agent.end("TERM").code == 0);
        let plan = self.cli.json(&format!("delete-backup {base} --dry-run"));
        ensure!(plan["lost"].as_array().is_some_and(|lost| lost.len() as u64 == failovers + 1), "{plan}");
        self.cli.ok(&format!("delete-backup {base} -y"));
        self.cli.ok("cleanup --older-than 0d -y");
        let ranges = self.list("ranges");
        ensure!(ranges.len() == 1 && ranges[0]["bases"] == serde_json::json!([other]), "{ranges:?}");
        self.cli.run("verify").ends(0, "");
        self.prove(true).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_moment_comes_back_after_failovers_that_lose_what_is_stored() -> Result<()> {
    let mut scene = Scene::new().await?;
    let done = scene.play(setting("BRANCHES", 1)).await;
    if done.is_err() {
        eprintln!("{}", std::fs::read_to_string(scene.log()).unwrap_or_default());
        eprintln!("{}", scene.cli.run("list"));
        eprintln!("the repository is kept in {}", scene.cli.keep().display());
    }
    done
}
