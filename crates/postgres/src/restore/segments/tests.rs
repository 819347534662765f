//! Tests of the parent module.

use hindsight_format::Point;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::point;
use crate::wal::{SegmentSize, Version};

const SIZE: u64 = 256;
const BLOCK: u64 = 64;

fn expect() -> Expect {
    Expect {
        system_identifier: 7_000_000_000_000_000_001,
        version: Version::V15,
        timeline: 1,
        segment_size: SegmentSize::DEFAULT,
        block_size: 8192,
    }
}

fn at(lsn: u64, timeline: TimelineId) -> Point {
    point(Timestamp::UNIX_EPOCH, Lsn(lsn), timeline).unwrap()
}

fn name(start: (u64, TimelineId), end: (u64, TimelineId)) -> SliceName {
    SliceName { start: at(start.0, start.1), end: at(end.0, end.1), fence: 1 }
}

fn frame(segment: u32, raw_len: u32) -> FrameEntry {
    FrameEntry { stored_len: raw_len, raw_len, crc32: 0, segment }
}

fn whole(start: u64, end: u64, timeline: TimelineId) -> LogSlice {
    LogSlice::by_name(&name((start, timeline), (end, timeline))).unwrap().unwrap()
}

fn history(timeline: TimelineId, text: &str) -> History {
    History::parse(timeline, text).unwrap()
}

#[test]
fn slices_know_their_timelines() {
    let crossing = name((100, 1), (400, 3));
    assert_eq!(LogSlice::by_name(&crossing), Ok(None));
    let frames = [frame(1, 50), frame(1, 50), frame(2, 100), frame(3, 100)];
    let slice = LogSlice::by_frames(&crossing, &frames).unwrap();
    assert_eq!(slice, LogSlice { start: Lsn(100), runs: vec![(1, 100), (2, 100), (3, 100)] });
    // It begins right at the switch.
    let next = LogSlice::by_frames(&name((100, 1), (200, 2)), &[frame(2, 100)]).unwrap();
    assert_eq!(next.runs, [(2, 100)]);
    assert!(LogSlice::by_frames(&name((100, 1), (100, 1)), &[]).unwrap().runs.is_empty());
    for frames in
        [&frames[..3], &[frame(1, 300)], &[frame(3, 100), frame(2, 100), frame(3, 100)], &[frame(0, 300)], &[]]
    {
        assert_eq!(LogSlice::by_frames(&crossing, frames), Err(SegmentsError::Frames(crossing.clone().into())));
    }
    let mongo = Point { position: "1612339716.0000000002-7".parse().unwrap(), ..at(1, 1) };
    let foreign = SliceName { start: mongo.clone(), end: mongo, fence: 1 };
    assert!(matches!(LogSlice::by_name(&foreign), Err(SegmentsError::Position(_))));
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let first = History::first();
    let new = |slices: &[LogSlice], base: &History, cut| Segments::new(slices, base, Lsn(cut), expect()).unwrap_err();
    assert_eq!(new(&[], &first, 1), SegmentsError::Empty);
    assert_eq!(new(&[whole(5, 5, 1)], &first, 5), SegmentsError::Empty);
    let gap = SegmentsError::Gap { from: Lsn(20), to: Lsn(21) };
    assert_eq!(new(&[whole(10, 20, 1), whole(21, 30, 1)], &first, 30), gap);
    for cut in [9, 10, 31] {
        let error = SegmentsError::Cut { cut: Lsn(cut), start: Lsn(10), end: Lsn(30) };
        assert_eq!(new(&[whole(10, 20, 1), whole(20, 30, 1)], &first, cut), error);
    }
    // Timeline 1 was left at 20 already; timeline 2 is not on the way to 3.
    let story = |at, timeline| SegmentsError::Story { at: Lsn(at), timeline };
    assert_eq!(new(&[whole(10, 20, 1), whole(20, 30, 2), whole(15, 25, 1)], &first, 30), story(15, 1));
    assert_eq!(new(&[whole(40, 50, 2)], &history(3, "1\t0/1E\tx\n"), 50), story(40, 2));
    assert_eq!(new(&[whole(10, 50, 3)], &history(3, "1\t0/1E\tx\n"), 50), story(10, 3));
    assert_eq!(new(&[whole(10, 50, 1)], &history(3, "1\t0/1E\tx\n"), 50), story(10, 1));
    assert_eq!(
        new(&[whole(u64::MAX - 1, u64::MAX, 1)], &first, 1),
        SegmentsError::Cut { cut: Lsn(1), start: Lsn(u64::MAX - 1), end: Lsn(u64::MAX) }
    );
}

#[test]
fn a_switch_within_a_segment() {
    let (first, switch, end) = (0x300_0028, 0x340_0000, 0x480_0000);
    let slice = LogSlice::by_frames(
        &name((first, 2), (end, 5)),
        &[frame(2, (switch - first) as u32), frame(5, (end - switch) as u32)],
    );
    let base = history(2, "1\t0/2000000\tby hand\n");
    let mut segments = Segments::new(&[slice.unwrap()], &base, Lsn(end), expect()).unwrap();
    assert_eq!(segments.timeline(), 5);
    segments.taken([4, 6]);
    // A header, and all that there is: the old timeline's up to the switch.
    let size = 16 << 20;
    let Wanted::Segment(new) = segments.wants("000000050000000000000003") else { panic!() };
    let stored = Piece::Stored { slice: 0, bytes: 0..size - 0x28 };
    assert!(matches!(&new[..], [Piece::Made(header), last] if header.len() == 40 && *last == stored), "{new:?}");
    let Wanted::Segment(old) = segments.wants("000000020000000000000003") else { panic!() };
    let stored = Piece::Stored { slice: 0, bytes: 0..0x40_0000 - 0x28 };
    assert_eq!(old[1..], [stored, Piece::Zeros(size - 0x40_0000)]);
    let Wanted::Segment(last) = segments.wants("000000050000000000000004") else { panic!() };
    let stored = Piece::Stored { slice: 0, bytes: size - 0x28..size - 0x28 + 0x80_0000 };
    assert_eq!(last, [stored, Piece::Zeros(0x80_0000)]);
    for name in [
        "000000020000000000000004",
        "000000050000000000000005",
        "000000050000000000000002",
        "000000040000000000000003",
        "000000010000000000000001",
        "000000050000000000000003.partial",
        "00000001.history",
        "00000003.history",
        "x",
        "FFFFFFFFFFFFFFFF000000FF",
    ] {
        assert_eq!(segments.wants(name), Wanted::Nothing, "{name}");
    }
    assert_eq!(segments.wants("00000002.history"), Wanted::History("1\t0/2000000\tby hand\n".to_owned()));
    let Wanted::History(text) = segments.wants("00000005.history") else { panic!() };
    assert_eq!(text, "1\t0/2000000\tby hand\n2\t0/3400000\tas the log was stored\n");
    assert!(matches!(segments.wants("00000004.history"), Wanted::History(text) if text.starts_with('#')));

    // Cut right at the switch, the new timeline has no files yet, but its number is taken.
    let segments = Segments { cut: Lsn(switch), ..segments };
    assert_eq!(segments.timeline(), 2);
    assert_eq!(segments.wants("000000050000000000000003"), Wanted::Nothing);
    assert_eq!(segments.wants("000000020000000000000003"), Wanted::Segment(old));
    assert!(matches!(segments.wants("00000005.history"), Wanted::History(_)));
}

/// The byte that every slice has at a position of a timeline.
fn byte(timeline: TimelineId, lsn: u64) -> u8 {
    (lsn as u8).wrapping_mul(37) ^ (lsn >> 8) as u8 ^ (timeline as u8).wrapping_mul(101) | 1
}

/// A log: where it begins and ends, where new timelines begin, where it is cut into slices, and how far each slice goes
/// back behind the end of the one before.
#[derive(Clone, Debug)]
struct Log {
    first: u64,
    len: u64,
    switches: Vec<(u64, TimelineId)>,
    slices: Vec<(u64, u64)>,
    cut: u64,
}

fn logs() -> impl Strategy<Value = Log> {
    (300..900_u64, 1..2000_u64).prop_flat_map(|(first, len)| {
        let end = first + len;
        let switches = prop::collection::vec((200..end + 1, 1..4_u32), 0..5);
        let slices = prop::collection::vec((first..end, 0..300_u64), 0..6);
        (Just(first), Just(len), switches, slices, first + 1..=end).prop_map(
            |(first, len, mut switches, mut slices, cut)| {
                switches.sort_unstable();
                // On a timeline that is left where it begins, nothing is stored.
                switches.dedup_by_key(|(at, _)| *at);
                let mut timeline = 1;
                for (_, step) in &mut switches {
                    timeline += *step;
                    *step = timeline;
                }
                slices.push((first + len, 0));
                slices.sort_unstable();
                Log { first, len, switches, slices, cut }
            },
        )
    })
}

proptest! {
    #[test]
    fn segments_are_what_a_server_would_have_written(log in logs()) {
        let end = log.first + log.len;
        let full = log.switches.iter().try_fold(History::first(), |history, (at, timeline)| {
            history.branched(Lsn(*at), *timeline, "as the log was stored")
        });
        let full = full.unwrap();
        // Slices, and their bytes.
        let (mut slices, mut stored, mut start) = (Vec::new(), Vec::<Vec<u8>>::new(), log.first);
        for (to, back) in &log.slices {
            let from = start.saturating_sub(*back).max(log.first);
            let timelines: Vec<_> = (from..*to).map(|lsn| full.at(Lsn(lsn))).collect();
            let frames: Vec<_> = timelines.chunk_by(|a, b| a == b).map(|run| frame(run[0], run.len() as u32)).collect();
            let bounds = [from, *to].map(|lsn| (lsn, full.at(Lsn(lsn - 1))));
            slices.push(LogSlice::by_frames(&name(bounds[0], bounds[1]), &frames).unwrap());
            stored.push((from..*to).map(|lsn| byte(full.at(Lsn(lsn)), lsn)).collect());
            start = *to;
        }
        let base = full.of(full.at(Lsn(log.first))).unwrap();
        let segments = Segments::new(&slices, &base, Lsn(log.cut), expect()).unwrap();
        let segments = Segments { size: SIZE, block: BLOCK, ..segments };
        let target = segments.timeline();
        prop_assert_eq!(target, full.at(Lsn(log.cut - 1)));
        let known = segments.history().clone();
        prop_assert_eq!(&known, &full.of(known.timeline()).unwrap());
        prop_assert_eq!(known.timeline(), full.at(Lsn(end - 1)));

        for number in 0..=end / SIZE + 1 {
            let range = number * SIZE..(number + 1) * SIZE;
            let mut newest = None;
            for timeline in 0..=full.timeline() + 1 {
                let made = segments.segment(Segment { timeline, number });
                let (begin, left) = known.range(timeline).unwrap_or_default();
                let until = left.map_or(log.cut, |left| left.0.min(log.cut));
                let has = |lsn: u64| (log.first..until).contains(&lsn) && lsn >= begin.0;
                // There is a file if, and only if, some byte of it is of the timeline.
                prop_assert_eq!(made.is_some(), known.range(timeline).is_some() && range.clone().any(|lsn| {
                    // before the first stored byte, the rest of its segment is there as well
                    has(lsn) || (lsn < log.first && lsn >= begin.0 && log.first < until.min(range.end))
                }), "{} {}", timeline, number);
                let Some(pieces) = made else { continue };
                newest = Some(timeline);
                prop_assert!(segments.newest(number).is_none_or(|newest| newest.timeline >= timeline));
                let bytes: Vec<u8> = pieces.iter().flat_map(|piece| match piece {
                    Piece::Stored { slice, bytes } => {
                        assert!(!bytes.is_empty());
                        stored[*slice][bytes.start as usize..bytes.end as usize].to_vec()
                    }
                    Piece::Zeros(zeros) => vec![0; *zeros as usize],
                    Piece::Made(bytes) => bytes.clone(),
                }).collect();
                prop_assert_eq!(bytes.len() as u64, SIZE);
                for (lsn, found) in range.clone().zip(&bytes).filter(|(lsn, _)| *lsn >= log.first) {
                    let wanted = if lsn < until { byte(full.at(Lsn(lsn)), lsn) } else { 0 };
                    prop_assert_eq!(*found, wanted, "{} of {}", lsn, timeline);
                }
                if range.contains(&log.first) {
                    lead(&bytes, range.start, log.first)?;
                }
            }
            // All that is before the cut is in the file that a server takes, the one of the newest timeline on its way.
            if range.start < log.cut && range.end > log.first {
                let wanted = full.at(Lsn(range.end.min(log.cut) - 1));
                prop_assert_eq!(newest, Some(wanted));
                prop_assert_eq!(segments.newest(number), Some(Segment { timeline: wanted, number }));
            }
        }
    }
}

/// Checks what stands before the first stored byte.
fn lead(bytes: &[u8], start: u64, first: u64) -> Result<(), TestCaseError> {
    let header = |at: u64, info: u8| {
        let bytes = &bytes[(at - start) as usize..];
        bytes[..4] == [0x10, 0xD1, info, 0] && bytes[8..16] == at.to_le_bytes() && bytes[16..24] == [0; 8]
    };
    if first >= start + LONG_HEADER {
        prop_assert!(header(start, 2));
        prop_assert_eq!(&bytes[24..32], &7_000_000_000_000_000_001_u64.to_le_bytes());
    }
    let page = first / BLOCK * BLOCK;
    if page > start && first >= page + SHORT_HEADER {
        prop_assert!(header(page, 0));
    }
    Ok(())
}
