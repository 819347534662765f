//! Recovery from segments that are put together from slices.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hindsight_postgres::restore::{LogSlice, Piece, Segments, Wanted};
use hindsight_postgres::wal::{Event, History, Segment, SegmentSize, WalFile, WalReader};
use hindsight_postgres::{Lsn, TimelineId, point};
use hindsight_testkit::Postgres;

use super::{expect, log, options, recover_to, run};

/// Bytes of the log, in slices as a repository has them: each with the timelines of its frames.
fn slices(start: Lsn, log: &[u8], history: &History, bounds: &[usize]) -> (Vec<LogSlice>, Vec<Vec<u8>>) {
    let at = |bytes: usize| Lsn(start.0 + bytes as u64);
    let point =
        |bytes| point("2026-03-01T10:00:00Z".parse().unwrap(), at(bytes), history.at(Lsn(at(bytes).0 - 1))).unwrap();
    let slice = |pair: &[usize]| {
        let (from, to) = (pair[0], pair[1]);
        let name = format!("{}_{}.0000000001.log.zst", point(from).key_text(), point(to).key_text()).parse().unwrap();
        let mut frames = Vec::new();
        for timeline in 1..=history.timeline() {
            let (begin, end) = history.range(timeline).unwrap();
            let frame = at(from).max(begin)..end.map_or(at(to), |end| end.min(at(to)));
            if frame.start < frame.end {
                let raw_len = u32::try_from(frame.end.0 - frame.start.0).unwrap();
                let frame = serde_json::json!({ "l": 0, "r": raw_len, "c": 0, "s": timeline });
                frames.push(serde_json::from_value(frame).unwrap());
            }
        }
        (LogSlice::by_frames(&name, &frames).unwrap(), log[from..to].to_vec())
    };
    bounds.windows(2).map(slice).unzip()
}

/// Writes every file that a server could ask for.
fn write(segments: &Segments, stored: &[Vec<u8>], start: Lsn, end: Lsn, archive: &Path) -> Vec<String> {
    let size = SegmentSize::DEFAULT;
    let numbers = Segment::at(1, start, size).number..=Segment::at(1, end, size).number + 1;
    let names = (1..=4).flat_map(|timeline: TimelineId| {
        let segments = numbers.clone().map(move |number| WalFile::Segment(Segment { timeline, number }));
        segments.chain([WalFile::History(timeline)])
    });
    let mut written = Vec::new();
    for name in names.map(|file| file.name(size)) {
        let content = match segments.wants(&name) {
            Wanted::Nothing => continue,
            Wanted::History(text) => text.into_bytes(),
            Wanted::Segment(pieces) => {
                let each = |piece: &Piece| match piece {
                    Piece::Stored { slice, bytes } => stored[*slice][bytes.start as usize..bytes.end as usize].to_vec(),
                    Piece::Zeros(zeros) => vec![0; *zeros as usize],
                    Piece::Made(bytes) => bytes.clone(),
                };
                pieces.iter().flat_map(each).collect()
            }
        };
        fs::write(archive.join(&name), content).unwrap();
        written.push(name);
    }
    written
}

async fn caught_up(standby: &Postgres, server: &Postgres) {
    let end = server.sql("select pg_current_wal_lsn()").await.unwrap();
    while standby.sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'")).await.unwrap() != "t" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_recovers_across_a_switch_and_to_the_cut() {
    // Nobody but the test commits.
    let options = options().set("autovacuum", "off");
    let server = Postgres::start(options.clone()).await.unwrap();
    let insert = "insert into event select from generate_series(1, 100)";
    run(&server, &["create table event (id serial primary key)", insert]).await;
    let standby = server.standby(options).await.unwrap();
    run(&server, &[insert, "checkpoint"]).await;
    caught_up(&standby, &server).await;
    // The backup of a standby begins amid a segment, as it cannot go on to the next.
    standby.sql("checkpoint").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    let mut backup = standby.program("pg_basebackup");
    backup.arg("-D").arg(&base).args(["-X", "none", "-c", "fast", "--no-manifest"]);
    assert!(backup.status().unwrap().success());
    fs::remove_file(base.join("standby.signal")).unwrap();
    let label = fs::read_to_string(base.join("backup_label")).unwrap();
    let begin: Lsn = label.strip_prefix("START WAL LOCATION: ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(begin.0 % (16 << 20) > 8192, "{begin}");

    run(&server, &[insert, "select pg_switch_wal()", insert]).await;
    caught_up(&standby, &server).await;
    standby.promote().await.unwrap();
    run(
        &standby,
        &["insert into event values (1000), (1001)", "select pg_switch_wal()", "insert into event values (1002)"],
    )
    .await;
    let expect = expect(&standby, 2).await;
    standby.stop().await.unwrap();
    let text = fs::read_to_string(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
    let history = History::parse(2, &text).unwrap();
    let switch = history.range(2).unwrap().0;

    // Timeline 1 up to the segment of the switch, and timeline 2 from there on.
    let (old_start, old) = log(&standby, 1);
    let (new_start, new) = log(&standby, 2);
    let bytes = [&old[(begin.0 - old_start.0) as usize..(new_start.0 - old_start.0) as usize], &new].concat();
    let (mut reader, mut events) = (WalReader::at_record(begin, expect), Vec::new());
    reader.feed(&bytes, &mut |event: Event| events.push(event)).unwrap_err();
    let commits: Vec<_> = events.iter().filter(|event| event.what.is_commit()).collect();
    let [.., first, last] = commits.as_slice() else { panic!("{commits:?}") };
    let end = (reader.last_record().unwrap().end.0 - begin.0) as usize;

    // Three slices, the second of which holds the switch; those of the base itself overlap with them.
    let middle = (switch.0 - begin.0) as usize;
    let (all, stored) = slices(begin, &bytes, &history, &[0, middle / 3, middle + (end - middle) / 2, end]);
    for (cut, wanted) in [(first, "402|1001"), (last, "403|1002")] {
        let segments = Segments::new(&all, &History::first(), cut.span.end, expect).unwrap();
        assert_eq!((segments.timeline(), segments.history().range(1)), (2, history.range(1)));
        let archive = standby.new_folder(&format!("archive {}", cut.span.end.0)).unwrap();
        let written = write(&segments, &stored, begin, cut.span.end, &archive);
        assert!(written.contains(&"00000002.history".to_owned()), "{written:?}");
        let stop = cut.span.start.to_string();
        let (found, log) = recover_to(
            &base,
            &archive,
            &[("recovery_target_lsn", &stop), ("recovery_target_inclusive", "true"), ("recovery_target_timeline", "2")],
        )
        .await;
        assert_eq!(found, wanted, "{log}");
        assert!(log.contains("selected new timeline ID: 3"), "{log}");
    }
}
