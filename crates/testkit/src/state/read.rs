//! Reading a [`ClusterState`] from a server.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use bson::{Bson, Document, RawDocumentBuf, doc};
use futures::TryStreamExt as _;
use mongodb::options::FindOptions;
use mongodb::{Client, Collection, Database};

use super::{ClusterState, CollectionState, Contents};

pub(super) async fn cluster(client: &Client) -> Result<ClusterState> {
    let mut databases = BTreeMap::new();
    for name in client.list_database_names().await? {
        if matches!(name.as_str(), "local" | "config") {
            continue;
        }
        let collections = database(&client.database(&name)).await.with_context(|| format!("database {name}"))?;
        if !collections.is_empty() {
            databases.insert(name, collections);
        }
    }
    let mut users = BTreeMap::new();
    let admin = client.database("admin");
    for (what, name) in [("user", "system.users"), ("role", "system.roles")] {
        let mut documents = admin.collection::<RawDocumentBuf>(name).find(doc! {}).await?;
        while let Some(document) = documents.try_next().await? {
            let id = document.get_str("_id")?;
            users.insert(format!("{what} {id}"), blake3::hash(document.as_bytes()).to_hex().to_string());
        }
    }
    Ok(ClusterState { databases, users })
}

/// Whether a collection belongs to the server, or is read another way.
fn left_out(database: &str, name: &str) -> bool {
    matches!(name, "system.profile" | "system.views")
        || database == "admin" && matches!(name, "system.keys" | "system.version" | "system.users" | "system.roles")
}

async fn database(database: &Database) -> Result<BTreeMap<String, CollectionState>> {
    let hashes = database.run_command(doc! {"dbHash": 1}).await?;
    let hashes = hashes.get_document("collections")?;

    let mut collections = BTreeMap::new();
    let listing = command_cursor(database, doc! {"listCollections": 1}).await?;
    let names: BTreeSet<&str> = listing.iter().filter_map(|entry| entry.get_str("name").ok()).collect();
    for entry in &listing {
        let name = entry.get_str("name")?;
        // A primary that is killed amid the creation or the drop of a time-series leaves it without its buckets. It has no data, and no
        // indexes that could be asked for (`CommandNotSupportedOnView`).
        let lost = entry.get_str("type")? == "timeseries" && !names.contains(&*format!("system.buckets.{name}"));
        if lost || left_out(database.name(), name) {
            continue;
        }
        let options = entry.get_document("options")?;
        let mut state = CollectionState {
            kind: entry.get_str("type")?.to_owned(),
            options: fields(options).into_iter().filter(|(option, _)| option != "temp").collect(),
            indexes: BTreeMap::new(),
            db_hash: hashes.get_str(name).ok().map(str::to_owned),
            contents: None,
        };
        if state.kind != "view" {
            state.indexes = indexes(database, name).await?;
        }
        let capped = options.get_bool("capped").unwrap_or(false);
        let buckets = name.starts_with("system.buckets.");
        if state.kind == "collection" && (capped || buckets || state.db_hash.is_none()) {
            state.contents = Some(contents(&database.collection(name), capped).await?);
        }
        collections.insert(name.to_owned(), state);
    }
    Ok(collections)
}

async fn indexes(database: &Database, name: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    // With this flag an index that is being built comes as `{spec: {...}, buildUUID: ...}` (4.4 to 6.0, tried), and can be
    // told from the finished ones, which come as they are. One of a time-series can only be told of in later batches (6.0.5).
    let command = doc! {"listIndexes": name, "includeBuildUUIDs": true, "cursor": {"batchSize": 0}};
    let mut indexes = BTreeMap::new();
    for index in command_cursor(database, command).await? {
        if index.contains_key("buildUUID") {
            continue;
        }
        let mut fields = fields(&index);
        fields.remove("ns");
        fields.remove("v");
        indexes.insert(index.get_str("name")?.to_owned(), fields);
    }
    Ok(indexes)
}

async fn contents(collection: &Collection<RawDocumentBuf>, capped: bool) -> Result<Contents> {
    let options = match capped {
        true => FindOptions::builder().sort(doc! {"$natural": 1}).build(),
        false => FindOptions::builder().sort(doc! {"_id": 1}).allow_disk_use(true).build(),
    };
    let mut documents = collection.find(doc! {}).with_options(options).await?;
    let mut hasher = blake3::Hasher::new();
    let mut count = 0;
    while documents.advance().await? {
        hasher.update(documents.current().as_bytes());
        count += 1;
    }
    Ok(Contents { count, blake3: hasher.finalize().to_hex().to_string() })
}

async fn command_cursor(database: &Database, command: Document) -> Result<Vec<Document>> {
    Ok(database.run_cursor_command(command).await?.try_collect().await?)
}

/// Each field as canonical extended JSON, which keeps BSON types and the order inside of it.
fn fields(document: &Document) -> BTreeMap<String, String> {
    let json = |value: &Bson| value.clone().into_canonical_extjson().to_string();
    document.iter().map(|(name, value)| (name.clone(), json(value))).collect()
}
