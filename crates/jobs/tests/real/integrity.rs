//! Every kind of stored object harmed in every way: `verify` names it, and a restore refuses before it touches the
//! target, or is exact.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bson::doc;
use hindsight_catalog::Target;
use hindsight_engine::{Engine, Progress, Selection};
use hindsight_format::{GapRecord, Point, Position};
use hindsight_jobs::{Level, RestoreRequest, Verified, propose, restore, verify};
use hindsight_repository::ClusterRepository;
use hindsight_testkit::{ClusterState, ReplicaSet};
use tokio_util::sync::CancellationToken;

use crate::support::harm::{Harm, Pristine};
use crate::support::{Protected, Store, captured_log, logging, same, this_moment};

async fn verified(engine: &Arc<dyn Engine>, cluster: &ClusterRepository) -> Result<Verified> {
    Ok(verify(engine, cluster, None, &Progress::default(), &CancellationToken::new()).await?)
}

/// Two histories of a small cluster, with every kind of object, and the moment in the first one that is restored.
async fn small_repository(set: &ReplicaSet, here: &Protected) -> Result<(Target, ClusterState)> {
    let client = set.client().await?;
    let things = client.database("app").collection("things");
    things.insert_many((0..3000).map(|n| doc! {"_id": n, "text": format!("thing number {n}")})).await?;
    client.database("app").collection("others").insert_many((0..100).map(|n| doc! {"_id": n})).await?;
    client.database("app").run_command(doc! {"create": "v", "viewOn": "things", "pipeline": []}).await?;
    // What is written meanwhile makes a slice of its own.
    let (stop, busy) = (CancellationToken::new(), client.database("app").collection("others"));
    let token = stop.clone();
    let writing = tokio::spawn(async move {
        let mut n = 1000;
        while !token.is_cancelled() {
            busy.insert_one(doc! {"_id": n}).await?;
            n += 1;
        }
        anyhow::Ok(())
    });
    let taken = here.backup().await;
    stop.cancel();
    writing.await??;
    ensure!(taken?.totals.log_records > 0, "the snapshot has no log of its own");
    here.set("pitr.uploadIntervalSec", "1").await?;
    here.set("pitr.enabled", "true").await?;
    let agent = here.unmerging_agent();
    for round in 0..4 {
        things.update_many(doc! {"_id": {"$lt": 50}}, doc! {"$inc": {"n": round}}).await?;
        here.captured(&this_moment(&client).await?).await?;
    }
    let moment = this_moment(&client).await?;
    let expected = ClusterState::read(&client).await?;
    things.delete_many(doc! {}).await?;
    here.captured(&this_moment(&client).await?).await?;
    agent.stop().await?;
    // A history that goes on after a restore, with a base and log of its own.
    here.restore_into(here, moment.clone(), Selection::default()).await?;
    let agent = here.unmerging_agent();
    things.insert_one(doc! {"_id": "later"}).await?;
    captured_log(here, 2).await?;
    agent.stop().await?;
    let at = |secs: i64| -> Result<Point> {
        let position = Position::new(format!("{secs:010}.0000000001"), "1")?;
        Ok(Point { time: jiff::Timestamp::from_second(secs)?, position })
    };
    for secs in [1_600_000_000, 1_600_001_000] {
        let gap = GapRecord {
            start: Some(at(secs)?),
            end: at(secs + 10)?,
            cause: "the oplog rolled over".into(),
            detected_at: jiff::Timestamp::now(),
        };
        here.cluster.put_gap(&here.engine.probe().await?.streams[0], 1, &gap).await?;
    }
    Ok((moment, expected))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_harmed_in_every_way_is_named_and_never_restored_from() -> Result<()> {
    logging();
    let (set, other) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single())?;
    let store = Store::new().await?;
    let here = store.protect(&set.uri(), Some("here")).await?;
    let (moment, expected) = small_repository(&set, &here).await?;
    let clean = verified(&here.engine, &here.cluster).await?;
    ensure!(clean.damage().next().is_none(), "{:?}", clean.findings);
    ensure!(clean.proof.passed && clean.proof.objects > 8 && clean.slices >= 4, "{:?}", clean.proof);
    verified(&here.engine, &here.cluster).await?;

    let pristine = Pristine::of(&here.cluster)?;
    let kinds: std::collections::BTreeSet<_> = pristine.keys.iter().map(|key| pristine.kind(key)).collect();
    for kind in
        ["cluster", "config", "manifest", "data", "own slice", "catalog", "slice", "epoch", "gap", "restore", "proof"]
    {
        ensure!(kinds.contains(kind), "no {kind} among {kinds:?}");
    }
    let target = other.client().await?;
    target.database("mine").collection("untouched").insert_one(doc! {"_id": 1}).await?;
    let before = ClusterState::read(&target).await?;
    let into: Arc<dyn Engine> = Arc::new(hindsight_mongodb::MongoEngine::new(other.uri()));

    // All of it with DAMAGE_ALL=1; otherwise what a restore does is tried for some of the harms.
    let all = std::env::var_os("DAMAGE_ALL").is_some();
    let (mut refused, mut exact) = (0, 0);
    for (index, key) in pristine.keys.iter().enumerate() {
        for (number, harm) in Harm::ALL.into_iter().enumerate() {
            let Some(copy) = pristine.harmed(key, harm)? else { continue };
            let what = format!("{key}: {harm:?}");
            let opened = copy.open().await;
            let (repository, cluster) = match opened {
                Ok(open) => open,
                Err(error) => {
                    ensure!(key == "repository.json", "{what}: {error:#}");
                    ensure!(harm == Harm::Delete || error.to_string().contains(key.as_str()), "{what}: {error:#}");
                    continue;
                }
            };
            let found = verified(&here.engine, &cluster).await.with_context(|| what.clone())?;
            check_named(&pristine, key, harm, &found).with_context(|| format!("{what}: {:?}", found.findings))?;

            if !all && (index + number) % Harm::ALL.len() != 0 {
                continue;
            }
            let request = RestoreRequest::to(moment.clone());
            let (progress, cancel) = (Progress::default(), CancellationToken::new());
            let done = async {
                let proposal = propose(&*into, &repository, &cluster, request).await?;
                restore(&*into, &proposal, &progress, &cancel).await
            };
            match done.await {
                Ok(_) => {
                    same(&target, &expected).await.with_context(|| what.clone())?;
                    target.database("app").drop().await?;
                    target.database("mine").collection("untouched").insert_one(doc! {"_id": 1}).await?;
                    exact += 1;
                }
                Err(error) => {
                    let named = key.rsplit('/').next().is_some_and(|name| error.to_string().contains(name));
                    let other = pristine.other(key).and_then(|other| other.rsplit('/').next());
                    let other = harm == Harm::Swap && other.is_some_and(|name| error.to_string().contains(name));
                    ensure!(named || other || harm == Harm::Delete, "{what}: {error}");
                    refused += 1;
                }
            }
            same(&target, &before).await.with_context(|| format!("{what}: touched"))?;
        }
    }
    ensure!(refused > 5 && exact > 5, "{refused} refused, {exact} exact");
    Ok(())
}

/// What `verify` has to say about a harm.
fn check_named(pristine: &Pristine, key: &str, harm: Harm, found: &Verified) -> Result<()> {
    let kind = pristine.kind(key);
    let named = found.findings.iter().find(|finding| finding.key == key);
    if harm == Harm::Delete {
        match kind.as_str() {
            "data" | "catalog" | "own slice" | "cluster" | "epoch" => {
                ensure!(named.is_some_and(|finding| finding.level == Level::Damage), "not named");
            }
            "manifest" => {
                let folder = key.trim_end_matches("manifest.json");
                ensure!(
                    found.findings.iter().any(|f| f.key == folder && f.what.contains("without a manifest")),
                    "no word"
                );
            }
            // In the midst of the log; at its ends nothing tells that there was more.
            "slice" => {
                let name: hindsight_format::SliceName = key.rsplit('/').next().unwrap_or_default().parse()?;
                let among: Vec<_> = pristine.keys.iter().filter(|other| pristine.kind(other) == kind).collect();
                let ends_at = format!("{}_", name.end.key_text());
                let starts_at = format!("_{}.", name.start.key_text());
                let midst = among.iter().any(|k| k.contains(&ends_at)) && among.iter().any(|k| k.contains(&starts_at));
                let told = found.damage().any(|finding| {
                    finding.what.contains(&name.start.key_text()) && finding.what.contains(&name.end.key_text())
                });
                ensure!(told == midst, "in the midst: {midst}");
            }
            _ => {}
        }
        return Ok(());
    }
    // Settings do not say which version they are.
    if kind == "config" && harm == Harm::Swap {
        return Ok(());
    }
    let level = named.context("not named")?.level;
    let newest = pristine.keys.iter().rfind(|other| pristine.kind(other) == kind).is_some_and(|last| last == key);
    let harmless = kind == "proof" || (!newest && (kind == "config" || kind.starts_with("lease")));
    ensure!((level == Level::Note) == harmless, "{level:?}");
    ensure!(found.findings.iter().all(|finding| !finding.means.is_empty()), "something is not explained");
    // What it changed places with may be the one in force.
    ensure!(found.proof.passed == harmless || harm == Harm::Swap, "{:?}", found.proof);
    Ok(())
}
