//! One of the workload's workers: it does one random operation after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bson::{Bson, Document, RawDocument, RawDocumentBuf, Timestamp, doc};
use mongodb::error::ErrorKind;
use mongodb::{Client, ClientSession};
use rand::RngExt as _;
use rand::distr::Distribution as _;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::names::Namespace;
use super::transactions::{self, Open};
use super::{Shared, errors, names, table, trim};

/// How long the server may work on a write, in ms. One that meets the changes of an open transaction is tried again and
/// again by the server until then.
pub(super) const WRITE_MS: i64 = 300;
/// The same for commands that change the catalog, and for huge documents.
pub(super) const SLOW_MS: i64 = 5_000;
/// A command of more bytes than this is slow.
const SLOW_BYTES: usize = 500_000;
/// A worker looks whether there is too much data at least once in so many turns.
const TRIM_TURNS: u64 = 200;

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It changed something.
    Done,
    /// It was accepted and changed nothing, or was left out because of an open transaction.
    Nothing,
    /// Refused for a legitimate reason.
    Refused,
    /// A transaction was begun or goes on; it counts at its end.
    Begun,
}

/// See the module.
pub(super) struct Worker {
    pub(super) client: Client,
    pub(super) rng: StdRng,
    pub(super) shared: Arc<Shared>,
    /// Its open transactions.
    pub(super) open: Vec<Open>,
    /// The kind of operation under way.
    pub(super) kind: &'static str,
    /// For retryable writes.
    session: ClientSession,
    txn_number: i64,
    turns: u64,
    rate: Option<Interval>,
    /// Codes of the errors tolerated in this turn.
    errors: Vec<i32>,
}

impl Worker {
    pub(super) async fn new(client: Client, seed: u64, number: usize, shared: Arc<Shared>) -> Result<Self> {
        let rate = shared.options.rate.map(|rate| {
            let mut turns = interval(Duration::from_secs_f64(shared.options.workers as f64 / f64::from(rate.max(1))));
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            turns
        });
        Ok(Self {
            session: client.start_session().await?,
            rng: names::rng(seed, number),
            client,
            shared,
            open: Vec::new(),
            kind: "",
            txn_number: 0,
            turns: 0,
            rate,
            errors: Vec::new(),
        })
    }

    /// Works until the workload stops; then aborts its open transactions.
    pub(super) async fn work(mut self) -> Result<()> {
        let rows: Vec<_> = table::ROWS.iter().filter(|row| row.applies(&self.shared)).collect();
        let weights = WeightedIndex::new(rows.iter().map(|row| row.weight))?;
        while !self.shared.stopping.load(Ordering::Relaxed) {
            if let Some(rate) = &mut self.rate {
                rate.tick().await;
            }
            // Held for the whole turn: a pause waits for it.
            let _turn = Arc::clone(&self.shared.gate).read_owned().await;
            self.turns += 1;
            if self.turns.is_multiple_of(TRIM_TURNS) || self.shared.too_much_written() {
                trim::trim(&mut self).await.context("trim")?;
            }
            if self.rng.random_bool(0.3) || self.shared.settling.load(Ordering::Relaxed) {
                transactions::go_on(&mut self).await?;
            }
            let Some(row) = rows.get(weights.sample(&mut self.rng)) else { continue };
            self.kind = row.kind;
            let effect = (row.run)(&mut self).await.with_context(|| row.kind.to_owned())?;
            self.count(row.kind, effect);
        }
        for open in std::mem::take(&mut self.open) {
            // Whether the server still knows it doesn't matter any more.
            let _ = open.abort().await;
        }
        Ok(())
    }

    /// Counts an operation of this kind, and the errors tolerated since the last one counted.
    pub(super) fn count(&mut self, kind: &'static str, effect: Effect) {
        if effect == Effect::Begun {
            return;
        }
        let mut stats = self.shared.stats();
        let counts = stats.kinds.entry(kind).or_default();
        *match effect {
            Effect::Done => &mut counts.done,
            Effect::Nothing | Effect::Begun => &mut counts.nothing,
            Effect::Refused => &mut counts.refused,
        } += 1;
        for code in self.errors.drain(..) {
            *counts.errors.entry(code).or_default() += 1;
        }
    }

    /// Runs a command that changes the catalog.
    pub(super) async fn change(&mut self, database: &str, mut command: Document) -> Result<Effect> {
        command.insert("maxTimeMS", SLOW_MS);
        let answer = self.client.database(database).run_command(command.clone()).await;
        self.judge(answer, || format!("{command}"))
    }

    /// The command such that it has the same effect on all members.
    ///
    /// Where a pipeline makes a document with a `Timestamp(0, 0)` at its top, and the log has all of the document, the primary
    /// keeps it and each secondary puts its own time in its place (6.0.5, seen).
    pub(super) fn alike_on_all(&self, command: Document) -> Document {
        if !self.shared.options.failovers || command.contains_key("insert") {
            return command;
        }
        command.into_iter().map(|(name, value)| (name, without_empty_timestamps(value))).collect()
    }

    /// Runs a write (`insert`, `update`, `delete`, `findAndModify`), most often as a retryable one, and with any write
    /// concern.
    pub(super) async fn write(&mut self, namespace: &Namespace, command: Document) -> Result<Effect> {
        let command = self.alike_on_all(command);
        self.write_raw(namespace, RawDocumentBuf::try_from(&command)?, is_retryable(&command)).await
    }

    /// The same for a raw command, which may have documents that [`Document`] can't hold.
    pub(super) async fn write_raw(
        &mut self,
        namespace: &Namespace,
        mut command: RawDocumentBuf,
        retryable: bool,
    ) -> Result<Effect> {
        use bson::raw::cstr;

        let bytes = command.as_bytes().len();
        self.shared.written.fetch_add(bytes as u64, Ordering::Relaxed);
        command.append(cstr!("maxTimeMS"), if bytes > SLOW_BYTES { SLOW_MS } else { WRITE_MS });
        if self.rng.random_bool(0.5) {
            command.append(cstr!("writeConcern"), RawDocumentBuf::try_from(&doc! {"w": 1})?);
        }
        let inserts = self.shared.inserts(namespace);
        let _turn = if may_insert(&command) {
            // Who has the turn may be waiting for a transaction of this worker, longer than `maxTimeMS` says.
            match tokio::time::timeout(Duration::from_millis(WRITE_MS.unsigned_abs()), inserts.lock()).await {
                Ok(turn) => Some(turn),
                Err(_) => return Ok(Effect::Nothing),
            }
        } else {
            None
        };
        let database = self.client.database(namespace.database);
        let answer = if retryable && self.rng.random_bool(0.8) {
            self.txn_number += 1;
            command.append(cstr!("txnNumber"), self.txn_number);
            database.run_raw_command(command.clone()).session(&mut self.session).await
        } else {
            database.run_raw_command(command.clone()).await
        };
        self.judge(answer, || format!("{namespace}: {}", shortened(&command)))
    }

    /// Sorts the answer of a server into what came of it and errors that must not be; `command` says in errors what it
    /// was.
    pub(super) fn judge(
        &mut self,
        answer: mongodb::error::Result<Document>,
        command: impl Fn() -> String,
    ) -> Result<Effect> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if let Some(answer) = errors::not_utf8(&error) => answer,
            Err(error) => {
                let code = match error.kind.as_ref() {
                    ErrorKind::Command(error) => error.code,
                    // Doesn't come from the server.
                    _ => 0,
                };
                let failover = self.shared.options.failovers && errors::is_failover(&error);
                if !failover && !self.tolerates(code) {
                    return Err(error).with_context(&command);
                }
                self.errors.push(code);
                return Ok(Effect::Refused);
            }
        };
        let write_errors = answer.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document);
        let concern_error = answer.get_document("writeConcernError").ok();
        for error in write_errors.chain(concern_error) {
            let code = error.get_i32("code").unwrap_or_default();
            if !self.tolerates(code) {
                bail!("{error} at {}", command());
            }
            self.errors.push(code);
        }
        Ok(match changed(&answer) {
            true => Effect::Done,
            false if answer.contains_key("writeErrors") => Effect::Refused,
            false => Effect::Nothing,
        })
    }

    fn tolerates(&self, code: i32) -> bool {
        errors::is_tolerated(code) || self.shared.options.failovers && errors::is_failover_code(code)
    }

    /// Whether the servers are of this version or a later one.
    pub(super) fn since(&self, major: u32, minor: u32) -> bool {
        self.shared.version >= (major, minor)
    }
}

/// Whether a command that was accepted changed anything. Those that change the catalog always do.
fn changed(answer: &Document) -> bool {
    let number = |document: &Document, name: &str| match document.get(name) {
        Some(Bson::Int32(n)) => Some(i64::from(*n)),
        Some(Bson::Int64(n)) => Some(*n),
        _ => None,
    };
    if let Ok(last) = answer.get_document("lastErrorObject") {
        return number(last, "n") != Some(0);
    }
    match (number(answer, "n"), number(answer, "nModified")) {
        (Some(_), Some(modified)) => modified > 0 || answer.contains_key("upserted"),
        (Some(n), None) => n > 0,
        (None, _) => true,
    }
}

fn without_empty_timestamps(value: Bson) -> Bson {
    match value {
        Bson::Timestamp(Timestamp { time: 0, increment: 0 }) => Bson::Null,
        Bson::Array(values) => values.into_iter().map(without_empty_timestamps).collect(),
        Bson::Document(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, without_empty_timestamps(value)));
            Bson::Document(fields.collect())
        }
        other => other,
    }
}

/// Whether servers take the write with a transaction number: those that touch one document each.
fn is_retryable(command: &Document) -> bool {
    let all = |field: &str, is: fn(&Document) -> bool| {
        command.get_array(field).into_iter().flatten().filter_map(Bson::as_document).all(is)
    };
    all("updates", |update| !update.get_bool("multi").unwrap_or(false))
        && all("deletes", |delete| delete.get_i32("limit").is_ok_and(|limit| limit == 1))
}

/// Whether a write may add documents. Those to one collection are done one after the other: a primary takes the optime
/// of an insert into a capped collection before it locks the collection, so that inserts at the same time may be stored
/// in another order than the oplog's, which is the order on secondaries and after a restore (6.0.5, tried: 48 of 12,000
/// documents of 8 writers were in another place).
fn may_insert(command: &RawDocument) -> bool {
    let upserts = |update: &RawDocument| update.get_bool("upsert").unwrap_or(false);
    match command.iter().next() {
        Some(Ok((name, _))) if name == "insert" => true,
        Some(Ok((name, _))) if name == "update" => command.get_array("updates").is_ok_and(|updates| {
            updates.into_iter().any(|update| update.is_ok_and(|update| update.as_document().is_some_and(upserts)))
        }),
        _ => upserts(command),
    }
}

/// A command for people to read, without what is long.
fn shortened(command: &RawDocumentBuf) -> String {
    let text =
        Document::try_from(command.clone()).map_or_else(|error| error.to_string(), |document| document.to_string());
    match text.char_indices().nth(2000) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// The counts of all kinds that apply, all zero.
pub(super) fn no_counts(shared: &Shared) -> BTreeMap<&'static str, super::Counts> {
    let rows = table::ROWS.iter().filter(|row| row.applies(shared));
    rows.map(|row| (row.kind, super::Counts::default())).collect()
}
