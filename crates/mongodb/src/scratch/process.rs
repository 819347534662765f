//! The process of a scratch server, with its folder.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hindsight_engine::{EngineError, FailureKind, Result};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ports that are tried: somebody else may take one that was free a moment ago.
const PORTS: u32 = 5;

/// A running mongod. It is killed, and its folder removed, when this is dropped.
pub(super) struct Process {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Process {
    /// Starts `program` on a free port, with its data in a new folder in `parent`, and waits until it listens.
    pub(super) async fn start(program: &Path, set: &str, parent: &Path) -> Result<Self> {
        let mut ended = None;
        for _ in 0..PORTS {
            let folder = tempfile::Builder::new().prefix("hindsight-drill-").tempdir_in(parent)?;
            std::fs::create_dir(folder.path().join("data"))?;
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            let child = command(program, set, port, folder.path())?.spawn()?;
            let mut process = Self { child, port, folder };
            match process.listens().await {
                Ok(()) => return Ok(process),
                Err(error) => ended = Some(error),
            }
        }
        Err(ended.unwrap_or_else(|| EngineError::new(FailureKind::Local, "no free port was found")))
    }

    async fn listens(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if self.child.try_wait()?.is_some() {
                return Err(self.failed("ended at once"));
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(self.failed("does not listen"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What went wrong with it, with the end of its log.
    pub(super) fn failed(&self, what: &str) -> EngineError {
        let said = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        let log = said("output") + &said("mongod.log");
        let last: Vec<_> = log.lines().rev().take(3).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join(" | ");
        EngineError::new(FailureKind::Local, format!("the scratch server {what}: {last}"))
            .hint("can this mongod run on this machine, with room for the data in the temporary folder (TMPDIR)?")
    }

    /// Ends it. What it kept is not wanted any more, so that it need not end cleanly.
    pub(super) async fn stop(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its folder can be removed only when it does not write any more.
        let _ = self.child.start_kill();
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn command(program: &Path, set: &str, port: u16, folder: &Path) -> Result<Command> {
    let mut command = tied(program);
    let output = std::fs::File::create(folder.join("output"))?;
    command
        .env_clear()
        .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .args(["--replSet", set, "--bind_ip", "127.0.0.1", "--nounixsocket", "--port", &port.to_string()])
        // Deletions by time would make the data differ from what was stored.
        .args(["--setParameter", "ttlMonitorEnabled=false", "--setParameter", "diagnosticDataCollectionEnabled=false"])
        // Beside other servers on a machine half of the memory, which is the default, is too much.
        .args(["--wiredTigerCacheSizeGB", "1"])
        .arg("--dbpath")
        .arg(folder.join("data"))
        .arg("--logpath")
        .arg(folder.join("mongod.log"))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // An interrupt at the terminal goes to all of its process group: this one is ended by us.
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

/// What it gets of the environment, which otherwise holds what opens databases and stores.
const VARIABLES: [&str; 7] = ["PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH"];

/// `program`, to be ended by the kernel when this process is killed, where util-linux has the means.
fn tied(program: &Path) -> Command {
    let setpriv = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("setpriv"))
        .find(|file| file.is_file());
    match setpriv {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}
