//! The short commands of the replication protocol (<https://www.postgresql.org/docs/current/protocol-replication.html>).

use bytes::Bytes;

use super::connection::{Connection, Row, quote_name, quote_text};
use super::error::{Error, Result};
use super::refusal::code;
use crate::{Lsn, TimelineId};

/// Who a server is, and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The identifier that `initdb` gave; the same for a primary, its standbys, and what was restored from it.
    pub system: u64,
    /// The timeline that it is on.
    pub timeline: TimelineId,
    /// How far its log is written to disk.
    pub flushed: Lsn,
    /// The database of the session, if it has one.
    pub database: Option<String>,
}

/// Where a physical slot keeps the log from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPosition {
    /// The oldest position that it keeps; none if it keeps nothing, or was invalidated.
    pub restart: Option<Lsn>,
    /// The timeline of that position.
    pub timeline: Option<TimelineId>,
}

/// The history of a timeline: which timelines it came from, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The name of its file, such as `00000002.history`.
    pub file: String,
    /// What is in it.
    pub content: Bytes,
}

impl Connection {
    /// `IDENTIFY_SYSTEM`.
    ///
    /// # Errors
    /// Those of [`Connection::query`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let doing = "asking which system it is";
        let row = self.one_row("IDENTIFY_SYSTEM", doing).await?;
        Ok(SystemIdentity {
            system: row.need("systemid", doing)?,
            timeline: row.need("timeline", doing)?,
            flushed: row.need("xlogpos", doing)?,
            database: row.get("dbname").map(str::to_owned),
        })
    }

    /// The value of a setting, in the words of `SHOW`.
    ///
    /// # Errors
    /// Those of [`Connection::query`]; also when there is no such setting.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        let doing = format!("asking for the setting {setting}");
        // Walsenders take names without quotes only where they are plain, and dots only so.
        let plain = !setting.is_empty() && setting.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
        let name = if plain { setting.to_owned() } else { quote_name(setting) };
        let row = self.one_row(&format!("SHOW {name}"), &doing).await?;
        row.at(0).map(str::to_owned).ok_or_else(|| Error::garbled(&doing, "it is null"))
    }

    /// `CREATE_REPLICATION_SLOT name PHYSICAL`. With `reserve` it keeps the log from now on, else from the first
    /// stream on. A slot of that name that is there already is an error with SQLSTATE 42710.
    ///
    /// # Errors
    /// Those of [`Connection::query`].
    pub async fn create_physical_slot(&mut self, slot: &str, reserve: bool) -> Result<()> {
        let reserve = if reserve { " RESERVE_WAL" } else { "" };
        let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL{reserve}", quote_name(slot));
        self.query(&command, &format!("creating the replication slot {slot}")).await.map(drop)
    }

    /// `CREATE_REPLICATION_SLOT name TEMPORARY PHYSICAL RESERVE_WAL`: keeps the log from now on, and goes with the session.
    ///
    /// # Errors
    /// Those of [`Connection::query`].
    pub async fn create_temporary_slot(&mut self, slot: &str) -> Result<()> {
        let command = format!("CREATE_REPLICATION_SLOT {} TEMPORARY PHYSICAL RESERVE_WAL", quote_name(slot));
        self.query(&command, "creating a temporary replication slot").await.map(drop)
    }

    /// `DROP_REPLICATION_SLOT`, with `wait` until nobody uses it.
    ///
    /// # Errors
    /// Those of [`Connection::query`].
    pub async fn drop_slot(&mut self, slot: &str, wait: bool) -> Result<()> {
        let wait = if wait { " WAIT" } else { "" };
        let command = format!("DROP_REPLICATION_SLOT {}{wait}", quote_name(slot));
        self.query(&command, &format!("dropping the replication slot {slot}")).await.map(drop)
    }

    /// `READ_REPLICATION_SLOT`: where a physical slot is; none if there is no slot of that name.
    ///
    /// # Errors
    /// Those of [`Connection::query`], and servers before 15, which do not know the command.
    pub async fn read_slot(&mut self, slot: &str) -> Result<Option<SlotPosition>> {
        let doing = format!("asking where the replication slot {slot} is");
        if self.major_version() < 15 {
            return Err(Error::Unsupported {
                what: format!("a server before PostgreSQL 15 does not say this over a replication session ({doing})"),
                hint: "ask pg_replication_slots instead".to_owned(),
            });
        }
        let row = self.one_row(&format!("READ_REPLICATION_SLOT {}", quote_name(slot)), &doing).await?;
        if row.get("slot_type").is_none() {
            return Ok(None);
        }
        let (restart, timeline) = (row.may("restart_lsn", &doing)?, row.may("restart_tli", &doing)?);
        Ok(Some(SlotPosition { restart, timeline }))
    }

    /// Moves a physical slot forward that nobody streams from; gives where it is then. A standby moves it no further than it has
    /// replayed. The session has to know SQL.
    ///
    /// # Errors
    /// Those of [`Connection::query`].
    pub async fn advance_slot(&mut self, slot: &str, to: Lsn) -> Result<Lsn> {
        let doing = format!("moving the replication slot {slot} to {to}");
        let (slot, to) = (quote_text(slot), quote_text(&to.to_string()));
        let row = self
            .one_row(&format!("SELECT end_lsn FROM pg_catalog.pg_replication_slot_advance({slot}, {to})"), &doing)
            .await?;
        row.need("end_lsn", &doing)
    }

    /// `TIMELINE_HISTORY`: none for a timeline that the server has no file of, as the first never has.
    ///
    /// # Errors
    /// Those of [`Connection::query`].
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        let doing = format!("asking for the history of timeline {timeline}");
        let row = match self.one_row(&format!("TIMELINE_HISTORY {timeline}"), &doing).await {
            Err(error) if error.sqlstate() == Some(code::UNDEFINED_FILE) => return Ok(None),
            row => row?,
        };
        let content = row.bytes("content").map(Bytes::copy_from_slice);
        let content = content.ok_or_else(|| Error::garbled(&doing, "there is nothing in it"))?;
        Ok(Some(TimelineHistory { file: row.need("filename", &doing)?, content }))
    }

    async fn one_row(&mut self, command: &str, doing: &str) -> Result<Row> {
        let mut rows = self.query(command, doing).await?.into_iter();
        rows.next().ok_or_else(|| Error::garbled(doing, "there is no row in it"))
    }
}
