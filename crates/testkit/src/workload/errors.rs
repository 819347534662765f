//! Errors that are legitimate while many clients change everything at once.

use mongodb::error::{Error, ErrorKind};

/// Codes that the workload expects, with the reason where the name doesn't say it. They are stable across versions; the
/// names of those below 1000 are in `error_codes.yml` of the server.
const TOLERATED: &[(i32, &str)] = &[
    (2, "BadValue: an operator on a field of another type"),
    (5, "GraphContainsCycle: a view of itself"),
    (9, "FailedToParse"),
    (11, "UserNotFound"),
    (14, "TypeMismatch"),
    (15, "Overflow: see 50810"),
    (20, "IllegalOperation: this kind of collection can't do it"),
    (24, "LockTimeout: a transaction met a change of the catalog"),
    (26, "NamespaceNotFound"),
    (27, "IndexNotFound"),
    (28, "PathNotViable"),
    (31, "RoleNotFound"),
    (48, "NamespaceExists"),
    (50, "MaxTimeMSExpired: it met an open transaction"),
    (52, "DollarPrefixedFieldName"),
    (66, "ImmutableField"),
    (67, "CannotCreateIndex"),
    (72, "InvalidOptions"),
    (73, "InvalidNamespace: a temporary or buckets name gets too long"),
    (85, "IndexOptionsConflict"),
    (86, "IndexKeySpecsConflict"),
    (112, "WriteConflict"),
    (121, "DocumentValidationFailure"),
    (166, "CommandNotSupportedOnView"),
    (167, "OptionNotSupportedOnView: views of views share their collation"),
    (171, "CannotIndexParallelArrays"),
    (201, "CannotBuildIndexKeys: symbols have no place in an index with a collation"),
    (215, "DatabaseDropPending"),
    (246, "SnapshotUnavailable: the catalog changed since the transaction began"),
    (251, "NoSuchTransaction: it was aborted"),
    (263, "OperationNotSupportedInTransaction: on this kind of collection"),
    (276, "IndexBuildAborted: its collection was dropped"),
    (290, "TransactionExceededLifetimeLimitSeconds"),
    (10334, "BSONObjectTooLarge"),
    (11000, "DuplicateKey"),
    (12587, "BackgroundOperationInProgressForNamespace: an index build"),
    (16766, "hashed indexes take no arrays"),
    (50810, "a duplicate key of a clustered collection that the server fails to print: a decimal number"),
    (50818, "see 50810"),
    (51002, "a role exists"),
    (51003, "a user exists"),
];

/// Whether the workload goes on after a server's error of this code.
pub(super) fn is_tolerated(code: i32) -> bool {
    TOLERATED.iter().any(|(tolerated, _)| *tolerated == code)
}

/// Whether an error comes of members that step down, end or can't be reached.
pub(super) fn is_failover(error: &Error) -> bool {
    match error.kind.as_ref() {
        ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } | ErrorKind::ServerSelection { .. } => true,
        ErrorKind::Command(error) => is_failover_code(error.code),
        _ => false,
    }
}

/// The same by code: `NotWritablePrimary`, `InterruptedDueToReplStateChange`, `PrimarySteppedDown` and the like.
pub(super) fn is_failover_code(code: i32) -> bool {
    matches!(code, 6 | 7 | 64 | 89 | 91 | 100 | 189 | 9001 | 10107 | 11600 | 11602 | 13435 | 13436)
}
