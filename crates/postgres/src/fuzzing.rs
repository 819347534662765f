//! What fuzz targets need of logs and bases, without a server. Not for anything else.

use hindsight_engine::{EngineError, Result};
use sha2::{Digest as _, Sha256};

use crate::Lsn;
use crate::base::StoredBase;
use crate::wal::{Expect, SegmentSize, Version};

/// Bytes of a segment of a log that is made up: the fewest that one can have.
const SEGMENT: u64 = 1 << 20;
const PAGE: u64 = 8192;

/// What a log that is made up is like.
///
/// # Errors
/// None: there are such segments.
pub fn expect(version: Version) -> Result<Expect> {
    let segment_size = SegmentSize::new(SEGMENT as u32).ok_or_else(|| EngineError::damaged("no such segments"))?;
    Ok(Expect { system_identifier: 7, version, timeline: 1, segment_size, block_size: PAGE as u32 })
}

/// A log that is made up.
#[derive(Debug)]
pub struct MadeUp {
    version: Version,
    /// Where it begins.
    pub start: Lsn,
    /// All of it.
    pub bytes: Vec<u8>,
    /// How many records it has.
    pub records: u64,
    previous: u64,
}

impl MadeUp {
    /// One that begins with a segment.
    pub fn new(version: Version) -> Self {
        Self { version, start: Lsn(SEGMENT), bytes: Vec::new(), records: 0, previous: 0 }
    }

    fn position(&self) -> u64 {
        self.start.0 + self.bytes.len() as u64
    }

    /// Where it ends.
    pub fn end(&self) -> Lsn {
        Lsn(self.position())
    }

    /// Writes a record as a server does, with any contents.
    pub fn record(&mut self, manager: u8, info: u8, body: &[u8]) {
        if self.position().is_multiple_of(PAGE) {
            self.page(0);
        }
        let mut record = (24 + body.len() as u32).to_le_bytes().to_vec();
        record.extend_from_slice(&7_u32.to_le_bytes());
        record.extend_from_slice(&self.previous.to_le_bytes());
        record.extend_from_slice(&[info, manager, 0, 0]);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&checksum.to_le_bytes());
        record.extend_from_slice(body);
        self.previous = self.position();
        self.records += 1;
        let mut rest = record.as_slice();
        loop {
            let room = PAGE - self.position() % PAGE;
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            self.bytes.extend_from_slice(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
            self.page(rest.len() as u32);
        }
        // The rest of its segment is not used after a switch.
        let until = if (manager, info & 0xF0) == (0, 0x40) { SEGMENT } else { 8 };
        let padding = self.position().next_multiple_of(until) - self.position();
        self.bytes.resize(self.bytes.len() + padding as usize, 0);
    }

    fn page(&mut self, remaining: u32) {
        let at = self.position();
        let long = at.is_multiple_of(SEGMENT);
        let flags = u16::from(remaining > 0) | if long { 2 } else { 0 };
        let mut header = self.version.magic().to_le_bytes().to_vec();
        header.extend_from_slice(&flags.to_le_bytes());
        header.extend_from_slice(&1_u32.to_le_bytes());
        header.extend_from_slice(&at.to_le_bytes());
        header.extend_from_slice(&remaining.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        if long {
            header.extend_from_slice(&7_u64.to_le_bytes());
            header.extend_from_slice(&(SEGMENT as u32).to_le_bytes());
            header.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
        self.bytes.extend_from_slice(&header);
    }
}

/// A manifest with a right checksum over whatever it holds.
pub fn sealed_manifest(text: &[u8]) -> Vec<u8> {
    let lines = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = text.get(..lines).unwrap_or_default();
    let checksum: String = Sha256::digest(lines).iter().map(|byte| format!("{byte:02x}")).collect();
    [lines, format!("\"Manifest-Checksum\": \"{checksum}\"}}\n").as_bytes()].concat()
}

/// Reads the catalog of a base, and writes it again.
///
/// # Errors
/// It is none.
pub fn base_again(json: &[u8]) -> Result<Vec<u8>> {
    let damaged = |error: serde_json::Error| EngineError::damaged(error.to_string());
    let base: StoredBase = serde_json::from_slice(json).map_err(damaged)?;
    base.expect(base.timeline);
    if let Ok(history) = base.history() {
        history.at(base.stop);
    }
    serde_json::to_vec(&base).map_err(damaged)
}
