//! Seeded changes of inputs: of bytes, of the numbers in texts, and of BSON as what it is.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, RawDocumentBuf, Timestamp, doc};
use hindsight_mongodb::fuzzing::{decode, next_document};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// No input grows beyond this.
const MAX_INPUT: usize = 64 << 10;

const LENGTHS: [u32; 14] =
    [0, 1, 4, 5, 12, 13, 16, 255, 0x7FFF, 64 << 20, (64 << 20) + 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX];

const TEXTS: [&str; 20] = [
    "0",
    "1",
    "-1",
    "00",
    "1e9",
    "1.5",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "-9223372036854775808",
    "4294967295",
    "9999-12-30T22:00:00Z",
    "-009999-01-02T01:59:59Z",
    "99991230T220000Z",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "../..",
];

/// Names that mean something to what reads them.
const NAMES: [&str; 65] = [
    "",
    "_id",
    "a",
    "b",
    "0",
    "1",
    "00",
    "a.b",
    "a.0",
    "a.1500000",
    "a.$",
    "a.",
    "$v",
    "diff",
    "d",
    "u",
    "i",
    "sa",
    "s_id",
    "l",
    "u0",
    "u1",
    "s0",
    "s1",
    "u6000000",
    "$set",
    "$unset",
    "$inc",
    "o",
    "op",
    "ns",
    "ui",
    "o2",
    "ts",
    "t",
    "lsid",
    "txnNumber",
    "prevOpTime",
    "multiOpType",
    "applyOps",
    "partialTxn",
    "prepare",
    "commitTransaction",
    "abortTransaction",
    "create",
    "drop",
    "renameCollection",
    "to",
    "dropTarget",
    "createIndexes",
    "commitIndexBuild",
    "indexes",
    "dropIndexes",
    "index",
    "collMod",
    "emptycapped",
    "dropDatabase",
    "convertToCapped",
    "readFrom",
    "uuid",
    "options",
    "capped",
    "segments",
    "timeseries",
    "expireAfterSeconds",
];

const STRINGS: [&str; 14] = [
    "",
    "i",
    "u",
    "d",
    "c",
    "n",
    "db.c",
    "db.$cmd",
    "admin.$cmd",
    "admin.system.users",
    "db.system.views",
    "*",
    "off",
    "seconds",
];

/// Draws changes; the same seed draws the same.
pub struct Mutator {
    random: StdRng,
}

impl Mutator {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    /// One of so many.
    pub fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end.max(1))
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// `input` with one to four changes, some of them with pieces of `other`.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(4) {
            bytes = match self.below(4) {
                0 => self.bytes(bytes, other),
                1 => self.text(bytes),
                _ => self.run(&bytes, other).unwrap_or_else(|| bytes.clone()),
            };
            bytes.truncate(MAX_INPUT);
        }
        bytes
    }

    fn range(&mut self, of: usize) -> std::ops::Range<usize> {
        let start = self.below(of);
        let longest = if self.below(2) == 0 { 16 } else { of };
        start..(start + 1 + self.below(longest)).min(of)
    }

    fn bytes(&mut self, mut bytes: Vec<u8>, other: &[u8]) -> Vec<u8> {
        if bytes.is_empty() {
            return other.to_vec();
        }
        let at = self.below(bytes.len());
        match self.below(8) {
            0 | 1 => bytes[at] ^= 1 << self.below(8),
            2 => bytes[at] = self.one_of(&[0, 1, 0x7F, 0x80, 0xFF, b'.', b'-', b'$', b'/']),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(self.range(bytes.len()))),
            5 => {
                let range = self.range(bytes.len());
                let copy = bytes[range].to_vec();
                bytes.splice(at..at, copy);
            }
            6 if !other.is_empty() => {
                let (range, with) = (self.range(bytes.len()), self.range(other.len()));
                bytes.splice(range, other[with].iter().copied());
            }
            _ => {
                let length = self.one_of(&LENGTHS).to_le_bytes();
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&length[..end - at]);
            }
        }
        bytes
    }

    /// Another number in place of one, or anything in place of a word.
    fn text(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-:.+_".contains(byte);
        let numbers: Vec<usize> = (0..bytes.len())
            .filter(|at| bytes[*at].is_ascii_digit() && (*at == 0 || !bytes[at - 1].is_ascii_digit()))
            .collect();
        if numbers.is_empty() {
            return bytes;
        }
        let start = self.one_of(&numbers);
        let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let word = bytes[start..].iter().take_while(|byte| is_word(byte)).count();
        let end = start + if self.below(3) == 0 { word } else { digits };
        let with = self.one_of(&TEXTS);
        bytes.splice(start..end, with.bytes());
        bytes
    }

    /// Changes a run of documents, which may begin after a byte of flags.
    fn run(&mut self, bytes: &[u8], other: &[u8]) -> Option<Vec<u8>> {
        let (head, mut documents) = split(bytes)?;
        let (_, others) = split(other).unwrap_or_default();
        let at = self.below(documents.len());
        match self.below(8) {
            0 => drop(documents.remove(at)),
            1 => documents.insert(at, documents[self.below(documents.len())].clone()),
            2 => {
                let to = self.below(documents.len());
                documents.swap(at, to);
            }
            3 if !others.is_empty() => documents.insert(at, others[self.below(others.len())].clone()),
            _ => {
                let mut document = decode(&documents[at]).ok()?;
                let with = others.get(self.below(others.len())).and_then(|other| decode(other).ok());
                self.document(&mut document, &with.unwrap_or_default(), 0);
                documents[at] = RawDocumentBuf::try_from(&document).ok()?.into_bytes();
            }
        }
        Some([head.to_vec(), documents.concat()].concat())
    }

    fn document(&mut self, document: &mut Document, other: &Document, level: usize) {
        let names: Vec<String> = document.keys().cloned().collect();
        let Some(name) = names.get(self.below(names.len())) else {
            document.insert(self.one_of(&NAMES), self.value(other));
            return;
        };
        match self.below(10) {
            0 => drop(document.remove(name)),
            1 => drop(document.insert(self.one_of(&NAMES), self.value(other))),
            2 => {
                let moved = document.remove(name);
                document.insert(self.one_of(&NAMES), moved.unwrap_or(Bson::Null));
            }
            3 => {
                let moved = document.remove(name).unwrap_or(Bson::Null);
                document.insert(name, moved);
            }
            4 => {
                let value = self.value(other);
                document.insert(name, value);
            }
            5 => {
                let mut value = document.remove(name).unwrap_or(Bson::Null);
                let levels = self.one_of(&[1, 2, 60, 180, 199, 200, 201]);
                for _ in 0..levels {
                    value =
                        if self.below(2) == 0 { Bson::Document(doc! {"a": value}) } else { Bson::Array(vec![value]) };
                }
                document.insert(name, value);
            }
            _ => match document.get_mut(name) {
                Some(Bson::Document(inner)) if level < 8 => self.document(inner, other, level + 1),
                Some(Bson::Array(values)) => self.array(values, other, level),
                Some(value) => *value = self.value(other),
                None => {}
            },
        }
    }

    fn array(&mut self, values: &mut Vec<Bson>, other: &Document, level: usize) {
        let at = self.below(values.len());
        match (self.below(4), values.get_mut(at)) {
            (0, Some(_)) => drop(values.remove(at)),
            (1, Some(value)) => {
                let copy = value.clone();
                values.insert(at, copy);
            }
            (_, Some(Bson::Document(inner))) if level < 8 => self.document(inner, other, level + 1),
            _ => values.push(self.value(other)),
        }
    }

    fn value(&mut self, other: &Document) -> Bson {
        let foreign = other.values().nth(self.below(other.len()));
        match self.below(22) {
            0 => Bson::Null,
            1 => Bson::Boolean(self.below(2) == 0),
            2 => Bson::Int32(self.one_of(&[0, 1, 2, -1, i32::MIN, i32::MAX, 1_500_001])),
            3 => Bson::Int64(self.one_of(&[0, 1, 2, -1, i64::MIN, i64::MAX, 1 << 32, 1 << 53])),
            4 => Bson::Double(self.one_of(&[
                0.0,
                -0.0,
                0.1,
                1.0,
                2.0,
                1e300,
                f64::NAN,
                f64::INFINITY,
                f64::MIN_POSITIVE,
            ])),
            5 => Bson::String(self.one_of(&STRINGS).to_owned()),
            6 => Bson::Timestamp(Timestamp {
                time: self.one_of(&[0, 1, 100, u32::MAX]),
                increment: self.below(3) as u32,
            }),
            7 => Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![self.below(4) as u8; 16] }),
            8 => Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1; self.below(20)] }),
            9 => Bson::ObjectId(ObjectId::from_bytes([self.below(2) as u8; 12])),
            10 => Bson::DateTime(DateTime::from_millis(self.one_of(&[0, -1, i64::MIN, i64::MAX]))),
            11 => Bson::Decimal128(Decimal128::from_bytes([self.one_of(&[0, 1, 0x5F, 0xF8, 0xFF]); 16])),
            12 => Bson::MinKey,
            13 => Bson::Undefined,
            14 => Bson::Symbol("a".to_owned()),
            15 => Bson::JavaScriptCode("a".to_owned()),
            16 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "a".to_owned(), scope: doc! {"a": 1} }),
            17 => Bson::Document(doc! {self.one_of(&NAMES): self.one_of(&STRINGS)}),
            18 => Bson::Array(vec![Bson::Int32(1); self.below(5)]),
            _ => foreign.cloned().unwrap_or(Bson::MaxKey),
        }
    }
}

/// The documents of a run, and what is before them.
fn split(bytes: &[u8]) -> Option<(&[u8], Vec<Vec<u8>>)> {
    [0, 1].into_iter().find_map(|skipped| {
        let (head, mut run) = bytes.split_at_checked(skipped)?;
        let mut documents = Vec::new();
        while let Some(document) = next_document(&mut run).ok()? {
            documents.push(document.to_vec());
        }
        (!documents.is_empty()).then_some((head, documents))
    })
}
