//! Random documents, updates, diffs and `_id`s.

use bson::{
    Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc, oid::ObjectId,
};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "long name", "0", "1"];

fn name(rng: &mut impl Rng) -> String {
    (*NAMES.choose(rng).unwrap()).to_owned()
}

/// A dotted path of up to three components, some of them indexes.
fn path(rng: &mut impl Rng) -> String {
    let mut path = name(rng);
    while rng.random_bool(0.45) && path.split('.').count() < 4 {
        path.push('.');
        match rng.random_bool(0.5) {
            true => path.push_str(&name(rng)),
            false => path.push_str(&rng.random_range(0..14).to_string()),
        }
    }
    path
}

/// A document with an `_id` of its own, of any type of number or another one.
pub fn document(rng: &mut impl Rng, n: usize) -> Document {
    let number = n as i32;
    let id: Bson = match n % 6 {
        0 => number.into(),
        1 => i64::from(number).into(),
        2 => f64::from(number).into(),
        3 => Bson::Decimal128(format!("{number}.0").parse().unwrap()),
        4 => doc! { "n": number }.into(),
        _ => format!("id {n}").into(),
    };
    let mut doc = doc! { "_id": id };
    for _ in 0..rng.random_range(0..7) {
        doc.insert(name(rng), value(rng, 3));
    }
    doc
}

fn fields(rng: &mut impl Rng, depth: usize) -> Document {
    (0..rng.random_range(0..4)).map(|_| (name(rng), value(rng, depth))).collect()
}

fn array(rng: &mut impl Rng, depth: usize) -> Vec<Bson> {
    (0..rng.random_range(0..13)).map(|_| value(rng, depth)).collect()
}

/// A value of any BSON type; containers more often than not while `depth` allows.
fn value(rng: &mut impl Rng, depth: usize) -> Bson {
    if depth > 0 && rng.random_bool(0.5) {
        return match rng.random_bool(0.5) {
            true => fields(rng, depth - 1).into(),
            false => array(rng, depth - 1).into(),
        };
    }
    let n: i32 = rng.random_range(-9..9);
    match rng.random_range(0..22) {
        0 => Bson::Double(f64::from(n) / 4.0),
        1 | 2 => "text".repeat(n.unsigned_abs() as usize).into(),
        3 => {
            // Not UUIDs and columns, whose contents newer servers check.
            let subtype: u8 = *[0, 2, 5, 128].choose(rng).unwrap();
            Bson::Binary(Binary { subtype: subtype.into(), bytes: vec![n as u8; n.unsigned_abs() as usize] })
        }
        4 => Bson::Undefined,
        5 => ObjectId::from_bytes([n as u8; 12]).into(),
        6 => (n > 0).into(),
        7 => DateTime::from_millis(i64::from(n)).into(),
        8 => Bson::Null,
        9 => Bson::RegularExpression(Regex { pattern: "^a".try_into().unwrap(), options: "i".try_into().unwrap() }),
        10 => db_pointer(),
        11 => Bson::JavaScriptCode("f()".to_owned()),
        12 => Bson::Symbol("symbol".to_owned()),
        13 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "g()".to_owned(), scope: doc! { "n": n } }),
        14 => Bson::Timestamp(Timestamp { time: 5, increment: n.unsigned_abs() }),
        15 => i64::from(n).into(),
        16 => Bson::Decimal128(format!("{n}.50").parse().unwrap()),
        17 => Bson::MinKey,
        18 => Bson::MaxKey,
        _ => n.into(),
    }
}

/// The driver cannot make one, only read it.
fn db_pointer() -> Bson {
    let bytes = b"\x1b\0\0\0\x0cp\0\x03\0\0\0ns\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\0";
    Document::from_reader(&bytes[..]).unwrap().remove("p").unwrap()
}

/// An update of the document `now`; it need not succeed, but mostly does.
pub fn statement(rng: &mut impl Rng, id: &Bson, now: &Document) -> Document {
    let mut statement = doc! { "q": { "_id": id } };
    let update: Bson = match rng.random_range(0..10) {
        0 => replacement(rng, id).into(),
        1 | 2 => Bson::Array((0..rng.random_range(1..3)).map(|_| stage(rng, id).into()).collect()),
        3 if now.values().any(|value| value.as_array().is_some()) => {
            let array = now.iter().filter(|(_, value)| value.as_array().is_some()).map(|(name, _)| name.clone());
            let array = array.collect::<Vec<_>>().choose(rng).unwrap().clone();
            if rng.random_bool(0.5) {
                statement.insert("arrayFilters", vec![doc! { "x": { "$type": "number" } }]);
                doc! { "$mul": { format!("{array}.$[x]"): 3 } }.into()
            } else {
                doc! { "$set": { format!("{array}.$[]"): value(rng, 1) } }.into()
            }
        }
        _ => operators(rng, now).into(),
    };
    statement.insert("u", update);
    statement
}

/// With `_id` left out, or in any place, or as another type of number.
fn replacement(rng: &mut impl Rng, id: &Bson) -> Document {
    let mut doc = fields(rng, 2);
    if rng.random_bool(0.7) {
        let id = match id {
            Bson::Int32(n) => Bson::Double(f64::from(*n)),
            Bson::Double(n) => Bson::Int64(*n as i64),
            id => id.clone(),
        };
        doc.insert("_id", id);
        doc.extend(fields(rng, 1));
    }
    doc
}

fn stage(rng: &mut impl Rng, id: &Bson) -> Document {
    let literal = |value: Bson| doc! { "$literal": value };
    let name = ["a", "b", "c", "d", "e", "a.b", "c.e", "b.a.d"].choose(rng).unwrap().to_string();
    match rng.random_range(0..5) {
        0 => doc! { "$unset": name },
        1 => {
            let mut whole = fields(rng, 2);
            whole.insert("_id", id.clone());
            doc! { "$replaceWith": literal(whole.into()) }
        }
        2 => doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", literal(fields(rng, 2).into())] } },
        _ => doc! { "$set": { name: literal(value(rng, 2)) } },
    }
}

/// One to three operators on paths that mostly exist and fit.
fn operators(rng: &mut impl Rng, now: &Document) -> Document {
    let mut paths = Vec::new();
    collect_paths(&Bson::Document(now.clone()), String::new(), &mut paths);
    let mut update = Document::new();
    for _ in 0..rng.random_range(1..4) {
        let (path, old) = match paths.choose(rng) {
            Some((path, old)) if rng.random_bool(0.7) => (path.clone(), old.clone()),
            _ => (path(rng), Bson::Null),
        };
        let (operator, argument) = operator(rng, &old);
        let arguments = update.entry(operator.to_owned()).or_insert_with(|| Document::new().into());
        arguments.as_document_mut().unwrap().insert(path, argument);
    }
    update
}

fn collect_paths(value: &Bson, path: String, paths: &mut Vec<(String, Bson)>) {
    let below = |name: &str| match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}.{name}"),
    };
    match value {
        Bson::Document(doc) => doc
            .iter()
            .filter(|(name, _)| !path.is_empty() || *name != "_id")
            .for_each(|(name, value)| collect_paths(value, below(name), paths)),
        Bson::Array(values) => {
            values.iter().enumerate().for_each(|(at, value)| collect_paths(value, below(&at.to_string()), paths));
        }
        _ => {}
    }
    if !path.is_empty() {
        paths.push((path, value.clone()));
    }
}

fn operator(rng: &mut impl Rng, old: &Bson) -> (&'static str, Bson) {
    let n: i32 = rng.random_range(-5..5);
    match (old, rng.random_range(0..8)) {
        (_, 0) => ("$unset", true.into()),
        (_, 1) => ("$set", value(rng, 2)),
        (_, 2) => ("$rename", NAMES.choose(rng).unwrap().to_string().into()),
        (_, 3) => match n % 3 {
            0 => ("$currentDate", doc! { "$type": "timestamp" }.into()),
            1 => ("$min", value(rng, 1)),
            _ => ("$max", value(rng, 1)),
        },
        (Bson::Int32(_) | Bson::Int64(_), 4) => ("$bit", doc! { "xor": 5 }.into()),
        (Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_) | Bson::Decimal128(_), _) => match n > 0 {
            true => ("$inc", n.into()),
            false => ("$mul", Bson::Double(f64::from(n) / 2.0)),
        },
        (Bson::Array(old), 4) => ("$pull", old.choose(rng).cloned().unwrap_or(Bson::Null)),
        (Bson::Array(_), 5) => ("$pop", (if n > 0 { 1 } else { -1 }).into()),
        (Bson::Array(_), 6) => ("$addToSet", doc! { "$each": array(rng, 1) }.into()),
        (Bson::Array(_), _) => {
            let mut push = doc! { "$each": array(rng, 1) };
            if rng.random_bool(0.5) {
                push.insert("$slice", n * 2);
            }
            match rng.random_range(0..4) {
                0 => drop(push.insert("$sort", 1)),
                1 => drop(push.insert("$position", n)),
                _ => {}
            }
            ("$push", push.into())
        }
        (_, 4) => ("$push", value(rng, 1)),
        (_, 5) => ("$inc", n.into()),
        _ => ("$set", value(rng, 3)),
    }
}

/// A `$v: 1` update for a document nobody looked at. Its paths sometimes conflict, which is invalid.
pub fn modifiers(rng: &mut impl Rng) -> Document {
    let mut update = doc! { "$v": 1 };
    for modifier in ["$set", "$unset"] {
        let paths: Document = (0..rng.random_range(0..4)).map(|_| (path(rng), value(rng, 2))).collect();
        if !paths.is_empty() {
            update.insert(modifier, paths);
        }
    }
    update
}

/// A delta for a document nobody looked at. Sometimes it names a field twice, which is invalid.
pub fn document_diff(rng: &mut impl Rng, depth: usize) -> Document {
    let mut diff = Document::new();
    let mut left: Vec<&str> = NAMES.to_vec();
    for section in ["d", "u", "i"] {
        if rng.random_bool(0.4) {
            let mut changes = Document::new();
            for _ in 0..rng.random_range(1..3) {
                let at = rng.random_range(0..left.len());
                let name = if rng.random_bool(0.98) { left.remove(at) } else { left[at] };
                let change = if section == "d" { false.into() } else { value(rng, 2) };
                changes.insert(name, change);
            }
            diff.insert(section, changes);
        }
    }
    while depth > 0 && left.len() > 1 && (diff.is_empty() || rng.random_bool(0.6)) {
        let name = left.remove(rng.random_range(0..left.len()));
        let sub = match rng.random_bool(0.5) {
            true => document_diff(rng, depth - 1),
            false => array_diff(rng, depth - 1),
        };
        diff.insert(format!("s{name}"), sub);
    }
    if diff.is_empty() {
        diff.insert("u", doc! { "a": 1 });
    }
    diff
}

fn array_diff(rng: &mut impl Rng, depth: usize) -> Document {
    let mut diff = doc! { "a": true };
    let len = rng.random_bool(0.3).then(|| rng.random_range(0..16));
    diff.extend(len.map(|len| ("l".to_owned(), Bson::Int32(len))));
    for index in 0..len.unwrap_or(16) {
        if rng.random_bool(0.15) {
            match rng.random_range(0..3) {
                0 if depth > 0 => diff.insert(format!("s{index}"), document_diff(rng, depth - 1)),
                1 if depth > 0 => diff.insert(format!("s{index}"), array_diff(rng, depth - 1)),
                _ => diff.insert(format!("u{index}"), value(rng, 1)),
            };
        }
    }
    diff
}

/// The document with the fields in order, at every level.
pub fn sorted(doc: &Document) -> Document {
    let mut fields: Vec<_> = doc.iter().map(|(name, value)| (name.clone(), sorted_value(value))).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields.into_iter().collect()
}

fn sorted_value(value: &Bson) -> Bson {
    match value {
        Bson::Document(doc) => sorted(doc).into(),
        Bson::Array(values) => values.iter().map(sorted_value).collect(),
        // NaN differs from itself.
        Bson::Double(double) if double.is_nan() => "NaN".into(),
        other => other.clone(),
    }
}

/// An `_id`, mostly a number of which others are likely to exist in another form.
pub fn id(rng: &mut impl Rng) -> Bson {
    match rng.random_range(0..12) {
        0 => doc! { "a": number(rng), "b": [number(rng)] }.into(),
        1 => doc! { "a": [value(rng, 0)] }.into(),
        2 => Bson::Symbol("text".repeat(rng.random_range(0..9))),
        3 => match value(rng, 1) {
            Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined => Bson::Null,
            other => other,
        },
        _ => number(rng),
    }
}

fn number(rng: &mut impl Rng) -> Bson {
    let decimal = |text: String| Bson::Decimal128(text.parse::<Decimal128>().unwrap());
    let edges =
        [0, 1, 2, 10, (1 << 31) - 1, 1 << 31, (1 << 53) - 1, 1 << 53, (1 << 53) + 1, 1 << 55, i64::MAX, i64::MIN];
    let whole = edges.choose(rng).unwrap().wrapping_add(rng.random_range(-2..3));
    let fraction = f64::from(rng.random_range(-40..40_i32)) / [1.0, 3.0, 8.0, 10.0, 1e22].choose(rng).unwrap();
    match rng.random_range(0..12) {
        0 => i32::try_from(whole).map_or(Bson::Int64(whole), Bson::Int32),
        1 => whole.into(),
        2 => (whole as f64).into(),
        3 => decimal(whole.to_string()),
        4 => decimal(format!("{whole}.{}", "0".repeat(rng.random_range(0..9)))),
        5 | 6 => fraction.into(),
        // All digits of the double that a decimal can hold, or as many as one usually writes.
        7 => decimal(format!("{fraction:.*e}", *[2, 14, 15, 16, 17, 30, 33].choose(rng).unwrap())),
        8 => {
            let power: i32 = *[0, 1, -1, -1022, -1074, 1023, 63, 62, 300, -255, -256].choose(rng).unwrap();
            let double = f64::from(power).exp2() * f64::from(rng.random_range(-2..3_i32));
            match rng.random_bool(0.4) {
                true => double.into(),
                false if double.is_finite() => decimal(format!("{double:.33e}")),
                false => decimal(if double > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()),
            }
        }
        9 => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MAX, f64::MIN, f64::from_bits(1)]
            .choose(rng)
            .copied()
            .unwrap()
            .into(),
        10 => decimal(
            [
                "NaN",
                "Infinity",
                "-Infinity",
                "-0",
                "0E+6111",
                "0E-6176",
                "1E-6176",
                "10E-6176",
                "1E+6111",
                "9.99E+6144",
                "1.0E+310",
                "10E+309",
                "1E-400",
                "100E-402",
                "4.9E-324",
            ]
            .choose(rng)
            .unwrap()
            .to_string(),
        ),
        _ => {
            // Any coefficient of 113 bits, also beyond 34 digits; any combination of the bits above it.
            let coefficient: u128 =
                [1, 2, 5, 10, 1 << 53, 10_u128.pow(33), 10_u128.pow(34), (1 << 113) - 1].choose(rng).copied().unwrap();
            let exponent: u128 = (6176 + rng.random_range(-36..36_i32)) as u128;
            let large: u128 = if rng.random_bool(0.1) { 3 << 125 } else { 0 };
            Bson::Decimal128(Decimal128::from_bytes((coefficient | exponent << 113 | large).to_le_bytes()))
        }
    }
}
