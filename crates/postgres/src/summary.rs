//! What a piece of the log says of itself.

use hindsight_format::LogSummary;

use crate::wal::{Event, What};

/// Records that take more bytes of the log than this are counted without being told apart: a slice may end amid one, and
/// which is which is known only where all of it is read.
pub(crate) const LONG: u64 = 16 << 20;

/// What records are that are not told apart.
const OTHER: &str = "other";

/// Counts `records`, of which `events` are those that tell something.
pub(crate) fn count<'a>(summary: &mut LogSummary, records: u64, events: impl IntoIterator<Item = &'a Event>) {
    let mut others = records;
    let mut notable = 0;
    for Event { span, what } in events {
        if span.end.since(span.start).is_none_or(|bytes| bytes > LONG) {
            continue;
        }
        notable += u64::from(what.is_notable());
        if let Some(time) = what.time() {
            let second = time.as_second();
            *summary.histogram.entry(second - second.rem_euclid(60)).or_default() += 1;
        }
        let kind = match what {
            What::Commit { .. } | What::CommitPrepared { .. } => "commit",
            What::Abort { .. } | What::AbortPrepared { .. } => "abort",
            What::Prepare { .. } => "prepare",
            What::Checkpoint(_) => "checkpoint",
            What::RestorePoint { name, .. } => {
                add(summary, &restore_point(name), "set", 1);
                others = others.saturating_sub(1);
                continue;
            }
            _ => continue,
        };
        add(summary, "", kind, 1);
        others = others.saturating_sub(1);
    }
    add(summary, "", OTHER, others);
    summary.records += records;
    *summary.notable.get_or_insert(0) += notable;
}

/// Under what a named restore point is counted.
pub(crate) fn restore_point(name: &str) -> String {
    format!("restore point/{name}")
}

fn add(summary: &mut LogSummary, namespace: &str, kind: &str, number: u64) {
    if number > 0 {
        *summary.counts.entry(namespace.to_owned()).or_default().entry(kind.to_owned()).or_default() += number;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use jiff::Timestamp;

    use super::*;
    use crate::wal::{Span, WalLevel};
    use crate::{Lsn, point};

    #[test]
    fn records_are_told_apart_unless_they_are_long() {
        let time: Timestamp = "2026-03-01T10:00:59.9Z".parse().unwrap();
        let start = point(time, Lsn(100), 1).unwrap();
        let event = |bytes, what| Event { span: Span { start: Lsn(200), end: Lsn(200 + bytes) }, what };
        let point = What::RestorePoint { name: "before it".to_owned(), time };
        let events = [
            event(40, What::Commit { xid: 1, time }),
            event(40, What::CommitPrepared { xid: 1, gid: None, time }),
            event(LONG, What::Abort { xid: 1, time }),
            event(LONG + 1, What::Commit { xid: 1, time }),
            event(40, What::SegmentSwitch),
            event(40, point),
            event(40, What::CreateTablespace { oid: 16_385, location: "/mnt/fast".to_owned() }),
            event(40, What::ParameterChange { wal_level: WalLevel::Minimal }),
            event(40, What::ParameterChange { wal_level: WalLevel::Replica }),
        ];
        let mut all = LogSummary::starting_at(start.clone());
        count(&mut all, 10, &events);
        let counts = serde_json::to_value(&all.counts).unwrap();
        let wanted =
            serde_json::json!({"": {"commit": 2, "abort": 1, "other": 6}, "restore point/before it": {"set": 1}});
        assert_eq!((counts, all.records, all.notable), (wanted, 10, Some(2)));
        let minute = "2026-03-01T10:00:00Z".parse::<Timestamp>().unwrap().as_second();
        assert_eq!(all.histogram, [(minute, 4)].into());
        // In parts it comes to the same.
        let (mut first, mut second) = (LogSummary::starting_at(start.clone()), LogSummary::starting_at(start));
        count(&mut first, 7, &events[..4]);
        count(&mut second, 3, &events[4..]);
        first.absorb(&second);
        assert_eq!(first, all);
    }
}
