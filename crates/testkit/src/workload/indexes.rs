//! Index builds of every kind, and their ends.

use anyhow::Result;
use bson::{Bson, Document, doc};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;

use super::collections::change;
use super::names::{Kind, Namespace};
use super::values::one_of;
use super::worker::{Effect, Worker};

/// The field of the TTL index.
pub(super) const TTL_FIELD: &str = "at";

/// All indexes.
fn specs() -> Vec<Document> {
    vec![
        doc! {"name": "ttl", "key": {TTL_FIELD: 1}, "expireAfterSeconds": 0},
        doc! {"name": "n_1", "key": {"n": 1}},
        doc! {"name": "n_-1_s_1", "key": {"n": -1, "s": 1}},
        doc! {"name": "n_1.0", "key": {"n": 1.0, "tags": -1}},
        doc! {"name": "unique", "key": {"k": 1}, "unique": true, "sparse": true},
        doc! {"name": "unique partial", "key": {"k": -1}, "unique": true, "partialFilterExpression": {"k": {"$gt": 0}}},
        doc! {"name": "multikey", "key": {"items.sku": 1, "items.qty": 1}},
        doc! {"name": "multikey 2", "key": {"tags": 1, "nested.a.b.c": 1}},
        doc! {"name": "partial", "key": {"s": 1}, "partialFilterExpression": {"n": {"$gte": 50}}},
        doc! {"name": "sparse", "key": {"nested.a.d": 1}, "sparse": true},
        doc! {"name": "n_1 again", "key": {"n": 1}},
        doc! {"name": "hashed", "key": {"s": "hashed"}},
        doc! {"name": "hashed compound", "key": {"n": 1, "s": "hashed"}},
        doc! {"name": "wildcard", "key": {"$**": 1}},
        doc! {"name": "wildcard nested", "key": {"nested.$**": 1}},
        doc! {"name": "wildcard projection", "key": {"$**": 1}, "wildcardProjection": {"nested": 1, "items": 1}},
        doc! {"name": "text", "key": {"s": "text", "items.sku": "text"}, "weights": {"s": 5}, "default_language": "german"},
        doc! {"name": "2dsphere", "key": {"place": "2dsphere"}},
        doc! {"name": "2d", "key": {"spot": "2d"}, "bits": 20, "min": -200.0, "max": 200.0},
        doc! {"name": "collation", "key": {"s": 1, "n": 1}, "collation": {"locale": "en", "strength": 2}},
        doc! {"name": "hidden", "key": {"flags": 1}, "hidden": true},
        doc! {"name": "ünï.cödé 🦀", "key": {"Ü b": 1}},
    ]
}

/// The definition of one index.
pub(super) fn spec(rng: &mut StdRng) -> Document {
    // The first ones more often, so that there is something to drop and to change.
    let specs = specs();
    let index = rng.random_range(0..specs.len()).min(rng.random_range(0..specs.len()));
    specs.into_iter().nth(index).unwrap_or_default()
}

/// The name of one index.
pub(super) fn name(rng: &mut StdRng) -> String {
    spec(rng).get_str("name").unwrap_or_default().to_owned()
}

fn target(rng: &mut StdRng) -> Namespace {
    let kind = one_of(rng, &[Kind::Plain, Kind::Plain, Kind::Plain, Kind::Collated, Kind::Capped, Kind::Clustered]);
    Namespace::random(rng, kind)
}

pub(super) async fn create(worker: &mut Worker) -> Result<Effect> {
    build(worker, 1).await
}

pub(super) async fn create_many(worker: &mut Worker) -> Result<Effect> {
    build(worker, 4).await
}

async fn build(worker: &mut Worker, count: usize) -> Result<Effect> {
    let namespace = target(&mut worker.rng);
    let specs = match count {
        1 => vec![spec(&mut worker.rng)],
        _ => specs().into_iter().sample(&mut worker.rng, count),
    };
    change(worker, &namespace, doc! {"createIndexes": &namespace.collection, "indexes": specs}).await
}

/// Drops indexes by name, names or key.
pub(super) async fn drop(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(&mut worker.rng);
    let rng = &mut worker.rng;
    let index = match rng.random_range(0..4) {
        0 => spec(rng).get_document("key").cloned().unwrap_or_default().into(),
        1 => Bson::from(vec![name(rng)]),
        _ => name(rng).into(),
    };
    change(worker, &namespace, doc! {"dropIndexes": &namespace.collection, "index": index}).await
}

pub(super) async fn drop_all(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(&mut worker.rng);
    change(worker, &namespace, doc! {"dropIndexes": &namespace.collection, "index": "*"}).await
}
