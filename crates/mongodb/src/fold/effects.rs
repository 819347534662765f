//! The net effect of the log on each document.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::RawDocument;
use hashbrown::HashMap;
use hindsight_engine::EngineError;

use super::catalog::Catalog;
use super::pass::Passes;
use super::spill::Spill;
use crate::oplog::diff::{self, Update};
use crate::oplog::docid::{canonical_key, raw_id};
use crate::oplog::entry::{Op, Operation, Uuid, malformed, next_document};

/// Bytes that an entry of the map costs besides key and value, about.
pub(super) const OVERHEAD: usize = 128;

/// What the log does to one document in all.
#[derive(Debug)]
pub(crate) enum Effect {
    /// It is this in the end.
    Document {
        doc: Box<[u8]>,
        /// Order of its insert among all inserts of the log; 0 when the log only replaces it, so
        /// that it keeps the place it has in the base.
        sequence: u64,
        /// The base cannot have it: a delete leaves nothing to remember.
        fresh: bool,
        /// Handed out by the pass.
        done: AtomicBool,
    },
    /// It is gone in the end.
    Gone,
    /// The base's document with these updates, one after the other.
    Updates { run: Vec<u8>, last: usize },
}

impl Effect {
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Document { doc, .. } => doc.len(),
            Self::Gone => 0,
            Self::Updates { run, .. } => run.capacity(),
        }
    }

    fn document(doc: &[u8], sequence: u64, fresh: bool) -> Self {
        Self::Document { doc: doc.into(), sequence, fresh, done: AtomicBool::new(false) }
    }

    /// What becomes of `doc`, a document of the base that has it, appended to `out`. `capped`: documents keep their order.
    /// `done`: notes that the document that the log made was handed out, and says whether it was before.
    pub(super) fn befall(
        &self,
        doc: &[u8],
        capped: bool,
        done: impl FnOnce() -> bool,
        out: &mut Vec<u8>,
    ) -> Result<Fate, EngineError> {
        match self {
            Self::Gone => Ok(Fate::Dropped),
            // Inserted by the log: among documents that keep their order its place is at the end.
            Self::Document { sequence, .. } if *sequence > 0 && capped => Ok(Fate::Dropped),
            Self::Document { .. } if done() => Ok(Fate::Dropped),
            Self::Document { doc, .. } => {
                out.extend_from_slice(doc);
                Ok(Fate::Kept)
            }
            Self::Updates { run, .. } => {
                out.extend_from_slice(&updated(doc, run)?);
                Ok(Fate::Kept)
            }
        }
    }

    /// Notes that the document was handed out; says whether it was before.
    pub(super) fn hand_out(&self) -> bool {
        matches!(self, Self::Document { done, .. } if done.swap(true, Ordering::Relaxed))
    }

    /// What the two do one after the other.
    pub(super) fn then(self, next: Self) -> Result<Self, EngineError> {
        Ok(match (self, next) {
            (Self::Document { sequence, .. }, Self::Document { doc, sequence: 0, .. }) => {
                Self::document(&doc, sequence, false)
            }
            (Self::Gone, Self::Document { sequence: 0, .. } | Self::Updates { .. }) => Self::Gone,
            (Self::Document { mut doc, sequence, fresh, done }, Self::Updates { run, .. }) => {
                doc = updated(&doc, &run)?.into();
                Self::Document { doc, sequence, fresh, done }
            }
            (Self::Updates { mut run, mut last }, Self::Updates { run: more, .. }) => {
                let (mut more, mut both) = (&more[..], Vec::new());
                while let Some(update) = next_document(&mut more)? {
                    add_update(&mut run, &mut last, update, &mut both);
                }
                Self::Updates { run, last }
            }
            (_, next) => next,
        })
    }
}

/// Adds an update to a run, merged with the last one where that can be; `both` is working memory.
fn add_update(run: &mut Vec<u8>, last: &mut usize, update: &[u8], both: &mut Vec<u8>) {
    both.clear();
    let update = match diff::compose(run.get(*last..).unwrap_or_default(), update, both) {
        true => both.as_slice(),
        false => {
            *last = run.len();
            update
        }
    };
    run.truncate(*last);
    run.extend_from_slice(update);
}

/// `doc` after a run of updates.
fn updated(doc: &[u8], mut run: &[u8]) -> Result<Vec<u8>, EngineError> {
    let mut present = doc.to_vec();
    let mut next = Vec::with_capacity(doc.len() + 64);
    while let Some(update) = next_document(&mut run)? {
        next.clear();
        diff::apply(raw(&present)?, raw(update)?, &mut next).map_err(unappliable)?;
        std::mem::swap(&mut present, &mut next);
    }
    Ok(present)
}

fn raw(bytes: &[u8]) -> Result<&RawDocument, EngineError> {
    RawDocument::from_bytes(bytes).map_err(|e| EngineError::damaged(format!("unreadable document: {e}")))
}

fn unappliable(error: diff::UpdateError) -> EngineError {
    EngineError::damaged(format!("an update of the log cannot be applied: {error}"))
}

/// What has become of a document of the base.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was appended to the output: as it was, or as it became.
    Kept,
    /// It is gone, or comes later with what the base did not have.
    Dropped,
    /// Another pass looks after it.
    Elsewhere,
}

/// Effects on one collection.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) effects: HashMap<Box<[u8]>, Effect>,
    /// How often it was emptied; what is older than the last time does not count.
    pub(super) emptied: u32,
    pub(super) bytes: usize,
}

/// Effects on all collections, while the log is walked.
pub(crate) struct Effects {
    collections: HashMap<Uuid, Documents>,
    sequence: u64,
    bytes: usize,
    budget: usize,
    scratch: PathBuf,
    spill: Option<Spill>,
    key: Vec<u8>,
    both: Vec<u8>,
}

/// The key of the document of which `holder` is the document itself or its key document.
pub(super) fn key_of(holder: &[u8], key: &mut Vec<u8>) -> Result<(), EngineError> {
    key.clear();
    match raw_id(holder).map_err(malformed)? {
        Some((kind, value)) => canonical_key(kind, value, key).map_err(malformed),
        None => Err(EngineError::damaged("a write of the log names no _id")),
    }
}

impl Effects {
    pub(super) fn new(budget: usize, scratch: PathBuf) -> Self {
        Self {
            collections: HashMap::new(),
            sequence: 0,
            bytes: 0,
            budget,
            scratch,
            spill: None,
            key: Vec::new(),
            both: Vec::new(),
        }
    }

    /// Takes an insert, update or delete. `consistent`: the base is complete without it, so that
    /// what it inserts was not in the base.
    pub(super) fn apply(&mut self, uuid: Uuid, operation: &Operation<'_>, consistent: bool) -> Result<(), EngineError> {
        let holder = match operation.op {
            Op::Update => operation.o2.ok_or_else(|| EngineError::damaged("an update of the log names no document"))?,
            _ => operation.o,
        };
        let mut key = std::mem::take(&mut self.key);
        key_of(holder, &mut key)?;
        let documents = self.collections.entry(uuid).or_default();
        let known = documents.effects.get_mut(key.as_slice());
        let before = known.as_ref().map_or(0, |effect| effect.size());
        let mut forget = false;
        let new = match (operation.op, known) {
            (Op::Insert, Some(known)) => {
                self.sequence += 1;
                let fresh = matches!(known, Effect::Document { fresh: true, .. });
                *known = Effect::document(operation.o, self.sequence, fresh);
                None
            }
            (Op::Insert, None) => {
                self.sequence += 1;
                let fresh = consistent && self.spill.is_none();
                Some(Effect::document(operation.o, self.sequence, fresh))
            }
            (Op::Delete, Some(Effect::Document { fresh: true, .. })) => {
                forget = true;
                None
            }
            (Op::Delete, Some(known)) => {
                *known = Effect::Gone;
                None
            }
            (Op::Delete, None) => Some(Effect::Gone),
            (_, known) => update(known, operation.o, &mut self.both)?,
        };
        let after = match (forget, new) {
            (true, _) => {
                documents.effects.remove(key.as_slice());
                documents.bytes -= (key.len() + OVERHEAD).min(documents.bytes);
                self.bytes -= (key.len() + OVERHEAD).min(self.bytes);
                0
            }
            (_, Some(new)) => {
                let size = new.size() + key.len() + OVERHEAD;
                documents.effects.insert(key.as_slice().into(), new);
                size
            }
            _ => documents.effects.get(key.as_slice()).map_or(0, Effect::size),
        };
        documents.bytes = (documents.bytes + after).saturating_sub(before);
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.key = key;
        Ok(())
    }

    /// The collection does not exist any more.
    pub(super) fn forget(&mut self, uuid: &Uuid) {
        if let Some(documents) = self.collections.remove(uuid) {
            self.bytes = self.bytes.saturating_sub(documents.bytes);
        }
    }

    /// The collection was emptied by one command.
    pub(super) fn empty(&mut self, uuid: Uuid) {
        let documents = self.collections.entry(uuid).or_default();
        self.bytes = self.bytes.saturating_sub(documents.bytes);
        *documents = Documents { emptied: documents.emptied + 1, ..Documents::default() };
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.bytes > self.budget
    }

    /// Moves everything to local disk.
    pub(super) fn spill(&mut self, catalog: &Catalog) -> Result<(), EngineError> {
        let spill = match &mut self.spill {
            Some(spill) => spill,
            none => none.insert(Spill::create(&self.scratch)?),
        };
        for (uuid, documents) in &mut self.collections {
            // Views, users and roles are few, and wanted before all else.
            if catalog.get(uuid).is_some_and(super::Collection::is_definitions) {
                continue;
            }
            let capped = catalog.get(uuid).is_some_and(super::Collection::is_capped);
            for (key, effect) in documents.effects.drain() {
                spill.append(uuid, documents.emptied, capped, &key, &effect)?;
            }
            documents.effects.shrink_to_fit();
            documents.bytes = 0;
        }
        self.bytes = 0;
        Ok(())
    }

    /// No more log.
    pub(super) fn finish(mut self, catalog: &Catalog) -> Result<Passes, EngineError> {
        if self.spill.is_some() {
            self.spill(catalog)?;
        }
        self.collections.retain(|uuid, _| catalog.contains(uuid));
        let capped = catalog.iter().filter(|(_, c)| c.is_capped()).map(|(uuid, _)| *uuid).collect();
        let is_definitions = |uuid: &Uuid| catalog.get(uuid).is_some_and(super::Collection::is_definitions);
        let definitions = self.collections.extract_if(|uuid, _| is_definitions(uuid)).collect();
        let spilled = self.spill.map(Spill::finish).transpose()?;
        Ok(Passes::new(self.collections, definitions, capped, spilled, self.budget))
    }
}

/// Applies an update to what is known of the document; what is returned is new knowledge. `both` is working memory.
fn update(known: Option<&mut Effect>, o: &[u8], both: &mut Vec<u8>) -> Result<Option<Effect>, EngineError> {
    let o_raw = raw(o)?;
    let replacement = matches!(diff::classify(o_raw).map_err(unappliable)?, Update::Replacement(_));
    let Some(known) = known else {
        // A replacement of a document that the base lacks is followed by its deletion in the log,
        // so that it may count as the document itself.
        return Ok(Some(if replacement {
            Effect::document(o, 0, false)
        } else {
            Effect::Updates { run: o.to_vec(), last: 0 }
        }));
    };
    match known {
        Effect::Gone => {}
        Effect::Document { doc, .. } => {
            let mut new = Vec::with_capacity(doc.len() + 64);
            diff::apply(raw(doc)?, o_raw, &mut new).map_err(unappliable)?;
            *doc = new.into();
        }
        Effect::Updates { .. } if replacement => *known = Effect::document(o, 0, false),
        Effect::Updates { run, last } => add_update(run, last, o, both),
    }
    Ok(None)
}
