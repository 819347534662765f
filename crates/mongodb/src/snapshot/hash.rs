//! Hashes of the data, made by the server: what a restore of the snapshot can be compared with.

use std::collections::BTreeMap;

use bson::doc;
use hindsight_engine::{FailureKind, Job, Result, Selection};
use hindsight_format::SnapshotHashes;
use mongodb::Client;

use super::catalog::is_selected;
use super::log::Stored;
use crate::cluster::{Source, odd};
use crate::failure::driver;
use crate::namespace::{self, VIEWS};

/// The command, and the name of what it gives.
const METHOD: &str = "dbHash";

/// By namespace.
pub(crate) type Hashes = BTreeMap<String, String>;

/// The hashes of all protected collections but the definitions of users, roles and views, which are not
/// inserted as documents. `dbHash` hashes the documents in the order of `_id`, those of a capped collection as they came,
/// and locks a database against writes while it reads it (mongo/src/mongo/db/commands/dbhash.cpp).
pub(crate) async fn hashes(client: &Client, selection: &Selection) -> Result<Hashes> {
    let doing = "hashing the data";
    let mut all = Hashes::new();
    let databases = client.list_database_names().await.map_err(|e| driver(doing, e))?;
    for db in databases.into_iter().filter(|db| db != "local" && db != "config") {
        let reply = client.database(&db).run_command(doc! {METHOD: 1}).await.map_err(|e| driver(doing, e))?;
        for (name, hash) in reply.get_document("collections").map_err(|e| odd(METHOD, &e))? {
            let kept = namespace::is_protected(&db, name)
                && !namespace::is_users_or_roles(&db, name)
                && name != VIEWS
                && is_selected(selection, &db, name);
            if kept && let Some(hash) = hash.as_str() {
                all.insert(format!("{db}.{name}"), hash.to_owned());
            }
        }
    }
    Ok(all)
}

/// Hashes that were made before the copy, and what becomes of them.
pub(super) struct Hashing(Option<Hashes>);

impl Hashing {
    /// Hashes what there is, where that is wanted and allowed. The log is followed already: what is written from now
    /// on will be in it.
    pub(super) async fn begin(job: &Job, source: &Source, selection: &Selection, wanted: bool) -> Self {
        if !wanted {
            return Self(None);
        }
        job.progress.step("hashing the data", None);
        match hashes(&source.client, selection).await {
            Ok(before) => Self(Some(before)),
            Err(error) => {
                let hint = match error.kind {
                    FailureKind::Privilege => "; to hash, the user needs the role readAnyDatabase besides",
                    _ => "",
                };
                job.progress.warn(format!("no hashes are kept: {error}{hint}"));
                Self(None)
            }
        }
    }

    /// Hashes again, before the end of the log is decided.
    pub(super) async fn again(self, job: &Job, source: &Source, selection: &Selection) -> Option<(Hashes, Hashes)> {
        let before = self.0?;
        job.progress.step("hashing the data again", None);
        match hashes(&source.client, selection).await {
            Ok(after) => Some((before, after)),
            Err(error) => {
                job.progress.warn(format!("no hashes are kept: {error}"));
                None
            }
        }
    }
}

/// What is kept: hashes that did not change, if nothing was written according to the snapshot's own log.
pub(super) fn kept(job: &Job, both: Option<(Hashes, Hashes)>, own: &Stored) -> Option<SnapshotHashes> {
    let (before, after) = both?;
    if own.writes == 0 && before == after {
        return Some(SnapshotHashes { method: METHOD.to_owned(), collections: after });
    }
    let why = match own.writes {
        0 => "the data changed without a write in the log".to_owned(),
        writes => format!("{writes} writes came meanwhile"),
    };
    job.progress.warn(format!("no hashes are kept, the moment did not allow it: {why}; try when nothing is written"));
    None
}
