//! What can be wrong with a log.

use thiserror::Error;

use super::layout::Version;
use crate::{Lsn, TimelineId};

/// A log that is not what it has to be, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the write-ahead log is damaged at {at}: {problem}")]
pub struct WalError {
    /// The page or record where it was found.
    pub at: Lsn,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a page or record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// Zeros where a record or page should begin. In a segment that is still being written this is the end of the log.
    #[error("there is no record, only zeros")]
    NoRecord,
    /// Another version's, or no page at all.
    #[error("no page of PostgreSQL {}: it begins with {found:#06X}", expected.major())]
    Magic {
        /// `xlp_magic`
        found: u16,
        /// The version that was expected.
        expected: Version,
    },
    /// Flags that do not exist, or contradict the rest of the header.
    #[error("the header of the page contradicts itself (flags {0:#06X})")]
    PageFlags(u16),
    /// A page from elsewhere. In a segment that is still being written this is the end of the log: the file was used before.
    #[error("the page belongs at {0}")]
    PageAddress(Lsn),
    /// The log of another cluster.
    #[error("it is the log of another cluster (system identifier {found}, not {expected})")]
    OtherSystem {
        /// `xlp_sysid`
        found: u64,
        /// The one that was expected.
        expected: u64,
    },
    /// Segments of another size.
    #[error("it has segments of {found} bytes, not {expected}")]
    SegmentSize {
        /// `xlp_seg_size`
        found: u32,
        /// The one that was expected.
        expected: u32,
    },
    /// Pages of another size.
    #[error("it has pages of {found} bytes, not {expected}")]
    BlockSize {
        /// `xlp_xlog_blcksz`
        found: u32,
        /// The one that was expected.
        expected: u32,
    },
    /// Timelines only ever go on to higher numbers.
    #[error("the page is of timeline {found}, after one of timeline {before}")]
    TimelineBack {
        /// `xlp_tli`
        found: TimelineId,
        /// Of the page before.
        before: TimelineId,
    },
    /// A page of a later timeline than the one that is followed.
    #[error("the page is of timeline {found}, while timeline {followed} is followed")]
    TimelineAhead {
        /// `xlp_tli`
        found: TimelineId,
        /// The one that is followed.
        followed: TimelineId,
    },
    /// The page does not go on with the record that is not yet at its end.
    #[error("{expected} bytes of the record at {record} should follow, the page has {found}")]
    Continuation {
        /// Where that record begins; invalid if that is before reading did.
        record: Lsn,
        /// `xlp_rem_len`, zero where no record is continued.
        found: u32,
        /// Bytes still to come.
        expected: u32,
    },
    /// The page goes on with a record although none is open.
    #[error("the page continues a record that does not exist")]
    UnexpectedContinuation,
    /// A length that no record has.
    #[error("a record cannot have {0} bytes")]
    RecordLength(u32),
    /// A number that no resource manager has.
    #[error("there is no resource manager {0}")]
    ResourceManager(u8),
    /// The chain is broken: every record names the one before it.
    #[error("the record before it should be at {found}, but is at {expected}")]
    PreviousRecord {
        /// `xl_prev`
        found: Lsn,
        /// The record that was read before.
        expected: Lsn,
    },
    /// A record that cannot follow what it names as the one before.
    #[error("the record names one before it that is not: {0}")]
    PreviousAhead(Lsn),
    /// The bytes are not those that were written.
    #[error("the checksum of the record is wrong")]
    Checksum,
    /// The bytes are those that were written, and not understood.
    #[error("the record is of a form that this version of Hindsight does not know")]
    Unreadable,
    /// The record that replaces one that a crash broke off names another.
    #[error("it replaces the record at {found}, but the one that was broken off is at {expected}")]
    Overwritten {
        /// `overwritten_lsn`
        found: Lsn,
        /// The one that was broken off; invalid if there is none.
        expected: Lsn,
    },
    /// No record can begin there.
    #[error("no record can begin there")]
    NoStart,
    /// There are no such pages.
    #[error("a server cannot have log pages of {0} bytes")]
    NoBlockSize(u32),
    /// The log ends where positions end.
    #[error("the log is longer than positions reach")]
    TooLong,
}
