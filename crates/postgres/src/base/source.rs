//! The server that a base is taken of: whether it can be, and what is asked of it besides its files.

use std::collections::BTreeMap;

use hindsight_engine::{EngineError, FailureKind, Result};
use jiff::Timestamp;

use super::page::PageSizes;
use super::stored::StoredTablespace;
use crate::TimelineId;
use crate::address::{Address, Host};
use crate::cluster::require_supported;
use crate::wal::SegmentSize;
use crate::wire::{Connection, Replication, Tablespace};

/// Settings that recovery wants at least as large as they were on the source (`RecoveryRequiresIntParameter` in xlogrecovery.c),
/// and the one without whose libraries a server cannot start. The last is shown to members of `pg_read_all_settings` alone.
const KEPT: [&str; 6] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "shared_preload_libraries",
];

/// A server that a base can be taken of.
pub(super) struct Source {
    /// This one server.
    address: Address,
    pub(super) host: Host,
    pub(super) version: String,
    pub(super) major: u32,
    pub(super) standby: bool,
    /// Whether pages have checksums.
    pub(super) checksums: bool,
    pub(super) block_size: u32,
    pub(super) relation_blocks: u32,
    pub(super) pages: PageSizes,
    pub(super) wal_block_size: u32,
    pub(super) segment_size: SegmentSize,
    pub(super) settings: BTreeMap<String, String>,
    /// Whether the server notes which blocks change (`summarize_wal`); none before 17, which cannot.
    pub(super) summarizes: Option<bool>,
}

/// What things are called, at a moment of the server's clock.
pub(super) struct Names {
    /// The moment.
    pub(super) at: Timestamp,
    databases: BTreeMap<u32, String>,
    tablespaces: BTreeMap<u32, String>,
}

impl Source {
    /// Looks at the server, and refuses one that cannot be backed up.
    pub(super) async fn find(address: &Address) -> Result<Self> {
        let mut session = Connection::connect(address, Replication::No).await?;
        let major = require_supported(&session)?.major();
        let doing = "asking for settings";
        let rows = session.query("SELECT name, setting FROM pg_catalog.pg_settings", doing).await?;
        let text = |row: &crate::wire::Row, index| row.at(index).map(str::to_owned);
        let all: BTreeMap<_, _> = rows.iter().filter_map(|row| Some((text(row, 0)?, text(row, 1)?))).collect();
        let setting = |name: &str| all.get(name).map_or("", String::as_str);
        let unknown = |name: &str| {
            let what = format!("the server's setting {name} is {:?}, which is not understood", setting(name));
            EngineError::new(FailureKind::Unsupported, what).hint("back up a server that PostgreSQL's own sources make")
        };
        let number = |name: &str| setting(name).parse::<u32>().map_err(|_| unknown(name));
        if setting("wal_level") == "minimal" {
            let what = "the server's wal_level is minimal: its log is not enough to recover a backup";
            return Err(EngineError::new(FailureKind::Unsupported, what)
                .hint("set wal_level = replica and max_wal_senders = 10 on the server, and restart it"));
        }
        let (block_size, relation_blocks) = (number("block_size")?, number("segment_size")?);
        let source = Self {
            address: address.at(session.host().clone()),
            host: session.host().clone(),
            version: session.parameter("server_version").unwrap_or_default().to_owned(),
            major,
            standby: session.in_recovery().await?,
            checksums: setting("data_checksums") == "on",
            block_size,
            relation_blocks,
            pages: PageSizes::new(block_size as usize, relation_blocks).ok_or_else(|| unknown("block_size"))?,
            wal_block_size: number("wal_block_size")?,
            segment_size: SegmentSize::new(number("wal_segment_size")?).ok_or_else(|| unknown("wal_segment_size"))?,
            summarizes: all.get("summarize_wal").map(|value| value == "on"),
            settings: all.iter().filter(|(name, _)| KEPT.contains(&name.as_str())).map(owned).collect(),
        };
        session.close().await;
        Ok(source)
    }

    /// Where this one server is.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// What it is.
    pub(super) fn role(&self) -> &'static str {
        if self.standby { "standby" } else { "primary" }
    }

    /// A session for replication, and which system it is with.
    pub(super) async fn replication(&self) -> Result<(Connection, u64)> {
        let mut session = Connection::connect(&self.address, Replication::Physical).await?;
        let system = session.identify_system().await?.system;
        Ok((session, system))
    }

    /// What things are called now.
    pub(super) async fn names(&self) -> Result<Names> {
        let mut session = Connection::connect(&self.address, Replication::No).await?;
        let at = clock(&mut session).await?;
        let mut names = async |statement: &str| {
            let rows = session.query(statement, "asking for names").await?;
            let named = rows.iter().filter_map(|row| Some((row.at(0)?.parse().ok()?, row.at(1)?.to_owned())));
            Ok::<_, EngineError>(named.collect::<BTreeMap<u32, String>>())
        };
        let databases = names("SELECT oid, datname FROM pg_catalog.pg_database").await?;
        let tablespaces = names("SELECT oid, spcname FROM pg_catalog.pg_tablespace").await?;
        session.close().await;
        Ok(Names { at, databases, tablespaces })
    }
}

impl Names {
    /// Databases by OID.
    pub(super) fn databases(&self) -> &BTreeMap<u32, String> {
        &self.databases
    }

    /// The tablespaces of a base, but for the main data directory.
    pub(super) fn of(&self, tablespaces: &[Tablespace]) -> Vec<StoredTablespace> {
        let apart = tablespaces.iter().filter_map(|tablespace| {
            let oid = tablespace.oid?;
            let name = self.tablespaces.get(&oid).cloned().unwrap_or_default();
            Some(StoredTablespace { oid, name, location: tablespace.location.clone().unwrap_or_default() })
        });
        apart.collect()
    }
}

/// The history file of a timeline; empty for the first, which has none. That is not asked for: an error would take the temporary
/// slots of the session with it (`WalSndErrorCleanup`).
pub(super) async fn history(session: &mut Connection, timeline: TimelineId) -> Result<String> {
    if timeline == 1 {
        return Ok(String::new());
    }
    match session.timeline_history(timeline).await? {
        // Reasons may be in any encoding.
        Some(file) => Ok(String::from_utf8_lossy(&file.content).into_owned()),
        None => {
            let what = format!("the server has no history file of its timeline {timeline}");
            Err(EngineError::new(FailureKind::Server, what).hint("see what became of that file in its pg_wal"))
        }
    }
}

/// The server's clock.
async fn clock(session: &mut Connection) -> Result<Timestamp> {
    let micros = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint";
    let rows = session.query(micros, "asking for the time").await?;
    let time = rows.first().and_then(|row| Timestamp::from_microsecond(row.at(0)?.parse().ok()?).ok());
    time.ok_or_else(|| odd("the server does not tell its time"))
}

/// Something that no server does.
pub(super) fn odd(what: impl Into<String>) -> EngineError {
    EngineError::new(FailureKind::Server, what)
        .hint("see whether it is a PostgreSQL server that answers there, and not a proxy or a pooler")
}

fn owned((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}
