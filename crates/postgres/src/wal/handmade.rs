//! A log made by hand, for tests.

use super::event::Span;
use super::layout::{Expect, SegmentSize, Version};
use crate::Lsn;

pub(super) const SYSTEM: u64 = 7_000_000_000_000_000_001;
pub(super) const BLOCK: u64 = 8192;
pub(super) const SEGMENT: u64 = 1 << 20;

pub(super) fn expect() -> Expect {
    Expect {
        system_identifier: SYSTEM,
        version: Version::V15,
        timeline: 1,
        segment_size: SegmentSize::new(SEGMENT as u32).unwrap(),
        block_size: BLOCK as u32,
    }
}

/// Writes records as a server does.
pub(super) struct Maker {
    pub version: Version,
    pub timeline: u32,
    pub start: Lsn,
    pub bytes: Vec<u8>,
    /// Where the last record begins.
    pub prev: u64,
}

/// What precedes a record's own data.
pub(super) fn with_len(data: &[u8]) -> Vec<u8> {
    let mut body = match u8::try_from(data.len()) {
        Ok(len) => vec![255, len],
        Err(_) => [vec![254], (data.len() as u32).to_le_bytes().to_vec()].concat(),
    };
    body.extend_from_slice(data);
    body
}

impl Maker {
    pub fn new(start: u64) -> Self {
        Self { version: Version::V15, timeline: 1, start: Lsn(start), bytes: Vec::new(), prev: 0 }
    }

    pub fn position(&self) -> u64 {
        self.start.0 + self.bytes.len() as u64
    }

    pub fn page_header(&mut self, mut flags: u16, remaining: u32) {
        let at = self.position();
        assert_eq!(at % BLOCK, 0);
        let long = at.is_multiple_of(SEGMENT);
        flags |= if long { 2 } else { 0 };
        self.put(&self.version.magic().to_le_bytes());
        self.put(&flags.to_le_bytes());
        self.put(&self.timeline.to_le_bytes());
        self.put(&at.to_le_bytes());
        self.put(&remaining.to_le_bytes());
        self.put(&[0; 4]);
        if long {
            self.put(&SYSTEM.to_le_bytes());
            self.put(&(SEGMENT as u32).to_le_bytes());
            self.put(&(BLOCK as u32).to_le_bytes());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A record without what breaks it into pages.
    pub fn encode(&self, manager: u8, info: u8, xid: u32, body: &[u8]) -> Vec<u8> {
        let mut record = (24 + body.len() as u32).to_le_bytes().to_vec();
        record.extend_from_slice(&xid.to_le_bytes());
        record.extend_from_slice(&self.prev.to_le_bytes());
        record.extend_from_slice(&[info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(body);
        record
    }

    /// Begins a page if one has to begin.
    pub fn begin(&mut self) {
        if self.position().is_multiple_of(BLOCK) {
            self.page_header(0, 0);
        }
    }

    /// Writes as much of a record as `pages` pages hold; gives what is left.
    pub fn write<'a>(&mut self, mut record: &'a [u8], pages: usize) -> &'a [u8] {
        for page in 0..pages {
            if page > 0 && !record.is_empty() {
                self.page_header(1, record.len() as u32);
            }
            let room = (BLOCK - self.position() % BLOCK) as usize;
            let (now, later) = record.split_at(room.min(record.len()));
            self.put(now);
            record = later;
            if record.is_empty() {
                break;
            }
        }
        record
    }

    pub fn record(&mut self, manager: u8, info: u8, xid: u32, body: &[u8]) -> Span {
        self.begin();
        let start = self.position();
        let record = self.encode(manager, info, xid, body);
        assert!(self.write(&record, usize::MAX).is_empty());
        while !self.position().is_multiple_of(8) {
            self.put(&[0]);
        }
        self.prev = start;
        Span { start: Lsn(start), end: Lsn(self.position()) }
    }

    /// A record of a kind that is only counted.
    pub fn filler(&mut self, len: usize) -> Span {
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        self.record(10, 0, 700, &with_len(&data))
    }

    pub fn commit(&mut self, xid: u32, micros: i64) -> Span {
        self.record(1, 0, xid, &with_len(&micros.to_le_bytes()))
    }

    pub fn switch(&mut self) -> Span {
        let Span { start, .. } = self.record(0, 0x40, 0, &[]);
        while !self.position().is_multiple_of(SEGMENT) {
            self.put(&[0]);
        }
        Span { start, end: Lsn(self.position()) }
    }

    /// A record whose rest a crash took, and the page with which the log goes on; gives where it began.
    pub fn break_off(&mut self, len: usize, pages: usize) -> Lsn {
        self.begin();
        let start = self.position();
        let record = self.encode(10, 0, 700, &vec![1; len]);
        assert!(!self.write(&record, pages).is_empty());
        self.page_header(8, 0);
        Lsn(start)
    }

    pub fn overwrite(&mut self, overwritten: Lsn) -> Span {
        let data = [overwritten.0.to_le_bytes(), 5_i64.to_le_bytes()].concat();
        self.record(0, 0xD0, 0, &with_len(&data))
    }
}
