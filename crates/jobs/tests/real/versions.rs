//! From one version of the server to another. Long, and it needs several servers: `TEST_VERSIONS=4.4.2:5.0.4,5.0.4:6.0.5`
//! selects pairs of an older and a newer one, as `make test-matrix` does.

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use hindsight_catalog::Target;
use hindsight_engine::{FailureKind, Selection};
use hindsight_jobs::JobError;
use hindsight_testkit::{ClusterState, ReplicaSet};
use mongodb::Client;

use crate::support::{Protected, Store, logging, same, this_moment};

/// The pairs that were selected.
fn pairs() -> Result<Vec<(String, String)>> {
    let Ok(selected) = std::env::var("TEST_VERSIONS") else { return Ok(Vec::new()) };
    let pair = |text: &str| {
        let (old, new) = text.split_once(':').with_context(|| format!("{text:?} is no pair OLDER:NEWER"))?;
        Ok((old.to_owned(), new.to_owned()))
    };
    selected.split(',').map(pair).collect()
}

async fn set_of(version: &str) -> Result<ReplicaSet> {
    let set = ReplicaSet::builder().version(version).start().await?;
    let said = set.client().await?.database("admin").run_command(doc! {"buildInfo": 1}).await?;
    ensure!(said.get_str("version")? == version, "not {version}: {said}");
    Ok(set)
}

/// Documents, options, indexes, views, users and roles that both versions know. (And show alike: 5.0 spells the
/// `wildcardProjection` of an index out, which says the same.)
async fn fill(client: &Client, version: &str) -> Result<()> {
    let shop = client.database("shop");
    for command in [
        doc! {"create": "orders", "validator": {"n": {"$gte": 0}}, "validationLevel": "moderate"},
        doc! {"create": "names", "collation": {"locale": "de", "strength": 2}},
        doc! {"create": "ring", "capped": true, "size": 65_536, "max": 50},
        doc! {"create": "cheap", "viewOn": "orders", "pipeline": [{"$match": {"n": {"$lt": 5}}}]},
        doc! {"createIndexes": "orders", "indexes": [
            {"key": {"n": 1, "text": -1}, "name": "both", "partialFilterExpression": {"n": {"$gt": 3}}},
            {"key": {"at": 1}, "name": "old", "expireAfterSeconds": 1_000_000_000},
            {"key": {"words": "text"}, "name": "words", "default_language": "german"},
            {"key": {"place": "2dsphere"}, "name": "place"},
            {"key": {"$**": 1}, "name": "all"},
            {"key": {"hash": "hashed"}, "name": "hash"},
        ]},
        doc! {"createIndexes": "names", "indexes": [{"key": {"name": 1}, "name": "name", "unique": true}]},
        doc! {"createUser": "app", "pwd": "pw", "roles": ["readWrite"]},
        doc! {"createRole": "reader", "privileges": [], "roles": ["read"]},
    ] {
        shop.run_command(command).await?;
    }
    if !version.starts_with("4.") {
        shop.run_command(doc! {"create": "series", "timeseries": {"timeField": "at", "metaField": "m"}}).await?;
        let points = (0..50).map(|n| doc! {"at": bson::DateTime::from_millis(1_700_000_000_000 + n), "m": n % 3});
        shop.collection("series").insert_many(points).await?;
    }
    let orders = (0..500).map(|n| {
        let place = doc! {"type": "Point", "coordinates": [f64::from(n) / 10.0, 10.0]};
        doc! {"_id": n, "n": n % 10, "text": format!("order {n}"), "words": "Haus und Hof", "place": place, "hash": n}
    });
    shop.collection("orders").insert_many(orders).await?;
    shop.collection("names").insert_many(["Ärger", "Zorn"].map(|name| doc! {"name": name})).await?;
    shop.collection("ring").insert_many((0..40).map(|n| doc! {"_id": n})).await?;
    Ok(())
}

/// A history: a snapshot, and log of every kind after it.
async fn history(here: &Protected, client: &Client) -> Result<Target> {
    here.set("pitr.enabled", "true").await?;
    here.set("pitr.uploadIntervalSec", "1").await?;
    let agent = here.agent();
    here.based().await?;
    let shop = client.database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.update_many(doc! {"_id": {"$lt": 50}}, doc! {"$inc": {"n": 1}, "$set": {"list": [1, 2, {"a": 1}]}}).await?;
    orders.update_many(doc! {"_id": {"$lt": 20}}, doc! {"$push": {"list": 3}, "$unset": {"text": ""}}).await?;
    orders.update_one(doc! {"_id": 60}, vec![doc! {"$set": {"double": {"$multiply": ["$n", 2]}}}]).await?;
    orders.replace_one(doc! {"_id": 61}, doc! {"n": 7}).await?;
    orders.delete_many(doc! {"_id": {"$gte": 400}}).await?;
    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    orders.insert_one(doc! {"_id": "in a transaction", "n": 1}).session(&mut session).await?;
    orders.delete_one(doc! {"_id": 100}).session(&mut session).await?;
    session.commit_transaction().await?;
    for command in [
        doc! {"collMod": "orders", "validationLevel": "off"},
        doc! {"dropIndexes": "orders", "index": "hash"},
        doc! {"createIndexes": "orders", "indexes": [{"key": {"double": 1}, "name": "double"}]},
        doc! {"create": "late"},
    ] {
        shop.run_command(command).await?;
    }
    shop.collection("late").insert_one(doc! {"_id": 1}).await?;
    let rename = doc! {"renameCollection": "shop.names", "to": "shop.renamed"};
    client.database("admin").run_command(rename).await?;
    let moment = this_moment(client).await?;
    here.captured(&moment).await?;
    agent.stop().await?;
    here.set("pitr.enabled", "false").await?;
    Ok(moment)
}

async fn set_features(client: &Client, version: &str) -> Result<()> {
    client.database("admin").run_command(doc! {"setFeatureCompatibilityVersion": version}).await?;
    Ok(())
}

/// Refused for the version, with `words`, and nothing is touched.
async fn is_refused(from: &Protected, into: &Protected, client: &Client, target: Target, words: &str) -> Result<()> {
    let before = ClusterState::read(client).await?;
    let restored = from.restore_into(into, target, Selection::default()).await;
    let error = restored.err().context("it was restored")?.downcast::<JobError>()?;
    ensure!(error.kind() == Some(FailureKind::Unsupported), "{error}");
    ensure!(error.to_string().contains(words) && error.hint().is_some(), "{error}: {:?}", error.hint());
    same(client, &before).await
}

/// `5.0.4` is of the release `5.0`.
fn release(version: &str) -> Result<String> {
    let parts: Vec<_> = version.split('.').take(2).collect();
    ensure!(parts.len() == 2, "{version:?} is no version");
    Ok(parts.join("."))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_is_restored_into_a_newer_one_and_never_the_other_way_round() -> Result<()> {
    logging();
    for (old, new) in pairs()? {
        between(&old, &new).await.with_context(|| format!("between {old} and {new}"))?;
        println!("{old} into {new}: the data and definitions are the same; {new} into {old}: refused");
    }
    Ok(())
}

async fn between(old: &str, new: &str) -> Result<()> {
    let (older, newer) = tokio::try_join!(set_of(old), set_of(new))?;
    let (old_client, new_client) = (older.client().await?, newer.client().await?);
    let store = Store::new().await?;
    let here = store.protect(&older.uri(), Some("older")).await?;
    let there = store.protect(&newer.uri(), Some("newer")).await?;
    fill(&old_client, old).await?;
    let moment = history(&here, &old_client).await?;
    let expected = ClusterState::read(&old_client).await?;

    here.restore_into(&there, moment.clone(), Selection::default()).await?;
    same(&new_client, &expected).await.context("older into newer")?;
    if old.starts_with("4.") {
        let place = doc! {"key": {"place": "geoHaystack", "n": 1}, "name": "hay", "bucketSize": 1};
        let shop = old_client.database("shop");
        shop.run_command(doc! {"createIndexes": "hay", "indexes": [place]}).await?;
        let snapshot = Target::Snapshot(here.backup().await?.id);
        shop.collection::<Document>("hay").drop().await?;
        is_refused(&here, &there, &new_client, snapshot, "of the kind geoHaystack").await?;
    }

    // What counts is which features are switched on.
    let snapshot = Target::Snapshot(there.backup().await?.id);
    is_refused(&there, &here, &old_client, snapshot.clone(), &format!("the target runs the older {old}")).await?;
    set_features(&new_client, &release(old)?).await?;
    let words = format!("older {new} with featureCompatibilityVersion {}", release(old)?);
    is_refused(&there, &there, &new_client, snapshot, &words).await?;
    new_client.database("shop").drop().await?;
    here.restore_into(&there, moment, Selection::default()).await?;
    same(&new_client, &expected).await.context("into a newer one that is set to the older")?;
    let same_features = Target::Snapshot(there.backup().await?.id);
    old_client.database("shop").drop().await?;
    there.restore_into(&here, same_features, Selection::default()).await?;
    same(&old_client, &expected).await.context("from a newer one that is set to the older")
}
