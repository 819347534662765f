//! Errors of engines: what happened, to what, and what to do.

use hindsight_repository::Error as RepositoryError;
use thiserror::Error;

/// A failure, with its kind (which decides the exit code), and a way out.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct EngineError {
    /// What kind of failure.
    pub kind: FailureKind,
    /// One line: what happened, to what.
    pub what: String,
    /// One line: what to do.
    pub hint: Option<String>,
    /// Where it came from.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The database cannot be reached.
    Unreachable,
    /// The database does not accept who we are.
    Authentication,
    /// The user lacks a privilege.
    Privilege,
    /// The connection string cannot be used.
    Address,
    /// This cannot be protected, or not be restored there.
    Unsupported,
    /// The server refused or failed.
    Server,
    /// What is stored is damaged or does not make sense.
    Damaged,
    /// The repository failed.
    Repository,
    /// The local machine failed, such as a full disk.
    Local,
    /// Stopped on request, or because the lease was lost.
    Cancelled,
}

impl EngineError {
    /// A failure of `kind`.
    pub fn new(kind: FailureKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: None, source: None }
    }

    /// The same with a way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with its cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Stopped.
    pub fn cancelled() -> Self {
        Self::new(FailureKind::Cancelled, "stopped before it was done")
    }

    /// Something stored that does not make sense.
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::new(FailureKind::Damaged, what)
    }
}

impl From<RepositoryError> for EngineError {
    fn from(error: RepositoryError) -> Self {
        let kind = match &error {
            RepositoryError::Damaged { .. } | RepositoryError::Missing { .. } => FailureKind::Damaged,
            _ => FailureKind::Repository,
        };
        Self { kind, what: error.to_string(), hint: None, source: Some(Box::new(error)) }
    }
}

impl From<std::io::Error> for EngineError {
    fn from(error: std::io::Error) -> Self {
        Self::new(FailureKind::Local, format!("local file: {error}")).caused_by(error)
    }
}
