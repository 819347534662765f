//! The rules of `$v: 2` on decoded documents, written from their description and not for speed; and random input.

use bson::{Bson, Document, doc};
use proptest::collection::vec;
use proptest::prelude::*;

/// `None` if the diff is invalid where it is looked at.
pub(super) fn apply(base: &Document, diff: &Document) -> Option<Document> {
    let section = |name: &str| diff.get_document(name).cloned().unwrap_or_default();
    let (deleted, updated, inserted) = (section("d"), section("u"), section("i"));
    let subs: Vec<(&str, &Document)> =
        diff.iter().filter_map(|(name, value)| Some((name.strip_prefix('s')?, value.as_document()?))).collect();
    let mut names: Vec<&str> = subs.iter().map(|(name, _)| *name).collect();
    names.extend([&deleted, &updated, &inserted].into_iter().flat_map(|s| s.keys()).map(String::as_str));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    if diff.is_empty() || names.len() != count {
        return None;
    }

    let mut out = base.clone();
    for name in deleted.keys().chain(inserted.keys()) {
        out.remove(name);
    }
    for (name, sub) in subs {
        if let Some(old) = out.get_mut(name) {
            *old = apply_sub(Some(old), sub)?;
        }
    }
    // `insert` keeps the place of a field that is there, and appends one that is not.
    out.extend(updated);
    out.extend(inserted);
    Some(out)
}

/// With `_id` before all else.
pub(super) fn id_first(document: Document) -> Document {
    let id = document.get("_id").cloned().map(|id| ("_id".to_owned(), id));
    let others = document.into_iter().filter(|(name, _)| name != "_id");
    id.into_iter().chain(others).collect()
}

fn apply_sub(old: Option<&Bson>, diff: &Document) -> Option<Bson> {
    let first = diff.keys().next()?;
    Some(match old {
        Some(Bson::Document(old)) if first != "a" => apply(old, diff)?.into(),
        Some(Bson::Array(old)) if first == "a" => apply_array(old, diff)?.into(),
        _ => Bson::Null,
    })
}

fn apply_array(old: &[Bson], diff: &Document) -> Option<Vec<Bson>> {
    let mut out = old.to_vec();
    if let Some(len) = diff.get("l") {
        out.resize(len.as_i32()? as usize, Bson::Null);
    }
    for (name, value) in diff {
        let (kind, index) = name.split_at(1);
        let Ok(index) = index.parse::<usize>() else { continue };
        let there = out.get(index).cloned();
        if out.len() <= index {
            if diff.contains_key("l") {
                return None;
            }
            out.resize(index + 1, Bson::Null);
        }
        out[index] = match kind {
            "u" => value.clone(),
            _ => apply_sub(there.as_ref(), value.as_document()?)?,
        };
    }
    Some(out)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("c"), Just("d"), Just("_id"), Just(""), Just("0")].prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Bson> {
    let leaf = prop_oneof![
        any::<i32>().prop_map(Bson::Int32),
        any::<i64>().prop_map(Bson::Int64),
        Just(Bson::Double(0.5)),
        Just(Bson::Null),
        Just(Bson::MinKey),
        "[a-z]{0,9}".prop_map(Bson::String),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..12).prop_map(Bson::Array),
            vec((name(), inner), 0..4).prop_map(|fields| Document::from_iter(fields).into()),
        ]
    })
}

pub(super) fn fields() -> impl Strategy<Value = Document> {
    vec((name(), value()), 0..4).prop_map(Document::from_iter)
}

/// A document whose fields often hold what a diff expects there.
pub(super) fn document() -> impl Strategy<Value = Document> {
    vec((name(), value()), 0..6).prop_map(Document::from_iter)
}

/// A `$set` of dotted paths.
pub(super) fn dotted() -> impl Strategy<Value = Document> {
    let path = vec(prop_oneof![name(), Just("11".to_owned())], 1..4).prop_map(|parts| parts.join("."));
    vec((path, value()), 0..4).prop_map(Document::from_iter)
}

pub(super) fn diff() -> impl Strategy<Value = Document> {
    let leaf = fields().prop_map(|fields| doc! { "u": fields });
    leaf.prop_recursive(3, 24, 3, |inner| prop_oneof![document_diff(inner.clone()), array_diff(inner)])
        .prop_filter("the outermost is a document's", |diff| !diff.contains_key("a"))
}

fn document_diff(inner: impl Strategy<Value = Document>) -> impl Strategy<Value = Document> {
    let removed = vec((name(), Just(Bson::Boolean(false))), 0..3).prop_map(Document::from_iter);
    let subs = vec((name(), inner), 0..3);
    (removed, fields(), fields(), subs).prop_map(|(removed, updated, inserted, subs)| {
        let mut diff = Document::new();
        for (section, fields) in [("d", removed), ("u", updated), ("i", inserted)] {
            if !fields.is_empty() {
                diff.insert(section, fields);
            }
        }
        diff.extend(subs.into_iter().map(|(name, sub)| (format!("s{name}"), sub.into())));
        diff
    })
}

fn array_diff(inner: impl Strategy<Value = Document>) -> impl Strategy<Value = Document> {
    let change = prop_oneof![value().prop_map(|value| ('u', value)), inner.prop_map(|diff| ('s', diff.into()))];
    let changes = proptest::collection::btree_map(0..12_usize, change, 0..4);
    (proptest::option::of(0..14_i32), changes).prop_map(|(len, changes)| {
        let mut diff = doc! { "a": true };
        diff.extend(len.map(|len| ("l".to_owned(), len.into())));
        diff.extend(changes.into_iter().map(|(at, (kind, value))| (format!("{kind}{at}"), value)));
        diff
    })
}
