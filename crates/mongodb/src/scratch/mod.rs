//! A mongod of its own, into which a restore is tried.

mod examine;
mod process;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::doc;
use hindsight_catalog::RestorePlan;
use hindsight_engine::{Engine, EngineError, Examined, FailureKind, Job, Result, Scratch, ScratchRequest};
use hindsight_format::RestoreTotals;
use mongodb::Client;
use tokio::process::Command;

use crate::MongoEngine;
use crate::failure::{driver, unsupported};
use crate::restore::release;
use process::Process;

/// Name of its replica set.
const SET: &str = "hindsight-drill";
/// How long it may take to become primary.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running mongod, a replica set of one member on the loopback interface.
pub(crate) struct ScratchServer {
    process: Process,
    client: Client,
    uri: String,
    version: String,
}

impl ScratchServer {
    /// Starts one that can hold what it must.
    pub(crate) async fn start(request: &ScratchRequest) -> Result<Self> {
        let program = program(request.program.as_deref())?;
        let version = version(&program).await?;
        if release(&version) < release(&request.must_hold) {
            return Err(unsupported(
                format!(
                    "the data are those of MongoDB {}, {} is the older {version}",
                    request.must_hold,
                    program.display()
                ),
                "name a mongod of the same version or a newer one with --program",
            ));
        }
        let process = Process::start(&program, SET, &request.folder).await?;
        let doing = "starting the scratch server";
        let address = process.address();
        let direct = Client::with_uri_str(format!("mongodb://{address}/?directConnection=true"));
        let direct = direct.await.map_err(|e| driver(doing, e))?;
        let admin = direct.database("admin");
        let config = doc! {"_id": SET, "members": [{"_id": 0, "host": &address}]};
        admin.run_command(doc! {"replSetInitiate": config}).await.map_err(|e| driver(doing, e))?;
        let begun = Instant::now();
        loop {
            let hello = admin.run_command(doc! {"hello": 1}).await.map_err(|e| driver(doing, e))?;
            if hello.get_bool("isWritablePrimary").unwrap_or(false) {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(process.failed("does not become primary"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let uri = format!("mongodb://{address}/?replicaSet={SET}");
        let client = Client::with_uri_str(&uri).await.map_err(|e| driver(doing, e))?;
        Ok(Self { process, client, uri, version })
    }
}

#[async_trait]
impl Scratch for ScratchServer {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(MongoEngine::new(&self.uri))
    }

    fn version(&self) -> &str {
        &self.version
    }

    async fn examine(&self, job: &Job, plan: &RestorePlan, totals: &RestoreTotals) -> Result<Examined> {
        examine::examine(&self.client, job, plan, totals).await
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.process.stop().await
    }
}

/// The program that was named, or the one in `PATH`.
fn program(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("mongod")).find(|file| file.is_file());
    found.ok_or_else(|| {
        EngineError::new(FailureKind::Local, "there is no mongod to restore into: none is in PATH")
            .hint("name one with --program PATH, or in HINDSIGHT_MONGOD")
    })
}

/// What `mongod --version` says: `db version v6.0.5`.
async fn version(program: &Path) -> Result<String> {
    let failed = |why: String| {
        EngineError::new(FailureKind::Local, format!("{} cannot be run: {why}", program.display()))
            .hint("name a mongod with --program PATH, or in HINDSIGHT_MONGOD")
    };
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.lines().find_map(|line| line.strip_prefix("db version v"));
    version.map(|version| version.trim().to_owned()).ok_or_else(|| failed("it tells no version of mongod".to_owned()))
}
