//! What a verb works with: settings, where to print, when to stop.

use std::sync::Arc;

use hindsight_engine::Engine;
use hindsight_jobs::Journal;
use hindsight_repository::{Repository, RepositorySpec};
use tokio_util::sync::CancellationToken;

use crate::args::Globals;
use crate::engines;
use crate::exit::{Exit, Failure};
use crate::identity;
use crate::output::Output;
use crate::settings::Settings;
use crate::uri::DatabaseUri;

/// What a verb works with.
pub(crate) struct Context {
    /// The name that the program was started under.
    pub(crate) program: &'static str,
    /// Where to print.
    pub(crate) out: Output,
    /// Cancelled when the program must stop.
    pub(crate) stop: CancellationToken,
    /// Where it is kept what jobs do.
    pub(crate) journal: Journal,
    settings: Settings,
}

impl Context {
    pub(crate) fn new(
        program: &'static str,
        globals: Globals,
        stop: CancellationToken,
        journal: Journal,
    ) -> Result<Self, Failure> {
        let out = Output::new(globals.out);
        let settings = Settings::gather(globals, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
        settings.warnings.iter().for_each(|warning| out.note(&format!("Warning: {warning}")));
        Ok(Self { program, out, stop, journal, settings })
    }

    /// The repository that is meant.
    pub(crate) fn spec(&self) -> &RepositorySpec {
        &self.settings.repository
    }

    /// The cluster that was named, if any.
    pub(crate) fn cluster(&self) -> Option<&str> {
        self.settings.cluster.as_deref()
    }

    /// The connection string, if any.
    pub(crate) fn uri(&self) -> Option<&DatabaseUri> {
        self.settings.uri.as_ref()
    }

    /// Where the agent offers its metrics, as the environment or the file say.
    pub(crate) fn metrics_listen(&self) -> Option<&str> {
        self.settings.metrics_listen.as_deref()
    }

    /// The repository; none when there is none yet.
    pub(crate) async fn repository(&self) -> Result<Option<Repository>, Failure> {
        Ok(Repository::open(self.spec()).await?)
    }

    /// The repository, which is made at its first use.
    pub(crate) async fn make_repository(&self) -> Result<Repository, Failure> {
        Ok(Repository::open_or_create(self.spec()).await?)
    }

    /// Whether private keys were named.
    pub(crate) fn has_identity(&self) -> bool {
        !self.settings.identity.is_empty()
    }

    /// The repository with what opens it, where it is sealed; refuses when nothing was named that could.
    pub(crate) async fn unlocked(&self, repository: &Repository) -> Result<Repository, Failure> {
        if !repository.is_sealed() {
            return Ok(repository.clone());
        }
        let paths = self.settings.identity.clone();
        paths.iter().filter_map(|path| identity::warning(path)).for_each(|warning| self.out.note(&warning));
        let reading = tokio::task::spawn_blocking(move || identity::read(&paths));
        let reading = async { reading.await.map_err(|error| Failure::new(Exit::Other, error.to_string()))? };
        match self.unless_stopped(reading).await? {
            Some(identity) => Ok(repository.with_identity(identity)),
            None => {
                repository.require_identity()?;
                Ok(repository.clone())
            }
        }
    }

    /// The engine, which knows how to connect.
    pub(crate) fn engine(&self) -> Result<Arc<dyn Engine>, Failure> {
        match self.uri() {
            Some(uri) => engines::connecting(uri),
            None => Err(self.settings.no_uri()),
        }
    }

    /// What `work` gives, unless the program must stop before.
    pub(crate) async fn unless_stopped<T, E: Into<Failure>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = work => done.map_err(|error| self.told(error)),
            () = self.stop.cancelled() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        }
    }

    /// A failure; one that comes after the program was told to stop comes from that.
    pub(crate) fn told(&self, error: impl Into<Failure>) -> Failure {
        let failure = error.into();
        if self.stop.is_cancelled() { Failure { exit: Exit::Interrupted, ..failure } } else { failure }
    }
}
