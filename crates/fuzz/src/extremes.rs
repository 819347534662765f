//! Inputs at the limits of what fits into an object: too large for the corpus, and nothing that changes here and
//! there would come to.

use bson::{RawDocumentBuf, doc};

use crate::SEPARATOR;

const DEEP: usize = 40_000;
const MANY: usize = 20_000;

/// Writes BSON that no library would.
#[derive(Default)]
struct Raw {
    out: Vec<u8>,
    open: Vec<usize>,
}

impl Raw {
    fn open(&mut self) -> &mut Self {
        self.open.push(self.out.len());
        self.out.extend([0; 4]);
        self
    }

    fn close(&mut self) -> &mut Self {
        self.out.push(0);
        if let Some(at) = self.open.pop() {
            let length = (self.out.len() - at) as u32;
            self.out[at..at + 4].copy_from_slice(&length.to_le_bytes());
        }
        self
    }

    fn field(&mut self, kind: u8, name: &str, value: &[u8]) -> &mut Self {
        self.out.push(kind);
        self.out.extend(name.as_bytes());
        self.out.push(0);
        self.out.extend(value);
        self
    }

    fn document(&mut self, name: &str) -> &mut Self {
        self.field(3, name, &[]).open()
    }

    fn array(&mut self, name: &str) -> &mut Self {
        self.field(4, name, &[]).open()
    }

    fn text(&mut self, name: &str, text: &str) -> &mut Self {
        let length = (text.len() as u32 + 1).to_le_bytes();
        self.field(2, name, &[&length, text.as_bytes(), &[0]].concat())
    }

    fn int(&mut self, name: &str, value: i32) -> &mut Self {
        self.field(0x10, name, &value.to_le_bytes())
    }

    fn finish(&mut self) -> Vec<u8> {
        while !self.open.is_empty() {
            self.close();
        }
        std::mem::take(&mut self.out)
    }
}

fn raw(document: &bson::Document) -> Vec<u8> {
    RawDocumentBuf::try_from(document).expect("a document").into_bytes()
}

fn nested(name: &str, levels: usize) -> Vec<u8> {
    let mut raw = Raw::default();
    raw.open();
    (0..levels).for_each(|_| {
        raw.document(name);
    });
    raw.finish()
}

/// An update by `$v: 2`, whose diff is written by `write`.
fn delta(write: impl FnOnce(&mut Raw)) -> Vec<u8> {
    let mut raw = Raw::default();
    raw.open().int("$v", 2).document("diff");
    write(&mut raw);
    raw.finish()
}

fn modifiers(paths: impl Iterator<Item = String>) -> Vec<u8> {
    let mut raw = Raw::default();
    raw.open().int("$v", 1).document("$set");
    paths.for_each(|path| {
        raw.int(&path, 1);
    });
    raw.finish()
}

fn fields(names: impl Iterator<Item = String>) -> Vec<u8> {
    let mut raw = Raw::default();
    raw.open();
    names.for_each(|name| {
        raw.int(&name, 1);
    });
    raw.finish()
}

fn entry(kind: &str, write: impl FnOnce(&mut Raw)) -> Vec<u8> {
    let mut raw = Raw::default();
    raw.open().field(0x11, "ts", &[1, 0, 0, 0, 200, 0, 0, 0]).text("op", kind).text("ns", "db.$cmd");
    write(raw.document("o"));
    raw.finish()
}

fn folded(log: &[u8]) -> Vec<u8> {
    let catalog = raw(&doc! {"readFrom": {"ts": bson::Timestamp { time: 100, increment: 1 }, "t": 1_i64}});
    [&[0][..], &catalog, &SEPARATOR, &SEPARATOR, log].concat()
}

/// The inputs for `target`, with what they are.
pub fn inputs(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "names" => vec![("long", b"1".repeat(1 << 20)), ("dashes", b"-".repeat(1 << 20))],
        "records" => vec![
            ("arrays in arrays", [b"\n\"namespaces\":".as_slice(), &b"[".repeat(1 << 18)].concat()),
            ("objects in objects", [b"\n".as_slice(), &b"\"a\":{".repeat(1 << 18)].concat()),
            ("many fields", [b"\n".as_slice(), &b"\"a\":1,".repeat(1 << 16)].concat()),
        ],
        "objects" => objects(),
        "entries" => vec![("nested", nested("a", DEEP)), ("nested command", entry("c", |o| deepen(o, "create")))],
        "ids" => vec![("nested", nested("_id", DEEP)), ("code in code", scopes())],
        "updates" => updates(),
        "fold" => vec![
            ("nested command", folded(&entry("c", |o| deepen(o, "createIndexes")))),
            ("applyOps in applyOps", folded(&entry("c", apply_ops))),
            ("nested catalog", [&[0][..], &nested("readFrom", DEEP)].concat()),
        ],
        "wal" => vec![
            ("one record after another", [&[2][..], &[1, 0, 0, 0].repeat(1 << 14)].concat()),
            ("a long record", {
                let mut log = hindsight_postgres::fuzzing::MadeUp::new(hindsight_postgres::wal::Version::V15);
                log.record(10, 0, &vec![7; 1 << 20]);
                [&[2][..], &log.bytes].concat()
            }),
        ],
        "tar" => vec![("a file of 8 GiB", {
            let mut header = vec![0; 512];
            header[0] = b'a';
            header[100..108].copy_from_slice(b"0000600 ");
            header[124..136].copy_from_slice(b"77777777777 ");
            header[136..148].copy_from_slice(b"00000000000 ");
            header[156] = b'0';
            [header, vec![1; 1 << 16]].concat()
        })],
        "manifest" => vec![
            ("nested", [&b"{\"Files\":"[..], &b"[{\"a\":".repeat(1 << 16)].concat()),
            ("one line", b"x".repeat(1 << 20)),
            (
                "a long text",
                [b"{\"PostgreSQL-Backup-Manifest-Version\": 1,\n\"", &b"\\\"".repeat(1 << 18)[..]].concat(),
            ),
        ],
        _ => Vec::new(),
    }
}

fn deepen(o: &mut Raw, name: &str) {
    (0..DEEP).for_each(|_| {
        o.document(name);
    });
}

fn apply_ops(o: &mut Raw) {
    for _ in 0..DEEP / 4 {
        o.array("applyOps").document("0").text("op", "c").text("ns", "db.$cmd").document("o");
    }
}

fn scopes() -> Vec<u8> {
    // {_id: code with the scope {_id: code with the scope ...}}
    let mut inner = vec![5, 0, 0, 0, 0];
    for _ in 0..300 {
        let mut value = ((inner.len() + 4 + 5) as u32).to_le_bytes().to_vec();
        value.extend([1, 0, 0, 0, 0]);
        value.extend(&inner);
        let mut raw = Raw::default();
        raw.open().field(0x0F, "_id", &value);
        inner = raw.finish();
    }
    inner
}

fn objects() -> Vec<(&'static str, Vec<u8>)> {
    let footer = |frames: &str| {
        format!("{{\"format\":1,\"kind\":\"data\",\"key\":\"clusters/c/o\",\"frames\":[{frames}]}}").into_bytes()
    };
    let claim = "{\"l\":1,\"r\":67108864,\"c\":0},";
    let frames = [vec![0; 24 + 1000], footer(claim.repeat(1000).trim_end_matches(','))].concat();
    let deep = [vec![0; 24], b"{\"format\":1,\"kind\":".to_vec(), b"[".repeat(1 << 18)].concat();
    vec![("frames that claim much", frames), ("nested footer", deep)]
}

fn updates() -> Vec<(&'static str, Vec<u8>)> {
    let id = raw(&doc! {"_id": 1, "a": []});
    let arrays = {
        let mut raw = Raw::default();
        raw.open().array("a");
        (0..500).for_each(|index| {
            raw.array(&index.to_string()).close();
        });
        raw.finish()
    };
    let same = |count: usize| fields((0..count).map(|_| "a".to_owned()));
    let long = "x".repeat(60 << 10);
    let update_a = delta(|diff| {
        diff.document("u").text("a", &long);
    });
    let update_many_a = delta(|diff| {
        diff.document("u");
        (0..4000).for_each(|_| {
            diff.int("a", 1);
        });
    });
    let ones = (0..MANY).map(|_| bson::Bson::Int32(1)).collect::<Vec<_>>();
    vec![
        ("$v 1: padding upon padding", {
            let paths = (1..300).map(|n| format!("a.{}", n * 1_400_000));
            [id.clone(), modifiers(paths)].concat()
        }),
        ("$v 1: many fields and many paths", {
            let names = |prefix: &'static str| (0..MANY).map(move |n| format!("{prefix}{n}"));
            [fields(names("a")), modifiers(names("b"))].concat()
        }),
        ("$v 1: many elements and many paths", {
            let paths = (0..MANY).map(|n| format!("a.{n}"));
            [raw(&doc! {"_id": 1, "a": ones}), modifiers(paths)].concat()
        }),
        ("$v 1: a long path", [nested("a", DEEP), modifiers(std::iter::once("a.".repeat(DEEP) + "a"))].concat()),
        ("$v 2: long arrays in an array", {
            let diff = delta(|diff| {
                diff.document("sa").field(8, "a", &[1]);
                for index in 0..500 {
                    diff.document(&format!("s{index}")).field(8, "a", &[1]).int("l", 6_000_000).close();
                }
            });
            [arrays, diff].concat()
        }),
        ("$v 2: one name many times", [same(MANY), update_a.clone()].concat()),
        ("$v 2: nested", [nested("a", DEEP), delta(|diff| deepen(diff, "sa"))].concat()),
        ("$v 2: merging one name many times", [id, update_many_a, update_a].concat()),
        ("an unknown form", [same(1), fields((0..MANY).map(|n| format!("$a{n}")))].concat()),
    ]
}
