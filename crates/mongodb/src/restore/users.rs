//! Users and roles: last, and never against the user who restores.

use std::collections::{HashMap, HashSet};

use bson::{Document, doc};
use futures::TryStreamExt;
use hindsight_engine::{Job, Result};
use mongodb::Client;

use crate::failure::driver;
use crate::namespace::{ROLES, USERS};

/// Users and roles that this very connection lives on, by `_id`.
#[derive(Debug, Default)]
struct Own {
    users: HashSet<String>,
    roles: HashSet<String>,
}

/// Makes users and roles what they were. Those that the restoring connection stands on stay as they
/// are now: it must be able to end what it began, and to be used again.
pub(super) async fn restore(client: &Client, job: &Job, kept: &HashMap<(String, String), Vec<Document>>) -> Result<()> {
    let own = own(client).await?;
    let place = |name: &str| kept.get(&("admin".to_owned(), name.to_owned())).map(Vec::as_slice).unwrap_or_default();
    replace(client, ROLES, place(ROLES), &own.roles).await?;
    replace(client, USERS, place(USERS), &own.users).await?;
    for user in &own.users {
        job.progress.warn(format!("the user {user} keeps the password and the roles it has now: it ran this restore"));
    }
    Ok(())
}

async fn own(client: &Client) -> Result<Own> {
    let reply = client.database("admin").run_command(doc! {"connectionStatus": 1}).await;
    let reply = reply.map_err(|e| driver("asking who is connected", e))?;
    let ids = |list: &str, name: &str| -> HashSet<String> {
        let entries = reply.get_document("authInfo").and_then(|info| info.get_array(list)).map(Vec::as_slice);
        let id = |entry: &bson::Bson| {
            let entry = entry.as_document()?;
            Some(format!("{}.{}", entry.get_str("db").ok()?, entry.get_str(name).ok()?))
        };
        entries.unwrap_or_default().iter().filter_map(id).collect()
    };
    Ok(Own { users: ids("authenticatedUsers", "user"), roles: ids("authenticatedUserRoles", "role") })
}

async fn replace(client: &Client, name: &str, wanted: &[Document], own: &HashSet<String>) -> Result<()> {
    let doing = format!("restoring admin.{name}");
    let collection = client.database("admin").collection::<Document>(name);
    let present: Vec<Document> = async { collection.find(doc! {}).await?.try_collect().await }
        .await
        .map_err(|e: mongodb::error::Error| driver(&doing, e))?;
    let present: HashMap<&str, &Document> = present.iter().filter_map(|d| Some((d.get_str("_id").ok()?, d))).collect();
    let mut ids = HashSet::new();
    for document in wanted {
        let id = document.get_str("_id").unwrap_or_default();
        ids.insert(id);
        if own.contains(id) || present.get(id) == Some(&document) {
            continue;
        }
        let write = collection.replace_one(doc! {"_id": id}, document).upsert(true);
        write.await.map_err(|e| driver(&doing, e))?;
    }
    for id in present.keys().filter(|id| !ids.contains(**id) && !own.contains(**id)) {
        collection.delete_one(doc! {"_id": *id}).await.map_err(|e| driver(&doing, e))?;
    }
    Ok(())
}
