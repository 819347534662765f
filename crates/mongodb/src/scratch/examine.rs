//! What a server says about the data that were restored into it.

use bson::doc;
use hindsight_catalog::{Cut, RestorePlan};
use hindsight_engine::{EngineError, Examined, FailureKind, Job, Result, Selection};
use hindsight_format::{RestoreTotals, SnapshotHashes};
use mongodb::Client;

use crate::cluster::number;
use crate::failure::driver;
use crate::namespace::{self, VIEWS};
use crate::snapshot::catalog::list_collections;
use crate::snapshot::hash::hashes;

/// Runs `validate` on everything, counts, and compares hashes where there are some to compare with.
pub(super) async fn examine(
    client: &Client,
    job: &Job,
    plan: &RestorePlan,
    totals: &RestoreTotals,
) -> Result<Examined> {
    let mut examined = Examined::default();
    job.progress.step("validating what was restored", None);
    let (mut inserted, mut all_kept) = (0, true);
    let databases = client.list_database_names().await.map_err(|e| driver("listing databases", e))?;
    for db in databases.into_iter().filter(|db| db != "local" && db != "config") {
        let database = client.database(&db);
        for info in list_collections(&database).await? {
            job.check()?;
            let name = info.get_str("name").unwrap_or_default();
            if info.get_str("type").ok() != Some("collection") || !namespace::is_protected(&db, name) {
                continue;
            }
            let doing = format!("validating {db}.{name}");
            let reply = database.run_command(doc! {"validate": name, "full": true}).await;
            let reply = reply.map_err(|e| driver(&doing, e))?;
            let documents = number(&reply, "nrecords").and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            examined.containers += 1;
            examined.items += documents;
            if !reply.get_bool("valid").unwrap_or(false) {
                let errors = reply.get_array("errors").map(Vec::as_slice).unwrap_or_default();
                let errors: Vec<_> = errors.iter().filter_map(|error| error.as_str()).collect();
                examined.problems.push(format!("{db}.{name} is not valid: {}", errors.join("; ")));
            }
            // What is inserted as documents; a capped collection lets go of its oldest.
            if !namespace::is_users_or_roles(&db, name) && name != VIEWS {
                inserted += documents;
                let capped = info.get_document("options").is_ok_and(|o| o.get_bool("capped").unwrap_or(false));
                all_kept &= !capped;
            }
        }
    }
    if all_kept && inserted != totals.documents {
        let problem = format!("{inserted} documents are there, {} were inserted", totals.documents);
        examined.problems.push(problem);
    }
    if let Some(expected) = plan.base.hashes.as_ref().filter(|_| plan.cut == Cut::AtSnapshotEnd) {
        job.progress.step("comparing hashes", None);
        compare(client, plan, expected, &mut examined).await?;
    }
    Ok(examined)
}

async fn compare(
    client: &Client,
    plan: &RestorePlan,
    expected: &SnapshotHashes,
    examined: &mut Examined,
) -> Result<()> {
    let selection = Selection::new(plan.base.namespaces.clone())
        .map_err(|e| EngineError::new(FailureKind::Damaged, e.to_string()))?;
    let found = hashes(client, &selection).await?;
    for (name, hash) in &expected.collections {
        match found.get(name) {
            Some(same) if same == hash => {}
            Some(other) => {
                let what = format!("{name} is not what it was: its hash is {other}, at backup time it was {hash}");
                examined.problems.push(what);
            }
            None => examined.problems.push(format!("{name} was there at backup time, and is missing")),
        }
    }
    for name in found.keys().filter(|name| !expected.collections.contains_key(*name)) {
        examined.problems.push(format!("{name} is there, and was not at backup time"));
    }
    examined.hashes_compared = Some(expected.collections.len() as u64);
    Ok(())
}
