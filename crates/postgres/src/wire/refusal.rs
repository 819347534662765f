//! What a server's refusal means, and what to do about it.
//!
//! Decided by SQLSTATE (src/backend/utils/errcodes.txt) and by the function that found the error, as messages may be
//! in any language.

use hindsight_engine::FailureKind;

use super::ServerError;

/// The codes that matter here.
pub(crate) mod code {
    pub(crate) const PROTOCOL_VIOLATION: &str = "08P01";
    pub(crate) const FEATURE_NOT_SUPPORTED: &str = "0A000";
    pub(crate) const INVALID_AUTHORIZATION: &str = "28000";
    pub(crate) const INVALID_PASSWORD: &str = "28P01";
    pub(crate) const INVALID_CATALOG_NAME: &str = "3D000";
    pub(crate) const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub(crate) const SYNTAX_ERROR: &str = "42601";
    pub(crate) const UNDEFINED_OBJECT: &str = "42704";
    pub(crate) const DUPLICATE_OBJECT: &str = "42710";
    pub(crate) const DISK_FULL: &str = "53100";
    pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";
    pub(crate) const CONFIGURATION_LIMIT: &str = "53400";
    pub(crate) const NOT_IN_PREREQUISITE_STATE: &str = "55000";
    pub(crate) const OBJECT_IN_USE: &str = "55006";
    pub(crate) const ADMIN_SHUTDOWN: &str = "57P01";
    pub(crate) const CRASH_SHUTDOWN: &str = "57P02";
    pub(crate) const CANNOT_CONNECT_NOW: &str = "57P03";
    pub(crate) const IDLE_SESSION_TIMEOUT: &str = "57P05";
    pub(crate) const UNDEFINED_FILE: &str = "58P01";
    pub(crate) const DATA_CORRUPTED: &str = "XX001";
}

/// What happened, in one line.
pub(super) fn told(doing: &str, server: &ServerError) -> String {
    let words = match &server.detail {
        Some(detail) => format!("{} ({detail})", server.message),
        None => server.message.clone(),
    };
    match kind(server) {
        FailureKind::Authentication => format!("the server does not let us in while {doing}: {words}"),
        FailureKind::Privilege => format!("the user lacks a privilege while {doing}: {words}"),
        FailureKind::Unreachable => format!("the server ended the connection while {doing}: {words}"),
        _ => format!("the server refused while {doing}: {words}"),
    }
}

/// Its kind.
pub(super) fn kind(server: &ServerError) -> FailureKind {
    match server.code.as_str() {
        code::INVALID_PASSWORD | code::INVALID_AUTHORIZATION => FailureKind::Authentication,
        code::INSUFFICIENT_PRIVILEGE => FailureKind::Privilege,
        code::INVALID_CATALOG_NAME => FailureKind::Address,
        code::ADMIN_SHUTDOWN | code::CRASH_SHUTDOWN | code::CANNOT_CONNECT_NOW | code::IDLE_SESSION_TIMEOUT => {
            FailureKind::Unreachable
        }
        code::FEATURE_NOT_SUPPORTED | code::SYNTAX_ERROR => FailureKind::Unsupported,
        _ if no_replication(server) || is_pooler(server) => FailureKind::Unsupported,
        _ => FailureKind::Server,
    }
}

/// What to do.
pub(super) fn hint(server: &ServerError) -> Option<String> {
    let hint = match server.code.as_str() {
        code::INVALID_PASSWORD => {
            "check user and password in the connection string, in PGPASSWORD, or in ~/.pgpass; the server's log tells more"
        }
        code::INVALID_AUTHORIZATION => match server.routine.as_deref() {
            Some("ClientAuthentication") => {
                "add a line for this user and address to the server's pg_hba.conf, with `replication` as its database \
                 for backups, and reload: hostssl replication USER ADDRESS scram-sha-256"
            }
            _ => {
                "check the user in the connection string: the role must exist, may have to LOGIN, or needs a certificate"
            }
        },
        code::INSUFFICIENT_PRIVILEGE => match server.routine.as_deref() {
            Some("InitPostgres" | "CheckReplicationPermission" | "check_permissions") => {
                "give it to the role of the connection string: ALTER ROLE name REPLICATION"
            }
            _ => "see the user guide for the grants that each kind of work needs",
        },
        code::INVALID_CATALOG_NAME => "check the name of the database in the connection string",
        code::CANNOT_CONNECT_NOW => "wait until it has started, or shut down; its log tells how far it is",
        code::ADMIN_SHUTDOWN | code::CRASH_SHUTDOWN | code::IDLE_SESSION_TIMEOUT => {
            "see what the server's log says, and connect again when it runs"
        }
        code::FEATURE_NOT_SUPPORTED | code::SYNTAX_ERROR => {
            "see the version of the server: replication as it is used here came with PostgreSQL 13"
        }
        _ if is_pooler(server) => {
            "connect to the server itself: what answers there is a pooler, which passes no replication on"
        }
        _ if no_replication(server) => {
            "set wal_level = replica, max_wal_senders = 10 and max_replication_slots = 10 on the server, and restart it"
        }
        code::TOO_MANY_CONNECTIONS => {
            "end other connections, or raise max_connections or max_wal_senders on the server"
        }
        code::CONFIGURATION_LIMIT => {
            "drop replication slots that nobody uses, or raise max_replication_slots on the server"
        }
        code::OBJECT_IN_USE => {
            "another receiver uses it: see pg_stat_replication; one that is gone is given up after wal_sender_timeout"
        }
        code::UNDEFINED_OBJECT => {
            "see pg_replication_slots: a slot that somebody dropped, or that a failover left behind, keeps no log, so that \
             there may be a gap from there on"
        }
        code::DUPLICATE_OBJECT => "use the one that is there, or drop it first",
        code::UNDEFINED_FILE => {
            "the server no longer has that part of its log, so there is a gap: take a new backup, with a slot that keeps the log"
        }
        code::DISK_FULL => "make room on the disk of the database",
        code::DATA_CORRUPTED => {
            "pages of the database are damaged: see pg_amcheck and the server's log before anything else"
        }
        _ => return server.hint.clone(),
    };
    Some(hint.to_owned())
}

/// Whether this server does not replicate at all: `wal_level = minimal` (which goes with `max_wal_senders = 0` only), or
/// `max_replication_slots = 0`. The names of settings are the same in every language.
fn no_replication(server: &ServerError) -> bool {
    match server.code.as_str() {
        code::NOT_IN_PREREQUISITE_STATE => server.routine.as_deref() == Some("CheckSlotRequirements"),
        code::TOO_MANY_CONNECTIONS => {
            server.message.contains("max_wal_senders") && !server.message.contains(|c: char| ('1'..='9').contains(&c))
        }
        _ => false,
    }
}

/// Whether it is a pooler that does not know sessions for replication: PgBouncer says `unsupported startup parameter: replication`.
fn is_pooler(server: &ServerError) -> bool {
    server.code == code::PROTOCOL_VIOLATION && server.message.contains("startup parameter: replication")
}

#[cfg(test)]
mod tests {
    use hindsight_engine::EngineError;

    use super::*;
    use crate::wire::Error;

    fn refused(code: &str, routine: &str, message: &str) -> EngineError {
        let server = ServerError {
            severity: "FATAL".to_owned(),
            code: code.to_owned(),
            message: message.to_owned(),
            routine: Some(routine.to_owned()),
            ..ServerError::default()
        };
        Error::refused("connecting to db:5432", server).into()
    }

    #[test]
    fn what_and_what_to_do_are_a_line_each() {
        let error = refused("28P01", "auth_failed", "password authentication failed for user \"u\"");
        assert_eq!(error.kind, FailureKind::Authentication);
        assert_eq!(
            error.what,
            "the server does not let us in while connecting to db:5432: password authentication failed for user \"u\""
        );
        assert!(error.hint.is_some_and(|hint| hint.starts_with("check user and password") && !hint.contains('\n')));
    }

    #[test]
    fn a_language_that_is_not_known_changes_nothing() {
        let error = refused(
            "53300",
            "InitProcess",
            "die Anzahl angeforderter Verbindungen überschreitet max_wal_senders (aktuell 0)",
        );
        assert_eq!(error.kind, FailureKind::Unsupported);
        let error = refused(
            "53300",
            "InitProcess",
            "number of requested standby connections exceeds max_wal_senders (currently 10)",
        );
        assert_eq!(error.kind, FailureKind::Server);
        assert!(error.hint.is_some_and(|hint| hint.contains("raise max_connections or max_wal_senders")));
        let error =
            refused("55000", "CheckSlotRequirements", "Replikations-Slots können nur verwendet werden, wenn ...");
        assert_eq!(error.kind, FailureKind::Unsupported);
        assert!(error.hint.is_some_and(|hint| hint.contains("wal_level = replica")));
    }

    #[test]
    fn a_pooler_is_told_from_a_server() {
        let error = refused("08P01", "", "unsupported startup parameter: replication");
        assert_eq!(error.kind, FailureKind::Unsupported);
        assert!(error.hint.is_some_and(|hint| hint.contains("is a pooler")));
    }

    #[test]
    fn the_servers_own_hint_stands_where_there_is_none_of_ours() {
        let server =
            ServerError { code: "99999".to_owned(), hint: Some("do this".to_owned()), ..ServerError::default() };
        assert_eq!(Error::refused("x", server).hint().as_deref(), Some("do this"));
    }
}
