//! What the tests of jobs share.

pub mod harm;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hindsight_catalog::Target;
use hindsight_engine::{Engine, Progress, Selection};
use hindsight_format::{RestoreRecord, SnapshotManifest};
use hindsight_jobs::{Agent, BackupRequest, RestoreRequest, Tuning, backup, propose, register, restore};
use hindsight_mongodb::MongoEngine;
use hindsight_repository::{
    ClusterRepository, DEFAULT_TTL, Identity, Recipient, Repository, RepositorySpec, S3Options,
};
use hindsight_testkit::{ClusterState, S3_ACCESS_KEY, S3_REGION, S3_SECRET_KEY, S3Server};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A repository in a temporary folder.
pub struct Store {
    _folder: Option<tempfile::TempDir>,
    pub repository: Repository,
}

impl Store {
    pub async fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let repository = Repository::open_or_create(&RepositorySpec::new(folder.path().display().to_string())).await?;
        // KEEP=1 leaves the repository for a look afterwards.
        if std::env::var_os("KEEP").is_some() {
            eprintln!("repository: {}", folder.keep().display());
            return Ok(Self { _folder: None, repository });
        }
        Ok(Self { _folder: Some(folder), repository })
    }

    /// With its folder.
    pub async fn in_folder() -> Result<(Self, std::path::PathBuf)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_owned();
        let repository = Repository::open_or_create(&RepositorySpec::new(path.display().to_string())).await?;
        Ok((Self { _folder: Some(folder), repository }, path))
    }

    /// A sealed repository, with its folder.
    pub async fn sealed(recipients: &[Recipient]) -> Result<(Self, std::path::PathBuf)> {
        let folder = tempfile::tempdir()?;
        let spec = RepositorySpec::new(folder.path().join("sealed").display().to_string());
        let repository = Repository::make(&spec, recipients).await?;
        let path = folder.path().join("sealed");
        Ok((Self { _folder: Some(folder), repository }, path))
    }

    /// A repository in a bucket; the server must be kept.
    pub async fn in_bucket(server: &S3Server, url: &str) -> Result<Self> {
        let s3 = S3Options {
            endpoint: Some(server.endpoint()),
            region: Some(S3_REGION.to_owned()),
            access_key_id: Some(S3_ACCESS_KEY.to_owned()),
            secret_access_key: Some(S3_SECRET_KEY.into()),
            ..S3Options::default()
        };
        let repository =
            Repository::open_or_create(&RepositorySpec { url: url.to_owned(), s3, ..RepositorySpec::default() })
                .await?;
        Ok(Self { _folder: None, repository })
    }

    /// The connected cluster, registered.
    pub async fn protect(&self, uri: &str, name: Option<&str>) -> Result<Protected> {
        let engine: Arc<dyn Engine> = Arc::new(MongoEngine::new(uri));
        let cluster = register(&self.repository, name, &engine.probe().await?).await?;
        Ok(Protected { repository: self.repository.clone(), engine, cluster })
    }
}

/// A cluster with its place in a repository.
#[derive(Clone)]
pub struct Protected {
    pub repository: Repository,
    pub engine: Arc<dyn Engine>,
    pub cluster: ClusterRepository,
}

impl Protected {
    /// The same, as another process with private keys opens it.
    pub async fn with_identity(&self, identity: Identity) -> Result<Self> {
        let repository = Repository::open(&RepositorySpec::new(self.repository.url())).await?;
        let repository = repository.expect("there is one").with_identity(identity);
        let cluster = repository.cluster(self.cluster.name())?;
        Ok(Self { repository, cluster, engine: self.engine.clone() })
    }

    pub async fn backup(&self) -> Result<SnapshotManifest> {
        let (progress, cancel) = (Progress::default(), CancellationToken::new());
        Ok(backup(&*self.engine, &self.cluster, &BackupRequest::default(), &progress, &cancel).await?)
    }

    pub async fn set(&self, key: &str, value: &str) -> Result<()> {
        self.cluster.update_config(|config| config.with(key, value)).await?;
        Ok(())
    }

    /// Starts an agent with short times.
    pub fn agent(&self) -> Running {
        self.agent_with(Duration::from_secs(3), DEFAULT_TTL)
    }

    /// Starts one that leaves slices as they are.
    pub fn unmerging_agent(&self) -> Running {
        self.agent_with(Duration::from_secs(3600), DEFAULT_TTL)
    }

    /// Starts one that loses its right to capture in no time.
    pub fn short_lived_agent(&self) -> Running {
        self.agent_with(Duration::from_secs(3), Duration::from_secs(3))
    }

    fn agent_with(&self, merge_every: Duration, lease: Duration) -> Running {
        let tuning = Tuning {
            poll: Duration::from_millis(200),
            idle_interval: Duration::from_secs(2),
            merge_every,
            snapshot_pause: Duration::from_secs(1),
            tidy_every: Duration::from_millis(300),
            lease,
            ..Tuning::default()
        };
        let agent = Agent::new(self.engine.clone(), self.cluster.clone()).tuned(tuning);
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        Running { task: tokio::spawn(async move { agent.run(token).await.map_err(Into::into) }), cancel }
    }

    /// Waits until what is captured rests on a snapshot: from here on every moment can be restored.
    pub async fn based(&self) -> Result<()> {
        let begun = std::time::Instant::now();
        while hindsight_jobs::overview(&self.cluster).await?.timeline.ranges.is_empty() {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "no snapshot within 60 s");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until `target` can be restored.
    pub async fn captured(&self, target: &Target) -> Result<()> {
        let begun = std::time::Instant::now();
        loop {
            let history = hindsight_jobs::history(&self.cluster).await?;
            match hindsight_catalog::plan(&history, target, None, jiff::Timestamp::now()) {
                Ok(_) => return Ok(()),
                Err(why) => {
                    anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "not captured after 60 s: {why}")
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Restores the history of `self` into `into`.
    pub async fn restore_into(&self, into: &Protected, target: Target, selection: Selection) -> Result<RestoreRecord> {
        self.restore_through(&*into.engine, target, selection).await
    }

    pub async fn restore_through(
        &self,
        engine: &dyn Engine,
        target: Target,
        selection: Selection,
    ) -> Result<RestoreRecord> {
        let request = RestoreRequest { selection, ..RestoreRequest::to(target) };
        let proposal = propose(engine, &self.repository, &self.cluster, request).await?;
        Ok(restore(engine, &proposal, &Progress::default(), &CancellationToken::new()).await?.record)
    }
}

/// Waits until `holds`; an error that names `what` after a minute.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds().await? {
        ensure!(begun.elapsed() < Duration::from_secs(60), "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until there is a range in `epoch` with log in it.
pub async fn captured_log(here: &Protected, epoch: u64) -> Result<()> {
    let begun = std::time::Instant::now();
    let has = |overview: &hindsight_jobs::Overview| {
        overview.timeline.ranges.iter().any(|range| range.epoch == epoch && range.to.is_some())
    };
    while !has(&hindsight_jobs::overview(&here.cluster).await?) {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "no log in epoch {epoch} within 60 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The moment right after the last write, as a restore point.
pub async fn this_moment(client: &mongodb::Client) -> Result<Target> {
    let (secs, inc, _) = hindsight_testkit::last_optime(client).await?;
    Ok(Target::Through { time: jiff::Timestamp::from_second(secs.into())?, order: format!("{secs:010}.{inc:010}") })
}

/// The data behind `client` are those of `expected`.
pub async fn same(client: &mongodb::Client, expected: &ClusterState) -> Result<()> {
    let differences = expected.diff(&ClusterState::read(client).await?);
    anyhow::ensure!(differences.is_empty(), "not what it was:\n{}", differences.join("\n"));
    Ok(())
}

/// An agent at work.
pub struct Running {
    task: JoinHandle<Result<()>>,
    cancel: CancellationToken,
}

impl Running {
    /// Asks it to stop, and waits.
    pub async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        self.task.await?
    }
}

/// Shows what happens when `RUST_LOG` is set.
pub fn logging() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}
