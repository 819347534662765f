//! Replaying a stretch of the log on top of what a server holds, one operation after the other: for a
//! state that came from elsewhere, such as a copy of the files. A restore does not work this way.
//!
//! Writes go through `applyOps` in batches that need not be atomic, commands as themselves, both by the
//! names of their time. Applying what the data hold already does no harm, as to a secondary.

use std::path::PathBuf;

use bson::raw::RawDocument;
use bson::{Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use hindsight_catalog::{Stretch, Target};
use hindsight_engine::{EngineError, FailureKind, Job, ReplayTotals, Result};
use mongodb::Client;
use tokio::sync::mpsc;

use crate::cluster::{Cluster, progress, wait_committed};
use crate::failure::{code, code_of, driver, unsupported};
use crate::fold::{Collection, Cut, rebuildable};
use crate::namespace::{self, FUNCTIONS, VIEWS};
use crate::oplog::entry::{Entry, Op, Operation, decode, next_document};
use crate::oplog::transactions::{Sink, Transactions};
use crate::optime::Optime;
use crate::restore::{forward, schema};
use crate::snapshot::catalog::list_collections;

/// Frames of log, and operations, on their way.
const AHEAD: usize = 4;
const OPERATIONS_AHEAD: usize = 1000;
/// One `applyOps` takes this many operations and about this many bytes at most.
const BATCH: usize = 1000;
const BATCH_BYTES: usize = 8 << 20;

/// An operation to carry out.
enum Step {
    Write { operation: RawDocumentBuf, op: Op, at: Optime },
    Command { db: String, name: String, o: Document, at: Optime },
}

/// Replays `stretch` on the connected cluster.
pub(crate) async fn run(cluster: &Cluster, job: &Job, stretch: &Stretch, scratch: PathBuf) -> Result<ReplayTotals> {
    let cut = cut(&stretch.to)?;
    let from = first(&stretch.from)?;
    job.progress.step("replaying the log", Some(stretch.stored_bytes));
    let (frames, mut queue) = mpsc::channel::<bytes::Bytes>(AHEAD);
    let (steps, operations) = mpsc::channel(OPERATIONS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        let mut sink = Steps { from, steps };
        // What commits before the stretch does not count: it may lack its beginning.
        let mut transactions = Transactions::new(from, scratch);
        while let Some(frame) = queue.blocking_recv() {
            let mut run = &frame[..];
            while let Some(raw) = next_document(&mut run)? {
                let entry = Entry::parse(raw)?;
                if !cut.includes(entry.at) {
                    return Ok(());
                }
                transactions.feed(&entry, &mut sink)?;
            }
        }
        Ok::<_, EngineError>(())
    });
    let forwarding = async {
        for slice in &stretch.slices {
            let reader = job.cluster.slice_reader(slice).await?;
            if !forward(job, &reader, &frames).await? {
                break;
            }
            job.progress.add(slice.stored_bytes);
        }
        drop(frames);
        Ok::<_, EngineError>(())
    };
    let mut replay =
        Replay { client: cluster.client.clone(), batch: Vec::new(), bytes: 0, totals: ReplayTotals::default() };
    let (forwarded, applied) = futures::future::join(forwarding, replay.run(operations)).await;
    let read = reading.await.map_err(|e| EngineError::new(FailureKind::Local, format!("reading ended: {e}")))?;
    // What failed first is what closed the channels of the others.
    applied?;
    read?;
    forwarded?;
    wait_committed(&cluster.client, progress(&cluster.client).await?.applied).await?;
    Ok(replay.totals)
}

/// The last optime that does not count.
fn first(from: &Target) -> Result<Optime> {
    let before = |secs: u32, inc: u32| match inc.checked_sub(1) {
        Some(inc) => Optime { secs, inc, term: i64::MAX },
        None => Optime { secs: secs.saturating_sub(1), inc: u32::MAX, term: i64::MAX },
    };
    Ok(match cut(from)? {
        Cut::Before(secs) => before(secs, 0),
        Cut::Through(secs, inc) => before(secs, inc),
        Cut::Nowhere => Optime::default(),
    })
}

fn cut(target: &Target) -> Result<Cut> {
    match target {
        Target::Before(time) => crate::cut(&hindsight_catalog::Cut::Before(*time)),
        Target::Through { order, .. } => crate::cut(&hindsight_catalog::Cut::Through { order: order.clone() }),
        Target::Snapshot(_) | Target::Latest => Err(EngineError::damaged("a stretch of log ends at no position")),
    }
}

/// Hands operations over to where they are carried out.
struct Steps {
    from: Optime,
    steps: mpsc::Sender<Step>,
}

impl Sink for Steps {
    fn operation(&mut self, operation: &Operation<'_>, at: Optime) -> Result<()> {
        let (db, coll) = namespace::split(operation.ns);
        if at <= self.from || !namespace::is_protected(db, coll) {
            return Ok(());
        }
        let unreadable = |e: &dyn std::fmt::Display| EngineError::damaged(format!("at {at} of the log: {e}"));
        let decode = |raw: &[u8]| decode(raw).map_err(|e| unreadable(&e));
        let step = match operation.op {
            Op::Noop => return Ok(()),
            Op::Command => {
                let name = String::from_utf8_lossy(operation.command()?.name).into_owned();
                Step::Command { db: db.to_owned(), name, o: decode(operation.o)?, at }
            }
            // Views are made and unmade by commands.
            op if coll == VIEWS => {
                let name = match op {
                    Op::Insert => "insert view",
                    Op::Delete => "delete view",
                    _ => "update view",
                };
                Step::Command { db: db.to_owned(), name: name.to_owned(), o: decode(operation.o)?, at }
            }
            op => {
                let raw = |bytes| RawDocument::from_bytes(bytes).map_err(|e| unreadable(&e));
                let letter = match op {
                    Op::Insert => "i",
                    Op::Delete => "d",
                    _ => "u",
                };
                let mut whole = rawdoc! {"op": letter, "ns": operation.ns, "o": raw(operation.o)?.to_owned()};
                if let Some(o2) = operation.o2 {
                    whole.append(bson::cstr!("o2"), raw(o2)?.to_owned());
                }
                Step::Write { operation: whole, op, at }
            }
        };
        self.steps.blocking_send(step).map_err(|_| EngineError::cancelled())
    }
}

/// Carries operations out.
struct Replay {
    client: Client,
    batch: Vec<(RawDocumentBuf, Op, Optime)>,
    bytes: usize,
    totals: ReplayTotals,
}

impl Replay {
    async fn run(&mut self, mut operations: mpsc::Receiver<Step>) -> Result<()> {
        while let Some(step) = operations.recv().await {
            match step {
                Step::Write { operation, op, at } => {
                    let size = operation.as_bytes().len();
                    if self.batch.len() >= BATCH || self.bytes + size > BATCH_BYTES {
                        self.flush().await?;
                    }
                    self.bytes += size;
                    self.batch.push((operation, op, at));
                }
                Step::Command { db, name, o, at } => {
                    self.flush().await?;
                    self.command(&db, &name, o).await.map_err(|mut error| {
                        error.what = format!("at {at} of the log: {}", error.what);
                        error
                    })?;
                    self.totals.operations += 1;
                }
            }
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() || self.apply(batch.iter().map(|(operation, ..)| operation)).await.is_ok() {
            self.totals.operations += batch.len() as u64;
            return Ok(());
        }
        // One of them failed. One after the other tells which; those that had their effect may come again.
        for (operation, op, at) in &batch {
            match self.apply(std::iter::once(operation)).await {
                Ok(()) => self.totals.operations += 1,
                // The document or its collection is gone later in the log, as the data know already. Or, before 6.0,
                // the server lets nobody delete from a capped collection, and trims it by itself.
                Err(error)
                    if code_of(&error) == Some(code::NAMESPACE_NOT_FOUND)
                        || (*op == Op::Delete && code_of(&error) == Some(code::ILLEGAL_OPERATION))
                        || (*op == Op::Update && code_of(&error) == Some(code::UPDATE_FAILED)) =>
                {
                    self.totals.passed_over += 1;
                }
                Err(error) => {
                    let ns = operation.get_str("ns").unwrap_or_default();
                    let failed = driver(&format!("replaying a write to {ns} of {at}"), error);
                    return Err(match failed.kind {
                        FailureKind::Privilege => failed.hint(
                            "replaying needs the roles readWriteAnyDatabase and dbAdminAnyDatabase beside restore",
                        ),
                        _ => failed,
                    });
                }
            }
        }
        Ok(())
    }

    async fn apply(&self, operations: impl Iterator<Item = &RawDocumentBuf>) -> mongodb::error::Result<()> {
        let mut array = RawArrayBuf::new();
        operations.for_each(|operation| array.push(operation.clone()));
        let command = rawdoc! {
            "applyOps": array, "allowAtomic": false, "alwaysUpsert": false, "bypassDocumentValidation": true,
        };
        self.client.database("admin").run_raw_command(command).await.map(drop)
    }

    async fn command(&self, db: &str, name: &str, mut o: Document) -> Result<()> {
        let database = self.client.database(db);
        let own = |field: &str| o.get_str(field).map(str::to_owned).unwrap_or_default();
        let coll = own(name);
        let (command, harmless) = match name {
            "create" => {
                ["create", "idIndex", "uuid", "temp"].iter().for_each(|side| drop(o.remove(side)));
                let collection = Collection { db: db.to_owned(), name: coll, options: o, ..Collection::default() };
                let created = schema::create_alone(&self.client, collection).await;
                return settled(created, &format!("creating a collection in {db}"), Some(code::NAMESPACE_EXISTS));
            }
            // Refused while there are time-series; as a part of dropping the database it goes with that.
            "drop" if coll == VIEWS => (doc! {"drop": VIEWS}, Some(code::COMMAND_FAILED)),
            // Goes with its database only.
            "drop" if coll == FUNCTIONS => (doc! {"delete": coll, "deletes": [{"q": {}, "limit": 0}]}, None),
            "drop" => (doc! {"drop": namespace::visible(&coll)}, Some(code::NAMESPACE_NOT_FOUND)),
            "dropDatabase" => (doc! {"dropDatabase": 1}, None),
            "renameCollection" => {
                let drop_target = o.get("dropTarget").is_some_and(|target| target.as_bool() != Some(false));
                let command = doc! {"renameCollection": own(name), "to": own("to"), "dropTarget": drop_target};
                let renamed = self.client.database("admin").run_command(command).await;
                return settled(renamed, "renaming a collection", Some(code::NAMESPACE_NOT_FOUND));
            }
            "createIndexes" | "commitIndexBuild" => {
                let specs = match o.get_array("indexes") {
                    Ok(specs) => specs.iter().filter_map(|spec| spec.as_document().cloned()).collect(),
                    Err(_) => {
                        o.remove(name);
                        vec![o.get_document("spec").cloned().unwrap_or(o)]
                    }
                };
                let collection = self.collection(db, &coll).await?;
                let specs: Vec<_> = specs.iter().map(|spec| rebuildable(spec, &collection)).collect();
                (doc! {"createIndexes": coll, "indexes": specs}, None)
            }
            "dropIndexes" | "deleteIndexes" | "dropIndex" | "deleteIndex" => {
                (doc! {"dropIndexes": coll, "index": own("index")}, Some(code::INDEX_NOT_FOUND))
            }
            "collMod" => {
                o.insert("collMod", namespace::visible(&coll));
                (o, None)
            }
            "startIndexBuild" | "abortIndexBuild" => return Ok(()),
            "insert view" | "update view" => {
                let (Ok(id), Ok(on)) = (o.get_str("_id"), o.get_str("viewOn")) else {
                    return Err(unsupported(
                        format!("the definition of a view of {db} was changed by hand"),
                        "replay up to there, change the view, and replay from there",
                    ));
                };
                // A time-series is created with its buckets.
                if namespace::time_series_of(on).is_some() {
                    return Ok(());
                }
                let view = namespace::split(id).1.to_owned();
                let known = list_collections(&database).await?;
                let is_known = known.iter().any(|info| info.get_str("name").is_ok_and(|name| name == view));
                let mut command = doc! {if is_known { "collMod" } else { "create" }: view};
                // A view keeps its collation for life.
                let is_said = |field: &str| field != "_id" && !(is_known && field == "collation");
                command.extend(o.into_iter().filter(|(field, _)| is_said(field)));
                (command, None)
            }
            "delete view" => {
                let id = own("_id");
                (doc! {"drop": namespace::split(&id).1}, Some(code::NAMESPACE_NOT_FOUND))
            }
            other => {
                return Err(unsupported(
                    format!("the log has the command {other:?}, which cannot be replayed"),
                    "replay up to there, carry it out by hand, and replay from there",
                ));
            }
        };
        let doing = format!("carrying out {name} in {db}");
        settled(database.run_command(command).await, &doing, harmless)
    }

    /// The collection as it is now, for what an index of it has to say.
    async fn collection(&self, db: &str, name: &str) -> Result<Collection> {
        let known = list_collections(&self.client.database(db)).await?;
        let found = known.into_iter().find(|info| info.get_str("name").is_ok_and(|found| found == name));
        let options = found.and_then(|info| info.get_document("options").ok().cloned()).unwrap_or_default();
        Ok(Collection { db: db.to_owned(), name: name.to_owned(), options, ..Collection::default() })
    }
}

/// What a command came to; `harmless` is the error that says that it had its effect before.
fn settled<T>(reply: mongodb::error::Result<T>, doing: &str, harmless: Option<i32>) -> Result<()> {
    match reply {
        Err(error) if harmless.is_some() && code_of(&error) == harmless => Ok(()),
        reply => reply.map(drop).map_err(|error| driver(doing, error)),
    }
}
