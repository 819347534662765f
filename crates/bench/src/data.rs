//! The data set: three collections of small, medium and large documents that compress about as well
//! as business data do, the same in every run.

use std::sync::Arc;

use anyhow::Result;
use bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Database of all collections.
pub const DATABASE: &str = "bench";
/// The collection that holds more than half of the bytes, and takes the updates.
pub const ORDERS: &str = "orders";
/// Bytes of documents in one insert.
const BATCH: usize = 4 << 20;
/// Words that texts are made of.
const VOCABULARY: usize = 3000;

/// A run of documents, one after the other.
#[derive(Debug, Default)]
pub struct Batch {
    /// The BSON documents.
    pub bytes: Vec<u8>,
    /// How many there are.
    pub count: u64,
}

/// A collection with all its documents, in the order in which they are inserted.
#[derive(Debug)]
pub struct Collection {
    /// Its name.
    pub name: &'static str,
    /// Its secondary indexes.
    pub indexes: Vec<Document>,
    /// Its documents.
    pub batches: Vec<Arc<Batch>>,
}

impl Collection {
    /// Bytes of all documents.
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(|batch| batch.bytes.len() as u64).sum()
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.batches.iter().map(|batch| batch.count).sum()
    }
}

/// Everything that is measured with.
#[derive(Debug)]
pub struct Dataset {
    /// The largest first.
    pub collections: Vec<Collection>,
}

impl Dataset {
    /// Makes about `bytes` of documents: 55 % of medium size, 25 % small, 20 % large.
    pub fn generate(bytes: u64) -> Result<Self> {
        let kinds: [(&'static str, u64, Maker); 3] =
            [(ORDERS, 55, order as Maker), ("events", 25, event), ("articles", 20, article)];
        let collections = std::thread::scope(|scope| {
            let threads = kinds.map(|(name, percent, make)| {
                scope.spawn(move || {
                    Ok::<_, anyhow::Error>(Collection {
                        name,
                        indexes: indexes(name),
                        batches: batches(bytes * percent / 100, percent, make)?,
                    })
                })
            });
            let made = threads.map(|thread| thread.join().map_err(|_| anyhow::anyhow!("making documents failed")));
            made.into_iter().map(|made| made?).collect::<Result<Vec<_>>>()
        })?;
        Ok(Self { collections })
    }

    /// Bytes of all documents.
    pub fn bytes(&self) -> u64 {
        self.collections.iter().map(Collection::bytes).sum()
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.collections.iter().map(Collection::documents).sum()
    }

    /// Number of secondary indexes.
    pub fn indexes(&self) -> usize {
        self.collections.iter().map(|collection| collection.indexes.len()).sum()
    }

    /// All batches with the name of their collection.
    pub fn batches(&self) -> impl Iterator<Item = (&'static str, &Arc<Batch>)> {
        self.collections.iter().flat_map(|collection| collection.batches.iter().map(|batch| (collection.name, batch)))
    }
}

/// The `_id` of the order with this number.
pub fn order_id(number: u64) -> ObjectId {
    id(55, number)
}

type Maker = fn(&mut Source, u64) -> Document;

/// What documents are made from.
struct Source {
    random: StdRng,
    words: Vec<String>,
    seed: u64,
}

fn indexes(collection: &str) -> Vec<Document> {
    let all = [
        (ORDERS, "by_email", doc! {"customer.email": 1}),
        (ORDERS, "by_time", doc! {"placedAt": 1}),
        (ORDERS, "by_status", doc! {"status": 1, "total": 1}),
        ("events", "by_user", doc! {"user": 1, "at": -1}),
        ("articles", "by_tag", doc! {"tags": 1}),
    ];
    let mine = all.into_iter().filter(|(of, ..)| *of == collection);
    mine.map(|(_, name, key)| doc! {"name": name, "key": key}).collect()
}

fn batches(bytes: u64, seed: u64, make: Maker) -> Result<Vec<Arc<Batch>>> {
    let mut source = Source::new(seed);
    let (mut batches, mut batch) = (Vec::new(), Batch::default());
    let (mut made, mut number) = (0, 0);
    while made < bytes {
        let document = make(&mut source, number).to_vec()?;
        number += 1;
        made += document.len() as u64;
        if batch.bytes.len() + document.len() > BATCH {
            batches.push(Arc::new(std::mem::take(&mut batch)));
        }
        batch.bytes.extend_from_slice(&document);
        batch.count += 1;
    }
    batches.push(Arc::new(batch));
    Ok(batches)
}

/// Ids that grow as those of real clients do: 50 a second, from one process.
fn id(seed: u64, number: u64) -> ObjectId {
    let mut bytes = [0; 12];
    let seconds = (1_700_000_000 + number / 50) as u32;
    let parts = seconds.to_be_bytes().into_iter().chain([0x9a, 0x31, 0xc4, 0x7e, seed as u8]);
    let counter = (number as u32).to_be_bytes();
    bytes.iter_mut().zip(parts.chain(counter.into_iter().skip(1))).for_each(|(to, from)| *to = from);
    ObjectId::from_bytes(bytes)
}

impl Source {
    fn new(seed: u64) -> Self {
        const SYLLABLES: [&str; 24] = [
            "an", "be", "cor", "da", "el", "fin", "ga", "hu", "is", "jo", "ka", "lor", "mi", "nat", "o", "per", "qua",
            "ri", "sen", "ta", "u", "ver", "wi", "zo",
        ];
        let mut random = StdRng::seed_from_u64(seed);
        let words = (0..VOCABULARY).map(|_| {
            let syllables = 1 + random.random_range(0..3) + random.random_range(0..2);
            (0..syllables).filter_map(|_| SYLLABLES.get(random.random_range(0..SYLLABLES.len()))).copied().collect()
        });
        let words = words.collect();
        Self { random, words, seed }
    }

    /// A word; some are much more frequent than others, as in any language.
    fn word(&mut self) -> &str {
        let place: f64 = self.random.random();
        let at = (place.powi(3) * self.words.len() as f64) as usize;
        self.words.get(at).map_or("", String::as_str)
    }

    fn text(&mut self, words: usize) -> String {
        let mut text = String::with_capacity(words * 7);
        for number in 0..words {
            if number > 0 {
                text.push(' ');
            }
            text.push_str(self.word());
        }
        text
    }

    /// What does not compress to less than half.
    fn token(&mut self, digits: usize) -> String {
        (0..digits).filter_map(|_| char::from_digit(self.random.random_range(0..16), 16)).collect()
    }

    fn one_of(&mut self, all: &[&'static str]) -> &'static str {
        all.get(self.random.random_range(0..all.len())).copied().unwrap_or_default()
    }

    fn cents(&mut self, most: u32) -> f64 {
        f64::from(self.random.random_range(100..most)) / 100.0
    }

    fn time(&mut self, number: u64) -> DateTime {
        DateTime::from_millis(1_700_000_000_000 + number as i64 * 20 + self.random.random_range(0..1000))
    }
}

/// About 200 bytes.
fn event(source: &mut Source, number: u64) -> Document {
    let kind = source.one_of(&["page.view", "page.leave", "cart.add", "cart.remove", "search", "login", "logout"]);
    doc! {
        "_id": id(source.seed, number),
        "at": source.time(number),
        "user": source.random.random_range(0..500_000_i64),
        "kind": kind,
        "path": format!("/{}/{}", source.word().to_owned(), source.word()),
        "session": source.token(80),
        "ms": source.random.random_range(1..4000_i32),
        "ok": source.random.random_range(0..20_i32) > 0,
    }
}

/// About 1 KB. `version`, `updatedAt` and the first item's quantity are changed by the updates, and
/// keep their length.
fn order(source: &mut Source, number: u64) -> Document {
    let (first, last) = (source.word().to_owned(), source.word().to_owned());
    let items: Vec<Bson> = (0..4)
        .map(|_| {
            Bson::from(doc! {
                "sku": source.token(10),
                "title": source.text(4),
                "quantity": source.random.random_range(1..9_i32),
                "price": source.cents(20_000),
            })
        })
        .collect();
    let placed = source.time(number);
    doc! {
        "_id": id(source.seed, number),
        "number": number as i64,
        "version": 0_i64,
        "status": source.one_of(&["new", "paid", "packed", "shipped", "delivered", "returned"]),
        "placedAt": placed,
        "updatedAt": placed,
        "total": source.cents(90_000),
        "customer": {
            "name": format!("{first} {last}"),
            "email": format!("{first}.{last}{}@example.com", source.random.random_range(0..1000_u32)),
            "city": source.word(),
            "street": format!("{} {}", source.text(2), source.random.random_range(1..200_u32)),
            "phone": format!("+49{}", source.random.random_range(1_000_000_000_u64..9_999_999_999)),
        },
        "items": items,
        "note": source.text(32),
        "signature": source.token(64),
    }
}

/// About 15 KB.
fn article(source: &mut Source, number: u64) -> Document {
    let paragraphs: Vec<String> = (0..20).map(|_| source.text(100)).collect();
    let tags: Vec<String> = (0..5).map(|_| source.word().to_owned()).collect();
    doc! {
        "_id": id(source.seed, number),
        "slug": format!("{}-{number}", source.text(3).replace(' ', "-")),
        "author": source.text(2),
        "publishedAt": source.time(number),
        "tags": tags,
        "body": paragraphs,
        "revision": source.token(40),
        "hash": source.token(1024),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_data_are_what_they_are_said_to_be() {
        let data = Dataset::generate(16 << 20).unwrap();
        assert!(data.bytes().abs_diff(16 << 20) < 1 << 16);
        assert!(data.collections[0].bytes() * 2 > data.bytes());
        assert_eq!(data.indexes(), 5);
        let mean = |at: usize| data.collections[at].bytes() / data.collections[at].documents();
        assert!((900..1200).contains(&mean(0)), "{}", mean(0));
        assert!((180..240).contains(&mean(1)), "{}", mean(1));
        assert!((13_000..17_000).contains(&mean(2)), "{}", mean(2));
        let whole: Vec<u8> = data.batches().flat_map(|(_, batch)| batch.bytes.clone()).collect();
        let packed = zstd::encode_all(&whole[..], 3).unwrap().len() as f64;
        let ratio = whole.len() as f64 / packed;
        assert!((2.0..4.5).contains(&ratio), "compresses {ratio} times");
    }

    #[test]
    fn ids_grow_and_are_known() {
        let data = Dataset::generate(1 << 20).unwrap();
        let first = &data.collections[0].batches[0];
        let length = i32::from_le_bytes(first.bytes[..4].try_into().unwrap()) as usize;
        let document = Document::from_reader(&first.bytes[..length]).unwrap();
        assert_eq!(document.get_object_id("_id").unwrap(), order_id(0));
        assert!(order_id(1) > order_id(0) && order_id(100_000) > order_id(99_999));
    }
}
