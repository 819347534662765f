//! What fuzz targets need of the fold and of stored catalogs, without a server. Not for anything else.

use std::collections::BTreeMap;

use hindsight_engine::{EngineError, Result};

use crate::fold::{Buffers, Cut, Fold};
use crate::oplog::entry::{self, Uuid};
use crate::optime::Optime;
use crate::snapshot::checkpoint::Checkpoint;
use crate::snapshot::stored::{StoredCatalog, StoredCollection};

/// A fold to try.
pub struct Attempt<'a> {
    /// The catalog object of the base, decompressed.
    pub catalog: &'a [u8],
    /// Documents of the base, one after another; dealt out to its collections in turn.
    pub base: &'a [u8],
    /// Entries of the log, one after another.
    pub log: &'a [u8],
    /// Up to here the base may have what the log does; seconds after `read_from`.
    pub consistent_after: u32,
    /// The base lacks collections.
    pub selective: bool,
    /// Bytes before the fold spills to disk.
    pub memory: usize,
    /// How often each entry comes.
    pub times: usize,
}

/// What a fold came to.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// The collections that there are, as stored, by UUID.
    pub collections: BTreeMap<Uuid, String>,
    /// Their documents.
    pub documents: BTreeMap<Uuid, Vec<Vec<u8>>>,
    /// Entries that counted.
    pub records: u64,
}

/// Cuts the next document off a run of documents, as readers of objects do.
pub fn next_document<'a>(run: &mut &'a [u8]) -> Result<Option<&'a [u8]>> {
    entry::next_document(run)
}

/// Decodes a document, as readers of catalogs do.
pub fn decode(document: &[u8]) -> Result<bson::Document> {
    entry::decode(document)
}

/// Reads a catalog object, and writes it again.
pub fn catalog_again(run: &[u8]) -> Result<Vec<u8>> {
    let catalog = StoredCatalog::parse(run).ok_or_else(|| EngineError::damaged("no catalog"))?;
    catalog.collections.iter().for_each(|collection| drop(collection.info()));
    let mut again = Vec::new();
    for document in StoredCatalog::documents(catalog.read_from, catalog.collections.into_iter()) {
        document.to_writer(&mut again).map_err(|e| EngineError::damaged(e.to_string()))?;
    }
    Ok(again)
}

/// A checkpoint.
pub fn a_checkpoint() -> Result<Vec<u8>> {
    written(&Checkpoint::sample()?)
}

/// Reads a checkpoint, and writes it again.
pub fn checkpoint_again(raw: &[u8]) -> Result<Vec<u8>> {
    let checkpoint = Checkpoint::parse(raw).ok_or_else(|| EngineError::damaged("no checkpoint"))?;
    written(&checkpoint)
}

fn written(checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    bson::serialize_to_vec(checkpoint).map_err(|e| EngineError::damaged(e.to_string()))
}

impl Attempt<'_> {
    /// Folds, and goes over the base.
    pub fn run(&self) -> Result<Outcome> {
        let catalog = StoredCatalog::parse(self.catalog).ok_or_else(|| EngineError::damaged("no catalog"))?;
        let uuids: Vec<Uuid> = catalog.collections.iter().map(|collection| collection.uuid).collect();
        let Optime { secs, inc, term } = catalog.read_from;
        let consistent_at = Optime { secs: secs.saturating_add(self.consistent_after), inc, term };
        let base = catalog.base(consistent_at, self.selective);
        let mut fold = Fold::new(base, Cut::Nowhere, self.memory, std::env::temp_dir());
        let mut log = self.log;
        while let Some(entry) = next_document(&mut log)? {
            for _ in 0..self.times {
                fold.feed(entry)?;
            }
        }
        let mut folded = fold.finish()?;
        let records = folded.records;
        let mut passes = vec![folded.effects.definitions()];
        for number in 0..folded.effects.count() {
            passes.push(folded.effects.load(number)?);
        }
        let mut documents: BTreeMap<Uuid, Vec<Vec<u8>>> = BTreeMap::new();
        for pass in &passes {
            let (mut run, mut turn) = (self.base, uuids.iter().cycle());
            while let (Some(document), Some(uuid)) = (next_document(&mut run)?, turn.next()) {
                let mut out = Vec::new();
                pass.merge(uuid, document, &mut Buffers::default(), &mut out)?;
                documents.entry(*uuid).or_default().extend((!out.is_empty()).then_some(out));
            }
            for uuid in pass.touched() {
                let rest = pass.rest(uuid)?.next(usize::MAX)?;
                let mut rest = &rest[..];
                while let Some(document) = next_document(&mut rest)? {
                    documents.entry(*uuid).or_default().push(document.to_vec());
                }
            }
        }
        let as_stored = |(uuid, collection): (&Uuid, &crate::fold::Collection)| {
            let indexes = collection.indexes.values().cloned().collect();
            let (db, name, options) = (collection.db.clone(), collection.name.clone(), collection.options.clone());
            let stored = StoredCollection { uuid: *uuid, db, name, options, indexes, segments: Vec::new() };
            (*uuid, format!("{stored:?}"))
        };
        Ok(Outcome { collections: folded.catalog.iter().map(as_stored).collect(), documents, records })
    }
}
