//! What is restored, and what that will do to the target.

use std::path::PathBuf;

use hindsight_format::{ClusterIdentity, Point, RestoreTotals};
use jiff::Timestamp;
use serde::Serialize;
use thiserror::Error;

/// Which namespaces are restored, and under which name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// Patterns `db.coll` or `db.*`; empty for everything.
    patterns: Vec<String>,
    /// Where to, when not to the name it had.
    renaming: Option<Renaming>,
}

/// `--ns-from`, `--ns-to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Renaming {
    /// `db.coll` or `db.*`.
    pub from: String,
    /// The same form as `from`.
    pub to: String,
}

/// A selection that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SelectionError {
    /// Not `db.coll` or `db.*`.
    #[error("{0:?} is no namespace: write db.collection, or db.* for a whole database")]
    Pattern(String),
    /// Only one of the two, or together with --ns.
    #[error("--ns-from and --ns-to go together, and not with --ns")]
    Incomplete,
    /// `db.*` to `db.coll` or the other way round.
    #[error("{0} cannot become {1}: both must be a collection, or both a whole database")]
    Mismatch(String, String),
    /// The server's own.
    #[error("{0} belongs to the server itself and is never restored by name")]
    System(String),
}

fn split(pattern: &str) -> Result<(&str, &str), SelectionError> {
    let bad = || SelectionError::Pattern(pattern.to_owned());
    let (db, coll) = pattern.split_once('.').ok_or_else(bad)?;
    if db.is_empty() || coll.is_empty() || db.contains('*') || (coll != "*" && coll.contains('*')) {
        return Err(bad());
    }
    if ["admin", "config", "local"].contains(&db) {
        return Err(SelectionError::System(pattern.to_owned()));
    }
    Ok((db, coll))
}

impl Selection {
    /// A selection of `db.coll` and `db.*` patterns; none means everything, and so does `*.*`.
    pub fn new(patterns: Vec<String>) -> Result<Self, SelectionError> {
        if patterns.iter().all(|p| p == "*.*") {
            return Ok(Self::default());
        }
        for pattern in &patterns {
            split(pattern)?;
        }
        Ok(Self { patterns, renaming: None })
    }

    /// One namespace (or database) under another name.
    pub fn renamed(from: &str, to: &str) -> Result<Self, SelectionError> {
        let ((_, a), (_, b)) = (split(from)?, split(to)?);
        if (a == "*") != (b == "*") {
            return Err(SelectionError::Mismatch(from.to_owned(), to.to_owned()));
        }
        let renaming = Renaming { from: from.to_owned(), to: to.to_owned() };
        Ok(Self { patterns: vec![from.to_owned()], renaming: Some(renaming) })
    }

    /// From the flags `--ns`, `--ns-from`, `--ns-to`.
    pub fn from_flags(ns: &[String], from: Option<&str>, to: Option<&str>) -> Result<Self, SelectionError> {
        match (ns, from, to) {
            (ns, None, None) => Self::new(ns.to_vec()),
            ([], Some(from), Some(to)) => Self::renamed(from, to),
            _ => Err(SelectionError::Incomplete),
        }
    }

    /// Whether everything is meant, users and roles included.
    pub fn is_all(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The patterns; empty for everything.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// The change of name, if any.
    pub fn renaming(&self) -> Option<&Renaming> {
        self.renaming.as_ref()
    }

    /// Whether `db`.`coll` is meant.
    pub fn contains(&self, db: &str, coll: &str) -> bool {
        self.patterns.is_empty()
            || self
                .patterns
                .iter()
                .any(|pattern| pattern.split_once('.').is_some_and(|(d, c)| d == db && (c == "*" || c == coll)))
    }

    /// The name under which `db`.`coll` is restored.
    pub fn target(&self, db: &str, coll: &str) -> (String, String) {
        let own = || (db.to_owned(), coll.to_owned());
        let Some(renaming) = &self.renaming else { return own() };
        let (Some((from_db, from_coll)), Some((to_db, to_coll))) =
            (renaming.from.split_once('.'), renaming.to.split_once('.'))
        else {
            return own();
        };
        match from_coll {
            "*" if db == from_db => (to_db.to_owned(), coll.to_owned()),
            _ if db == from_db && coll == from_coll => (to_db.to_owned(), to_coll.to_owned()),
            _ => own(),
        }
    }
}

/// What a restore will do to its target: shown before the confirmation, and by `--dry-run`.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The cluster that is written to.
    pub into: ClusterIdentity,
    /// Its hosts.
    pub into_hosts: String,
    /// Its version.
    pub into_version: String,
    /// Whether the restored history is its own.
    pub in_place: bool,
    /// Where what is there now is kept afterwards, where it is: it is then replaced in one step, or not at all.
    pub kept: Option<PathBuf>,
    /// Namespaces of the target that go: replaced by what they were, or dropped because they did
    /// not exist at the restore point. Which of the two is known for sure once the log was read.
    pub existing: Vec<NamespaceChange>,
    /// What else must be known beforehand.
    pub notes: Vec<String>,
    /// Where in the log the restore ends, where the engine looks for that beforehand.
    pub reaches: Option<Reached>,
    /// Seconds that it will take, about; none where there is nothing to tell that from.
    pub estimated_secs: Option<u64>,
}

/// Where in the log a restore ends. Once it was shown it is what is done, however the plan is made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// Everything up to here.
    pub point: Point,
    /// The last record in it, in the engine's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// When the last transaction in it was committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_commit: Option<Timestamp>,
    /// When the first one was committed that is not in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<Timestamp>,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// What it wrote.
    pub totals: RestoreTotals,
    /// Where in the log it came to, where the engine can tell.
    pub reached: Option<Point>,
    /// What to do next, a sentence each.
    pub next: Vec<String>,
}

/// One namespace of the target.
#[derive(Clone, Debug)]
pub struct NamespaceChange {
    /// Its name.
    pub namespace: String,
    /// Items it has now, about.
    pub items: u64,
    /// Bytes it has now, about.
    pub bytes: u64,
    /// Whether the base snapshot has it too.
    pub in_base: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_match_what_they_say() {
        let all = Selection::new(vec![]).unwrap();
        assert!(all.is_all() && all.contains("a", "b"));
        let some = Selection::new(vec!["a.*".into(), "b.c.d".into()]).unwrap();
        assert!(some.contains("a", "x") && some.contains("b", "c.d") && !some.contains("b", "c"));
        let moved = Selection::renamed("a.b", "c.d").unwrap();
        assert_eq!(moved.target("a", "b"), ("c".into(), "d".into()));
        let database = Selection::renamed("a.*", "z.*").unwrap();
        assert_eq!(database.target("a", "b.c"), ("z".into(), "b.c".into()));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "a", ".b", "a.", "*.b", "a.b*", "config.x", "local.oplog.rs"] {
            assert!(Selection::new(vec![bad.into()]).is_err(), "{bad}");
        }
        assert!(Selection::renamed("a.*", "b.c").is_err());
        assert!(Selection::from_flags(&["a.b".into()], Some("a.b"), Some("c.d")).is_err());
        assert!(Selection::from_flags(&[], Some("a.b"), None).is_err());
    }
}
