//! Names of the files that the log is kept in (xlog_internal.h).

use std::fmt;

use super::layout::SegmentSize;
use crate::{Lsn, TimelineId};

/// A file of the log: so many bytes of one timeline, as many as all others have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// Which timeline.
    pub timeline: TimelineId,
    /// How many segments come before it.
    pub number: u64,
}

impl Segment {
    /// The one that has the byte at `lsn`.
    pub fn at(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        Self { timeline, number: lsn.0 / u64::from(size.bytes()) }
    }

    /// Its first byte, if positions reach that far.
    pub fn start(self, size: SegmentSize) -> Option<Lsn> {
        self.number.checked_mul(u64::from(size.bytes())).map(Lsn)
    }

    /// Its name: timeline, upper and lower part of the number. What a part counts depends on the size.
    pub fn name(self, size: SegmentSize) -> String {
        let each = per_part(size);
        format!("{:08X}{:08X}{:08X}", self.timeline, self.number / each, self.number % each)
    }
}

/// Segments in 4 GiB (`XLogSegmentsPerXLogId`).
fn per_part(size: SegmentSize) -> u64 {
    (1 << 32) / u64::from(size.bytes())
}

/// What can lie in an archive of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalFile {
    /// `000000010000000000000003`
    Segment(Segment),
    /// `000000010000000000000003.partial`: the last one of a timeline, which another has branched off from, or one that
    /// was still being received.
    Partial(Segment),
    /// `00000002.history`: where a timeline comes from.
    History(TimelineId),
    /// `000000010000000000000003.00000028.backup`: a base backup began at that byte of the segment.
    Backup(Segment, u32),
}

impl WalFile {
    /// Reads a name; none if it is none of these.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        let (first, rest) = name.split_at_checked(8)?;
        let timeline = part(first)?;
        if rest == ".history" {
            return Some(Self::History(timeline));
        }
        let (upper, rest) = rest.split_at_checked(8)?;
        let (lower, rest) = rest.split_at_checked(8)?;
        let (upper, lower) = (u64::from(part(upper)?), u64::from(part(lower)?));
        let each = per_part(size);
        if lower >= each {
            return None;
        }
        let segment = Segment { timeline, number: upper * each + lower };
        match rest {
            "" => Some(Self::Segment(segment)),
            ".partial" => Some(Self::Partial(segment)),
            _ => {
                let offset = part(rest.strip_prefix('.')?.strip_suffix(".backup")?)?;
                (offset < size.bytes()).then_some(Self::Backup(segment, offset))
            }
        }
    }

    /// Its name.
    pub fn name(self, size: SegmentSize) -> String {
        match self {
            Self::Segment(segment) => segment.name(size),
            Self::Partial(segment) => format!("{}.partial", segment.name(size)),
            Self::History(timeline) => format!("{timeline:08X}.history"),
            Self::Backup(segment, offset) => format!("{}.{offset:08X}.backup", segment.name(size)),
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} of timeline {}", self.number, self.timeline)
    }
}

/// Eight digits, as servers write them.
fn part(text: &str) -> Option<u32> {
    let digits = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    u32::from_str_radix(text, 16).ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_those_that_servers_give() {
        let size = SegmentSize::DEFAULT;
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        let segment = Segment::at(3, lsn, size);
        assert_eq!(segment.name(size), "0000000300000016000000B3");
        assert_eq!(segment.start(size), Some("16/B3000000".parse().unwrap()));
        // pg_walfile_name of a server with --wal-segsize=1
        let small = SegmentSize::new(1 << 20).unwrap();
        assert_eq!(Segment::at(1, lsn, small).name(small), "000000010000001600000B37");
        assert_eq!(WalFile::parse("00000002.history", size), Some(WalFile::History(2)));
        let partial = WalFile::Partial(Segment { timeline: 1, number: 3 });
        assert_eq!(WalFile::parse("000000010000000000000003.partial", size), Some(partial));
        let backup = WalFile::Backup(Segment { timeline: 1, number: 3 }, 0x28);
        assert_eq!(WalFile::parse("000000010000000000000003.00000028.backup", size), Some(backup));
    }

    #[test]
    fn other_names_are_none() {
        for name in [
            "",
            "0000000100000000000000",
            "000000010000000000000100",
            "00000001000000000000000a",
            "+00000010000000000000003",
            "000000010000000000000003.gz",
            "000000010000000000000003.0000002.backup",
            "000000010000000000000003.01000000.backup",
            "00000001.history.tmp",
            "0000001.history",
            "00000001000000000000000\u{e9}",
            "archive_status",
        ] {
            assert_eq!(WalFile::parse(name, SegmentSize::DEFAULT), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn names_lead_back(timeline: u32, lsn: u64, shift in 20_u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let segment = Segment::at(timeline, Lsn(lsn), size);
            for file in [WalFile::Segment(segment), WalFile::Partial(segment), WalFile::History(timeline), WalFile::Backup(segment, 7)] {
                prop_assert_eq!(WalFile::parse(&file.name(size), size), Some(file));
            }
        }
    }
}
