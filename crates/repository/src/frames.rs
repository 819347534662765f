//! The bytes of a framed object, which is a valid zstd file: `zstd -d` alone gives the raw bytes.
//!
//! ```text
//! skippable zstd frame 0x184D2A50: "HINDSGHT", format (u32), kind (u32)
//! independent zstd frames, each with content size and checksum
//! skippable zstd frame 0x184D2A51: footer (JSON), its length (u32), its CRC-32 (u32), "HNDF"
//! ```
//! All numbers are little-endian. Skippable frames are part of the zstd format (RFC 8878, 3.1.2).

use std::cell::RefCell;

use bytes::Bytes;
use hindsight_format::{FORMAT_VERSION, Footer, FrameEntry, ObjectKind, SEALED_SUFFIX};

use crate::error::{Error, Result};

/// Raw bytes after which a frame should be closed.
pub const FRAME_TARGET: usize = 4 << 20;
/// Most raw bytes that a frame may hold; a reader allocates no more than this for a frame.
pub const MAX_FRAME_RAW: usize = 64 << 20;
/// Largest footer that a reader accepts: about a million frames.
const MAX_FOOTER: usize = 256 << 20;

const HEADER_SKIPPABLE: u32 = 0x184D_2A50;
const FOOTER_SKIPPABLE: u32 = 0x184D_2A51;
const HEADER_MAGIC: &[u8; 8] = b"HINDSGHT";
const FOOTER_MAGIC: &[u8; 4] = b"HNDF";
/// Length of the header with its skippable frame.
pub(crate) const HEADER_LEN: usize = 24;
/// What follows the footer's JSON: length, CRC-32, magic.
const TRAILER_LEN: usize = 12;
const SKIPPABLE_LEN: usize = 8;

/// A compressed frame that is ready to be stored.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    pub(crate) stored: Bytes,
    pub(crate) entry: FrameEntry,
}

impl EncodedFrame {
    /// Bytes that the frame takes in the object.
    pub fn stored_len(&self) -> usize {
        self.stored.len()
    }

    /// Bytes before compression.
    pub fn raw_len(&self) -> usize {
        self.entry.raw_len as usize
    }

    /// A frame that was read, to be stored again as it is.
    pub(crate) fn copied(entry: FrameEntry, stored: Bytes) -> Self {
        Self { stored, entry }
    }
}

thread_local! {
    /// A compression context takes longer to make than a small frame takes to compress.
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

struct Compressor {
    level: i32,
    zstd: zstd::bulk::Compressor<'static>,
    /// Large enough for what does not compress: a frame that waits to be stored should not take so much.
    out: Vec<u8>,
}

/// Compresses `raw` to a frame of its own. This is work for the processor: call it where blocking
/// is allowed. `segment` is the scan or the part of a log it belongs to, 0 where there is none.
pub fn encode_frame(raw: &[u8], level: i32, segment: u32) -> Result<EncodedFrame> {
    if raw.len() > MAX_FRAME_RAW {
        return Err(Error::Refused(format!(
            "a frame of {} bytes is larger than a repository takes ({MAX_FRAME_RAW})",
            raw.len()
        )));
    }
    let stored = compress(raw, level).map_err(|error| Error::Refused(format!("compression failed: {error}")))?;
    let entry = FrameEntry {
        stored_len: small(stored.len())?,
        raw_len: small(raw.len())?,
        crc32: crc32fast::hash(&stored),
        segment,
    };
    Ok(EncodedFrame { stored, entry })
}

fn small(length: usize) -> Result<u32> {
    u32::try_from(length).map_err(|_| Error::Refused(format!("a frame of {length} bytes is too large")))
}

fn compress(raw: &[u8], level: i32) -> std::io::Result<Bytes> {
    COMPRESSOR.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|kept| kept.level != level) {
            let mut zstd = zstd::bulk::Compressor::new(level)?;
            zstd.include_checksum(true)?;
            zstd.include_contentsize(true)?;
            let out = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_TARGET));
            *kept = Some(Compressor { level, zstd, out });
        }
        let Some(Compressor { zstd, out, .. }) = kept else { return Err(std::io::Error::other("no compressor")) };
        out.clear();
        let bound = zstd::zstd_safe::compress_bound(raw.len());
        if out.capacity() < bound {
            // Growing would copy what is in it.
            *out = Vec::with_capacity(bound);
        }
        zstd.compress_to_buffer(raw, out)?;
        Ok(Bytes::copy_from_slice(out))
    })
}

fn decompress(stored: &[u8], raw_len: usize) -> std::io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(zstd) => zstd.decompress(stored, raw_len),
        none => none.insert(zstd::bulk::Decompressor::new()?).decompress(stored, raw_len),
    })
}

/// Checks a stored frame against its entry; `offset` is where it begins, for the error.
pub(crate) fn verify_frame(key: &str, offset: u64, entry: &FrameEntry, stored: &[u8]) -> Result<()> {
    if stored.len() != entry.stored_len as usize {
        let why = format!("the frame at byte {offset} should have {} bytes, got {}", entry.stored_len, stored.len());
        return Err(Error::damaged(key, why));
    }
    if crc32fast::hash(stored) != entry.crc32 {
        let why = format!("the frame at byte {offset} ({} bytes) does not match its checksum", stored.len());
        return Err(Error::damaged(key, why));
    }
    Ok(())
}

/// Decompresses a verified frame. Blocking work.
pub(crate) fn decode_frame(key: &str, offset: u64, entry: &FrameEntry, stored: &[u8]) -> Result<Bytes> {
    let raw_len = entry.raw_len as usize;
    let bad = |why: String| Error::damaged(key, format!("the frame at byte {offset} cannot be decompressed: {why}"));
    if raw_len > MAX_FRAME_RAW {
        return Err(bad(format!("it claims {raw_len} bytes")));
    }
    let raw = decompress(stored, raw_len).map_err(|error| bad(error.to_string()))?;
    if raw.len() != raw_len {
        return Err(bad(format!("it gives {} bytes instead of {raw_len}", raw.len())));
    }
    Ok(raw.into())
}

fn kind_number(kind: ObjectKind) -> u32 {
    match kind {
        ObjectKind::Data => 1,
        ObjectKind::Catalog => 2,
        ObjectKind::Slice => 3,
    }
}

/// The header of an object of this kind.
pub(crate) fn header(kind: ObjectKind, format: u32) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    let parts = HEADER_SKIPPABLE
        .to_le_bytes()
        .into_iter()
        .chain(16_u32.to_le_bytes())
        .chain(*HEADER_MAGIC)
        .chain(format.to_le_bytes())
        .chain(kind_number(kind).to_le_bytes());
    for (place, byte) in bytes.iter_mut().zip(parts) {
        *place = byte;
    }
    bytes
}

/// Checks the first bytes of an object.
pub(crate) fn verify_header(key: &str, footer: &Footer, start: &[u8]) -> Result<()> {
    if start.get(..HEADER_LEN) == Some(header(footer.kind, footer.format).as_slice()) {
        Ok(())
    } else {
        Err(Error::damaged(key, "its header at byte 0 is not that of the object its footer describes"))
    }
}

/// The footer as stored, and its BLAKE3 in hex.
pub(crate) fn encode_footer(footer: &Footer) -> Result<(Vec<u8>, String)> {
    let json = serde_json::to_vec(footer)
        .map_err(|error| Error::Refused(format!("the footer of {} cannot be written: {error}", footer.key)))?;
    if json.len() > MAX_FOOTER {
        return Err(Error::Refused(format!("{} has too many frames ({})", footer.key, footer.frames.len())));
    }
    let hash = blake3::hash(&json).to_hex().to_string();
    Ok((encode_footer_json(&json)?, hash))
}

/// The end of an object whose footer is `json`.
pub(crate) fn encode_footer_json(json: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(json.len() + SKIPPABLE_LEN + TRAILER_LEN);
    bytes.extend(FOOTER_SKIPPABLE.to_le_bytes());
    bytes.extend(small(json.len() + TRAILER_LEN)?.to_le_bytes());
    bytes.extend(json);
    bytes.extend(small(json.len())?.to_le_bytes());
    bytes.extend(crc32fast::hash(json).to_le_bytes());
    bytes.extend(FOOTER_MAGIC);
    Ok(bytes)
}

/// What the end of an object tells.
#[derive(Debug)]
pub(crate) enum Tail {
    /// The footer is longer than what was given: this many bytes from the end are needed.
    NeedsMore(u64),
    /// The footer, verified.
    Found(Box<Layout>),
}

/// A verified footer with what follows from it.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) footer: Footer,
    pub(crate) footer_blake3: String,
    /// Where each frame begins.
    pub(crate) offsets: Vec<u64>,
    pub(crate) raw_bytes: u64,
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// Reads the last bytes of an object of `size` bytes. Never trusts a length it finds.
pub(crate) fn parse_tail(key: &str, size: u64, tail: &[u8]) -> Result<Tail> {
    let bad = |why: String| Error::damaged(key, why);
    let smallest = (HEADER_LEN + SKIPPABLE_LEN + TRAILER_LEN) as u64;
    if size < smallest {
        return Err(bad(format!("it has only {size} bytes: it is empty or was cut off")));
    }
    let end = tail.len();
    let trailer = end.checked_sub(TRAILER_LEN).ok_or_else(|| bad("its end could not be read".to_owned()))?;
    let (json_len, crc) = match (le_u32(tail, trailer), le_u32(tail, trailer + 4), tail.get(trailer + 8..)) {
        (Some(length), Some(crc), Some(magic)) if magic == FOOTER_MAGIC => (length as usize, crc),
        _ => {
            let at = size - 4;
            return Err(bad(format!("there is no footer mark at byte {at}: it was cut off, or something was added")));
        }
    };
    let whole = json_len.saturating_add(SKIPPABLE_LEN + TRAILER_LEN);
    if json_len > MAX_FOOTER || whole as u64 > size - HEADER_LEN as u64 {
        let at = size - TRAILER_LEN as u64;
        return Err(bad(format!("the footer's length at byte {at} is {json_len}, in an object of {size} bytes")));
    }
    if whole > end {
        return Ok(Tail::NeedsMore(whole as u64));
    }
    let start = end - whole;
    let at = size - whole as u64;
    if le_u32(tail, start) != Some(FOOTER_SKIPPABLE)
        || le_u32(tail, start + 4).map(|length| length as usize) != Some(json_len + TRAILER_LEN)
    {
        return Err(bad(format!("the footer's frame at byte {at} is not one")));
    }
    let json = tail.get(start + SKIPPABLE_LEN..trailer).unwrap_or_default();
    if crc32fast::hash(json) != crc {
        return Err(bad(format!("the footer at byte {at} does not match its checksum")));
    }
    let layout = Layout::read(key, json, at)?;
    Ok(Tail::Found(Box::new(layout)))
}

impl Layout {
    /// `footer_at` is where the footer's frame begins: the frames must fill all before it.
    fn read(key: &str, json: &[u8], footer_at: u64) -> Result<Self> {
        crate::record::check_format(key, json)?;
        let footer: Footer = serde_json::from_slice(json)
            .map_err(|error| Error::damaged(key, format!("the footer at byte {footer_at} cannot be read: {error}")))?;
        if footer.key != key.strip_suffix(SEALED_SUFFIX).unwrap_or(key) {
            return Err(Error::damaged(key, format!("it holds what was written as {}", footer.key)));
        }
        let mut offsets = Vec::with_capacity(footer.frames.len());
        let mut at = HEADER_LEN as u64;
        let mut raw_bytes = 0;
        for frame in &footer.frames {
            let (stored, raw) = (frame.stored_len as usize, frame.raw_len as usize);
            if raw > MAX_FRAME_RAW || stored == 0 || stored > zstd::zstd_safe::compress_bound(MAX_FRAME_RAW) {
                let why = format!("the frame at byte {at} claims {stored} bytes stored and {raw} raw");
                return Err(Error::damaged(key, why));
            }
            offsets.push(at);
            at += u64::from(frame.stored_len);
            raw_bytes += u64::from(frame.raw_len);
        }
        if at != footer_at {
            let why = format!("its frames end at byte {at}, its footer begins at byte {footer_at}: bytes are missing");
            return Err(Error::damaged(key, why));
        }
        Ok(Self { footer, footer_blake3: blake3::hash(json).to_hex().to_string(), offsets, raw_bytes })
    }
}

/// A footer of an object with these frames.
pub(crate) fn footer_of(
    key: &str,
    kind: ObjectKind,
    frames: Vec<FrameEntry>,
    log: Option<hindsight_format::LogSummary>,
) -> Footer {
    Footer { format: FORMAT_VERSION, kind, key: key.to_owned(), frames, log }
}

#[cfg(test)]
mod tests;
