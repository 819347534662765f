//! The one place that picks an engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hindsight_engine::{Engine, Words};
use hindsight_mongodb::MongoEngine;

use crate::exit::{Exit, Failure};
use crate::uri::DatabaseUri;

/// An engine, as the program knows it before it has one.
struct Known {
    /// As it is stored.
    name: &'static str,
    /// How its connection strings begin.
    schemes: &'static str,
    /// What they look like.
    shape: &'static str,
    /// The environment variable that names its server's program.
    program: &'static str,
    accepts: fn(&str) -> bool,
    /// An engine for a connection string; without one it can only be asked about what is stored.
    new: fn(&str) -> Arc<dyn Engine>,
}

const ALL: [Known; 1] = [Known {
    name: hindsight_mongodb::NAME,
    schemes: "mongodb:// or mongodb+srv://",
    shape: "mongodb://user:password@host:27017/?replicaSet=rs0",
    program: "HINDSIGHT_MONGOD",
    accepts: MongoEngine::accepts,
    new: |uri| Arc::new(MongoEngine::new(uri)),
}];

/// Names of all engines, as they are stored.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|known| known.name)
}

/// What connection strings look like.
pub(crate) fn shapes() -> String {
    either(|known| known.shape)
}

fn either(what: fn(&Known) -> &'static str) -> String {
    ALL.iter().map(what).collect::<Vec<_>>().join(" or ")
}

/// The engine for a connection string, by its scheme. Nothing is connected yet.
pub(crate) fn connecting(uri: &DatabaseUri) -> Result<Arc<dyn Engine>, Failure> {
    match of(uri) {
        Some(known) => Ok((known.new)(uri.expose())),
        None => Err(Failure::usage(format!("no engine knows databases such as {uri}"))
            .hint(format!("a connection string begins with {}", either(|known| known.schemes)))),
    }
}

/// The name of the engine for a connection string.
pub(crate) fn name_of(uri: &DatabaseUri) -> Option<&'static str> {
    of(uri).map(|known| known.name)
}

fn of(uri: &DatabaseUri) -> Option<&'static Known> {
    ALL.iter().find(|known| (known.accepts)(uri.expose()))
}

fn named(name: &str) -> Option<&'static Known> {
    ALL.iter().find(|known| known.name == name)
}

/// What the engine calls things that stored something; neutral words where this program does not have it.
pub(crate) fn words(name: &str) -> &'static Words {
    const NEUTRAL: Words = Words {
        container: ("container", "containers"),
        item: ("item", "items"),
        index: None,
        log: "log",
        comment: "#",
    };
    named(name).map_or(&NEUTRAL, |known| (known.new)("").words())
}

/// The program of a server of the engine `name`: the one that was named, or else the one in the environment.
pub(crate) fn program(name: &str, path: Option<&Path>) -> Option<PathBuf> {
    let variable = || std::env::var_os(named(name)?.program).filter(|value| !value.is_empty());
    path.map(Path::to_owned).or_else(|| variable().map(PathBuf::from))
}

/// The engine that stored something, without a database: it can only be asked about what is stored.
pub(crate) fn offline(name: &str) -> Result<Arc<dyn Engine>, Failure> {
    match named(name) {
        Some(known) => Ok((known.new)("")),
        None => Err(Failure::new(Exit::Refused, format!("this program has no engine {name:?}")).hint(format!(
            "it has {}; use the hindsight that stored it, or a newer one",
            names().collect::<Vec<_>>().join(", ")
        ))),
    }
}
