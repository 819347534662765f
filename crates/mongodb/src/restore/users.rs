//! Users and roles: last, and never against the user who restores.

use bson::{Document, doc};
use hindsight_engine::{Job, Result};
use mongodb::Client;

use super::data::Definitions;
use crate::failure::driver;
use crate::namespace::{ROLES, USERS};

/// Where `_mergeAuthzCollections` takes them from: these two names are the ones that the role
/// `restore` is made for (mongo/src/mongo/db/auth/builtin_roles.yml).
const NEW_USERS: &str = "tempusers";
const NEW_ROLES: &str = "temproles";

/// Makes users and roles what they were. Those that the restoring connection stands on stay as they
/// are now: it must be able to end what it began, and to be used again.
pub(super) async fn restore(client: &Client, job: &Job, definitions: &Definitions) -> Result<()> {
    let doing = "restoring users and roles";
    let admin = client.database("admin");
    let place = |name: &str| definitions.get(&("admin".to_owned(), name.to_owned())).cloned().unwrap_or_default();
    let own = own(client).await?;
    for (name, documents, own) in [(NEW_USERS, place(USERS), &own.users), (NEW_ROLES, place(ROLES), &own.roles)] {
        let collection = admin.collection::<Document>(name);
        let id = |document: &Document| document.get_str("_id").unwrap_or_default().to_owned();
        let others = documents.into_iter().filter(|document| !own.iter().any(|mine| id(mine) == id(document)));
        let all: Vec<Document> = own.iter().cloned().chain(others).collect();
        let fill = async {
            collection.drop().await?;
            admin.create_collection(name).await?;
            if !all.is_empty() {
                collection.insert_many(all).await?;
            }
            Ok(())
        };
        fill.await.map_err(|e| driver(doing, e))?;
    }
    let merge = doc! {
        "_mergeAuthzCollections": 1, "tempUsersCollection": format!("admin.{NEW_USERS}"),
        "tempRolesCollection": format!("admin.{NEW_ROLES}"), "db": "", "drop": true,
    };
    admin.run_command(merge).await.map_err(|e| driver(doing, e))?;
    for name in [NEW_USERS, NEW_ROLES] {
        admin.collection::<Document>(name).drop().await.map_err(|e| driver(doing, e))?;
    }
    for user in &own.users {
        let name = user.get_str("_id").unwrap_or_default();
        job.progress.warn(format!("the user {name} keeps the password and the roles it has now: it ran this restore"));
    }
    Ok(())
}

/// Documents of the users and of their own roles that this very connection lives on.
#[derive(Debug, Default)]
struct Own {
    users: Vec<Document>,
    roles: Vec<Document>,
}

async fn own(client: &Client) -> Result<Own> {
    let doing = "asking who is connected";
    let admin = client.database("admin");
    let status = admin.run_command(doc! {"connectionStatus": 1}).await.map_err(|e| driver(doing, e))?;
    let list = |list: &str| -> Vec<Document> {
        let entries = status.get_document("authInfo").and_then(|info| info.get_array(list)).map(Vec::as_slice);
        entries.unwrap_or_default().iter().filter_map(|entry| entry.as_document().cloned()).collect()
    };
    let mut own = Own::default();
    for user in list("authenticatedUsers") {
        let id = format!("{}.{}", user.get_str("db").unwrap_or_default(), user.get_str("user").unwrap_or_default());
        let found = admin.collection::<Document>(USERS).find_one(doc! {"_id": id}).await;
        own.users.extend(found.map_err(|e| driver(doing, e))?);
    }
    let roles = list("authenticatedUserRoles");
    if !roles.is_empty() {
        let info = admin.run_command(doc! {"rolesInfo": roles, "showPrivileges": true}).await;
        let info = info.map_err(|e| driver(doing, e))?;
        let found = info.get_array("roles").map(Vec::as_slice).unwrap_or_default();
        own.roles = found.iter().filter_map(|role| role_document(role.as_document()?)).collect();
    }
    Ok(own)
}

/// The document of a role from what `rolesInfo` tells; none for the server's built-in ones.
fn role_document(info: &Document) -> Option<Document> {
    if info.get_bool("isBuiltin").ok()? {
        return None;
    }
    let (db, role) = (info.get_str("db").ok()?, info.get_str("role").ok()?);
    Some(doc! {
        "_id": format!("{db}.{role}"), "role": role, "db": db,
        "privileges": info.get_array("privileges").ok()?.clone(), "roles": info.get_array("roles").ok()?.clone(),
    })
}
