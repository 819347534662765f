//! A server of its own, into which a restore is tried.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use hindsight_catalog::RestorePlan;
use hindsight_format::RestoreTotals;

use crate::{Destination, Engine, Job, Result};

/// How to start a scratch server.
#[derive(Clone, Debug)]
pub struct ScratchRequest {
    /// The server's program; none to look for it in `PATH`.
    pub program: Option<PathBuf>,
    /// Folder in which it gets one for its data.
    pub folder: PathBuf,
    /// The version of the server whose data it must be able to hold.
    pub must_hold: String,
}

/// A running scratch server. It ends, and what it kept goes, with [`Scratch::stop`], and also when it is dropped.
#[async_trait]
pub trait Scratch: Send + Sync {
    /// The engine that is connected to it.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Where that engine is to restore.
    fn destination(&self) -> Destination {
        Destination::Connected
    }

    /// Its version.
    fn version(&self) -> &str;

    /// Lets the server check all that was restored, and compares it with what `plan` and `totals` promise.
    async fn examine(&self, job: &Job, plan: &RestorePlan, totals: &RestoreTotals) -> Result<Examined>;

    /// Ends it, and removes what it kept.
    async fn stop(self: Box<Self>) -> Result<()>;
}

/// What the examination of restored data gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// Containers that the server checked.
    pub containers: u64,
    /// Items in them.
    pub items: u64,
    /// Containers whose hash was compared with the one kept at backup time; none when none were kept, or the
    /// restore point is another moment.
    pub hashes_compared: Option<u64>,
    /// What is wrong, a line each.
    pub problems: Vec<String>,
}
