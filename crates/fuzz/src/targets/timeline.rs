//! What a repository's names and records come to: timelines, plans, groups to merge.

use hindsight_catalog::{
    History, Target, Wish, plan, redundant, removal, slices_to_merge, stretch, timeline as timeline_of, without,
};
use hindsight_format::{EpochRecord, GapRecord, Point, SnapshotManifest, StoredGap, StoredSlice, format_time};
use jiff::Timestamp;

/// One thing a line: the name of a slice, or the JSON of a manifest, an epoch or a gap.
pub(crate) fn timeline(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let history = read(text);
    let timeline = timeline_of(&history);
    // A snapshot counts for its epoch, and for those that branch off that behind it.
    assert!(timeline.ranges.len() <= history.snapshots.len() * (history.epochs.len() + 1));
    for record in &history.epochs {
        let slices = history.slices_of(record.number).filter(|slice| slice.epoch != record.number);
        assert!(slices.count() == 0 || record.branch.is_some());
        assert!(
            timeline_of(&history.clone().until_epoch(record.number)).ranges.iter().all(|r| r.epoch <= record.number)
        );
    }
    let streams: Vec<&str> = history.slices.iter().map(|slice| slice.stream.as_str()).collect();
    let mut points: Vec<&Point> =
        history.slices.iter().flat_map(|slice| [&slice.name.start, &slice.name.end]).take(8).collect();
    points.extend(history.snapshots.iter().flat_map(|s| s.streams.values()).flat_map(|s| [&s.first, &s.last]).take(4));
    for point in points {
        format_time(point.time);
        if let Ok(plan) = removal(&history, &[], &Wish::Everything { before: point.time }, None) {
            assert_eq!(timeline_of(&without(&history, &plan)).ranges, plan.left);
        }
        let through = Target::Through { time: point.time, order: point.position.order().to_owned() };
        for target in [Target::Before(point.time), through.clone(), Target::Latest] {
            if let Ok(plan) = plan(&history, &target, None, point.time) {
                assert!(history.snapshot(&plan.base.id).is_some());
            }
            let _ = stretch(&history, &target, &through).map(|stretch| stretch.slices.len());
        }
    }
    let merged = slices_to_merge(&history.slices, 10, Some(Timestamp::MAX), 1 << 40);
    assert!(merged.iter().all(|group| group.len() > 1));
    assert!(redundant(&history.slices).len() <= streams.len());
}

fn read(text: &str) -> History {
    let mut history = History { cluster: "c".to_owned(), ..History::default() };
    for line in text.lines().take(64) {
        let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
        let epoch = rest.parse().unwrap_or(1);
        if let Ok(name) = head.parse() {
            let stored_bytes = line.len() as u64 | epoch << 40;
            history.slices.push(StoredSlice { stream: "rs0".to_owned(), epoch, name, stored_bytes });
        } else if let Ok(manifest) = serde_json::from_str::<SnapshotManifest>(line) {
            history.snapshots.push(manifest);
        } else if let Ok(record) = serde_json::from_str::<EpochRecord>(line) {
            history.epochs.push(record);
        } else if let Ok(record) = serde_json::from_str::<GapRecord>(line) {
            history.gaps.push(StoredGap { stream: "rs0".to_owned(), epoch, record });
        }
    }
    history
}
