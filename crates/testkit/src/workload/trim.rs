//! Keeps the data small.

use std::sync::atomic::Ordering;

use anyhow::Result;
use bson::{Bson, Document, doc};
use rand::RngExt as _;

use super::collections::change;
use super::inserts::delete;
use super::names::{DATABASES, Namespace};
use super::worker::{Effect, Worker};

/// Documents in a database, beyond which some are removed though they are small.
const MOST_DOCUMENTS: f64 = 50_000.0;

/// If there is too much data, empties or drops the largest collections until about half of the limit is left.
pub(super) async fn trim(worker: &mut Worker) -> Result<()> {
    worker.shared.written.store(0, Ordering::Relaxed);
    let mut collections = Vec::new();
    for database in DATABASES.iter() {
        measure(worker, database, &mut collections).await?;
    }
    let limit = worker.shared.options.max_bytes as f64;
    let total = |collections: &[(f64, f64, Namespace)]| {
        collections.iter().fold((0.0, 0.0), |(bytes, count), one| (bytes + one.0, count + one.1))
    };
    let (bytes, count) = total(&collections);
    if bytes < limit && count < MOST_DOCUMENTS {
        return Ok(());
    }
    // The largest last, in shares of both limits.
    collections
        .sort_by(|a, b| (a.0 / limit).max(a.1 / MOST_DOCUMENTS).total_cmp(&(b.0 / limit).max(b.1 / MOST_DOCUMENTS)));
    while let (bytes, count) = total(&collections)
        && (bytes > limit / 2.0 || count > MOST_DOCUMENTS / 2.0)
        && let Some((_, _, namespace)) = collections.pop()
    {
        let dropped = worker.rng.random_bool(0.5)
            && change(worker, &namespace, doc! {"drop": &namespace.collection}).await? == Effect::Done;
        if !dropped {
            worker.write(&namespace, delete(&namespace, doc! {}, 0)).await?;
        }
    }
    worker.count("trim", Effect::Done);
    Ok(())
}

/// Adds the size in bytes and in documents of each collection of a database.
async fn measure(worker: &mut Worker, database: &'static str, found: &mut Vec<(f64, f64, Namespace)>) -> Result<()> {
    let database_handle = worker.client.database(database);
    let answer = database_handle.run_command(doc! {"listCollections": 1, "nameOnly": true}).await;
    let names: Vec<String> = match &answer {
        Ok(answer) => answer
            .get_document("cursor")?
            .get_array("firstBatch")?
            .iter()
            .filter_map(Bson::as_document)
            .filter(|entry| entry.get_str("type").is_ok_and(|kind| kind == "collection"))
            .filter_map(|entry| Some(entry.get_str("name").ok()?.to_owned()))
            .collect(),
        Err(_) => Vec::new(),
    };
    worker.judge(answer, || "listCollections".to_owned())?;
    for collection in names {
        let answer = database_handle.run_command(doc! {"collStats": &collection}).await;
        let number = |name: &str| match answer.as_ref().ok().and_then(|answer: &Document| answer.get(name)) {
            Some(Bson::Int32(n)) => f64::from(*n),
            Some(Bson::Int64(n)) => *n as f64,
            Some(Bson::Double(n)) => *n,
            _ => 0.0,
        };
        let (bytes, count) = (number("size"), number("count"));
        worker.judge(answer, || "collStats".to_owned())?;
        // Buckets go with their time-series collection.
        let collection = collection.strip_prefix("system.buckets.").map(str::to_owned).unwrap_or(collection);
        found.push((bytes, count, Namespace { database, collection }));
    }
    Ok(())
}
