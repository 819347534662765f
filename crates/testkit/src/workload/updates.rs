//! Updates by every operator, of the fields that [`values::document`] makes: those that leave long and nested diffs in
//! the oplog above all.

use anyhow::Result;
use bson::{Bson, DateTime, Document, doc};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::inserts::target;
use super::names::Namespace;
use super::values::{self, number, one_of, tag, tags, text};
use super::worker::{Effect, Worker};

/// One statement of an `update` command.
pub(super) struct Update {
    query: Document,
    /// Operators, a pipeline or a replacement.
    change: Bson,
    array_filters: Vec<Document>,
    upsert: bool,
}

/// What makes a kind of update.
type Make = fn(&mut StdRng) -> Update;

impl Update {
    /// An update of one of the documents that exist, most often.
    fn of_any(rng: &mut StdRng, change: impl Into<Bson>) -> Self {
        Self { query: anyone(rng), change: change.into(), array_filters: Vec::new(), upsert: false }
    }

    fn of(query: Document, change: impl Into<Bson>) -> Self {
        Self { query, change: change.into(), array_filters: Vec::new(), upsert: false }
    }

    fn filtered(mut self, array_filters: impl Into<Vec<Document>>) -> Self {
        self.array_filters = array_filters.into();
        self
    }

    fn upsert(mut self) -> Self {
        self.upsert = true;
        self
    }

    fn statement(self, multi: bool) -> Document {
        let mut statement = doc! {"q": self.query, "u": self.change, "multi": multi, "upsert": self.upsert};
        if !self.array_filters.is_empty() {
            statement.insert("arrayFilters", self.array_filters);
        }
        statement
    }
}

/// Updates one document.
pub(super) async fn one(worker: &mut Worker, make: Make) -> Result<Effect> {
    let namespace = target(worker);
    let update = make(&mut worker.rng);
    let command = command(&namespace, vec![update.statement(false)], true);
    worker.write(&namespace, command).await
}

/// Updates all documents that match, by any kind of change but replacements, which servers refuse here.
pub(super) async fn multi(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let rng = &mut worker.rng;
    let mut update = one_of(rng, OPERATORS)(rng);
    if rng.random_bool(0.3) {
        let from = rng.random_range(0..90);
        update.query = doc! {"n": {"$gte": from, "$lt": from + 20}};
    }
    let command = command(&namespace, vec![update.statement(true)], true);
    worker.write(&namespace, command).await
}

/// Several updates, of which some fail.
pub(super) async fn bulk(worker: &mut Worker, ordered: bool) -> Result<Effect> {
    let namespace = target(worker);
    let rng = &mut worker.rng;
    let statements = (0..rng.random_range(2..12)).map(|_| any(rng).statement(false)).collect();
    worker.write(&namespace, command(&namespace, statements, ordered)).await
}

/// `findAndModify`, which leaves the image of the document in the oplog or in `config` if it is retryable.
pub(super) async fn find_and_modify(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let update = any(&mut worker.rng);
    let mut command = doc! {
        "findAndModify": &namespace.collection,
        "query": update.query,
        "update": update.change,
        "upsert": update.upsert,
        "new": worker.rng.random_bool(0.5),
        "fields": {"_id": 1},
    };
    if !update.array_filters.is_empty() {
        command.insert("arrayFilters", update.array_filters);
    }
    worker.write(&namespace, command).await
}

/// Replaces a document by one whose `_id` is the same number in another type.
pub(super) async fn replace_by_twin(worker: &mut Worker) -> Result<Effect> {
    let namespace = target(worker);
    let rng = &mut worker.rng;
    let n = rng.random_range(0..24);
    let mut document = values::document(rng);
    document.insert("_id", number(rng, n));
    let update = Update::of(doc! {"_id": number(rng, n)}, document);
    worker.write(&namespace, command(&namespace, vec![update.statement(false)], true)).await
}

fn command(namespace: &Namespace, statements: Vec<Document>, ordered: bool) -> Document {
    doc! {"update": &namespace.collection, "updates": statements, "ordered": ordered}
}

/// A statement with an update of any kind, for transactions.
pub(super) fn random_command(rng: &mut StdRng, namespace: &Namespace) -> Document {
    let statement = any(rng).statement(false);
    command(namespace, vec![statement], true)
}

/// A query that most often finds something.
fn anyone(rng: &mut StdRng) -> Document {
    match rng.random_range(0..10) {
        0..3 => doc! {"_id": values::id(rng)},
        3..8 => {
            let mut numbers = || rng.random_range(0..100);
            doc! {"n": {"$in": [numbers(), numbers(), numbers(), numbers(), numbers(), numbers()]}}
        }
        8 => doc! {"tags": tag(rng)},
        _ => doc! {},
    }
}

fn any(rng: &mut StdRng) -> Update {
    match rng.random_range(0..10) {
        0 => replacement(rng),
        1 => upsert(rng),
        _ => one_of(rng, OPERATORS)(rng),
    }
}

/// All changes but replacements.
const OPERATORS: &[Make] = &[
    set,
    unset,
    inc,
    mul,
    min,
    max,
    rename,
    current_date,
    bit,
    push,
    push_modified,
    pull,
    pull_all,
    pop,
    add_to_set,
    positional,
    all_positional,
    filtered_positional,
    array_elements,
    array_grow,
    array_shrink,
    many_operators,
    pipeline_set,
    pipeline_unset,
    pipeline_replace,
];

/// A path to something of any type.
fn path(rng: &mut StdRng) -> &'static str {
    one_of(
        rng,
        &[
            "n",
            "s",
            "any",
            "new",
            "nested",
            "nested.a.b",
            "nested.a.b.c",
            "nested.a.new",
            "nested.0",
            "nested.new.deep.er",
            "0",
            "Ü b",
        ],
    )
}

/// A path to a number, most often.
fn number_path(rng: &mut StdRng) -> &'static str {
    one_of(
        rng,
        &["n", "flags", "nested.a.d", "nested.a.b.c", "nested.0", "tags.0", "items.0.qty", "items.1.more.x", "new"],
    )
}

/// A path to an array, most often.
fn array_path(rng: &mut StdRng) -> &'static str {
    one_of(
        rng,
        &[
            "tags",
            "tags",
            "nested.a.b.list",
            "nested.grid.0",
            "nested.grid",
            "items.0.parts",
            "items.1.more.list",
            "long",
        ],
    )
}

pub(super) fn set(rng: &mut StdRng) -> Update {
    let change = doc! {"$set": {path(rng): values::any(rng, 3)}};
    Update::of_any(rng, change)
}

pub(super) fn unset(rng: &mut StdRng) -> Update {
    let path = if rng.random_bool(0.5) { path(rng) } else { array_path(rng) };
    Update::of_any(rng, doc! {"$unset": {path: ""}})
}

pub(super) fn inc(rng: &mut StdRng) -> Update {
    let n = rng.random_range(-9..10);
    let change = doc! {"$inc": {number_path(rng): number(rng, n)}};
    Update::of_any(rng, change)
}

pub(super) fn mul(rng: &mut StdRng) -> Update {
    let n = rng.random_range(-1..3);
    let change = doc! {"$mul": {number_path(rng): number(rng, n)}};
    Update::of_any(rng, change)
}

pub(super) fn min(rng: &mut StdRng) -> Update {
    let change = doc! {"$min": {number_path(rng): values::any(rng, 0)}};
    Update::of_any(rng, change)
}

pub(super) fn max(rng: &mut StdRng) -> Update {
    let change = doc! {"$max": {number_path(rng): values::any(rng, 0)}};
    Update::of_any(rng, change)
}

pub(super) fn rename(rng: &mut StdRng) -> Update {
    let (from, to) = one_of(
        rng,
        &[
            ("any", "new"),
            ("new", "any"),
            ("nested.a", "moved"),
            ("moved", "nested.a"),
            ("nested.0", "0"),
            ("s", "nested.s"),
        ],
    );
    Update::of_any(rng, doc! {"$rename": {from: to}})
}

pub(super) fn current_date(rng: &mut StdRng) -> Update {
    let kind = one_of(rng, &["date", "timestamp"]);
    let path = one_of(rng, &["at", "new", "nested.at"]);
    Update::of_any(rng, doc! {"$currentDate": {path: {"$type": kind}}})
}

pub(super) fn bit(rng: &mut StdRng) -> Update {
    let operation = one_of(rng, &["and", "or", "xor"]);
    let path = one_of(rng, &["flags", "flags", "nested.a.d"]);
    let n: i32 = rng.random_range(0..256);
    Update::of_any(rng, doc! {"$bit": {path: {operation: n}}})
}

pub(super) fn push(rng: &mut StdRng) -> Update {
    let value = if rng.random_bool(0.7) { tag(rng) } else { values::any(rng, 2) };
    let change = match rng.random_range(0..4) {
        0 => doc! {"$push": {"items": values::item(rng)}},
        1 => doc! {"$push": {"nested.grid": tags(rng, 3)}},
        _ => doc! {"$push": {array_path(rng): value}},
    };
    Update::of_any(rng, change)
}

pub(super) fn push_modified(rng: &mut StdRng) -> Update {
    let items = rng.random_bool(0.3);
    let each: Vec<Bson> = match items {
        true => (0..rng.random_range(0..4)).map(|_| values::item(rng).into()).collect(),
        false => tags(rng, 5),
    };
    let mut modifiers = doc! {"$each": each};
    if rng.random_bool(0.5) {
        modifiers.insert("$position", rng.random_range(-4..5));
    }
    if rng.random_bool(0.4) {
        let order = one_of(rng, &[1, -1]);
        modifiers.insert("$sort", if items { doc! {"qty": order}.into() } else { Bson::from(order) });
    }
    if rng.random_bool(0.7) {
        modifiers.insert("$slice", rng.random_range(-8..9));
    }
    let path = if items { "items" } else { array_path(rng) };
    Update::of_any(rng, doc! {"$push": {path: modifiers}})
}

pub(super) fn pull(rng: &mut StdRng) -> Update {
    let n = rng.random_range(0..12);
    let change = match rng.random_range(0..4) {
        0 => doc! {"items": {"qty": {"$gte": n}}},
        1 => doc! {"items": {"sku": text(rng, n)}},
        2 => doc! {array_path(rng): {"$in": tags(rng, 4)}},
        _ => doc! {array_path(rng): {"$lt": n}},
    };
    Update::of_any(rng, doc! {"$pull": change})
}

pub(super) fn pull_all(rng: &mut StdRng) -> Update {
    let change = doc! {"$pullAll": {array_path(rng): tags(rng, 8)}};
    Update::of_any(rng, change)
}

pub(super) fn pop(rng: &mut StdRng) -> Update {
    let end = one_of(rng, &[1, -1]);
    let path = if rng.random_bool(0.3) { "items" } else { array_path(rng) };
    Update::of_any(rng, doc! {"$pop": {path: end}})
}

pub(super) fn add_to_set(rng: &mut StdRng) -> Update {
    let value = match rng.random_bool(0.5) {
        true => doc! {"$each": tags(rng, 5)}.into(),
        false => tag(rng),
    };
    let change = doc! {"$addToSet": {array_path(rng): value}};
    Update::of_any(rng, change)
}

pub(super) fn positional(rng: &mut StdRng) -> Update {
    let n = rng.random_range(0..12);
    match rng.random_range(0..4) {
        0 => Update::of(doc! {"items.qty": {"$gte": n}}, doc! {"$set": {"items.$.qty": number(rng, n)}}),
        1 => Update::of(doc! {"items.qty": n}, doc! {"$unset": {"items.$": ""}}),
        2 => Update::of(doc! {"items.sku": text(rng, n)}, doc! {"$push": {"items.$.parts": tag(rng)}}),
        _ => Update::of(doc! {"tags": {"$gte": n}}, doc! {"$set": {"tags.$": values::any(rng, 1)}}),
    }
}

pub(super) fn all_positional(rng: &mut StdRng) -> Update {
    let change = match rng.random_range(0..5) {
        0 => doc! {"$set": {"items.$[].new": values::any(rng, 1)}},
        1 => doc! {"$inc": {"items.$[].qty": 1}},
        2 => doc! {"$push": {"items.$[].parts": tag(rng)}},
        3 => doc! {"$push": {"nested.grid.$[]": {"$each": tags(rng, 2), "$slice": -4}}},
        _ => doc! {"$unset": {"items.$[].more.x": ""}},
    };
    Update::of_any(rng, change)
}

pub(super) fn filtered_positional(rng: &mut StdRng) -> Update {
    let n = rng.random_range(0..12);
    let change = match rng.random_range(0..4) {
        0 => doc! {"$set": {"items.$[one].qty": number(rng, n), "items.$[one].x.y": n}},
        1 => doc! {"$inc": {"items.$[one].more.list.$[].y": 1}},
        2 => doc! {"$pull": {"items.$[one].parts": {"$gte": n}}},
        _ => doc! {"$set": {"items.$[one]": values::item(rng)}},
    };
    Update::of_any(rng, change).filtered([doc! {"one.qty": {"$gte": n}}])
}

/// Elements of arrays by their index, several of them at once.
pub(super) fn array_elements(rng: &mut StdRng) -> Update {
    let mut changes = Document::new();
    for _ in 0..rng.random_range(1..4) {
        let index = rng.random_range(0..5);
        let path = match rng.random_range(0..6) {
            0 => format!("tags.{index}"),
            1 => format!("items.{index}.qty"),
            2 => format!("items.{index}.parts.{}", rng.random_range(0..4)),
            3 => format!("nested.grid.{}.{index}", rng.random_range(0..3)),
            4 => format!("items.{index}.more.list.0.y"),
            _ => format!("nested.a.b.list.{index}"),
        };
        // A path and one of its prefixes conflict; no two of these are so.
        changes.insert(path, values::any(rng, 1));
    }
    let query = doc! {"items": {"$type": "array"}, "n": {"$gte": rng.random_range(0..100)}};
    Update::of(query, doc! {"$set": changes})
}

/// Fills an array with nulls up to an element far beyond its end.
pub(super) fn array_grow(rng: &mut StdRng) -> Update {
    let index = rng.random_range(5..40);
    let path = one_of(rng, &["tags", "nested.a.b.list", "items"]);
    let change = doc! {"$set": {format!("{path}.{index}"): values::any(rng, 1)}};
    Update::of_any(rng, change)
}

/// Cuts an array, and changes something of what stays.
pub(super) fn array_shrink(rng: &mut StdRng) -> Update {
    let length = rng.random_range(0..4);
    let change = match rng.random_range(0..4) {
        0 => doc! {"$push": {"items": {"$each": [], "$slice": length}}}.into(),
        1 => doc! {"$push": {array_path(rng): {"$each": [], "$slice": -length}}}.into(),
        2 => Bson::Array(vec![
            doc! {"$set": {"tags": {"$slice": [{"$ifNull": ["$tags", []]}, length + 1]}, "nested.a.d": length}}.into(),
        ]),
        _ => Bson::Array(vec![
            doc! {"$set": {"items": {"$slice": [{"$ifNull": ["$items", []]}, length + 1]}}}.into(),
            doc! {"$set": {"items.more.z": 1}}.into(),
        ]),
    };
    let query = doc! {"tags": {"$type": "array"}, "items": {"$type": "array"}, "n": {"$gte": rng.random_range(0..100)}};
    Update::of(query, change)
}

/// Several operators at once, all over the document.
pub(super) fn many_operators(rng: &mut StdRng) -> Update {
    let n = rng.random_range(0..12);
    let change = doc! {
        "$set": {"s": text(rng, n), "items.0.more.new": tags(rng, 2), "nested.a.b.list.1": tag(rng)},
        "$unset": {"any": "", "nested.0": "", "new": ""},
        "$inc": {"flags": 1},
        "$push": {"tags": {"$each": tags(rng, 2), "$position": 0, "$slice": 10}},
        "$currentDate": {"at": true},
    };
    Update::of_any(rng, change)
}

pub(super) fn pipeline_set(rng: &mut StdRng) -> Update {
    let literal = |value: Bson| doc! {"$literal": value};
    let stage = match rng.random_range(0..4) {
        0 => doc! {"$set": {"n": literal(values::any(rng, 2)), "new": "$nested.a"}},
        1 => {
            doc! {"$set": {"tags": {"$concatArrays": [tags(rng, 2), {"$cond": [{"$isArray": "$tags"}, "$tags", []]}]}}}
        }
        2 => doc! {"$set": {"items.qty": literal(values::any(rng, 0)), "nested.a.b.c": "$n"}},
        _ => doc! {"$set": {"tags": {"$reverseArray": {"$cond": [{"$isArray": "$tags"}, "$tags", [1, 2]]}}}},
    };
    Update::of_any(rng, vec![Bson::from(stage)])
}

pub(super) fn pipeline_unset(rng: &mut StdRng) -> Update {
    let paths = one_of(rng, &[["nested.a.b", "any"], ["items.more", "tags"], ["s", "items.parts"], ["nested", "new"]]);
    Update::of_any(rng, vec![Bson::from(doc! {"$unset": paths.to_vec()})])
}

pub(super) fn pipeline_replace(rng: &mut StdRng) -> Update {
    let with = match rng.random_range(0..3) {
        0 => doc! {"_id": "$_id", "n": "$n", "nested": "$nested", "tags": "$tags"},
        // The same fields in another order.
        1 => doc! {"$mergeObjects": [{"tags": 1, "s": 1, "n": 1}, "$$ROOT"]},
        _ => doc! {"$mergeObjects": ["$$ROOT", {"any": {"$literal": values::any(rng, 3)}}]},
    };
    Update::of_any(rng, vec![Bson::from(doc! {"$replaceWith": with})])
}

pub(super) fn replacement(rng: &mut StdRng) -> Update {
    let mut document = values::document(rng);
    document.remove("_id");
    Update::of_any(rng, document)
}

pub(super) fn upsert(rng: &mut StdRng) -> Update {
    let query = doc! {"_id": values::id(rng)};
    let n = rng.random_range(0..100);
    let change: Bson = match rng.random_range(0..4) {
        0 => doc! {"$setOnInsert": {"n": n, "tags": tags(rng, 4)}, "$inc": {"flags": 1}}.into(),
        1 => doc! {"$set": {"n": n, "nested.a.b.list": tags(rng, 4), "at": DateTime::from_millis(n.into())}}.into(),
        2 => vec![Bson::from(doc! {"$set": {"n": n, "count": {"$add": [{"$ifNull": ["$count", 0]}, 1]}}})].into(),
        _ => {
            let mut document = values::document(rng);
            document.remove("_id");
            document.into()
        }
    };
    Update::of(query, change).upsert()
}
