//! From files of which a base holds only what changed, and those of the bases that it builds upon, to whole files.
//!
//! The newest base comes first: it says how long a file is, and brings the blocks that it holds. Which others are wanted is
//! remembered, and the bases before it bring them, each what it has, until one has the whole file. So every block is written
//! once, where it belongs, and nothing lies on the disk twice.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use hindsight_engine::{EngineError, Result};

use crate::base::{
    BackupManifest, Change, Changed, IncrementError, IncrementReader, PageSizes, changes_of, with_changes_of,
};

/// Bytes that are written at once. The kernel keeps in one piece what it gets in one, such as 2 MiB, and goes through all of that
/// for each page that a server then writes (`ext4_block_write_begin` with large folios, Linux 6.16).
pub(super) const WRITTEN_AT_ONCE: usize = 32 << 10;

/// What is in `backup_label` for the eyes of who combines backups; a server refuses to start with it.
const BUILDS_UPON: &[u8] = b"INCREMENTAL FROM ";

/// Blocks of a file that are still wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted(Vec<u64>);

impl Wanted {
    /// All below `length` but those that are there.
    fn but(changed: &Changed) -> Self {
        let length = changed.length as usize;
        let mut wanted = Self(vec![u64::MAX; length / 64]);
        if !length.is_multiple_of(64) {
            wanted.0.push((1 << (length % 64)) - 1);
        }
        changed.blocks.iter().for_each(|block| wanted.remove(*block));
        wanted
    }

    fn remove(&mut self, block: u32) {
        if let Some(word) = self.0.get_mut(block as usize / 64) {
            *word &= !(1 << (block % 64));
        }
    }

    /// Those from `length` on are not wanted: they are zeros.
    fn cut(&mut self, length: u32) {
        self.0.truncate((length as usize).div_ceil(64));
        if let Some(word) = self.0.get_mut(length as usize / 64) {
            *word &= (1 << (length % 64)) - 1;
        }
    }

    fn has(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|at| self.0.get(at));
        word.is_some_and(|word| word & (1 << (block % 64)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

/// The files of which something is wanted, by their paths in the data directory.
#[derive(Debug)]
pub(super) struct Combining {
    pub(super) sizes: PageSizes,
    /// Of the base that is being read now.
    now: Mutex<HashMap<Vec<u8>, Wanted>>,
    /// Of the one that it builds upon.
    next: Mutex<HashMap<Vec<u8>, Wanted>>,
}

impl Combining {
    pub(super) fn new(sizes: PageSizes) -> Self {
        Self { sizes, now: Mutex::default(), next: Mutex::default() }
    }

    /// What is wanted of a file that the present base has.
    pub(super) fn take(&self, path: &[u8]) -> Option<Wanted> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).remove(path)
    }

    /// What is wanted of a file from the base before.
    pub(super) fn want(&self, path: Vec<u8>, wanted: Wanted) {
        if !wanted.is_empty() {
            self.next.lock().unwrap_or_else(PoisonError::into_inner).insert(path, wanted);
        }
    }

    /// Goes on to the base before; tells a file that the present one should have had.
    pub(super) fn go_on(&self) -> Option<Vec<u8>> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let left = now.keys().min().cloned();
        *now = std::mem::take(&mut *self.next.lock().unwrap_or_else(PoisonError::into_inner));
        left
    }
}

/// What keeps a file from being put together.
#[derive(Debug)]
pub(super) enum Fault {
    Stored(IncrementError),
    Disk(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<IncrementError> for Fault {
    fn from(error: IncrementError) -> Self {
        Self::Stored(error)
    }
}

/// A file that is being put together.
#[derive(Debug)]
pub(super) struct Filling {
    /// Its path in the data directory.
    pub(super) path: Vec<u8>,
    file: File,
    block: u64,
    /// None while the newest base brings it, all of whose blocks are wanted.
    wanted: Option<Wanted>,
    from: Origin,
}

/// What it is filled from.
#[derive(Debug)]
enum Origin {
    Changes(IncrementReader),
    /// All of it; so much of that has come.
    Whole(u64),
}

impl Filling {
    /// From what the newest base holds of it.
    pub(super) fn newest(path: Vec<u8>, file: File, sizes: PageSizes) -> Self {
        let from = Origin::Changes(IncrementReader::new(sizes));
        Self { path, file, block: sizes.block() as u64, wanted: None, from }
    }

    /// From what an older one holds of it: all of it, or only what changed.
    pub(super) fn older(path: Vec<u8>, file: File, sizes: PageSizes, wanted: Wanted, whole: bool) -> Self {
        let from = if whole { Origin::Whole(0) } else { Origin::Changes(IncrementReader::new(sizes)) };
        Self { path, file, block: sizes.block() as u64, wanted: Some(wanted), from }
    }

    pub(super) fn feed(&mut self, data: &[u8]) -> std::result::Result<(), Fault> {
        let Self { file, block, wanted, from, .. } = self;
        let is_wanted = |number: u64| wanted.as_ref().is_none_or(|wanted| wanted.has(number));
        match from {
            Origin::Whole(at) => {
                let mut rest = data;
                while !rest.is_empty() {
                    // As far as all is wanted, or nothing is.
                    let begin = *at;
                    let first = is_wanted(begin / *block);
                    let mut len = 0;
                    while len < rest.len() && is_wanted((begin + len as u64) / *block) == first {
                        let left = *block - (begin + len as u64) % *block;
                        len += usize::try_from(left).unwrap_or(usize::MAX).min(rest.len() - len);
                    }
                    let (now, later) = rest.split_at(len);
                    if first {
                        let starts = (begin..).step_by(WRITTEN_AT_ONCE);
                        let mut pieces = now.chunks(WRITTEN_AT_ONCE).zip(starts);
                        pieces.try_for_each(|(piece, start)| file.write_all_at(piece, start))?;
                    }
                    *at += len as u64;
                    rest = later;
                }
                Ok(())
            }
            Origin::Changes(reader) => {
                let newest = wanted.is_none();
                let mut failed = Ok(());
                reader.feed(data, &mut |change| {
                    if failed.is_err() {
                        return;
                    }
                    failed = match change {
                        Change::Header(changed) if newest => file.set_len(u64::from(changed.whole()) * *block),
                        Change::Data { block: number, offset, bytes } if is_wanted(number.into()) => {
                            file.write_all_at(bytes, u64::from(number) * *block + offset as u64)
                        }
                        _ => Ok(()),
                    };
                })?;
                Ok(failed?)
            }
        }
    }

    /// All of it has come; gives what is still wanted from the base before.
    pub(super) fn finish(self) -> std::result::Result<(Vec<u8>, Wanted), Fault> {
        let wanted = match (self.from, self.wanted) {
            // What a whole file does not have is zeros.
            (Origin::Whole(_), _) => Wanted::default(),
            (Origin::Changes(reader), None) => Wanted::but(&reader.finish()?),
            (Origin::Changes(reader), Some(mut wanted)) => {
                let changed = reader.finish()?;
                wanted.cut(changed.length);
                changed.blocks.iter().for_each(|block| wanted.remove(*block));
                wanted
            }
        };
        Ok((self.path, wanted))
    }
}

/// `backup_label` as a server takes it.
pub(super) fn plain_label(label: &[u8]) -> Vec<u8> {
    let lines = label.split_inclusive(|byte| *byte == b'\n');
    lines.filter(|line| !line.starts_with(BUILDS_UPON)).flatten().copied().collect()
}

/// Makes sure that the bases of a chain, the newest first, have all files together. The last one holds everything itself.
///
/// # Errors
/// One lacks a file.
pub(super) fn require_whole(chain: &[(&str, &BackupManifest)]) -> Result<()> {
    let last = chain.len().saturating_sub(1);
    let mut lacking: Option<Vec<Vec<u8>>> = None;
    for (depth, (id, manifest)) in chain.iter().enumerate() {
        let changed = |path: &[u8]| manifest.expect(&with_changes_of(path)).is_some() && depth < last;
        let next = match lacking {
            None if depth < last => manifest.files().filter_map(|(path, _)| changes_of(path)).collect(),
            None => Vec::new(),
            Some(lacking) => {
                if let Some(path) = lacking.iter().find(|path| manifest.expect(path).is_none() && !changed(path)) {
                    return Err(lacks(id, path));
                }
                lacking.into_iter().filter(|path| manifest.expect(path).is_none()).collect()
            }
        };
        lacking = Some(next);
    }
    Ok(())
}

/// A base lacks a file of which another, that builds upon it, holds only what changed.
pub(super) fn lacks(id: &str, path: &[u8]) -> EngineError {
    let path = String::from_utf8_lossy(path);
    EngineError::damaged(format!(
        "snapshot {id} lacks {path}, of which one that builds upon it holds only what changed"
    ))
    .hint("restore from another snapshot, see `list`")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::base::increment_tests::{BLOCK, increment};

    fn fill(mut filling: Filling, data: &[u8], piece: usize) -> (Vec<u8>, Wanted) {
        data.chunks(piece).for_each(|piece| filling.feed(piece).unwrap());
        filling.finish().unwrap()
    }

    /// What comes of a chain of files, the newest first: the first byte of each block.
    fn combined(chain: &[Vec<u8>], whole: &[u8], piece: usize) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (sizes, open) = (PageSizes::default(), || file.reopen().unwrap());
        let (path, mut wanted) = fill(Filling::newest(b"base/5/1".to_vec(), open(), sizes), &chain[0], piece);
        for older in &chain[1..] {
            wanted = fill(Filling::older(path.clone(), open(), sizes, wanted, false), older, piece).1;
        }
        let whole: Vec<u8> = whole.iter().flat_map(|byte| [*byte; BLOCK]).collect();
        assert!(fill(Filling::older(path, open(), sizes, wanted, true), &whole, piece).1.is_empty());
        let mut bytes = Vec::new();
        open().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        assert!(bytes.chunks(BLOCK).all(|block| block.iter().all(|byte| *byte == block[0])));
        bytes.chunks(BLOCK).map(|block| block[0]).collect()
    }

    #[test]
    fn every_block_is_that_of_the_newest_base_that_has_it() {
        for piece in [1000, BLOCK, 100_000, usize::MAX] {
            let full = [1, 2, 3, 4, 5];
            let one = |length, blocks: &[(u32, u8)]| combined(&[increment(length, blocks)], &full, piece);
            assert_eq!(one(5, &[]), full);
            assert_eq!(one(5, &[(1, 9), (4, 8)]), [1, 9, 3, 4, 8]);
            // Shorter, longer, longer with zeros in between, and all of it gone.
            assert_eq!(one(2, &[]), [1, 2]);
            assert_eq!(one(5, &[(6, 9)]), [1, 2, 3, 4, 5, 0, 9]);
            assert_eq!(one(7, &[(5, 9)]), [1, 2, 3, 4, 5, 9, 0]);
            assert!(one(0, &[]).is_empty());
            // Cut off, and written anew beyond.
            assert_eq!(one(2, &[(2, 9), (4, 8)]), [1, 2, 9, 0, 8]);
            let two =
                |a, b: &[(u32, u8)], c, d: &[(u32, u8)]| combined(&[increment(a, b), increment(c, d)], &full, piece);
            assert_eq!(two(5, &[(0, 9)], 5, &[(0, 8), (1, 7)]), [9, 7, 3, 4, 5]);
            // Cut off before, longer since, without a trace in the log: as the one before had it, that is zeros.
            assert_eq!(two(5, &[], 2, &[]), [1, 2, 0, 0, 0]);
            assert_eq!(two(5, &[(4, 9)], 2, &[(2, 8)]), [1, 2, 8, 0, 9]);
            assert_eq!(two(1, &[], 7, &[(6, 9)]), [1]);
        }
        let full: Vec<u8> = (0..200).collect();
        let found =
            combined(&[increment(190, &[(64, 0), (128, 0)]), increment(130, &[(127, 0), (189, 7)])], &full, 9000);
        let expected = (0..190).map(|n| if n >= 130 || [64, 127, 128].contains(&n) { 0 } else { n as u8 });
        let mut expected: Vec<u8> = expected.collect();
        expected[189] = 7;
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_wanted_is_looked_for_in_one_base_after_the_other() {
        let combining = Combining::new(PageSizes::default());
        let wanted = Wanted::but(&Changed { length: 70, blocks: vec![0, 69] });
        assert!(!wanted.has(0) && wanted.has(1) && wanted.has(68) && !wanted.has(69) && !wanted.has(70));
        combining.want(b"a".to_vec(), wanted.clone());
        combining.want(b"b".to_vec(), wanted.clone());
        combining.want(b"c".to_vec(), Wanted::but(&Changed { length: 1, blocks: vec![0] }));
        assert_eq!(combining.take(b"a"), None);
        assert_eq!(combining.go_on(), None);
        assert_eq!((combining.take(b"a"), combining.take(b"c")), (Some(wanted), None));
        // Nobody had the other.
        assert_eq!(combining.go_on(), Some(b"b".to_vec()));
        assert_eq!(combining.go_on(), None);
    }

    #[test]
    fn a_label_is_made_that_of_a_whole_backup() {
        let label = b"START WAL LOCATION: 0/7000028 (file 0)\nINCREMENTAL FROM LSN: 0/3000028\nINCREMENTAL FROM TLI: 1\nLABEL: x\n";
        assert_eq!(plain_label(label), b"START WAL LOCATION: 0/7000028 (file 0)\nLABEL: x\n");
    }

    #[test]
    fn a_chain_that_lacks_a_file_is_told_before() {
        use crate::base::manifest_tests::{entry, manifest};
        let listed = |paths: &[&str]| {
            let entries: Vec<_> = paths.iter().map(|path| entry(path, 0, "00000000")).collect();
            BackupManifest::parse(manifest(&entries).as_bytes()).unwrap()
        };
        let newest = listed(&["base/5/INCREMENTAL.1", "base/5/INCREMENTAL.2", "base/5/3", "PG_VERSION"]);
        let middle = listed(&["base/5/INCREMENTAL.1", "base/5/2"]);
        let full = listed(&["base/5/1", "base/5/2"]);
        require_whole(&[("c", &newest), ("b", &middle), ("a", &full)]).unwrap();
        require_whole(&[("c", &newest), ("a", &full)]).unwrap();
        require_whole(&[("a", &full)]).unwrap();
        for (chain, lacking) in [
            (vec![("c", &newest), ("b", &middle)], "snapshot b lacks base/5/1,"),
            (vec![("c", &newest), ("b", &middle), ("a", &listed(&["base/5/2"]))], "snapshot a lacks base/5/1,"),
            (vec![("c", &newest), ("b", &listed(&["base/5/1"])), ("a", &full)], "snapshot b lacks base/5/2,"),
        ] {
            let refused = require_whole(&chain).unwrap_err();
            assert!(refused.what.starts_with(lacking), "{}", refused.what);
        }
    }
}
