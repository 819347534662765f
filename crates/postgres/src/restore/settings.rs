//! What a server is told: while it replays the log, and afterwards.

use std::collections::BTreeMap;

use hindsight_engine::Result;

use super::configuration;
use crate::Lsn;
use crate::TimelineId;
use crate::base::StoredBase;
use crate::server::{Folder, PRIVATE};

/// Settings that must not be smaller than they were where the log was written, with what is enough for most.
const AT_LEAST: [(&str, u64); 3] =
    [("max_connections", 100), ("max_prepared_transactions", 1000), ("max_locks_per_transaction", 64)];

/// What a copy must not do, as it would meddle with what belongs to its source: archive over the source's log, follow
/// the source's primary, wait for the source's standbys, overwrite the file that names its process.
const COPY: [(&str, &str); 6] = [
    ("archive_mode", "off"),
    ("external_pid_file", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("restore_command", ""),
    ("synchronous_standby_names", ""),
];

/// Keeps a copy from taking the changes that its source has subscribed to.
const NO_SUBSCRIPTIONS: (&str, &str) = ("max_logical_replication_workers", "0");

/// Where a recovery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecoveryTarget {
    /// Where the last record begins that is replayed.
    pub(crate) last: Lsn,
    /// The timeline of that.
    pub(crate) timeline: TimelineId,
    /// What the server runs for each file of the log.
    pub(crate) command: String,
}

/// Settings of a server that nobody but us talks to, and that does nothing by itself. With a target it recovers.
///
/// What was set where the base comes from does not count: its files may name libraries, keys and folders that are not here.
pub(crate) fn isolated(base: &StoredBase, target: Option<&RecoveryTarget>) -> String {
    let mut settings: BTreeMap<&str, String> = BTreeMap::new();
    for (name, enough) in AT_LEAST {
        let source = base.settings.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        settings.insert(name, enough.max(source).to_string());
    }
    // Extensions may have records of their own in the log.
    if let Some(libraries) = base.settings.get("shared_preload_libraries") {
        settings.insert("shared_preload_libraries", libraries.clone());
    }
    for (name, value) in [
        ("listen_addresses", ""),
        ("unix_socket_directories", PRIVATE),
        ("unix_socket_permissions", "0700"),
        ("port", "5432"),
        ("ssl", "off"),
        ("hot_standby", "off"),
        ("archive_mode", "off"),
        ("wal_level", "replica"),
        ("max_wal_senders", "0"),
        // No jobs of extensions, no subscriptions.
        ("max_worker_processes", "0"),
        ("autovacuum", "off"),
        // A server that ends its recovery without it throws away the times of commits that there are.
        ("track_commit_timestamp", "on"),
        // What is changed again is not written each time.
        ("shared_buffers", "512MB"),
        // Segments that have been replayed would stay under new names, to be written to disk with all else, and never be used.
        ("wal_recycle", "off"),
        // All is written through at once, when the server is done.
        ("fsync", "off"),
        ("restart_after_crash", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_line_prefix", ""),
        ("log_checkpoints", "off"),
        ("lc_messages", "C"),
    ] {
        settings.insert(name, value.to_owned());
    }
    // They are looked for in the folder that the server was started in.
    for (name, file) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
        settings.insert(name, format!("{PRIVATE}/{file}"));
    }
    if base.major >= 17 {
        settings.insert("event_triggers", "off".to_owned());
    }
    if let Some(RecoveryTarget { last, timeline, command }) = target {
        settings.insert("restore_command", command.clone());
        settings.insert("recovery_target_lsn", last.to_string());
        settings.insert("recovery_target_inclusive", "on".to_owned());
        settings.insert("recovery_target_timeline", timeline.to_string());
        settings.insert("recovery_target_action", "promote".to_owned());
    }
    settings.iter().map(|(name, value)| line(name, value)).collect()
}

/// A line of a file of settings, as servers read it (guc-file.l).
fn line(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n");
    format!("{name} = '{value}'\n")
}

/// The file that `ALTER SYSTEM` writes, which counts whatever the other says.
const AUTO: &str = "postgresql.auto.conf";

/// Takes the file of `ALTER SYSTEM` away for as long as the server is ours: it would count more than our settings. Gives what
/// was in it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn put_aside(data: &Folder) -> Result<Vec<u8>> {
    let before = data.read(AUTO)?.unwrap_or_default();
    data.remove(AUTO)?;
    Ok(before)
}

/// What a restored server is to be like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// What was in the file of `ALTER SYSTEM`.
    pub(crate) before: Vec<u8>,
    /// Its port, if it is another one than it was.
    pub(crate) port: Option<u16>,
    /// Whether there are subscriptions that it must not take up.
    pub(crate) subscribed: bool,
    /// The base, where its configuration lies elsewhere and has to be made.
    pub(crate) configured_outside: Option<StoredBase>,
    /// The directory whose place it takes, to be configured as that is.
    pub(crate) replaces: Option<Folder>,
}

/// Writes the settings that a restored server has from now on. Gives what is to be told of that.
///
/// # Errors
/// Those of the file system.
pub(crate) fn leave(data: &Folder, standing: &Standing) -> Result<Option<String>> {
    let (mut before, mut settings, mut told) = (standing.before.clone(), Vec::new(), None);
    // How it was started by us is not how it is to be started.
    data.remove(configuration::OPTIONS)?;
    match &standing.replaces {
        None => {
            settings.extend(COPY);
            settings.extend(standing.subscribed.then_some(NO_SUBSCRIPTIONS));
        }
        Some(replaced) => {
            told = configuration::take_over(replaced, data)?.map(|why| {
                format!("not all of the configuration of {} could be copied: {why}", replaced.path().display())
            });
            before = data.read(AUTO)?.unwrap_or(before);
        }
    }
    let port = standing.port.map(|port| port.to_string());
    settings.extend(port.as_deref().map(|port| ("port", port)));
    data.write(AUTO, &with(&before, &settings))?;
    if let Some(base) = &standing.configured_outside {
        for (name, text) in made(base) {
            if !data.has(name)? {
                data.write(name, text.as_bytes())?;
            }
        }
    }
    Ok(told)
}

/// The file of `ALTER SYSTEM` with other values for some settings. It may be in any encoding.
fn with(before: &[u8], settings: &[(&str, &str)]) -> Vec<u8> {
    let sets = |line: &[u8], name: &str| {
        let found = line.trim_ascii_start().split(|byte| *byte == b'=' || byte.is_ascii_whitespace()).next();
        found.is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()))
    };
    let mut text = Vec::with_capacity(before.len());
    for line in before.split_inclusive(|byte| *byte == b'\n') {
        if !settings.iter().any(|(name, _)| sets(line, name)) {
            text.extend_from_slice(line);
        }
    }
    if text.is_empty() {
        text.extend_from_slice(
            b"# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command.\n",
        );
    } else if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    for (name, value) in settings {
        text.extend_from_slice(line(name, value).as_bytes());
    }
    text
}

/// The least that a server needs, where its source keeps this elsewhere.
fn made(base: &StoredBase) -> [(&'static str, String); 3] {
    let settings: String = base.settings.iter().map(|(name, value)| line(name, value)).collect();
    let settings =
        format!("# The source keeps its configuration outside of its data directory: this is a new one.\n{settings}");
    let access = "# The source keeps its configuration outside of its data directory: this is a new one.\n\
                  local all all peer\nhost all all 127.0.0.1/32 scram-sha-256\nhost all all ::1/128 scram-sha-256\n";
    [("postgresql.conf", settings), ("pg_hba.conf", access.to_owned()), ("pg_ident.conf", String::new())]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn base() -> StoredBase {
        StoredBase {
            system_identifier: 7_000_000_000_000_000_001,
            server_version: "15.18".to_owned(),
            major: 15,
            wal_segment_size: 16 << 20,
            wal_block_size: 8192,
            block_size: 8192,
            relation_blocks: 131_072,
            data_checksums: true,
            standby: false,
            start: Lsn(0x200_0028),
            start_timeline: 1,
            stop: Lsn(0x200_0100),
            timeline: 1,
            history: String::new(),
            tablespaces: Vec::new(),
            databases: Vec::new(),
            settings: BTreeMap::new(),
            increment: None,
            configured_outside: false,
        }
    }

    #[test]
    fn settings_are_at_least_those_of_the_source() {
        let mut base = base();
        base.settings.insert("max_connections".to_owned(), "400".to_owned());
        base.settings.insert("max_locks_per_transaction".to_owned(), "10".to_owned());
        base.settings.insert("shared_preload_libraries".to_owned(), "a,\"b'\"".to_owned());
        let text = isolated(&base, None);
        for line in [
            "max_connections = '400'",
            "max_locks_per_transaction = '64'",
            "max_prepared_transactions = '1000'",
            "shared_preload_libraries = 'a,\"b''\"'",
            "listen_addresses = ''",
            "hot_standby = 'off'",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("recovery_target") && !text.contains("event_triggers"));
        let newer = isolated(&StoredBase { major: 17, ..base.clone() }, None);
        assert!(newer.contains("event_triggers = 'off'\n"));
        let command = r"'/a b\c' restore-wal --socket s %f %p".to_owned();
        let target = RecoveryTarget { last: Lsn(0x300_0028), timeline: 2, command };
        let text = isolated(&base, Some(&target));
        assert!(text.contains(r"restore_command = '''/a b\\c'' restore-wal --socket s %f %p'"), "{text}");
        assert!(
            text.contains("recovery_target_lsn = '0/3000028'\n") && text.contains("recovery_target_timeline = '2'\n")
        );
    }

    #[test]
    fn what_was_set_by_hand_stays_but_for_what_a_copy_must_not_do() {
        // One value is in Latin-1.
        let before = b"# Do not edit\nArchive_Mode = 'on'\ncluster_name='caf\xE9'\n port=5433\narchive_mode_x = '1'";
        let text = with(before, &[("archive_mode", "off"), ("port", "6000")]);
        let expected =
            b"# Do not edit\ncluster_name='caf\xE9'\narchive_mode_x = '1'\narchive_mode = 'off'\nport = '6000'\n";
        assert_eq!(text, expected);
        assert!(with(b"", &[("port", "1")]).starts_with(b"# Do not edit this file manually!\n"));
    }
}
