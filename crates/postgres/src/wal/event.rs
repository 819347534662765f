//! What a reader tells of a log.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use crate::{Lsn, TimelineId};

/// A transaction's number, which comes again after four thousand million others.
pub type Xid = u32;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Its first byte.
    pub start: Lsn,
    /// Where the log goes on after it: what servers call its end, padding included.
    pub end: Lsn,
}

/// A record that tells something, after its checksum was found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it is.
    pub span: Span,
    /// What it tells.
    pub what: What,
}

/// What a record tells. Times are those of the server's clock and not in order: transactions take them before they
/// queue for their place in the log, and clocks are set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// A transaction is committed.
    Commit {
        /// Which.
        xid: Xid,
        /// When.
        time: Timestamp,
    },
    /// A prepared transaction is committed.
    CommitPrepared {
        /// Which.
        xid: Xid,
        /// Its name, if the server writes it: only where logical decoding is possible.
        gid: Option<String>,
        /// When.
        time: Timestamp,
    },
    /// A transaction is rolled back.
    Abort {
        /// Which.
        xid: Xid,
        /// When.
        time: Timestamp,
    },
    /// A prepared transaction is rolled back.
    AbortPrepared {
        /// Which.
        xid: Xid,
        /// Its name, if the server writes it.
        gid: Option<String>,
        /// When.
        time: Timestamp,
    },
    /// A transaction waits to be committed or rolled back by its name.
    Prepare {
        /// Which.
        xid: Xid,
        /// Its name.
        gid: String,
        /// When.
        time: Timestamp,
    },
    /// Somebody called `pg_create_restore_point`.
    RestorePoint {
        /// The name that was given.
        name: String,
        /// When.
        time: Timestamp,
    },
    /// The rest of the segment is not used.
    SegmentSwitch,
    /// A checkpoint.
    Checkpoint(Checkpoint),
    /// A recovery ended without a checkpoint, and the log goes on.
    EndOfRecovery {
        /// The timeline that begins.
        timeline: TimelineId,
        /// The one that it branches off from.
        previous: TimelineId,
        /// When.
        time: Timestamp,
    },
    /// Settings changed that have to be known to replay the log.
    ParameterChange {
        /// How much is logged from here on.
        wal_level: WalLevel,
    },
    /// A base backup ended.
    BackupEnd {
        /// Where its log begins.
        start: Lsn,
    },
    /// A tablespace is created: a server that replays it makes itself at home in that very folder, whoever uses it
    /// (`tblspc_redo`).
    CreateTablespace {
        /// Its OID.
        oid: u32,
        /// Its folder.
        location: String,
    },
    /// A database's folder is copied, as it is: from one of its tablespaces to another, or for a new database.
    CopyDatabase {
        /// The OID of the one that is copied.
        from: u32,
        /// The OID of the copy.
        to: u32,
    },
    /// A record that a crash broke off is given up.
    OverwriteContrecord {
        /// Where that one begins.
        overwritten: Lsn,
        /// When.
        time: Timestamp,
    },
}

impl What {
    /// The transaction that ends here.
    pub fn transaction(&self) -> Option<Xid> {
        match self {
            Self::Commit { xid, .. }
            | Self::CommitPrepared { xid, .. }
            | Self::Abort { xid, .. }
            | Self::AbortPrepared { xid, .. } => Some(*xid),
            _ => None,
        }
    }

    /// Whether a transaction is committed here.
    pub fn is_commit(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::CommitPrepared { .. })
    }

    /// Whether it may keep a server from replaying it where it is restored, so that it has to be known before.
    pub fn is_notable(&self) -> bool {
        matches!(self, Self::CreateTablespace { .. } | Self::ParameterChange { wal_level: WalLevel::Minimal })
    }

    /// When the server says that it happened.
    pub fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Commit { time, .. }
            | Self::CommitPrepared { time, .. }
            | Self::Abort { time, .. }
            | Self::AbortPrepared { time, .. }
            | Self::Prepare { time, .. }
            | Self::RestorePoint { time, .. }
            | Self::Checkpoint(Checkpoint { time, .. })
            | Self::EndOfRecovery { time, .. }
            | Self::OverwriteContrecord { time, .. } => Some(*time),
            Self::SegmentSwitch
            | Self::ParameterChange { .. }
            | Self::BackupEnd { .. }
            | Self::CreateTablespace { .. }
            | Self::CopyDatabase { .. } => None,
        }
    }
}

/// A checkpoint's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whether the server was shut down, or ended a recovery, with it.
    pub shutdown: bool,
    /// Where a recovery from it begins.
    pub redo: Lsn,
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// The one before, where it is the first record of its own; the same otherwise.
    pub previous: TimelineId,
    /// The next transaction's number, with the rounds that they have made in the upper half.
    pub next_xid: u64,
    /// When, to the second.
    pub time: Timestamp,
}

/// `wal_level` (xlog.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Too little for any recovery but that from a crash: a gap.
    Minimal,
    /// Enough.
    Replica,
    /// And more.
    Logical,
}

/// 2000-01-01, from where servers count time (timestamp.h).
const EPOCH: SignedDuration = SignedDuration::from_secs(946_684_800);

/// A server's time. What no calendar of ours has (servers' go on to the year 294276) becomes its first or last moment,
/// so that the order stays.
pub(super) fn time(micros: i64) -> Timestamp {
    let since = SignedDuration::from_micros(micros);
    let latest = if micros < 0 { Timestamp::MIN } else { Timestamp::MAX };
    since.checked_add(EPOCH).and_then(|t| Timestamp::from_duration(t).ok()).unwrap_or(latest)
}

/// Seconds since 1970, as checkpoints have them (pgtime.h).
pub(super) fn seconds(seconds: i64) -> Timestamp {
    let latest = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_second(seconds).unwrap_or(latest)
}

/// Part of a server that writes records of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceManager(pub u8);

/// Names in the order of their numbers, as pg_waldump shows them (rmgrlist.h).
const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

impl fmt::Display for ResourceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "custom{:03}", self.0),
        }
    }
}

/// How many records there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts([u64; 256]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl Counts {
    pub(super) fn add(&mut self, manager: u8) {
        if let Some(count) = self.0.get_mut(usize::from(manager)) {
            *count += 1;
        }
    }

    /// Those of one resource manager.
    pub fn of(&self, manager: ResourceManager) -> u64 {
        self.0.get(usize::from(manager.0)).copied().unwrap_or_default()
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The resource managers that have any.
    pub fn iter(&self) -> impl Iterator<Item = (ResourceManager, u64)> + '_ {
        (0..=u8::MAX).map(ResourceManager).zip(self.0).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_the_servers() {
        assert_eq!(time(0).to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(time(-1).to_string(), "1999-12-31T23:59:59.999999Z");
        assert_eq!(time(700_000_000_123_456).to_string(), "2022-03-07T20:26:40.123456Z");
        assert_eq!((time(i64::MIN), time(i64::MAX)), (Timestamp::MIN, Timestamp::MAX));
        assert_eq!((seconds(i64::MIN), seconds(i64::MAX)), (Timestamp::MIN, Timestamp::MAX));
    }
}
