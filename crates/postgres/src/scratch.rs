//! A drill: a folder of its own to restore into, and a server in it that reads all that came back.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use hindsight_catalog::RestorePlan;
use hindsight_engine::{
    Destination, Directory, Engine, EngineError, Examined, FailureKind, Job, Result, Scratch, ScratchRequest,
};
use hindsight_format::RestoreTotals;
use tempfile::TempDir;
use tokio::process::Command;

use crate::PostgresEngine;
use crate::base::StoredBase;
use crate::feed::blocking;
use crate::restore::recover::{Facts, look};
use crate::restore::settings::{isolated, put_aside};
use crate::server::{Folder, Owner, Private, Programs, Server, environment, local, major, user_named};
use crate::wire::Connection;

/// The data directory, in the folder.
const DATA: &str = "data";
/// Problems of one kind that are told.
const TOLD: usize = 20;

/// A folder to restore into. It goes when this is dropped; servers run in it only while something is done with them.
pub struct ScratchServer {
    folder: TempDir,
    programs: Programs,
    owner: Owner,
}

impl ScratchServer {
    /// Makes the folder, and finds the programs of the version whose data it must be able to hold.
    ///
    /// # Errors
    /// There are no such programs, or nobody that a server could run as.
    pub async fn start(request: &ScratchRequest) -> Result<Self> {
        let request = request.clone();
        blocking(move || {
            let wanted = major(&request.must_hold)
                .ok_or_else(|| EngineError::damaged(format!("{:?} is no version of PostgreSQL", request.must_hold)))?;
            let programs = Programs::find(request.program.as_deref(), wanted)?;
            let owner = owner()?;
            let failed = |error: std::io::Error| local(&request.folder, &error);
            let mut folder = tempfile::Builder::new();
            folder.prefix("hindsight-drill-").permissions(std::fs::Permissions::from_mode(0o700));
            let folder = folder.tempdir_in(&request.folder).map_err(failed)?;
            let data = folder.path().join(DATA);
            std::fs::create_dir(&data).map_err(failed)?;
            owner.give(&data).and_then(|()| owner.give(folder.path())).map_err(failed)?;
            if !owner.is_us() && !owner.can(&data, "-w")? {
                let what =
                    format!("{} cannot get into {}, as whom the server has to run", owner.name(), data.display());
                return Err(EngineError::new(FailureKind::Local, what).hint("name another temporary folder (TMPDIR)"));
            }
            Ok(Self { folder, programs, owner })
        })
        .await
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join(DATA)
    }
}

/// As whom a server runs that is nobody's.
fn owner() -> Result<Owner> {
    let us = Owner::us();
    if !us.is_root() {
        return Ok(us);
    }
    ["postgres", "nobody"].into_iter().find_map(user_named).ok_or_else(|| {
        EngineError::new(
            FailureKind::Unsupported,
            "PostgreSQL does not run as root, and there is neither postgres nor nobody",
        )
        .hint("run this as another user")
    })
}

#[async_trait]
impl Scratch for ScratchServer {
    fn engine(&self) -> Arc<dyn Engine> {
        // What it restores into is a folder, which takes no connection.
        Arc::new(PostgresEngine::new(""))
    }

    fn destination(&self) -> Destination {
        let program = Some(self.programs.program("postgres"));
        Destination::Directory(Directory { start: false, program, ..Directory::new(self.data()) })
    }

    fn version(&self) -> &str {
        self.programs.version()
    }

    async fn examine(&self, job: &Job, plan: &RestorePlan, totals: &RestoreTotals) -> Result<Examined> {
        let base = StoredBase::load(&job.cluster, &plan.base).await?;
        let (directory, owner) = (self.data(), self.owner.clone());
        let private = blocking(move || {
            let data = Folder::open(&directory, &owner)?;
            data.require_owned()?;
            put_aside(&data)?;
            Private::create(data)
        });
        let private = private.await?;
        let examining = async {
            let mut server = Server::start(&self.programs, &private, &isolated(&base, None)).await?;
            server.ready().await?;
            let (server, facts) = look(&self.programs, &private, &base, server).await?;
            let examination = Examination { job, programs: &self.programs, server: &server, facts: &facts };
            examination.run(totals).await
        };
        tokio::select! {
            examined = examining => examined,
            () = job.cancel.cancelled() => Err(EngineError::cancelled()),
        }
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        let path = self.folder.path().to_owned();
        blocking(move || self.folder.close().map_err(|error| local(&path, &error))).await
    }
}

/// What is done with a server that has restored data.
struct Examination<'a> {
    job: &'a Job,
    programs: &'a Programs,
    server: &'a Server,
    facts: &'a Facts,
}

impl Examination<'_> {
    async fn run(&self, totals: &RestoreTotals) -> Result<Examined> {
        let mut examined = Examined::default();
        if self.facts.databases != totals.collections {
            let problem = format!("{} databases are there, {} were restored", self.facts.databases, totals.collections);
            examined.problems.push(problem);
        }
        let mut first = self.connect(&self.facts.database).await?;
        let doing = "listing what was restored";
        // A DROP DATABASE that was cut off leaves one that nobody can connect to (`DATCONNLIMIT_INVALID_DB`, pg_database.h).
        let databases =
            "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1";
        let rows = first.query(databases, doing).await?;
        let databases: Vec<String> = rows.iter().filter_map(|row| row.at(0)).map(str::to_owned).collect();
        let amcheck = "SELECT 1 FROM pg_catalog.pg_available_extensions WHERE name = 'amcheck'";
        let has_amcheck = !first.query(amcheck, doing).await?.is_empty();
        first.close().await;
        for database in &databases {
            let mut connection = self.connect(database).await?;
            let files =
                "SELECT count(*) FROM pg_catalog.pg_class WHERE pg_catalog.pg_relation_filenode(oid) IS NOT NULL";
            let rows = connection.query(files, doing).await?;
            examined.containers += 1;
            examined.items += rows.first().and_then(|row| row.at(0)?.parse::<u64>().ok()).unwrap_or(0);
            connection.close().await;
        }
        let program = self.programs.program("pg_amcheck");
        if has_amcheck && program.is_file() {
            self.job.progress.step("checking tables and indexes", None);
            examined.problems.extend(self.amcheck(&program).await?);
        } else {
            self.job.progress.warn("tables and indexes were read, but not checked: pg_amcheck is not installed");
        }
        self.job.progress.step("reading everything", None);
        let program = self.programs.program("pg_dump");
        if !program.is_file() {
            self.job.progress.warn("not everything was read: pg_dump is not installed");
            return Ok(examined);
        }
        for database in &databases {
            self.job.check()?;
            if let Some(problem) = self.dump(&program, database).await? {
                examined.problems.push(problem);
            }
        }
        Ok(examined)
    }

    async fn connect(&self, database: &str) -> Result<Connection> {
        Ok(self.server.connect(&self.facts.superuser, database).await?)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(environment());
        command.envs(self.server.environment(&self.facts.superuser)).env("PGDATABASE", &self.facts.database);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Every table, and every B-tree against its table.
    async fn amcheck(&self, program: &Path) -> Result<Vec<String>> {
        let jobs = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let mut command = self.command(program);
        command.args(["--all", "--install-missing", "--heapallindexed", "--jobs", &jobs.to_string()]);
        let output = command.stdout(Stdio::piped()).output().await.map_err(|error| local(program, &error))?;
        if output.status.success() {
            return Ok(Vec::new());
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let mut problems: Vec<String> = lines.iter().take(TOLD).map(|line| (*line).to_owned()).collect();
        if lines.len() > TOLD {
            problems.push(format!("and {} lines more of pg_amcheck", lines.len() - TOLD));
        }
        if problems.is_empty() {
            problems.push(format!("pg_amcheck failed ({})", output.status));
        }
        Ok(problems)
    }

    /// All of a database is read as a dump of it, which nobody keeps.
    async fn dump(&self, program: &Path, database: &str) -> Result<Option<String>> {
        let mut command = self.command(program);
        // The name could be taken for a connection string where it stands alone.
        command.env("PGDATABASE", database);
        let output = command.output().await.map_err(|error| local(program, &error))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().take(2).collect();
        Ok((!output.status.success()).then(|| format!("the database {database} cannot be read: {}", last.join(" | "))))
    }
}
