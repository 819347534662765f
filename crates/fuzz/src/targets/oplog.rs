//! Entries of an oplog, updates, and keys of documents.

use bson::RawDocument;
use hindsight_mongodb::fuzzing::{decode, next_document};
use hindsight_mongodb::oplog::diff::{apply, classify, compose};
use hindsight_mongodb::oplog::docid::{canonical_key, raw_id};
use hindsight_mongodb::oplog::entry::{Entry, Operation};

use crate::oracle::{MAX_DEPTH, depth};

/// The documents of a run, up to where it is no run any more.
pub(crate) fn documents(mut run: &[u8]) -> Vec<&[u8]> {
    let mut documents = Vec::new();
    while let Ok(Some(document)) = next_document(&mut run) {
        documents.push(document);
    }
    documents
}

/// Entries: whatever they are, reading them is harmless, and what is taken out lies within.
pub(crate) fn entries(input: &[u8]) {
    for raw in documents(input) {
        let within = |part: &[u8]| {
            raw.as_ptr_range().start <= part.as_ptr() && part.as_ptr_range().end <= raw.as_ptr_range().end
        };
        if let Ok(entry) = Entry::parse(raw) {
            assert!(within(entry.operation.o) && entry.operation.o2.is_none_or(within));
            entry.operation.database();
            if let Ok(o) = RawDocument::from_bytes(entry.operation.o) {
                let _ = classify(o);
            }
            let _ = raw_id(entry.operation.o);
        }
        let _ = Operation::parse_inner(raw);
        if let Ok(decoded) = decode(raw) {
            let nested = depth(raw).expect("what is decoded is well formed");
            assert!(nested <= MAX_DEPTH);
            let _ = format!("{decoded:?}");
        }
    }
}

/// The first document under all that follow it as updates.
pub(crate) fn updates(input: &[u8]) {
    let documents = documents(input);
    let Some((base, updates)) = documents.split_first() else { return };
    let mut present = base.to_vec();
    for update in updates.iter().take(16) {
        if let Some(new) = updated(&present, update) {
            present = new;
        }
    }
    for pair in updates.windows(2).take(16) {
        let [older, newer] = pair else { continue };
        let mut both = b"kept".to_vec();
        if !compose(older, newer, &mut both) {
            assert_eq!(both, b"kept");
            continue;
        }
        assert!(both.len() <= older.len() + newer.len() + 64, "a merged update is no longer than the two");
        let apart = updated(base, older).and_then(|between| updated(&between, newer));
        if let Some(apart) = apart {
            assert_eq!(updated(base, &both[4..]), Some(apart), "merged updates do what both did");
        }
    }
}

fn updated(base: &[u8], update: &[u8]) -> Option<Vec<u8>> {
    let (raw_base, raw_update) = (RawDocument::from_bytes(base).ok()?, RawDocument::from_bytes(update).ok()?);
    let mut out = b"kept".to_vec();
    if apply(raw_base, raw_update, &mut out).is_err() {
        assert_eq!(out, b"kept", "an update that fails leaves nothing");
        return None;
    }
    let out = out.split_off(4);
    let fits = |document| depth(document).is_some_and(|depth| depth <= MAX_DEPTH);
    if fits(base) && fits(update) {
        assert!(depth(&out).is_some(), "well formed under well formed gives well formed");
    }
    Some(out)
}

/// Keys: two of them are one only where they are equal, none is the beginning of another.
pub(crate) fn ids(input: &[u8]) {
    let mut keys: Vec<(Vec<u8>, bool)> = Vec::new();
    for document in documents(input).into_iter().take(64) {
        let Ok(Some((kind, value))) = raw_id(document) else { continue };
        let mut key = b"kept".to_vec();
        if canonical_key(kind, value, &mut key).is_err() {
            assert_eq!(key, b"kept");
            continue;
        }
        assert!(key.len() <= 4 + 5 * value.len() + 64, "a key is about as long as its value");
        keys.push((key.split_off(4), depth(document).is_some()));
        again(document, keys.last().map(|(key, _)| key.as_slice()).unwrap_or_default());
    }
    for (key, _) in &keys {
        for (other, _) in &keys {
            assert!(key == other || !key.starts_with(other), "one key goes on where another ends");
        }
    }
}

/// The `_id` that was decoded and encoded has the same key.
fn again(document: &[u8], key: &[u8]) {
    let Ok(decoded) = decode(document) else { return };
    let Ok(Some((before, value))) = raw_id(document) else { return };
    let encoded = bson::RawDocumentBuf::try_from(&decoded).expect("what was decoded is encoded");
    let Ok(Some((kind, same))) = raw_id(encoded.as_bytes()) else { panic!("an _id is lost") };
    // The library makes strings of old types; only what comes back as it was can be compared.
    if (before, value) == (kind, same) {
        let mut again = Vec::new();
        canonical_key(kind, same, &mut again).expect("it has a key");
        assert_eq!(again, key);
    }
}
