//! The log: how soon it is durable, what capturing costs the writer, and how much longer a restore
//! takes with it than without it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bson::{DateTime, Document, RawDocumentBuf, doc};
use futures::StreamExt as _;
use hindsight_jobs::CAPTURE_LEASE;
use hindsight_repository::ClusterRepository;
use jiff::Timestamp;
use mongodb::Client;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use super::backup::compressor;
use super::tail::Tail;
use super::{Bench, Rounds, mib, say};
use crate::child::{Ended, Running};
use crate::data::{DATABASE, ORDERS, order_id};
use crate::machine::cores;
use crate::meter::{Meter, Spent};

/// Documents that the updates go to, or all there are.
const UPDATED: u64 = 100_000;
/// Updates in one command; each makes an entry of its own in the log.
const COMMAND: u64 = 250;
/// Updates are timed in this many parts, so that a moment in which the machine is busy with other
/// things does not count.
const PARTS: u64 = 20;
/// The repository is looked at this often.
const PROBE: Duration = Duration::from_millis(25);
/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// Updates in parts without a capture. To be called before the snapshot is taken that the log
/// follows, so that they are no part of the log, and once more after it.
pub async fn write_freely(bench: &Bench) -> Result<Rounds> {
    say("updates without an agent");
    write(bench, PARTS / 2, &Commits::default()).await
}

/// Captures a long log under full load, then restores with and without it in turns. `free` are the
/// updates without a capture before.
pub async fn measure(bench: &mut Bench, mut free: Rounds) -> Result<()> {
    let cluster = bench.hindsight.cluster().await?;
    let snapshot = bench.hindsight.newest_snapshot().await?;
    cluster.update_config(|config| config.with("pitr.enabled", "true")).await?;
    let interval = cluster.config().await?.1.pitr.upload_interval_sec;
    let capture = Capture::start(bench, &cluster).await?;

    say(&format!("{} updates with an agent", bench.updates));
    let begun = now(&bench.source.client).await?;
    let captured = write(bench, PARTS, &capture.commits).await?;
    let Captured { time, expected, agent, lag } = capture.end(bench).await?;
    let log_bytes = bench.hindsight.stored_bytes("/log/")?;
    let level = cluster.config().await?.1.pitr.compression_level;
    let mut at_once = Rounds::default();
    for _ in 0..bench.rounds {
        at_once.push(tail(bench, begun, level).await?);
    }
    say("updates while the log is read and compressed");
    let tailing = Tail::start(bench.source.uri(), now(&bench.source.client).await?, level);
    let followed = write(bench, PARTS / 2, &Commits::default()).await?;
    tailing.stop().await?;
    free.extend(write_freely(bench).await?);

    let [mut without, mut with, mut folded] = [(); 3].map(|()| Rounds::default());
    let mut peak = 0;
    for round in 0..bench.rounds {
        say(&format!("restore without and with the log: round {} of {}", round + 1, bench.rounds));
        bench.target.clear().await?;
        without.push(bench.hindsight.run(&bench.target, &["restore", &snapshot, "--yes"]).await?.spent);
        bench.target.clear().await?;
        let ended = bench.hindsight.run(&bench.target, &["restore", "--time", &time, "--yes"]).await?;
        with.push(ended.spent);
        peak = peak.max(ended.peak);
        let found = bench.target.fingerprint(&bench.data).await?;
        ensure!(found == expected, "documents and sum of versions are {found:?} instead of {expected:?}");
        // All of the log is folded, whatever is wanted of its effects.
        folded.push(
            bench.hindsight.run(&bench.target, &["restore", "--time", &time, "--ns", "none.*", "--yes"]).await?.spent,
        );
    }
    let whole = touch_all(bench, &cluster, &snapshot).await?;
    let SideBySide { agent: beside, tail } = side_by_side(bench, &cluster, level).await?;

    let updated = updated(bench);
    let part = (bench.updates / PARTS) as f64;
    let (slow, fast) = (part / captured.median_wall(), part / free.median_wall());
    let million = bench.updates as f64 / 1e6;
    let table = &mut bench.table;
    let note = format!("{} connections, median of {PARTS} parts; {}", cores(), free.others());
    table.add("updates without an agent", fast, "1/s", note);
    table.add("updates without an agent: server", free.server() / part * 1e6, "core-s/million", "best part");
    let note = format!("median of {PARTS} parts; {}", captured.others());
    table.add("updates with an agent", slow, "1/s", note);
    table.add("updates with an agent: server", captured.server() / part * 1e6, "core-s/million", "best part");
    table.add("RATIO updates with / without an agent", slow / fast, "x", "1 is no slowdown");
    let note = "the same processor shared with reading and compressing alone";
    table.add("RATIO updates with raw read and zstd / without", part / followed.median_wall() / fast, "x", note);
    let note = format!("from commit to durable in the repository, stored every {interval} s or 16 MiB");
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        table.add(format!("capture lag under full load, {name}"), quantile(&lag, share), "s", note.as_str());
    }
    table.add("agent: processor", agent.spent.client / million, "core-s/million", "of updates");
    let note = format!("both at once follow the same {} updates: {beside:.2} and {tail:.2} core-s", bench.updates / 2);
    table.add("RATIO agent / raw read and zstd of the log", beside / tail, "x", note);
    let note = format!("to read the same entries at once and compress them: {:.2} core-s", at_once.client());
    table.add("RATIO agent / raw read at once and zstd", agent.spent.client / at_once.client(), "x", note);
    table.add("agent: peak memory", mib(agent.peak), "MiB", "resident");
    table.add("log: stored", mib(log_bytes), "MiB", format!("{} updates of {updated} documents", bench.updates));
    table.add("restore without the log", without.wall(), "s", without.note());
    table.add("restore with the log", with.wall(), "s", with.note());
    let note = format!("without the log {:.2}", without.client());
    table.add("restore with the log: client", with.client(), "core-s", note);
    table.add("restore with the log: peak memory", mib(peak), "MiB", "resident, highest of all rounds");
    table.add("RATIO restore with / without the log", with.wall() / without.wall(), "x", "");
    let note = "a restore of no namespace, with all that it does besides; 1 core-second folds so many";
    table.add("operations folded", bench.updates as f64 / folded.client(), "1/core-s", note);
    table.add("restore with a log that touches every document", whole.spent.wall(), "s", whole.spent.note());
    let note = format!("{} records; local disk takes what is beyond the budget", whole.records);
    table.add("restore with a log that touches every document: client", whole.spent.client(), "core-s", note);
    let note = "resident, highest of all rounds";
    table.add("restore with a log that touches every document: peak memory", mib(whole.peak), "MiB", note);
    table.add(
        "RATIO restore with every document touched / without the log",
        whole.spent.wall() / without.wall(),
        "x",
        "",
    );
    Ok(())
}

/// An agent at work, and how soon what is committed is durable.
struct Capture {
    agent: Running,
    commits: Arc<Commits>,
    probing: JoinHandle<Result<()>>,
}

/// What was captured.
struct Captured {
    /// The restore point that has all of it.
    time: String,
    /// Documents and sum of versions there.
    expected: (u64, i64),
    agent: Ended,
    /// Seconds from commit to durable, ascending.
    lag: Vec<f64>,
}

impl Capture {
    async fn start(bench: &Bench, cluster: &ClusterRepository) -> Result<Self> {
        let agent = bench.hindsight.start(&bench.source, &["agent"])?;
        wait("the agent", || async {
            let lease = cluster.lease_state(CAPTURE_LEASE).await?;
            Ok(lease.is_some_and(|lease| cluster.lease_is_live(CAPTURE_LEASE, &lease)))
        })
        .await?;
        let commits = Arc::new(Commits::default());
        let probing = tokio::spawn(probe(cluster.clone(), commits.clone()));
        Ok(Self { agent, commits, probing })
    }

    /// When all that was written until now is durable.
    async fn caught_up(&self, bench: &Bench) -> Result<()> {
        let mark = doc! {"insert": "marks", "documents": [{}]};
        self.commits.note(&bench.source.client.database("junk").run_command(mark).await?)?;
        wait("the end of the log", || async { Ok(self.commits.waiting() == 0) }).await
    }

    /// When all is durable.
    async fn end(self, bench: &Bench) -> Result<Captured> {
        let time = end_of_second().await?;
        // Which says that the log has come so far.
        self.caught_up(bench).await?;
        let expected = bench.source.fingerprint(&bench.data).await?;
        let lag = self.commits.lags();
        Ok(Captured { time, expected, agent: self.stop().await?, lag })
    }

    /// Whatever is durable.
    async fn stop(self) -> Result<Ended> {
        self.probing.abort();
        self.agent.stop().await
    }
}

/// Processor seconds of an agent, and of reading and compressing the same log in the same moments: what else the machine does
/// meanwhile weighs on both.
struct SideBySide {
    agent: f64,
    tail: f64,
}

async fn side_by_side(bench: &Bench, cluster: &ClusterRepository, level: i32) -> Result<SideBySide> {
    say("updates with an agent beside who reads and compresses the log");
    let capture = Capture::start(bench, cluster).await?;
    // What was written since the last agent is none of it.
    capture.caught_up(bench).await?;
    let before = capture.agent.cpu()?;
    let tailing = Tail::start(bench.source.uri(), now(&bench.source.client).await?, level);
    write(bench, PARTS / 2, &capture.commits).await?;
    capture.caught_up(bench).await?;
    let spent = SideBySide { agent: capture.agent.cpu()? - before, tail: tailing.stop().await? };
    capture.stop().await?;
    Ok(spent)
}

/// Restores with a log that touches every document.
struct Whole {
    spent: Rounds,
    records: u64,
    peak: u64,
}

/// Touches every document once, with an agent, and restores to that: what is known of them is more than fits in memory.
async fn touch_all(bench: &mut Bench, cluster: &ClusterRepository, snapshot: &str) -> Result<Whole> {
    say("an update of every document, with an agent");
    let capture = Capture::start(bench, cluster).await?;
    let mut records = 0;
    for collection in &bench.data.collections {
        let all = doc! {"q": {}, "u": {"$set": {"touched": DateTime::now()}}, "multi": true};
        let command = doc! {"update": collection.name, "updates": [all], "writeConcern": {"w": 1}};
        let reply = bench.source.client.database(DATABASE).run_command(command).await?;
        records += u64::try_from(reply.get_i32("nModified")?)?;
    }
    let Captured { time, expected, .. } = capture.end(bench).await?;
    let (mut spent, mut peak) = (Rounds::default(), 0);
    for round in 0..bench.rounds {
        say(&format!("restore with every document touched: round {} of {}", round + 1, bench.rounds));
        bench.target.clear().await?;
        let arguments = ["restore", "--time", &time, "--base-snapshot", snapshot, "--yes"];
        let ended = bench.hindsight.run(&bench.target, &arguments).await?;
        spent.push(ended.spent);
        peak = peak.max(ended.peak);
        let found = bench.target.fingerprint(&bench.data).await?;
        ensure!(found == expected, "documents and sum of versions are {found:?} instead of {expected:?}");
    }
    Ok(Whole { spent, records, peak })
}

/// The last moment in the server's log.
async fn now(client: &Client) -> Result<bson::Timestamp> {
    Ok(client.database("admin").run_command(doc! {"ping": 1}).await?.get_timestamp("operationTime")?)
}

/// Reads the server's log from a moment on in raw batches, and compresses them in frames.
async fn tail(bench: &Bench, from: bson::Timestamp, level: i32) -> Result<Spent> {
    let mut compressor = compressor(level)?;
    let oplog = bench.source.client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let meter = Meter::start(&[bench.source.pid()])?;
    let mut batches = oplog.find(doc! {"ts": {"$gte": from}}).batch().await?;
    while let Some(batch) = batches.next().await {
        for frame in batch?.doc_slices()?.as_bytes().chunks(4 << 20) {
            compressor.compress(frame)?;
        }
    }
    meter.stop()
}

fn updated(bench: &Bench) -> u64 {
    let orders = bench.data.collections.iter().find(|collection| collection.name == ORDERS);
    orders.map_or(0, |orders| orders.documents()).clamp(1, UPDATED)
}

/// What was committed, and how long it took to become durable.
#[derive(Debug, Default)]
pub(super) struct Commits {
    waiting: Mutex<Vec<(String, Instant)>>,
    lags: Mutex<Vec<f64>>,
}

impl Commits {
    /// Notes that what the server says was done by this reply is committed now.
    fn note(&self, reply: &Document) -> Result<()> {
        let bson::Timestamp { time, increment } = reply.get_timestamp("operationTime")?;
        // As positions of MongoDB's log are written in slice names.
        self.push(format!("{time:010}.{increment:010}"));
        Ok(())
    }

    /// Notes that what is up to this position is committed now.
    pub(super) fn push(&self, order: String) {
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.push((order, Instant::now()));
        }
    }

    /// Notes that everything up to a position is durable now.
    fn durable(&self, until: &str) {
        let now = Instant::now();
        if let (Ok(mut waiting), Ok(mut lags)) = (self.waiting.lock(), self.lags.lock()) {
            waiting.retain(|(order, committed)| {
                let done = order.as_str() <= until;
                if done {
                    lags.push((now - *committed).as_secs_f64());
                }
                !done
            });
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.lock().map_or(0, |waiting| waiting.len())
    }

    /// Seconds from commit to durable, ascending.
    pub(super) fn lags(&self) -> Vec<f64> {
        let mut lags = self.lags.lock().map(|lags| lags.clone()).unwrap_or_default();
        lags.sort_by(f64::total_cmp);
        lags
    }
}

pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Carries out some of the parts of the updates, over as many connections as there are cores.
async fn write(bench: &Bench, parts: u64, commits: &Commits) -> Result<Rounds> {
    let (documents, updates) = (updated(bench), bench.updates / PARTS);
    let mut rounds = Rounds::default();
    for part in 0..parts {
        let left = AtomicU64::new(updates);
        let meter = Meter::start(&[bench.source.pid()])?;
        let writer = async |number: u64| {
            let mut random = StdRng::seed_from_u64(part << 32 | number);
            while let Ok(before) = left.fetch_update(Relaxed, Relaxed, |n| (n > 0).then(|| n.saturating_sub(COMMAND))) {
                let reply = update(&bench.source.client, before.min(COMMAND), documents, &mut random).await?;
                commits.note(&reply)?;
            }
            Ok::<_, anyhow::Error>(())
        };
        futures::future::try_join_all((0..cores() as u64).map(writer)).await?;
        rounds.push(meter.stop()?);
    }
    Ok(rounds)
}

/// Updates some documents picked at random, with values that nobody could foresee.
async fn update(client: &Client, count: u64, documents: u64, random: &mut StdRng) -> Result<Document> {
    let now = DateTime::now();
    let one = |_| {
        let (order, signature): (u64, [u64; 4]) = (random.random_range(0..documents), random.random());
        let signature: String = signature.iter().map(|part| format!("{part:016x}")).collect();
        let set = doc! {"updatedAt": now, "signature": signature, "items.0.quantity": random.random_range(1..9_i32)};
        doc! {"q": {"_id": order_id(order)}, "u": {"$inc": {"version": 1_i64}, "$set": set}}
    };
    let updates: Vec<Document> = (0..count).map(one).collect();
    let command = doc! {"update": ORDERS, "updates": updates, "ordered": false, "writeConcern": {"w": 1}};
    let reply = client.database(DATABASE).run_command(command).await?;
    ensure!(reply.get_i32("nModified")? == count as i32, "an update failed: {reply}");
    Ok(reply)
}

/// Lets the second pass in which the last update was made; gives the next one, up to which (and no
/// further) a restore then has all updates.
async fn end_of_second() -> Result<String> {
    let second = Timestamp::now().as_second() + 1;
    let time = Timestamp::from_second(second)?;
    while Timestamp::now() < time {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Past the second that is named, also for a server whose clock counts operations.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    Ok(hindsight_format::format_time(time))
}

/// Looks at the repository, as anyone would who lists it, until aborted.
pub(super) async fn probe(cluster: ClusterRepository, commits: Arc<Commits>) -> Result<()> {
    loop {
        let slices = cluster.slices().await?;
        if let Some(end) = slices.iter().map(|slice| slice.name.end.position.order()).max() {
            commits.durable(end);
        }
        tokio::time::sleep(PROBE).await;
    }
}

pub(super) async fn wait<F: Future<Output = Result<bool>>>(what: &str, is_there: impl Fn() -> F) -> Result<()> {
    let begun = Instant::now();
    while !is_there().await.with_context(|| format!("waiting for {what}"))? {
        if begun.elapsed() > PATIENCE {
            bail!("{what} did not come within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(PROBE).await;
    }
    Ok(())
}
