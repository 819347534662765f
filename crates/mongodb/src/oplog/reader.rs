//! Following the oplog of a live server.

use std::time::Duration;

use async_trait::async_trait;
use bson::{Timestamp, doc};
use futures::StreamExt;
use hindsight_engine::{EngineError, LogBuffer, LogReader, LogRoom, Result};
use hindsight_format::LogSummary;
use mongodb::Client;
use mongodb::options::{CursorType, ReadConcern};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::diff::raw::Elements;
use super::entry::{Entry, Head, Op, Operation, malformed};
use crate::cluster::number;
use crate::failure::driver;
use crate::optime::Optime;

/// How long the server waits for news before it answers with nothing.
const HEARTBEAT: Duration = Duration::from_millis(1000);

/// How long the log is left alone after an answer with little in it. A busy server answers with a few entries at a time otherwise,
/// and each question costs it, and us, as much as hundreds of entries do.
const REST: Duration = Duration::from_millis(500);

/// A tailing cursor on `local.oplog.rs` that delivers only what a majority has committed.
pub(crate) struct OplogReader {
    client: Client,
    cursor: RawBatchCursor,
    /// Read to see whether the log goes on; not delivered yet.
    first: Option<RawBatch>,
    last: Optime,
}

/// Whether the oplog goes on after a position.
pub(crate) enum Opened {
    Continues(Box<OplogReader>),
    /// Why it does not.
    Lost(String),
}

async fn cursor(client: &Client, from: Timestamp) -> mongodb::error::Result<RawBatchCursor> {
    let oplog = client.database("local").collection::<bson::RawDocumentBuf>("oplog.rs");
    oplog
        .find(doc! {"ts": {"$gte": from}})
        .cursor_type(CursorType::TailableAwait)
        .max_await_time(HEARTBEAT)
        .no_cursor_timeout(true)
        .read_concern(ReadConcern::majority())
        .batch()
        .await
}

/// The oldest entry that the oplog of this server still holds.
pub(crate) async fn oldest(client: &Client) -> Result<Optime> {
    let doing = "reading the oplog";
    let oplog = client.database("local").collection::<bson::RawDocumentBuf>("oplog.rs");
    let first = oplog.find_one(doc! {}).sort(doc! {"$natural": 1}).await.map_err(|e| driver(doing, e))?;
    let first = first.ok_or_else(|| EngineError::new(hindsight_engine::FailureKind::Server, "the oplog is empty"))?;
    Ok(Entry::parse(first.as_bytes())?.at)
}

/// The bounds of the oplog of this server; none where it does not tell.
pub(crate) async fn room(client: &Client) -> Option<LogRoom> {
    let stats = client.database("local").run_command(doc! {"collStats": "oplog.rs"}).await.ok()?;
    let bytes = |field: &str| number(&stats, field).and_then(|bytes| u64::try_from(bytes).ok());
    // Of 4.4 and later; it takes a privilege that a backup need not have.
    let asked = client.database("admin").run_command(doc! {"serverStatus": 1, "oplogTruncation": 1}).await.ok();
    let hours = asked.and_then(|status| {
        status.get_document("oplogTruncation").ok()?.get("oplogMinRetentionHours").and_then(bson::Bson::as_f64)
    });
    let kept_secs = (hours.unwrap_or(0.0).clamp(0.0, 1e6) * 3600.0) as u64;
    Some(LogRoom { used: bytes("size")?, capacity: bytes("maxSize")?, kept_secs })
}

impl OplogReader {
    /// Opens the oplog right after `after`, which must still be in it, as it was.
    pub(crate) async fn open(client: &Client, after: Optime) -> Result<Opened> {
        let doing = "opening the oplog";
        let mut cursor = cursor(client, after.timestamp()).await.map_err(|e| driver(doing, e))?;
        // The first batch comes at once: the entry asked for, if it is there.
        let batch = cursor.next().await.transpose().map_err(|e| driver(doing, e))?;
        let Some(batch) = batch else { return Ok(Opened::Lost(Self::why(client, after).await?)) };
        let documents = batch.doc_slices().map_err(|e| driver(doing, e))?;
        let mut entries = Elements::new(documents.as_bytes()).map_err(malformed)?;
        let found = match entries.next().map_err(malformed)? {
            Some(element) => Some(Entry::parse(element.value)?.at),
            None => None,
        };
        if found != Some(after) {
            return Ok(Opened::Lost(Self::why(client, after).await?));
        }
        Ok(Opened::Continues(Box::new(Self { client: client.clone(), cursor, first: Some(batch), last: after })))
    }

    async fn why(client: &Client, after: Optime) -> Result<String> {
        let oldest = oldest(client).await?;
        Ok(if oldest > after {
            format!(
                "the oplog rolled over: it begins at {} now, capture had come to {}",
                hindsight_format::format_time(oldest.point()?.time),
                hindsight_format::format_time(after.point()?.time)
            )
        } else {
            format!("the entry at {after} is not in the oplog any more: the member was rolled back or replaced")
        })
    }

    /// The last entry delivered.
    pub(crate) fn last(&self) -> Optime {
        self.last
    }

    fn take(&mut self, batch: &RawBatch, buffer: &mut LogBuffer) -> Result<()> {
        let documents = batch.doc_slices().map_err(|e| driver("reading the oplog", e))?;
        let mut entries = Elements::new(documents.as_bytes()).map_err(malformed)?;
        let mut tally = Tally::default();
        while let Some(element) = entries.next().map_err(malformed)? {
            let head = Head::parse(element.value)?;
            if head.at <= self.last {
                continue;
            }
            buffer.push(element.value);
            buffer.substantial |= tally.take(&head, &mut buffer.summary)?;
            self.last = head.at;
        }
        tally.finish(&mut buffer.summary);
        buffer.summary.end = self.last.point()?;
        Ok(())
    }
}

/// Counts entries. Those that are alike and follow each other are counted at once, as most do.
#[derive(Default)]
pub(crate) struct Tally<'a> {
    /// On what, what they are, and in which minute.
    alike: (&'a str, &'static str, u32),
    entries: u64,
}

impl<'a> Tally<'a> {
    /// Takes the next one; says whether it is more than a sign of life.
    pub(crate) fn take(&mut self, head: &Head<'a>, summary: &mut LogSummary) -> Result<bool> {
        let Operation { op, ns, .. } = head.operation;
        let (ns, op) = match op {
            Op::Noop => ("", "n"),
            Op::Insert => (ns, "i"),
            Op::Update => (ns, "u"),
            Op::Delete => (ns, "d"),
            Op::Command => {
                count_command(&head.operation, summary, head.at.secs.into())?;
                return Ok(true);
            }
        };
        let alike = (ns, op, head.at.secs / 60);
        if self.alike != alike {
            std::mem::replace(self, Self { alike, entries: 0 }).finish(summary);
        }
        self.entries += 1;
        Ok(op != "n")
    }

    /// Counts those that were not yet.
    pub(crate) fn finish(self, summary: &mut LogSummary) {
        let (ns, op, minute) = self.alike;
        if self.entries > 0 {
            summary.count(ns, op, i64::from(minute) * 60, self.entries);
        }
    }
}

fn count_command(operation: &Operation<'_>, summary: &mut LogSummary, secs: i64) -> Result<()> {
    let command = operation.command()?;
    let name = String::from_utf8_lossy(command.name);
    match super::entry::text(&command) {
        // `renameCollection` names the whole namespace, the others a collection of the database.
        Some(ns) if name == "renameCollection" => summary.count(ns, &name, secs, 1),
        Some(coll) => summary.count(&format!("{}.{coll}", operation.database()), &name, secs, 1),
        None => summary.count(operation.database(), &name, secs, 1),
    }
    Ok(())
}

#[async_trait]
impl LogReader for OplogReader {
    async fn read(&mut self, buffer: &mut LogBuffer) -> Result<()> {
        let next = match self.first.take() {
            Some(batch) => Some(Ok(batch)),
            None => self.cursor.next().await,
        };
        match next {
            Some(Ok(batch)) => self.take(&batch, buffer),
            Some(Err(error)) => Err(driver("following the oplog", error)),
            // The server closed the cursor: go on with another, if the chain still holds.
            None => match Self::open(&self.client, self.last).await? {
                Opened::Continues(reader) => {
                    *self = *reader;
                    Ok(())
                }
                Opened::Lost(cause) => Err(EngineError::new(hindsight_engine::FailureKind::Server, cause)),
            },
        }
    }

    fn rest(&self) -> Duration {
        REST
    }
}
