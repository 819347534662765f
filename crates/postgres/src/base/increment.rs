//! Files of an incremental backup that hold only the blocks of a relation that have changed since another backup.
//!
//! Such a file stands in the place of `base/5/16384` as `base/5/INCREMENTAL.16384`, and holds numbers of the server's own byte
//! order: a magic one, how many blocks follow, and the *length* (`truncation_block_length`); then the numbers of the blocks
//! within the file, and, where there are any, zeros up to a whole block and the blocks themselves. Blocks below the length that
//! it does not hold are as they were in the backup before; those from the length on that it does not hold are zeros, up to the
//! last that it holds.

use thiserror::Error;

use super::page::{PageSizes, relation_segment};

/// What the name of such a file begins with.
const PREFIX: &[u8] = b"INCREMENTAL.";
/// What its content begins with (`INCREMENTAL_MAGIC`).
const MAGIC: u32 = 0xD3AE_1F0D;
/// The three numbers at its beginning.
const FIXED: usize = 12;

/// A file that does not hold what servers send.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
#[non_exhaustive]
pub enum IncrementError {
    /// It begins with something else.
    #[error("it is no file of an incremental backup")]
    Magic,
    /// It speaks of more blocks than a file of a relation has.
    #[error("it speaks of {0} blocks, more than a file of a relation has")]
    Blocks(u32),
    /// Its blocks do not come in their order.
    #[error("its blocks are not in their order")]
    Order,
    /// It is shorter or longer than it says.
    #[error("it has {found} bytes, and says that it has {expected}")]
    Size {
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
}

/// Which blocks a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Below this, blocks that it does not hold are as they were before.
    pub length: u32,
    /// The blocks that it holds, in ascending order.
    pub blocks: Vec<u32>,
}

impl Changed {
    /// Blocks that the file has once it is restored.
    pub fn whole(&self) -> u32 {
        self.blocks.last().map_or(self.length, |last| self.length.max(last.saturating_add(1)))
    }

    /// Bytes of the file itself.
    fn size(&self, block: usize) -> u64 {
        self.header(block) as u64 + self.blocks.len() as u64 * block as u64
    }

    /// Bytes before the blocks.
    fn header(&self, block: usize) -> usize {
        let plain = FIXED + 4 * self.blocks.len();
        if self.blocks.is_empty() { plain } else { plain.next_multiple_of(block) }
    }
}

/// A piece of such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Which blocks it holds: comes once, before any other.
    Header(&'a Changed),
    /// Bytes of one of them.
    Data {
        /// Its number within the file.
        block: u32,
        /// Where in it these begin.
        offset: usize,
        /// They.
        bytes: &'a [u8],
    },
}

/// Reads such a file in pieces of any size.
#[derive(Clone, Debug)]
pub struct IncrementReader {
    sizes: PageSizes,
    /// Bytes that were read.
    at: u64,
    /// The numbers, until all of them are there.
    header: Vec<u8>,
    /// None while they are not.
    changed: Option<Changed>,
}

impl IncrementReader {
    /// Of nothing yet.
    pub fn new(sizes: PageSizes) -> Self {
        Self { sizes, at: 0, header: Vec::new(), changed: None }
    }

    /// How the relation is kept.
    pub fn sizes(&self) -> PageSizes {
        self.sizes
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// No server sends such a file.
    pub fn feed(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(Change<'_>)) -> Result<(), IncrementError> {
        while self.changed.is_none() && !bytes.is_empty() {
            let wanted = self.numbers()?.saturating_sub(self.header.len());
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.header.extend_from_slice(now);
            self.at += now.len() as u64;
            bytes = later;
            if self.header.len() >= FIXED && self.header.len() == self.numbers()? {
                let changed = self.read()?;
                each(Change::Header(&changed));
                self.changed = Some(changed);
                self.header = Vec::new();
            }
        }
        let Some(changed) = &self.changed else { return Ok(()) };
        let block = self.sizes.block();
        let begins = changed.header(block) as u64;
        while !bytes.is_empty() {
            if self.at < begins {
                // What fills the last block of numbers is of no meaning.
                let rest = usize::try_from(begins - self.at).unwrap_or(usize::MAX).min(bytes.len());
                self.at += rest as u64;
                bytes = bytes.get(rest..).unwrap_or_default();
                continue;
            }
            let within = self.at - begins;
            let index = usize::try_from(within / block as u64).unwrap_or(usize::MAX);
            let offset = usize::try_from(within % block as u64).unwrap_or_default();
            let (now, later) = bytes.split_at((block - offset).min(bytes.len()));
            let Some(number) = changed.blocks.get(index) else {
                let found = self.at + bytes.len() as u64;
                return Err(IncrementError::Size { expected: changed.size(block), found });
            };
            each(Change::Data { block: *number, offset, bytes: now });
            self.at += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// There is no more of it. Gives what it holds.
    ///
    /// # Errors
    /// There should be more.
    pub fn finish(self) -> Result<Changed, IncrementError> {
        match self.changed {
            Some(changed) => {
                let expected = changed.size(self.sizes.block());
                if self.at == expected { Ok(changed) } else { Err(IncrementError::Size { expected, found: self.at }) }
            }
            None if self.header.len() < FIXED => Err(IncrementError::Magic),
            None => {
                let numbers = self.numbers()? as u64;
                Err(IncrementError::Size { expected: numbers, found: self.at })
            }
        }
    }

    /// Bytes of all numbers, as far as that is known.
    fn numbers(&self) -> Result<usize, IncrementError> {
        if self.header.len() < FIXED {
            return Ok(FIXED);
        }
        let [magic, count, length] = [0, 4, 8].map(|at| self.number(at));
        if magic != MAGIC {
            return Err(IncrementError::Magic);
        }
        let most = self.sizes.segment();
        match [count, length].into_iter().find(|blocks| *blocks > most) {
            Some(blocks) => Err(IncrementError::Blocks(blocks)),
            None => Ok(FIXED + 4 * count as usize),
        }
    }

    fn number(&self, at: usize) -> u32 {
        let bytes = self.header.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn read(&self) -> Result<Changed, IncrementError> {
        let blocks: Vec<u32> = (FIXED..self.header.len()).step_by(4).map(|at| self.number(at)).collect();
        if !blocks.is_sorted_by(|a, b| a < b) {
            return Err(IncrementError::Order);
        }
        match blocks.last().filter(|last| **last >= self.sizes.segment()) {
            Some(last) => Err(IncrementError::Blocks(*last)),
            None => Ok(Changed { length: self.number(8), blocks }),
        }
    }
}

/// The file that this one holds changes of, by their paths in the data directory; none if it is an ordinary one.
pub fn changes_of(path: &[u8]) -> Option<Vec<u8>> {
    let folder = path.iter().rposition(|byte| *byte == b'/')? + 1;
    let (folder, name) = path.split_at(folder);
    let target = [folder, name.strip_prefix(PREFIX)?].concat();
    // Others may be called so; servers send whole whatever is no relation.
    relation_segment(&target).map(|_| target)
}

/// The file with changes of this one.
pub fn with_changes_of(path: &[u8]) -> Vec<u8> {
    let folder = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (folder, name) = path.split_at(folder);
    [folder, PREFIX, name].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const BLOCK: usize = 8192;

    /// A file as servers write it, with blocks of these bytes.
    pub(crate) fn increment(length: u32, blocks: &[(u32, u8)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [MAGIC, blocks.len() as u32, length].into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend(blocks.iter().flat_map(|(number, _)| number.to_le_bytes()));
        if !blocks.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        blocks.iter().for_each(|(_, byte)| bytes.extend([*byte; BLOCK]));
        bytes
    }

    type Read = (Changed, Vec<(u32, u8, usize)>);

    /// Everything in it: what it holds, and its blocks with their bytes, and how many there are.
    fn read(bytes: &[u8], piece: usize) -> Result<Read, IncrementError> {
        let (mut reader, mut header, mut found) = (IncrementReader::new(PageSizes::default()), None, Vec::new());
        for piece in bytes.chunks(piece) {
            reader.feed(piece, &mut |change| match change {
                Change::Header(changed) => assert!(header.replace(changed.clone()).is_none()),
                Change::Data { block, offset, bytes } => match found.last_mut() {
                    Some((last, byte, count)) if *last == block => {
                        assert_eq!(*count, offset);
                        assert!(bytes.iter().all(|other| other == byte));
                        *count += bytes.len();
                    }
                    _ => found.push((block, bytes[0], bytes.len())),
                },
            })?;
        }
        let changed = reader.finish()?;
        assert_eq!(header, Some(changed.clone()));
        Ok((changed, found))
    }

    #[test]
    fn what_servers_write_is_read_in_any_pieces() {
        for piece in [1, 11, 4096, 8192, 100_000, usize::MAX] {
            let bytes = increment(7, &[(0, 1), (3, 2), (9, 3)]);
            let (changed, blocks) = read(&bytes, piece).unwrap();
            assert_eq!((changed.length, changed.whole(), changed.blocks), (7, 10, vec![0, 3, 9]));
            assert_eq!(blocks, [(0, 1, BLOCK), (3, 2, BLOCK), (9, 3, BLOCK)]);
            // Nothing has changed: no block follows, nor what would fill one.
            let (changed, blocks) = read(&increment(5, &[]), piece).unwrap();
            assert_eq!((changed.whole(), blocks.len(), increment(5, &[]).len()), (5, 0, 12));
            assert_eq!(read(&increment(0, &[]), piece).unwrap().0.whole(), 0);
        }
        // More numbers than one block takes.
        let many: Vec<_> = (0..3000).map(|number| (number * 2, number as u8)).collect();
        let (changed, blocks) = read(&increment(1, &many), 10_000).unwrap();
        assert_eq!((changed.whole(), blocks.len()), (5999, 3000));
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        let whole = increment(7, &[(0, 1), (3, 2)]);
        let cut = |bytes: &[u8]| read(bytes, 1000).unwrap_err();
        assert_eq!(cut(b""), IncrementError::Magic);
        assert_eq!(cut(&whole[..11]), IncrementError::Magic);
        assert_eq!(cut(&whole[..15]), IncrementError::Size { expected: 20, found: 15 });
        let (size, short) = (whole.len() as u64, &whole[..whole.len() - 1]);
        assert_eq!(cut(short), IncrementError::Size { expected: size, found: size - 1 });
        assert_eq!(cut(&[&whole[..], b"x"].concat()), IncrementError::Size { expected: size, found: size + 1 });
        assert_eq!(cut(&[&increment(7, &[])[..], b"x"].concat()), IncrementError::Size { expected: 12, found: 13 });
        assert_eq!(cut(&[0; 9000]), IncrementError::Magic);
        assert_eq!(cut(&increment(131_073, &[])), IncrementError::Blocks(131_073));
        assert_eq!(cut(&increment(1, &[(131_072, 1)])), IncrementError::Blocks(131_072));
        for blocks in [[(3, 1), (3, 1)], [(4, 1), (3, 1)]] {
            assert_eq!(cut(&increment(1, &blocks)), IncrementError::Order);
        }
        let mut many = increment(7, &[]);
        many[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(cut(&many), IncrementError::Blocks(u32::MAX));
    }

    #[test]
    fn only_relations_have_files_of_changes() {
        for path in ["base/5/16384", "global/1262", "base/5/16384_vm.2", "pg_tblspc/7/PG_17_202406281/5/16390.1"] {
            let changes = with_changes_of(path.as_bytes());
            assert_eq!(changes_of(&changes), Some(path.as_bytes().to_vec()), "{path}");
            assert_eq!(changes_of(path.as_bytes()), None);
        }
        assert_eq!(with_changes_of(b"base/5/16384"), b"base/5/INCREMENTAL.16384");
        for path in ["INCREMENTAL.16384", "base/5/INCREMENTAL.notes", "log/INCREMENTAL.1", "base/INCREMENTAL.5/1"] {
            assert_eq!(changes_of(path.as_bytes()), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn nothing_brings_it_down(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>(), piece in 1..50_usize) {
            let head = if magic { MAGIC.to_le_bytes().to_vec() } else { Vec::new() };
            let bytes = [head, bytes].concat();
            let mut reader = IncrementReader::new(PageSizes::default());
            for piece in bytes.chunks(piece) {
                if reader.feed(piece, &mut |_| {}).is_err() {
                    return Ok(());
                }
            }
            let _ = reader.finish();
        }
    }
}
