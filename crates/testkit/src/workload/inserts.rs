//! Inserts and deletes.

use anyhow::Result;
use bson::raw::cstr;
use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, doc};
use rand::RngExt as _;

use super::names::{self, Kind, Namespace};
use super::values;
use super::worker::{Effect, Worker};

/// The command that inserts.
pub(super) fn insert(namespace: &Namespace, documents: Vec<Document>, ordered: bool) -> Document {
    doc! {"insert": &namespace.collection, "documents": documents, "ordered": ordered}
}

/// A collection whose documents may be written in any way, most often.
pub(super) fn target(worker: &mut Worker) -> Namespace {
    let kind = Kind::writable(&mut worker.rng, worker.shared.version);
    Namespace::random(&mut worker.rng, kind)
}

pub(super) async fn one(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let mut document = values::document(&mut worker.rng);
    if worker.rng.random_bool(0.1) {
        // The server makes one.
        document.remove("_id");
    }
    worker.write(&namespace, insert(&namespace, vec![document], true)).await
}

pub(super) async fn many(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let rng = &mut worker.rng;
    let documents = (0..rng.random_range(2..30)).map(|_| values::document(rng)).collect();
    let ordered = rng.random_bool(0.2);
    worker.write(&namespace, insert(&namespace, documents, ordered)).await
}

pub(super) async fn huge(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let document = values::huge_document(&mut worker.rng);
    worker.write(&namespace, insert(&namespace, vec![document], true)).await
}

/// Inserts a document whose field `twice` has fields twice, and the same field again at the top level: servers store that.
/// Now and then deletes such documents.
///
/// They have collections of their own, which are never updated. An update of such a document changes the first of the
/// fields on the primary and all of them on secondaries, so that these differ, and one by a pipeline ends the primary
/// (tried with 6.0.5).
pub(super) async fn duplicate_fields(worker: &mut Worker) -> Result<Effect> {
    let rng = &mut worker.rng;
    let namespace = Namespace { database: names::database(rng), collection: "twice".to_owned() };
    if rng.random_bool(0.2) {
        let n = rng.random_range(0..100);
        return worker.write(&namespace, delete(&namespace, doc! {"n": {"$gte": n}}, 1)).await;
    }
    let mut twice = RawDocumentBuf::new();
    for _ in 0..2 {
        twice.append(cstr!("x"), rng.random_range(0..10));
        twice.append(cstr!(""), rng.random_range(0..10));
    }
    let mut document = RawDocumentBuf::try_from(&values::document(rng))?;
    document.append(cstr!("twice"), twice.clone());
    document.append(cstr!("twice"), twice);
    let mut documents = RawArrayBuf::new();
    documents.push(document);
    let mut command = RawDocumentBuf::new();
    command.append(cstr!("insert"), namespace.collection.as_str());
    command.append(cstr!("documents"), documents);
    worker.write_raw(&namespace, command, true).await
}

pub(super) async fn odd_fields(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let mut document = values::document(&mut worker.rng);
    values::odd_fields(&mut worker.rng, &mut document);
    worker.write(&namespace, insert(&namespace, vec![document], true)).await
}

pub(super) async fn delete_one(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let query = doc! {"_id": values::id(&mut worker.rng)};
    worker.write(&namespace, delete(&namespace, query, 1)).await
}

pub(super) async fn delete_many(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let rng = &mut worker.rng;
    let from = rng.random_range(0..100);
    let query = match rng.random_range(0..10) {
        0 => doc! {},
        1 => doc! {"tags": values::tag(rng)},
        2 => doc! {"_id": {"$type": values::one_of(rng, &["number", "string", "object", "binData"])}},
        _ => doc! {"n": {"$gte": from, "$lt": from + 10}},
    };
    worker.write(&namespace, delete(&namespace, query, 0)).await
}

/// Deletes a document and inserts another one with the same `_id`, or with a number of another type that is equal.
pub(super) async fn delete_and_insert(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let id = values::id(&mut worker.rng);
    let twin = values::twin(&mut worker.rng, &id);
    let mut document = values::document(&mut worker.rng);
    document.insert("_id", twin);
    let query = doc! {"_id": id};
    let deleted = worker.write(&namespace, delete(&namespace, query, 1)).await?;
    let inserted = worker.write(&namespace, insert(&namespace, vec![document], true)).await?;
    Ok(if deleted == Effect::Done { inserted } else { deleted })
}

pub(super) async fn find_and_remove(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let n = worker.rng.random_range(0..100);
    let command = doc! {
        "findAndModify": &namespace.collection,
        "query": {"n": {"$gte": n}},
        "sort": {"n": 1},
        "remove": true,
        "fields": {"_id": 1},
    };
    worker.write(&namespace, command).await
}

/// The command that deletes one (`limit` 1) or all (0) that `query` finds.
pub(super) fn delete(namespace: &Namespace, query: Document, limit: i32) -> Document {
    let delete = Bson::from(doc! {"q": query, "limit": limit});
    doc! {"delete": &namespace.collection, "deletes": [delete]}
}
