//! The finished fold, as a restore goes over the base with it.

use std::collections::HashSet;
use std::sync::Arc;

use hashbrown::HashMap;
use hindsight_engine::EngineError;

use super::effects::{Documents, Effect, Fate, key_of};
use super::spill::{Spilled, Table, partition};
use crate::oplog::entry::Uuid;

/// One pass over the base when what is known of all documents fits in memory, or at least where on disk it is; else
/// several, each for a part of the documents.
pub(crate) struct Passes {
    collections: HashMap<Uuid, Documents>,
    definitions: HashMap<Uuid, Documents>,
    capped: Arc<HashSet<Uuid>>,
    spilled: Option<(Arc<Spilled>, Vec<Vec<usize>>)>,
}

impl Passes {
    pub(super) fn new(
        collections: HashMap<Uuid, Documents>,
        definitions: HashMap<Uuid, Documents>,
        capped: HashSet<Uuid>,
        spilled: Option<Spilled>,
        budget: usize,
    ) -> Self {
        let spilled = spilled.map(|spilled| {
            let groups = spilled.groups(budget);
            (Arc::new(spilled), groups)
        });
        Self { collections, definitions, capped: Arc::new(capped), spilled }
    }

    /// The pass over views, users and roles, which no other pass looks after.
    pub(crate) fn definitions(&mut self) -> Pass {
        Pass { collections: std::mem::take(&mut self.definitions), capped: Arc::default(), table: None }
    }

    /// How many passes there are over all else; at least one.
    pub(crate) fn count(&self) -> usize {
        self.spilled.as_ref().map_or(1, |(_, groups)| groups.len())
    }

    /// Takes what pass `number` needs into memory.
    pub(crate) fn load(&mut self, number: usize) -> Result<Pass, EngineError> {
        let capped = self.capped.clone();
        let Some((spilled, groups)) = &self.spilled else {
            return Ok(Pass { collections: std::mem::take(&mut self.collections), capped, table: None });
        };
        // All effects but those on definitions are on disk.
        let emptied = |documents: &Documents| Documents { emptied: documents.emptied, ..Documents::default() };
        let collections: HashMap<_, _> = self.collections.iter().map(|(uuid, d)| (*uuid, emptied(d))).collect();
        let group = groups.get(number).map(Vec::as_slice).unwrap_or_default();
        let counts = |uuid: &Uuid, emptied| collections.get(uuid).is_some_and(|documents| documents.emptied == emptied);
        let table = Some(Table::build(spilled.clone(), group, counts)?);
        Ok(Pass { collections, capped, table })
    }
}

/// The effects on the documents that one pass over the base looks after.
pub(crate) struct Pass {
    collections: HashMap<Uuid, Documents>,
    capped: Arc<HashSet<Uuid>>,
    /// Where what did not fit in memory is, for the part of the documents that it looks after; none for all.
    table: Option<Table>,
}

/// Working memory of [`Pass::merge`].
#[derive(Default)]
pub(crate) struct Buffers {
    key: Vec<u8>,
    record: Vec<u8>,
}

impl Pass {
    /// Whether all documents of the collection stay as they are in the base.
    pub(crate) fn leaves_alone(&self, uuid: &Uuid) -> bool {
        self.is_untouched(self.collections.get(uuid))
    }

    fn is_untouched(&self, documents: Option<&Documents>) -> bool {
        self.table.is_none() && documents.is_none_or(|d| d.effects.is_empty() && d.emptied == 0)
    }

    /// Decides about a document of the base, and appends what it is at the restore point to `out`.
    pub(crate) fn merge(
        &self,
        uuid: &Uuid,
        doc: &[u8],
        buffers: &mut Buffers,
        out: &mut Vec<u8>,
    ) -> Result<Fate, EngineError> {
        let documents = self.collections.get(uuid);
        if self.is_untouched(documents) {
            out.extend_from_slice(doc);
            return Ok(Fate::Kept);
        }
        let Buffers { key, record } = buffers;
        key_of(doc, key)?;
        let capped = self.capped.contains(uuid);
        if self.table.as_ref().is_some_and(|table| !table.covers(partition(uuid, capped, key))) {
            return Ok(Fate::Elsewhere);
        }
        if documents.is_some_and(|documents| documents.emptied > 0) {
            return Ok(Fate::Dropped);
        }
        if let Some(effect) = documents.and_then(|documents| documents.effects.get(key.as_slice())) {
            return effect.befall(doc, capped, || effect.hand_out(), out);
        }
        if let Some(table) = &self.table
            && let Some((slot, effect)) = table.find(uuid, key, record)?
        {
            return effect.befall(doc, capped, || table.hand_out(slot), out);
        }
        out.extend_from_slice(doc);
        Ok(Fate::Kept)
    }

    /// The collections in which [`Pass::rest`] may have something.
    pub(crate) fn touched(&self) -> impl Iterator<Item = &Uuid> {
        self.collections.keys()
    }

    /// Documents that the base did not have, in the order of their inserts. To be asked once, when the whole base was
    /// merged.
    pub(crate) fn rest(&self, uuid: &Uuid) -> Result<Rest<'_>, EngineError> {
        let effects = self.collections.get(uuid).into_iter().flat_map(|documents| documents.effects.values());
        let in_memory = effects.filter(|effect| !effect.hand_out()).filter_map(|effect| match effect {
            Effect::Document { doc, sequence, .. } => Some((*sequence, Place::Memory(doc))),
            _ => None,
        });
        let mut places: Vec<_> = in_memory.collect();
        if let Some(table) = &self.table {
            let on_disk = table.inserted(uuid)?;
            places.extend(on_disk.into_iter().map(|(sequence, slot)| (sequence, Place::Disk(table, slot))));
        }
        places.sort_unstable_by_key(|(sequence, _)| *sequence);
        Ok(Rest { places: places.into_iter(), record: Vec::new() })
    }
}

enum Place<'a> {
    Memory(&'a [u8]),
    Disk(&'a Table, usize),
}

/// Documents that are only in the log.
pub(crate) struct Rest<'a> {
    places: std::vec::IntoIter<(u64, Place<'a>)>,
    record: Vec<u8>,
}

impl Rest<'_> {
    /// The next of them, up to about `bytes`; nothing at the end.
    pub(crate) fn next(&mut self, bytes: usize) -> Result<Vec<u8>, EngineError> {
        let mut out = Vec::new();
        while out.len() < bytes {
            match self.places.next() {
                None => break,
                Some((_, Place::Memory(doc))) => out.extend_from_slice(doc),
                Some((_, Place::Disk(table, slot))) => out.extend_from_slice(&table.document(slot, &mut self.record)?),
            }
        }
        Ok(out)
    }
}
