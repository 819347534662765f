//! The oracle: everything in a cluster that a restore must bring back, in a form that can be compared.

mod optime;
mod read;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use mongodb::Client;
use serde::{Deserialize, Serialize};

pub use optime::last_optime;

/// All user data, definitions and users of a cluster at one moment. Two clusters are equal if [`ClusterState::diff`] says
/// nothing.
///
/// It holds every collection of every database with its type, options, indexes and a hash of its documents: the server's
/// own `dbHash` (the documents in `_id` order), and for collections where order matters or that `dbHash` leaves out, a
/// hash made here (see [`Contents`]). Users and roles are compared by the hash of their whole documents in
/// `admin.system.users` and `admin.system.roles`: credentials, salts and user ids included.
///
/// Left out: the databases `local` and `config`; `admin.system.keys` and `admin.system.version`, which belong to the
/// server; `system.profile`; `system.views`, which says again what the options of the views say; UUIDs of collections;
/// the fields `ns` and `v` of indexes; indexes that are still being built; the option `temp` of what a command makes for
/// its own use, and leaves behind when it is broken off.
///
/// The source must be quiet while it is read: databases are read one after another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Database name to collection name to collection.
    pub databases: BTreeMap<String, BTreeMap<String, CollectionState>>,
    /// `user app.alice` or `role app.reader` to the blake3 hash of its document.
    pub users: BTreeMap<String, String>,
}

/// One collection, view or time-series collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionState {
    /// `collection`, `view` or `timeseries`.
    pub kind: String,
    /// Its options, each as canonical extended JSON (which keeps types and the order of fields).
    pub options: BTreeMap<String, String>,
    /// Index name to its fields, as canonical extended JSON.
    pub indexes: BTreeMap<String, BTreeMap<String, String>>,
    /// The server's `dbHash` of the documents, unless it leaves the collection out.
    pub db_hash: Option<String>,
    /// The documents of capped collections, of the buckets of time-series collections, and of collections without
    /// `db_hash`.
    pub contents: Option<Contents>,
}

/// The documents of a collection as raw BSON, byte for byte, in natural order if it is capped and in `_id` order
/// otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Number of documents.
    pub count: u64,
    /// blake3 of the documents one after another.
    pub blake3: String,
}

impl ClusterState {
    /// Reads the state from the primary of a replica set, or from the one server of a direct connection.
    ///
    /// Users need the rights of `root`, as `dbHash` asks for more than a backup does.
    ///
    /// # Errors
    /// Those of the driver and the server.
    pub async fn read(client: &Client) -> Result<Self> {
        read::cluster(client).await
    }

    /// The same with its optime: nothing was written while it was read. A server may still be at work on a write that its
    /// client has given up on, as when the connection was lost with another member.
    ///
    /// # Errors
    /// See [`ClusterState::read`]; servers that don't come to rest.
    pub async fn at_rest(client: &Client) -> Result<(Self, (u32, u32, i64))> {
        let mut before = last_optime(client).await?;
        for _ in 0..20 {
            let state = Self::read(client).await?;
            let after = last_optime(client).await?;
            if after == before {
                return Ok((state, after));
            }
            before = after;
        }
        bail!("something is written all the time")
    }

    /// The same without users and roles, for comparing sets that have different ones.
    pub fn without_users(mut self) -> Self {
        self.users.clear();
        self
    }

    /// Only the collections (database, name) for which `keep` is true, for restores of a part.
    pub fn retain(mut self, mut keep: impl FnMut(&str, &str) -> bool) -> Self {
        for (database, collections) in &mut self.databases {
            collections.retain(|name, _| keep(database, name));
        }
        self.databases.retain(|_, collections| !collections.is_empty());
        self
    }

    /// What differs between this state (the expected one) and `other` (the one found), one line each; nothing if they
    /// are equal.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let empty = BTreeMap::new();
        for database in names(&self.databases, &other.databases) {
            let expected = self.databases.get(database).unwrap_or(&empty);
            let found = other.databases.get(database).unwrap_or(&empty);
            for name in names(expected, found) {
                let namespace = format!("{database}.{name}");
                match (expected.get(name), found.get(name)) {
                    (Some(expected), Some(found)) => expected.diff(found, &namespace, &mut lines),
                    (Some(expected), None) => lines.push(format!("{namespace}: {} is missing", expected.kind)),
                    (None, Some(found)) => lines.push(format!("{namespace}: {} should not exist", found.kind)),
                    (None, None) => {}
                }
            }
        }
        diff_map(&self.users, &other.users, "", &mut lines);
        lines
    }
}

impl CollectionState {
    fn diff(&self, found: &Self, namespace: &str, lines: &mut Vec<String>) {
        if self.kind != found.kind {
            lines.push(format!("{namespace}: expected a {}, found a {}", self.kind, found.kind));
        }
        diff_map(&self.options, &found.options, &format!("{namespace}: option "), lines);
        for name in names(&self.indexes, &found.indexes) {
            match (self.indexes.get(name), found.indexes.get(name)) {
                (Some(expected), Some(found)) => {
                    diff_map(expected, found, &format!("{namespace}: index {name}: "), lines);
                }
                (Some(_), None) => lines.push(format!("{namespace}: index {name} is missing")),
                (None, _) => lines.push(format!("{namespace}: index {name} should not exist")),
            }
        }
        if self.db_hash != found.db_hash {
            let text = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "none".to_owned());
            let (expected, found) = (text(&self.db_hash), text(&found.db_hash));
            lines.push(format!("{namespace}: documents differ (dbHash expected {expected}, found {found})"));
        }
        if self.contents != found.contents {
            let text = |contents: &Option<Contents>| match contents {
                Some(contents) => format!("{} with hash {:.12}", contents.count, contents.blake3),
                None => "none".to_owned(),
            };
            let (expected, found) = (text(&self.contents), text(&found.contents));
            lines.push(format!("{namespace}: documents or their order differ (expected {expected}, found {found})"));
        }
    }
}

fn names<'a, T>(a: &'a BTreeMap<String, T>, b: &'a BTreeMap<String, T>) -> BTreeSet<&'a String> {
    a.keys().chain(b.keys()).collect()
}

fn diff_map(
    expected: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
    what: &str,
    lines: &mut Vec<String>,
) {
    for name in names(expected, found) {
        match (expected.get(name), found.get(name)) {
            (Some(expected), Some(found)) if expected == found => {}
            (Some(expected), Some(found)) => lines.push(format!("{what}{name}: expected {expected}, found {found}")),
            (Some(expected), None) => lines.push(format!("{what}{name} ({expected}) is missing")),
            (None, Some(found)) => lines.push(format!("{what}{name} ({found}) should not exist")),
            (None, None) => {}
        }
    }
}
