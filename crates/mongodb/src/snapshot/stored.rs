//! The catalog object of a snapshot: one BSON document for the snapshot, then one a collection.

use bson::{Document, doc};
use hindsight_engine::{Content, EngineError, Job, Result, SnapshotRequest};
use hindsight_format::{ObjectKind, ObjectRef, SnapshotManifest};
use hindsight_repository::{ClusterRepository, FRAME_TARGET, encode_frame};
use serde::{Deserialize, Serialize};

use super::catalog::{Found, uuid_bson, uuid_of};
use crate::fold::{Base, Catalog, Collection};
use crate::oplog::entry::{Uuid, decode, next_document};
use crate::optime::Optime;

/// Name of the object in the snapshot's folder.
const NAME: &str = "catalog.bson.zst";

/// One scan: a whole collection, or a range of it. Frames carry its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) documents: u64,
    pub(crate) bytes: u64,
}

/// A collection in the catalog object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredCollection {
    pub(crate) uuid: Uuid,
    pub(crate) db: String,
    pub(crate) name: String,
    pub(crate) options: Document,
    pub(crate) indexes: Vec<Document>,
    /// Only these count: a scan that had to be begun again left frames that do not.
    pub(crate) segments: Vec<Segment>,
}

/// The whole catalog object.
pub(crate) struct StoredCatalog {
    pub(crate) read_from: Optime,
    pub(crate) collections: Vec<StoredCollection>,
}

impl StoredCollection {
    fn to_document(&self) -> Document {
        let segments: Vec<Document> = self
            .segments
            .iter()
            .map(|s| doc! {"id": i64::from(s.id), "documents": s.documents as i64, "bytes": s.bytes as i64})
            .collect();
        doc! {
            "uuid": uuid_bson(&self.uuid), "db": &self.db, "name": &self.name, "options": self.options.clone(),
            "indexes": self.indexes.clone(), "segments": segments,
        }
    }

    /// What it is for people.
    pub(crate) fn info(&self) -> Content {
        Content {
            name: format!("{}.{}", self.db, self.name),
            items: self.segments.iter().map(|s| s.documents).fold(0, u64::saturating_add),
            bytes: self.segments.iter().map(|s| s.bytes).fold(0, u64::saturating_add),
            indexes: self.indexes.len() as u64,
        }
    }

    fn from_document(doc: &Document) -> Option<Self> {
        let list = |name: &str| -> Option<Vec<Document>> {
            doc.get_array(name).ok()?.iter().map(|entry| entry.as_document().cloned()).collect()
        };
        let segment = |s: &Document| {
            Some(Segment {
                id: u32::try_from(s.get_i64("id").ok()?).ok()?,
                documents: u64::try_from(s.get_i64("documents").ok()?).ok()?,
                bytes: u64::try_from(s.get_i64("bytes").ok()?).ok()?,
            })
        };
        Some(Self {
            uuid: uuid_of(doc.get("uuid"))?,
            db: doc.get_str("db").ok()?.to_owned(),
            name: doc.get_str("name").ok()?.to_owned(),
            options: doc.get_document("options").ok()?.clone(),
            indexes: list("indexes")?,
            segments: list("segments")?.iter().map(segment).collect::<Option<_>>()?,
        })
    }
}

/// Stores the catalog object.
pub(super) async fn store(
    job: &Job,
    request: &SnapshotRequest,
    read_from: Optime,
    collections: Vec<Found>,
) -> Result<ObjectRef> {
    let key = job.cluster.keys().snapshot_object(&request.id, NAME);
    let mut writer = job.cluster.object_writer(key, ObjectKind::Catalog).await;
    let mut run = Vec::new();
    for document in StoredCatalog::documents(read_from, collections.into_iter().map(Found::into_stored)) {
        let start = run.len();
        document
            .to_writer(&mut run)
            .map_err(|e| EngineError::damaged(format!("a catalog entry cannot be stored: {e}")))?;
        debug_assert!(run.len() > start);
        if run.len() >= FRAME_TARGET {
            writer.write(encode_frame(&run, request.compression_level, 0)?).await?;
            run.clear();
        }
    }
    if !run.is_empty() {
        writer.write(encode_frame(&run, request.compression_level, 0)?).await?;
    }
    Ok(writer.finish(None).await?.named(NAME))
}

/// Reads the catalog object of a snapshot.
pub(crate) async fn load(cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<StoredCatalog> {
    let damaged = || EngineError::damaged(format!("the catalog of snapshot {} cannot be read", manifest.id));
    let reader = cluster.snapshot_object(manifest, NAME).await?.ok_or_else(damaged)?;
    let mut documents = Vec::new();
    for index in 0..reader.footer().frames.len() {
        decode_run(&reader.frame(index).await?, &mut documents).ok_or_else(damaged)?;
    }
    StoredCatalog::from_documents(&documents).ok_or_else(damaged)
}

/// Decodes a run of documents.
fn decode_run(mut run: &[u8], documents: &mut Vec<Document>) -> Option<()> {
    while let Some(raw) = next_document(&mut run).ok()? {
        documents.push(decode(raw).ok()?);
    }
    Some(())
}

impl StoredCatalog {
    /// A catalog from the raw bytes of its object.
    pub(crate) fn parse(run: &[u8]) -> Option<Self> {
        let mut documents = Vec::new();
        decode_run(run, &mut documents)?;
        Self::from_documents(&documents)
    }

    fn from_documents(documents: &[Document]) -> Option<Self> {
        let (header, rest) = documents.split_first()?;
        let at = header.get_document("readFrom").ok()?;
        Some(Self {
            read_from: Optime::new(at.get_timestamp("ts").ok()?, at.get_i64("t").ok()?),
            collections: rest.iter().map(StoredCollection::from_document).collect::<Option<_>>()?,
        })
    }

    /// The documents of its object.
    pub(crate) fn documents(
        read_from: Optime,
        collections: impl Iterator<Item = StoredCollection>,
    ) -> impl Iterator<Item = Document> {
        let header = doc! {"readFrom": {"ts": read_from.timestamp(), "t": read_from.term}};
        std::iter::once(header).chain(collections.map(|stored| stored.to_document()))
    }

    /// The base of a fold.
    pub(crate) fn base(&self, consistent_at: Optime, selective: bool) -> Base {
        let mut catalog = Catalog::default();
        for stored in &self.collections {
            let named = |index: &Document| Some((index.get_str("name").ok()?.to_owned(), index.clone()));
            let collection = Collection {
                db: stored.db.clone(),
                name: stored.name.clone(),
                options: stored.options.clone(),
                indexes: stored.indexes.iter().filter_map(named).collect(),
            };
            catalog.insert(stored.uuid, collection);
        }
        Base { catalog, read_from: self.read_from, consistent_at, selective }
    }
}
