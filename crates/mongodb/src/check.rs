//! Checking what is stored: the structure of every document, and that counts and places are those promised.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hindsight_engine::{DataCheck, LogCheck, Result};
use hindsight_format::{LogSummary, Point, SnapshotManifest, SnapshotTotals};
use hindsight_repository::ClusterRepository;

use crate::oplog::diff::Malformed;
use crate::oplog::diff::raw::{Elements, kind};
use crate::oplog::entry::{Entry, next_document};
use crate::oplog::reader::Tally;
use crate::optime::Optime;
use crate::snapshot::stored::{self, StoredCatalog};

/// Nesting after which a document is no document: more than any server takes (`maxBSONDepth` is 250 at most), for
/// what an oplog entry wraps around it.
const MAX_DEPTH: usize = 300;

/// Checks that bytes hold together as a BSON document, all the way down. Texts may be anything: a server takes them
/// as they come.
fn structure(doc: &[u8], depth: usize) -> std::result::Result<(), Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed("nesting"));
    }
    let mut elements = Elements::new(doc)?;
    while let Some(element) = elements.next()? {
        match element.kind {
            kind::DOCUMENT | kind::ARRAY => structure(element.value, depth + 1)?,
            kind::STRING | kind::CODE | kind::SYMBOL if element.value.last() != Some(&0) => {
                return Err(Malformed("end of a text"));
            }
            kind::BOOL if !matches!(element.value, [0 | 1]) => return Err(Malformed("boolean")),
            _ => {}
        }
    }
    Ok(())
}

/// The next document of a frame, sound.
fn next<'a>(run: &mut &'a [u8], number: &mut u64) -> std::result::Result<Option<&'a [u8]>, String> {
    *number += 1;
    let bad = |why: &dyn std::fmt::Display| format!("document {number} of the frame: {why}");
    let Some(document) = next_document(run).map_err(|error| bad(&error))? else { return Ok(None) };
    structure(document, 0).map_err(|error| bad(&error))?;
    Ok(Some(document))
}

/// Checks the data of one snapshot against its catalog.
pub(crate) struct SnapshotCheck {
    catalog: StoredCatalog,
    totals: SnapshotTotals,
    /// What was found, by segment. Frames of other segments do not count.
    found: HashMap<u32, Found>,
}

#[derive(Default)]
struct Found {
    documents: AtomicU64,
    bytes: AtomicU64,
}

impl SnapshotCheck {
    pub(crate) async fn of(cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Self> {
        let catalog = stored::load(cluster, manifest).await?;
        let segments = catalog.collections.iter().flat_map(|collection| &collection.segments);
        let found = segments.map(|segment| (segment.id, Found::default())).collect();
        Ok(Self { catalog, totals: manifest.totals, found })
    }
}

impl DataCheck for SnapshotCheck {
    fn frame(&self, _object: &str, segment: u32, raw: &[u8]) -> std::result::Result<(), String> {
        let (mut run, mut number) = (raw, 0);
        while next(&mut run, &mut number)?.is_some() {}
        if let Some(found) = self.found.get(&segment) {
            found.documents.fetch_add(number - 1, Ordering::Relaxed);
            found.bytes.fetch_add(raw.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn finish(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut all = 0;
        for collection in &self.catalog.collections {
            let name = format!("{}.{}", collection.db, collection.name);
            for segment in &collection.segments {
                all += segment.documents;
                let Some(found) = self.found.get(&segment.id) else { continue };
                let (documents, bytes) = (found.documents.load(Ordering::Relaxed), found.bytes.load(Ordering::Relaxed));
                if (documents, bytes) != (segment.documents, segment.bytes) {
                    wrong.push(format!(
                        "{name}: {documents} documents ({bytes} bytes) are stored, the catalog says {} ({} bytes)",
                        segment.documents, segment.bytes
                    ));
                }
            }
        }
        let collections = self.catalog.collections.len() as u64;
        if (collections, all) != (self.totals.collections, self.totals.documents) {
            wrong.push(format!(
                "the catalog has {collections} collections with {all} documents, the manifest says {} with {}",
                self.totals.collections, self.totals.documents
            ));
        }
        wrong
    }
}

/// Checks one slice: sound entries, in order, after its start and up to its end.
pub(crate) struct OplogCheck {
    last: Optime,
    end: Optime,
    summary: LogSummary,
}

impl OplogCheck {
    pub(crate) fn new(start: &Point, end: &Point) -> Result<Self> {
        let summary = LogSummary::starting_at(start.clone());
        Ok(Self { last: Optime::from_point(start)?, end: Optime::from_point(end)?, summary })
    }
}

impl LogCheck for OplogCheck {
    fn frame(&mut self, _segment: u32, raw: &[u8]) -> std::result::Result<(), String> {
        let (mut run, mut number) = (raw, 0);
        let mut tally = Tally::default();
        while let Some(document) = next(&mut run, &mut number)? {
            let entry = Entry::parse(document).map_err(|error| format!("record {number} of the frame: {error}"))?;
            if entry.at <= self.last {
                return Err(format!("the record at {} does not come after {}", entry.at, self.last));
            }
            if entry.at > self.end {
                return Err(format!("the record at {} lies after the end, {}", entry.at, self.end));
            }
            tally
                .take(&entry.head(), &mut self.summary)
                .map_err(|error| format!("the record at {}: {error}", entry.at))?;
            self.last = entry.at;
        }
        tally.finish(&mut self.summary);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> std::result::Result<LogSummary, String> {
        if self.last != self.end {
            return Err(format!("its last record is at {}, it should end with {}", self.last, self.end));
        }
        self.summary.end = self.last.point().map_err(|error| error.to_string())?;
        Ok(self.summary)
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    fn bytes(document: &bson::Document) -> Vec<u8> {
        let mut bytes = Vec::new();
        document.to_writer(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_a_server_could_have_written_is_sound() {
        let deep = (0..200).fold(doc! {"leaf": true}, |inner, _| doc! {"d": inner});
        for document in [doc! {}, doc! {"a": [1, {"b": "text"}, bson::Bson::Null], "t": true}, deep] {
            assert_eq!(structure(&bytes(&document), 0), Ok(()));
        }
    }

    #[test]
    fn broken_documents_are_told_wherever_they_are_broken() {
        let good = bytes(&doc! {"a": {"b": "text", "c": true}});
        let place = |needle: &[u8]| good.windows(needle.len()).position(|found| found == needle).unwrap();
        for (at, byte) in [
            (0, 1),                     // length of the whole
            (place(b"b\0") - 1, 0x2a),  // a type that there is not
            (place(b"text") + 4, b'!'), // the end of the text
            (place(b"c\0") + 2, 7),     // the boolean
            (place(b"a\0") + 2, 0xff),  // length of the inner document
        ] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(structure(&bad, 0).is_err(), "byte {at}");
        }
        assert!(structure(&good[..good.len() - 1], 0).is_err());
    }
}
