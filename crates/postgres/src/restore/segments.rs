//! Files of the log, made of what is stored of it. No I/O.
//!
//! A server that recovers asks for segments and history files by their names. Slices hold the bytes of the log from one
//! position to another, across switches of timelines; which of them make up a segment is only a matter of positions.

use std::collections::BTreeSet;
use std::ops::Range;

use hindsight_format::{FrameEntry, PositionError, SliceName};
use thiserror::Error;

use crate::wal::{Expect, History, Segment, WalFile};
use crate::{Lsn, TimelineId, of_point};

/// `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD` (xlog_internal.h).
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// Stored log that cannot be given to a server.
#[derive(Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SegmentsError {
    /// A slice of something else.
    #[error(transparent)]
    Position(#[from] PositionError),
    /// A slice whose frames do not fit its name.
    #[error("the frames of the slice {0} do not fit its name")]
    Frames(Box<SliceName>),
    /// No slices.
    #[error("there is no log to recover from")]
    Empty,
    /// Slices that do not meet.
    #[error("the log from {from} to {to} is missing")]
    Gap {
        /// Where the slice before ends.
        from: Lsn,
        /// Where the next one begins.
        to: Lsn,
    },
    /// A slice of another history than those before it, or than the base.
    #[error("the log at {at} is of timeline {timeline}, which is not the history that leads there")]
    Story {
        /// Where its part on that timeline begins.
        at: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
    /// A cut beyond what is stored.
    #[error("the log is stored from {start} to {end}, and cannot be cut at {cut}")]
    Cut {
        /// The cut.
        cut: Lsn,
        /// Where the first slice begins.
        start: Lsn,
        /// Where the last one ends.
        end: Lsn,
    },
}

/// A slice of the log: raw bytes from a position on, and the timelines that they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSlice {
    start: Lsn,
    /// How many bytes are of which timeline, in their order.
    runs: Vec<(TimelineId, u64)>,
}

impl LogSlice {
    /// From its name alone; none if it may cross from one timeline to another, so that its frames have to be known.
    ///
    /// # Errors
    /// It is no slice of a PostgreSQL log.
    pub fn by_name(name: &SliceName) -> Result<Option<Self>, SegmentsError> {
        let ((start, before), (end, timeline)) = (of_point(&name.start)?, of_point(&name.end)?);
        let bytes = end.since(start).ok_or_else(|| SegmentsError::Frames(name.clone().into()))?;
        // Timelines only grow, so none can lie between.
        Ok((before == timeline).then(|| Self { start, runs: vec![(timeline, bytes)] }))
    }

    /// From its name and the frames that its footer names, each of which is of one timeline.
    ///
    /// # Errors
    /// It is no slice of a PostgreSQL log, or not the one that its name says.
    pub fn by_frames(name: &SliceName, frames: &[FrameEntry]) -> Result<Self, SegmentsError> {
        let ((start, before), (end, last)) = (of_point(&name.start)?, of_point(&name.end)?);
        let mut runs: Vec<(TimelineId, u64)> = Vec::new();
        let (mut at, mut present) = (start, before);
        for frame in frames {
            let bytes = u64::from(frame.raw_len);
            let next = at.checked_add(bytes).filter(|_| frame.segment >= present);
            (at, present) = (next.ok_or_else(|| SegmentsError::Frames(name.clone().into()))?, frame.segment);
            match runs.last_mut() {
                Some((timeline, run)) if *timeline == present => *run += bytes,
                _ => runs.push((present, bytes)),
            }
        }
        if (at, present) == (end, last) {
            Ok(Self { start, runs })
        } else {
            Err(SegmentsError::Frames(name.clone().into()))
        }
    }
}

/// Some of the bytes of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Stored ones.
    Stored {
        /// In which slice, by its place among those that were given.
        slice: usize,
        /// Which of its raw bytes.
        bytes: Range<u64>,
    },
    /// So many zeros.
    Zeros(u64),
    /// These: the header of a page that nothing is stored of before the log begins.
    Made(Vec<u8>),
}

/// What a server gets that asks for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A segment, of these pieces in their order.
    Segment(Vec<Piece>),
    /// A history file.
    History(String),
    /// There is no such file.
    Nothing,
}

/// Bytes of the log that lie in one slice.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: Lsn,
    end: Lsn,
    slice: usize,
    /// Of its first byte in the slice.
    offset: u64,
}

/// The log that a server recovers from: all of it that is stored, up to where it is cut.
#[derive(Clone, Debug)]
pub struct Segments {
    /// In order, each beginning where the one before ends; at least one.
    runs: Vec<Run>,
    first: Lsn,
    cut: Lsn,
    history: History,
    taken: BTreeSet<TimelineId>,
    expect: Expect,
    size: u64,
    block: u64,
}

impl Segments {
    /// Of slices in their order, which may overlap, and the history of the timeline that the base was taken on. After
    /// `cut` there is nothing. What clusters and servers it is for is said by `expect`, but not the timeline.
    ///
    /// # Errors
    /// The slices do not make up one log, or it does not reach the cut.
    pub fn new(slices: &[LogSlice], base: &History, cut: Lsn, expect: Expect) -> Result<Self, SegmentsError> {
        let (mut runs, mut history) = (Vec::<Run>::new(), base.clone());
        for (index, slice) in slices.iter().enumerate() {
            let mut start = slice.start;
            for (timeline, bytes) in slice.runs.iter().copied().filter(|(_, bytes)| *bytes > 0) {
                let wrong = SegmentsError::Story { at: start, timeline };
                let end = start.checked_add(bytes);
                let Some((end, longer)) = end.and_then(|end| Some((end, follow(&history, timeline, start, end)?)))
                else {
                    return Err(wrong);
                };
                history = longer;
                let covered = runs.last().map_or(start, |run| run.end);
                if start > covered {
                    return Err(SegmentsError::Gap { from: covered, to: start });
                }
                if end > covered {
                    let offset = covered.0 - slice.start.0;
                    runs.push(Run { start: covered, end, slice: index, offset });
                }
                start = end;
            }
        }
        let (first, last) = runs.first().zip(runs.last()).ok_or(SegmentsError::Empty)?;
        let (start, end) = (first.start, last.end);
        if cut <= start || cut > end {
            return Err(SegmentsError::Cut { cut, start, end });
        }
        let (size, block) = (u64::from(expect.segment_size.bytes()), u64::from(expect.block_size));
        Ok(Self { runs, first: start, cut, history, taken: BTreeSet::new(), expect, size, block })
    }

    /// The timeline of the byte before the cut: the one to recover along (`recovery_target_timeline`).
    pub fn timeline(&self) -> TimelineId {
        self.history.at(Lsn(self.cut.0 - 1))
    }

    /// The history of all that is stored, which may go on after the cut.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The first position that is stored.
    pub fn start(&self) -> Lsn {
        self.first
    }

    /// What it has to be like, on the last of its timelines.
    pub fn expect(&self) -> Expect {
        Expect { timeline: self.history.timeline(), ..self.expect }
    }

    /// Where the log is cut.
    pub fn cut(&self) -> Lsn {
        self.cut
    }

    /// The parts from a position to the cut, each with the slice that it is stored in, and where in that it begins.
    pub(crate) fn runs(&self, from: Lsn) -> impl Iterator<Item = (usize, u64, Range<Lsn>)> {
        let within = self.runs.iter().map(move |run| {
            let start = run.start.max(from);
            (run.slice, run.offset + (start.0 - run.start.0), start..run.end.min(self.cut))
        });
        within.filter(|(_, _, part)| part.start < part.end)
    }

    /// The stored bytes of a part of the log that lies within it, in their order.
    pub fn stored(&self, part: Range<Lsn>) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = part.start.max(self.first);
        let from = self.runs.partition_point(|run| run.end <= at);
        for run in self.runs.iter().skip(from).take_while(|run| run.start < part.end) {
            let to = run.end.min(part.end);
            let offset = run.offset + (at.0 - run.start.0);
            let bytes = offset..offset + (to.0 - at.0);
            match pieces.last_mut() {
                Some(Piece::Stored { slice, bytes: before }) if *slice == run.slice && before.end == bytes.start => {
                    before.end = bytes.end;
                }
                _ => pieces.push(Piece::Stored { slice: run.slice, bytes }),
            }
            at = to;
        }
        pieces
    }

    /// The segment of a number that a server asks for first: that of the newest timeline that has begun before its end, or
    /// before the cut (`XLogFileReadAnyTLI`). None from the cut on.
    pub fn newest(&self, number: u64) -> Option<Segment> {
        let start = number.checked_mul(self.size)?;
        let end = start.checked_add(self.size)?.min(self.cut.0);
        (start < end).then(|| Segment { timeline: self.history.at(Lsn(end - 1)), number })
    }

    /// Says which other timelines there are: a server that ends its recovery takes the first number after its target's that it
    /// gets no history file for (`findNewestTimeLine`), and must not take one of theirs.
    pub fn taken(&mut self, timelines: impl IntoIterator<Item = TimelineId>) {
        self.taken.extend(timelines);
    }

    /// Those other timelines.
    pub fn others(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.taken.iter().copied()
    }

    /// What a server gets that asks for a file.
    pub fn wants(&self, name: &str) -> Wanted {
        match WalFile::parse(name, self.expect.segment_size) {
            Some(WalFile::Segment(segment)) => self.segment(segment).map_or(Wanted::Nothing, Wanted::Segment),
            Some(WalFile::History(timeline)) => match self.history.of(timeline) {
                // The first has none.
                _ if timeline <= 1 => Wanted::Nothing,
                Some(history) => Wanted::History(history.to_string()),
                None if self.taken.contains(&timeline) => {
                    Wanted::History(format!("# timeline {timeline} is another one of this cluster\n"))
                }
                None => Wanted::Nothing,
            },
            _ => Wanted::Nothing,
        }
    }

    /// The pieces of a segment. Up to where its timeline begins they are those of the timelines that it comes from, as a
    /// server has it that begins a timeline (`XLogInitNewTimeline`); after its end, and after the cut, there are zeros.
    fn segment(&self, segment: Segment) -> Option<Vec<Piece>> {
        let (begin, left) = self.history.range(segment.timeline)?;
        let start = Lsn(segment.number.checked_mul(self.size)?);
        let end = start.checked_add(self.size)?;
        let until = left.unwrap_or(self.cut).min(self.cut).min(end);
        // A timeline that has nothing before the cut, or not yet in this segment, has no file of it.
        if begin >= until || until <= start || until <= self.first {
            return None;
        }
        let mut pieces = if start < self.first { self.lead(start) } else { Vec::new() };
        pieces.extend(self.stored(start..until));
        if until < end {
            pieces.push(Piece::Zeros(end.0 - until.0));
        }
        Some(pieces)
    }

    /// What stands before the first stored byte in its segment. Servers read the header of a segment's first page, and that of
    /// the page that they begin in, before they look for a record (`ReadPageInternal`, xlogreader.c); nothing else of it.
    fn lead(&self, start: Lsn) -> Vec<Piece> {
        let page = self.first.0 - (self.first.0 - start.0) % self.block;
        let mut pieces = Vec::new();
        let mut at = start.0;
        for (place, len) in [(start.0, LONG_HEADER), (page, SHORT_HEADER)] {
            // A page that is stored from its beginning on has its own.
            if place < at || place + len > self.first.0 {
                continue;
            }
            if place > at {
                pieces.push(Piece::Zeros(place - at));
            }
            pieces.push(Piece::Made(self.header(Lsn(place), len == LONG_HEADER)));
            at = place + len;
        }
        if at < self.first.0 {
            pieces.push(Piece::Zeros(self.first.0 - at));
        }
        pieces
    }

    /// `XLogPageHeaderData` and `XLogLongPageHeaderData`, of a page that continues no record.
    fn header(&self, at: Lsn, long: bool) -> Vec<u8> {
        const XLP_LONG_HEADER: u16 = 0x0002;
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&self.expect.version.magic().to_le_bytes());
        bytes.extend_from_slice(&(if long { XLP_LONG_HEADER } else { 0 }).to_le_bytes());
        bytes.extend_from_slice(&self.history.at(at).to_le_bytes());
        bytes.extend_from_slice(&at.0.to_le_bytes());
        // xlp_rem_len, and what aligns the next field
        bytes.extend_from_slice(&[0; 8]);
        if long {
            bytes.extend_from_slice(&self.expect.system_identifier.to_le_bytes());
            bytes.extend_from_slice(&self.expect.segment_size.bytes().to_le_bytes());
            bytes.extend_from_slice(&self.expect.block_size.to_le_bytes());
        }
        bytes
    }
}

/// The history that log of a timeline belongs to: the same one, if it has the timeline there, or one that goes on with it.
fn follow(history: &History, timeline: TimelineId, start: Lsn, end: Lsn) -> Option<History> {
    if timeline > history.timeline() {
        return history.branched(start, timeline, "as the log was stored");
    }
    let (begin, left) = history.range(timeline)?;
    (start >= begin && left.is_none_or(|left| end <= left)).then(|| history.clone())
}

#[cfg(test)]
mod tests;
