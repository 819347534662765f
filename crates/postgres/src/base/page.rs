//! Pages of relations, and their checksums (bufpage.h, checksum_impl.h).

use crate::Lsn;

/// How a cluster keeps relations. `block_size` and `segment_size` of a server, which are the same in all but special builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSizes {
    /// Bytes in a page: a power of two from 1 KiB to 32 KiB.
    block: usize,
    /// Pages in each file of a relation but the last.
    segment: u32,
}

impl PageSizes {
    /// If there can be such.
    pub const fn new(block: usize, segment: u32) -> Option<Self> {
        if block.is_power_of_two() && block >= 1024 && block <= 32768 && segment > 0 {
            Some(Self { block, segment })
        } else {
            None
        }
    }

    /// Bytes in a page.
    pub const fn block(self) -> usize {
        self.block
    }

    /// Pages in each file of a relation but the last.
    pub const fn segment(self) -> u32 {
        self.segment
    }
}

impl Default for PageSizes {
    /// 8 KiB, in files of 1 GiB.
    fn default() -> Self {
        Self { block: 8192, segment: 131_072 }
    }
}

/// A page whose bytes are not those that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageProblem {
    /// Its number in the relation.
    pub block: u32,
    /// The checksum that it has.
    pub stored: u16,
    /// The checksum that its bytes have.
    pub computed: u16,
}

/// The checksum of a page (`pg_checksum_page`), with its number in the relation, so that a page in another's place is noticed.
///
/// 32 sums side by side, each over every 32nd word, by FNV-1a with an addition; the field of the checksum itself counts as
/// zero.
pub fn page_checksum(page: &[u8], block: u32) -> u16 {
    /// `checksumBaseOffsets`
    const OFFSETS: [u32; 32] = [
        0x5B1F_36E9,
        0xB852_5960,
        0x02AB_50AA,
        0x1DE6_6D2A,
        0x79FF_467A,
        0x9BB9_F8A3,
        0x217E_7CD2,
        0x83E1_3D2C,
        0xF8D4_474F,
        0xE39E_B970,
        0x42C6_AE16,
        0x9932_16FA,
        0x7B09_3B5D,
        0x98DA_FF3C,
        0xF718_902A,
        0x0B1C_9CDB,
        0xE58F_764B,
        0x1876_36BC,
        0x5D7B_3BB1,
        0xE73D_E7DE,
        0x92BE_C979,
        0xCCA6_C0B2,
        0x304A_0979,
        0x85AA_43D4,
        0x7831_25BB,
        0x6CA8_EAA2,
        0xE407_EAC6,
        0x4B5C_FC3E,
        0x9FBF_8C76,
        0x15CA_20BE,
        0xF2CA_9FD3,
        0x959B_D756,
    ];
    /// `CHECKSUM_COMP`
    const fn mix(sum: u32, word: u32) -> u32 {
        let mixed = sum ^ word;
        mixed.wrapping_mul(16_777_619) ^ (mixed >> 17)
    }
    let mut sums = OFFSETS;
    for (row, words) in page.as_chunks::<128>().0.iter().enumerate() {
        for (column, (sum, word)) in sums.iter_mut().zip(words.as_chunks::<4>().0).enumerate() {
            let mut word = u32::from_le_bytes(*word);
            if row == 0 && column == 2 {
                // pd_checksum, at byte 8
                word &= 0xFFFF_0000;
            }
            *sum = mix(*sum, word);
        }
    }
    let sum = sums.iter().fold(0, |all, sum| all ^ mix(mix(*sum, 0), 0));
    // Never zero.
    ((sum ^ block) % 65535 + 1) as u16
}

/// Looks at the pages of one file.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    sizes: PageSizes,
    /// Pages from here on may have been written while they were copied; the log has all of them.
    start: Lsn,
    /// None after the last that a relation can have.
    next: Option<u32>,
    /// The page that is not whole yet.
    partial: Vec<u8>,
}

impl Pages {
    /// Of the file, if it is one with pages; its path is that within the data directory.
    pub fn of(path: &[u8], sizes: PageSizes, start: Lsn) -> Option<Self> {
        let segment = relation_segment(path)?;
        Some(Self { sizes, start, next: Some(segment.checked_mul(sizes.segment)?), partial: Vec::new() })
    }

    /// The next page is this one of its file, rather than the one after the last.
    pub fn go_to(&mut self, path: &[u8], page: u32) {
        let first = relation_segment(path).and_then(|segment| segment.checked_mul(self.sizes.segment));
        self.next = first.and_then(|first| first.checked_add(page));
    }

    /// Takes the next bytes. The rest after the last whole page is not looked at: servers do not either, as it is of a file
    /// that was just growing.
    pub fn feed(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(PageProblem)) {
        let size = self.sizes.block;
        if !self.partial.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(size - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = later;
            if self.partial.len() < size {
                return;
            }
            let page = std::mem::take(&mut self.partial);
            self.check(&page, each);
            self.partial = page;
            self.partial.clear();
        }
        let mut pages = bytes.chunks_exact(size);
        for page in pages.by_ref() {
            self.check(page, each);
        }
        self.partial.extend_from_slice(pages.remainder());
    }

    /// As servers do when they send it (`verify_page_checksum` in basebackup.c).
    fn check(&mut self, page: &[u8], each: &mut dyn FnMut(PageProblem)) {
        let Some(block) = self.next else { return };
        self.next = block.checked_add(1);
        let u16_at = |at| bytes_at(page, at).map_or(0, u16::from_le_bytes);
        // pd_lsn is two numbers, the upper half first.
        let [high, low] = [0, 4].map(|at| u64::from(bytes_at(page, at).map_or(0, u32::from_le_bytes)));
        let (stored, upper) = (u16_at(8), u16_at(14));
        // New pages have no header yet (`PageIsNew`).
        if upper == 0 || Lsn(high << 32 | low) >= self.start {
            return;
        }
        let computed = page_checksum(page, block);
        if computed != stored {
            each(PageProblem { block, stored, computed });
        }
    }
}

/// Reads N bytes at `offset`.
fn bytes_at<const N: usize>(page: &[u8], offset: usize) -> Option<[u8; N]> {
    page.get(offset..)?.first_chunk::<N>().copied()
}

/// Which of a relation's files it is, if it is one: `base/<database>/`, `global/` or
/// `pg_tblspc/<tablespace>/PG_<version>/<database>/`, and then `<number>[_<fork>][.<segment>]`
/// (`parse_filename_for_nontemp_relation`). Temporary relations are not in a backup.
pub(super) fn relation_segment(path: &[u8]) -> Option<u32> {
    let parts: Vec<&str> = std::str::from_utf8(path).ok()?.split('/').collect();
    let number = |text: &str| {
        let plain = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|_| plain)
    };
    let name = match parts.as_slice() {
        ["global", name] => name,
        ["base", database, name] => number(database).and(Some(name))?,
        ["pg_tblspc", tablespace, version, database, name] if version.starts_with("PG_") => {
            number(tablespace).and(number(database)).and(Some(name))?
        }
        _ => return None,
    };
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, number(segment)?),
        None => (*name, 0),
    };
    let (name, fork) = name.split_once('_').map_or((name, None), |(name, fork)| (name, Some(fork)));
    number(name)?;
    fork.is_none_or(|fork| matches!(fork, "fsm" | "vm" | "init")).then_some(segment)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page that is in order.
    pub(crate) fn page(block: u32, lsn: u64, fill: u8) -> Vec<u8> {
        let mut page = vec![fill; 8192];
        page[0..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[14..16].copy_from_slice(&8192_u16.to_le_bytes());
        let checksum = page_checksum(&page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    fn problems(path: &str, data: &[u8], piece: usize) -> Vec<u32> {
        let mut pages = Pages::of(path.as_bytes(), PageSizes::default(), Lsn(1000)).unwrap();
        let mut found = Vec::new();
        data.chunks(piece).for_each(|piece| pages.feed(piece, &mut |problem| found.push(problem.block)));
        found
    }

    #[test]
    fn files_of_relations() {
        for (path, segment) in [
            ("global/1262", Some(0)),
            ("base/5/16384", Some(0)),
            ("base/5/16384.12", Some(12)),
            ("base/5/16384_fsm", Some(0)),
            ("base/5/16384_vm.1", Some(1)),
            ("base/5/16384_init", Some(0)),
            ("pg_tblspc/16385/PG_15_202209061/5/16384.1", Some(1)),
            ("global/pg_control", None),
            ("global/pg_filenode.map", None),
            ("base/5/pg_filenode.map", None),
            ("base/5/PG_VERSION", None),
            ("base/5/16384_old", None),
            ("base/5/16384.0", None),
            ("base/5/16384.1.1", None),
            ("base/5/t3_16384", None),
            ("base/5/INCREMENTAL.16384", None),
            ("base/pgsql_tmp/16384", None),
            ("base/16384", None),
            ("16384", None),
            ("pg_xact/0000", None),
            ("pg_tblspc/16385/x/5/16384", None),
        ] {
            assert_eq!(relation_segment(path.as_bytes()), segment, "{path}");
        }
        assert_eq!(relation_segment(b"base/5/\xFF"), None);
        // More than a relation can have.
        assert!(Pages::of(b"base/5/1.4000000000", PageSizes::default(), Lsn(1)).is_none());
    }

    #[test]
    fn a_page_is_bound_to_its_place_in_the_relation() {
        let two = [page(0, 7, 1), page(1, 7, 1)].concat();
        assert_eq!(problems("base/5/1", &two, 8192), [0_u32; 0]);
        assert_eq!(problems("base/5/1.1", &two, 8192), [131_072, 131_073]);
        let second = [page(131_072, 7, 1), page(131_072, 7, 1)].concat();
        assert_eq!(problems("base/5/1.1", &second, 8192), [131_073]);
    }

    #[test]
    fn pages_that_say_nothing_are_passed_over() {
        let mut torn = page(0, 1000, 1);
        torn[5000] ^= 1;
        assert_eq!(problems("base/5/1", &torn, 8192), [0_u32; 0]);
        let mut older = page(0, 999, 1);
        older[5000] ^= 1;
        assert_eq!(problems("base/5/1", &older, 8192), [0]);
        assert_eq!(problems("base/5/1", &[0; 8192], 8192), [0_u32; 0]);
        // a file that was just growing
        assert_eq!(problems("base/5/1", &older[..8191], 8192), [0_u32; 0]);
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed_in_whatever_pieces(
            at in 16_usize..8192, bit in 0_u32..8, block in 0_usize..3, piece in 1_usize..20_000,
        ) {
            let mut data: Vec<u8> = (0..3).flat_map(|n| page(n, 7, n as u8)).collect();
            prop_assert_eq!(problems("base/5/1", &data, piece), [0_u32; 0]);
            data[block * 8192 + at] ^= 1_u8 << bit;
            prop_assert_eq!(problems("base/5/1", &data, piece), [block as u32]);
        }
    }
}
