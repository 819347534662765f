//! A random workload of everything that breaks backup tools, which stops now and then for the oracle to look.
//!
//! Workers insert, update and delete documents of all types, sizes and shapes; they create, rename, convert and drop
//! collections of every kind; they build indexes, change users and roles, and leave transactions open. All of it happens
//! in a few databases and under a few names, so that it collides.
//!
//! Every worker draws from its own seeded random numbers: with the same seed it tries the same things, as far as its
//! choices don't depend on what servers answer.

mod collections;
mod errors;
mod indexes;
mod inserts;
mod kinds;
mod names;
mod pins;
mod stats;
mod table;
mod transactions;
mod trim;
mod updates;
mod users;
mod values;
mod worker;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use bson::{Bson, Document, doc};
use futures::TryStreamExt as _;
use mongodb::Client;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::names::Namespace;
use self::pins::Pins;
use self::worker::Worker;
use crate::last_optime;

pub use self::stats::{Counts, Stats};

/// How long a pause waits for the servers to be quiet.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a [`Workload`] does.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// Workers, each with one operation at a time and up to two open transactions; 4 by default.
    pub workers: usize,
    /// Operations per second of all workers together; as many as possible by default.
    pub rate: Option<u32>,
    /// Data beyond this is dropped or deleted, in bytes as the server counts them (`dataSize`); 40 MiB by default.
    pub max_bytes: u64,
    /// Documents up to 16 MiB; on by default.
    pub huge_documents: bool,
    /// Transactions of more than 16 MiB, which take several oplog entries; on by default.
    pub big_transactions: bool,
    /// Transactions that are prepared before their end, and `emptycapped`: both need servers that were started with
    /// `--setParameter enableTestCommands=1`. Off by default.
    pub test_commands: bool,
    /// Goes on when members step down or end; transactions that were open then count as open until their next step. Off
    /// by default.
    pub failovers: bool,
}

impl Default for WorkloadOptions {
    fn default() -> Self {
        Self {
            workers: 4,
            rate: None,
            max_bytes: 40 << 20,
            huge_documents: true,
            big_transactions: true,
            test_commands: false,
            failovers: false,
        }
    }
}

/// A running workload. It ends with [`Workload::stop`]; when it is dropped its workers end after what they are doing.
#[derive(Debug)]
pub struct Workload {
    client: Client,
    seed: u64,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What the workers share.
#[derive(Debug)]
struct Shared {
    options: WorkloadOptions,
    /// Major and minor version of the servers.
    version: (u32, u32),
    /// Workers read-lock it for each operation, pauses write-lock it. It is fair: a pause waits for the operations under
    /// way, and later ones wait for the pause.
    gate: Arc<RwLock<()>>,
    pins: Pins,
    /// Who may insert into a namespace: one at a time (see `worker::may_insert`).
    inserts: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    stopping: AtomicBool,
    /// Open transactions are to end and none to begin.
    settling: AtomicBool,
    /// Open transactions.
    open: watch::Sender<u64>,
    /// Whether one of them is a big one: they are done one after the other, as they fill the server's cache.
    big: AtomicBool,
    pauses: AtomicU64,
    /// Bytes written since the data was last measured.
    written: AtomicU64,
    stats: Mutex<Stats>,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Workload {
    /// Starts the workers.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn start(client: Client, seed: u64, options: WorkloadOptions) -> Result<Self> {
        let info = client.database("admin").run_command(doc! {"buildInfo": 1}).await?;
        let mut version = info.get_str("version")?.split('.').map(str::parse);
        let mut next = || version.next().context("the version has too few parts")?.map_err(anyhow::Error::from);
        let shared = Arc::new(Shared {
            options,
            version: (next()?, next()?),
            gate: Arc::default(),
            pins: Pins::default(),
            inserts: Mutex::default(),
            stopping: AtomicBool::new(false),
            settling: AtomicBool::new(false),
            open: watch::Sender::new(0),
            big: AtomicBool::new(false),
            pauses: AtomicU64::new(0),
            written: AtomicU64::new(0),
            stats: Mutex::default(),
            failure: Mutex::default(),
        });
        shared.stats().kinds = worker::no_counts(&shared);
        let mut workers = Vec::new();
        for number in 0..shared.options.workers {
            let worker = Worker::new(client.clone(), seed, number, Arc::clone(&shared)).await?;
            workers.push(tokio::spawn({
                let shared = Arc::clone(&shared);
                async move {
                    if let Err(error) = worker.work().await {
                        shared.fail(error.context(format!("worker {number}")));
                    }
                }
            }));
        }
        Ok(Self { client, seed, shared, workers })
    }

    /// Waits until no operation is under way and everything written is majority committed, and keeps it so while the
    /// value lives.
    ///
    /// Transactions may stay open, and their changes are no part of the state. As long as one is open in a database of a
    /// primary, `dbHash` there waits for its end, and so does [`ClusterState::read`](crate::ClusterState::read), in vain
    /// (4.4 to 6.0, tried): read the state from a secondary, which has no locks of it, or use
    /// [`Workload::pause_settled`].
    ///
    /// # Errors
    /// Those of the driver; servers that don't come to rest within a minute.
    pub async fn pause(&self) -> Result<Paused> {
        let gate = Arc::clone(&self.shared.gate).write_owned().await;
        let begun = Instant::now();
        let optime = loop {
            match self.rest().await {
                Ok(Some(optime)) => break optime,
                Ok(None) if begun.elapsed() < PATIENCE => {}
                Ok(None) => bail!("seed {}: index builds go on, or there is no primary, for {PATIENCE:?}", self.seed),
                Err(_) if self.shared.options.failovers && begun.elapsed() < PATIENCE => {}
                Err(error) => return Err(error.context(format!("seed {}", self.seed))),
            }
            sleep(Duration::from_millis(20)).await;
        };
        let open_transactions = *self.shared.open.borrow();
        let pauses = self.shared.pauses.fetch_add(1, Ordering::Relaxed) + 1;
        let mut stats = self.shared.stats();
        stats.pauses = pauses;
        stats.held_transactions += open_transactions;
        drop(stats);
        Ok(Paused { optime, open_transactions, _gate: gate })
    }

    /// The same with all transactions committed or aborted before.
    ///
    /// # Errors
    /// See [`Workload::pause`].
    pub async fn pause_settled(&self) -> Result<Paused> {
        self.shared.settling.store(true, Ordering::Relaxed);
        let mut open = self.shared.open.subscribe();
        let paused = loop {
            // Workers that have failed don't end their transactions.
            let settled = open.wait_for(|open| *open == 0 || self.has_failed());
            if tokio::time::timeout(PATIENCE, settled).await.is_err() {
                bail!("seed {}: transactions don't end. Under way: {}", self.seed, self.under_way().await);
            }
            let paused = self.pause().await?;
            if paused.open_transactions == 0 || self.has_failed() {
                break paused;
            }
        };
        self.shared.settling.store(false, Ordering::Relaxed);
        Ok(paused)
    }

    /// Whether a worker met an error that must not be. [`Workload::stop`] tells it.
    pub fn has_failed(&self) -> bool {
        self.shared.failure().is_some()
    }

    /// What was done so far. Every kind of operation that these servers and options allow has an entry from the start.
    pub fn stats(&self) -> Stats {
        self.shared.stats().clone()
    }

    /// Ends the workers after their last operation, aborts open transactions, and tells what was done.
    ///
    /// # Errors
    /// The first error that a worker met and that is not a legitimate one, with the seed.
    pub async fn stop(mut self) -> Result<Stats> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.await.with_context(|| format!("seed {}", self.seed))?;
        }
        match self.shared.failure().take() {
            Some(error) => Err(error.context(format!("the workload with seed {} failed", self.seed))),
            None => Ok(self.stats()),
        }
    }

    /// What the server does, for errors.
    async fn under_way(&self) -> String {
        let current = doc! {"$currentOp": {"allUsers": true, "idleConnections": false, "idleSessions": true}};
        let fields =
            ["desc", "op", "ns", "secs_running", "waitingForLock", "msg", "lsid.id", "transaction.parameters", "locks"];
        let fields =
            doc! {"$project": fields.iter().map(|field| ((*field).to_owned(), Bson::Int32(1))).collect::<Document>()};
        let ops =
            async { self.client.database("admin").aggregate([current, fields]).await?.try_collect::<Vec<_>>().await };
        match ops.await {
            Ok(ops) => ops.iter().map(|op| format!("\n{op}")).collect(),
            Err(error) => error.to_string(),
        }
    }

    /// The optime, majority committed, unless an index build goes on by itself, as they do when their primary steps down, or
    /// the driver has not heard yet who is primary.
    async fn rest(&self) -> Result<Option<(u32, u32, i64)>> {
        let admin = self.client.database("admin");
        if !admin.run_command(doc! {"hello": 1}).await?.get_bool("isWritablePrimary")? {
            return Ok(None);
        }
        let builds = doc! {"$match": {"desc": {"$regex": "^IndexBuildsCoordinator"}}};
        let current = doc! {"$currentOp": {"allUsers": true, "idleConnections": false}};
        let ops: Vec<_> = admin.aggregate([current, builds]).await?.try_collect().await?;
        let optime = last_optime(&self.client).await?;
        Ok(ops.is_empty().then_some(optime))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }
}

/// A workload at rest; it goes on when this is dropped.
#[derive(Debug)]
pub struct Paused {
    /// The last optime, majority committed: seconds, increment and election term. All that was written before has come
    /// to pass by then, and until the workload goes on servers only write no-ops.
    pub optime: (u32, u32, i64),
    /// Transactions with changes that are not committed.
    pub open_transactions: u64,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Paused {
    /// Lets the workload go on.
    pub fn resume(self) {}
}

impl Shared {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> MutexGuard<'_, Option<anyhow::Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to insert into a namespace.
    fn inserts(&self, namespace: &Namespace) -> Arc<tokio::sync::Mutex<()>> {
        let mut inserts = self.inserts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(inserts.entry(namespace.to_string()).or_default())
    }

    /// Keeps the first error and ends all workers.
    fn fail(&self, error: anyhow::Error) {
        self.failure().get_or_insert(anyhow!(error));
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes those who wait for transactions to end.
        self.open.send_modify(|_| {});
    }

    fn too_much_written(&self) -> bool {
        self.written.load(Ordering::Relaxed) > self.options.max_bytes / 4
    }
}
