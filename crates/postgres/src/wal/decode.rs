//! Decodes records as their bytes pass by. A commit can name millions of subtransactions; what is kept of it is some
//! hundred bytes at most.

use std::mem;

use super::event::{Checkpoint, WalLevel, What, Xid, seconds, time};
use super::layout::{RecordHeader, Version, u16_at, u32_at, u64_at};
use crate::Lsn;

/// Resource managers that are decoded (rmgrlist.h).
const XLOG: u8 = 0;
const XACT: u8 = 1;
const DBASE: u8 = 4;
const TBLSPC: u8 = 5;
/// One of which only the kind of a record counts.
const STANDBY: u8 = 8;

/// The half of `xl_info` that belongs to the resource manager (xlogrecord.h).
const MANAGER_INFO: u8 = 0xF0;

/// `XLOG_SWITCH` (pg_control.h).
const SWITCH: u8 = 0x40;

/// Longer than the folder of any tablespace (`MAXPGPATH`), or anything else that is kept at once.
const LIMIT: usize = 1100;

/// What a record is, as far as it is decoded (pg_control.h, xact.h, tablespace.h, dbcommands_xlog.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Checkpoint { shutdown: bool },
    Switch,
    BackupEnd,
    ParameterChange,
    RestorePoint,
    EndOfRecovery,
    Overwrite,
    Prepare,
    Finish { commit: bool, prepared: bool },
    CreateTablespace,
    CopyDatabase,
}

impl Kind {
    fn of(header: &RecordHeader) -> Option<Self> {
        Some(match (header.manager, header.info & MANAGER_INFO) {
            (XLOG, 0x00) => Self::Checkpoint { shutdown: true },
            (XLOG, 0x10) => Self::Checkpoint { shutdown: false },
            (XLOG, SWITCH) => Self::Switch,
            (XLOG, 0x50) => Self::BackupEnd,
            (XLOG, 0x60) => Self::ParameterChange,
            (XLOG, 0x70) => Self::RestorePoint,
            (XLOG, 0x90) => Self::EndOfRecovery,
            (XLOG, 0xD0) => Self::Overwrite,
            // the uppermost bit tells whether there is more than the time
            (XACT, info) => match info & 0x70 {
                0x00 => Self::Finish { commit: true, prepared: false },
                0x10 => Self::Prepare,
                0x20 => Self::Finish { commit: false, prepared: false },
                0x30 => Self::Finish { commit: true, prepared: true },
                0x40 => Self::Finish { commit: false, prepared: true },
                _ => return None,
            },
            (TBLSPC, 0x00) => Self::CreateTablespace,
            (DBASE, 0x00) => Self::CopyDatabase,
            _ => return None,
        })
    }

    /// Bytes at the beginning of the record's own data that are needed.
    fn wanted(self, version: Version) -> usize {
        match self {
            Self::Checkpoint { .. } => 72,
            Self::Switch => 0,
            Self::BackupEnd | Self::Finish { .. } => 8,
            Self::ParameterChange => 24,
            Self::RestorePoint => 72,
            Self::EndOfRecovery | Self::Overwrite | Self::CopyDatabase => 16,
            Self::Prepare => prepare_len(version),
            // and more, as long as its folder is
            Self::CreateTablespace => 5,
        }
    }
}

/// Size of `xl_xact_prepare`, behind which the name is: 15 has two counters more.
const fn prepare_len(version: Version) -> usize {
    if version.drops_stats() { 72 } else { 64 }
}

/// Parts of a commit or abort, in this order where they are there at all (`ParseCommitRecord`).
#[derive(Clone, Copy, Debug)]
enum Part {
    /// So many bytes of no interest.
    Skip(u64),
    /// A number, and as many items of so many bytes.
    Items(u64),
    /// The prepared transaction's number.
    Xid,
    /// Its name, to a zero.
    Gid,
}

/// What to do with the next bytes.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// One that tells what follows: data, or what they are preceded by (`XLR_BLOCK_ID_*`, xlogrecord.h).
    Id,
    /// Bytes of data, in one byte or four.
    DataLen { wide: bool },
    /// The beginning of the data.
    Data,
    /// `xinfo`: which parts there are.
    Parts,
    /// The next of them.
    Part(Part),
    /// The name of the transaction that is prepared.
    PreparedGid,
    /// All is there.
    Done,
    /// It is of no known form.
    Bad,
}

/// One record on its way.
#[derive(Debug)]
pub(super) struct Decoder {
    kind: Kind,
    version: Version,
    info: u8,
    xid: Xid,
    /// Bytes of the record that are still to come.
    left: u64,
    step: Step,
    /// Bytes of no interest before the next step.
    skip: u64,
    /// Bytes the step needs; for a name, at most.
    want: usize,
    kept: Vec<u8>,
    parts: Vec<Part>,
    data: Vec<u8>,
    prepared: Option<Xid>,
    gid: Option<String>,
}

/// Whether nothing of its segment follows a record.
pub(super) fn is_switch(header: &RecordHeader) -> bool {
    Kind::of(header) == Some(Kind::Switch)
}

/// Whether a server writes it whatever is done with it: checkpoints, and since 17 where they begin (`XLOG_CHECKPOINT_REDO`);
/// and which transactions run (`XLOG_RUNNING_XACTS`, standbydefs.h).
pub(super) fn is_housekeeping(header: &RecordHeader) -> bool {
    matches!((header.manager, header.info & MANAGER_INFO), (XLOG, 0x00 | 0x10 | 0xE0) | (STANDBY, 0x10))
}

impl Decoder {
    /// If the record is of a kind that tells something.
    pub fn new(header: &RecordHeader, body: u64, version: Version) -> Option<Self> {
        let kind = Kind::of(header)?;
        let done = kind == Kind::Switch;
        Some(Self {
            kind,
            version,
            info: header.info,
            xid: header.xid,
            left: body,
            step: if done { Step::Done } else { Step::Id },
            skip: 0,
            want: usize::from(!done),
            kept: Vec::new(),
            parts: Vec::new(),
            data: Vec::new(),
            prepared: None,
            gid: None,
        })
    }

    /// Takes the next bytes of the record.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !matches!(self.step, Step::Done | Step::Bad) {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            let until_zero = matches!(self.step, Step::Part(Part::Gid));
            let rest = bytes.get(skipped..).unwrap_or_default();
            let missing = self.want.saturating_sub(self.kept.len()).min(rest.len());
            let taken = match rest.iter().take(missing).position(|b| until_zero && *b == 0) {
                Some(zero) => zero + 1,
                None => missing,
            };
            self.kept.extend_from_slice(rest.get(..taken).unwrap_or_default());
            bytes = rest.get(taken..).unwrap_or_default();
            self.skip -= skipped as u64;
            self.left = self.left.saturating_sub((skipped + taken) as u64);
            if self.skip == 0 && (self.kept.len() >= self.want || (until_zero && self.kept.last() == Some(&0))) {
                self.advance();
            }
        }
    }

    fn advance(&mut self) {
        let mut kept = mem::take(&mut self.kept);
        self.step = self.after(&kept).unwrap_or(Step::Bad);
        kept.clear();
        self.kept = kept;
    }

    fn wants(&mut self, bytes: usize, step: Step) -> Option<Step> {
        self.want = bytes;
        (bytes <= LIMIT).then_some(step)
    }

    fn after(&mut self, kept: &[u8]) -> Option<Step> {
        match self.step {
            Step::Id => match kept.first()? {
                255 => self.wants(1, Step::DataLen { wide: false }),
                254 => self.wants(4, Step::DataLen { wide: true }),
                // the node that a replicated transaction came from
                253 => {
                    self.skip = 2;
                    self.wants(1, Step::Id)
                }
                // the transaction that a subtransaction is part of
                252 => {
                    self.skip = 4;
                    self.wants(1, Step::Id)
                }
                // None of these kinds changes pages.
                _ => None,
            },
            Step::DataLen { wide } => {
                let len = if wide { u32_at(kept, 0)? } else { u32::from(*kept.first()?) };
                let wanted = self.kind.wanted(self.version);
                let fits = u64::from(len) == self.left && len as usize >= wanted;
                fits.then_some(())?;
                let wanted = if self.kind == Kind::CreateTablespace { len as usize } else { wanted };
                self.wants(wanted, Step::Data)
            }
            Step::Data => self.after_data(kept),
            Step::Parts => {
                self.parts = self.parts_of(u32_at(kept, 0)?);
                self.next_part()
            }
            Step::Part(Part::Skip(_)) => self.next_part(),
            Step::Part(Part::Items(size)) => {
                self.skip = u64::from(u32_at(kept, 0)?) * size;
                (self.skip <= self.left).then_some(())?;
                self.next_part()
            }
            Step::Part(Part::Xid) => {
                self.prepared = Some(u32_at(kept, 0)?);
                self.next_part()
            }
            Step::Part(Part::Gid) => {
                self.gid = Some(text(kept)?);
                self.next_part()
            }
            Step::PreparedGid => {
                self.gid = Some(text(kept)?);
                Some(Step::Done)
            }
            Step::Done | Step::Bad => None,
        }
    }

    fn after_data(&mut self, kept: &[u8]) -> Option<Step> {
        self.data = kept.to_vec();
        match self.kind {
            Kind::Finish { .. } if self.info & 0x80 != 0 => self.wants(4, Step::Parts),
            Kind::Prepare => {
                let len = u16_at(kept, if self.version.drops_stats() { 54 } else { 46 })?;
                self.wants(usize::from(len), Step::PreparedGid)
            }
            _ => Some(Step::Done),
        }
    }

    /// The parts up to the last one that is of interest, last first.
    fn parts_of(&self, xinfo: u32) -> Vec<Part> {
        let stats = self.version.stats_item();
        let order = [
            (0, Part::Skip(8)),
            (1, Part::Items(4)),
            (2, Part::Items(12)),
            (8, Part::Items(stats)),
            (3, Part::Items(16)),
            (4, Part::Xid),
            (7, Part::Gid),
        ];
        let Kind::Finish { prepared: true, .. } = self.kind else { return Vec::new() };
        order.into_iter().rev().filter(|(bit, _)| xinfo & (1 << bit) != 0).map(|(_, part)| part).collect()
    }

    fn next_part(&mut self) -> Option<Step> {
        let Some(part) = self.parts.pop() else { return Some(Step::Done) };
        match part {
            Part::Skip(bytes) => {
                self.skip += bytes;
                self.next_part()
            }
            Part::Items(_) | Part::Xid => self.wants(4, Step::Part(part)),
            Part::Gid => self.wants(LIMIT, Step::Part(part)),
        }
    }

    /// What the record tells, once all of it has passed by; none if it is of no known form.
    pub fn finish(self) -> Option<What> {
        let Step::Done = self.step else { return None };
        let data = self.data.as_slice();
        let time_at = |offset| u64_at(data, offset).map(|t| time(t.cast_signed()));
        Some(match self.kind {
            Kind::Switch => What::SegmentSwitch,
            Kind::Checkpoint { shutdown } => What::Checkpoint(Checkpoint {
                shutdown,
                redo: Lsn(u64_at(data, 0)?),
                timeline: u32_at(data, 8)?,
                previous: u32_at(data, 12)?,
                next_xid: u64_at(data, 24)?,
                time: seconds(u64_at(data, 64)?.cast_signed()),
            }),
            Kind::BackupEnd => What::BackupEnd { start: Lsn(u64_at(data, 0)?) },
            Kind::ParameterChange => What::ParameterChange {
                wal_level: match u32_at(data, 20)? {
                    0 => WalLevel::Minimal,
                    1 => WalLevel::Replica,
                    2 => WalLevel::Logical,
                    _ => return None,
                },
            },
            Kind::RestorePoint => What::RestorePoint { name: text(data.get(8..)?)?, time: time_at(0)? },
            Kind::EndOfRecovery => {
                What::EndOfRecovery { timeline: u32_at(data, 8)?, previous: u32_at(data, 12)?, time: time_at(0)? }
            }
            Kind::Overwrite => What::OverwriteContrecord { overwritten: Lsn(u64_at(data, 0)?), time: time_at(8)? },
            Kind::CreateTablespace => What::CreateTablespace { oid: u32_at(data, 0)?, location: text(data.get(4..)?)? },
            Kind::CopyDatabase => What::CopyDatabase { from: u32_at(data, 8)?, to: u32_at(data, 0)? },
            Kind::Prepare => What::Prepare { xid: u32_at(data, 8)?, gid: self.gid?, time: time_at(16)? },
            Kind::Finish { commit: true, prepared: false } => What::Commit { xid: self.xid, time: time_at(0)? },
            Kind::Finish { commit: false, prepared: false } => What::Abort { xid: self.xid, time: time_at(0)? },
            Kind::Finish { commit: true, prepared: true } => {
                What::CommitPrepared { xid: self.prepared?, gid: self.gid, time: time_at(0)? }
            }
            Kind::Finish { commit: false, prepared: true } => {
                What::AbortPrepared { xid: self.prepared?, gid: self.gid, time: time_at(0)? }
            }
        })
    }
}

/// A text that ends with a zero, in whatever encoding its database has.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|b| *b == 0)?;
    Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
}
