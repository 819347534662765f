//! PostgreSQL: its log, the archives of a base and the lists of what is in them.

use hindsight_engine::LogCheck;
use hindsight_postgres::base::{BLOCK, BackupManifest, ManifestReader, TarError, TarEvent, TarReader};
use hindsight_postgres::check::LogPieceCheck;
use hindsight_postgres::fuzzing::{MadeUp, base_again, expect, sealed_manifest};
use hindsight_postgres::wal::{Event, Expect, Extent, History, SegmentSize, Version, WalError, WalFile, WalReader};
use hindsight_postgres::{Lsn, point};
use jiff::Timestamp;

/// Sizes of the pieces in which inputs come.
const PIECES: [usize; 3] = [1, 23, 1000];
/// Records of a log that is made up.
const RECORDS: usize = 64;

/// A byte that says of which version; then bytes of a log, and also records of one: resource manager, info, length and body.
pub(crate) fn wal(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let version = Version::ALL[usize::from(*kind) % Version::ALL.len()];
    let expect = expect(version).expect("there are such segments");
    for start in [1 << 20, (1 << 20) + 8192, (1 << 20) + 40].map(Lsn) {
        let readers: [fn(Lsn, Expect) -> WalReader; 3] =
            [WalReader::new, WalReader::at_record, |start, _| WalReader::of_piece(start, 1)];
        for reader in readers {
            let whole = read(reader(start, expect), bytes, usize::MAX);
            for piece in PIECES {
                assert!(read(reader(start, expect), bytes, piece) == whole, "in pieces of {piece} it is another one");
            }
            assert!(whole.0.iter().all(|event| event.span.start >= start && event.span.end > event.span.start));
        }
    }
    made_up(version, bytes);
    if let Ok(text) = std::str::from_utf8(input) {
        texts(text);
    }
}

type Read = (Vec<Event>, Result<(), WalError>, Extent);

fn read(mut reader: WalReader, bytes: &[u8], piece: usize) -> Read {
    let mut events = Vec::new();
    let read = bytes.chunks(piece).try_for_each(|piece| reader.feed(piece, &mut |event| events.push(event)));
    let extent = reader.extent();
    if let Some(whole) = reader.whole() {
        assert!(whole.end <= extent.end && whole.records <= extent.records);
    }
    assert!(extent.housekeeping <= extent.records);
    // Where reading ended within what could not be read depends on the pieces.
    let extent = if read.is_ok() { extent } else { Extent { end: Lsn::INVALID, ..extent } };
    (events, read, extent)
}

/// Records with right checksums.
fn made_up(version: Version, mut bytes: &[u8]) {
    let mut log = MadeUp::new(version);
    let mut switches = 0;
    for _ in 0..RECORDS {
        let Some(([manager, info, low, high], rest)) = bytes.split_first_chunk() else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (body, rest) = rest.split_at(length.min(rest.len()));
        let switch = (*manager, info & 0xF0) == (0, 0x40);
        // Each of them leaves most of a segment empty.
        if !switch || switches < 2 {
            log.record(*manager, *info, body);
        }
        switches += usize::from(switch);
        bytes = rest;
    }
    let expect = expect(version).expect("there are such segments");
    let (events, result, extent) = read(WalReader::new(log.start, expect), &log.bytes, usize::MAX);
    let (same, again, unknown) = read(WalReader::of_piece(log.start, 1), &log.bytes, 4000);
    assert!(events == same && result == again);
    if result.is_err() || log.records == 0 {
        return;
    }
    assert_eq!((extent.records, extent.end, unknown), (log.records, log.end(), extent));
    let (start, end) = (point(Timestamp::MIN, log.start, 1), point(Timestamp::MAX, log.end(), 1));
    let (start, end) = (start.expect("a point"), end.expect("a point"));
    let mut check = Box::new(LogPieceCheck::new(&start, &end).expect("points"));
    check.frame(1, &log.bytes).expect("it was read before");
    let summary = check.finish().expect("it was read before");
    assert_eq!(summary.records, log.records);
    assert_eq!(summary.counts.values().flat_map(|kinds| kinds.values()).sum::<u64>(), log.records);
}

fn texts(text: &str) {
    for size in [SegmentSize::DEFAULT, SegmentSize::new(1 << 20).expect("there are such segments")] {
        if let Some(file) = WalFile::parse(text.trim_end(), size) {
            assert_eq!(file.name(size), text.trim_end());
        }
    }
    if let Ok(history) = History::parse(9, text) {
        let again = History::parse(9, &history.to_string());
        assert!(again.is_ok_and(|again| again == history), "what is written is read");
        for branch in history.branches() {
            assert!(history.range(branch.timeline).is_some_and(|(start, _)| start <= branch.end));
        }
    }
}

/// An archive as it is, and with right checksums of its headers.
pub(crate) fn tar(input: &[u8]) {
    for archive in [input.to_vec(), sealed_archive(input)] {
        let whole = unpack(&archive, usize::MAX);
        for piece in PIECES {
            assert!(unpack(&archive, piece) == whole, "in pieces of {piece} it is another one");
        }
    }
}

/// An entry as it came: path, data, and what it said of its size.
type Entry = (Vec<u8>, Vec<u8>, u64);

fn unpack(archive: &[u8], piece: usize) -> (Vec<Entry>, Result<bool, TarError>) {
    let (mut entries, mut reader, mut boundary) = (Vec::<Entry>::new(), TarReader::new(), 0);
    let read = archive.chunks(piece).try_for_each(|piece| {
        reader.feed(piece, &mut |event| match event {
            TarEvent::File(header) => {
                let parts = || header.path.split(|byte| *byte == b'/');
                assert!(parts().all(|part| !part.is_empty() && part != b"." && part != b".."), "{header:?}");
                assert_eq!(header.at, boundary);
                entries.push((header.path.clone(), Vec::new(), header.size));
            }
            TarEvent::Data(data) => {
                assert!(!data.is_empty());
                entries.last_mut().expect("data of an entry").1.extend_from_slice(data);
            }
            TarEvent::End { boundary: next } => {
                let (_, data, size) = entries.last().expect("the end of an entry");
                assert_eq!(data.len() as u64, *size);
                boundary = next;
            }
        })
    });
    (entries, read.and_then(|()| reader.finish()))
}

/// The same with a right checksum in every header.
fn sealed_archive(input: &[u8]) -> Vec<u8> {
    let (mut archive, mut at) = (input.to_vec(), 0);
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..135]).ok().and_then(|size| usize::from_str_radix(size, 8).ok());
        at += BLOCK + size.unwrap_or(0).next_multiple_of(BLOCK);
    }
    archive
}

/// A manifest as it is, and with a right checksum; the catalog of a base.
pub(crate) fn manifest(input: &[u8]) {
    for text in [input.to_vec(), sealed_manifest(input)] {
        // Which of several things is told that are wrong with it depends on the pieces.
        let whole = BackupManifest::parse(&text).ok();
        for piece in PIECES {
            let mut reader = ManifestReader::new();
            let read = text.chunks(piece).try_for_each(|piece| reader.feed(piece));
            assert!(read.and_then(|()| reader.finish()).ok() == whole, "in pieces of {piece} it is another one");
        }
        let Some(manifest) = whole else { continue };
        for (path, expected) in manifest.files() {
            let mut parts = path.split(|byte| *byte == b'/');
            assert!(parts.all(|part| !part.is_empty() && part != b"." && part != b".."), "{path:?}");
            assert_eq!(manifest.expect(path), Some(expected));
        }
        manifest.checksums();
    }
    if let Ok(again) = base_again(input) {
        assert_eq!(base_again(&again).ok(), Some(again), "what is written is read");
    }
}
