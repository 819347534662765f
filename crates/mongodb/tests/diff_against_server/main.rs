//! Applying updates and comparing `_id`s, judged by real servers: whatever the server makes of a document, we make of
//! it too, byte for byte.
//!
//! By default against the newest mongod at hand; `HINDSIGHT_MONGOD` names another one. 4.4 writes `$v: 1` updates, 5.0
//! and later `$v: 2`, so both are wanted for full cover. The random input is the same in every run, unless
//! `HINDSIGHT_SEED` holds another number.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod random;

use std::collections::{HashMap, HashSet};

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use futures::TryStreamExt;
use hindsight_mongodb::oplog::diff;
use hindsight_mongodb::oplog::docid::{canonical_key, raw_id};
use hindsight_testkit::{ReplicaSet, last_optime, mongod_version};
use mongodb::{Client, Database};
use rand::{SeedableRng, rngs::StdRng};

const DOCUMENTS: usize = 600;
const ROUNDS: usize = 25;

/// All documents of a collection, by the key of their `_id`.
type Contents = HashMap<Vec<u8>, RawDocumentBuf>;

fn key_of(doc: &RawDocument) -> Vec<u8> {
    let (kind, value) = raw_id(doc.as_bytes()).unwrap().unwrap();
    let mut key = Vec::new();
    canonical_key(kind, value, &mut key).unwrap();
    key
}

async fn read(db: &Database, collection: &str) -> Contents {
    let docs: Vec<RawDocumentBuf> = db.collection(collection).find(doc! {}).await.unwrap().try_collect().await.unwrap();
    docs.into_iter().map(|doc| (key_of(&doc), doc)).collect()
}

/// Sends a command of many statements and gives the errors of those that failed, by their number.
async fn bulk(db: &Database, command: Document) -> HashMap<usize, String> {
    let answer = db.run_command(command).await.unwrap();
    let errors = answer.get_array("writeErrors").cloned().unwrap_or_default();
    let errors = errors.iter().map(|error| error.as_document().unwrap());
    errors
        .map(|error| (error.get_i32("index").unwrap() as usize, error.get_str("errmsg").unwrap().to_owned()))
        .collect()
}

/// The `o` of the update entries for a collection that came after `since`, by the key of `_id`.
async fn updates_since(client: &Client, namespace: &str, since: (u32, u32, i64)) -> HashMap<Vec<u8>, RawDocumentBuf> {
    let since = bson::Timestamp { time: since.0, increment: since.1 };
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let mut entries = oplog.find(doc! { "ts": { "$gt": since }, "op": "u", "ns": namespace }).await.unwrap();
    let mut updates = HashMap::new();
    while let Some(entry) = entries.try_next().await.unwrap() {
        let key = key_of(entry.get_document("o2").unwrap());
        let o = entry.get_document("o").unwrap().to_owned();
        assert!(updates.insert(key, o).is_none(), "one update of each document in a round");
    }
    updates
}

fn apply(base: &RawDocument, o: &RawDocument) -> Result<RawDocumentBuf, diff::UpdateError> {
    let mut out = Vec::new();
    diff::apply(base, o, &mut out)?;
    Ok(RawDocumentBuf::from_bytes(out).unwrap())
}

fn random_source() -> StdRng {
    let seed = std::env::var("HINDSIGHT_SEED").map_or(1, |seed| seed.parse().unwrap());
    StdRng::seed_from_u64(seed)
}

async fn server() -> (ReplicaSet, Client) {
    let server = ReplicaSet::single().await.unwrap();
    let client = server.client().await.unwrap();
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn post_images_of_real_updates() {
    let (_server, client) = server().await;
    let db = client.database("app");
    let mut rng = random_source();
    let docs: Vec<Document> = (0..DOCUMENTS).map(|n| random::document(&mut rng, n)).collect();
    let ids: Vec<Bson> = docs.iter().map(|doc| doc.get("_id").unwrap().clone()).collect();
    let errors = bulk(&db, doc! { "insert": "c", "documents": docs, "ordered": false }).await;
    assert!(errors.is_empty(), "{errors:?}");

    let mut states = vec![read(&db, "c").await];
    let mut log = Vec::new();
    let (mut replacements, mut deltas) = (0, 0);
    for _ in 0..ROUNDS {
        let before = states.last().unwrap();
        let since = last_optime(&client).await.unwrap();
        let statements: Vec<Document> = ids
            .iter()
            .map(|id| {
                let key = key_of(&RawDocumentBuf::try_from(&doc! { "_id": id }).unwrap());
                let now = Document::try_from(before[&key].as_ref()).unwrap();
                random::statement(&mut rng, id, &now)
            })
            .collect();
        bulk(&db, doc! { "update": "c", "updates": statements, "ordered": false }).await;
        let after = read(&db, "c").await;
        let updates = updates_since(&client, "app.c", since).await;
        for (key, old) in before {
            match updates.get(key) {
                None => assert_eq!(old, &after[key], "changed without an entry"),
                Some(o) => {
                    let ours = apply(old, o).unwrap();
                    assert_eq!(ours, after[key], "\nbase {old:?}\nentry {o:?}");
                    let whole = o.get("_id").unwrap().is_some();
                    *(if whole { &mut replacements } else { &mut deltas }) += 1;
                }
            }
        }
        log.push(updates);
        states.push(after);
    }
    println!("{replacements} replacements, {deltas} deltas");
    assert!(replacements > 100 && deltas > 1000, "the updates are too much alike");
    entries_may_be_applied_again(&states, &log);
}

/// A fuzzy base already holds some entries. Playing them all onto it must end in the same document; only the order of
/// fields may be another one, as it may on a server that syncs this way.
fn entries_may_be_applied_again(states: &[Contents], log: &[HashMap<Vec<u8>, RawDocumentBuf>]) {
    let end = states.last().unwrap();
    let (mut same, mut reordered) = (0, 0);
    for (newer, state) in states.iter().enumerate() {
        for (key, base) in state {
            let older = newer / 2;
            let mut doc = base.clone();
            for o in log[older..].iter().filter_map(|round| round.get(key)) {
                doc = apply(&doc, o).unwrap();
            }
            match doc == end[key] {
                true => same += 1,
                false => {
                    reordered += 1;
                    let sorted = |doc: &RawDocumentBuf| random::sorted(&Document::try_from(doc.as_ref()).unwrap());
                    assert_eq!(sorted(&doc), sorted(&end[key]), "from state {newer}, entries from {older}");
                }
            }
        }
    }
    println!("applied again: {same} the same, {reordered} but for the order of fields");
}

/// Updates that were made for other documents: each rule for what does not fit, and what is invalid. They are given to
/// the server as what they are, oplog entries.
#[tokio::test(flavor = "multi_thread")]
async fn entries_that_do_not_fit() {
    let modifiers = mongod_version().unwrap() < (5, 0, 0);
    let (_server, client) = server().await;
    let db = client.database("app");
    let mut rng = random_source();
    let docs: Vec<Document> = (0..4000).map(|n| random::document(&mut rng, n)).collect();
    bulk(&db, doc! { "insert": "c", "documents": docs.clone(), "ordered": false }).await;
    let before = read(&db, "c").await;
    let mut entries = Vec::new();
    for doc in &docs {
        let o = match modifiers {
            true => random::modifiers(&mut rng),
            false => doc! { "$v": 2, "diff": random::document_diff(&mut rng, 3) },
        };
        let op = doc! { "op": "u", "ns": "app.c", "o2": { "_id": doc.get("_id") }, "o": o.clone() };
        let done = db.run_command(doc! { "applyOps": [op], "allowAtomic": false }).await;
        entries.push((key_of(&RawDocumentBuf::try_from(doc).unwrap()), o, done));
    }
    let after = read(&db, "c").await;
    let mut refused = 0;
    for (key, o, done) in entries {
        let ours = apply(&before[&key], &RawDocumentBuf::try_from(&o).unwrap());
        match done {
            Ok(_) => assert_eq!(ours.as_ref(), Ok(&after[&key]), "\nbase {:?}\nentry {o}", before[&key]),
            Err(error) => {
                refused += 1;
                assert!(ours.is_err(), "the server refuses {o} on {:?}: {error}", before[&key]);
            }
        }
    }
    println!("{refused} refused by both");
    assert!((1..1500).contains(&refused), "too many or too few of the updates are invalid");
}

/// The server's unique index on `_id` takes an `_id` exactly if its key is new.
#[tokio::test(flavor = "multi_thread")]
async fn equal_ids() {
    let (_server, client) = server().await;
    let db = client.database("app");
    let mut rng = random_source();
    let mut seen = HashSet::new();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..4 {
        let docs: Vec<Document> = (0..1500).map(|_| doc! { "_id": random::id(&mut rng) }).collect();
        let errors = bulk(&db, doc! { "insert": "ids", "documents": docs.clone(), "ordered": false }).await;
        for (at, doc) in docs.iter().enumerate() {
            let raw = RawDocumentBuf::try_from(doc).unwrap();
            let new = seen.insert(key_of(&raw));
            let error = errors.get(&at);
            assert_eq!(new, error.is_none(), "{doc}: {error:?}");
            *(if new { &mut taken } else { &mut refused }) += 1;
        }
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > 1000 && refused > 1000, "the ids are too much alike, or too little");
}
