//! Readers on logs made by hand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::event::time;
use super::handmade::{BLOCK, Maker, SEGMENT, expect, with_len};
use super::{Checkpoint, Event, Problem, ResourceManager, Span, Version, WalError, WalLevel, WalReader, What};
use crate::Lsn;

/// Feeds a reader in pieces of a size.
fn feed(reader: &mut WalReader, bytes: &[u8], piece: usize) -> (Vec<Event>, Result<(), WalError>) {
    let mut events = Vec::new();
    for piece in bytes.chunks(piece) {
        if let Err(error) = reader.feed(piece, &mut |event| events.push(event)) {
            assert_eq!(reader.feed(b"more", &mut |_| panic!("after damage")), Err(error));
            return (events, Err(error));
        }
    }
    (events, Ok(()))
}

/// What a whole log tells, in pieces of many sizes.
fn read(maker: &Maker) -> (Vec<Event>, Result<(), WalError>, WalReader) {
    let expect = super::Expect { version: maker.version, timeline: maker.timeline, ..expect() };
    let mut reader = WalReader::new(maker.start, expect);
    let (events, result) = feed(&mut reader, &maker.bytes, usize::MAX);
    for piece in [1, 3, 24, 1000, 8192, 9000] {
        let mut other = WalReader::new(maker.start, expect);
        assert_eq!(feed(&mut other, &maker.bytes, piece), (events.clone(), result), "pieces of {piece}");
        assert_eq!(other.last_record(), reader.last_record());
        assert_eq!(other.counts(), reader.counts());
    }
    (events, result, reader)
}

fn commit(span: Span, xid: u32, micros: i64) -> Event {
    Event { span, what: What::Commit { xid, time: time(micros) } }
}

#[test]
fn records_of_all_sizes_follow_each_other() {
    let mut maker = Maker::new(3 * SEGMENT);
    let mut expected = Vec::new();
    let mut fillers = 0;
    for len in (0..200).chain([255, 256, 8000, 8100, 8127, 8128, 8136, 8168, 20_000, 3 * SEGMENT as usize, 5]) {
        maker.filler(len);
        fillers += 1;
        let span = maker.commit(len as u32, len as i64);
        expected.push(commit(span, len as u32, len as i64));
    }
    let (events, result, reader) = read(&maker);
    assert_eq!(result, Ok(()));
    assert_eq!(events, expected);
    assert_eq!(reader.position(), Lsn(maker.position()));
    assert_eq!(reader.last_record(), expected.last().map(|e| e.span));
    assert_eq!(reader.first_record(), Some(Lsn(3 * SEGMENT + 40)));
    assert_eq!(reader.counts().of(ResourceManager(10)), fillers);
    let counts: Vec<_> = reader.counts().iter().map(|(m, n)| (m.to_string(), n)).collect();
    assert_eq!(counts, [("Transaction".to_owned(), fillers), ("Heap".to_owned(), fillers)]);
}

#[test]
fn every_record_that_tells_something_is_told() {
    let mut maker = Maker::new(0x1_0000_0000);
    let mut expected = Vec::new();
    let mut add = |maker: &mut Maker, manager, info, data: Vec<u8>, what| {
        let span = maker.record(manager, info, 77, &with_len(&data));
        expected.push(Event { span, what });
    };
    let gid = || "order 17".to_owned();
    let micros = 700_000_000_123_456_i64;
    let t = time(micros);
    let m = || micros.to_le_bytes().to_vec();
    // xinfo: dbinfo, 2 subtransactions, 1 relation, 1 statistic, 1 invalidation, twophase, gid, origin
    let parts = [
        m(),
        0x1BF_u32.to_le_bytes().to_vec(),
        vec![9; 8],
        2_u32.to_le_bytes().to_vec(),
        vec![9; 8],
        1_u32.to_le_bytes().to_vec(),
        vec![9; 12],
        1_u32.to_le_bytes().to_vec(),
        vec![9; 12],
        1_u32.to_le_bytes().to_vec(),
        vec![9; 16],
        4711_u32.to_le_bytes().to_vec(),
        b"order 17\0".to_vec(),
        vec![9; 16],
    ]
    .concat();
    add(&mut maker, 1, 0x80, parts.clone(), What::Commit { xid: 77, time: t });
    add(&mut maker, 1, 0xB0, parts.clone(), What::CommitPrepared { xid: 4711, gid: Some(gid()), time: t });
    add(&mut maker, 1, 0xC0, parts, What::AbortPrepared { xid: 4711, gid: Some(gid()), time: t });
    add(&mut maker, 1, 0x20, m(), What::Abort { xid: 77, time: t });
    let plain = [m(), 0x10_u32.to_le_bytes().to_vec(), 4711_u32.to_le_bytes().to_vec()].concat();
    add(&mut maker, 1, 0xB0, plain, What::CommitPrepared { xid: 4711, gid: None, time: t });
    let mut prepare = vec![0; 72];
    prepare[8..12].copy_from_slice(&4711_u32.to_le_bytes());
    prepare[16..24].copy_from_slice(&m());
    prepare[54..56].copy_from_slice(&9_u16.to_le_bytes());
    prepare.extend_from_slice(b"order 17\0 and more");
    add(&mut maker, 1, 0x10, prepare, What::Prepare { xid: 4711, gid: gid(), time: t });
    let point = [m(), b"before it\0".to_vec(), vec![0; 54]].concat();
    add(&mut maker, 0, 0x70, point, What::RestorePoint { name: "before it".to_owned(), time: t });
    let mut checkpoint = vec![0; 88];
    checkpoint[..8].copy_from_slice(&0x1_0000_0028_u64.to_le_bytes());
    checkpoint[8..16].copy_from_slice(&[3, 0, 0, 0, 2, 0, 0, 0]);
    checkpoint[24..32].copy_from_slice(&0x2_0000_0003_u64.to_le_bytes());
    checkpoint[64..72].copy_from_slice(&1_000_i64.to_le_bytes());
    let told = Checkpoint {
        shutdown: true,
        redo: Lsn(0x1_0000_0028),
        timeline: 3,
        previous: 2,
        next_xid: 0x2_0000_0003,
        time: jiff::Timestamp::from_second(1_000).unwrap(),
    };
    add(&mut maker, 0, 0x00, checkpoint.clone(), What::Checkpoint(told));
    add(&mut maker, 0, 0x10, checkpoint, What::Checkpoint(Checkpoint { shutdown: false, ..told }));
    let end = [m(), vec![4, 0, 0, 0, 3, 0, 0, 0]].concat();
    add(&mut maker, 0, 0x90, end, What::EndOfRecovery { timeline: 4, previous: 3, time: t });
    let mut settings = vec![0; 28];
    settings[20] = 2;
    add(&mut maker, 0, 0x60, settings, What::ParameterChange { wal_level: WalLevel::Logical });
    add(&mut maker, 0, 0x50, 99_u64.to_le_bytes().to_vec(), What::BackupEnd { start: Lsn(99) });
    let folder = [16_385_u32.to_le_bytes().to_vec(), b"/mnt/fast\0".to_vec()].concat();
    add(&mut maker, 5, 0x00, folder, What::CreateTablespace { oid: 16_385, location: "/mnt/fast".to_owned() });
    let copy: Vec<u8> = [16_400_u32, 1_663, 16_390, 16_385].iter().flat_map(|number| number.to_le_bytes()).collect();
    add(&mut maker, 4, 0x00, copy, What::CopyDatabase { from: 16_390, to: 16_400 });
    // not told
    for (manager, info) in [(0, 0x20), (0, 0xB0), (0, 0xE0), (4, 0x10), (4, 0x20), (1, 0x50), (1, 0x60), (128, 0)] {
        maker.record(manager, info, 1, &with_len(&[1, 2, 3]));
    }
    // a subtransaction's and a replicated record have something before their data
    let body = [vec![253, 1, 0, 252, 5, 0, 0, 0], with_len(&m())].concat();
    let span = maker.record(1, 0, 78, &body);
    expected.push(commit(span, 78, micros));
    let (events, result, _) = read(&maker);
    assert_eq!(result, Ok(()));
    assert_eq!(events, expected);
}

#[test]
fn versions_lay_out_transactions_differently() {
    for version in Version::ALL {
        let stats = usize::try_from(version.stats_item()).unwrap();
        let mut maker = Maker { version, ..Maker::new(SEGMENT) };
        let mut prepare = vec![0; if version < Version::V15 { 64 } else { 72 }];
        let gidlen = prepare.len() - 18;
        prepare[gidlen..gidlen + 2].copy_from_slice(&2_u16.to_le_bytes());
        prepare.extend_from_slice(b"x\0");
        maker.record(1, 0x10, 0, &with_len(&prepare));
        let dropped = if version < Version::V15 { vec![] } else { [vec![1, 0, 0, 0], vec![0; stats]].concat() };
        let xinfo = if dropped.is_empty() { 0x90_u32 } else { 0x190 };
        let data = [vec![0; 8], xinfo.to_le_bytes().to_vec(), dropped, vec![7, 0, 0, 0], b"x\0".to_vec()].concat();
        maker.record(1, 0xB0, 0, &with_len(&data));
        let (events, result, _) = read(&maker);
        assert_eq!(result, Ok(()), "{version:?}");
        let gid = "x".to_owned();
        assert_eq!(events[0].what, What::Prepare { xid: 0, gid: gid.clone(), time: time(0) }, "{version:?}");
        assert_eq!(events[1].what, What::CommitPrepared { xid: 7, gid: Some(gid), time: time(0) }, "{version:?}");
        // extensions with resource managers of their own came with 15
        let span = maker.record(200, 0, 0, &[]);
        let expected = if version < Version::V15 {
            Err(WalError { at: span.start, problem: Problem::ResourceManager(200) })
        } else {
            Ok(())
        };
        assert_eq!(read(&maker).1, expected);
    }
    assert_eq!(Version::from_major(15), Some(Version::V15));
    assert_eq!((Version::from_major(12), Version::from_magic(0xD116)), (None, Some(Version::V17)));
}

#[test]
fn a_commit_of_many_subtransactions_is_read_to_its_end() {
    let mut maker = Maker::new(SEGMENT);
    let many = 300_000_u32;
    let data = [
        vec![0; 8],
        0x92_u32.to_le_bytes().to_vec(),
        many.to_le_bytes().to_vec(),
        vec![9; 4 * many as usize],
        vec![7, 0, 0, 0],
        b"name\0".to_vec(),
    ]
    .concat();
    maker.record(1, 0xB0, 5, &with_len(&data));
    let (events, result, _) = read(&maker);
    assert_eq!(result, Ok(()));
    let expected = What::CommitPrepared { xid: 7, gid: Some("name".to_owned()), time: time(0) };
    assert_eq!(events.into_iter().map(|e| e.what).collect::<Vec<_>>(), [expected]);
}

#[test]
fn a_record_of_unknown_form_is_told_from_a_damaged_one() {
    for body in [vec![], with_len(&[1; 7]), vec![3, 0, 0, 0], [with_len(&[0; 8]), vec![1]].concat()] {
        let mut maker = Maker::new(SEGMENT);
        let span = maker.record(1, 0, 5, &body);
        assert_eq!(read(&maker).1, Err(WalError { at: span.start, problem: Problem::Unreadable }));
        *maker.bytes.last_mut().unwrap() ^= u8::from(span.end.0 == maker.position());
    }
    // more subtransactions than bytes
    let mut maker = Maker::new(SEGMENT);
    let data = [vec![0; 8], vec![0x12, 0, 0, 0], vec![255, 255, 255, 255], vec![0; 100]].concat();
    let span = maker.record(1, 0xB0, 5, &with_len(&data));
    assert_eq!(read(&maker).1, Err(WalError { at: span.start, problem: Problem::Unreadable }));
}

#[test]
fn a_switch_leaves_the_rest_of_its_segment_unused() {
    let mut maker = Maker::new(SEGMENT);
    maker.filler(100);
    let switch = maker.switch();
    assert_eq!(switch.end, Lsn(2 * SEGMENT));
    // what was in the file before
    let unused = maker.bytes.len() - 3 * BLOCK as usize;
    maker.bytes[unused..].fill(0xAA);
    let after = maker.commit(5, 5);
    let (events, result, _) = read(&maker);
    assert_eq!(result, Ok(()));
    assert_eq!(events, [Event { span: switch, what: What::SegmentSwitch }, commit(after, 5, 5)]);
    // one that fills its segment to the last byte leaves nothing
    let mut maker = Maker::new(SEGMENT);
    while SEGMENT - maker.position() % SEGMENT > BLOCK {
        maker.filler(4000);
    }
    maker.filler((2 * SEGMENT - maker.position()) as usize - 24 - 24 - 5);
    let switch = maker.record(0, 0x40, 0, &[]);
    assert_eq!(switch.end, Lsn(2 * SEGMENT));
    let after = maker.commit(5, 5);
    let (events, result, _) = read(&maker);
    assert_eq!(result, Ok(()));
    assert_eq!(events, [Event { span: switch, what: What::SegmentSwitch }, commit(after, 5, 5)]);
}

#[test]
fn a_record_that_a_crash_broke_off_is_owned_up_to() {
    for pages in [1, 2] {
        let mut maker = Maker::new(SEGMENT);
        let before = maker.commit(1, 1);
        let broken = maker.break_off(20_000, pages);
        let replaced = maker.overwrite(broken);
        let after = maker.commit(2, 2);
        let (events, result, _) = read(&maker);
        assert_eq!(result, Ok(()));
        let told = What::OverwriteContrecord { overwritten: broken, time: time(5) };
        assert_eq!(events, [commit(before, 1, 1), Event { span: replaced, what: told }, commit(after, 2, 2)]);
        // reading begins within the record that is given up
        for start in [1, BLOCK, 2 * BLOCK].into_iter().take(pages + 1) {
            let mut reader = WalReader::new(Lsn(SEGMENT + start), expect());
            let (tail, result) = feed(&mut reader, &maker.bytes[start as usize..], 77);
            assert_eq!((result, tail.as_slice()), (Ok(()), &events[1..]), "{start} {pages}");
        }
    }
}

#[test]
fn a_record_given_up_that_nobody_owns_up_to_is_damage() {
    let wrong = |problem, at| Err(WalError { at, problem });
    let mut maker = Maker::new(SEGMENT);
    let broken = maker.break_off(20_000, 1);
    let span = maker.overwrite(Lsn(broken.0 + 8));
    let found = Problem::Overwritten { found: Lsn(broken.0 + 8), expected: broken };
    assert_eq!(read(&maker).1, wrong(found, span.start));

    let mut maker = Maker::new(SEGMENT);
    let broken = maker.break_off(20_000, 1);
    let span = maker.commit(1, 1);
    let found = Problem::Overwritten { found: Lsn::INVALID, expected: broken };
    assert_eq!(read(&maker).1, wrong(found, span.start));

    let mut maker = Maker::new(SEGMENT);
    let span = maker.overwrite(Lsn(77));
    let found = Problem::Overwritten { found: Lsn(77), expected: Lsn::INVALID };
    assert_eq!(read(&maker).1, wrong(found, span.start));
}

#[test]
fn a_record_without_its_rest_is_damage() {
    let mut maker = Maker::new(SEGMENT);
    maker.begin();
    let record = maker.encode(10, 0, 1, &[1; 10_000]);
    maker.write(&record, 1);
    maker.page_header(0, 0);
    let record = Lsn(SEGMENT + 40);
    let expected = 10_024 - (BLOCK as u32 - 40);
    let problem = Problem::Continuation { record, found: 0, expected };
    let at = Lsn(SEGMENT + BLOCK);
    assert_eq!(read(&maker).1, Err(WalError { at, problem }));
    // a rest of nothing
    let mut maker = Maker::new(SEGMENT);
    maker.filler(8192 - 40 - 24 - 5);
    maker.page_header(1, 8);
    assert_eq!(read(&maker).1, Err(WalError { at, problem: Problem::UnexpectedContinuation }));
}

#[test]
fn zeros_are_where_the_log_ends() {
    let mut maker = Maker::new(SEGMENT);
    let last = maker.commit(1, 1);
    maker.bytes.resize(BLOCK as usize, 0);
    let (events, result, reader) = read(&maker);
    assert_eq!(events, [commit(last, 1, 1)]);
    assert_eq!(result, Err(WalError { at: last.end, problem: Problem::NoRecord }));
    assert_eq!(reader.last_record(), Some(last));
    let mut maker = Maker::new(SEGMENT);
    maker.bytes.resize(100, 0);
    assert_eq!(read(&maker).1, Err(WalError { at: Lsn(SEGMENT), problem: Problem::NoRecord }));
}

#[test]
fn a_log_of_another_cluster_version_or_place_is_refused() {
    let mut maker = Maker::new(SEGMENT);
    maker.commit(1, 1);
    let refused = |change: &dyn Fn(&mut super::Expect), start: u64| {
        let mut expect = expect();
        change(&mut expect);
        feed(&mut WalReader::new(Lsn(start), expect), &maker.bytes, 1 << 20).1.unwrap_err().problem
    };
    let system = refused(&|e| e.system_identifier = 1, SEGMENT);
    assert!(matches!(system, Problem::OtherSystem { expected: 1, .. }));
    let version = refused(&|e| e.version = Version::V16, SEGMENT);
    assert_eq!(version, Problem::Magic { found: 0xD110, expected: Version::V16 });
    assert_eq!(version.to_string(), "no page of PostgreSQL 16: it begins with 0xD110");
    let size = refused(&|e| e.segment_size = super::SegmentSize::DEFAULT, SEGMENT);
    assert_eq!(size, Problem::SegmentSize { found: 1 << 20, expected: 16 << 20 });
    assert_eq!(refused(&|e| e.block_size = 1 << 14, SEGMENT), Problem::BlockSize { found: 8192, expected: 1 << 14 });
    assert_eq!(refused(&|e| e.block_size = 5000, SEGMENT), Problem::NoBlockSize(5000));
    assert_eq!(refused(&|_| {}, 2 * SEGMENT), Problem::PageAddress(Lsn(SEGMENT)));
    assert_eq!(refused(&|e| e.timeline = 0, SEGMENT), Problem::TimelineAhead { found: 1, followed: 0 });
    assert_eq!(refused(&|_| {}, u64::MAX - 8), Problem::TooLong);
    let nowhere = feed(&mut WalReader::at_record(Lsn(SEGMENT + 44), expect()), b"x", 1).1;
    assert_eq!(nowhere, Err(WalError { at: Lsn(SEGMENT + 44), problem: Problem::NoStart }));
    // the last segment that positions could name
    let mut maker = Maker::new(u64::MAX - SEGMENT + 1);
    maker.record(0, 0x40, 0, &[]);
    assert_eq!(read(&maker).1.unwrap_err().problem, Problem::TooLong);
}

#[test]
fn timelines_go_on_and_never_back() {
    let mut maker = Maker::new(SEGMENT);
    maker.filler(10_000);
    maker.timeline = 3;
    maker.filler(10_000);
    assert_eq!(read(&maker).1, Ok(()));
    let mut reader = WalReader::new(maker.start, expect());
    let ahead = Problem::TimelineAhead { found: 3, followed: 1 };
    assert_eq!(feed(&mut reader, &maker.bytes, 99).1, Err(WalError { at: Lsn(SEGMENT + 2 * BLOCK), problem: ahead }));
    let mut reader = WalReader::new(maker.start, expect());
    reader.follow(3);
    assert_eq!(feed(&mut reader, &maker.bytes, 99).1, Ok(()));
    maker.timeline = 2;
    maker.filler(10_000);
    maker.timeline = 3;
    let back = Problem::TimelineBack { found: 2, before: 3 };
    assert_eq!(read(&maker).1.unwrap_err().problem, back);
}

#[test]
fn pages_of_other_timelines_are_told_where_only_one_is_followed() {
    let mut maker = Maker::new(SEGMENT);
    maker.filler(10_000);
    let offset = maker.bytes.len();
    let start = Lsn(maker.position());
    maker.timeline = 2;
    maker.filler(10_000);
    for (only, found) in [(2, Ok(())), (3, Err(Problem::TimelineBack { found: 2, before: 3 }))] {
        let mut reader = WalReader::at_record(start, expect());
        reader.only(only);
        assert_eq!(feed(&mut reader, &maker.bytes[offset..], 99).1.map_err(|error| error.problem), found);
    }
}

/// What a server writes by itself.
fn housekeeping(maker: &mut Maker) -> [Span; 2] {
    let checkpoint = maker.record(0, 0x10, 0, &with_len(&[0; 88]));
    [checkpoint, maker.record(8, 0x10, 0, &with_len(&[0; 24]))]
}

#[test]
fn it_is_known_at_any_moment_how_much_is_whole() {
    let mut maker = Maker::new(SEGMENT);
    let mut spans = vec![maker.filler(3), maker.commit(1, 1)];
    spans.extend(housekeeping(&mut maker));
    spans.extend([maker.filler(9000), maker.switch(), maker.filler(5), maker.commit(2, 2)]);
    let mut reader = WalReader::new(maker.start, expect());
    assert_eq!(reader.whole(), None);
    for (index, byte) in maker.bytes.iter().enumerate() {
        reader.feed(&[*byte], &mut |_| {}).unwrap();
        let position = maker.start.0 + index as u64 + 1;
        let whole: Vec<_> = spans.iter().filter(|span| span.end.0 <= position).collect();
        let found = reader.whole();
        if position < SEGMENT + 40 {
            assert_eq!(found, None);
            continue;
        }
        let wanted = (whole.last().map_or(Lsn(SEGMENT), |span| span.end), whole.len() as u64);
        assert_eq!(found.map(|extent| (extent.end, extent.records)), Some(wanted), "{position:X}");
    }
    let all = reader.extent();
    assert_eq!((reader.whole(), all.end, all.records, all.housekeeping), (Some(all), Lsn(maker.position()), 8, 2));
}

#[test]
fn the_rest_of_a_record_counts_where_it_ends() {
    let mut maker = Maker::new(SEGMENT);
    maker.filler(3 * BLOCK as usize);
    let after = maker.commit(1, 1);
    for page in 1..=3 {
        let start = Lsn(SEGMENT + page * BLOCK);
        for mut reader in [WalReader::new(start, expect()), WalReader::of_piece(start, 1)] {
            let offset = (page * BLOCK) as usize;
            assert_eq!(feed(&mut reader, &maker.bytes[offset..], 1000).0, [commit(after, 1, 1)]);
            assert_eq!(reader.whole().map(|extent| (extent.end, extent.records)), Some((after.end, 2)));
            assert_eq!(reader.counts().total(), 1);
        }
    }
}

/// Random records, with what they tell.
fn random_log(lens: &[usize]) -> (Maker, Vec<Span>) {
    let mut maker = Maker::new(7 * SEGMENT);
    let spans = lens
        .iter()
        .map(|len| match len % 5 {
            0 => maker.commit(*len as u32, *len as i64),
            1 if *len > 19_900 => maker.switch(),
            _ => maker.filler(*len),
        })
        .collect();
    (maker, spans)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the start, what is read is what a reader from the beginning reads from there on.
    #[test]
    fn reading_can_begin_anywhere(lens in prop::collection::vec(0..20_000_usize, 1..40), at: prop::sample::Index, pieces in prop::collection::vec(1..30_000_usize, 1..20)) {
        let (maker, spans) = random_log(&lens);
        let (all, _) = feed(&mut WalReader::new(maker.start, expect()), &maker.bytes, usize::MAX);
        let start = at.index(maker.bytes.len());
        let from = Lsn(maker.start.0 + start as u64);
        let mut reader = WalReader::new(from, expect());
        let (mut events, mut rest) = (Vec::new(), &maker.bytes[start..]);
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(*piece));
            prop_assert_eq!(reader.feed(now, &mut |event| events.push(event)), Ok(()));
            rest = later;
        }
        // in a page, reading begins with the next one
        let next_page = from.0.next_multiple_of(BLOCK);
        let first = spans.iter().find(|span| span.start.0 >= next_page).map(|span| span.start);
        prop_assert_eq!(reader.first_record(), first);
        let expected: Vec<_> = all.into_iter().filter(|event| first.is_some_and(|first| event.span.start >= first)).collect();
        prop_assert_eq!(events, expected);

        // where a record is known to begin, nothing is passed over
        let begin = spans[at.index(spans.len())];
        let mut reader = WalReader::at_record(begin.start, expect());
        let offset = (begin.start.0 - maker.start.0) as usize;
        prop_assert_eq!(feed(&mut reader, &maker.bytes[offset..], 5000).1, Ok(()));
        prop_assert_eq!(reader.first_record(), Some(begin.start));
        // and after another one it has to be the next
        let offset = (begin.end.0 - maker.start.0) as usize;
        prop_assert_eq!(feed(&mut WalReader::after(begin, expect()), &maker.bytes[offset..], 5000).1, Ok(()));
        if offset < maker.bytes.len() {
            let other = Span { start: Lsn(begin.start.0 + 8), ..begin };
            let result = feed(&mut WalReader::after(other, expect()), &maker.bytes[offset..], 5000).1;
            let previous = matches!(result, Err(WalError { problem: Problem::PreviousRecord { .. }, .. }));
            prop_assert!(previous, "{:?}", result);
        }
    }

    /// A piece tells of what log it is, and the same as it does within that.
    #[test]
    fn a_piece_is_read_without_knowing_its_log(lens in prop::collection::vec(0..20_000_usize, 1..40), at: prop::sample::Index, piece in 1..30_000_usize) {
        let (maker, spans) = random_log(&lens);
        let (all, _) = feed(&mut WalReader::new(maker.start, expect()), &maker.bytes, usize::MAX);
        let begin = at.index(spans.len());
        let start = spans[begin].end;
        let offset = (start.0 - maker.start.0) as usize;
        let mut reader = WalReader::of_piece(start, 1);
        let (events, result) = feed(&mut reader, &maker.bytes[offset..], piece);
        prop_assert_eq!(result, Ok(()));
        let expected: Vec<_> = all.into_iter().filter(|event| event.span.start >= start).collect();
        prop_assert_eq!(events, expected);
        prop_assert_eq!(reader.extent().records, (spans.len() - begin - 1) as u64);
    }

    /// A bit that flips in a record or the header of a page is found, at the latest where the next page begins.
    #[test]
    fn flipped_bits_are_found(lens in prop::collection::vec(0..6000_usize, 1..40), at: prop::sample::Index, bit in 0..8_u8) {
        let (mut maker, spans) = random_log(&lens);
        maker.filler(20_000);
        let index = at.index(maker.bytes.len() - 20_000);
        let lsn = maker.start.0 + index as u64;
        let (page, offset) = (lsn / BLOCK * BLOCK, lsn % BLOCK);
        let header = if page.is_multiple_of(SEGMENT) { 40 } else { 24 };
        // what no reader looks at: padding of records and page headers, the rest of a segment, the flag of removable blocks
        let inside = spans.iter().any(|span| span.start.0 <= lsn && lsn < span.end.0);
        let padding = spans.iter().any(|span| lsn < span.end.0 && span.end.0 - lsn <= 8);
        let ignored = if offset < header { (20..24).contains(&offset) || (offset == 2 && bit == 2) } else { !inside || padding };
        let all = feed(&mut WalReader::new(maker.start, expect()), &maker.bytes, usize::MAX).0;
        maker.bytes[index] ^= 1 << bit;
        let (events, result) = feed(&mut WalReader::new(maker.start, expect()), &maker.bytes, 5000);
        prop_assert!(result.is_err() || ignored, "{} bit {}", Lsn(lsn), bit);
        // and nothing untrue was told before
        prop_assert!(all.starts_with(&events));
    }

    /// No bytes make a reader panic, or go on for ever.
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000), start: u32, version in prop::sample::select(Version::ALL.to_vec())) {
        let expect = super::Expect { version, ..expect() };
        for mut reader in [WalReader::new(Lsn(start.into()), expect), WalReader::at_record(Lsn(start.into()), expect)] {
            let _ = feed(&mut reader, &bytes, 100);
        }
        // records with good checksums and any contents
        let mut maker = Maker { version, ..Maker::new(SEGMENT) };
        for body in bytes.chunks(100) {
            let manager = u8::from(body.len() > 50);
            maker.record(manager, body[0], 5, &with_len(&body[1..]));
            maker.record(manager, body[0], 5, body);
            let _ = feed(&mut WalReader::new(maker.start, expect), &maker.bytes, 1000);
            maker = Maker { version, ..Maker::new(SEGMENT) };
        }
    }
}
