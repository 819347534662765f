//! `pgbench` beside the workers.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::super::{Postgres, spawner};
use super::{PATIENCE, Shared};

/// Its database.
const DATABASE: &str = "bench";

/// `pgbench`, which is started again when its server was.
#[derive(Debug)]
pub(super) struct Bench {
    server: Arc<Postgres>,
    seed: u64,
    rate: u32,
    child: Mutex<Option<Child>>,
}

impl Bench {
    /// Makes the database, and starts `pgbench` and who watches over it.
    pub(super) async fn start(
        server: Arc<Postgres>,
        seed: u64,
        shared: Arc<Shared>,
    ) -> Result<(Arc<Self>, JoinHandle<()>)> {
        server.sql(&format!("CREATE DATABASE {DATABASE}")).await?;
        server.pgbench(&["--initialize", "--quiet", "--foreign-keys", DATABASE]).await?;
        let bench = Arc::new(Self { server, seed, rate: shared.options.bench, child: Mutex::default() });
        bench.spawn()?;
        let watched = Arc::clone(&bench);
        let watching = std::thread::spawn(move || {
            if let Err(error) = watched.watch(&shared) {
                shared.failure().get_or_insert(error);
                shared.stopping.store(true, Ordering::Relaxed);
            }
            watched.end();
        });
        Ok((bench, watching))
    }

    fn spawn(&self) -> Result<()> {
        let mut command = self.server.tied_program("pgbench");
        command.args(["--no-vacuum", "--client=3", "--time=1000000", "--builtin=tpcb-like", "--builtin=simple-update"]);
        command.arg(format!("--rate={}", self.rate)).arg(format!("--random-seed={}", self.seed)).arg(DATABASE);
        let said = File::options().create(true).append(true).open(self.log())?;
        command.stdout(Stdio::null()).stderr(said);
        *self.child() = Some(spawner::spawn(command)?);
        Ok(())
    }

    fn log(&self) -> std::path::PathBuf {
        self.server.socket_folder().join("pgbench.log")
    }

    fn watch(&self, shared: &Shared) -> Result<()> {
        let mut ended: Option<Instant> = None;
        while !shared.stopping.load(Ordering::Relaxed) {
            // Not while there is a pause.
            let gate = shared.gate.blocking_read();
            if self.runs() {
                ended = None;
            } else {
                let since = *ended.get_or_insert_with(Instant::now);
                if !shared.options.restarts || since.elapsed() > PATIENCE {
                    bail!("pgbench ended:\n{}", fs::read_to_string(self.log()).unwrap_or_default());
                }
                self.spawn()?;
            }
            drop(gate);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Lets it stand still where it is, and waits until its sessions have done what they were told.
    pub(super) async fn freeze(bench: &Arc<Self>) -> Result<Frozen> {
        let frozen = Frozen(Arc::clone(bench));
        bench.signal(Signal::STOP);
        // Who waits for another that is held up in a transaction does nothing, and comes to no end.
        let busy = format!(
            "SELECT count(*) FROM pg_stat_activity AS busy WHERE datname = '{DATABASE}' AND state = 'active' AND NOT EXISTS \
             (SELECT FROM pg_stat_activity AS holder WHERE holder.datname = busy.datname \
             AND holder.backend_type = 'client backend' AND holder.pid = ANY (pg_blocking_pids(busy.pid)))"
        );
        let (begun, mut seen) = (Instant::now(), 0);
        // What was sent last may not have been begun when it is looked for the first time.
        while seen < 3 {
            seen = if bench.stands() && bench.server.sql(&busy).await? == "0" { seen + 1 } else { 0 };
            if begun.elapsed() > PATIENCE {
                bail!("the sessions of pgbench come to no end");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(frozen)
    }

    fn runs(&self) -> bool {
        self.child().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Whether it is stopped, or not there.
    fn stands(&self) -> bool {
        if !self.runs() {
            return true;
        }
        let id = self.child().as_ref().map_or(0, Child::id);
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    fn signal(&self, signal: Signal) {
        let mut child = self.child();
        let Some(child) = child.as_mut() else { return };
        // The number of one that was waited for may be another's.
        if matches!(child.try_wait(), Ok(None)) {
            // The only failure is one that has just ended.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    fn end(&self) {
        if let Some(mut child) = self.child().take() {
            // The only failure of these is a child that is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end();
    }
}

/// `pgbench` that stands still; it goes on when this is dropped.
#[derive(Debug)]
pub(super) struct Frozen(Arc<Bench>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}
