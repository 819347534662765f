//! The one place that picks an engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hindsight_engine::{Engine, Words};
use hindsight_mongodb::MongoEngine;

use crate::exit::{Exit, Failure};
use crate::uri::DatabaseUri;

/// Names of all engines, as they are stored.
pub(crate) const ALL: [&str; 1] = [hindsight_mongodb::NAME];

/// The engine for a connection string, by its scheme. Nothing is connected yet.
pub(crate) fn connecting(uri: &DatabaseUri) -> Result<Arc<dyn Engine>, Failure> {
    if MongoEngine::accepts(uri.expose()) {
        return Ok(Arc::new(MongoEngine::new(uri.expose())));
    }
    Err(Failure::usage(format!("no engine knows databases such as {uri}"))
        .hint("a connection string begins with mongodb:// or mongodb+srv://"))
}

/// What the engine calls things that stored something; neutral words where this program does not have it.
pub(crate) fn words(name: &str) -> &'static Words {
    const NEUTRAL: Words =
        Words { container: ("container", "containers"), item: ("item", "items"), index: None, log: "log" };
    offline(name).map_or(&NEUTRAL, |engine| engine.words())
}

/// The program of a scratch server: the one that was named, or else the one in the environment.
pub(crate) fn scratch_program(named: Option<&Path>) -> Option<PathBuf> {
    let variable = || std::env::var_os("HINDSIGHT_MONGOD").filter(|value| !value.is_empty());
    named.map(Path::to_owned).or_else(|| variable().map(PathBuf::from))
}

/// The engine that stored something, without a database: it can only be asked about what is stored.
pub(crate) fn offline(name: &str) -> Result<Arc<dyn Engine>, Failure> {
    match name {
        hindsight_mongodb::NAME => Ok(Arc::new(MongoEngine::new(""))),
        other => Err(Failure::new(Exit::Refused, format!("this program has no engine {other:?}"))
            .hint(format!("it has {}; use the hindsight that stored it, or a newer one", ALL.join(", ")))),
    }
}
