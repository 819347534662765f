//! Makes the corpus anew from what is really stored: a snapshot and the captured log of a hostile workload, of which
//! small pieces of every kind are cut out. `cargo run -p hindsight-fuzz --example corpus`, with the name of an engine for what is
//! of that one alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod postgres;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bson::{Document, RawDocument, RawDocumentBuf, doc};
use hindsight_catalog::Target;
use hindsight_engine::{Engine, Progress};
use hindsight_format::{GapRecord, LeaseRecord, ObjectKind, SnapshotManifest};
use hindsight_fuzz::{SEPARATOR, corpus};
use hindsight_jobs::{Agent, BackupRequest, RestoreRequest, Tuning, backup, history, propose, register, restore};
use hindsight_mongodb::MongoEngine;
use hindsight_mongodb::fuzzing::{a_checkpoint, next_document};
use hindsight_mongodb::oplog::docid::raw_id;
use hindsight_mongodb::oplog::entry::{Entry, Op};
use hindsight_repository::fuzzing::{decode_record, encode_record};
use hindsight_repository::{ClusterRepository, Repository, RepositorySpec, encode_frame};
use hindsight_testkit::ReplicaSet;
use hindsight_testkit::workload::{Workload, WorkloadOptions};
use tokio_util::sync::CancellationToken;

/// No piece is larger.
const SMALL: usize = 3 << 10;

#[tokio::main]
async fn main() -> Result<()> {
    let engine = std::env::args().nth(1);
    let wanted = |name: &str| engine.as_deref().is_none_or(|engine| engine == name);
    if wanted("postgresql") {
        postgres::make().await?;
    }
    if wanted("mongodb") {
        mongodb().await?;
    }
    println!("the corpus is in {}", corpus("").display());
    Ok(())
}

async fn mongodb() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::open_or_create(&RepositorySpec::new(folder.path().display().to_string())).await?;
    let cluster = fill(&repository).await?;
    let manifest = cluster.snapshots().await?.pop().context("no snapshot")?;
    records(folder.path())?;
    timeline(&cluster).await?;
    objects(&cluster, &manifest, folder.path()).await?;
    let log = log(&cluster).await?;
    let entries: Vec<(Entry<'_>, &[u8])> =
        log.iter().map(|raw| Ok((Entry::parse(raw)?, &raw[..]))).collect::<Result<_>>()?;
    oplog(&entries)?;
    updates(&entries)?;
    ids(&entries)?;
    keep("fold", "checkpoint", &[&[0], &*a_checkpoint()?].concat())?;
    folds(&cluster, &manifest, &entries).await
}

fn keep(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = corpus(target);
    std::fs::create_dir_all(&folder)?;
    Ok(std::fs::write(folder.join(name), bytes)?)
}

/// Snapshots, log, and a restore.
async fn fill(repository: &Repository) -> Result<ClusterRepository> {
    let source = ReplicaSet::single().await?;
    let engine: Arc<dyn Engine> = Arc::new(MongoEngine::new(source.uri()));
    let cluster = register(repository, Some("c"), &engine.probe().await?).await?;
    for (key, value) in [("pitr.enabled", "true"), ("pitr.uploadIntervalSec", "1")] {
        cluster.update_config(|config| config.with(key, value)).await?;
    }
    let options = WorkloadOptions { huge_documents: false, max_bytes: 4 << 20, ..WorkloadOptions::default() };
    let workload = Workload::start(source.client().await?, 1, options).await?;
    let cancel = CancellationToken::new();
    let tuning = Tuning { poll: Duration::from_millis(200), ..Tuning::default() };
    let agent = Agent::new(engine.clone(), cluster.clone()).tuned(tuning);
    let capture = tokio::spawn({
        let cancel = cancel.clone();
        async move { agent.run(cancel).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (progress, never) = (Progress::default(), CancellationToken::new());
    backup(&*engine, &cluster, &BackupRequest::default(), &progress, &never).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    workload.stop().await?;
    cancel.cancel();
    capture.await??;
    let request = RestoreRequest::to(Target::Latest);
    let proposal = propose(&*engine, repository, &cluster, request).await?;
    restore(&*engine, &proposal, &progress, &never).await?;
    let slice = cluster.slices().await?.pop().context("no slice")?;
    let cause = "the server's log did not reach back far enough".to_owned();
    let gap = GapRecord { start: None, end: slice.name.end, cause, detected_at: jiff::Timestamp::now() };
    cluster.put_gap(&slice.stream, slice.epoch, &gap).await?;
    Ok(cluster)
}

/// One record of each kind, and names.
fn records(folder: &Path) -> Result<()> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let key = path.strip_prefix(folder)?.display().to_string();
            let parts: Vec<&str> = key.split('/').collect();
            let name = parts.last().context("a key has a name")?;
            if !key.ends_with(".json") {
                names.push((*name).to_owned());
                continue;
            }
            let mut bytes = std::fs::read(&path)?;
            if let Ok(mut lease) = decode_record::<LeaseRecord>(&key, &bytes) {
                (lease.holder.host, lease.holder.pid_space) = ("host".to_owned(), Some("boot-namespace".to_owned()));
                bytes = encode_record(&key, &lease)?.to_vec();
            }
            let kind = parts.get(2).map_or(*name, |kind| kind.trim_end_matches(".json"));
            keep("records", kind.trim_end_matches(".json"), &bytes)?;
            names.extend(name.strip_suffix(".json").map(str::to_owned));
        }
    }
    names.sort();
    names.dedup_by_key(|name| name.len());
    let points =
        names.iter().filter_map(|name| name.split_once('_')).map(|(start, _)| start.to_owned()).collect::<Vec<_>>();
    names.extend(points.first().cloned());
    names.extend(points.first().and_then(|point| Some(point.split_once('-')?.1.to_owned())));
    names.push("{\"time\":\"2021-02-03T08:08:36Z\",\"position\":\"1612339716.0000000002-7\"}".to_owned());
    names.extend(["pitr.oplogSpanMin=5", "backup.compressionLevel=19", "pitr.enabled=true"].map(str::to_owned));
    for (number, name) in names.iter().enumerate() {
        keep("names", &format!("{number:02}"), name.as_bytes())?;
    }
    Ok(())
}

/// The last slices with all snapshots, epochs and gaps.
async fn timeline(cluster: &ClusterRepository) -> Result<()> {
    let history = history(cluster).await?;
    let mut lines = Vec::new();
    for snapshot in &history.snapshots {
        lines.push(serde_json::to_string(snapshot)?);
    }
    for epoch in &history.epochs {
        lines.push(serde_json::to_string(epoch)?);
    }
    for gap in &history.gaps {
        lines.push(format!("{} ", serde_json::to_string(&gap.record)?));
    }
    for (number, slices) in history.slices.chunks(6).take(3).enumerate() {
        let slices = slices.iter().map(|slice| format!("{} {}", slice.name, slice.epoch));
        let all: Vec<String> = lines.iter().cloned().chain(slices).collect();
        keep("timeline", &format!("{number}"), all.join("\n").as_bytes())?;
    }
    Ok(())
}

/// Small objects of each kind.
async fn objects(cluster: &ClusterRepository, manifest: &SnapshotManifest, folder: &Path) -> Result<()> {
    let slices = cluster.slices().await?;
    let smallest = slices.iter().min_by_key(|slice| slice.stored_bytes).context("no slice")?;
    let log = cluster.slice_reader(smallest).await?;
    let data = manifest.objects.iter().find(|object| object.name.starts_with("data/")).context("no data")?;
    let key = cluster.keys().snapshot_object(&manifest.id, &data.name);
    let data = cluster.object_reader(&key, Some(data)).await?;
    let empty = Vec::new();
    for (name, kind, source, summary) in [
        ("slice", ObjectKind::Slice, Some(&log), log.footer().log.clone()),
        ("data", ObjectKind::Data, Some(&data), None),
        ("empty", ObjectKind::Catalog, None, None),
    ] {
        let key = "clusters/c/o";
        let mut writer = cluster.object_writer(key.to_owned(), kind).await;
        for index in 0..source.map_or(0, |source| source.footer().frames.len().min(2)) {
            let frame = match source {
                Some(source) => source.frame(index).await?,
                None => empty.clone(),
            };
            let mut run = &frame[..];
            let mut cut = 0;
            while cut < SMALL && next_document(&mut run)?.is_some() {
                cut = frame.len() - run.len();
            }
            writer.write(encode_frame(&frame[..cut], 3, index as u32)?).await?;
        }
        writer.finish(summary).await?;
        let stored = std::fs::read(folder.join(key))?;
        keep("objects", name, &stored)?;
        keep("sealed", name, &stored)?;
        std::fs::remove_file(folder.join(key))?;
    }
    Ok(())
}

/// The entries of the captured log, without users.
async fn log(cluster: &ClusterRepository) -> Result<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    for slice in cluster.slices().await? {
        let reader = cluster.slice_reader(&slice).await?;
        for index in 0..reader.footer().frames.len() {
            let frame = reader.frame(index).await?;
            let mut run = &frame[..];
            while let Some(raw) = next_document(&mut run)? {
                if !Entry::parse(raw)?.operation.ns.starts_with("admin.system") {
                    entries.push(raw.to_vec());
                }
            }
        }
    }
    Ok(entries)
}

fn fields(raw: &[u8]) -> Vec<String> {
    let Ok(raw) = RawDocument::from_bytes(raw) else { return Vec::new() };
    raw.iter().filter_map(|field| Some(field.ok()?.0.as_str().to_owned())).collect()
}

/// What kind of entry it is: one piece of each is enough.
fn shape(entry: &Entry<'_>) -> String {
    let mut shape = format!("{:?}", entry.operation.op).to_lowercase();
    if entry.operation.op == Op::Command {
        let fields = fields(entry.operation.o);
        shape = fields.first().cloned().unwrap_or_default();
        shape.extend(
            fields
                .iter()
                .skip(1)
                .filter(|name| ["partialTxn", "prepare"].contains(&name.as_str()))
                .map(|n| format!("-{n}")),
        );
    }
    if entry.txn.is_some() {
        shape += "-session";
    }
    if entry.previous.is_some() {
        shape += "-goes-on";
    }
    shape
}

/// The smallest and the largest small entry of each shape.
fn oplog(entries: &[(Entry<'_>, &[u8])]) -> Result<()> {
    let mut shapes: BTreeMap<String, Vec<&[u8]>> = BTreeMap::new();
    for (entry, raw) in entries.iter().filter(|(_, raw)| raw.len() <= SMALL) {
        shapes.entry(shape(entry)).or_default().push(raw);
    }
    for (shape, mut all) in shapes {
        all.sort_by_key(|raw| raw.len());
        keep("entries", &format!("{shape}-small"), all.first().context("one at least")?)?;
        keep("entries", &format!("{shape}-large"), all.last().context("one at least")?)?;
    }
    Ok(())
}

type Key<'a> = (Option<[u8; 16]>, u8, &'a [u8]);

/// Documents with the updates that follow their insert, by the sections that these have.
fn updates(entries: &[(Entry<'_>, &[u8])]) -> Result<()> {
    let mut chains: HashMap<Key<'_>, Vec<&[u8]>> = HashMap::new();
    let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (entry, _) in entries {
        let operation = &entry.operation;
        let holder = if operation.op == Op::Update { operation.o2 } else { Some(operation.o) };
        let Some(Some((kind, value))) = holder.and_then(|holder| raw_id(holder).ok()) else { continue };
        let key = (operation.uuid, kind, value);
        match operation.op {
            Op::Insert => drop(chains.insert(key, vec![operation.o])),
            Op::Update => {
                let Some(chain) = chains.get_mut(&key) else { continue };
                chain.push(operation.o);
                let chain = chain.concat();
                if chain.len() <= SMALL {
                    let update = RawDocument::from_bytes(operation.o)?;
                    let sections = match update.get_document("diff") {
                        Ok(diff) => fields(diff.as_bytes())
                            .iter()
                            .map(|name| name.chars().take(1).collect())
                            .collect::<Vec<String>>()
                            .concat(),
                        Err(_) => "replaced".to_owned(),
                    };
                    let kept = found.entry(sections).or_default();
                    if chain.len() > kept.len() {
                        *kept = chain;
                    }
                }
            }
            _ => drop(chains.remove(&key)),
        }
    }
    for (sections, chain) in found {
        keep("updates", &sections, &chain)?;
    }
    // What 4.4 writes.
    let old = [
        doc! {"_id": 1, "a": {"b": [1, 2, {"c": 3}]}, "d": 4},
        doc! {"$v": 1, "$set": {"a.b.2.c": 5, "a.b.4": 6, "e.f": 7}, "$unset": {"a.b.0": true, "d": true}},
    ];
    let old: Vec<u8> = old.iter().flat_map(|part| RawDocumentBuf::try_from(part).unwrap().into_bytes()).collect();
    keep("updates", "v1", &old)
}

/// Documents with nothing but an `_id`, of all types.
fn ids(entries: &[(Entry<'_>, &[u8])]) -> Result<()> {
    let mut kinds: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
    for (entry, _) in entries.iter().filter(|(entry, _)| entry.operation.op == Op::Insert) {
        let raw = RawDocument::from_bytes(entry.operation.o)?;
        let Some((kind, value)) = raw_id(entry.operation.o)? else { continue };
        let ids = kinds.entry(kind).or_default();
        if value.len() < 300 && ids.len() < 4 {
            let mut id = RawDocumentBuf::new();
            id.append(bson::cstr!("_id"), raw.get("_id")?.context("an _id")?);
            ids.push(id.into_bytes());
        }
    }
    for (kind, ids) in &kinds {
        keep("ids", &format!("type-{kind:02x}"), &ids.concat())?;
    }
    keep("ids", "all", &kinds.values().filter_map(|ids| ids.first()).flatten().copied().collect::<Vec<u8>>())
}

/// A few collections with some of their documents and the log about them.
async fn folds(cluster: &ClusterRepository, manifest: &SnapshotManifest, entries: &[(Entry<'_>, &[u8])]) -> Result<()> {
    let mut frames: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut catalog = Vec::new();
    for object in &manifest.objects {
        let key = cluster.keys().snapshot_object(&manifest.id, &object.name);
        let reader = cluster.object_reader(&key, Some(object)).await?;
        for (index, entry) in reader.footer().frames.iter().enumerate() {
            match object.name.starts_with("data/") {
                true => drop(frames.insert(entry.segment, reader.frame(index).await?)),
                false => catalog.extend(reader.frame(index).await?),
            }
        }
    }
    let mut run = &catalog[..];
    let header = next_document(&mut run)?.context("a catalog has a header")?;
    let mut all = Vec::new();
    while let Some(raw) = next_document(&mut run)? {
        let decoded = Document::try_from(RawDocument::from_bytes(raw)?)?;
        if raw.len() <= SMALL && decoded.get_str("db").is_ok_and(|db| db != "admin") {
            all.push((raw, decoded));
        }
    }
    for (number, collections) in all.chunks(3).take(12).enumerate() {
        let mut uuids = HashSet::new();
        let mut base = Vec::new();
        for (_, decoded) in collections {
            uuids.extend(decoded.get_binary_generic("uuid").ok().cloned());
            if let Some(bson::Bson::Binary(uuid)) = decoded.get("uuid") {
                uuids.insert(uuid.bytes.clone());
            }
            for segment in decoded.get_array("segments")?.iter().filter_map(bson::Bson::as_document) {
                let frame = frames.get(&(segment.get_i64("id")? as u32)).cloned().unwrap_or_default();
                let mut run = &frame[..];
                while let Some(document) = next_document(&mut run)?.filter(|_| base.len() < SMALL) {
                    if document.len() < 400 {
                        base.extend_from_slice(document);
                    }
                }
            }
        }
        let mut log = Vec::new();
        let mut shapes: HashMap<String, usize> = HashMap::new();
        for (entry, raw) in entries {
            let mine = entry.operation.uuid.is_some_and(|uuid| uuids.contains(&uuid[..])) || entry.txn.is_some();
            let often = shapes.entry(shape(entry)).or_default();
            if mine && raw.len() <= 1000 && *often < 5 && log.len() < 2 * SMALL {
                *often += 1;
                log.extend_from_slice(raw);
            }
        }
        let catalog: Vec<u8> = collections.iter().flat_map(|(raw, _)| raw.iter().copied()).collect();
        // In turn: consistent at once or later, selective or not, spilling or not.
        let flags = [4 | (number as u8 & 3) | if number % 4 == 0 { 8 } else { 0 }];
        let input = [&flags[..], header, &catalog, &SEPARATOR, &base, &SEPARATOR, &log].concat();
        keep("fold", &format!("{number:02}"), &input)?;
    }
    Ok(())
}
