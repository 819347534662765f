//! The fold against a naive replay: whatever the moment at which each document of the base was
//! read, and however little memory there is, the end is the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use bson::{Bson, Document, Timestamp, doc};
use proptest::prelude::*;

use super::*;
use crate::oplog::entry::{Uuid, next_document};
use crate::snapshot::catalog::uuid_bson;

const UUID: Uuid = [7; 16];

#[derive(Clone, Debug)]
enum Step {
    Insert(i32, i32),
    Replace(i32, i32),
    Set(i32, &'static str, i32),
    Unset(i32, &'static str),
    Delete(i32),
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..6_i32;
    let field = prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        2 => (id.clone(), any::<i32>()).prop_map(|(id, v)| Step::Insert(id, v)),
        1 => (id.clone(), any::<i32>()).prop_map(|(id, v)| Step::Replace(id, v)),
        4 => (id.clone(), field.clone(), any::<i32>()).prop_map(|(id, f, v)| Step::Set(id, f, v)),
        1 => (id.clone(), field).prop_map(|(id, f)| Step::Unset(id, f)),
        2 => id.prop_map(Step::Delete),
    ]
}

type Model = BTreeMap<i32, Document>;

/// Carries out a step as a server does, and returns the entry that it logs, if it does anything.
fn perform(model: &mut Model, step: &Step) -> Option<Document> {
    let entry = |op: &str, o: Document, id: Option<i32>| {
        let mut entry = doc! {"op": op, "ns": "db.c", "ui": uuid_bson(&UUID), "o": o};
        if let Some(id) = id {
            entry.insert("o2", doc! {"_id": id});
        }
        Some(entry)
    };
    match *step {
        Step::Insert(id, _) if model.contains_key(&id) => None,
        Step::Insert(id, v) => {
            model.insert(id, doc! {"_id": id, "a": v});
            entry("i", model[&id].clone(), None)
        }
        Step::Replace(id, v) => {
            let known = model.get_mut(&id)?;
            *known = doc! {"_id": id, "b": v, "c": {"x": v}};
            entry("u", known.clone(), Some(id))
        }
        Step::Set(id, field, v) => {
            let known = model.get_mut(&id)?;
            let section = if known.contains_key(field) { "u" } else { "i" };
            known.insert(field, v);
            entry("u", doc! {"$v": 2, "diff": {section: {field: v}}}, Some(id))
        }
        Step::Unset(id, field) => {
            model.get_mut(&id)?.remove(field)?;
            entry("u", doc! {"$v": 2, "diff": {"d": {field: false}}}, Some(id))
        }
        Step::Delete(id) => {
            model.remove(&id)?;
            entry("d", doc! {"_id": id}, None)
        }
    }
}

fn raw(document: &Document) -> Vec<u8> {
    let mut bytes = Vec::new();
    document.to_writer(&mut bytes).unwrap();
    bytes
}

fn base(capped: bool, consistent_at: u32) -> Base {
    let mut catalog = Catalog::default();
    let options = if capped {
        doc! {"capped": true, "size": 1 << 20}
    } else {
        doc! {}
    };
    catalog.insert(UUID, Collection { db: "db".into(), name: "c".into(), options, ..Collection::default() });
    let at = |inc| Optime { secs: 100, inc, term: 1 };
    Base { catalog, read_from: at(0), consistent_at: at(consistent_at), selective: false }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_fuzzy_base_and_its_log_give_the_state_at_the_cut(
        before in prop::collection::vec(step(), 0..12),
        during in prop::collection::vec(step(), 0..40),
        after in prop::collection::vec(step(), 0..40),
        moments in prop::collection::vec(0.0..1.0_f64, 6),
        cut in 0.0..1.0_f64,
        memory in prop::sample::select(vec![1, 200, 1000, 1 << 20]),
    ) {
        let mut model = Model::new();
        for step in &before {
            perform(&mut model, step);
        }
        // All states that the documents go through while they are read, and then on.
        let mut entries = Vec::new();
        let mut states = vec![model.clone()];
        let mut consistent_at = 0;
        for (number, step) in during.iter().chain(&after).enumerate() {
            if let Some(mut entry) = perform(&mut model, step) {
                let inc = entries.len() as u32 + 1;
                entry.extend(doc! {"ts": Timestamp { time: 100, increment: inc }, "t": 1_i64});
                entries.push(entry);
                states.push(model.clone());
                if number < during.len() {
                    consistent_at = inc;
                }
            }
        }
        // Each document is read at a moment of its own.
        let mut read = Vec::new();
        for (id, moment) in moments.iter().enumerate() {
            let seen = (moment * f64::from(consistent_at + 1)) as usize;
            read.extend(states[seen].get(&(id as i32)).cloned());
        }
        let cut = consistent_at + (cut * (entries.len() as f64 - f64::from(consistent_at) + 1.0)) as u32;
        let expected = &states[cut as usize];

        let mut fold = Fold::new(base(false, consistent_at), Cut::Through(100, cut), memory, std::env::temp_dir());
        for entry in &entries {
            if !fold.feed(&raw(entry)).unwrap() {
                break;
            }
        }
        let mut folded = fold.finish().unwrap();
        let mut found = Model::new();
        for number in 0..folded.effects.count() {
            let pass = folded.effects.load(number).unwrap();
            let mut out = Vec::new();
            for document in &read {
                pass.merge(&UUID, &raw(document), &mut Buffers::default(), &mut out).unwrap();
            }
            out.extend_from_slice(&pass.rest(&UUID).unwrap().next(usize::MAX).unwrap());
            let mut run = &out[..];
            while let Some(document) = next_document(&mut run).unwrap() {
                let document = Document::try_from(bson::RawDocument::from_bytes(document).unwrap()).unwrap();
                let id = document.get_i32("_id").unwrap();
                prop_assert!(found.insert(id, document).is_none(), "{id} came twice");
            }
        }
        prop_assert_eq!(&found, expected);
    }
}

#[test]
fn documents_that_keep_their_order_come_in_the_order_of_their_inserts() {
    let mut fold = Fold::new(base(true, 0), Cut::Nowhere, 1, std::env::temp_dir());
    for (inc, id) in [(1, 5), (2, 9), (3, 1)] {
        let entry = doc! {
            "ts": Timestamp { time: 100, increment: inc }, "t": 1_i64, "op": "i", "ns": "db.c", "ui": uuid_bson(&UUID), "o": {"_id": id},
        };
        fold.feed(&raw(&entry)).unwrap();
    }
    let mut folded = fold.finish().unwrap();
    let mut order = Vec::new();
    for number in 0..folded.effects.count() {
        let rest = folded.effects.load(number).unwrap().rest(&UUID).unwrap().next(usize::MAX).unwrap();
        let mut rest = &rest[..];
        while let Some(document) = next_document(&mut rest).unwrap() {
            order.push(bson::RawDocument::from_bytes(document).unwrap().get_i32("_id").unwrap());
        }
    }
    assert_eq!(order, [5, 9, 1]);
}

/// More documents than one table has room for, each changed several times between one spill and the next.
#[test]
fn many_documents_are_found_on_disk() {
    let mut fold = Fold::new(base(false, 0), Cut::Nowhere, 20_000, std::env::temp_dir());
    let mut inc = 0;
    let mut feed = |op: &str, id: i32, o: Document| {
        inc += 1;
        let entry = doc! {
            "ts": Timestamp { time: 100, increment: inc }, "t": 1_i64, "op": op, "ns": "db.c", "ui": uuid_bson(&UUID),
            "o": o, "o2": {"_id": id},
        };
        assert!(fold.feed(&raw(&entry)).unwrap());
    };
    // The base has 0 to 2999; 1000 to 2999 are changed, 2000 to 2999 deleted, 3000 to 3999 inserted and changed.
    (3000..4000).for_each(|id| feed("i", id, doc! {"_id": id}));
    for round in 0..3 {
        (1000..4000).for_each(|id| feed("u", id, doc! {"$v": 2, "diff": {"u": {"n": id + round}}}));
    }
    (2000..3000).for_each(|id| feed("d", id, doc! {"_id": id}));
    let mut folded = fold.finish().unwrap();
    assert!(folded.effects.count() > 1, "{}", folded.effects.count());
    let mut found = Model::new();
    for number in 0..folded.effects.count() {
        let pass = folded.effects.load(number).unwrap();
        let (mut out, mut buffers) = (Vec::new(), Buffers::default());
        for id in 0..3000 {
            pass.merge(&UUID, &raw(&doc! {"_id": id}), &mut buffers, &mut out).unwrap();
        }
        let mut rest = pass.rest(&UUID).unwrap();
        loop {
            let run = rest.next(100).unwrap();
            out.extend_from_slice(&run);
            if run.is_empty() {
                break;
            }
        }
        let mut run = &out[..];
        while let Some(document) = next_document(&mut run).unwrap() {
            let document = Document::from_reader(document).unwrap();
            assert!(found.insert(document.get_i32("_id").unwrap(), document).is_none());
        }
    }
    let changed = |id| (id, doc! {"_id": id, "n": id + 2});
    let expected = (0..1000).map(|id| (id, doc! {"_id": id})).chain((1000..2000).chain(3000..4000).map(changed));
    assert_eq!(found, expected.collect());
}

#[test]
fn what_is_not_known_stops_the_fold() {
    let entry = |o: Document, ui: Bson| doc! {"ts": Timestamp { time: 100, increment: 1 }, "t": 1_i64, "op": "c", "ns": "db.$cmd", "ui": ui, "o": o};
    let feed =
        |entry: &Document| Fold::new(base(false, 0), Cut::Nowhere, 1 << 20, std::env::temp_dir()).feed(&raw(entry));
    let error = feed(&entry(doc! {"reshapeCollection": "c"}, uuid_bson(&UUID))).unwrap_err();
    assert!(error.to_string().contains("reshapeCollection"), "{error}");
    let error = feed(&entry(doc! {"collMod": "c", "sideways": true}, uuid_bson(&UUID))).unwrap_err();
    assert!(error.to_string().contains("sideways"), "{error}");
    let mut unknown = entry(doc! {"_id": 1}, uuid_bson(&[8; 16]));
    unknown.insert("op", "i");
    unknown.insert("ns", "db.other");
    assert!(feed(&unknown).unwrap_err().to_string().contains("does not know"));
}

#[test]
fn a_change_that_does_not_name_pre_images_switches_them_off() {
    let entry = |o: Document| {
        let entry = doc! {"op": "c", "ns": "db.$cmd", "ui": uuid_bson(&UUID), "o": o};
        bson::serialize_to_vec(&entry).unwrap()
    };
    let options = |changes: &[Document]| {
        let mut catalog = Catalog::default();
        let create = doc! {"create": "c", "recordPreImages": true};
        for o in std::iter::once(&create).chain(changes) {
            let raw = entry(o.clone());
            catalog.apply(&Operation::parse_inner(&raw).unwrap()).unwrap();
        }
        let collection = catalog.get(&UUID).unwrap();
        collection.options.get_bool("recordPreImages").ok()
    };
    let other = doc! {"collMod": "c", "validator": {"x": 1}};
    assert_eq!(options(&[]), Some(true));
    assert_eq!(options(std::slice::from_ref(&other)), None);
    assert_eq!(options(&[other, doc! {"collMod": "c", "recordPreImages": true}]), Some(true));
}
