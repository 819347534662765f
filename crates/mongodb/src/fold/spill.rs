//! Effects that do not fit in memory, on local disk.
//!
//! They are dealt out to partitions by the hash of collection and key, so that all about one
//! document is in one partition, in order. A restore then goes over the base several times, each
//! time for as many partitions as fit in memory: reading is cheap beside inserting.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use hindsight_engine::EngineError;

use super::effects::Effect;
use crate::oplog::entry::Uuid;

const PARTITIONS: usize = 128;
/// Fixed part of a record: UUID, times emptied, kind, sequence, length of key, length of value.
const HEAD: usize = 16 + 4 + 1 + 8 + 4 + 4;

/// The partition of a document. Collections that keep their order are kept together.
pub(super) fn partition(uuid: &Uuid, capped: bool, key: &[u8]) -> usize {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(uuid);
    if !capped {
        hasher.update(key);
    }
    hasher.finalize() as usize % PARTITIONS
}

struct Partition {
    file: BufWriter<File>,
    /// What is in the file.
    bytes: u64,
    /// What it takes in memory, at most about.
    memory: u64,
}

/// The partitions.
pub(super) struct Spill {
    files: Vec<Partition>,
}

/// One record of a partition.
pub(super) struct Record<'a> {
    pub(super) uuid: Uuid,
    pub(super) emptied: u32,
    pub(super) key: &'a [u8],
    pub(super) effect: Effect,
}

impl Spill {
    /// Empty partitions in nameless files of the folder `scratch`.
    pub(super) fn create(scratch: &Path) -> Result<Self, EngineError> {
        let file = || {
            tempfile::tempfile_in(scratch)
                .map(|file| Partition { file: BufWriter::with_capacity(32 << 10, file), bytes: 0, memory: 0 })
                .map_err(|e| {
                    EngineError::new(
                        hindsight_engine::FailureKind::Local,
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
        let Some(Partition { file, bytes, memory }) = self.files.get_mut(partition(uuid, capped, key)) else {
            return Ok(());
        };
        file.write_all(uuid)?;
        file.write_all(&emptied.to_le_bytes())?;
        file.write_all(&[kind])?;
        file.write_all(&sequence.to_le_bytes())?;
        file.write_all(&(key.len() as u32).to_le_bytes())?;
        file.write_all(&(value.len() as u32).to_le_bytes())?;
        file.write_all(key)?;
        file.write_all(value)?;
        *bytes += (HEAD + key.len() + value.len()) as u64;
        *memory += (super::effects::OVERHEAD + key.len() + value.len()) as u64;
        Ok(())
    }

    /// Partitions put together so that each group takes about `budget` bytes of memory.
    pub(super) fn groups(&mut self, budget: usize) -> Result<Vec<Vec<usize>>, EngineError> {
        let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
        let mut filled = 0;
        for (number, Partition { file, memory, .. }) in self.files.iter_mut().enumerate() {
            file.flush()?;
            if filled > 0 && filled + *memory > budget as u64 {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += *memory;
            if let Some(group) = groups.last_mut() {
                group.push(number);
            }
        }
        Ok(groups)
    }

    /// Hands on the records of a partition in the order in which they were appended.
    pub(super) fn read(
        &mut self,
        number: usize,
        mut each: impl FnMut(Record<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let Some(Partition { file, bytes, .. }) = self.files.get_mut(number) else { return Ok(()) };
        file.flush()?;
        let mut left = *bytes;
        let file = file.get_mut();
        file.rewind()?;
        let mut reader = BufReader::with_capacity(256 << 10, file);
        let mut record = Vec::new();
        while left > 0 {
            let mut head = [0; HEAD];
            reader.read_exact(&mut head)?;
            let (uuid, emptied, kind, sequence, key_len, value_len) = split_head(&head);
            record.resize(key_len + value_len, 0);
            reader.read_exact(&mut record)?;
            left -= (HEAD + key_len + value_len) as u64;
            let (key, value) = record.split_at(key_len);
            let effect = match kind {
                0 => Effect::Document { doc: value.into(), sequence, fresh: false, done: AtomicBool::new(false) },
                1 => Effect::Gone,
                _ => Effect::Updates { run: value.to_vec(), last: sequence as usize },
            };
            each(Record { uuid, emptied, key, effect })?;
        }
        Ok(())
    }
}

fn split_head(head: &[u8; HEAD]) -> (Uuid, u32, u8, u64, usize, usize) {
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
    (uuid, emptied, kind, sequence, key, value)
}
