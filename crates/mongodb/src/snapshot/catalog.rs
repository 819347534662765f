//! Listing what there is to copy.

use bson::{Binary, Bson, Document, doc, spec::BinarySubtype};
use futures::TryStreamExt;
use hindsight_engine::{Result, Selection};
use mongodb::Database;

use super::stored::{Segment, StoredCollection};
use crate::cluster::{Source, number, odd};
use crate::failure::{code, code_of, driver};
use crate::namespace;
use crate::oplog::entry::Uuid;

/// A collection as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) uuid: Uuid,
    pub(crate) db: String,
    pub(crate) name: String,
    pub(crate) options: Document,
    pub(crate) indexes: Vec<Document>,
    /// Size of its documents, about.
    pub(crate) bytes: u64,
    /// Bytes of a document on average, about; 0 when not known.
    pub(crate) average: u64,
    /// What was copied of it.
    pub(crate) segments: Vec<Segment>,
    /// Its documents, where they are known without reading them.
    pub(crate) known: Option<Vec<u8>>,
}

impl Found {
    /// Whether documents must be read in the order in which they came.
    pub(crate) fn is_capped(&self) -> bool {
        self.options.get_bool("capped").unwrap_or(false)
    }

    /// For messages.
    pub(crate) fn namespace(&self) -> String {
        format!("{}.{}", self.db, self.name)
    }

    /// As it is stored.
    pub(crate) fn into_stored(self) -> StoredCollection {
        StoredCollection {
            uuid: self.uuid,
            db: self.db,
            name: self.name,
            options: self.options,
            indexes: self.indexes,
            segments: self.segments,
        }
    }
}

/// A UUID as commands take it in place of a name.
pub(crate) fn uuid_bson(uuid: &Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: uuid.to_vec() })
}

/// The UUID in a field.
pub(crate) fn uuid_of(field: Option<&Bson>) -> Option<Uuid> {
    match field {
        Some(Bson::Binary(binary)) => binary.bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

/// All collections that are to be protected and selected. Views are the documents of `system.views`,
/// which the role `backup` may not read: they are put together from the listing.
pub(crate) async fn list(source: &Source, selection: &Selection) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for db in database_names(source).await? {
        let database = source.client.database(&db);
        let listing = list_collections(&database).await?;
        for info in &listing {
            let Some(mut collection) = parse(&db, info)? else { continue };
            if !namespace::is_protected(&db, &collection.name) || !is_selected(selection, &db, &collection.name) {
                continue;
            }
            let Some(indexes) = indexes(&database, &collection).await? else { continue };
            collection.indexes = indexes;
            match collection.name.as_str() {
                namespace::VIEWS => collection.known = Some(views(&db, &listing)?),
                name => (collection.bytes, collection.average) = size(&database, name).await,
            }
            found.push(collection);
        }
    }
    Ok(found)
}

/// View definitions come along with any collection of their database, buckets with their
/// time-series.
pub(crate) fn is_selected(selection: &Selection, db: &str, name: &str) -> bool {
    selection.contains(db, namespace::visible(name)) || (name == namespace::VIEWS && selects_some(selection, db))
}

fn selects_some(selection: &Selection, db: &str) -> bool {
    selection.patterns().iter().any(|pattern| namespace::split(pattern).0 == db)
}

async fn database_names(source: &Source) -> Result<Vec<String>> {
    let names = source.client.list_database_names().await.map_err(|e| driver("listing databases", e))?;
    Ok(names.into_iter().filter(|name| name != "local" && name != "config").collect())
}

/// `listCollections`, raw.
pub(crate) async fn list_collections(database: &Database) -> Result<Vec<Document>> {
    let doing = format!("listing the collections of {}", database.name());
    let cursor = database.run_cursor_command(doc! {"listCollections": 1}).await.map_err(|e| driver(&doing, e))?;
    cursor.try_collect().await.map_err(|e| driver(&doing, e))
}

fn parse(db: &str, info: &Document) -> Result<Option<Found>> {
    // `view` and `timeseries` are definitions in system.views over other collections.
    if !info.get_str("type").is_ok_and(|kind| kind == "collection") {
        return Ok(None);
    }
    let bad = |e: &dyn std::fmt::Display| odd("listCollections", e);
    let name = info.get_str("name").map_err(|e| bad(&e))?.to_owned();
    let uuid = info.get_document("info").ok().and_then(|i| uuid_of(i.get("uuid"))).ok_or_else(|| bad(&"no UUID"))?;
    let options = info.get_document("options").cloned().unwrap_or_default();
    let db = db.to_owned();
    Ok(Some(Found {
        uuid,
        db,
        name,
        options,
        indexes: Vec::new(),
        bytes: 0,
        average: 0,
        segments: Vec::new(),
        known: None,
    }))
}

/// The documents of `system.views`, as BSON. Of a time-series it only matters that it is one: the rest
/// follows from its buckets.
fn views(db: &str, listing: &[Document]) -> Result<Vec<u8>> {
    let mut run = Vec::new();
    for info in listing {
        let name = info.get_str("name").map_err(|e| odd("listCollections", &e))?;
        let mut view = doc! {"_id": format!("{db}.{name}")};
        match info.get_str("type") {
            Ok("view") => view.extend(info.get_document("options").cloned().unwrap_or_default()),
            Ok("timeseries") => drop(view.insert("viewOn", namespace::buckets_of(name))),
            _ => continue,
        }
        view.to_writer(&mut run).map_err(|e| odd("listCollections", &e))?;
    }
    Ok(run)
}

/// The finished indexes, without the one on `_id`; none when the collection is gone.
async fn indexes(database: &Database, collection: &Found) -> Result<Option<Vec<Document>>> {
    // Servers cannot put one on a measurement of a time-series that is being built into their reply (6.0.5: Location5254501, the
    // field `originalSpec` is unknown to it), but they can into the cursor's next batch, which they don't parse.
    let all_later = doc! {"batchSize": 0};
    let command = doc! {"listIndexes": uuid_bson(&collection.uuid), "includeBuildUUIDs": true, "cursor": all_later};
    let doing = format!("listing the indexes of {}", collection.namespace());
    let cursor = match database.run_cursor_command(command).await {
        Err(error) if code_of(&error) == Some(code::NAMESPACE_NOT_FOUND) => return Ok(None),
        other => other.map_err(|e| driver(&doing, e))?,
    };
    let all: Vec<Document> = cursor.try_collect().await.map_err(|e| driver(&doing, e))?;
    let finished = all.into_iter().filter(|index| {
        // One that is being built comes as {spec, buildUUID}; the log tells when it is finished.
        let building = index.contains_key("buildUUID");
        let clustered = index.get_bool("clustered").unwrap_or(false);
        !building && !clustered && index.get_str("name").is_ok_and(|name| name != "_id_")
    });
    Ok(Some(finished.collect()))
}

/// Size of all documents and of one on average, for progress, splitting and batches only.
async fn size(database: &Database, name: &str) -> (u64, u64) {
    let reply = database.run_command(doc! {"collStats": name}).await.unwrap_or_default();
    let bytes = |field: &str| number(&reply, field).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    (bytes("size"), bytes("avgObjSize"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hindsight_testkit::{ReplicaSet, mongod_version};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn an_index_that_is_being_built_is_none() -> anyhow::Result<()> {
        let set = ReplicaSet::builder().arg("--setParameter").arg("enableTestCommands=1").start().await?;
        let source = Source { client: set.client().await?, host: String::new(), role: String::new() };
        let app = source.client.database("app");
        app.run_command(doc! {"insert": "things", "documents": [{"a": 1}]}).await?;
        let mut names = vec!["things"];
        // A measurement of a time-series can be indexed since 6.0.
        if mongod_version()? >= (6, 0, 0) {
            app.run_command(doc! {"create": "weather", "timeseries": {"timeField": "at"}}).await?;
            app.run_command(doc! {"insert": "weather", "documents": [{"at": bson::DateTime::now(), "a": 1}]}).await?;
            names.push("weather");
        }
        let index = async |name: &str, key: &str| {
            let index = doc! {"name": key, "key": {key: 1}};
            app.run_command(doc! {"createIndexes": name, "indexes": [index]}).await
        };
        for name in &names {
            index(name, "b").await?;
        }
        let stop = async |mode: &str| {
            let stop = doc! {"configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode};
            source.client.database("admin").run_command(stop).await
        };
        let listed = async || {
            let found = list(&source, &Selection::default()).await?;
            let names = found.iter().filter(|found| !found.indexes.is_empty()).map(|found| {
                let indexes = found.indexes.iter().filter_map(|index| index.get_str("name").ok());
                (namespace::visible(&found.name).to_owned(), indexes.collect::<Vec<_>>().join(" "))
            });
            let mut names: Vec<_> = names.collect();
            names.sort();
            anyhow::Ok(names)
        };
        let with =
            |indexes: &str| names.iter().map(|name| ((*name).to_owned(), indexes.to_owned())).collect::<Vec<_>>();

        stop("alwaysOn").await?;
        let looked = async {
            for name in names.iter().map(|name| if *name == "weather" { "system.buckets.weather" } else { name }) {
                let collection = app.collection::<Document>(name);
                while !collection.list_index_names().await?.contains(&"a".to_owned()) {
                    sleep(Duration::from_millis(20)).await;
                }
            }
            let amid = listed().await;
            stop("off").await?;
            amid
        };
        let build = futures::future::try_join_all(names.iter().map(|name| index(name, "a")));
        let (built, amid) = tokio::join!(build, looked);
        built?;
        assert_eq!((amid?, listed().await?), (with("b"), with("b a")));
        Ok(())
    }
}
