//! From the driver's errors to ours: what happened, and what to do.

use hindsight_engine::{EngineError, FailureKind};
use mongodb::error::{Error, ErrorKind};

/// Server error codes, from mongo/src/mongo/base/error_codes.yml.
pub(crate) mod code {
    pub(crate) const UNAUTHORIZED: i32 = 13;
    pub(crate) const AUTHENTICATION_FAILED: i32 = 18;
    pub(crate) const ILLEGAL_OPERATION: i32 = 20;
    pub(crate) const NAMESPACE_NOT_FOUND: i32 = 26;
    pub(crate) const INDEX_NOT_FOUND: i32 = 27;
    pub(crate) const CURSOR_NOT_FOUND: i32 = 43;
    pub(crate) const NAMESPACE_EXISTS: i32 = 48;
    pub(crate) const COMMAND_FAILED: i32 = 125;
    pub(crate) const CAPPED_POSITION_LOST: i32 = 136;
    pub(crate) const UPDATE_FAILED: i32 = 156;
    pub(crate) const QUERY_PLAN_KILLED: i32 = 175;
    pub(crate) const INTERRUPTED: i32 = 11601;
}

/// The server's error code, if the server answered at all.
pub(crate) fn code_of(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

/// An error of the driver while `doing` something, such as `reading app.orders`.
pub(crate) fn driver(doing: &str, error: Error) -> EngineError {
    let text = plain(&error);
    let failure = match &*error.kind {
        ErrorKind::ServerSelection { .. } | ErrorKind::DnsResolve { .. } => {
            EngineError::new(FailureKind::Unreachable, format!("no answer from the database while {doing}: {text}"))
                .hint(
                    "check the hosts in the connection string, the network, and that mongod runs there: \
                     one whose disk is full ends itself, and says so in its log",
                )
        }
        ErrorKind::Authentication { .. } => not_accepted(doing),
        ErrorKind::Command(command) => match command.code {
            code::AUTHENTICATION_FAILED => not_accepted(doing),
            code::UNAUTHORIZED => missing_privilege(doing, &command.message),
            _ => refused(format!("the server refused while {doing}: {text}")),
        },
        ErrorKind::InvalidArgument { .. } | ErrorKind::InvalidTlsConfig { .. } => {
            EngineError::new(FailureKind::Address, format!("the connection string cannot be used: {text}"))
                .hint("a connection string looks like mongodb://user:password@host:27017/?replicaSet=rs0")
        }
        ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } => {
            EngineError::new(FailureKind::Unreachable, format!("the connection broke while {doing}: {text}")).hint(
                "see whether mongod still runs there, and what its log says last: one whose disk is full ends itself",
            )
        }
        _ => EngineError::new(FailureKind::Server, format!("{doing} failed: {text}")),
    };
    failure.caused_by(error)
}

/// The server has answered, and does not do it.
pub(crate) fn refused(what: String) -> EngineError {
    let full = what.contains("No space left on device");
    let error = EngineError::new(FailureKind::Server, what);
    if full {
        error.hint("make room on the disk of the database: a server whose disk is full ends itself")
    } else {
        error
    }
}

fn not_accepted(doing: &str) -> EngineError {
    EngineError::new(FailureKind::Authentication, format!("the server does not accept user and password ({doing})"))
        .hint("check user, password and authSource in the connection string")
}

fn missing_privilege(doing: &str, message: &str) -> EngineError {
    // "not authorized on DB to execute command { NAME: ..." or "... requires authentication"
    if message.contains("requires authentication") {
        return EngineError::new(
            FailureKind::Authentication,
            format!("the server wants a user and a password ({doing})"),
        )
        .hint("put them into the connection string: mongodb://user:password@host:27017/?replicaSet=rs0");
    }
    let right = message
        .split_once("not authorized on ")
        .and_then(|(_, rest)| rest.split_once(" to execute command { "))
        .and_then(|(db, rest)| Some(format!("\"{}\" on {db}", rest.split_once(':')?.0)));
    let right = right.unwrap_or_else(|| message.to_owned());
    // The role restore of MongoDB 5.0 lacks it; only documents with an empty timestamp at their top need it.
    let hint = match right.contains("\"applyOps\"") {
        true => "grant the user dbAdminAnyDatabase on admin too, or the action applyOps on the cluster",
        false => {
            "backup and capture need the roles backup and clusterMonitor on admin, a restore needs restore and clusterMonitor"
        }
    };
    EngineError::new(FailureKind::Privilege, format!("while {doing}: the user lacks the privilege {right}")).hint(hint)
}

/// The driver's message without its internals.
pub(crate) fn plain(error: &Error) -> String {
    match &*error.kind {
        ErrorKind::Command(command) => format!("{} ({})", command.message, command.code_name),
        ErrorKind::ServerSelection { message, .. } => message.clone(),
        ErrorKind::Authentication { message, .. } | ErrorKind::InvalidArgument { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// What the server cannot be protected or restored with.
pub(crate) fn unsupported(what: impl Into<String>, hint: &str) -> EngineError {
    EngineError::new(FailureKind::Unsupported, what).hint(hint)
}
