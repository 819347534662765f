//! The log: how soon it is durable, what capturing costs who writes, and how long its replay takes.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use hindsight_repository::{ClusterRepository, FRAME_TARGET};
use tempfile::TempDir;

use super::{DATABASE, Scene, Taken, mib, say};
use crate::machine::cores;
use crate::measure::backup::compress_all;
use crate::measure::log::{Commits, probe, quantile, wait};
use crate::measure::{Rounds, median};
use crate::table::Table;

/// Seconds between two looks at how far the server has flushed its log.
const LOOK: f64 = 0.02;

/// Measures `pgbench` with and without an agent in turns, and restores with the log of it.
pub(super) async fn measure(scene: &Scene, taken: &Taken, table: &mut Table) -> Result<()> {
    let cluster = scene.hindsight.cluster().await?;
    cluster.update_config(|config| config.with("pitr.enabled", "true")).await?;
    let interval = cluster.config().await?.1.pitr.upload_interval_sec;
    // Long enough for some slices; the log must not take hours to replay.
    let seconds = (scene.size / 10.0).clamp(8.0, 30.0) as u64;
    let [mut free, mut captured, mut received] = [const { Vec::new() }; 3];
    let (mut lags, mut work, mut peak) = (Vec::new(), 0.0, 0);
    let begun = written(scene).await?;
    for round in 0..scene.rounds {
        say(&format!("pgbench with and without an agent: round {} of {}", round + 1, scene.rounds));
        // Tables grow from one to the next, so that each comes first once.
        for turn in 0..3 {
            scene.server.sql("CHECKPOINT").await?;
            match (round + turn) % 3 {
                0 => free.push(pgbench(scene, seconds).await?),
                1 => {
                    let receiving = Receiving::start(scene)?;
                    received.push(pgbench(scene, seconds).await?);
                    receiving.stop()?;
                }
                _ => {
                    let agent = scene.hindsight.start_at(&scene.server.uri(), &[], &["agent"])?;
                    caught_up(scene, &cluster).await?;
                    captured.push(pgbench(scene, seconds).await?);
                    caught_up(scene, &cluster).await?;
                    let ended = agent.stop().await?;
                    work += ended.spent.client;
                    peak = peak.max(ended.peak);
                }
            }
        }
        // Looking takes time too.
        scene.server.sql("CHECKPOINT").await?;
        let agent = scene.hindsight.start_at(&scene.server.uri(), &[], &["agent"])?;
        caught_up(scene, &cluster).await?;
        let commits = Arc::new(Commits::default());
        let probing = tokio::spawn(probe(cluster.clone(), commits.clone()));
        let looking = Looking::start(scene, commits.clone())?;
        pgbench(scene, seconds).await?;
        looking.stop()?;
        // What was flushed last may have ended within a record.
        scene.server.sql("SELECT pg_current_xact_id()").await?;
        wait("the end of the log", || async { Ok(commits.waiting() == 0) }).await?;
        probing.abort();
        lags.extend(commits.lags());
        let ended = agent.stop().await?;
        work += ended.spent.client;
        peak = peak.max(ended.peak);
    }
    lags.sort_by(f64::total_cmp);
    let [fast, slow, plain] = [&mut free, &mut captured, &mut received].map(|rates| median(rates));
    let note = format!("pgbench -c 8, median of {} rounds of {seconds} s", scene.rounds);
    table.add("postgres: transactions without an agent", fast, "1/s", note.as_str());
    table.add("postgres: transactions with an agent", slow, "1/s", note.as_str());
    table.add("postgres: transactions with pg_receivewal", plain, "1/s", note);
    table.add("RATIO postgres: transactions with / without an agent", slow / fast, "x", "1 is no slowdown");
    let note = "receiving the log alone, without reading or compressing it";
    table.add("RATIO postgres: transactions with pg_receivewal / without", plain / fast, "x", note);
    let note = format!("from flushed to durable in the repository, stored every {interval} s or 16 MiB");
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        table.add(format!("postgres: capture lag, {name}"), quantile(&lags, share), "s", note.as_str());
    }
    let log = scene.hindsight.stored_bytes("/log/")?;
    table.add("postgres: agent: peak memory", mib(peak), "MiB", "resident");
    table.add("postgres: log: stored", mib(log), "MiB", "");
    let made = mib(written(scene).await? - begun) / 1024.0;
    table.add(
        "postgres: agent: processor",
        work / made,
        "core-s/GiB",
        "of log, in all rounds, with what it caught up with",
    );
    let (files, bytes) = segments(scene).await?;
    let level = cluster.config().await?.1.pitr.compression_level;
    let alone = compress(&files, level)? * f64::from(1 << 30) / bytes as f64;
    let note = format!("the same log with zstd of the agent's level ({level}), in memory, on all cores");
    table.add("postgres: compressing the log alone", alone, "core-s/GiB", note);
    // What one takes of cores that are all busy the others lose.
    let rate = made / (4 * scene.rounds as u64 * seconds) as f64 / cores() as f64;
    let note = format!("of {} cores, which the server and pgbench keep busy", cores());
    table.add("postgres: share of the cores: compressing the log alone", rate * alone, "x", note.as_str());
    table.add("postgres: share of the cores: agent", rate * work / made, "x", note);
    replay(scene, taken, (files, bytes), table).await
}

/// Bytes of log that the server has ever flushed.
async fn written(scene: &Scene) -> Result<u64> {
    Ok(scene.server.sql("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint").await?.trim().parse()?)
}

/// Compresses segments as frames are; gives the processor seconds.
fn compress(folder: &Path, level: i32) -> Result<f64> {
    let files: Vec<_> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let (spent, _) = compress_all(files, level, |compressor, file| {
        let segment = std::fs::read(file)?;
        segment.chunks(FRAME_TARGET).map(|frame| Ok(compressor.compress(frame)?.len() as u64)).sum()
    })?;
    Ok(spent.client)
}

/// Restores with all of the log, in turns with a server that fetches the same segments with `cp`.
async fn replay(scene: &Scene, taken: &Taken, (segments, bytes): (PathBuf, u64), table: &mut Table) -> Result<()> {
    let fetch = [("restore_command", format!("cp '{}/%f' '%p'", segments.display()))];
    let [mut own, mut others] = [(); 2].map(|()| Rounds::default());
    let mut peak = 0;
    for round in 0..scene.rounds {
        say(&format!("replay of the log: round {} of {}", round + 1, scene.rounds));
        others.push(scene.unpack(taken, &fetch).await?.1);
        let ended = scene.restore(&["--time", "latest", "--base-snapshot", &taken.snapshot]).await?;
        peak = peak.max(ended.peak);
        own.push(ended.spent);
    }
    let note = format!("{:.0} MiB of log; {}", mib(bytes), own.note());
    table.add("postgres: restore with the log", own.wall(), "s", note);
    table.add("postgres: restore with the log: peak memory", mib(peak), "MiB", "resident, highest of all rounds");
    let note = format!("segments from a folder; {}", others.note());
    table.add("postgres: untar and replay with cp", others.wall(), "s", note);
    table.add("RATIO postgres: restore with the log / untar and replay with cp", own.wall() / others.wall(), "x", "");
    Ok(())
}

/// Copies the log that the server has into a folder; gives its bytes too.
async fn segments(scene: &Scene) -> Result<(PathBuf, u64)> {
    let present = scene.server.sql("SELECT pg_walfile_name(pg_current_wal_flush_lsn())").await?;
    let folder = scene.server.new_folder("segments")?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(scene.server.data_dir().join("pg_wal"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Those after the present one are made beforehand.
        if name.len() == present.len() && name <= present {
            let copy = folder.join(name);
            bytes += std::fs::copy(entry.path(), &copy)?;
            // For whoever the server runs as.
            std::fs::set_permissions(copy, Permissions::from_mode(0o644))?;
        }
    }
    Ok((folder, bytes))
}

/// Transactions per second.
async fn pgbench(scene: &Scene, seconds: u64) -> Result<f64> {
    let (threads, seconds) = (cores().to_string(), seconds.to_string());
    let told = scene.server.pgbench(&["-n", "-c", "8", "-j", &threads, "-T", &seconds, DATABASE]).await?;
    // tps = 1234.567 (without initial connection time)
    let tps = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.with_context(|| format!("no tps in {told}"))
}

/// Waits until the agent has captured what was written before.
async fn caught_up(scene: &Scene, cluster: &ClusterRepository) -> Result<()> {
    let until = scene.server.sql("SELECT pg_current_wal_flush_lsn()").await?;
    let until = order(&until).context("no position")?;
    scene.server.sql("SELECT pg_current_xact_id()").await?;
    wait("the agent", || async {
        let ends = cluster.slices().await?;
        Ok(ends.iter().any(|slice| slice.name.end.position.order() >= until.as_str()))
    })
    .await
}

/// As positions are written in names of slices: `0/1A2B` with all digits.
fn order(lsn: &str) -> Option<String> {
    let (high, low) = lsn.trim().split_once('/')?;
    let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
    Some(format!("{high:08X}{low:08X}"))
}

/// PostgreSQL's own program that follows the log.
struct Receiving {
    program: Child,
    /// What it fills; goes with this.
    _folder: TempDir,
}

impl Receiving {
    fn start(scene: &Scene) -> Result<Self> {
        let folder = tempfile::tempdir_in(scene.folder.path())?;
        let mut command = scene.server.program("pg_receivewal");
        command.args(["--no-loop", "--directory"]).arg(folder.path()).stderr(Stdio::null());
        Ok(Self { program: command.spawn()?, _folder: folder })
    }

    fn stop(mut self) -> Result<()> {
        if let Some(status) = self.program.try_wait()? {
            bail!("pg_receivewal ended: {status}");
        }
        self.program.kill()?;
        self.program.wait()?;
        Ok(())
    }
}

/// Looks how far the server has flushed its log, over and over.
struct Looking {
    psql: Child,
    thread: JoinHandle<()>,
}

impl Looking {
    fn start(scene: &Scene, commits: Arc<Commits>) -> Result<Self> {
        let mut command = scene.server.program("psql");
        command.args(["-X", "-A", "-t", "-q"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut psql = command.spawn()?;
        let mut input = psql.stdin.take().context("psql without an input")?;
        writeln!(input, "SELECT pg_current_wal_flush_lsn() \\watch {LOOK}")?;
        let output = BufReader::new(psql.stdout.take().context("psql without an output")?);
        let thread = std::thread::spawn(move || {
            let mut last = String::new();
            for order in output.lines().map_while(Result::ok).filter_map(|line| order(&line)) {
                if order > last {
                    commits.push(order.clone());
                    last = order;
                }
            }
            // It would end where there is nothing more to read.
            drop(input);
        });
        Ok(Self { psql, thread })
    }

    fn stop(mut self) -> Result<()> {
        self.psql.kill()?;
        self.psql.wait()?;
        match self.thread.join() {
            Ok(()) => Ok(()),
            Err(_) => bail!("the thread that looks at the server ended"),
        }
    }
}
