//! Which namespaces belong to the users' data, and which to the server itself.

/// Splits `db.collection`.
pub(crate) fn split(ns: &str) -> (&str, &str) {
    ns.split_once('.').unwrap_or((ns, ""))
}

/// Whether a collection is part of what is protected. Left out is what describes this very
/// cluster and its present sessions: `local`, `config`, and the server's own in `admin`.
pub(crate) fn is_protected(db: &str, coll: &str) -> bool {
    match db {
        "local" | "config" => false,
        "admin" => !coll.starts_with("system.") || is_users_or_roles(db, coll),
        _ => coll != "system.profile",
    }
}

/// The collections that hold users and roles.
pub(crate) fn is_users_or_roles(db: &str, coll: &str) -> bool {
    db == "admin" && (coll == USERS || coll == ROLES)
}

/// Name in `admin`.
pub(crate) const USERS: &str = "system.users";
/// Name in `admin`.
pub(crate) const ROLES: &str = "system.roles";
/// The definitions of the views of a database.
pub(crate) const VIEWS: &str = "system.views";
/// The stored functions of a database.
pub(crate) const FUNCTIONS: &str = "system.js";

/// The time-series collection whose buckets are kept in `coll`.
pub(crate) fn time_series_of(coll: &str) -> Option<&str> {
    coll.strip_prefix("system.buckets.")
}

/// The collection that keeps the buckets of a time-series.
pub(crate) fn buckets_of(name: &str) -> String {
    format!("system.buckets.{name}")
}

/// The name that a user knows the collection by.
pub(crate) fn visible(coll: &str) -> &str {
    time_series_of(coll).unwrap_or(coll)
}
