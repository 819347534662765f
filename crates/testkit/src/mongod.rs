//! One mongod process.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mongodb::Client;
use rand::RngExt as _;
use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::binary::{mongod_binary, mongod_of_version, mongod_version};
use crate::spawner;

/// How long a server may take to listen, or to end after SIGTERM. Generous: machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ports are taken from here, below the range Linux gives to outgoing connections, so that none of those can sit on a
/// port while its server is down.
const PORTS: std::ops::Range<u16> = 18_000..28_000;

/// How a [`Mongod`] is started. The default is a standalone server without authentication or TTL deletions.
#[derive(Clone, Debug, Default)]
pub struct MongodOptions {
    /// Name of the replica set (`--replSet`); none for a standalone server.
    pub replica_set: Option<String>,
    /// `--oplogSize` in MB; the server's own choice if none.
    pub oplog_mb: Option<u32>,
    /// The secret of `--keyFile`, 6 to 1024 base64 characters. Members authenticate with it, and users must too.
    pub key: Option<String>,
    /// Whether the server deletes documents by TTL indexes. Off by default: it changes data behind a test's back.
    pub ttl: bool,
    /// Exactly this version, such as `5.0.4`; the one of [`mongod_binary`] if none.
    pub version: Option<String>,
    /// Where the data go; a temporary folder of its own if none.
    pub data: Option<PathBuf>,
    /// More arguments, as they are.
    pub args: Vec<String>,
}

/// A mongod on a free port of the loopback interface, with its data in a temporary folder.
///
/// Killed, and its folder removed, when dropped. All methods take `&self`, so that a test can stop a server while other
/// tasks use it.
#[derive(Debug)]
pub struct Mongod {
    options: MongodOptions,
    port: Port,
    /// The program, and its version.
    program: (PathBuf, (u32, u32, u32)),
    child: Mutex<Option<Child>>,
    folder: TempDir,
}

impl Mongod {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// No mongod can be had, or it ended at once; the error holds the end of its log.
    pub async fn start(options: MongodOptions) -> Result<Self> {
        let version = options.version.clone();
        let program = tokio::task::spawn_blocking(move || match version {
            Some(version) => mongod_of_version(&version),
            None => Ok((mongod_binary()?.to_owned(), mongod_version()?)),
        });
        let program = program.await??;
        let folder = tempfile::Builder::new().prefix("hindsight-mongod-").tempdir()?;
        fs::create_dir_all(options.data.clone().unwrap_or_else(|| folder.path().join("data")))?;
        if let Some(key) = &options.key {
            write_private(&folder.path().join("key"), key)?;
        }
        let mongod = Self { options, port: Port::take()?, program, child: Mutex::new(None), folder };
        mongod.run().await?;
        Ok(mongod)
    }

    /// Starts a server without replication: it has no oplog.
    ///
    /// # Errors
    /// See [`Mongod::start`].
    pub async fn standalone() -> Result<Self> {
        Self::start(MongodOptions::default()).await
    }

    /// The port it listens on, which stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Connection string for this server alone, without credentials.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.address())
    }

    /// A new client for [`Mongod::uri`].
    ///
    /// A client lives on the runtime it was made in: make one per test rather than sharing it.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::with_uri_str(self.uri()).await?)
    }

    /// Where the server keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.options.data.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// The server's log so far, over all restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        let mut child = self.child();
        child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills the process as a crash would (SIGKILL): writes that were not journaled are lost, which before 5.0 means those
    /// without write concern `majority`. Nothing happens if it doesn't run.
    pub fn kill9(&self) {
        if let Some(mut child) = self.child().take() {
            // The only failure of these is a child that is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Shuts the server down cleanly (SIGTERM) and waits for its end. Nothing happens if it doesn't run.
    ///
    /// # Errors
    /// When it doesn't end within a minute.
    pub async fn stop(&self) -> Result<()> {
        if !self.is_running() {
            self.kill9();
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        // A frozen process can't end.
        self.signal(Signal::CONT)?;
        let begun = Instant::now();
        while self.is_running() {
            if begun.elapsed() > PATIENCE {
                bail!("mongod {} ignores SIGTERM", self.address());
            }
            sleep(Duration::from_millis(20)).await;
        }
        *self.child() = None;
        Ok(())
    }

    /// Starts the server again on its port and data, after [`Mongod::stop`]ping it if it runs.
    ///
    /// # Errors
    /// See [`Mongod::start`] and [`Mongod::stop`].
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.run().await
    }

    /// Freezes the process (SIGSTOP): connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn sigstop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on (SIGCONT).
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn sigcont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child();
        let child = child.as_ref().with_context(|| format!("mongod {} doesn't run", self.address()))?;
        kill_process(Pid::from_child(child), signal)?;
        Ok(())
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("mongod.log")
    }

    /// Starts the process and waits until it listens.
    async fn run(&self) -> Result<()> {
        let mut command = spawner::tied(&self.program.0);
        let output = File::options().create(true).append(true).open(self.folder.path().join("output"))?;
        command.args(self.arguments()?).stdin(std::process::Stdio::null()).stdout(output.try_clone()?).stderr(output);
        *self.child() = Some(spawner::spawn(command)?);

        let begun = Instant::now();
        loop {
            if !self.is_running() {
                bail!("mongod {} ended at once:\n{}", self.address(), self.last_words());
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port())).is_ok() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("mongod {} doesn't listen:\n{}", self.address(), self.last_words());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn arguments(&self) -> Result<Vec<String>> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut args: Vec<String> = vec![
            "--port".into(),
            self.port().to_string(),
            "--dbpath".into(),
            self.data_dir().display().to_string(),
            "--logpath".into(),
            path("mongod.log"),
            "--logappend".into(),
        ];
        let mut more = |text: &str| args.extend(text.split(' ').map(String::from));
        // Once uncommitted changes fill a tenth of the cache (`eviction_updates_trigger`), every operation has to wait for an
        // end of the transactions that made them, which in a test can be those that wait.
        more("--bind_ip 127.0.0.1 --nounixsocket --wiredTigerCacheSizeGB 1");
        more("--setParameter diagnosticDataCollectionEnabled=false");
        if self.program.1 >= (5, 0, 0) {
            // Otherwise SIGTERM waits 15 s for clients to leave. Version 4.4 has neither the wait nor the parameter.
            more("--setParameter shutdownTimeoutMillisForSignaledShutdown=100");
        }
        if !self.options.ttl {
            more("--setParameter ttlMonitorEnabled=false");
        }
        if let Some(name) = &self.options.replica_set {
            more(&format!("--replSet {name}"));
        }
        if let Some(mb) = self.options.oplog_mb {
            more(&format!("--oplogSize {mb}"));
        }
        if self.options.key.is_some() {
            args.extend(["--keyFile".into(), path("key")]);
        }
        args.extend(self.options.args.iter().cloned());
        Ok(args)
    }

    fn last_words(&self) -> String {
        let output = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
        format!("{output}{}", last.join("\n"))
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A port that no other test takes while this value lives, in this process or another: a locked file stands for it.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    _lock: File,
}

impl Port {
    pub(crate) fn take() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("hindsight-ports-{}", getuid().as_raw()));
        fs::create_dir_all(&folder)?;
        for _ in 0..1000 {
            let number = rand::rng().random_range(PORTS);
            let lock = File::create(folder.join(number.to_string()))?;
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _lock: lock });
            }
        }
        bail!("no free port in {PORTS:?}")
    }
}

/// The server refuses a key file that others can read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())?;
    Ok(())
}
