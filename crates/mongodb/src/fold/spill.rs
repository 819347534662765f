//! Effects that do not fit in memory, on local disk.
//!
//! They are dealt out to partitions by the hash of collection and key, so that all about one document is in one
//! partition, in order. A restore then knows of each document only where it is, and looks up what it needs; where even
//! that does not fit in memory, it goes over the base several times, each time for as many partitions as fit.

use std::fs::File;
use std::hash::BuildHasher;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hashbrown::{DefaultHashBuilder, HashMap};
use hindsight_engine::{EngineError, FailureKind};

use super::effects::Effect;
use crate::oplog::entry::Uuid;

const PARTITIONS: usize = 128;
/// Fixed part of a record: UUID, times emptied, kind, sequence, length of key, length of value.
const HEAD: usize = 16 + 4 + 1 + 8 + 4 + 4;
/// What is read of a record at first: most are not longer.
const FIRST: usize = 512;
/// Memory that a record takes in a table, about.
const SLOT: u64 = 18;
/// Records in a bucket of a table, about.
const BUCKET: usize = 8;

/// The partition of a document. Collections that keep their order are kept together.
pub(super) fn partition(uuid: &Uuid, capped: bool, key: &[u8]) -> usize {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(uuid);
    if !capped {
        hasher.update(key);
    }
    hasher.finalize() as usize % PARTITIONS
}

/// The partitions, while they are written.
pub(super) struct Spill {
    files: Vec<(BufWriter<File>, u64)>,
}

impl Spill {
    /// Empty partitions in nameless files of the folder `scratch`.
    pub(super) fn create(scratch: &Path) -> Result<Self, EngineError> {
        let file = || {
            tempfile::tempfile_in(scratch).map(|file| (BufWriter::with_capacity(32 << 10, file), 0)).map_err(|e| {
                EngineError::new(
                    FailureKind::Local,
                    format!(
                        "the folded log does not fit in memory, and {} cannot be written to: {e}",
                        scratch.display()
                    ),
                )
                .hint("point TMPDIR at a folder with room")
            })
        };
        Ok(Self { files: (0..PARTITIONS).map(|_| file()).collect::<Result<_, _>>()? })
    }

    pub(super) fn append(
        &mut self,
        uuid: &Uuid,
        emptied: u32,
        capped: bool,
        key: &[u8],
        effect: &Effect,
    ) -> Result<(), EngineError> {
        let (kind, sequence, value): (u8, u64, &[u8]) = match effect {
            Effect::Document { doc, sequence, .. } => (0, *sequence, doc),
            Effect::Gone => (1, 0, &[]),
            Effect::Updates { run, last } => (2, *last as u64, run),
        };
        let Some((file, records)) = self.files.get_mut(partition(uuid, capped, key)) else { return Ok(()) };
        file.write_all(uuid)?;
        file.write_all(&emptied.to_le_bytes())?;
        file.write_all(&[kind])?;
        file.write_all(&sequence.to_le_bytes())?;
        file.write_all(&(key.len() as u32).to_le_bytes())?;
        file.write_all(&(value.len() as u32).to_le_bytes())?;
        file.write_all(key)?;
        file.write_all(value)?;
        *records += 1;
        Ok(())
    }

    /// Nothing more is written.
    pub(super) fn finish(self) -> Result<Spilled, EngineError> {
        let done = |(file, records): (BufWriter<File>, u64)| match file.into_inner() {
            Ok(file) => Ok((file, records)),
            Err(error) => Err(EngineError::from(error.into_error())),
        };
        Ok(Spilled { files: self.files.into_iter().map(done).collect::<Result<_, _>>()? })
    }
}

/// The partitions, with the number of their records, to be read.
pub(super) struct Spilled {
    files: Vec<(File, u64)>,
}

impl Spilled {
    /// Partitions put together so that the table of each group takes about `budget` bytes of memory.
    pub(super) fn groups(&self, budget: usize) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
        let mut filled = 0;
        for (number, (_, records)) in self.files.iter().enumerate() {
            let memory = records * SLOT;
            if filled > 0 && filled + memory > budget as u64 {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += memory;
            if let Some(group) = groups.last_mut() {
                group.push(number);
            }
        }
        groups
    }
}

/// Where a record is: ordered by partition, then by offset; the lowest bit says whether it is a whole document.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At(u64);

impl At {
    fn new(partition: usize, offset: u64, is_document: bool) -> Self {
        Self((partition as u64) << 57 | offset << 1 | u64::from(is_document))
    }

    fn partition(self) -> usize {
        (self.0 >> 57) as usize
    }

    fn offset(self) -> u64 {
        (self.0 & ((1 << 57) - 1)) >> 1
    }

    fn is_document(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Where what is known of each document of some partitions is.
pub(super) struct Table {
    spilled: Arc<Spilled>,
    covered: Vec<bool>,
    hasher: DefaultHashBuilder,
    /// All records by the hash of collection and key; those of one document in their order.
    slots: Vec<(u64, At)>,
    /// Where each bucket of `slots` begins, by the first bits of the hash.
    buckets: Vec<u32>,
    /// Bits that are left of a hash when it is shifted to its bucket.
    shift: u32,
    /// A bit for each slot: the document was handed out.
    done: Vec<AtomicU64>,
    /// What was not handed out when all of the base was merged: order of its insert, and slot.
    inserted: Mutex<Option<HashMap<Uuid, Inserted>>>,
}

type Inserted = Vec<(u64, usize)>;

impl Table {
    /// Of the partitions `group`, in which the records count of which `counts` (by collection, and how often it was
    /// emptied before) says so.
    pub(super) fn build(
        spilled: Arc<Spilled>,
        group: &[usize],
        counts: impl Fn(&Uuid, u32) -> bool,
    ) -> Result<Self, EngineError> {
        let hasher = DefaultHashBuilder::default();
        let records: u64 =
            group.iter().filter_map(|number| spilled.files.get(*number)).map(|(_, records)| records).sum();
        let mut slots = Vec::with_capacity(usize::try_from(records).unwrap_or(0));
        let mut covered = vec![false; PARTITIONS];
        for number in group {
            let Some((file, records)) = spilled.files.get(*number) else { continue };
            covered.iter_mut().skip(*number).take(1).for_each(|covered| *covered = true);
            let mut file = file;
            file.rewind()?;
            let mut reader = BufReader::with_capacity(256 << 10, file);
            let (mut offset, mut key) = (0, Vec::new());
            for _ in 0..*records {
                let mut head = [0; HEAD];
                reader.read_exact(&mut head)?;
                let head = Head::of(&head);
                key.resize(head.key, 0);
                reader.read_exact(&mut key)?;
                reader.seek_relative(head.value as i64)?;
                if counts(&head.uuid, head.emptied) {
                    let hash = hasher.hash_one((&head.uuid, key.as_slice()));
                    slots.push((hash, At::new(*number, offset, head.kind == 0)));
                }
                offset += head.len() as u64;
            }
        }
        slots.sort_unstable();
        let bits = (slots.len() / BUCKET).max(2).ilog2();
        let shift = 64 - bits;
        let bucket_of = |hash: u64| (hash >> shift) as usize;
        let mut buckets = Vec::with_capacity((1 << bits) + 1);
        for (slot, (hash, _)) in slots.iter().enumerate() {
            let begun = bucket_of(*hash) + 1;
            buckets.resize(buckets.len().max(begun), slot as u32);
        }
        buckets.resize((1 << bits) + 1, slots.len() as u32);
        let done = (0..slots.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { spilled, covered, hasher, slots, buckets, shift, done, inserted: Mutex::new(None) })
    }

    /// Whether it knows of the documents of this partition.
    pub(super) fn covers(&self, partition: usize) -> bool {
        self.covered.get(partition).copied().unwrap_or(false)
    }

    /// What the log does to a document, and what to hand it out by.
    pub(super) fn find(
        &self,
        uuid: &Uuid,
        key: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<Option<(usize, Effect)>, EngineError> {
        let hash = self.hasher.hash_one((uuid, key));
        let bucket = (hash >> self.shift) as usize;
        let bound = |bucket: usize| self.buckets.get(bucket).map_or(self.slots.len(), |slot| *slot as usize);
        let mut found: Option<(usize, Effect)> = None;
        for slot in bound(bucket)..bound(bucket + 1) {
            let Some((_, at)) = self.slots.get(slot).filter(|(other, _)| *other == hash) else { continue };
            let record = self.read(*at, buffer)?;
            if record.uuid != *uuid || record.key != key {
                continue;
            }
            let effect = record.effect();
            found = Some(match found {
                None => (slot, effect),
                Some((first, before)) => (first, before.then(effect)?),
            });
        }
        Ok(found)
    }

    /// Notes that the document of a slot was handed out; says whether it was before.
    pub(super) fn hand_out(&self, slot: usize) -> bool {
        let bit = 1 << (slot % 64);
        self.done.get(slot / 64).is_some_and(|bits| bits.fetch_or(bit, Ordering::Relaxed) & bit != 0)
    }

    /// The documents of a collection that the log made and that were not handed out: order of their inserts, and slots.
    /// To be asked once.
    pub(super) fn inserted(&self, uuid: &Uuid) -> Result<Inserted, EngineError> {
        let mut all =
            self.inserted.lock().map_err(|_| EngineError::new(FailureKind::Local, "a worker of the fold ended"))?;
        if all.is_none() {
            *all = Some(self.find_inserted()?);
        }
        Ok(all.as_mut().and_then(|all| all.remove(uuid)).unwrap_or_default())
    }

    fn find_inserted(&self) -> Result<HashMap<Uuid, Inserted>, EngineError> {
        let mut inserted: HashMap<Uuid, Inserted> = HashMap::new();
        let (mut buffer, mut again) = (Vec::new(), Vec::new());
        let mut first = 0;
        for same in self.slots.chunk_by(|(one, _), (other, _)| one == other) {
            // Mostly one record; with more of them, or even of several documents, the first of each is what counts.
            for (number, (_, at)) in same.iter().enumerate().filter(|_| same.iter().any(|(_, at)| at.is_document())) {
                let slot = first + number;
                let done = self.done.get(slot / 64).map_or(0, |bits| bits.load(Ordering::Relaxed));
                if done & 1 << (slot % 64) != 0 {
                    continue;
                }
                let record = self.read(*at, &mut buffer)?;
                let (uuid, found) = (record.uuid, self.find(&record.uuid, record.key, &mut again)?);
                if let Some((found, Effect::Document { sequence, .. })) = found
                    && found == slot
                {
                    inserted.entry(uuid).or_default().push((sequence, slot));
                }
            }
            first += same.len();
        }
        Ok(inserted)
    }

    /// The document that the log made of what is known from this slot on.
    pub(super) fn document(&self, slot: usize, buffer: &mut Vec<u8>) -> Result<Box<[u8]>, EngineError> {
        let (hash, at) = self.slots.get(slot).ok_or_else(lost)?;
        let record = self.read(*at, buffer)?;
        let alone = self.slots.get(slot + 1).is_none_or(|(next, _)| next != hash);
        let effect = match alone {
            true => Some(record.effect()),
            false => self.find(&record.uuid, record.key, &mut Vec::new())?.map(|(_, effect)| effect),
        };
        match effect {
            Some(Effect::Document { doc, .. }) => Ok(doc),
            _ => Err(lost()),
        }
    }

    fn read<'b>(&self, at: At, buffer: &'b mut Vec<u8>) -> Result<Record<'b>, EngineError> {
        let (file, _) = self.spilled.files.get(at.partition()).ok_or_else(lost)?;
        buffer.resize(buffer.len().max(FIRST), 0);
        let mut there = 0;
        while there < HEAD {
            match file.read_at(buffer.get_mut(there..FIRST).unwrap_or_default(), at.offset() + there as u64)? {
                0 => return Err(lost()),
                read => there += read,
            }
        }
        let head = Head::of(buffer.first_chunk().ok_or_else(lost)?);
        if head.len() > there {
            buffer.resize(buffer.len().max(head.len()), 0);
            let missing = buffer.get_mut(there..head.len()).ok_or_else(lost)?;
            file.read_exact_at(missing, at.offset() + there as u64)?;
        }
        let parts = buffer.get(HEAD..head.len()).and_then(|rest| rest.split_at_checked(head.key));
        let (key, value) = parts.ok_or_else(lost)?;
        Ok(Record { uuid: head.uuid, kind: head.kind, sequence: head.sequence, key, value })
    }
}

fn lost() -> EngineError {
    EngineError::new(FailureKind::Local, "what was spilled of the log cannot be read again")
}

/// A record as it is stored.
struct Record<'a> {
    uuid: Uuid,
    kind: u8,
    sequence: u64,
    key: &'a [u8],
    value: &'a [u8],
}

impl Record<'_> {
    fn effect(&self) -> Effect {
        let (sequence, value) = (self.sequence, self.value);
        match self.kind {
            0 => Effect::Document { doc: value.into(), sequence, fresh: false, done: AtomicBool::new(false) },
            1 => Effect::Gone,
            _ => Effect::Updates { run: value.to_vec(), last: sequence as usize },
        }
    }
}

/// The fixed part of a record.
struct Head {
    uuid: Uuid,
    emptied: u32,
    kind: u8,
    sequence: u64,
    key: usize,
    value: usize,
}

impl Head {
    fn of(head: &[u8; HEAD]) -> Self {
        let mut at = 0;
        let mut take = |len: usize| {
            at += len;
            head.get(at - len..at).unwrap_or_default()
        };
        let uuid = take(16).try_into().unwrap_or_default();
        let emptied = u32::from_le_bytes(take(4).try_into().unwrap_or_default());
        let kind = take(1).first().copied().unwrap_or_default();
        let sequence = u64::from_le_bytes(take(8).try_into().unwrap_or_default());
        let key = u32::from_le_bytes(take(4).try_into().unwrap_or_default()) as usize;
        let value = u32::from_le_bytes(take(4).try_into().unwrap_or_default()) as usize;
        Self { uuid, emptied, kind, sequence, key, value }
    }

    fn len(&self) -> usize {
        HEAD + self.key + self.value
    }
}
