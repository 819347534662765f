//! What can go wrong between us and a server: what happened, and what to do.

use std::fmt;
use std::io;

use bytes::Bytes;
use hindsight_engine::{EngineError, FailureKind};
use postgres_protocol::message::backend::ErrorFields;
use thiserror::Error;

use super::refusal;

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a connection, or of what was asked over it.
#[derive(Debug, Error)]
pub enum Error {
    /// The connection string cannot be used.
    #[error("{what}")]
    Address {
        /// One line: what is wrong with it.
        what: String,
        /// One line: what to do.
        hint: String,
    },
    /// There is no connection, or there is none any more.
    #[error("{what}")]
    Unreachable {
        /// One line: what happened.
        what: String,
        /// One line: what to do.
        hint: String,
        /// Where it came from.
        #[source]
        source: Option<io::Error>,
    },
    /// We are not who the server takes.
    #[error("{what}")]
    Authentication {
        /// One line: what happened.
        what: String,
        /// One line: what to do.
        hint: String,
    },
    /// Something that the server or this client does not do.
    #[error("{what}")]
    Unsupported {
        /// One line: what.
        what: String,
        /// One line: what to do.
        hint: String,
    },
    /// The server has answered with an error.
    #[error("{}", refusal::told(doing, server))]
    Refused {
        /// What was being done, such as `connecting to db1:5432`.
        doing: String,
        /// Its words.
        #[source]
        server: Box<ServerError>,
    },
    /// The server said what makes no sense.
    #[error("the server's answer is not understood while {doing}: {what}")]
    Garbled {
        /// What was being done.
        doing: String,
        /// What makes no sense.
        what: String,
    },
}

impl Error {
    /// The SQLSTATE that the server gave, if it was the server who failed
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Refused { server, .. } => Some(&server.code),
            _ => None,
        }
    }

    /// What kind of failure this is for those who do not know PostgreSQL.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Address { .. } => FailureKind::Address,
            Self::Unreachable { .. } => FailureKind::Unreachable,
            Self::Authentication { .. } => FailureKind::Authentication,
            Self::Unsupported { .. } => FailureKind::Unsupported,
            Self::Refused { server, .. } => refusal::kind(server),
            Self::Garbled { .. } => FailureKind::Server,
        }
    }

    /// One line: what to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Address { hint, .. }
            | Self::Unreachable { hint, .. }
            | Self::Authentication { hint, .. }
            | Self::Unsupported { hint, .. } => Some(hint.clone()),
            Self::Refused { server, .. } => refusal::hint(server),
            Self::Garbled { .. } => {
                Some("see whether it is a PostgreSQL server that answers there, and not a proxy or a pooler".to_owned())
            }
        }
    }

    /// The connection ended by itself.
    pub(super) fn broken(doing: &str, source: io::Error) -> Self {
        let why = match source.kind() {
            io::ErrorKind::UnexpectedEof => "the server has closed it".to_owned(),
            _ => one_line(&source.to_string()),
        };
        Self::Unreachable {
            what: format!("the connection broke while {doing}: {why}"),
            hint: "see whether the server still runs there, and what its log says last".to_owned(),
            source: Some(source),
        }
    }

    pub(super) fn garbled(doing: &str, what: impl fmt::Display) -> Self {
        Self::Garbled { doing: doing.to_owned(), what: one_line(&what.to_string()) }
    }

    pub(super) fn refused(doing: &str, server: ServerError) -> Self {
        Self::Refused { doing: doing.to_owned(), server: Box::new(server) }
    }
}

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        let (kind, what, hint) = (error.kind(), error.to_string(), error.hint());
        Self { kind, what, hint, source: Some(Box::new(error)) }
    }
}

/// An error as a server tells it (<https://www.postgresql.org/docs/current/protocol-error-fields.html>).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`, in English whatever the server speaks.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// What happened, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server thinks should be done.
    pub hint: Option<String>,
    /// The function in the server's source that found it.
    pub routine: Option<String>,
}

impl ServerError {
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Result<Self, io::Error> {
        use postgres_protocol::message::backend::ErrorField;
        // Before it knows our encoding a server answers in its own.
        let text = |field: &ErrorField<'_>| one_line(&String::from_utf8_lossy(field.value_bytes()));
        let mut error = Self::default();
        while let Some(field) = fallible_iterator::FallibleIterator::next(&mut fields)? {
            match field.type_() {
                b'V' => error.severity = text(&field),
                // Absent before 9.6 only; localized.
                b'S' if error.severity.is_empty() => error.severity = text(&field),
                b'C' => error.code = text(&field),
                b'M' => error.message = text(&field),
                b'D' => error.detail = Some(text(&field)),
                b'H' => error.hint = Some(text(&field)),
                b'R' => error.routine = Some(text(&field)),
                _ => {}
            }
        }
        Ok(error)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {}", self.message, self.code)?;
        match &self.detail {
            Some(detail) => write!(f, "; {detail})"),
            None => f.write_str(")"),
        }
    }
}

impl std::error::Error for ServerError {}

/// Messages of servers may have several lines, and be as long as a statement.
pub(super) fn one_line(text: &str) -> String {
    const LONGEST: usize = 500;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// A text of the protocol, which was told to use UTF-8.
pub(super) fn utf8<'a>(doing: &str, what: &str, bytes: &'a Bytes) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| Error::garbled(doing, format!("{what} is not UTF-8")))
}
