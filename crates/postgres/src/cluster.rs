//! The server: who it is, what its log is like, who follows it.

use std::ops::RangeInclusive;

use hindsight_engine::{EngineError, FailureKind, LogRoom, Member, Probe, Result};
use hindsight_format::{ClusterIdentity, check_name};
use jiff::Timestamp;

use crate::wal::{Expect, History, SegmentSize, Version};
use crate::wire::{Connection, Replication, Row, SystemIdentity, quote_text};
use crate::{Address, Lsn, NAME, STREAM, TimelineId, point, slot};

/// Major versions that are protected: from the first one on whose replication sessions tell where a slot is, and whose backups
/// come in one copy.
pub(crate) const MAJORS: RangeInclusive<u32> = 15..=17;
/// `wal_block_size` of all packages; what is stored of a log is read as pages of this size.
const BLOCK: &str = "8192";

/// Who this is and how it is.
///
/// # Errors
/// The server cannot be reached or refuses, or is none that can be protected.
pub async fn probe(address: &Address) -> Result<Probe> {
    // One that understands both statements and replication commands: what stands between may not let the latter pass.
    let mut connection = Connection::connect(address, Replication::Database).await?;
    require_supported(&connection)?;
    let doing = "asking how the server is";
    let system = connection.identify_system().await?;
    let standby = connection.in_recovery().await?;
    let statement = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint AS clock, \
                     pg_catalog.current_setting('cluster_name') AS name";
    let rows = connection.query(statement, doing).await?;
    let row = rows.first().ok_or_else(|| odd("there is no row in it"))?;
    let clock = number::<i64>(row, "clock").and_then(|micros| Timestamp::from_microsecond(micros).ok());
    let clock = clock.ok_or_else(|| odd("it tells no time"))?;
    let id = system.system.to_string();
    let head = point(clock, system.flushed, system.timeline).map_err(|error| odd(&error.to_string()))?;
    let own = Member {
        host: connection.host().to_string(),
        role: if standby { "standby" } else { "primary" }.to_owned(),
        healthy: true,
        lag_secs: None,
    };
    let mut members = vec![own];
    members.extend(standbys(&mut connection, system.flushed).await?);
    let (log_room, warnings) = room(&mut connection, system.flushed).await?;
    let version = connection.parameter("server_version").unwrap_or_default();
    let probe = Probe {
        engine: NAME,
        natural_name: natural_name(row.get("name").unwrap_or_default(), &id),
        identity: ClusterIdentity { engine: NAME.to_owned(), id },
        streams: vec![STREAM.to_owned()],
        version: version.split(' ').next().unwrap_or_default().to_owned(),
        members,
        head,
        // Nothing tells when a position was written.
        log_start: None,
        log_room,
        warnings,
    };
    connection.close().await;
    Ok(probe)
}

/// The name that the server was given, if clusters may be called so: Debian's `15/main` may not, which all its servers have.
fn natural_name(given: &str, system: &str) -> String {
    if check_name(given, "cluster name").is_ok() {
        return given.to_owned();
    }
    let last = system.get(system.len().saturating_sub(8)..).unwrap_or(system);
    format!("pg-{last}")
}

/// The standbys that follow this server, as far as the role may see them. Who only stores its log replays nothing.
async fn standbys(connection: &mut Connection, flushed: Lsn) -> Result<Vec<Member>> {
    let statement = format!(
        "SELECT coalesce(r.client_hostname, pg_catalog.host(r.client_addr), 'local') AS host, \
                r.application_name AS name, r.state, \
                CASE WHEN r.replay_lsn >= {} THEN 0 ELSE extract(epoch FROM r.replay_lag)::bigint END AS lag \
         FROM pg_catalog.pg_stat_replication r \
         WHERE r.replay_lsn IS NOT NULL AND NOT EXISTS \
             (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid \
                AND (s.slot_type = 'logical' OR pg_catalog.starts_with(s.slot_name::text, {}))) \
         ORDER BY 1, 2",
        quote_text(&flushed.to_string()),
        quote_text(slot::PREFIX)
    );
    let rows = connection.query(&statement, "asking for the standbys").await?;
    let member = |row: Row| {
        let host = row.get("host").unwrap_or_default();
        let host = match row.get("name") {
            // What standbys are called that were given no name.
            None | Some("" | "walreceiver") => host.to_owned(),
            Some(name) => format!("{host} ({name})"),
        };
        let healthy = row.get("state") == Some("streaming");
        Member { host, role: "standby".to_owned(), healthy, lag_secs: number(&row, "lag") }
    };
    Ok(rows.into_iter().map(member).collect())
}

/// How much log the server still keeps for what captures it, and what is to be said of that. Whose slot is whose is not known here: of
/// those that are bounded the one that is in danger first counts.
async fn room(connection: &mut Connection, flushed: Lsn) -> Result<(Option<LogRoom>, Vec<String>)> {
    let statement = format!(
        "SELECT slot_name AS name, restart_lsn AS restart, safe_wal_size AS safe, wal_status AS status \
         FROM pg_catalog.pg_replication_slots \
         WHERE slot_type = 'physical' AND NOT temporary AND pg_catalog.starts_with(slot_name::text, {}) \
         ORDER BY safe_wal_size",
        quote_text(slot::PREFIX)
    );
    let rows = connection.query(&statement, "asking for the replication slots").await?;
    let (mut room, mut warnings) = (None, Vec::new());
    for row in &rows {
        let used = number::<Lsn>(row, "restart").map(|restart| flushed.since(restart).unwrap_or(0));
        let safe = number::<i64>(row, "safe").map(|safe| u64::try_from(safe).unwrap_or(0));
        if let Some((used, safe)) = used.zip(safe) {
            room.get_or_insert(LogRoom { used, capacity: used.saturating_add(safe), kept_secs: 0 });
        }
        let (name, status) = (row.get("name").unwrap_or_default(), row.get("status").unwrap_or_default());
        warnings.extend(in_danger(name, status, used, safe));
    }
    Ok((room, warnings))
}

/// What is to be said of a slot that may be lost, or fills the disk. `used` is what it keeps, `safe` what it may keep besides.
fn in_danger(name: &str, status: &str, used: Option<u64>, safe: Option<u64>) -> Option<String> {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let kept = mib(used.unwrap_or(0));
    Some(match (status, safe) {
        ("lost", _) => format!(
            "the server has given up the replication slot {name}, which kept more log than max_slot_wal_keep_size allows: there is \
             a gap in what is captured"
        ),
        ("unreserved", _) => format!(
            "the server gives up the replication slot {name} with its next checkpoint, and what is not captured yet is lost then: \
             raise max_slot_wal_keep_size now ({kept} are kept), and reload"
        ),
        (_, Some(safe)) if used.is_some_and(|used| used > safe) => format!(
            "the replication slot {name} keeps {kept} of log that is not captured yet, and is given up when it is {} more: see \
             what holds the capture back, or raise max_slot_wal_keep_size",
            mib(safe)
        ),
        ("extended", None) => format!(
            "the replication slot {name} keeps {kept} of log that is not captured yet, more than max_wal_size, and may fill the \
             disk: see what holds the capture back, or bound it by max_slot_wal_keep_size"
        ),
        _ => return None,
    })
}

fn number<T: std::str::FromStr>(row: &Row, column: &str) -> Option<T> {
    row.get(column)?.parse().ok()
}

fn odd(why: &str) -> EngineError {
    EngineError::new(FailureKind::Server, format!("the server's answer is not understood: {why}"))
}

/// Refuses servers of other major versions than those that are known.
pub(crate) fn require_supported(connection: &Connection) -> Result<Version> {
    let major = connection.major_version();
    let (first, last) = (MAJORS.start(), MAJORS.end());
    if let Some(version) = Version::from_major(major).filter(|_| MAJORS.contains(&major)) {
        return Ok(version);
    }
    let what = match connection.parameter("server_version") {
        Some(version) => format!("this is PostgreSQL {version}; {first} to {last} can be protected"),
        None => "this server does not say what version of PostgreSQL it is".to_owned(),
    };
    let hint = match major {
        0 => "connect to the server itself, not to what stands between",
        _ if major < *first => "upgrade the server",
        _ => "use a newer version of Hindsight, if there is one",
    };
    Err(EngineError::new(FailureKind::Unsupported, what).hint(hint))
}

/// What the server's log is like, on the timeline that it is on.
pub(crate) async fn parameters(connection: &mut Connection, system: &SystemIdentity) -> Result<Expect> {
    let version = require_supported(connection)?;
    let segment = connection.show("wal_segment_size").await?;
    let segment_size = bytes(&segment).and_then(SegmentSize::new);
    let segment_size = segment_size.ok_or_else(|| odd(&format!("wal_segment_size is {segment:?}")))?;
    let block = connection.show("wal_block_size").await?;
    if block != BLOCK {
        return Err(EngineError::new(FailureKind::Unsupported, format!("this server has log pages of {block} bytes"))
            .hint(format!("only servers that were built with pages of {BLOCK} bytes can be protected")));
    }
    let (system_identifier, timeline) = (system.system, system.timeline);
    Ok(Expect { system_identifier, version, timeline, segment_size, block_size: 8192 })
}

/// Bytes as servers show them, such as `16MB`.
fn bytes(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

/// Milliseconds as servers show them, such as `200ms` or `10s`.
pub(crate) fn milliseconds(text: &str) -> Result<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text.get(digits..).unwrap_or_default() {
        "" | "ms" => Some(1),
        "s" => Some(1000),
        "min" => Some(60_000),
        _ => None,
    };
    let number = text.get(..digits).and_then(|number| number.parse::<u32>().ok());
    let time = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    time.ok_or_else(|| odd(&format!("{text:?} is no time")))
}

/// Where a timeline comes from; none if the server has no file of it.
pub(crate) async fn history(connection: &mut Connection, timeline: TimelineId) -> Result<Option<History>> {
    if timeline == 1 {
        return Ok(Some(History::first()));
    }
    let Some(file) = connection.timeline_history(timeline).await? else { return Ok(None) };
    let text = String::from_utf8_lossy(&file.content);
    let history = History::parse(timeline, &text);
    history.map(Some).map_err(|error| EngineError::new(FailureKind::Server, error.to_string()).caused_by(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_clusters_may_have() {
        let system = "7576432109876543210";
        for (given, name) in [("shop", "shop"), ("15/main", "pg-76543210"), ("", "pg-76543210"), (".x", "pg-76543210")]
        {
            assert_eq!(natural_name(given, system), name);
        }
        assert_eq!(natural_name("", "7"), "pg-7");
    }

    #[test]
    fn a_slot_is_warned_of_long_before_it_is_lost() {
        let mib = |mib: u64| Some(mib << 20);
        for (status, used, safe, words) in [
            ("reserved", mib(1), None, None),
            ("reserved", mib(100), mib(900), None),
            ("extended", mib(400), mib(600), None),
            (
                "extended",
                mib(600),
                mib(400),
                Some("keeps 600 MiB of log that is not captured yet, and is given up when it is 400"),
            ),
            ("extended", mib(2000), None, Some("more than max_wal_size")),
            ("unreserved", mib(1100), mib(0), Some("with its next checkpoint")),
            ("lost", None, None, Some("has given up")),
        ] {
            let said = in_danger("hindsight_shop", status, used, safe);
            match words {
                None => assert_eq!(said, None, "{status} {used:?}"),
                Some(words) => assert!(said.as_ref().is_some_and(|said| said.contains(words)), "{status}: {said:?}"),
            }
        }
    }

    #[test]
    fn sizes_are_read_as_servers_show_them() {
        let sizes = [("16MB", Some(16 << 20)), ("1GB", Some(1 << 30)), ("8kB", Some(8192)), ("8192", Some(8192))];
        for (text, size) in sizes.into_iter().chain([("4GB", None), ("x", None), ("", None), ("1TB", None)]) {
            assert_eq!(bytes(text), size, "{text}");
        }
        for (text, time) in [("200ms", Some(200)), ("10s", Some(10_000)), ("1min", Some(60_000)), ("1", Some(1))] {
            assert_eq!(milliseconds(text).ok(), time, "{text}");
        }
        assert!(milliseconds("1d").is_err() && milliseconds("ms").is_err());
    }
}
