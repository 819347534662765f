//! What was read of a log, against what pg_waldump reads of it.

use std::collections::BTreeMap;

use hindsight_postgres::Lsn;
use hindsight_postgres::wal::{Event, WalLevel, WalReader, What};
use hindsight_testkit::Postgres;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time as pg_waldump shows it.
pub fn shown(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S%.6f UTC").to_string()
}

/// What pg_waldump says of an event, as far as it says the same.
fn described(event: &Event) -> String {
    let level = |level: &WalLevel| match level {
        WalLevel::Minimal => "minimal",
        WalLevel::Replica => "replica",
        WalLevel::Logical => "logical",
    };
    match &event.what {
        What::Commit { time, .. } => format!("COMMIT {}", shown(*time)),
        What::CommitPrepared { xid, time, .. } => format!("COMMIT_PREPARED {xid}: {}", shown(*time)),
        What::Abort { time, .. } => format!("ABORT {}", shown(*time)),
        What::AbortPrepared { xid, time, .. } => format!("ABORT_PREPARED {xid}: {}", shown(*time)),
        What::Prepare { gid, time, .. } => format!("PREPARE gid {gid}: {}", shown(*time)),
        What::RestorePoint { name, .. } => format!("RESTORE_POINT {name}"),
        What::SegmentSwitch => "SWITCH".to_owned(),
        What::Checkpoint(checkpoint) => format!(
            "CHECKPOINT_{} redo {}; tli {}; prev tli {};",
            if checkpoint.shutdown { "SHUTDOWN" } else { "ONLINE" },
            checkpoint.redo,
            checkpoint.timeline,
            checkpoint.previous,
        ),
        What::EndOfRecovery { timeline, previous, time } => {
            format!("END_OF_RECOVERY tli {timeline}; prev tli {previous}; time {}", shown(*time))
        }
        What::ParameterChange { wal_level } => format!("PARAMETER_CHANGE {}", level(wal_level)),
        What::BackupEnd { start } => format!("BACKUP_END {start}"),
        What::OverwriteContrecord { overwritten, time } => {
            format!("OVERWRITE_CONTRECORD lsn {overwritten}; time {}", shown(*time))
        }
        What::CreateTablespace { oid, location } => format!("CREATE {oid} \"{location}\""),
        What::CopyDatabase { from, to } => format!("CREATE_FILE_COPY {from} {to}"),
        other => panic!("{other:?}"),
    }
}

const TOLD: [&str; 15] = [
    "COMMIT",
    "COMMIT_PREPARED",
    "ABORT",
    "ABORT_PREPARED",
    "PREPARE",
    "RESTORE_POINT",
    "SWITCH",
    "CHECKPOINT_SHUTDOWN",
    "CHECKPOINT_ONLINE",
    "END_OF_RECOVERY",
    "PARAMETER_CHANGE",
    "BACKUP_END",
    "OVERWRITE_CONTRECORD",
    "CREATE",
    "CREATE_FILE_COPY",
];

/// `field` of a line of pg_waldump, which begins `rmgr: Heap        len (rec/tot):     54/   330, tx:        744, lsn: 0/...`.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let rest = line.split_once(name).unwrap_or_else(|| panic!("{line}")).1;
    rest.trim_start().split([',', ' ']).next().unwrap()
}

/// Compares what was read of a log on disk with what pg_waldump reads of it.
pub fn compare(server: &Postgres, timeline: u32, events: &[Event], reader: &WalReader) {
    let (first, last) = (reader.first_record().unwrap(), reader.last_record().unwrap());
    let mut dump = server.program("pg_waldump");
    dump.env("TZ", "UTC").arg("-p").arg(server.data_dir().join("pg_wal"));
    dump.args(["-t", &timeline.to_string(), "-s", &first.to_string()]);
    // It ends with a complaint, as it cannot know where the log does.
    let output = dump.output().unwrap();
    let dump = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut expected = Vec::new();
    let mut end = None;
    for line in dump.lines() {
        let manager = field(line, "rmgr:");
        *counts.entry(manager.to_owned()).or_default() += 1;
        let lsn: Lsn = field(line, "lsn:").parse().unwrap();
        let description = line.split_once("desc: ").unwrap().1;
        if ["XLOG", "Transaction", "Tablespace", "Database"].contains(&manager)
            && TOLD.contains(&description.split(' ').next().unwrap().trim())
        {
            expected.push((lsn, field(line, "tx:").parse::<u32>().unwrap(), description));
        }
        end = Some(lsn);
    }
    assert_eq!(end, Some(last.start), "{}", String::from_utf8_lossy(&output.stderr));
    let found: BTreeMap<String, u64> = reader.counts().iter().map(|(manager, n)| (manager.to_string(), n)).collect();
    assert_eq!(found, counts);
    assert_eq!(events.len(), expected.len());
    for (event, (lsn, tx, description)) in events.iter().zip(expected) {
        assert_eq!(event.span.start, lsn);
        let ours = described(event);
        let same = match &event.what {
            // `max_connections=100 ... wal_level=logical ...`
            What::ParameterChange { .. } => {
                ours.replace(' ', "") == format!("PARAMETER_CHANGE{}", field(description, "wal_level="))
            }
            What::Checkpoint(checkpoint) => {
                let next = format!("xid {}:{};", checkpoint.next_xid >> 32, checkpoint.next_xid as u32);
                description.starts_with(&ours) && description.contains(&next)
            }
            // `copy dir 1663/1 to 1663/16384`: tablespaces, and databases in them.
            What::CopyDatabase { from, to } => {
                let oids: Vec<&str> = description.split([' ', '/']).collect();
                let (first, second) = (from.to_string(), to.to_string());
                matches!(&oids[..], ["CREATE_FILE_COPY", "copy", "dir", _, source, "to", _, copy, ..]
                    if *source == first && *copy == second)
            }
            What::Commit { xid, .. } | What::Abort { xid, .. } => description.starts_with(&ours) && *xid == tx,
            _ => description.starts_with(&ours),
        };
        assert!(same, "{description}\n{ours}");
    }
}
