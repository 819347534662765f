//! Random BSON: every type, as values and as `_id`s.

use bson::oid::ObjectId;
use bson::raw::{CString, cstr};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

/// Largest document that servers store, in bytes.
pub(super) const MAX_DOCUMENT: usize = 16 << 20;

/// One of `items`, which must not be empty.
pub(super) fn one_of<T: Clone>(rng: &mut StdRng, items: &[T]) -> T {
    let index = rng.random_range(0..items.len());
    items.get(index).cloned().unwrap_or_else(|| unreachable!("{index} is in range"))
}

/// The number `n` in one of the four numeric types; for decimals also in one of the forms that compare equal.
pub(super) fn number(rng: &mut StdRng, n: i32) -> Bson {
    match rng.random_range(0..6) {
        0 | 1 => n.into(),
        2 => i64::from(n).into(),
        3 => f64::from(n).into(),
        4 => decimal(&n.to_string()),
        _ => decimal(&format!("{n}.00")),
    }
}

/// A number that is no ordinary one.
fn odd_number(rng: &mut StdRng) -> Bson {
    one_of(
        rng,
        &[
            Bson::Double(f64::NAN),
            Bson::Double(f64::INFINITY),
            Bson::Double(f64::NEG_INFINITY),
            Bson::Double(-0.0),
            Bson::Double(5e-324),
            Bson::Double(0.1),
            decimal("NaN"),
            decimal("Infinity"),
            decimal("-Infinity"),
            decimal("-0"),
            decimal("0E+6000"),
            decimal("9.999999999999999999999999999999999E+6144"),
            Bson::Int32(0),
            Bson::Int32(i32::MIN),
            Bson::Int64(i64::MAX),
            // No double holds it.
            Bson::Int64((1 << 53) + 1),
        ],
    )
}

/// A decimal number, from text that is one.
fn decimal(text: &str) -> Bson {
    text.parse::<Decimal128>().map_or(Bson::Null, Bson::Decimal128)
}

/// A short text in one of several cases, which some collations take for the same one.
pub(super) fn text(rng: &mut StdRng, n: i32) -> String {
    match rng.random_range(0..4) {
        0 => format!("key {n}"),
        1 => format!("KEY {n}"),
        2 => format!("Kéy {n}"),
        _ => format!("kEy\0{n}🦀"),
    }
}

/// An `_id` of any type, out of a space small enough for ids to meet again, also as numbers of another type.
pub(super) fn id(rng: &mut StdRng) -> Bson {
    let n = rng.random_range(0..24);
    match rng.random_range(0..32) {
        0..12 => number(rng, n),
        12..16 => text(rng, n).into(),
        16..19 => one_of(
            rng,
            &[
                doc! {"a": n, "b": "x"},
                doc! {"b": "x", "a": n},
                doc! {"a": f64::from(n), "b": "x"},
                doc! {"a": [n, {"": n}]},
                doc! {},
            ],
        )
        .into(),
        19 => object_id(n).into(),
        20..22 => binary(rng, n),
        22 => odd_number(rng),
        23 => one_of(rng, &[Bson::Null, Bson::MinKey, Bson::MaxKey, Bson::Boolean(true), Bson::Boolean(false)]),
        24 => DateTime::from_millis(i64::from(n) - 10).into(),
        25 => Timestamp { time: n as u32, increment: one_of(rng, &[0, 1]) }.into(),
        26 => Bson::Symbol(text(rng, n)),
        27 => Bson::JavaScriptCode(format!("{n}")),
        28 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: format!("{n}"), scope: doc! {"n": n} }),
        29 => Bson::String("long ".repeat(500 + n as usize)),
        30 => Bson::String(String::new()),
        _ => (f64::from(n) + 0.5).into(),
    }
}

/// The value again, as another numeric type if it is a whole number, so that the server takes it for the same `_id`.
pub(super) fn twin(rng: &mut StdRng, id: &Bson) -> Bson {
    match id {
        Bson::Int32(n) => number(rng, *n),
        Bson::Int64(n) => i32::try_from(*n).map_or_else(|_| id.clone(), |n| number(rng, n)),
        Bson::Double(n) if n.fract() == 0.0 && n.abs() < 1e6 => number(rng, *n as i32),
        _ => id.clone(),
    }
}

fn object_id(n: i32) -> ObjectId {
    let mut bytes = [7; 12];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

fn binary(rng: &mut StdRng, n: i32) -> Bson {
    let subtype = one_of(
        rng,
        &[
            BinarySubtype::Generic,
            BinarySubtype::Function,
            BinarySubtype::BinaryOld,
            BinarySubtype::UuidOld,
            BinarySubtype::Uuid,
            BinarySubtype::Md5,
            BinarySubtype::UserDefined(0x80),
            BinarySubtype::UserDefined(0xff),
        ],
    );
    // Uuids and hashes have 16 bytes.
    let bytes = match subtype {
        BinarySubtype::Generic => n.to_le_bytes()[..(n % 4) as usize].to_vec(),
        _ => vec![n as u8; 16],
    };
    Binary { subtype, bytes }.into()
}

/// A value of any type; containers are at most `depth` deep.
pub(super) fn any(rng: &mut StdRng, depth: u32) -> Bson {
    let n = rng.random_range(0..100);
    match rng.random_range(0..24) {
        0 | 1 if depth > 0 => Bson::Array((0..rng.random_range(0..6)).map(|_| any(rng, depth - 1)).collect()),
        2 | 3 if depth > 0 => (0..rng.random_range(0..5))
            .map(|_| (one_of(rng, &["", "a", "b", "0", "1", "ü", "_id"]).to_owned(), any(rng, depth - 1)))
            .collect::<Document>()
            .into(),
        4 => odd_number(rng),
        5 => binary(rng, n),
        6 => Bson::RegularExpression(Regex {
            pattern: bson_cstring(&format!("^a.{n}")),
            options: bson_cstring(one_of(rng, &["", "i", "imsx"])),
        }),
        7 => Bson::Undefined,
        8 => doc! {"$ref": "a", "$id": n, "$db": "torture"}.into(),
        9 => db_pointer(n),
        10 => Timestamp { time: 0, increment: 0 }.into(),
        11 => Bson::Null,
        12..16 => id(rng),
        _ => number(rng, n),
    }
}

/// Text without NUL as the type that BSON has for it.
fn bson_cstring(text: &str) -> CString {
    text.try_into().unwrap_or_else(|_| cstr!("").into())
}

/// The deprecated type that only extended JSON can make.
fn db_pointer(n: i32) -> Bson {
    let json = serde_json::json!({"$dbPointer": {"$ref": "torture.a", "$id": {"$oid": object_id(n).to_hex()}}});
    Bson::try_from(json).unwrap_or(Bson::Null)
}

/// A document like those that applications have: the fields that updates and indexes of the workload are about, some
/// missing and some of unexpected types.
pub(super) fn document(rng: &mut StdRng) -> Document {
    let mut document = doc! {"_id": id(rng)};
    if rng.random_bool(0.1) {
        return document;
    }
    let n = rng.random_range(0..100);
    document.insert("n", number(rng, n));
    // Unique but for chance; not always there, for sparse indexes.
    if rng.random_bool(0.8) {
        document.insert("k", rng.random::<i64>());
    }
    document.insert("s", text(rng, n));
    document.insert("tags", tags(rng, 8));
    document.insert("items", items(rng));
    document.insert("nested", nested(rng));
    document.insert("flags", one_of(rng, &[Bson::Int32(n), Bson::Int64(n.into())]));
    document.insert("at", DateTime::from_millis(rng.random_range(-1_000_000..2_000_000_000_000)));
    if rng.random_bool(0.5) {
        let (x, y) = (rng.random_range(-180.0..180.0), rng.random_range(-90.0..90.0));
        document.insert("place", doc! {"type": "Point", "coordinates": [x, y]});
        document.insert("spot", [x, y].map(Bson::from).to_vec());
    }
    if rng.random_bool(0.3) {
        let name = one_of(rng, &["tags", "items", "nested", "n", "s", "flags"]);
        document.insert(name, any(rng, 3));
    }
    if rng.random_bool(0.3) {
        document.insert(one_of(rng, &["any", "", "0", "Ü b"]), any(rng, 4));
    }
    if rng.random_bool(0.05) {
        // The server puts its clock in the place of this value, at the top level only.
        document.insert("stamp", Timestamp { time: 0, increment: 0 });
    }
    if rng.random_bool(0.02) {
        document.insert("deep", deep(rng));
    }
    if rng.random_bool(0.02) {
        document.insert("long", (0..rng.random_range(500..5000)).map(|n| number(rng, n)).collect::<Vec<_>>());
    }
    if rng.random_bool(0.05) {
        let bytes = rng.random_range(1_000..60_000);
        document.insert("filler", filler(rng, bytes));
    }
    document
}

/// Field names that servers since 5.0 store and updates can't easily name.
pub(super) fn odd_fields(rng: &mut StdRng, document: &mut Document) {
    document.insert(one_of(rng, &["a.b", "$x", "tags.0", "n.$"]), any(rng, 1));
    document.insert("odd", doc! {"$set": 1, "x.y": {"$inc": any(rng, 1)}});
}

/// An array of scalars.
pub(super) fn tags(rng: &mut StdRng, longest: usize) -> Vec<Bson> {
    (0..rng.random_range(0..=longest)).map(|_| tag(rng)).collect()
}

/// An element of [`tags`].
pub(super) fn tag(rng: &mut StdRng) -> Bson {
    let n = rng.random_range(0..12);
    if rng.random_bool(0.7) { number(rng, n) } else { text(rng, n).into() }
}

/// An array of documents with arrays.
fn items(rng: &mut StdRng) -> Vec<Bson> {
    (0..rng.random_range(0..5)).map(|_| item(rng).into()).collect()
}

/// An element of [`items`].
pub(super) fn item(rng: &mut StdRng) -> Document {
    let n = rng.random_range(0..12);
    doc! {"sku": text(rng, n), "qty": number(rng, n), "parts": tags(rng, 4), "more": {"x": n, "list": [{"y": n}]}}
}

fn nested(rng: &mut StdRng) -> Document {
    let n = rng.random_range(0..12);
    doc! {"a": {"b": {"c": number(rng, n), "list": tags(rng, 5)}, "d": n}, "0": n, "grid": [tags(rng, 3), tags(rng, 3)]}
}

/// Nested almost as deep as servers allow a stored document to be (180 levels).
fn deep(rng: &mut StdRng) -> Bson {
    let mut value = Bson::Int32(1);
    for _ in 0..rng.random_range(50..150) {
        value = if rng.random_bool(0.3) { Bson::Array(vec![value]) } else { doc! {"d": value}.into() };
    }
    value
}

/// Bytes that don't compress.
pub(super) fn filler(rng: &mut StdRng, bytes: usize) -> Bson {
    let mut filler = vec![0; bytes];
    rng.fill_bytes(&mut filler);
    Binary { subtype: BinarySubtype::Generic, bytes: filler }.into()
}

/// A document of several MiB, now and then as large as possible.
pub(super) fn huge_document(rng: &mut StdRng) -> Document {
    let mut document = doc! {"_id": id(rng), "n": rng.random_range(0..100)};
    match rng.random_range(0..4) {
        0 => {
            let bytes = MAX_DOCUMENT - rng.random_range(8_000..20_000);
            document.insert("filler", filler(rng, bytes));
        }
        1 => {
            document.insert("long", (0..rng.random_range(50_000..150_000)).map(Bson::Int32).collect::<Vec<_>>());
        }
        _ => {
            let bytes = rng.random_range(1 << 20..6 << 20);
            document.insert("filler", filler(rng, bytes));
            document.insert("tags", tags(rng, 8));
        }
    }
    document
}
