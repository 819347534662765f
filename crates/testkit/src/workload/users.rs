//! Users, roles, and what else lives in system collections.

use anyhow::Result;
use bson::{Bson, Document, doc};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::inserts::{delete, insert};
use super::names::{self, Namespace};
use super::values::{self, one_of};
use super::worker::{Effect, Worker};

/// Where users and roles are made.
fn database(rng: &mut StdRng) -> &'static str {
    if rng.random_bool(0.3) { "admin" } else { names::database(rng) }
}

fn user(rng: &mut StdRng) -> &'static str {
    one_of(rng, &["alice", "Bob B. <bob@example.org>", "ünï🦀"])
}

fn role(rng: &mut StdRng) -> &'static str {
    one_of(rng, &["reader", "the röle"])
}

/// Roles that exist in every database; of one's own only now and then, as it may not exist.
fn roles(rng: &mut StdRng) -> Vec<Bson> {
    one_of(rng, &[vec![], vec!["read".into()], vec!["readWrite".into(), "dbAdmin".into()], vec!["reader".into()]])
}

fn privileges(rng: &mut StdRng, database: &str) -> Vec<Document> {
    let collection = one_of(rng, &["", "a", "with space"]);
    vec![doc! {"resource": {"db": database, "collection": collection}, "actions": ["find", "collStats"]}]
}

/// `SCRAM-SHA-256` is made slow to compute on purpose.
fn mechanisms(rng: &mut StdRng) -> Vec<&'static str> {
    if rng.random_bool(0.8) { vec!["SCRAM-SHA-1"] } else { vec!["SCRAM-SHA-1", "SCRAM-SHA-256"] }
}

pub(super) async fn create_user(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let command = doc! {
        "createUser": user(rng),
        "pwd": "secret",
        "roles": roles(rng),
        "mechanisms": mechanisms(rng),
        "customData": {"n": values::any(rng, 1)},
    };
    let database = database(rng);
    worker.change(database, command).await
}

pub(super) async fn update_user(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let mut command = doc! {"updateUser": user(rng), "roles": roles(rng)};
    if rng.random_bool(0.3) {
        command.extend(doc! {"pwd": "other", "mechanisms": mechanisms(rng)});
    }
    let database = database(rng);
    worker.change(database, command).await
}

pub(super) async fn drop_user(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let command = doc! {"dropUser": user(rng)};
    let database = database(rng);
    worker.change(database, command).await
}

pub(super) async fn create_role(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let database = database(rng);
    let command = doc! {"createRole": role(rng), "privileges": privileges(rng, database), "roles": ["read"]};
    worker.change(database, command).await
}

pub(super) async fn update_role(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let database = database(rng);
    let command = doc! {"updateRole": role(rng), "privileges": privileges(rng, database)};
    worker.change(database, command).await
}

/// Drops a role, which takes it from its users too.
pub(super) async fn drop_role(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let command = doc! {"dropRole": role(rng)};
    let database = database(rng);
    worker.change(database, command).await
}

/// Writes a function to `system.js`.
pub(super) async fn stored_function(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let namespace = Namespace { database: names::database(rng), collection: "system.js".to_owned() };
    let n: i32 = rng.random_range(0..4);
    let code = Bson::JavaScriptCode(format!("function() {{ return {}; }}", rng.random::<i32>()));
    let update = doc! {"q": {"_id": format!("f{n}")}, "u": {"value": code}, "upsert": true};
    worker.write(&namespace, doc! {"update": &namespace.collection, "updates": [update]}).await
}

/// Writes to a collection of the `admin` database.
pub(super) async fn admin_write(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let namespace =
        Namespace { database: "admin", collection: one_of(rng, &["settings", "möre settings"]).to_owned() };
    let command = match rng.random_bool(0.3) {
        true => delete(&namespace, doc! {"n": {"$gte": rng.random_range(0..100)}}, 1),
        false => insert(&namespace, vec![values::document(rng)], true),
    };
    worker.write(&namespace, command).await
}
