//! Reads the log as it comes, in pieces of any size.

use super::decode::{Decoder, is_housekeeping, is_switch};
use super::error::{Problem, WalError};
use super::event::{Counts, Event, Span, What};
use super::layout::{
    ALIGN, Expect, FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_PAGE_HEADER, PageHeader, RECORD_HEADER,
    RecordHeader, SHORT_PAGE_HEADER, Unknown, check_len, page_header_len, u32_at,
};
use crate::{Lsn, TimelineId};

/// A page's header on its way.
#[derive(Debug)]
struct HeaderBytes {
    bytes: [u8; LONG_PAGE_HEADER],
    have: usize,
}

/// The record that is being read.
#[derive(Debug, Default)]
struct Record {
    start: Lsn,
    head: [u8; RECORD_HEADER],
    /// Bytes that are there, of header and all.
    have: u32,
    /// Bytes of the whole record; 0 until they are known.
    len: u32,
    header: Option<RecordHeader>,
    /// Of what is behind the header: servers count it before the header, which is shorter.
    crc: u32,
    decoder: Option<Decoder>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Where nothing is known: until the next page begins.
    Lost,
    /// In the rest of a record that began before reading did.
    Rest { left: u32 },
    /// Where a record ends or begins.
    Between,
    /// In a record.
    Record,
    /// Between a record that ends the use of its segment and the segment's end.
    Unused,
    /// Where that end may be, as long as the size of segments is not known.
    Searching,
}

/// A stretch of the log, from where a reader began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it ends.
    pub end: Lsn,
    /// How many records end in it. One that began before reading did is among them.
    pub records: u64,
    /// How many of them a server writes by itself, whether anybody works with it or not: checkpoints, and lists of the
    /// transactions that run.
    pub housekeeping: u64,
}

/// A record whose rest is lost, and which another one has to own up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokenOff {
    No,
    At(Lsn),
    /// It began before reading did.
    Before,
}

/// Reads and verifies the log, and tells what is in it. Memory does not depend on the log: of a record no more is kept
/// than what is decoded.
///
/// After an error a reader gives the same again for whatever it is fed: what follows damage cannot be trusted to follow.
#[derive(Debug)]
pub struct WalReader {
    expect: Expect,
    position: Lsn,
    state: State,
    page: Option<HeaderBytes>,
    record: Record,
    /// Timeline of the last page.
    timeline: TimelineId,
    broken_off: BrokenOff,
    first: Option<Lsn>,
    last: Option<Span>,
    counts: Counts,
    unknown: Unknown,
    /// Pages of earlier timelines are none of the log.
    earliest: TimelineId,
    records: u64,
    housekeeping: u64,
    /// Up to the last place where a record ends, which may lie ahead; and up to the one before it.
    whole: Option<Extent>,
    before: Option<Extent>,
    failed: Option<WalError>,
}

impl WalReader {
    /// A reader from any position on. If that lies within a page, it reads from the next one; records that begin before
    /// it are passed over unverified.
    pub fn new(start: Lsn, expect: Expect) -> Self {
        let mut reader = Self {
            expect,
            position: start,
            state: State::Lost,
            page: None,
            record: Record::default(),
            timeline: 0,
            broken_off: BrokenOff::No,
            first: None,
            last: None,
            counts: Counts::default(),
            unknown: Unknown::default(),
            earliest: 0,
            records: 0,
            housekeeping: 0,
            whole: None,
            before: None,
            failed: None,
        };
        if !expect.block_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&expect.block_size) {
            reader.failed = Some(WalError { at: start, problem: Problem::NoBlockSize(expect.block_size) });
        }
        reader
    }

    /// A reader from a position where a record is known to begin, or the page that begins with it: one where another
    /// reader found the end of the record before.
    pub fn at_record(start: Lsn, expect: Expect) -> Self {
        let mut reader = Self::new(start, expect);
        reader.state = State::Between;
        reader.bound(start);
        let offset = reader.page_offset() as usize;
        if (offset != 0 && offset < SHORT_PAGE_HEADER) || !start.0.is_multiple_of(ALIGN) {
            reader.failed = reader.failed.or(Some(WalError { at: start, problem: Problem::NoStart }));
        }
        reader
    }

    /// A reader that goes on after the last record of another, which the first one here has to follow.
    pub fn after(last: Span, expect: Expect) -> Self {
        let mut reader = Self::at_record(last.end, expect);
        reader.last = Some(last);
        reader
    }

    /// A reader of a piece that begins with a record or a page, and of which nothing is known but its timeline: the version, the
    /// cluster and the size of its segments are what the first pages say. Pages have the usual size.
    pub fn of_piece(start: Lsn, timeline: TimelineId) -> Self {
        let expect = Expect::nothing(timeline);
        let offset = start.0 % u64::from(expect.block_size);
        let mut reader = if offset == 0 { Self::new(start, expect) } else { Self::at_record(start, expect) };
        reader.unknown = Unknown::all();
        reader
    }

    /// Where the next byte belongs.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Where the first record begins that was verified.
    pub fn first_record(&self) -> Option<Lsn> {
        self.first
    }

    /// The last record that was verified. The log is good up to its end, which for one that leaves its segment is the
    /// segment's, even before that was read.
    pub fn last_record(&self) -> Option<Span> {
        self.last
    }

    /// How many records were verified.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Up to where the log was read, in whole records and not.
    pub fn extent(&self) -> Extent {
        Extent { end: self.position, records: self.records, housekeeping: self.housekeeping }
    }

    /// Up to where it was read in whole records, padding and the unused rest of a segment included; none before the first
    /// place where a record ends or begins.
    pub fn whole(&self) -> Option<Extent> {
        self.whole.filter(|whole| whole.end <= self.position).or(self.before)
    }

    /// Whether it has come to no page yet: it began amid one, or in the unused rest of a segment.
    pub fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Goes on with a timeline that branches off here.
    pub fn follow(&mut self, timeline: TimelineId) {
        self.expect.timeline = timeline;
    }

    /// Goes on with pages of this timeline alone: what branches off from it was not written yet, and what it comes from lies
    /// before.
    pub fn only(&mut self, timeline: TimelineId) {
        (self.expect.timeline, self.earliest) = (timeline, timeline);
    }

    /// Reads on. `sink` gets everything that records tell which end in these bytes.
    ///
    /// # Errors
    /// The log is not the expected one, or damaged. What came before was given to `sink`.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut impl FnMut(Event)) -> Result<(), WalError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let result = self.read(bytes, sink);
        self.failed = result.err();
        result
    }

    fn read(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Event)) -> Result<(), WalError> {
        // up to a segment more is passed over at once
        let reach = bytes.len() as u64 + u64::from(self.expect.segment_size.bytes());
        if self.position.checked_add(reach).is_none() {
            return Err(WalError { at: self.position, problem: Problem::TooLong });
        }
        while !bytes.is_empty() {
            let offset = self.page_offset();
            let in_header = self.page.is_some() || (offset == 0 && !matches!(self.state, State::Unused));
            let taken = if in_header {
                self.read_page_header(bytes)?
            } else {
                let room = (self.expect.block_size - offset) as usize;
                self.read_page(bytes.get(..room).unwrap_or(bytes), sink)?
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    fn page_offset(&self) -> u32 {
        // less than the size of a page, which is 32 bits wide
        (self.position.0 & u64::from(self.expect.block_size.wrapping_sub(1))) as u32
    }

    fn passed(&mut self, bytes: usize) -> usize {
        self.position.0 += bytes as u64;
        bytes
    }

    fn read_page_header(&mut self, bytes: &[u8]) -> Result<usize, WalError> {
        let mut page = self.page.take().unwrap_or(HeaderBytes { bytes: [0; LONG_PAGE_HEADER], have: 0 });
        let start = Lsn(self.position.0 - page.have as u64);
        let short = page.bytes.first_chunk().filter(|_| page.have >= SHORT_PAGE_HEADER);
        let len = short.map_or(SHORT_PAGE_HEADER, page_header_len);
        let taken = fill(&mut page.bytes, &mut page.have, len, bytes);
        let short = page.bytes.first_chunk().filter(|_| page.have >= SHORT_PAGE_HEADER);
        match short.map(page_header_len) {
            Some(len) if page.have >= len => {
                let header = page.bytes.get(..len).unwrap_or_default();
                let wrong = |problem| WalError { at: start, problem };
                self.unknown.learn(header, start, &mut self.expect);
                if self.state == State::Searching && self.unknown.cluster {
                    // It is not the first page of a segment, if it is one at all.
                    self.state = State::Unused;
                    return Ok(self.passed(taken));
                }
                match PageHeader::parse(header, start, &self.expect) {
                    Ok(header) => {
                        if self.state == State::Lost && header.info & FIRST_IS_CONTRECORD == 0 {
                            self.bound(start);
                        }
                        self.begin_page(header).map_err(wrong)?;
                    }
                    // Reading began in the unused rest of a segment, which has no pages (CopyXLogRecordToWAL).
                    Err(Problem::NoRecord) if self.state == State::Lost && !self.begins_segment(start) => {}
                    Err(problem) => return Err(wrong(problem)),
                }
            }
            _ => self.page = Some(page),
        }
        Ok(self.passed(taken))
    }

    /// Checks that a page follows what came before.
    fn begin_page(&mut self, header: PageHeader) -> Result<(), Problem> {
        // A timeline's number is greater than that of the one it branches off from (findNewestTimeLine).
        let before = self.timeline.max(self.earliest);
        if header.timeline < before {
            return Err(Problem::TimelineBack { found: header.timeline, before });
        }
        if header.timeline > self.expect.timeline {
            return Err(Problem::TimelineAhead { found: header.timeline, followed: self.expect.timeline });
        }
        self.timeline = header.timeline;
        let continues = header.info & FIRST_IS_CONTRECORD != 0;
        let replaces = header.info & FIRST_IS_OVERWRITE_CONTRECORD != 0;
        let (record, left) = match self.state {
            State::Lost if continues => {
                self.state = State::Rest { left: header.remaining };
                return Ok(());
            }
            State::Lost | State::Between | State::Unused | State::Searching => {
                if continues || (replaces && self.state != State::Lost) {
                    return Err(Problem::UnexpectedContinuation);
                }
                if replaces {
                    self.broken_off = BrokenOff::Before;
                }
                self.state = State::Between;
                return Ok(());
            }
            State::Rest { left } => (None, left),
            // Records are aligned, so that their length is never cut by the end of a page.
            State::Record => (Some(self.record.start), self.record.len.saturating_sub(self.record.have)),
        };
        if replaces {
            self.broken_off = record.map_or(BrokenOff::Before, BrokenOff::At);
            self.state = State::Between;
            return Ok(());
        }
        if header.remaining == left {
            return Ok(());
        }
        Err(Problem::Continuation { record: record.unwrap_or(Lsn::INVALID), found: header.remaining, expected: left })
    }

    /// Reads from what is left of a page.
    fn read_page(&mut self, bytes: &[u8], sink: &mut impl FnMut(Event)) -> Result<usize, WalError> {
        match self.state {
            State::Lost => Ok(self.passed(bytes.len())),
            // Servers fill it with zeros, but after a crash it can hold what was in the file before; nobody reads it.
            State::Unused => {
                let taken = bytes.len().min(self.to_segment_end());
                if taken == self.to_segment_end() {
                    self.state = if self.unknown.cluster { State::Searching } else { State::Between };
                }
                Ok(self.passed(taken))
            }
            State::Rest { left } => {
                let taken = self.passed(bytes.len().min(left as usize));
                let left = left - taken as u32;
                self.state = State::Rest { left };
                if left == 0 {
                    self.state = State::Between;
                    self.records += 1;
                    self.bound(Lsn(self.position.0.next_multiple_of(ALIGN)));
                }
                Ok(taken)
            }
            State::Between | State::Searching => {
                let padding = self.position.0.wrapping_neg() % ALIGN;
                if padding > 0 {
                    return Ok(self.passed(bytes.len().min(padding as usize)));
                }
                self.record = Record { start: self.position, ..Record::default() };
                self.state = State::Record;
                self.read_record(bytes, sink)
            }
            State::Record => self.read_record(bytes, sink),
        }
    }

    fn begins_segment(&self, lsn: Lsn) -> bool {
        lsn.0.is_multiple_of(self.expect.segment_size.bytes().into())
    }

    /// Bytes from here to the end of the segment, or to where it may be at the earliest; none if that is here.
    fn to_segment_end(&self) -> usize {
        let size = if self.unknown.cluster { Unknown::SMALLEST_SEGMENT } else { self.expect.segment_size.bytes() };
        (self.position.0.wrapping_neg() & u64::from(size - 1)) as usize
    }

    /// A record ends at `end`, where what follows it begins.
    fn bound(&mut self, end: Lsn) {
        self.before = self.whole;
        self.whole = Some(Extent { end, ..self.extent() });
    }

    fn read_record(&mut self, bytes: &[u8], sink: &mut impl FnMut(Event)) -> Result<usize, WalError> {
        let start = self.record.start;
        let wrong = |problem| WalError { at: start, problem };
        let head = self.read_record_header(bytes).map_err(wrong)?;
        let record = &mut self.record;
        let left = record.len.saturating_sub(record.have) as usize;
        let rest = bytes.get(head..).unwrap_or_default();
        let body = rest.get(..left).unwrap_or(rest);
        if record.header.is_some() {
            record.crc = crc32c::crc32c_append(record.crc, body);
            if let Some(decoder) = &mut record.decoder {
                decoder.take(body);
            }
            record.have += body.len() as u32;
        }
        let taken = self.passed(head + body.len());
        if self.record.header.is_some() && self.record.have == self.record.len {
            self.end_record(sink).map_err(wrong)?;
        }
        Ok(taken)
    }

    /// Reads what is missing of the header, and checks it as soon as that is possible.
    fn read_record_header(&mut self, bytes: &[u8]) -> Result<usize, Problem> {
        let record = &mut self.record;
        if record.header.is_some() {
            return Ok(0);
        }
        let mut have = record.have as usize;
        let taken = fill(&mut record.head, &mut have, RECORD_HEADER, bytes);
        record.have = have as u32;
        if record.len == 0 && have >= 4 {
            record.len = u32_at(&record.head, 0).unwrap_or_default();
            check_len(record.len)?;
        }
        if have < RECORD_HEADER {
            return Ok(taken);
        }
        let header = RecordHeader::parse(&record.head);
        if !self.expect.version.has_manager(header.manager) {
            return Err(Problem::ResourceManager(header.manager));
        }
        match self.last {
            Some(last) if last.start != header.prev => {
                return Err(Problem::PreviousRecord { found: header.prev, expected: last.start });
            }
            None if header.prev >= record.start => return Err(Problem::PreviousAhead(header.prev)),
            _ => {}
        }
        record.header = Some(header);
        record.decoder = Decoder::new(&header, u64::from(header.len) - RECORD_HEADER as u64, self.expect.version);
        Ok(taken)
    }

    fn end_record(&mut self, sink: &mut impl FnMut(Event)) -> Result<(), Problem> {
        let Some(header) = self.record.header.take() else { return Ok(()) };
        let before_crc = self.record.head.get(..RECORD_HEADER - 4).unwrap_or_default();
        if crc32c::crc32c_append(self.record.crc, before_crc) != header.crc {
            return Err(Problem::Checksum);
        }
        self.state = State::Between;
        let mut end = Lsn(self.position.0.next_multiple_of(ALIGN));
        if is_switch(&header) {
            let unused = self.to_segment_end();
            end = Lsn(self.position.0 + unused as u64);
            if unused > 0 {
                self.state = State::Unused;
            } else if self.unknown.cluster {
                self.state = State::Searching;
            }
        }
        let span = Span { start: self.record.start, end };
        let event = match self.record.decoder.take() {
            Some(decoder) => Some(Event { span, what: decoder.finish().ok_or(Problem::Unreadable)? }),
            None => None,
        };
        self.check_replacement(event.as_ref().map(|event| &event.what))?;
        self.first = self.first.or(Some(span.start));
        self.last = Some(span);
        self.counts.add(header.manager);
        self.records += 1;
        self.housekeeping += u64::from(is_housekeeping(&header));
        self.bound(end);
        if let Some(event) = event {
            sink(event);
        }
        Ok(())
    }

    /// The first record after one that was broken off, and no other, names that one (`VerifyOverwriteContrecord`).
    fn check_replacement(&mut self, what: Option<&What>) -> Result<(), Problem> {
        let found = match what {
            Some(What::OverwriteContrecord { overwritten, .. }) => Some(*overwritten),
            _ => None,
        };
        match (std::mem::replace(&mut self.broken_off, BrokenOff::No), found) {
            (BrokenOff::No, None) | (BrokenOff::Before, Some(_)) => Ok(()),
            (BrokenOff::At(record), Some(found)) if record == found => Ok(()),
            (BrokenOff::At(expected), found) => {
                Err(Problem::Overwritten { found: found.unwrap_or(Lsn::INVALID), expected })
            }
            (_, found) => Err(Problem::Overwritten { found: found.unwrap_or(Lsn::INVALID), expected: Lsn::INVALID }),
        }
    }
}

/// Appends to `buffer` up to `len` bytes in all, and tells how many were taken.
fn fill(buffer: &mut [u8], have: &mut usize, len: usize, bytes: &[u8]) -> usize {
    let missing = buffer.get_mut(*have..len).unwrap_or_default();
    let taken = missing.len().min(bytes.len());
    for (to, from) in missing.iter_mut().zip(bytes) {
        *to = *from;
    }
    *have += taken;
    taken
}
