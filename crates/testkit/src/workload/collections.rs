//! Changes of collections as a whole.

use anyhow::Result;
use bson::{Bson, doc};
use rand::RngExt as _;

use super::names::{self, Kind, Namespace};
use super::values::one_of;
use super::worker::{Effect, Worker};
use super::{indexes, kinds};

/// Creates a collection of any kind under a name that this kind mostly has.
pub(super) async fn create(worker: &mut Worker) -> Result<Effect> {
    let kind = Kind::any(&mut worker.rng);
    let swap = worker.rng.random_bool(0.2) && kind.movable(worker.shared.version);
    let named = if swap { Kind::any(&mut worker.rng) } else { kind };
    let namespace = Namespace::random(&mut worker.rng, named);
    let mut command = doc! {"create": &namespace.collection};
    command.extend(kinds::options(worker, kind));
    change(worker, &namespace, command).await
}

/// Runs a command on one collection, unless a transaction is open on it.
///
/// Before 5.0 none may be open in the database: changes of views lock `system.views`, which a transaction that looked for
/// a missing collection keeps locked until its end (tried with 4.4.2).
pub(super) async fn change(worker: &mut Worker, namespace: &Namespace, command: bson::Document) -> Result<Effect> {
    let pins = &worker.shared.pins;
    let pin = match worker.since(5, 0) {
        true => pins.catalog(namespace),
        false => pins.catalog_database(namespace.database),
    };
    if pin.is_none() {
        return Ok(Effect::Nothing);
    }
    worker.change(namespace.database, command).await
}

pub(super) async fn drop(worker: &mut Worker) -> Result<Effect> {
    let kind = Kind::any(&mut worker.rng);
    let namespace = Namespace::random(&mut worker.rng, kind);
    change(worker, &namespace, doc! {"drop": &namespace.collection}).await
}

pub(super) async fn drop_database(worker: &mut Worker) -> Result<Effect> {
    let database = names::database(&mut worker.rng);
    let Some(_pin) = worker.shared.pins.catalog_database(database) else { return Ok(Effect::Nothing) };
    worker.change(database, doc! {"dropDatabase": 1}).await
}

/// A name to rename to: a free one most often, if none may be dropped for it.
fn target(worker: &mut Worker, drop_target: bool) -> Namespace {
    match drop_target {
        true => renamed(worker),
        false => Namespace::random(&mut worker.rng, Kind::Spare),
    }
}

/// A name to rename from or to: of an ordinary collection most often.
fn renamed(worker: &mut Worker) -> Namespace {
    let any = worker.rng.random_bool(0.2).then(|| Kind::any(&mut worker.rng));
    let kind = match any {
        Some(kind) if kind.movable(worker.shared.version) => kind,
        _ => Kind::writable(&mut worker.rng, worker.shared.version),
    };
    Namespace::random(&mut worker.rng, kind)
}

pub(super) async fn rename(worker: &mut Worker, drop_target: bool) -> Result<Effect> {
    let from = renamed(worker);
    let to = Namespace { database: from.database, ..target(worker, drop_target) };
    let pins = &worker.shared.pins;
    let (Some(_from), Some(_to)) = (pins.catalog(&from), pins.catalog(&to)) else { return Ok(Effect::Nothing) };
    let command = doc! {"renameCollection": from.to_string(), "to": to.to_string(), "dropTarget": drop_target};
    worker.change("admin", command).await
}

/// Renames from one database to another: servers copy the documents to a new collection.
pub(super) async fn rename_across(worker: &mut Worker, drop_target: bool) -> Result<Effect> {
    let (from, to) = (renamed(worker), target(worker, drop_target));
    let pins = &worker.shared.pins;
    // Servers lock both databases.
    let (Some(_from), Some(_to)) = (pins.catalog_database(from.database), pins.catalog_database(to.database)) else {
        return Ok(Effect::Nothing);
    };
    let command = doc! {"renameCollection": from.to_string(), "to": to.to_string(), "dropTarget": drop_target};
    worker.change("admin", command).await
}

pub(super) async fn convert_to_capped(worker: &mut Worker) -> Result<Effect> {
    let namespace = renamed(worker);
    let Some(_pin) = worker.shared.pins.catalog_database(namespace.database) else { return Ok(Effect::Nothing) };
    let size = worker.rng.random_range(5_000..1_000_000);
    worker.change(namespace.database, doc! {"convertToCapped": &namespace.collection, "size": size}).await
}

/// Deletes all documents of a capped collection, with a command for tests. Servers lock the whole database.
pub(super) async fn empty_capped(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Capped);
    let Some(_pin) = worker.shared.pins.catalog_database(namespace.database) else { return Ok(Effect::Nothing) };
    worker.change(namespace.database, doc! {"emptycapped": &namespace.collection}).await
}

pub(super) async fn modify_validator(worker: &mut Worker) -> Result<Effect> {
    let kind = one_of(&mut worker.rng, &[Kind::Validated, Kind::Plain]);
    let namespace = Namespace::random(&mut worker.rng, kind);
    let rng = &mut worker.rng;
    let validator = if rng.random_bool(0.4) {
        kinds::validator(rng)
    } else {
        doc! {}
    };
    let command = doc! {
        "collMod": &namespace.collection,
        "validator": validator,
        "validationLevel": one_of(rng, &["off", "moderate", "strict"]),
        "validationAction": one_of(rng, &["warn", "error"]),
    };
    change(worker, &namespace, command).await
}

pub(super) async fn modify_hidden(worker: &mut Worker) -> Result<Effect> {
    let namespace = renamed(worker);
    let name = indexes::name(&mut worker.rng);
    let hidden = worker.rng.random_bool(0.5);
    let command = doc! {"collMod": &namespace.collection, "index": {"name": name, "hidden": hidden}};
    change(worker, &namespace, command).await
}

pub(super) async fn modify_ttl(worker: &mut Worker) -> Result<Effect> {
    let namespace = renamed(worker);
    let seconds = worker.rng.random_range(0..100_000);
    let key = doc! {indexes::TTL_FIELD: 1};
    let command = doc! {"collMod": &namespace.collection, "index": {"keyPattern": key, "expireAfterSeconds": seconds}};
    change(worker, &namespace, command).await
}

pub(super) async fn modify_pre_images(worker: &mut Worker) -> Result<Effect> {
    let namespace = renamed(worker);
    let on = worker.rng.random_bool(0.5);
    let (name, value) = match worker.since(6, 0) {
        true => ("changeStreamPreAndPostImages", doc! {"enabled": on}.into()),
        false => ("recordPreImages", Bson::from(on)),
    };
    change(worker, &namespace, doc! {"collMod": &namespace.collection, name: value}).await
}

pub(super) async fn modify_view(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::View);
    let mut command = doc! {"collMod": &namespace.collection};
    command.extend(kinds::view_definition(&mut worker.rng));
    change(worker, &namespace, command).await
}

pub(super) async fn modify_time_series(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::TimeSeries);
    let rng = &mut worker.rng;
    let mut command = doc! {"collMod": &namespace.collection};
    if rng.random_bool(0.5) {
        command.insert("timeseries", doc! {"granularity": one_of(rng, &["minutes", "hours"])});
    } else {
        let seconds = [Bson::from("off"), 3_600_i64.into(), 86_400_i64.into()];
        command.insert("expireAfterSeconds", one_of(rng, &seconds));
    }
    change(worker, &namespace, command).await
}

/// Gives a capped collection another size, often less than it holds: what is too much goes with the next insert.
pub(super) async fn modify_capped(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Capped);
    let rng = &mut worker.rng;
    let mut command = doc! {"collMod": &namespace.collection};
    if rng.random_bool(0.6) {
        command.insert("cappedMax", rng.random_range(2..60));
    } else {
        command.insert("cappedSize", rng.random_range(500..200_000));
    }
    change(worker, &namespace, command).await
}
