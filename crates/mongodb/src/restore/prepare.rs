//! Everything that is checked and told before a restore touches anything.

use std::collections::HashSet;

use bson::{Bson, Document, doc};
use hindsight_catalog::RestorePlan;
use hindsight_engine::{EngineError, FailureKind, NamespaceChange, Preview, Result, Selection};
use hindsight_repository::ClusterRepository;

use super::schema::{self, check_new_name};
use crate::cluster::{Cluster, number};
use crate::failure::{driver, unsupported};
use crate::namespace::FUNCTIONS;
use crate::snapshot::stored;

/// Uncompressed bytes that a restore writes in a second, for an estimate.
const RATE: u64 = 60 << 20;

/// Looks at plan and target, changing nothing.
pub(crate) async fn prepare(
    cluster: &Cluster,
    source: &ClusterRepository,
    plan: &RestorePlan,
    selection: &Selection,
) -> Result<Preview> {
    check_target(cluster, plan).await?;
    check_rights(cluster, selection).await?;
    check_new_name(&cluster.client, selection).await?;
    if !plan.base.namespaces.is_empty() && selection.is_all() {
        return Err(unsupported(
            format!("snapshot {} holds only {}", plan.base.id, plan.base.namespaces.join(", ")),
            "name what you want of it with --ns",
        ));
    }
    // Reads the catalog and every footer: what is missing or cut short is found before, not after.
    let catalog = stored::load(source, &plan.base).await?;
    for object in plan.base.objects.iter().filter(|object| object.name.starts_with("data/")) {
        let key = source.keys().snapshot_object(&plan.base.id, &object.name);
        source.object_reader(&key, Some(object)).await?;
    }
    for stream in &plan.streams {
        for name in &stream.own {
            source.snapshot_slice_reader(&plan.base.id, &stream.stream, name).await?;
        }
    }
    let names: HashSet<String> = catalog.collections.iter().map(|c| format!("{}.{}", c.db, c.name)).collect();
    let mut existing = Vec::new();
    if selection.renaming().is_none() {
        for found in schema::existing(&cluster.client, selection).await? {
            let namespace = format!("{}.{}", found.db, found.name);
            let buckets = format!("{}.system.buckets.{}", found.db, found.name);
            let (items, bytes) = match found.kind.as_str() {
                "view" => (0, 0),
                _ => size(cluster, &found.db, &found.name).await,
            };
            let in_base = names.contains(&namespace) || names.contains(&buckets) || found.kind == "view";
            existing.push(NamespaceChange { namespace, items, bytes, in_base });
        }
        existing.sort_by(|a, b| a.namespace.cmp(&b.namespace));
    }
    let in_place = source.descriptor().await?.is_some_and(|d| d.identity == cluster.identity);
    let mut notes = Vec::new();
    if selection.is_all() {
        notes.push("users and roles become what they were; the user of this connection stays as it is".to_owned());
    }
    if release(&cluster.version) > release(&plan.base.source.server_version) {
        notes.push(format!(
            "the target runs {}, newer than the {} of the snapshot: MongoDB promises that the documents can be restored; \
             an option or index that the newer version no longer knows stops the restore",
            cluster.version, plan.base.source.server_version
        ));
    }
    Ok(Preview {
        into: cluster.identity.clone(),
        into_hosts: cluster.hosts(),
        into_version: cluster.version.clone(),
        in_place,
        kept: None,
        existing,
        notes,
        reaches: None,
        estimated_secs: Some(1 + plan.base.totals.raw_bytes / RATE),
    })
}

/// Major and minor number of a version: what decides which data a server can hold.
pub(crate) fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

async fn check_target(cluster: &Cluster, plan: &RestorePlan) -> Result<()> {
    let hello = cluster.client.database("admin").run_command(doc! {"hello": 1}).await;
    let hello = hello.map_err(|e| driver("looking at the target", e))?;
    if !hello.get_bool("isWritablePrimary").unwrap_or(false) {
        return Err(unsupported(
            "the connection string leads to a member that is not primary, which cannot be written to",
            "name the whole replica set (replicaSet=...) instead of one member",
        ));
    }
    let source = &plan.base.source;
    let from = Version { binary: &source.server_version, compatible: source.compatibility_version.as_deref() };
    let to = Version { binary: &cluster.version, compatible: cluster.compatibility_version.as_deref() };
    to.require_at_least(&from)
}

/// What decides which data a server can hold. MongoDB takes data into the same version or a newer one, where the
/// version is that of the features that are switched on: a newer server that is set to an older one neither makes nor
/// takes what is new (<https://www.mongodb.com/docs/database-tools/mongorestore/mongorestore-behavior-access-usage/>).
struct Version<'a> {
    binary: &'a str,
    /// `featureCompatibilityVersion`, where it is known.
    compatible: Option<&'a str>,
}

impl Version<'_> {
    fn features(&self) -> Option<(u32, u32)> {
        release(self.compatible.unwrap_or(self.binary))
    }

    fn require_at_least(&self, from: &Self) -> Result<()> {
        if self.features() >= from.features() {
            return Ok(());
        }
        let hint = match from.compatible.filter(|_| release(self.binary) >= from.features()) {
            Some(features) => format!("set the featureCompatibilityVersion of the target to {features} first"),
            None => "restore into the same version or a newer one".to_owned(),
        };
        Err(unsupported(format!("the snapshot was taken from MongoDB {from}, the target runs the older {self}"), &hint))
    }
}

/// `6.0.5`, and what it is set to where that is another.
impl std::fmt::Display for Version<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.binary)?;
        match self.compatible.filter(|set| release(set) != release(self.binary)) {
            Some(set) => write!(f, " with featureCompatibilityVersion {set}"),
            None => Ok(()),
        }
    }
}

/// A user without the rights is refused now, not in the middle.
async fn check_rights(cluster: &Cluster, selection: &Selection) -> Result<()> {
    let command = doc! {"connectionStatus": 1, "showPrivileges": true};
    let reply = cluster.client.database("admin").run_command(command).await;
    let reply = reply.map_err(|e| driver("asking for the privileges of the user", e))?;
    let Ok(info) = reply.get_document("authInfo") else { return Ok(()) };
    let list = |name: &str| info.get_array(name).map(Vec::as_slice).unwrap_or_default();
    if list("authenticatedUsers").is_empty() {
        return Ok(());
    }
    // What is granted on the collections called `name` of all databases; "" stands for ordinary ones.
    let granted = |name: &str| -> HashSet<&str> {
        let matches = |privilege: &&Document| {
            privilege.get_document("resource").is_ok_and(|resource| {
                let is = |part: &str, value: &str| resource.get_str(part).is_ok_and(|found| found == value);
                resource.get_bool("anyResource").unwrap_or(false) || (is("db", "") && is("collection", name))
            })
        };
        let privileges = list("authenticatedUserPrivileges").iter().filter_map(Bson::as_document).filter(matches);
        privileges
            .flat_map(|privilege| privilege.get_array("actions").map(Vec::as_slice).unwrap_or_default())
            .filter_map(Bson::as_str)
            .collect()
    };
    let ordinary = granted("");
    for action in ["insert", "createCollection", "dropCollection", "createIndex", "bypassDocumentValidation", "collMod"]
    {
        if !ordinary.contains(action) {
            return Err(EngineError::new(
                FailureKind::Privilege,
                format!("the user lacks the privilege \"{action}\" on all databases, which a restore needs"),
            )
            .hint("grant it the roles restore and clusterMonitor on admin"));
        }
    }
    if ordinary.contains("dropDatabase") || granted(FUNCTIONS).contains("remove") {
        return Ok(());
    }
    let existing = schema::existing(&cluster.client, selection).await?;
    match existing.iter().find(|found| found.name == FUNCTIONS) {
        Some(found) => Err(EngineError::new(
            FailureKind::Privilege,
            format!("{}.{FUNCTIONS} holds stored functions, which the role restore alone cannot replace", found.db),
        )
        .hint("grant the user readWriteAnyDatabase too, or delete these functions first")),
        None => Ok(()),
    }
}

async fn size(cluster: &Cluster, db: &str, name: &str) -> (u64, u64) {
    let reply = cluster.client.database(db).run_command(doc! {"collStats": name}).await.unwrap_or_default();
    let number = |field: &str| number(&reply, field).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    (number("count"), number("size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version<'a>(binary: &'a str, compatible: &'a str) -> Version<'a> {
        Version { binary, compatible: (!compatible.is_empty()).then_some(compatible) }
    }

    #[test]
    fn the_features_that_are_switched_on_decide_what_can_be_restored_where() {
        for (from, to, allowed) in [
            (("5.0.4", "5.0"), ("6.0.5", "6.0"), true),
            (("5.0.4", "5.0"), ("6.0.5", "5.0"), true),
            (("6.0.5", "5.0"), ("5.0.4", "5.0"), true),
            (("6.0.5", "6.0"), ("6.0.27", "6.0"), true),
            (("6.0.27", "6.0"), ("6.0.5", "6.0"), true),
            (("6.0.5", "6.0"), ("6.0.5", "5.0"), false),
            (("6.0.5", "6.0"), ("5.0.4", "5.0"), false),
            (("6.0.5", ""), ("5.0.4", "5.0"), false),
            (("5.0.4", "5.0"), ("6.0.5", "4.4"), false),
            (("4.4.2", ""), ("6.0.5", ""), true),
        ] {
            let done = version(to.0, to.1).require_at_least(&version(from.0, from.1));
            assert_eq!(done.is_ok(), allowed, "{from:?} into {to:?}");
        }
        let refused = version("6.0.5", "5.0").require_at_least(&version("6.0.27", "6.0")).unwrap_err();
        assert_eq!(
            refused.what,
            "the snapshot was taken from MongoDB 6.0.27, the target runs the older 6.0.5 with \
             featureCompatibilityVersion 5.0"
        );
        assert_eq!(refused.hint.as_deref(), Some("set the featureCompatibilityVersion of the target to 6.0 first"));
    }
}
