//! The servers that are measured: replica sets of one member.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bson::raw::{RawArrayBuf, RawDocument};
use bson::{Document, doc, rawdoc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hindsight_testkit::ReplicaSet;
use mongodb::{Client, Database};

use crate::data::{Batch, DATABASE, Dataset};
use crate::meter::cpu_seconds;

/// MB of oplog: enough to hold all updates, small enough to be kind to the disk.
const OPLOG_MB: u32 = 2048;

/// A server with a client.
#[derive(Debug)]
pub struct Server {
    set: ReplicaSet,
    /// Connected to it.
    pub client: Client,
}

impl Server {
    /// Starts a server with a cache of `cache_mib`.
    pub async fn start(cache_mib: u32) -> Result<Self> {
        let set = ReplicaSet::builder().oplog_mb(OPLOG_MB).start().await?;
        let client = set.client().await?;
        let cache = format!("cache_size={cache_mib}M");
        client.database("admin").run_command(doc! {"setParameter": 1, "wiredTigerEngineRuntimeConfig": cache}).await?;
        Ok(Self { set, client })
    }

    /// Connection string.
    pub fn uri(&self) -> String {
        self.set.uri()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.set.member(0).pid().unwrap_or_default()
    }

    /// Version of the server.
    pub async fn version(&self) -> Result<String> {
        let info = self.client.database("admin").run_command(doc! {"buildInfo": 1}).await?;
        Ok(info.get_str("version")?.to_owned())
    }

    /// Inserts all documents over a number of connections, as fast as the driver can.
    pub async fn insert(&self, data: &Dataset, connections: usize) -> Result<()> {
        // Collections take turns, as they do when several are restored at once.
        let mut batches: Vec<(f64, &'static str, Arc<Batch>)> = Vec::new();
        for collection in &data.collections {
            let total = collection.batches.len() as f64;
            for (at, batch) in collection.batches.iter().enumerate() {
                batches.push((at as f64 / total, collection.name, batch.clone()));
            }
        }
        batches.sort_by(|a, b| a.0.total_cmp(&b.0));
        let work = batches.into_iter().map(|(_, name, batch)| {
            let client = self.client.clone();
            async move { tokio::spawn(insert_batch(client.database(DATABASE), name.to_owned(), batch)).await? }
        });
        stream::iter(work).buffer_unordered(connections).try_collect().await
    }

    /// Inserts documents into a number of collections of another database.
    pub async fn insert_into(&self, database: &str, batches: &[Arc<Batch>], collections: usize) -> Result<()> {
        for (number, batch) in batches.iter().enumerate() {
            let name = format!("part{}", number % collections);
            insert_batch(self.client.database(database), name, batch.clone()).await?;
        }
        Ok(())
    }

    /// Builds all secondary indexes, those of all collections at the same time.
    pub async fn build_indexes(&self, data: &Dataset) -> Result<()> {
        let builds = data.collections.iter().map(|collection| async {
            let command = doc! {"createIndexes": collection.name, "indexes": collection.indexes.clone()};
            self.client.database(DATABASE).run_command(command).await.map(drop)
        });
        futures::future::try_join_all(builds).await?;
        Ok(())
    }

    /// Drops everything, and waits until the server is done with it.
    pub async fn clear(&self) -> Result<()> {
        self.client.database(DATABASE).drop().await?;
        self.settle().await
    }

    /// Has the server write everything to disk and waits until it rests, so that one measurement
    /// does not pay for another.
    pub async fn settle(&self) -> Result<()> {
        self.client.database("admin").run_command(doc! {"fsync": 1}).await?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let before = cpu_seconds(self.pid())?;
            tokio::time::sleep(Duration::from_millis(250)).await;
            if cpu_seconds(self.pid())? - before < 0.03 {
                break;
            }
        }
        Ok(())
    }

    /// Number of documents and sum of the orders' versions: a restore must give the same.
    pub async fn fingerprint(&self, data: &Dataset) -> Result<(u64, i64)> {
        let database = self.client.database(DATABASE);
        let mut documents = 0;
        for collection in &data.collections {
            documents += database.collection::<Document>(collection.name).count_documents(doc! {}).await?;
        }
        let sum = [doc! {"$group": {"_id": null, "sum": {"$sum": "$version"}}}];
        let mut sums = database.collection::<Document>(crate::data::ORDERS).aggregate(sum).await?;
        let sum = match sums.try_next().await? {
            Some(found) => found.get_i64("sum")?,
            None => 0,
        };
        Ok((documents, sum))
    }
}

async fn insert_batch(database: Database, collection: String, batch: Arc<Batch>) -> Result<()> {
    let mut documents = RawArrayBuf::new();
    let mut rest = &batch.bytes[..];
    while let Some(length) = rest.first_chunk().map(|length| u32::from_le_bytes(*length) as usize) {
        let Some((document, after)) = rest.split_at_checked(length) else { bail!("a batch ends within a document") };
        documents.push(RawDocument::from_bytes(document)?);
        rest = after;
    }
    let command = rawdoc! {
        "insert": collection.as_str(),
        "ordered": false,
        "bypassDocumentValidation": true,
        "writeConcern": {"w": 1},
        "documents": documents,
    };
    let reply = database.run_raw_command(command).await?;
    match reply.get("writeErrors") {
        None => Ok(()),
        Some(errors) => bail!("an insert into {collection} failed: {errors}"),
    }
}
