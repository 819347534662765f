//! A server's process.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hindsight_engine::{EngineError, FailureKind, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::{oneshot, watch};

use super::{Folder, PRIVATE, Private, Programs, local};
use crate::address::Address;
use crate::wire::{Connection, Replication};

/// The port in the name of its socket.
const PORT: u16 = 5432;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to write all that it has in memory.
const TO_STOP: Duration = Duration::from_secs(600);
/// How much of its log is looked at for what went wrong.
const LOG_END: u64 = 16 << 10;

/// A server that runs in a data directory, on a socket in the private folder alone. It ends when this is dropped, and, where
/// util-linux can see to it, when this process ends.
#[derive(Debug)]
pub(crate) struct Server {
    running: Running,
    number: Pid,
    ended: watch::Receiver<bool>,
    data: Folder,
    log: File,
    log_path: PathBuf,
    address: Address,
}

impl Server {
    /// Starts one with these settings, and none of those in its directory but of `postgresql.auto.conf`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) async fn start(programs: &Programs, private: &Private, settings: &str) -> Result<Self> {
        let own = private.own();
        own.write("postgresql.conf", settings.as_bytes())?;
        own.write("pg_hba.conf", b"local all all trust\n")?;
        own.write("pg_ident.conf", b"")?;
        let (log, log_path) = (own.create("log")?, own.path().join("log"));
        let mut command = private.owner().tied_command(&programs.program("postgres"));
        // Paths of any length and of any characters: all others are relative to here.
        command
            .current_dir(private.directory())
            .args(["-D", ".", "-c"])
            .arg(format!("config_file={PRIVATE}/postgresql.conf"));
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
        let (tell, ended) = watch::channel(false);
        let running = Running(Arc::default());
        let held = running.0.clone();
        // Dropped before the other, so that either of them sees to it where this is given up meanwhile.
        let (started, starting) = oneshot::channel();
        // The kernel ties a child to the thread that started it: this one stays for as long as the child does.
        std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || watch_over(command, started, &held, &tell))?;
        let gone = |_| EngineError::new(FailureKind::Local, "the thread that starts the server ended");
        let started = starting.await.map_err(gone)?;
        let number = started.map_err(|error| local(&programs.program("postgres"), &error))?;
        let address = Address::at_socket(private.sockets(), PORT);
        Ok(Self { running, number, ended, data: private.data().clone(), log, log_path, address })
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    /// It ended, with what it said last.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        loop {
            if *self.ended.borrow() {
                return Err(self.failed("ended"));
            }
            if self.status().as_deref() == Some("ready") {
                return Ok(());
            }
            // An error is that of the thread that is gone, and so is the server.
            let _ = tokio::time::timeout(LOOK, self.ended.wait_for(|ended| *ended)).await;
        }
    }

    /// What it says of itself (`LOCK_FILE_LINE_PM_STATUS` in miscadmin.h).
    fn status(&self) -> Option<String> {
        let bytes = self.data.read("postmaster.pid").ok()??;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        // The file of another one may have been left behind.
        let own = lines.next()?.trim().parse() == Ok(self.number.as_raw_nonzero().get());
        own.then(|| Some(lines.nth(6)?.trim().to_owned()))?
    }

    /// A session with it.
    ///
    /// # Errors
    /// Those of connecting.
    pub(crate) async fn connect(&self, user: &str, database: &str) -> crate::wire::Result<Connection> {
        Connection::connect(&self.address.with_user(user).with_database(database), Replication::No).await
    }

    /// How programs of PostgreSQL find it that we start.
    pub(crate) fn environment(&self, user: &str) -> [(&'static str, String); 3] {
        let folder = format!("/proc/{}/cwd/{PRIVATE}", self.number.as_raw_nonzero());
        [("PGHOST", folder), ("PGPORT", PORT.to_string()), ("PGUSER", user.to_owned())]
    }

    /// Ends it cleanly.
    ///
    /// # Errors
    /// It does not end, or not cleanly.
    pub(crate) async fn stop(mut self) -> Result<()> {
        signal(&self.running.0, Signal::INT);
        let ended = tokio::time::timeout(TO_STOP, self.ended.wait_for(|ended| *ended)).await.is_ok();
        if !ended {
            return Err(self.failed("does not end"));
        }
        // Nothing comes after that.
        if self.log_end().last().is_some_and(|line| line.ends_with("database system is shut down")) {
            Ok(())
        } else {
            Err(self.failed("did not end cleanly"))
        }
    }

    /// What went wrong with it, with the end of its log.
    pub(crate) fn failed(&self, what: &str) -> EngineError {
        let log = self.log_end();
        // How it ends after that is always the same.
        let telling = |line: &&String| {
            ["FATAL:", "PANIC:", "ERROR:", "DETAIL:", "HINT:", "WARNING:"].iter().any(|level| line.contains(level))
        };
        let told: Vec<&String> = log.iter().filter(telling).collect();
        let told = if told.is_empty() { log.iter().collect() } else { told };
        let last: Vec<&str> = told.iter().rev().take(4).rev().map(|line| line.trim()).collect();
        EngineError::new(FailureKind::Server, format!("the server {what}: {}", last.join(" | ")))
            .hint(format!("all that it said is in {}", self.log_path.display()))
    }

    fn log_end(&self) -> Vec<String> {
        let read = || {
            // The server has the same handle: where that stands must not be moved.
            let from = self.log.metadata()?.len().saturating_sub(LOG_END);
            let mut end = vec![0; LOG_END as usize];
            let len = self.log.read_at(&mut end, from)?;
            end.truncate(len);
            Ok::<_, std::io::Error>(end)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).lines().map(str::to_owned).collect()
    }
}

/// A process that does not outlive this.
#[derive(Debug)]
struct Running(Arc<Mutex<Option<Pid>>>);

impl Drop for Running {
    fn drop(&mut self) {
        // An immediate shutdown. Its directory can be removed only when it does not write any more.
        signal(&self.0, Signal::QUIT);
        let begun = Instant::now();
        while lock(&self.0).is_some() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(&self.0, Signal::KILL);
    }
}

/// Starts a server, and waits for its end.
fn watch_over(
    mut command: Command,
    started: oneshot::Sender<std::io::Result<Pid>>,
    pid: &Mutex<Option<Pid>>,
    tell: &watch::Sender<bool>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        // Who started it may have gone away meanwhile.
        Err(error) => return drop(started.send(Err(error))),
    };
    let number = Pid::from_child(&child);
    *lock(pid) = Some(number);
    if started.send(Ok(number)).is_err() {
        signal(pid, Signal::QUIT);
    }
    // Its number is nobody else's until it is waited for.
    let ended = || waitid(WaitId::Pid(number), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    while ended().is_err_and(|error| error == rustix::io::Errno::INTR) {}
    let mut held = lock(pid);
    let _ = child.wait();
    *held = None;
    drop(held);
    tell.send_replace(true);
}

fn signal(pid: &Mutex<Option<Pid>>, signal: Signal) {
    if let Some(pid) = *lock(pid) {
        let _ = kill_process(pid, signal);
    }
}

fn lock(pid: &Mutex<Option<Pid>>) -> MutexGuard<'_, Option<Pid>> {
    pid.lock().unwrap_or_else(PoisonError::into_inner)
}
