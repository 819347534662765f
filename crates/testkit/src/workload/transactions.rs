//! Transactions: of a few or many writes in several collections and databases, committed or aborted, soon or after one
//! or more pauses.

use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{Document, Timestamp, doc};
use mongodb::ClientSession;
use rand::RngExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::inserts::{delete, insert};
use super::names::{Kind, Namespace};
use super::pins::Pin;
use super::worker::{Effect, SLOW_MS, WRITE_MS, Worker};
use super::{Shared, indexes, updates, values};

/// Transactions that one worker keeps open at most.
const MOST_OPEN: usize = 2;
/// Transactions end after this though no pause came; servers abort them after 60 s (`transactionLifetimeLimitSeconds`).
const LONGEST: Duration = Duration::from_secs(20);

/// What a transaction writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// A few writes of any kind.
    Small,
    /// Hundreds of documents.
    Many,
    /// More than 16 MiB, which is too much for one oplog entry.
    Big,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    Abort,
    /// Prepared first, as those over several shards are.
    PrepareCommit,
    PrepareAbort,
}

/// An open transaction.
pub(super) struct Open {
    kind: &'static str,
    session: ClientSession,
    size: Size,
    end: End,
    /// Writes to do yet.
    steps: u32,
    /// Not to end before that many pauses of the workload.
    until: u64,
    began: Instant,
    prepared: Option<Timestamp>,
    namespaces: Vec<Namespace>,
    _pins: Vec<[Pin; 2]>,
    counted: Counted,
}

/// Counts the transaction as open while it lives.
struct Counted {
    shared: Arc<Shared>,
    size: Size,
}

impl Counted {
    /// None for a big one if there is one already.
    fn new(shared: &Arc<Shared>, size: Size) -> Option<Self> {
        if size == Size::Big && shared.big.swap(true, Ordering::Relaxed) {
            return None;
        }
        shared.open.send_modify(|open| *open += 1);
        Some(Self { shared: Arc::clone(shared), size })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.size == Size::Big {
            self.shared.big.store(false, Ordering::Relaxed);
        }
        self.shared.open.send_modify(|open| *open -= 1);
    }
}

impl Open {
    pub(super) async fn abort(mut self) -> mongodb::error::Result<()> {
        self.session.abort_transaction().await
    }

    fn is_due(&self) -> bool {
        let shared = &self.counted.shared;
        self.steps == 0 && (shared.pauses.load(Ordering::Relaxed) >= self.until || self.began.elapsed() > LONGEST)
    }
}

/// Begins a transaction, unless enough are open; later turns go on with it.
pub(super) async fn begin(worker: &mut Worker, size: Size, end: End) -> Result<Effect> {
    if worker.open.len() >= MOST_OPEN || worker.shared.settling.load(Ordering::Relaxed) {
        return Ok(Effect::Nothing);
    }
    let Some(counted) = Counted::new(&worker.shared, size) else { return Ok(Effect::Nothing) };
    let mut session = worker.client.start_session().await?;
    session.start_transaction().await?;
    let rng = &mut worker.rng;
    let steps = match size {
        Size::Small => rng.random_range(1..8),
        Size::Many => rng.random_range(2..6),
        Size::Big => rng.random_range(4..6),
    };
    let pauses = worker.shared.pauses.load(Ordering::Relaxed);
    // Big ones are not held: what they wrote stays in the server's cache.
    let held = if size != Size::Big && rng.random_bool(0.15) { rng.random_range(1..3) } else { 0 };
    worker.open.push(Open {
        kind: worker.kind,
        session,
        size,
        end,
        steps,
        until: pauses + held,
        began: Instant::now(),
        prepared: None,
        namespaces: Vec::new(),
        _pins: Vec::new(),
        counted,
    });
    Ok(Effect::Begun)
}

/// Does the next thing in one of the open transactions, or in settling ends all of them.
pub(super) async fn go_on(worker: &mut Worker) -> Result<()> {
    if worker.shared.settling.load(Ordering::Relaxed) {
        while let Some(mut open) = worker.open.pop() {
            open.steps = 0;
            while finish(worker, &mut open).await? == Effect::Begun {}
        }
        return Ok(());
    }
    if worker.open.is_empty() {
        return Ok(());
    }
    let index = worker.rng.random_range(0..worker.open.len());
    let mut open = worker.open.swap_remove(index);
    let effect = if open.steps > 0 {
        step(worker, &mut open).await?
    } else if open.is_due() || open.prepared.is_none() && is_prepared(open.end) {
        finish(worker, &mut open).await?
    } else {
        Effect::Begun
    };
    if effect == Effect::Begun {
        worker.open.push(open);
    }
    Ok(())
}

fn is_prepared(end: End) -> bool {
    matches!(end, End::PrepareCommit | End::PrepareAbort)
}

/// One write.
async fn step(worker: &mut Worker, open: &mut Open) -> Result<Effect> {
    let Some(namespace) = target(worker, open) else { return Ok(Effect::Begun) };
    open.steps -= 1;
    let rng = &mut worker.rng;
    let command = match open.size {
        Size::Big => {
            let filler = values::filler(rng, 5 << 20);
            insert(&namespace, vec![doc! {"_id": rng.random::<i64>(), "n": 1, "filler": filler}], true)
        }
        Size::Many => {
            let documents = (0..rng.random_range(50..400)).map(|n| doc! {"_id": rng.random::<i64>(), "n": n});
            insert(&namespace, documents.collect(), true)
        }
        Size::Small => match rng.random_range(0..20) {
            0 if rng.random_bool(0.5) => doc! {"create": &namespace.collection},
            0 => doc! {"createIndexes": &namespace.collection, "indexes": [indexes::spec(rng)]},
            1..6 => delete(&namespace, doc! {"n": {"$gte": rng.random_range(0..100)}}, 1),
            6..10 => {
                let documents = (0..rng.random_range(1..5)).map(|_| fresh_document(rng)).collect();
                insert(&namespace, documents, true)
            }
            10 => insert(&namespace, vec![values::document(rng)], true),
            _ => updates::random_command(rng, &namespace),
        },
    };
    if open.size == Size::Big {
        worker.shared.written.fetch_add(5 << 20, Ordering::Relaxed);
    }
    let mut command = worker.alike_on_all(command);
    // It waits when it meets a prepared transaction; others end it at once.
    command.insert("maxTimeMS", if open.size == Size::Small { WRITE_MS } else { SLOW_MS });
    let database = worker.client.database(namespace.database);
    let answer = database.run_command(command.clone()).session(&mut open.session).await;
    let mut effect = worker.judge(answer, || format!("transaction: {namespace}: {command:.2000}"))?;
    if effect == Effect::Refused {
        // That was its end, on the server too for most errors.
        let _ = open.session.abort_transaction().await;
        worker.count(open.kind, effect);
    } else {
        effect = Effect::Begun;
    }
    Ok(effect)
}

/// A document whose `_id` is new: one that isn't would end the transaction.
fn fresh_document(rng: &mut rand::rngs::StdRng) -> Document {
    let mut document = values::document(rng);
    document.insert("_id", rng.random::<i64>());
    document
}

/// A collection to write to, again or for the first time; none if its catalog entry is being changed.
fn target(worker: &mut Worker, open: &mut Open) -> Option<Namespace> {
    let rng = &mut worker.rng;
    if !open.namespaces.is_empty() && rng.random_bool(0.6) {
        return Some(values::one_of(rng, &open.namespaces));
    }
    // Capped collections can't be written in transactions.
    let kind = values::one_of(rng, &[Kind::Plain, Kind::Plain, Kind::Plain, Kind::Collated, Kind::Clustered]);
    let namespace = Namespace::random(rng, kind);
    open._pins.push(worker.shared.pins.transaction(&namespace)?);
    open.namespaces.push(namespace.clone());
    Some(namespace)
}

/// Prepares, commits or aborts.
async fn finish(worker: &mut Worker, open: &mut Open) -> Result<Effect> {
    let admin = worker.client.database("admin");
    let session = &mut open.session;
    if is_prepared(open.end) && open.prepared.is_none() {
        let command = doc! {"prepareTransaction": 1, "writeConcern": {"w": "majority"}};
        let answer = admin.run_command(command).session(&mut *session).await;
        open.prepared = answer.as_ref().ok().and_then(|answer| answer.get_timestamp("prepareTimestamp").ok());
        let effect = worker.judge(answer, || "prepareTransaction".to_owned())?;
        if open.prepared.is_some() {
            return Ok(Effect::Begun);
        }
        let _ = open.session.abort_transaction().await;
        worker.count(open.kind, effect);
        return Ok(effect);
    }
    let answer = match (open.end, open.prepared) {
        (End::Abort | End::PrepareAbort, _) => session.abort_transaction().await.map(|()| doc! {}),
        (End::PrepareCommit, Some(prepared)) => {
            let command = doc! {"commitTransaction": 1, "commitTimestamp": prepared};
            admin.run_command(command).session(session).await
        }
        _ => session.commit_transaction().await.map(|()| doc! {}),
    };
    let effect = worker.judge(answer, || format!("{:?}", open.end))?;
    worker.count(open.kind, effect);
    Ok(effect)
}
