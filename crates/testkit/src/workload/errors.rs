//! Errors that are legitimate while many clients change everything at once.

use std::ops::RangeInclusive;

use bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind};

/// Codes that the workload expects, with the reason where the name doesn't say it. They are stable across versions; the
/// names of those below 1000 are in `error_codes.yml` of the server.
const TOLERATED: &[(i32, &str)] = &[
    (2, "BadValue: an operator on a field of another type"),
    (5, "GraphContainsCycle: a view of itself"),
    (9, "FailedToParse"),
    (11, "UserNotFound"),
    (14, "TypeMismatch"),
    (15, "Overflow: see KEY_STRING"),
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
    (136, "CappedPositionLost: what it was to read next is gone"),
    (166, "CommandNotSupportedOnView"),
    (167, "OptionNotSupportedOnView: views of views share their collation"),
    (171, "CannotIndexParallelArrays"),
    (175, "QueryPlanKilled: the collection was dropped meanwhile"),
    (181, "AmbiguousIndexKeyPattern: two indexes have the key of the one to drop"),
    (201, "CannotBuildIndexKeys: symbols have no place in an index with a collation"),
    (215, "DatabaseDropPending"),
    (246, "SnapshotUnavailable: the catalog changed since the transaction began"),
    (251, "NoSuchTransaction: it was aborted"),
    (263, "OperationNotSupportedInTransaction: on this kind of collection"),
    (276, "IndexBuildAborted: its collection was dropped"),
    (285, "IndexBuildAlreadyInProgress: of the same index, wished for in a transaction"),
    (290, "TransactionExceededLifetimeLimitSeconds"),
    (10003, "CannotGrowDocumentInCappedNamespace"),
    (10334, "BSONObjectTooLarge"),
    (11000, "DuplicateKey"),
    (12587, "BackgroundOperationInProgressForNamespace: an index build"),
    (16766, "hashed indexes take no arrays"),
    (17399, "a collection has the name of the view"),
    (28724, "$slice of no array"),
    (51002, "a role exists"),
    (51003, "a user exists"),
    (6_049_202, "a TTL index on a capped clustered collection"),
];

/// `KeyString format error`s: a duplicate `_id` of a clustered collection that the server fails to print, as record ids
/// don't tell types of numbers (6.0, tried).
const KEY_STRING: RangeInclusive<i32> = 50_810..=50_850;

/// Whether the workload goes on after a server's error of this code.
pub(super) fn is_tolerated(code: i32) -> bool {
    KEY_STRING.contains(&code) || TOLERATED.iter().any(|(tolerated, _)| *tolerated == code)
}

/// What matters of an answer to a write that the driver can't read: the server puts collation keys, which are no UTF-8,
/// into its messages about duplicate keys.
pub(super) fn not_utf8(error: &Error) -> Option<Document> {
    if !matches!(error.kind.as_ref(), ErrorKind::Bson(_)) {
        return None;
    }
    let answer = error.server_response()?;
    let mut readable = Document::new();
    for name in ["n", "nModified"] {
        readable.extend(answer.get_i32(name).ok().map(|n| (name.to_owned(), n.into())));
    }
    let mut errors = Vec::new();
    for error in answer.get_array("writeErrors").into_iter().flatten() {
        errors.push(Bson::from(doc! {"code": error.ok()?.as_document()?.get_i32("code").ok()?}));
    }
    readable.insert("writeErrors", errors);
    Some(readable)
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
