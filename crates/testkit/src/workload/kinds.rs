//! Collections that are not like others: views, time-series, capped, clustered, with a collation or a validator.

use anyhow::Result;
use bson::{Bson, DateTime, Document, doc};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::collections::change;
use super::inserts::{delete, insert};
use super::names::{Kind, Namespace};
use super::values::{self, number, one_of, text};
use super::worker::{Effect, Worker};

/// The options of `create` for a collection of this kind; plain ones if the servers don't know it.
pub(super) fn options(worker: &mut Worker, kind: Kind) -> Document {
    let (time_series, clustered) = (worker.since(5, 0), worker.since(5, 3));
    let pre_images = worker.since(6, 0);
    let rng = &mut worker.rng;
    match kind {
        Kind::Capped => match rng.random_bool(0.5) {
            true => doc! {"capped": true, "size": 200_000, "max": rng.random_range(5..60)},
            false => doc! {"capped": true, "size": rng.random_range(4096..200_000)},
        },
        Kind::TimeSeries if time_series => {
            let mut series = doc! {"timeField": "t"};
            if rng.random_bool(0.7) {
                series.insert("metaField", "meta");
            }
            if rng.random_bool(0.7) {
                series.insert("granularity", one_of(rng, &["seconds", "minutes", "hours"]));
            }
            let mut options = doc! {"timeseries": series};
            if rng.random_bool(0.5) {
                options.insert("expireAfterSeconds", 1_000_000_000_i64);
            }
            options
        }
        Kind::View => view_definition(rng),
        Kind::Clustered if clustered => {
            let mut options = doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true, "name": "the _id"}};
            if rng.random_bool(0.3) {
                options.insert("expireAfterSeconds", 1_000_000_000_i64);
            }
            options
        }
        Kind::Collated => {
            let collation = one_of(
                rng,
                &[
                    doc! {"locale": "en", "strength": 2},
                    doc! {"locale": "de", "strength": 1},
                    doc! {"locale": "en", "numericOrdering": true},
                    doc! {"locale": "fr", "strength": 1, "caseLevel": true, "backwards": true},
                    doc! {"locale": "en", "alternate": "shifted", "strength": 3},
                ],
            );
            doc! {"collation": collation}
        }
        Kind::Validated => doc! {"validator": validator(rng), "validationAction": one_of(rng, &["error", "warn"])},
        _ if pre_images && rng.random_bool(0.1) => doc! {"changeStreamPreAndPostImages": {"enabled": true}},
        _ if rng.random_bool(0.1) => doc! {"storageEngine": {"wiredTiger": {"configString": "block_compressor=zlib"}}},
        _ => doc! {},
    }
}

/// What most documents fulfil.
pub(super) fn validator(rng: &mut StdRng) -> Document {
    one_of(
        rng,
        &[
            doc! {"n": {"$not": {"$gt": 90}}},
            doc! {"$jsonSchema": {"properties": {"tags": {"bsonType": "array"}, "n": {"bsonType": "number"}}}},
            doc! {"$expr": {"$ne": ["$n", 7]}},
        ],
    )
}

/// What a view is on, and its pipeline.
pub(super) fn view_definition(rng: &mut StdRng) -> Document {
    let pipeline: Vec<Document> = one_of(
        rng,
        &[
            vec![],
            vec![doc! {"$match": {"n": {"$gte": 5}}}, doc! {"$project": {"tags": 0}}],
            vec![doc! {"$lookup": {"from": "b", "localField": "n", "foreignField": "n", "as": "others"}}],
        ],
    );
    doc! {"viewOn": one_of(rng, &["a", "A", "with space", "weather", "view"]), "pipeline": pipeline}
}

/// Makes sure that a name is taken, by a collection of this kind if it was free.
async fn ensure(worker: &mut Worker, namespace: &Namespace, kind: Kind) -> Result<()> {
    let mut command = doc! {"create": &namespace.collection};
    command.extend(options(worker, kind));
    change(worker, namespace, command).await?;
    Ok(())
}

/// Makes a view, or drops one to make place for the next.
pub(super) async fn view(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::View);
    if worker.rng.random_bool(0.3) {
        change(worker, &namespace, doc! {"drop": &namespace.collection}).await?;
    }
    let mut command = doc! {"create": &namespace.collection};
    command.extend(view_definition(&mut worker.rng));
    if worker.rng.random_bool(0.2) {
        command.insert("collation", doc! {"locale": "en", "strength": 1});
    }
    change(worker, &namespace, command).await
}

/// Inserts measurements, of a few sensors, in order or not.
pub(super) async fn measure(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::TimeSeries);
    ensure(worker, &namespace, Kind::TimeSeries).await?;
    let rng = &mut worker.rng;
    let start = 1_700_000_000_000_i64 + rng.random_range(0..50) * 3_600_000;
    let documents = (0..rng.random_range(1..60)).map(|n| {
        let time = DateTime::from_millis(start + n * rng.random_range(0..60_000));
        let value = values::any(rng, 1);
        doc! {"t": time, "meta": sensor(rng), "temperature": rng.random_range(-10.0..30.0), "value": value}
    });
    let documents = documents.collect();
    let ordered = rng.random_bool(0.5);
    worker.write(&namespace, insert(&namespace, documents, ordered)).await
}

fn sensor(rng: &mut StdRng) -> Bson {
    let n = rng.random_range(0..4);
    if rng.random_bool(0.5) { number(rng, n) } else { doc! {"sensor": n, "place": "x"}.into() }
}

pub(super) async fn index_measurements(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::TimeSeries);
    let key = one_of(&mut worker.rng, &[doc! {"meta": 1, "t": 1}, doc! {"t": -1}, doc! {"meta.sensor": 1}]);
    let name = format!("{key}");
    let command = match worker.rng.random_bool(0.3) {
        true => doc! {"dropIndexes": &namespace.collection, "index": name},
        false => doc! {"createIndexes": &namespace.collection, "indexes": [{"key": key, "name": name}]},
    };
    change(worker, &namespace, command).await
}

/// Deletes all measurements of a sensor: servers allow no other condition.
pub(super) async fn delete_measurements(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::TimeSeries);
    let query = doc! {"meta": sensor(&mut worker.rng)};
    worker.write(&namespace, delete(&namespace, query, 0)).await
}

/// Appends to a capped collection, beyond what it holds.
pub(super) async fn log(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Capped);
    ensure(worker, &namespace, Kind::Capped).await?;
    let old_ids = Kind::Capped.movable(worker.shared.version);
    let rng = &mut worker.rng;
    let documents = (0..rng.random_range(1..20)).map(|n| match old_ids && rng.random_bool(0.3) {
        true => values::document(rng),
        false => doc! {"_id": rng.random::<i64>(), "n": n, "hits": 0, "line": text(rng, n)},
    });
    let documents = documents.collect();
    worker.write(&namespace, insert(&namespace, documents, false)).await
}

/// Changes entries of a capped collection without changing their size: others are refused before 5.0.
pub(super) async fn update_log(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Capped);
    let n = worker.rng.random_range(0..20);
    let update = doc! {"q": {"n": n, "hits": {"$type": "int"}}, "u": {"$inc": {"hits": 1}}, "multi": true};
    worker.write(&namespace, doc! {"update": &namespace.collection, "updates": [update]}).await
}

pub(super) async fn clustered(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Clustered);
    ensure(worker, &namespace, Kind::Clustered).await?;
    let rng = &mut worker.rng;
    let documents = (0..rng.random_range(1..10)).map(|_| values::document(rng)).collect();
    worker.write(&namespace, insert(&namespace, documents, false)).await
}

pub(super) async fn collated(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Collated);
    ensure(worker, &namespace, Kind::Collated).await?;
    let rng = &mut worker.rng;
    let documents = (0..rng.random_range(1..6)).map(|_| collated_document(rng)).collect();
    worker.write(&namespace, insert(&namespace, documents, false)).await
}

/// Deletes a document and inserts one whose `_id` is the same text in another case.
pub(super) async fn collated_again(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Collated);
    let document = collated_document(&mut worker.rng);
    let query = doc! {"_id": document.get("_id").cloned()};
    let deleted = worker.write(&namespace, delete(&namespace, query, 1)).await?;
    let inserted = worker.write(&namespace, insert(&namespace, vec![document], true)).await?;
    Ok(if deleted == Effect::Done { inserted } else { deleted })
}

/// A document whose `_id` is or has a text that some collations take for others.
fn collated_document(rng: &mut StdRng) -> Document {
    let n = rng.random_range(0..12);
    let id: Bson = match rng.random_range(0..4) {
        0 => doc! {"a": text(rng, n), "b": [text(rng, n)]}.into(),
        _ => text(rng, n).into(),
    };
    let mut document = values::document(rng);
    document.insert("_id", id);
    document
}

pub(super) async fn validated(worker: &mut Worker) -> Result<Effect> {
    let namespace = Namespace::random(&mut worker.rng, Kind::Validated);
    ensure(worker, &namespace, Kind::Validated).await?;
    let rng = &mut worker.rng;
    let documents = (0..rng.random_range(1..6)).map(|_| values::document(rng)).collect();
    worker.write(&namespace, insert(&namespace, documents, false)).await
}
