//! The one place that picks an engine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use hindsight_engine::{Engine, Words};
use hindsight_mongodb::MongoEngine;
use hindsight_postgres::PostgresEngine;

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
    /// The environment variable that names its server's program, or the folder of that.
    program: &'static str,
    /// What a server of its runs during a restore.
    helper: Option<Helper>,
    accepts: fn(&str) -> bool,
    /// An engine for a connection string; without one it can only be asked about what is stored.
    new: fn(&str) -> Arc<dyn Engine>,
}

/// A verb that is no verb of people: a server runs it again and again, to ask a restore for something. It has no settings,
/// no help, and no runtime.
struct Helper {
    verb: &'static str,
    /// Takes what follows the verb; gives the exit code.
    run: fn(&[OsString]) -> ExitCode,
}

const ALL: [Known; 2] = [
    Known {
        name: hindsight_mongodb::NAME,
        schemes: "mongodb:// or mongodb+srv://",
        shape: "mongodb://user:password@host:27017/?replicaSet=rs0",
        program: "HINDSIGHT_MONGOD",
        helper: None,
        accepts: MongoEngine::accepts,
        new: |uri| Arc::new(MongoEngine::new(uri)),
    },
    Known {
        name: hindsight_postgres::NAME,
        schemes: "postgresql:// or postgres://",
        shape: "postgresql://user:password@host:5432/",
        program: "HINDSIGHT_PG_BIN",
        helper: Some(Helper { verb: hindsight_postgres::HELPER, run: hindsight_postgres::help }),
        accepts: PostgresEngine::accepts,
        new: |uri| Arc::new(PostgresEngine::new(uri)),
    },
];

/// Does what a server asks for, if it was that which started the program; gives the exit code.
pub(crate) fn help(arguments: &[OsString]) -> Option<ExitCode> {
    let (verb, rest) = arguments.get(1..)?.split_first()?;
    let helper = ALL.iter().filter_map(|known| known.helper.as_ref()).find(|helper| *verb == *helper.verb)?;
    Some((helper.run)(rest))
}

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
