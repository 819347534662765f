//! Torture: everything that breaks backup tools goes on while snapshots are taken and the oplog is
//! captured; at random moments the server's own hashes are recorded; afterwards each moment is
//! restored into an empty server and over the original, and compared.
//!
//! Short by default. The long form: `make torture`, or
//! `TORTURE_SEEDS=1,2,3 TORTURE_MOMENTS=50 TORTURE_MEMBERS=1 cargo test --release -p hindsight-jobs --test real torture`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::support::{Protected, Store, logging, same};
use anyhow::{Context, Result, bail, ensure};
use bson::doc;
use futures::TryStreamExt;
use hindsight_catalog::Target;
use hindsight_engine::Selection;
use hindsight_testkit::workload::{Workload, WorkloadOptions};
use hindsight_testkit::{ClusterState, ReplicaSet, last_optime};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A recorded moment.
struct Moment {
    number: usize,
    target: Target,
    state: ClusterState,
    open_transactions: u64,
    documents: Option<Documents>,
}

/// All documents, by namespace and `_id`: kept with `TORTURE_DETAIL=1`, to see what differs.
type Documents = BTreeMap<String, BTreeMap<String, bson::RawDocumentBuf>>;

async fn documents(client: &mongodb::Client) -> Result<Documents> {
    let mut all = Documents::new();
    for db in client.list_database_names().await?.into_iter().filter(|db| db != "local" && db != "config") {
        let database = client.database(&db);
        let collections: Vec<_> = database.list_collections().await?.try_collect().await?;
        for collection in collections.iter().filter(|c| {
            !(db == "admin" && c.name.starts_with("system."))
                && c.collection_type == mongodb::results::CollectionType::Collection
        }) {
            let mut cursor = database.collection::<bson::RawDocumentBuf>(&collection.name).find(doc! {}).await?;
            let mine = all.entry(format!("{db}.{}", collection.name)).or_default();
            while let Some(document) = cursor.try_next().await? {
                mine.insert(format!("{:?}", document.get("_id")?), document);
            }
        }
    }
    Ok(all)
}

/// The documents that differ, in full.
fn differing(expected: &Documents, found: &Documents) -> String {
    let mut text = String::new();
    let namespaces: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for ns in namespaces {
        let none = BTreeMap::new();
        let (e, f) = (expected.get(ns).unwrap_or(&none), found.get(ns).unwrap_or(&none));
        let ids: BTreeSet<_> = e.keys().chain(f.keys()).collect();
        for id in ids.into_iter().filter(|id| e.get(*id).map(|d| d.as_bytes()) != f.get(*id).map(|d| d.as_bytes())) {
            text += &format!("\n{ns} {id}\n  expected {:?}\n  found    {:?}", e.get(id), f.get(id));
        }
    }
    text
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_moment_is_restored_exactly() -> Result<()> {
    logging();
    let seeds = std::env::var("TORTURE_SEEDS").unwrap_or_else(|_| "1,2".to_owned());
    let moments = setting("TORTURE_MOMENTS", 4);
    let members = setting("TORTURE_MEMBERS", 1);
    let mut proven = 0;
    for seed in seeds.split(',') {
        let seed: u64 = seed.trim().parse().context("TORTURE_SEEDS")?;
        let begun = Instant::now();
        let restored = torture(seed, moments, members).await.with_context(|| format!("seed {seed}"))?;
        proven += restored;
        println!("seed {seed}: {moments} moments, {restored} exact restores, {:.0} s", begun.elapsed().as_secs_f32());
    }
    println!("torture: {proven} restores, all exact");
    Ok(())
}

async fn torture(seed: u64, moments: usize, members: usize) -> Result<usize> {
    let mut random = StdRng::seed_from_u64(seed);
    let source = ReplicaSet::builder().members(members).start().await?;
    let client = source.client().await?;
    let store = Store::new().await?;
    let here = store.protect(&source.uri(), None).await?;
    for (key, value) in [
        ("pitr.enabled", "true"),
        ("pitr.uploadIntervalSec", "1"),
        ("pitr.oplogSpanMin", "1"),
        // What has a large document in it is read in ranges.
        ("backup.checkpointMib", "1"),
    ] {
        here.set(key, value).await?;
    }
    let agent = here.agent();
    // Without a base nothing can be restored: it is taken while the workload is at work already.
    let options = WorkloadOptions { failovers: members > 1, ..WorkloadOptions::default() };
    let workload = Workload::start(client.clone(), seed, options).await?;
    first_base(&here).await?;

    let mut recorded = Vec::new();
    let mut snapshot: Option<tokio::task::JoinHandle<Result<()>>> = None;
    for number in 0..moments {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1500))).await;
        if workload.has_failed() {
            break;
        }
        if number > 0 && number % 50 == 0 {
            println!("seed {seed}: {number} moments recorded");
        }
        if snapshot.as_ref().is_none_or(|task| task.is_finished()) {
            if let Some(task) = snapshot.take() {
                task.await?.context("a snapshot under load")?;
            }
            if random.random_bool(0.4) {
                let here = here.clone();
                snapshot = Some(tokio::spawn(async move { here.backup().await.map(drop) }));
            }
        }
        if members > 1 && random.random_bool(0.15) {
            source.step_down().await?;
        }
        // A primary's `dbHash` waits for open transactions; a secondary has none of their locks.
        let open = members > 1 && random.random_bool(0.6);
        let paused = if open { workload.pause().await? } else { workload.pause_settled().await? };
        let mut optime = paused.optime;
        let by_time = random.random_bool(0.5);
        let state = loop {
            let members = match open {
                true => secondaries(&source, optime).await?,
                false => vec![client.clone()],
            };
            let mut states = Vec::new();
            for member in &members {
                states.push(ClusterState::read(member).await?);
            }
            if by_time {
                // "Before the next second" is this moment, if nothing else happens in this one.
                let next = Timestamp::from_second(i64::from(optime.0) + 1)?;
                while Timestamp::now() < next {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            // A server may still be at work on a write that its client has given up on, such as the build of an index.
            // That is asked of the primary: for a moment after an election the driver may take another one for it.
            let after = last_optime(&source.direct_client(source.wait_primary().await?).await?).await?;
            if after == optime {
                break agreed(&members, states).await.with_context(|| format!("moment {number} at {optime:?}"))?;
            }
            println!("moment {number}: something was written after {optime:?}, up to {after:?}");
            optime = after;
        };
        let (secs, inc, _) = optime;
        let time = Timestamp::from_second(secs.into())?;
        let target = match by_time {
            true => Target::Before(time + Duration::from_secs(1)),
            false => Target::Through { time, order: format!("{secs:010}.{inc:010}") },
        };
        let documents = match setting("TORTURE_DETAIL", 0) {
            0 => None,
            _ => Some(documents(&client).await?),
        };
        recorded.push(Moment { number, target, state, open_transactions: paused.open_transactions, documents });
        paused.resume();
    }
    if let Some(task) = snapshot {
        task.await?.context("a snapshot under load")?;
    }
    let stats = workload.stop().await?;
    println!("seed {seed}: {stats}");
    here.captured(&recorded.last().context("no moment was recorded")?.target).await?;
    agent.stop().await?;
    prove(&store, &here, &source, &recorded).await
}

/// The first snapshot is the agent's own: it takes one where nothing is there to rest on.
async fn first_base(here: &Protected) -> Result<()> {
    let begun = Instant::now();
    while here.cluster.snapshots().await?.is_empty() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the agent took no snapshot");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The secondaries, once they have everything up to `optime`.
async fn secondaries(source: &ReplicaSet, optime: (u32, u32, i64)) -> Result<Vec<mongodb::Client>> {
    let primary = source.primary_index().await.context("no primary")?;
    let members = source.members().len();
    let mut clients = Vec::new();
    for other in 1..members {
        clients.push(secondary(source, (primary + other) % members, optime).await?);
    }
    Ok(clients)
}

/// What all members hold.
async fn agreed(members: &[mongodb::Client], mut states: Vec<ClusterState>) -> Result<ClusterState> {
    let first = states.remove(0);
    for (state, member) in states.iter().zip(&members[1..]) {
        let differences = first.diff(state);
        if !differences.is_empty() {
            let text = differing(&documents(&members[0]).await?, &documents(member).await?);
            bail!("the members differ:\n{}{text}", differences.join("\n"));
        }
    }
    Ok(first)
}

/// A secondary that has everything up to `optime`, and nothing that will be rolled back.
async fn secondary(source: &ReplicaSet, member: usize, optime: (u32, u32, i64)) -> Result<mongodb::Client> {
    let client = source.direct_client(member).await?;
    let begun = Instant::now();
    loop {
        if last_optime(&client).await? >= optime {
            return Ok(client);
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "the secondary does not catch up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Restores every moment twice, and compares.
async fn prove(store: &Store, here: &Protected, source: &ReplicaSet, recorded: &[Moment]) -> Result<usize> {
    let client = source.client().await?;
    let (mut restored, mut wrong) = (0, 0);
    // The next empty server is started while the present one is filled.
    let start = || tokio::spawn(ReplicaSet::single());
    let mut next = start();
    for moment in recorded {
        if moment.number > 0 && moment.number % 50 == 0 {
            println!("{restored} exact restores, {wrong} wrong ones");
        }
        let about = || {
            format!("moment {} ({:?}, {} transactions open)", moment.number, moment.target, moment.open_transactions)
        };
        let empty = std::mem::replace(&mut next, start()).await??;
        let there = store.protect(&empty.uri(), Some(&format!("empty-{}", moment.number))).await?;
        let run = here.restore_into(&there, moment.target.clone(), Selection::default());
        run.await.with_context(|| format!("{} into an empty server", about()))?;
        if let Some(expected) = &moment.documents {
            let found = documents(&empty.client().await?).await?;
            let text = differing(expected, &found);
            if !text.is_empty() {
                println!("{}: {text}", about());
            }
        }
        // With next to no memory for the log: most of it goes to disk.
        here.set("restore.foldMemoryMib", "1").await?;
        let run = here.restore_into(here, moment.target.clone(), Selection::default());
        run.await.with_context(|| format!("{} over the original", about()))?;
        here.set("restore.foldMemoryMib", "0").await?;
        for (place, restored_one) in [("an empty server", &empty.client().await?), ("the original", &client)] {
            match same(restored_one, &moment.state).await {
                Ok(()) => restored += 1,
                Err(error) => {
                    println!("WRONG {} in {place}: {error:#}", about());
                    story(here, &client, &error.to_string(), &moment.target).await?;
                    wrong += 1;
                }
            }
        }
    }
    ensure!(wrong == 0, "{wrong} restores were wrong, {restored} exact");
    Ok(restored)
}

/// The snapshots, and what the oplog says of the collections that are not what they were.
async fn story(here: &Protected, client: &mongodb::Client, differences: &str, target: &Target) -> Result<()> {
    for manifest in here.cluster.snapshots().await? {
        println!("  {} of the {}: {:?}", manifest.id, manifest.source.role, manifest.streams);
    }
    let until = match target {
        Target::Before(time) | Target::Through { time, .. } => u32::try_from(time.as_second())?,
        _ => u32::MAX,
    };
    let names: BTreeSet<&str> =
        differences.lines().filter_map(|line| line.split_once(": ").map(|(ns, _)| ns)).collect();
    let oplog = client.database("local").collection::<bson::Document>("oplog.rs");
    let mut entries = oplog
        .find(doc! {"op": "c", "ts": {"$lte": bson::Timestamp { time: until.saturating_add(2), increment: 0 }}})
        .await?;
    while let Some(entry) = entries.try_next().await? {
        let db = entry.get_str("ns")?.split('.').next().unwrap_or_default();
        let text = format!("{}", entry.get_document("o")?);
        if names.iter().any(|ns| {
            ns.strip_prefix(db).and_then(|rest| rest.strip_prefix('.')).is_some_and(|name| text.contains(name))
        }) || text.contains("dropDatabase")
        {
            println!("  {:?} t{:?} {:?} {:.400}", entry.get_timestamp("ts")?, entry.get("t"), entry.get("ui"), text);
        }
    }
    Ok(())
}
