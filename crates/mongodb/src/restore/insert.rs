//! Inserting raw documents.

use bson::{Bson, RawDocumentBuf, doc, rawdoc};
use hindsight_engine::{EngineError, Result};
use mongodb::Client;

use crate::failure::{driver, refused};
use crate::oplog::diff::raw::{Elements, IndexName, kind, push_element, push_name};
use crate::oplog::entry::{malformed, next_document};

/// Bytes in one command, about; a larger document goes alone.
const BATCH: usize = 8 << 20;
/// The server takes no more documents in one command (`maxWriteBatchSize`).
const MAX_DOCUMENTS: usize = 100_000;

/// Inserts a run of documents; returns how many. `ordered` keeps their order.
pub(super) async fn insert(client: &Client, db: &str, coll: &str, mut run: &[u8], ordered: bool) -> Result<u64> {
    let mut inserted = 0;
    let mut batch = Batch::default();
    while let Some(document) = next_document(&mut run)? {
        if has_empty_timestamp(document)? {
            inserted += batch.send(client, db, coll, ordered).await?;
            apply(client, db, coll, document).await?;
            inserted += 1;
            continue;
        }
        if batch.documents.len() + document.len() > BATCH || batch.count >= MAX_DOCUMENTS {
            inserted += batch.send(client, db, coll, ordered).await?;
        }
        batch.push(document);
    }
    Ok(inserted + batch.send(client, db, coll, ordered).await?)
}

/// The server replaces a `Timestamp(0, 0)` at the top of an inserted document by the present time
/// (mongo/src/mongo/db/ops/insert.cpp, `fixDocumentForInsert`); an `applyOps` that need not be atomic does not.
fn has_empty_timestamp(document: &[u8]) -> Result<bool> {
    let mut elements = Elements::new(document).map_err(malformed)?;
    while let Some(element) = elements.next().map_err(malformed)? {
        if element.kind == kind::TIMESTAMP && element.value == [0; 8] && element.name != b"_id" {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn apply(client: &Client, db: &str, coll: &str, document: &[u8]) -> Result<()> {
    let doing = format!("inserting into {db}.{coll}");
    let document = RawDocumentBuf::from_bytes(document.to_vec()).map_err(|e| EngineError::damaged(e.to_string()))?;
    let operation = rawdoc! {"op": "i", "ns": format!("{db}.{coll}"), "o": document};
    let command = rawdoc! {"applyOps": [operation], "allowAtomic": false, "bypassDocumentValidation": true};
    client.database("admin").run_raw_command(command).await.map_err(|e| driver(&doing, e))?;
    Ok(())
}

struct Batch {
    /// Elements of the array, as BSON.
    documents: Vec<u8>,
    index: IndexName,
    count: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { documents: Vec::new(), index: IndexName::zero(), count: 0 }
    }
}

impl Batch {
    fn push(&mut self, document: &[u8]) {
        push_element(&mut self.documents, kind::DOCUMENT, self.index.bytes(), document);
        self.index.advance();
        self.count += 1;
    }

    async fn send(&mut self, client: &Client, db: &str, coll: &str, ordered: bool) -> Result<u64> {
        if self.count == 0 {
            return Ok(0);
        }
        let doing = format!("inserting into {db}.{coll}");
        let head = doc! {
            "insert": coll, "ordered": ordered, "bypassDocumentValidation": true, "writeConcern": {"w": 1},
        };
        let command = with_documents(&head, &self.documents)?;
        let count = std::mem::take(self).count as u64;
        let reply = client.database(db).run_raw_command(command).await.map_err(|e| driver(&doing, e))?;
        for failures in ["writeErrors", "writeConcernError"] {
            let failure = match reply.get(failures) {
                Some(Bson::Array(all)) => all.first(),
                other => other,
            };
            if let Some(failure) = failure {
                let why = failure.as_document().and_then(|f| f.get_str("errmsg").ok()).unwrap_or("unknown");
                return Err(refused(format!("{doing}: {why}")));
            }
        }
        Ok(count)
    }
}

/// The command with its array of documents, put together without decoding any.
fn with_documents(head: &bson::Document, documents: &[u8]) -> Result<RawDocumentBuf> {
    let bad = |e: &dyn std::fmt::Display| EngineError::damaged(format!("an insert cannot be put together: {e}"));
    let mut bytes = Vec::with_capacity(documents.len() + 256);
    head.to_writer(&mut bytes).map_err(|e| bad(&e))?;
    bytes.pop();
    push_name(&mut bytes, kind::ARRAY, b"documents");
    let array = i32::try_from(documents.len() + 5).map_err(|e| bad(&e))?;
    bytes.extend_from_slice(&array.to_le_bytes());
    bytes.extend_from_slice(documents);
    bytes.extend_from_slice(&[0, 0]);
    let whole = i32::try_from(bytes.len()).map_err(|e| bad(&e))?;
    if let Some(length) = bytes.get_mut(..4) {
        length.copy_from_slice(&whole.to_le_bytes());
    }
    RawDocumentBuf::from_bytes(bytes).map_err(|e| bad(&e))
}
