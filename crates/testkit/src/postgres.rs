//! One PostgreSQL server.

mod session;
mod state;
mod workload;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::mongod::Port;
use crate::spawner;
use crate::tls::Certificates;

pub use state::{PgDatabase, PgState};
pub use workload::{PgCounts, PgPaused, PgWorkload, PgWorkloadOptions};

/// How long a server may take to start, or to end. Generous: machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder with the programs of PostgreSQL: `HINDSIGHT_PG_BIN`, else that of the newest version that Debian has.
///
/// # Errors
/// There is none.
pub fn postgres_programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("HINDSIGHT_PG_BIN") {
        return Ok(PathBuf::from(folder));
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let folder = entry.path().join("bin");
        folder.join("initdb").exists().then_some((version, folder))
    });
    let newest = found.max_by_key(|(version, _)| *version);
    newest.map(|(_, folder)| folder).context("no PostgreSQL for the tests: scripts/setup.sh, or set HINDSIGHT_PG_BIN")
}

/// The major version of [`postgres_programs`].
///
/// # Errors
/// Those of [`postgres_programs`], or the program does not say its version.
pub fn postgres_version() -> Result<u32> {
    // postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)
    let output = Command::new(postgres_programs()?.join("postgres")).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let digits = text.split(") ").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).with_context(|| format!("no version in {text:?}"))
}

/// How a [`Postgres`] is started. The default lets everybody in, and replicates.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Settings, such as `wal_level` and `minimal`.
    pub settings: Vec<(String, String)>,
    /// Lines of `pg_hba.conf`. The superuser always gets in over the socket; everybody everywhere if there are none here.
    pub hba: Vec<String>,
    /// Whether it speaks TLS, by [`Postgres::certificates`].
    pub tls: bool,
}

impl PostgresOptions {
    /// The same with a setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with lines of `pg_hba.conf`.
    #[must_use]
    pub fn hba(mut self, lines: &[&str]) -> Self {
        self.hba.extend(lines.iter().map(|line| (*line).to_owned()));
        self
    }
}

/// A PostgreSQL server on a free port of the loopback interface and on a socket of its own, with its data in a temporary
/// folder. Its superuser is `postgres`.
///
/// Stopped, and its folder removed, when dropped. PostgreSQL refuses to run as root: then it runs as the system's user
/// `postgres`, else as `nobody`.
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    port: Port,
    programs: PathBuf,
    owner: Option<Owner>,
    child: Mutex<Option<Child>>,
    certificates: Option<Certificates>,
    folder: TempDir,
}

/// As whom a server runs.
#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Postgres {
    /// Makes a new cluster, starts a server and waits until it takes connections.
    ///
    /// # Errors
    /// There is no PostgreSQL, or it ended at once; the error holds the end of its log.
    pub async fn start(options: PostgresOptions) -> Result<Self> {
        let postgres = Self::prepare(options)?;
        let data = postgres.data_dir();
        let mut initdb = postgres.as_owner("initdb");
        initdb.args(["--username=postgres", "--auth=trust", "--no-sync", "--data-checksums", "--encoding=UTF8"]);
        initdb.args(["--locale=C", "-D"]).arg(&data);
        said(initdb).await?;
        let mut lines: Vec<&str> = vec!["local all postgres trust", "local replication postgres trust"];
        match postgres.options.hba.as_slice() {
            [] => lines.extend([
                "local all all trust",
                "local replication all trust",
                "host all all 127.0.0.1/32 trust",
                "host replication all 127.0.0.1/32 trust",
            ]),
            own => lines.extend(own.iter().map(String::as_str)),
        }
        fs::write(data.join("pg_hba.conf"), lines.join("\n") + "\n")?;
        postgres.run().await?;
        Ok(postgres)
    }

    /// A standby of this server, made by `pg_basebackup`, that follows it.
    ///
    /// # Errors
    /// Those of [`Postgres::start`], and of `pg_basebackup`.
    pub async fn standby(&self, options: PostgresOptions) -> Result<Self> {
        let standby = Self::prepare(options)?;
        standby.follow(self).await?;
        Ok(standby)
    }

    /// Makes this server, whatever it was and had, a standby of another one.
    ///
    /// # Errors
    /// Those of [`Postgres::standby`].
    pub async fn follow(&self, primary: &Self) -> Result<()> {
        self.stop().await?;
        for entry in fs::read_dir(self.data_dir())? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        let mut basebackup = self.as_owner("pg_basebackup");
        basebackup.args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]);
        let port = primary.port().to_string();
        basebackup.arg("-h").arg(primary.socket_folder()).args(["-p", &port, "-U", "postgres", "-D"]);
        basebackup.arg(self.data_dir());
        said(basebackup).await?;
        self.run().await
    }

    /// A server on a data directory that something else will fill, which is not started yet: see [`Postgres::restart`].
    ///
    /// # Errors
    /// There is no PostgreSQL, or no room.
    pub fn prepare(options: PostgresOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hindsight-postgres-").tempdir()?;
        let owner = Owner::needed()?;
        let certificates = options.tls.then(Certificates::new).transpose()?;
        let programs = postgres_programs()?;
        let postgres =
            Self { options, port: Port::take()?, programs, owner, child: Mutex::new(None), certificates, folder };
        for name in ["data", "socket"] {
            fs::create_dir(postgres.folder.path().join(name))?;
        }
        fs::set_permissions(postgres.data_dir(), fs::Permissions::from_mode(0o700))?;
        if let Some(certificates) = &postgres.certificates {
            for (from, to) in [(certificates.server(), "server.pem"), (certificates.authority(), "ca.pem")] {
                let to = postgres.folder.path().join(to);
                fs::copy(from, &to)?;
                fs::set_permissions(to, fs::Permissions::from_mode(0o600))?;
            }
            // Clients refuse keys that others can read.
            fs::set_permissions(certificates.client(), fs::Permissions::from_mode(0o600))?;
        }
        if let Some(owner) = owner {
            own(postgres.folder.path(), owner)?;
        }
        Ok(postgres)
    }

    /// The port it listens on, which stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The folder of its socket.
    pub fn socket_folder(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Connection string of the superuser, over the socket.
    pub fn uri(&self) -> String {
        let folder = self.socket_folder().display().to_string().replace('/', "%2F");
        format!("postgresql://postgres@{folder}:{}/postgres", self.port())
    }

    /// Connection string of `user`, which may have a password behind a colon, over TCP.
    pub fn uri_of(&self, user: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/postgres", self.port())
    }

    /// Where the server keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for more of it, such as a tablespace, which the server can write to.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        fs::create_dir(&path)?;
        if let Some(owner) = self.owner {
            own(&path, owner)?;
        }
        Ok(path)
    }

    /// The certificates of a server that speaks TLS.
    ///
    /// # Errors
    /// It does not.
    pub fn certificates(&self) -> Result<&Certificates> {
        self.certificates.as_ref().context("this server speaks no TLS")
    }

    /// The server's log so far, over all restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Whether the server runs.
    pub fn is_running(&self) -> bool {
        let mut child = self.child();
        child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Runs statements by `psql` as the superuser, and returns what it prints: fields with `|` in between.
    ///
    /// # Errors
    /// One of them fails.
    pub async fn sql(&self, statements: &str) -> Result<String> {
        self.sql_in("postgres", statements).await
    }

    /// The same in another database.
    ///
    /// # Errors
    /// One of them fails.
    pub async fn sql_in(&self, database: &str, statements: &str) -> Result<String> {
        let mut psql = self.program_in("psql", database);
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statements]);
        Ok(said(psql).await?.trim_end().to_owned())
    }

    /// A program of PostgreSQL that finds this server by itself, such as `pgbench`.
    pub fn program(&self, name: &str) -> Command {
        self.finding(Command::new(self.programs.join(name)))
    }

    /// The same for one that dies with the test, if [`spawner::spawn`] starts it.
    fn tied_program(&self, name: &str) -> Command {
        self.finding(spawner::tied(&self.programs.join(name)))
    }

    fn finding(&self, mut command: Command) -> Command {
        command.env("PGHOST", self.socket_folder()).env("PGPORT", self.port().to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").stdin(Stdio::null());
        command
    }

    /// The same in another database.
    pub(crate) fn program_in(&self, name: &str, database: &str) -> Command {
        let mut command = self.program(name);
        command.env("PGDATABASE", database);
        command
    }

    /// Runs `pgbench` with these arguments to its end.
    ///
    /// # Errors
    /// It fails.
    pub async fn pgbench(&self, arguments: &[&str]) -> Result<String> {
        let mut pgbench = self.program("pgbench");
        pgbench.args(arguments);
        said(pgbench).await
    }

    /// Makes a standby a primary, on a timeline of its own.
    ///
    /// # Errors
    /// It is none, or does not end its recovery within a minute.
    pub async fn promote(&self) -> Result<()> {
        match self.sql("SELECT pg_promote(true, 60)").await?.as_str() {
            "t" => Ok(()),
            _ => bail!("not promoted:\n{}", self.last_words()),
        }
    }

    /// Kills the server as a crash would (SIGKILL). Its children notice within moments. Nothing happens if it doesn't run.
    pub fn kill9(&self) {
        if let Some(mut child) = self.child().take() {
            // The only failure of these is a child that is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills the server with all of its processes at the same moment: none of them gets to write anything any more. Nothing
    /// happens if it doesn't run.
    pub fn crash(&self) {
        self.signal(Signal::STOP);
        let children = self.children();
        self.kill9();
        signal_all(&children, Signal::KILL);
    }

    /// Lets the server with all of its processes stand still, until [`Postgres::thaw`].
    pub fn freeze(&self) {
        // First who makes the others.
        self.signal(Signal::STOP);
        signal_all(&self.children(), Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        signal_all(&self.children(), Signal::CONT);
        self.signal(Signal::CONT);
    }

    /// The processes of the server besides the first one.
    fn children(&self) -> Vec<Pid> {
        let Some(id) = self.child().as_ref().map(Child::id) else { return Vec::new() };
        let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        listed.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect()
    }

    /// Runs `pg_resetwal` with these arguments. The server must have ended.
    ///
    /// # Errors
    /// It fails.
    pub async fn reset_wal(&self, arguments: &[&str]) -> Result<()> {
        let mut resetwal = self.as_owner("pg_resetwal");
        resetwal.args(arguments).arg("-D").arg(self.data_dir());
        said(resetwal).await.map(drop)
    }

    /// Shuts the server down cleanly (SIGINT, a fast shutdown) and waits for its end. Nothing happens if it doesn't run.
    ///
    /// # Errors
    /// When it doesn't end within a minute.
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::INT).await
    }

    /// Starts the server again on its port and data, after [`Postgres::stop`]ping it if it runs.
    ///
    /// # Errors
    /// See [`Postgres::start`] and [`Postgres::stop`].
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        if let Some(owner) = self.owner {
            own(&self.data_dir(), owner)?;
        }
        self.run().await
    }

    /// Ends a server that somebody else has started on this data directory, as a crash would. Nothing happens if none runs.
    ///
    /// # Errors
    /// When it doesn't end within a minute.
    pub async fn end_of_others(&self) -> Result<()> {
        let begun = Instant::now();
        while self.signal_other(Signal::QUIT) {
            if begun.elapsed() > PATIENCE {
                bail!("the server in {} does not end", self.data_dir().display());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Sends a signal to a server that somebody else has started on this data directory; says whether there is one.
    fn signal_other(&self, signal: Signal) -> bool {
        // The first line is its number; the second one the directory, in case the number is another's now.
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        let pid = lines.next().and_then(|line| Pid::from_raw(line.trim().parse().ok()?));
        let own = self.child().as_ref().map(Pid::from_child);
        match pid.filter(|pid| Some(*pid) != own && lines.next().is_some_and(|at| Path::new(at) == self.data_dir())) {
            Some(pid) => kill_process(pid, signal).is_ok(),
            None => false,
        }
    }

    async fn end(&self, signal: Signal) -> Result<()> {
        self.signal(signal);
        let begun = Instant::now();
        while self.is_running() {
            if begun.elapsed() > PATIENCE {
                bail!("PostgreSQL on port {} ignores {signal:?}", self.port());
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.child().take();
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.child().as_ref() {
            // One that has ended is not waited for yet, so its number is nobody else's.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A program that is run as the owner of the data.
    fn as_owner(&self, name: &str) -> Command {
        let mut command = spawner::tied_as(&self.programs.join(name), self.owner.map(|owner| (owner.uid, owner.gid)));
        // The folder that tests run in may be closed to the owner.
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Starts the process and waits until it takes connections.
    async fn run(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let seen = self.log().len();
            self.spawn()?;
            if self.takes_connections().await? {
                return Ok(());
            }
            // The children of one that was killed may still be there for a moment.
            let log = self.log();
            let held = log.get(seen..).unwrap_or_default().contains("pre-existing shared memory block");
            if !held || begun.elapsed() > PATIENCE {
                bail!("PostgreSQL on port {} ended at once:\n{}", self.port(), self.last_words());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn spawn(&self) -> Result<()> {
        let output = File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let mut command = self.as_owner("postgres");
        command.arg("-D").arg(self.data_dir()).arg("-k").arg(self.socket_folder());
        let port = self.port().to_string();
        let mut settings: Vec<(&str, &str)> =
            vec![("port", &port), ("listen_addresses", "127.0.0.1"), ("fsync", "off"), ("shared_buffers", "16MB")];
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let (pem, authority) = (path("server.pem"), path("ca.pem"));
        if self.options.tls {
            settings.extend([("ssl", "on"), ("ssl_cert_file", &pem), ("ssl_key_file", &pem)]);
            settings.push(("ssl_ca_file", &authority));
        }
        settings.extend(self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(output.try_clone()?).stderr(output);
        *self.child() = Some(spawner::spawn(command)?);
        Ok(())
    }

    async fn takes_connections(&self) -> Result<bool> {
        let begun = Instant::now();
        while self.is_running() {
            let mut ready = self.program("pg_isready");
            ready.arg("-q");
            if said(ready).await.is_ok() {
                return Ok(true);
            }
            if begun.elapsed() > PATIENCE {
                bail!("PostgreSQL on port {} takes no connections:\n{}", self.port(), self.last_words());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(false)
    }

    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.thaw();
        // SIGQUIT is an immediate shutdown: unlike SIGKILL it leaves no shared memory behind.
        self.signal(Signal::QUIT);
        let begun = Instant::now();
        while self.is_running() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill9();
        while self.signal_other(Signal::QUIT) && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn signal_all(processes: &[Pid], signal: Signal) {
    for process in processes {
        // The only failure is one that is gone already.
        let _ = kill_process(*process, signal);
    }
}

impl Owner {
    /// Somebody else, for root.
    fn needed() -> Result<Option<Self>> {
        static OWNER: OnceLock<Option<Owner>> = OnceLock::new();
        if !geteuid().is_root() {
            return Ok(None);
        }
        let owner = *OWNER.get_or_init(|| ["postgres", "nobody"].into_iter().find_map(Self::named));
        owner
            .map(Some)
            .ok_or_else(|| anyhow!("PostgreSQL does not run as root, and there is neither postgres nor nobody"))
    }

    fn named(name: &str) -> Option<Self> {
        let number = |flag: &str| {
            let output = Command::new("id").args([flag, name]).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        Some(Self { uid: number("-u")?, gid: number("-g")? })
    }
}

/// Gives a folder and all in it to `owner`.
fn own(path: &Path, owner: Owner) -> Result<()> {
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), owner)?;
        }
    }
    if !path.is_symlink() {
        chown(path, Some(owner.uid), Some(owner.gid)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Runs a command to its end, on a thread of its own, and returns what it printed.
async fn said(mut command: Command) -> Result<String> {
    let what = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.output()).await?.with_context(|| what.clone())?;
    if !output.status.success() {
        bail!("{what} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
