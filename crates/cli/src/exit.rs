//! Failures as the user sees them: one line what, one line what to do, a stable exit code.

use hindsight_catalog::Refusal;
use hindsight_engine::{EngineError, FailureKind, SelectionError};
use hindsight_format::ConfigError;
use hindsight_jobs::JobError;
use hindsight_repository::Error as RepositoryError;

/// Exit codes. They are stable: scripts may rely on them. 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Anything that has no code of its own.
    Other = 1,
    /// The command line, or a file that it names, is wrong.
    Usage = 2,
    /// What was asked for is understood, and refused: the restore point cannot be restored, the
    /// topology or version is not supported, the answer to the question was no.
    Refused = 3,
    /// Another backup, restore or cleanup of the cluster is running.
    Busy = 4,
    /// The database does not answer.
    Unreachable = 5,
    /// The database does not accept user and password, or the user lacks a privilege.
    Denied = 6,
    /// The repository does not answer, or does not permit what is needed.
    Repository = 7,
    /// What is stored is damaged, or a part of it is missing.
    Damaged = 8,
    /// There is no such snapshot, restore, cluster or setting.
    Unknown = 9,
    /// Stopped by a signal, or by `cancel-backup`.
    Interrupted = 130,
}

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What happened, to what.
    pub(crate) what: String,
    /// What to do.
    pub(crate) hint: Option<String>,
    /// The exit code.
    pub(crate) exit: Exit,
}

impl Failure {
    /// A failure with this exit code.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, exit }
    }

    /// A failure that the printed result has told already.
    pub(crate) fn told(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// The command line is wrong.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// The same with a way out.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with the repository, where it is the one that failed, by its URL.
    pub(crate) fn in_repository(mut self, url: &str) -> Self {
        if self.exit == Exit::Repository && !self.what.contains(url) {
            self.what = self.what.replacen("the repository", &format!("the repository {url}"), 1);
        }
        self
    }

    /// The same with more of a way out.
    pub(crate) fn also(mut self, hint: &str) -> Self {
        self.hint = Some(self.hint.map_or_else(|| hint.to_owned(), |first| format!("{first}; {hint}")));
        self
    }

    fn repository(error: &RepositoryError) -> Self {
        let failure = |exit| Self::new(exit, error.to_string());
        match error {
            RepositoryError::Url { .. } | RepositoryError::Settings(_) => failure(Exit::Repository),
            RepositoryError::Store { doing, key, failure } => {
                let what = format!("cannot {doing} {key} in the repository: {}", failure.why);
                let hint = (!failure.hint.is_empty()).then(|| failure.hint.clone());
                Self { what, hint, exit: Exit::Repository }
            }
            RepositoryError::Missing { .. } | RepositoryError::Damaged { .. } => failure(Exit::Damaged),
            RepositoryError::NewerFormat { .. } | RepositoryError::OtherCluster { .. } => failure(Exit::Refused),
            RepositoryError::Sealed { given: None, .. } => failure(Exit::Usage).hint(
                "give the identity file of one of these keys with --identity FILE, HINDSIGHT_IDENTITY or `identity` in \
                 hindsight.toml",
            ),
            RepositoryError::Sealed { given: Some(_), .. } => failure(Exit::Refused)
                .hint("give the identity file of one of these keys; --identity may be given several times"),
            RepositoryError::Name(_) => failure(Exit::Usage),
            RepositoryError::Config(error) => Self::config(error),
            RepositoryError::Exists { .. } | RepositoryError::Refused(_) => failure(Exit::Other),
        }
    }

    fn config(error: &ConfigError) -> Self {
        let exit = match error {
            ConfigError::UnknownKey { .. } => Exit::Unknown,
            ConfigError::BadValue { .. } | ConfigError::Malformed(_) => Exit::Usage,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Self {
        Self::repository(&error)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        tracing::debug!(source = ?error.source.as_ref().map(ToString::to_string), "{error}");
        if let Some(source) = error.source.as_ref().and_then(|source| source.downcast_ref::<RepositoryError>()) {
            let mut failure = Self::repository(source);
            // What the engine knows of the consequences comes first.
            let own = failure.hint.take();
            failure.hint = error.hint;
            return own.into_iter().fold(failure, |failure, own| failure.also(&own));
        }
        let exit = match error.kind {
            FailureKind::Unreachable => Exit::Unreachable,
            FailureKind::Authentication | FailureKind::Privilege => Exit::Denied,
            FailureKind::Address => Exit::Usage,
            FailureKind::Unsupported => Exit::Refused,
            FailureKind::Damaged => Exit::Damaged,
            FailureKind::Repository => Exit::Repository,
            FailureKind::Server | FailureKind::Local | FailureKind::Cancelled => Exit::Other,
        };
        Self { what: error.what, hint: error.hint, exit }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match &refusal {
            Refusal::UnknownSnapshot { .. } => Exit::Unknown,
            Refusal::Damaged { .. } | Refusal::NotWhole { .. } => Exit::Damaged,
            Refusal::TwoBases { .. } => Exit::Usage,
            _ => Exit::Refused,
        };
        Self::new(exit, refusal.to_string()).hint(refusal.hint())
    }
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        let hint = error.hint();
        let what = error.to_string();
        match error {
            JobError::Engine(error) => error.into(),
            JobError::Repository(error) => error.into(),
            JobError::Refused(refusal) => refusal.into(),
            JobError::Busy(_) => Self { what, hint, exit: Exit::Busy },
            JobError::Cancelled(_) => Self { what, hint, exit: Exit::Interrupted },
            JobError::Interrupted { cause, .. } => Self { hint, ..Self::from(*cause) },
            JobError::NothingToResume(Some(_)) => Self { what, hint, exit: Exit::Unknown },
            JobError::NothingToCancel
            | JobError::NothingToResume(None)
            | JobError::Changed
            | JobError::NotYetCaptured { .. }
            | JobError::OtherHistory { .. } => Self { what, hint, exit: Exit::Refused },
            JobError::NoRoomToDelete(error) => Self { hint, ..Self::repository(&error) },
            JobError::WhichCluster { .. } => Self { what, hint, exit: Exit::Usage },
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::config(&error)
    }
}

impl From<SelectionError> for Failure {
    fn from(error: SelectionError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Other, format!("the operating system failed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_repository_keeps_its_code_inside_one_of_the_engine() {
        let missing = || RepositoryError::Missing { key: "k".to_owned() };
        assert_eq!(Failure::from(missing()).exit, Exit::Damaged);
        assert_eq!(Failure::from(EngineError::from(missing())).exit, Exit::Damaged);
        assert_eq!(Failure::from(JobError::from(EngineError::from(missing()))).exit, Exit::Damaged);
        let newer = RepositoryError::NewerFormat { key: "k".to_owned(), found: 2, known: 1 };
        assert_eq!(Failure::from(EngineError::from(newer)).exit, Exit::Refused);
    }

    #[test]
    fn the_way_out_that_an_engine_knows_is_kept_beside_that_of_the_repository() {
        let hint = |error: RepositoryError| Failure::from(EngineError::from(error).hint("remove it")).hint;
        assert_eq!(hint(RepositoryError::Missing { key: "k".to_owned() }).as_deref(), Some("remove it"));
        let sealed = || RepositoryError::Sealed { what: "k".to_owned(), sealed_to: Vec::new(), given: None };
        let both = hint(sealed()).unwrap();
        assert!(both.starts_with("remove it; give the identity file"), "{both}");
        assert_eq!(Failure::from(EngineError::from(sealed())).hint, Failure::from(sealed()).hint);
    }

    #[test]
    fn settings_and_snapshots_that_do_not_exist_are_unknown() {
        let unknown = hindsight_format::ClusterConfig::default().get("nope").err().map(Failure::from);
        assert_eq!(unknown.map(|failure| failure.exit), Some(Exit::Unknown));
        let refusal = Refusal::UnknownSnapshot { name: "x".to_owned(), nearest: Vec::new() };
        assert_eq!(Failure::from(refusal).exit, Exit::Unknown);
        assert_eq!(Failure::from(Refusal::NoSnapshots).exit, Exit::Refused);
    }
}
