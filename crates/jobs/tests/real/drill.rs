//! Drills on real servers: what is stored is restored for a trial, and whatever is not as it was is found.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use hindsight_catalog::Target;
use hindsight_engine::{FailureKind, Progress};
use hindsight_format::{ObjectKind, ObjectRef, ProofKind, SnapshotManifest};
use hindsight_jobs::{BackupRequest, DrillRequest, Drilled, JobError, backup, drill, overview, verify};
use hindsight_repository::encode_frame;
use hindsight_testkit::{ReplicaSet, mongod_binary};
use tokio_util::sync::CancellationToken;

use crate::support::{Protected, Store, logging, this_moment};

async fn hashed(here: &Protected) -> Result<(SnapshotManifest, Vec<String>)> {
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let request = BackupRequest { hash: Some(true), ..BackupRequest::default() };
    let manifest = backup(&*here.engine, &here.cluster, &request, &progress, &cancel).await?;
    Ok((manifest, progress.warnings()))
}

async fn drilled(here: &Protected, target: Target, folder: &Path) -> Result<Drilled> {
    let program = Some(mongod_binary()?.to_owned());
    let request = DrillRequest { target, base: None, program, folder: folder.to_owned() };
    Ok(drill(&here.engine, &here.cluster, &request, &Progress::default(), &CancellationToken::new()).await?)
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(std::fs::read_dir(folder)?.next().is_none())
}

/// Collections of every sort that a drill meets.
async fn fill(client: &mongodb::Client) -> Result<()> {
    let app = client.database("app");
    app.collection("things").insert_many((0..2000).map(|n| doc! {"_id": n, "text": format!("thing {n}")})).await?;
    app.run_command(doc! {"createIndexes": "things", "indexes": [{"key": {"text": 1}, "name": "by_text"}]}).await?;
    app.run_command(doc! {"create": "last", "capped": true, "size": 4096}).await?;
    app.collection("last").insert_many((0..200).map(|n| doc! {"_id": n})).await?;
    app.run_command(doc! {"create": "v", "viewOn": "things", "pipeline": []}).await?;
    app.run_command(doc! {"create": "gone_soon"}).await?;
    let index = doc! {"key": {"at": 1}, "name": "ttl", "expireAfterSeconds": 0};
    app.run_command(doc! {"createIndexes": "gone_soon", "indexes": [index]}).await?;
    app.collection("gone_soon").insert_one(doc! {"_id": 1, "at": bson::DateTime::from_millis(0)}).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_restores_validates_compares_and_leaves_only_evidence() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    fill(&client).await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    this_moment(&client).await?;
    let (manifest, warnings) = hashed(&here).await?;
    let hashes = manifest.hashes.clone().with_context(|| format!("no hashes: {warnings:?}"))?;
    ensure!(hashes.collections.contains_key("app.things") && hashes.collections.contains_key("app.last"), "{hashes:?}");
    let folder = tempfile::tempdir()?;
    let done = drilled(&here, Target::Snapshot(manifest.id.clone()), folder.path()).await?;
    ensure!(done.problems.is_empty(), "{:?}", done.problems);
    let examined = done.examined.context("not examined")?;
    ensure!(examined.hashes_compared == Some(hashes.collections.len() as u64), "{examined:?}");
    ensure!(examined.containers >= 3 && examined.items >= 2000, "{examined:?}");
    ensure!(done.proof.passed && done.proof.recovery_ms.is_some_and(|ms| ms > 0), "{:?}", done.proof);
    ensure!(is_empty(folder.path())?, "the server left something");
    let proofs = overview(&here.cluster).await?.proofs;
    ensure!(proofs == [done.proof], "{proofs:?}");

    // A moment after the snapshot has no hashes to compare with, and is validated all the same.
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.agent();
    client.database("app").collection("things").insert_one(doc! {"_id": "late"}).await?;
    let moment = this_moment(&client).await?;
    here.captured(&moment).await?;
    let done = drilled(&here, moment, folder.path()).await?;
    ensure!(done.proof.passed && done.proof.hashes_compared.is_none(), "{:?}", done.proof);
    ensure!(done.totals.is_some_and(|totals| totals.log_records > 0), "{:?}", done.totals);
    agent.stop().await
}

/// Replaces an object of a snapshot, and its entry in the manifest, as if it had been stored like this.
async fn replaced(
    here: &Protected,
    manifest: &mut SnapshotManifest,
    name: &str,
    kind: ObjectKind,
    frames: &[(u32, Vec<u8>)],
) -> Result<()> {
    let mut writer = here.cluster.object_writer(here.cluster.keys().snapshot_object(&manifest.id, name), kind).await;
    for (segment, raw) in frames {
        writer.write(encode_frame(raw, 3, *segment)?).await?;
    }
    let written = writer.finish(None).await?;
    let object = manifest.objects.iter_mut().find(|object| object.name == name).context("no such object")?;
    *object = ObjectRef {
        name: name.to_owned(),
        stored_bytes: written.stored_bytes,
        raw_bytes: written.raw_bytes,
        footer_blake3: written.footer_blake3,
    };
    let root = std::path::PathBuf::from(here.repository.url().trim_start_matches("file://"));
    std::fs::remove_file(root.join(here.cluster.keys().manifest(&manifest.id)))?;
    Ok(here.cluster.put_manifest(manifest).await?)
}

async fn frames(here: &Protected, manifest: &SnapshotManifest, name: &str) -> Result<Vec<(u32, Vec<u8>)>> {
    let object = manifest.objects.iter().find(|object| object.name == name).context("no such object")?;
    let key = here.cluster.keys().snapshot_object(&manifest.id, name);
    let reader = here.cluster.object_reader(&key, Some(object)).await?;
    let mut frames = Vec::new();
    for (index, entry) in reader.footer().frames.iter().enumerate() {
        frames.push((entry.segment, reader.frame(index).await?));
    }
    Ok(frames)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_was_taken_out_with_all_checksums_made_anew_is_missed() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    client.database("app").collection("things").insert_many((0..500).map(|n| doc! {"_id": n, "n": n})).await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    this_moment(&client).await?;
    let (mut manifest, warnings) = hashed(&here).await?;
    ensure!(manifest.hashes.is_some(), "{warnings:?}");

    // The first document of the largest object.
    let largest = manifest.objects.iter().filter(|object| object.name.starts_with("data/"));
    let largest = largest.max_by_key(|object| object.raw_bytes).context("no data")?.name.clone();
    let mut stored = frames(&here, &manifest, &largest).await?;
    let (segment, raw) = stored.iter_mut().max_by_key(|(_, raw)| raw.len()).context("no frames")?;
    let length = u32::from_le_bytes(raw[..4].try_into()?) as usize;
    let segment = *segment;
    raw.drain(..length);
    replaced(&here, &mut manifest, &largest, ObjectKind::Data, &stored).await?;
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let found = verify(&here.engine, &here.cluster, None, &progress, &cancel).await?;
    let told: Vec<_> = found.damage().map(|finding| format!("{}: {}", finding.what, finding.means)).collect();
    ensure!(told.len() == 1 && told[0].contains("app.things: 499 documents") && told[0].contains("500"), "{told:?}");
    ensure!(told[0].contains(&format!("snapshot {} cannot be restored", manifest.id)), "{told:?}");

    // With the catalog made to agree there is nothing left to count by: the hash of backup time tells.
    let name = "catalog.bson.zst";
    let mut catalog = frames(&here, &manifest, name).await?;
    for (_, raw) in &mut catalog {
        let mut run = raw.as_slice();
        let mut changed = Vec::new();
        while !run.is_empty() {
            let mut document = Document::from_reader(&mut run)?;
            for one in document.get_array_mut("segments").into_iter().flatten() {
                let one = one.as_document_mut().context("a segment")?;
                if one.get_i64("id")? == i64::from(segment) {
                    let (documents, bytes) = (one.get_i64("documents")?, one.get_i64("bytes")?);
                    one.insert("documents", documents - 1);
                    one.insert("bytes", bytes - length as i64);
                }
            }
            document.to_writer(&mut changed)?;
        }
        *raw = changed;
    }
    manifest.totals.documents -= 1;
    replaced(&here, &mut manifest, name, ObjectKind::Catalog, &catalog).await?;
    let found = verify(&here.engine, &here.cluster, None, &progress, &cancel).await?;
    ensure!(found.damage().next().is_none(), "{:?}", found.findings);
    let folder = tempfile::tempdir()?;
    let done = drilled(&here, Target::Snapshot(manifest.id.clone()), folder.path()).await?;
    ensure!(
        done.problems.len() == 1 && done.problems[0].contains("app.things is not what it was"),
        "{:?}",
        done.problems
    );
    let proofs = overview(&here.cluster).await?.proofs;
    let last = proofs.last().context("no proof")?;
    ensure!(last.kind == ProofKind::Drill && !last.passed && last.broken == [manifest.id], "{last:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_is_stopped_or_cannot_begin_leaves_nothing() -> Result<()> {
    logging();
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    client.database("app").collection("things").insert_many((0..50_000).map(|n| doc! {"_id": n})).await?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), None).await?;
    let manifest = here.backup().await?;
    let folder = tempfile::tempdir()?;
    let request = DrillRequest {
        target: Target::Snapshot(manifest.id),
        base: None,
        program: Some(mongod_binary()?.to_owned()),
        folder: folder.path().to_owned(),
    };
    let refused = async |program: &Path| -> Result<JobError> {
        let request = DrillRequest { program: Some(program.to_owned()), ..request.clone() };
        let tried = drill(&here.engine, &here.cluster, &request, &Progress::default(), &CancellationToken::new()).await;
        tried.err().context("it went through")
    };
    let error = refused(Path::new("/nonexistent/mongod")).await?;
    ensure!(error.to_string().contains("/nonexistent/mongod cannot be run"), "{error}");
    ensure!(error.hint().is_some_and(|hint| hint.contains("--program")), "{error}");
    let elsewhere = tempfile::tempdir()?;
    let old = elsewhere.path().join("mongod");
    std::fs::write(&old, "#!/bin/sh\necho db version v3.6.1\n")?;
    let mut mode = old.metadata()?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(&old, mode)?;
    let error = refused(&old).await?;
    ensure!(error.kind() == Some(FailureKind::Unsupported) && error.to_string().contains("older 3.6.1"), "{error}");

    // Stopped as soon as its server has a folder, and as soon as it restores.
    for stop_at in ["starting a server to restore into", "inserting documents"] {
        let (progress, cancel) = (Progress::default(), CancellationToken::new());
        let (engine, cluster, request) = (here.engine.clone(), here.cluster.clone(), request.clone());
        let (told, token) = (progress.clone(), cancel.clone());
        let running = tokio::spawn(async move { drill(&engine, &cluster, &request, &told, &token).await });
        let begun = Instant::now();
        while progress.current().name != stop_at || is_empty(folder.path())? {
            ensure!(begun.elapsed() < Duration::from_secs(30) && !running.is_finished(), "never at {stop_at}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cancel.cancel();
        let stopped = running.await?.err().context("it went through")?;
        ensure!(stopped.kind() == Some(FailureKind::Cancelled), "{stopped}");
        ensure!(is_empty(folder.path())?, "the server left something");
    }
    ensure!(overview(&here.cluster).await?.proofs.is_empty(), "evidence of nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_are_kept_only_when_nothing_was_written_meanwhile_and_the_user_may_hash() -> Result<()> {
    logging();
    let set = ReplicaSet::builder().auth().start().await?;
    let client = set.client().await?;
    client.database("app").collection("things").insert_many((0..2000).map(|n| doc! {"_id": n})).await?;
    let admin = client.database("admin");
    for (name, roles) in
        [("saver", vec!["backup", "clusterMonitor"]), ("hasher", vec!["backup", "clusterMonitor", "readAnyDatabase"])]
    {
        let roles: Vec<_> = roles.iter().map(|role| doc! {"role": *role, "db": "admin"}).collect();
        admin.run_command(doc! {"createUser": name, "pwd": "pw", "roles": roles}).await?;
    }
    this_moment(&client).await?;
    let store = Store::new().await?;
    let saver = store.protect(&set.uri_as("saver", "pw"), None).await?;
    let (manifest, warnings) = hashed(&saver).await?;
    ensure!(manifest.hashes.is_none(), "{manifest:?}");
    ensure!(
        warnings.iter().any(|warning| warning.contains("dbHash") && warning.contains("readAnyDatabase")),
        "{warnings:?}"
    );

    let hasher = store.protect(&set.uri_as("hasher", "pw"), None).await?;
    let (manifest, warnings) = hashed(&hasher).await?;
    ensure!(manifest.hashes.is_some_and(|hashes| hashes.collections.contains_key("app.things")), "{warnings:?}");

    let stop = CancellationToken::new();
    let (token, busy) = (stop.clone(), client.database("app").collection("busy"));
    let writing = tokio::spawn(async move {
        for n in 0.. {
            if token.is_cancelled() {
                break;
            }
            busy.insert_one(doc! {"_id": n}).await?;
        }
        anyhow::Ok(())
    });
    let taken = hashed(&hasher).await;
    stop.cancel();
    writing.await??;
    let (manifest, warnings) = taken?;
    ensure!(manifest.hashes.is_none(), "kept while something was written");
    ensure!(warnings.iter().any(|warning| warning.contains("the moment did not allow it")), "{warnings:?}");
    Ok(())
}
