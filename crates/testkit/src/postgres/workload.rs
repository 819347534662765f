//! A random workload of everything that recovers badly, which stops now and then for the oracle to look.
//!
//! Workers write rows small and large, change and drop tables, indexes, types, roles and databases, leave transactions
//! prepared, move data between tablespaces, and abort much of it. All of it happens in two databases and under a few
//! names, so that it collides. Each worker draws from its own seeded random numbers. `pgbench` may run beside them.

mod bench;
mod statements;
mod unusual;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::time::sleep;

use self::bench::{Bench, Frozen};
use self::statements::{KINDS, Worker};
use super::Postgres;
use super::session::Session;

/// How long the servers may take for what is to be quick, and a worker to find a server that was started again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The databases that are worked on.
const DATABASES: [&str; 2] = ["work", "play"];

/// What a [`PgWorkload`] does.
#[derive(Clone, Debug)]
pub struct PgWorkloadOptions {
    /// Workers, each with a connection; 3 by default.
    pub workers: usize,
    /// Pause of each worker after each script; 5 ms by default.
    pub pause: Duration,
    /// Whether there are tablespaces, which need folders of their own in a restored copy; off by default.
    pub tablespaces: bool,
    /// Goes on when the server ends and is started again; off by default.
    pub restarts: bool,
    /// Transactions per second of `pgbench` in a database of its own, 0 for none; none by default.
    pub bench: u32,
}

impl Default for PgWorkloadOptions {
    fn default() -> Self {
        Self { workers: 3, pause: Duration::from_millis(5), tablespaces: false, restarts: false, bench: 0 }
    }
}

/// How scripts of one kind ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PgCounts {
    /// Without any error.
    pub done: u64,
    /// With errors that are legitimate here, by their code.
    pub errors: BTreeMap<String, u64>,
}

/// A running workload. It ends with [`PgWorkload::stop`]; when it is dropped its workers end after what they are doing.
#[derive(Debug)]
pub struct PgWorkload {
    server: Arc<Postgres>,
    seed: u64,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    bench: Option<Arc<Bench>>,
}

/// What the workers share.
#[derive(Debug)]
struct Shared {
    options: PgWorkloadOptions,
    /// Workers read-lock it for each script, pauses write-lock it. It is fair.
    gate: Arc<RwLock<()>>,
    stopping: AtomicBool,
    scripts: AtomicU64,
    stats: Mutex<BTreeMap<&'static str, PgCounts>>,
    failure: Mutex<Option<anyhow::Error>>,
}

impl PgWorkload {
    /// Makes the databases, and starts the workers. The server needs `max_prepared_transactions`.
    ///
    /// # Errors
    /// Those of `psql`.
    pub async fn start(server: Arc<Postgres>, seed: u64, options: PgWorkloadOptions) -> Result<Self> {
        let mut folders = Vec::new();
        if options.tablespaces {
            for name in ["space_a", "space_b"] {
                let folder: PathBuf = server.new_folder(name)?;
                server.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", folder.display())).await?;
                folders.push(name);
            }
        }
        for database in DATABASES {
            server.sql(&format!("CREATE DATABASE {database}")).await?;
        }
        let stats = KINDS.iter().filter(|kind| kind.is_possible(&folders)).map(|kind| (kind.name, PgCounts::default()));
        let shared = Arc::new(Shared {
            options,
            gate: Arc::default(),
            stopping: AtomicBool::new(false),
            scripts: AtomicU64::new(0),
            stats: Mutex::new(stats.collect()),
            failure: Mutex::default(),
        });
        let mut workers = Vec::new();
        for number in 0..shared.options.workers {
            let database = DATABASES.get(number % DATABASES.len()).copied().unwrap_or_default();
            let rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
            let worker = Worker { number, database, rng, spaces: folders.clone(), prepared: Vec::new(), made: 0 };
            let (server, shared) = (Arc::clone(&server), Arc::clone(&shared));
            let first = Session::open(server.program_in("psql", database))?;
            workers.push(std::thread::spawn(move || {
                if let Err(error) = work(worker, first, &server, &shared) {
                    shared.failure().get_or_insert(error.context(format!("worker {number}")));
                    shared.stopping.store(true, Ordering::Relaxed);
                }
            }));
        }
        let mut bench = None;
        if shared.options.bench > 0 {
            let (started, watching) = Bench::start(Arc::clone(&server), seed, Arc::clone(&shared)).await?;
            workers.push(watching);
            bench = Some(started);
        }
        Ok(Self { server, seed, shared, workers, bench })
    }

    /// Waits until no script is under way and all that was written is flushed, and keeps it so while the value lives.
    /// Transactions may be prepared, and those of `pgbench` are left open. Autovacuum and checkpoints go on, which change nothing that can be seen.
    ///
    /// # Errors
    /// Those of `psql`; a worker has failed.
    pub async fn pause(&self) -> Result<PgPaused> {
        let gate = Arc::clone(&self.shared.gate).write_owned().await;
        if let Some(error) = &*self.shared.failure() {
            bail!("the workload with seed {} failed: {error:#}", self.seed);
        }
        let frozen = match &self.bench {
            Some(bench) => Some(Bench::freeze(bench).await?),
            None => None,
        };
        let lsn = self.server.sql("SELECT pg_current_wal_insert_lsn()").await?;
        let begun = Instant::now();
        while self.server.sql(&format!("SELECT pg_current_wal_flush_lsn() >= '{lsn}'")).await? != "t" {
            if begun.elapsed() > PATIENCE {
                bail!("{lsn} is not flushed");
            }
            sleep(Duration::from_millis(20)).await;
        }
        // Restores are to whole seconds: the next one, which the workload then waits for.
        let next = "(date_trunc('second', clock_timestamp()) + interval '1 second')";
        let time = self
            .server
            .sql(&format!(r#"SELECT to_char({next} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"#))
            .await?;
        // A transaction ends the second in the log: what others only begin, such as taking from a sequence, comes after it.
        self.server.sql(&format!("SELECT pg_sleep_until('{time}')")).await?;
        self.server.sql("SELECT pg_current_xact_id()").await?;
        Ok(PgPaused { lsn, time, _frozen: frozen, _gate: gate })
    }

    /// Scripts so far.
    pub fn scripts(&self) -> u64 {
        self.shared.scripts.load(Ordering::Relaxed)
    }

    /// Waits for so many scripts more, and that all workers are well.
    ///
    /// # Errors
    /// One has failed, or they need more than a minute.
    pub async fn goes_on_for(&self, scripts: u64) -> Result<()> {
        let (until, begun) = (self.scripts() + scripts, Instant::now());
        while self.scripts() < until {
            if let Some(error) = &*self.shared.failure() {
                bail!("the workload with seed {} failed: {error:#}", self.seed);
            }
            if begun.elapsed() > PATIENCE {
                bail!("the workload with seed {} makes no headway", self.seed);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// How scripts of each kind ended so far. Every kind has an entry from the start.
    pub fn stats(&self) -> BTreeMap<&'static str, PgCounts> {
        self.shared.stats().clone()
    }

    /// Ends the workers after what they are doing. Transactions that are prepared stay so.
    ///
    /// # Errors
    /// The first error that a worker met and that is not a legitimate one, with the seed.
    pub async fn stop(mut self) -> Result<BTreeMap<&'static str, PgCounts>> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let workers = std::mem::take(&mut self.workers);
        let joined = tokio::task::spawn_blocking(move || workers.into_iter().try_for_each(JoinHandle::join));
        joined.await?.map_err(|_| anyhow!("a worker panicked; seed {}", self.seed))?;
        match self.shared.failure().take() {
            Some(error) => Err(error.context(format!("the workload with seed {} failed", self.seed))),
            None => Ok(self.stats()),
        }
    }
}

impl Drop for PgWorkload {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }
}

/// A workload at rest; it goes on when this is dropped.
#[derive(Debug)]
pub struct PgPaused {
    /// The end of the log: all that was written is before it.
    pub lsn: String,
    /// A second by the server's clock, such as `2026-03-01T10:00:00Z`: all that was written is older, what will be is not.
    pub time: String,
    _frozen: Option<Frozen>,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl PgPaused {
    /// Lets the workload go on.
    pub fn resume(self) {}
}

impl Shared {
    fn stats(&self) -> MutexGuard<'_, BTreeMap<&'static str, PgCounts>> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> MutexGuard<'_, Option<anyhow::Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one worker does until the end.
fn work(mut worker: Worker, mut session: Session, server: &Postgres, shared: &Shared) -> Result<()> {
    let mut first = true;
    while !shared.stopping.load(Ordering::Relaxed) {
        let gate = shared.gate.blocking_read();
        let (name, script) = match first {
            true => ("create table", worker.foundation()),
            false => worker.script(),
        };
        first = false;
        match session.run(&script) {
            Ok(codes) => {
                if let Some(code) = codes.iter().find(|code| !statements::is_legitimate(code)) {
                    bail!("error {code} of:\n{script}");
                }
                worker.learn(name, codes.is_empty());
                let mut stats = shared.stats();
                let counts = stats.entry(name).or_default();
                counts.done += u64::from(codes.is_empty());
                codes.into_iter().for_each(|code| *counts.errors.entry(code).or_default() += 1);
            }
            Err(error) if shared.options.restarts => {
                drop(gate);
                session = again(worker.database, server, shared).context(error)?;
                continue;
            }
            Err(error) => return Err(error.context(script)),
        }
        shared.scripts.fetch_add(1, Ordering::Relaxed);
        drop(gate);
        std::thread::sleep(shared.options.pause);
    }
    Ok(())
}

/// A session on a server that is about to be there again.
fn again(database: &str, server: &Postgres, shared: &Shared) -> Result<Session> {
    let begun = Instant::now();
    loop {
        match Session::open(server.program_in("psql", database)) {
            Ok(session) => return Ok(session),
            Err(error) if begun.elapsed() > PATIENCE || shared.stopping.load(Ordering::Relaxed) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
