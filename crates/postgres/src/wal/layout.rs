//! How pages and records lie in the log (xlog_internal.h, xlogrecord.h). Numbers are those of the machine that wrote them;
//! all that PostgreSQL's packages are made for today are little-endian, and a page of another kind is refused by its magic.

use super::error::Problem;
use crate::{Lsn, TimelineId};

/// Records begin at multiples of it (`MAXIMUM_ALIGNOF`).
pub(super) const ALIGN: u64 = 8;

/// `SizeOfXLogRecord`.
pub(super) const RECORD_HEADER: usize = 24;

/// `SizeOfXLogShortPHD`.
pub(super) const SHORT_PAGE_HEADER: usize = 24;

/// `SizeOfXLogLongPHD`.
pub(super) const LONG_PAGE_HEADER: usize = 40;

/// What is longer cannot be read by any server: it is more than one allocation holds (`MaxAllocSize`). Since version 16
/// servers do not write such either (`XLogRecordMaxSize`).
const RECORD_LIMIT: u32 = 1 << 30;

/// `xlp_info`: the page begins with the rest of a record from the page before.
pub(super) const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
/// `xlp_info`: the rest of a record that a crash broke off will never come; another record stands in its place.
pub(super) const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
/// The fourth is `XLP_BKP_REMOVABLE`, which says nothing about what follows.
const ALL_FLAGS: u16 = 0x000F;

/// A major version whose log can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Version {
    /// 13
    V13,
    /// 14
    V14,
    /// 15
    V15,
    /// 16
    V16,
    /// 17
    V17,
    /// 18
    V18,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// By its number, 15 for one.
    pub fn from_major(major: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.major() == major)
    }

    /// By the first two bytes of a page.
    pub fn from_magic(magic: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.magic() == magic)
    }

    /// Its number.
    pub const fn major(self) -> u32 {
        match self {
            Self::V13 => 13,
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// `XLOG_PAGE_MAGIC`
    pub const fn magic(self) -> u16 {
        match self {
            Self::V13 => 0xD106,
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }

    /// Whether commits and aborts can name statistics to drop, and prepared transactions count them (`xl_xact_stats_items`).
    pub(super) const fn drops_stats(self) -> bool {
        !matches!(self, Self::V13 | Self::V14)
    }

    /// Bytes of one of those (`xl_xact_stats_item`).
    pub(super) const fn stats_item(self) -> u64 {
        match self {
            Self::V18 => 16,
            _ => 12,
        }
    }

    /// Whether there can be such a resource manager (rmgrlist.h): extensions bring their own since 15, from 128 on.
    pub(super) const fn has_manager(self, id: u8) -> bool {
        id < 22 || (id >= 128 && self.drops_stats())
    }
}

/// What a log has to be like to be the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The cluster's identifier (`IDENTIFY_SYSTEM`).
    pub system_identifier: u64,
    /// The server's version.
    pub version: Version,
    /// The timeline that is followed. Pages may be of earlier ones: up to where it branched off, its log is theirs.
    pub timeline: TimelineId,
    /// `wal_segment_size` in bytes.
    pub segment_size: SegmentSize,
    /// `wal_block_size` in bytes, 8192 unless the server was built otherwise.
    pub block_size: u32,
}

impl Expect {
    /// What a log may be of which nothing is known but the timeline. A segment begins wherever one of the largest begins.
    pub(super) fn nothing(timeline: TimelineId) -> Self {
        let (version, segment_size) = (Version::V15, SegmentSize(1 << 30));
        Self { system_identifier: 0, version, timeline, segment_size, block_size: 8192 }
    }
}

/// What of an [`Expect`] is not known, and is taken from the first page that tells it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unknown {
    /// Which every page tells. Until one does, records are read as those of [`Version::V15`]: 15 to 17 write the same.
    pub version: bool,
    /// The cluster and the size of its segments, which only the first page of a segment tells.
    pub cluster: bool,
}

impl Unknown {
    /// `WalSegMinSize`
    pub const SMALLEST_SEGMENT: u32 = 1 << 20;

    pub fn all() -> Self {
        Self { version: true, cluster: true }
    }

    /// Takes from the header of the page at `at` what it tells.
    pub fn learn(&mut self, header: &[u8], at: Lsn, expect: &mut Expect) {
        let version = u16_at(header, 0).and_then(Version::from_magic);
        let (Some(version), Some(info), true) = (version, u16_at(header, 2), u64_at(header, 8) == Some(at.0)) else {
            return;
        };
        if std::mem::take(&mut self.version) {
            expect.version = version;
        }
        let (system, size) = (u64_at(header, 24), u32_at(header, 32).and_then(SegmentSize::new));
        if let (true, true, Some(system), Some(size)) = (self.cluster, info & LONG_HEADER != 0, system, size) {
            (expect.system_identifier, expect.segment_size, self.cluster) = (system, size, false);
        }
    }
}

/// Bytes in a segment: a power of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 16 MiB, what clusters have unless they were made otherwise.
    pub const DEFAULT: Self = Self(16 << 20);

    /// If there can be segments of so many bytes (`IsValidWalSegSize`).
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 1 << 30 { Some(Self(bytes)) } else { None }
    }

    /// How many.
    pub const fn bytes(self) -> u32 {
        self.0
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Reads N bytes at `offset`.
pub(super) fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}

/// Bytes of a page's header, which its first bytes tell.
pub(super) fn page_header_len(start: &[u8; SHORT_PAGE_HEADER]) -> usize {
    let [_, _, low, high, ..] = *start;
    if u16::from_le_bytes([low, high]) & LONG_HEADER != 0 { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER }
}

/// A page's header, after it was found to be in order by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    pub info: u16,
    pub timeline: TimelineId,
    /// `xlp_rem_len`: bytes still to come of a record from pages before.
    pub remaining: u32,
}

impl PageHeader {
    /// Reads one, and checks everything that needs no other page.
    pub fn parse(bytes: &[u8], at: Lsn, expect: &Expect) -> Result<Self, Problem> {
        let (Some(magic), Some(info), Some(timeline), Some(address), Some(remaining)) =
            (u16_at(bytes, 0), u16_at(bytes, 2), u32_at(bytes, 4), u64_at(bytes, 8), u32_at(bytes, 16))
        else {
            return Err(Problem::NoRecord);
        };
        if magic == 0 {
            return Err(Problem::NoRecord);
        }
        if magic != expect.version.magic() {
            return Err(Problem::Magic { found: magic, expected: expect.version });
        }
        if info & !ALL_FLAGS != 0 {
            return Err(Problem::PageFlags(info));
        }
        if address != at.0 {
            return Err(Problem::PageAddress(Lsn(address)));
        }
        if info & LONG_HEADER != 0 {
            let (Some(system), Some(segment), Some(block)) = (u64_at(bytes, 24), u32_at(bytes, 32), u32_at(bytes, 36))
            else {
                return Err(Problem::PageFlags(info));
            };
            if system != expect.system_identifier {
                return Err(Problem::OtherSystem { found: system, expected: expect.system_identifier });
            }
            if segment != expect.segment_size.bytes() {
                return Err(Problem::SegmentSize { found: segment, expected: expect.segment_size.bytes() });
            }
            if block != expect.block_size {
                return Err(Problem::BlockSize { found: block, expected: expect.block_size });
            }
        } else if at.0 & u64::from(expect.segment_size.bytes() - 1) == 0 {
            return Err(Problem::PageFlags(info));
        }
        // Zero where nothing is continued, as pages are cleared before they are written (AdvanceXLInsertBuffer).
        let continues = info & FIRST_IS_CONTRECORD != 0;
        if continues != (remaining != 0) || (continues && info & FIRST_IS_OVERWRITE_CONTRECORD != 0) {
            return Err(Problem::PageFlags(info));
        }
        Ok(Self { info, timeline, remaining })
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    pub len: u32,
    pub xid: u32,
    pub prev: Lsn,
    pub info: u8,
    pub manager: u8,
    pub crc: u32,
}

/// Checks the length of a record, which is the first that is seen of it.
pub(super) fn check_len(len: u32) -> Result<(), Problem> {
    match len {
        0 => Err(Problem::NoRecord),
        len if (len as usize) < RECORD_HEADER || len > RECORD_LIMIT => Err(Problem::RecordLength(len)),
        _ => Ok(()),
    }
}

impl RecordHeader {
    pub fn parse(bytes: &[u8; RECORD_HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h, p0, p1, p2, p3, p4, p5, p6, p7, info, manager, _, _, w, x, y, z] = *bytes;
        Self {
            len: u32::from_le_bytes([a, b, c, d]),
            xid: u32::from_le_bytes([e, f, g, h]),
            prev: Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            manager,
            crc: u32::from_le_bytes([w, x, y, z]),
        }
    }
}
