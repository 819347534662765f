//! Inserting raw documents.

use bson::{Bson, RawDocumentBuf, rawdoc};
use bytes::Bytes;
use hindsight_engine::{EngineError, Result};
use mongodb::Client;

use crate::failure::{driver, refused};
use crate::oplog::diff::raw::{Elements, IndexName, close, kind, open, push_element, push_name, read_len};
use crate::oplog::entry::{malformed, next_document};

/// Bytes in one command, about. The driver takes twice as much again while it sends it. A larger document goes alone.
const BATCH: usize = 2 << 20;
/// The server takes no more documents in one command (`maxWriteBatchSize`).
const MAX_DOCUMENTS: u64 = 100_000;

/// Inserts a run of documents; returns how many. `ordered` keeps their order.
pub(super) async fn insert(client: &Client, db: &str, coll: &str, mut run: Bytes, ordered: bool) -> Result<u64> {
    let mut inserted = 0;
    while !run.is_empty() {
        let mut batch = Batch::begin(coll, ordered, run.len().min(BATCH));
        let mut special = None;
        let mut rest = &run[..];
        while let Some(document) = next_document(&mut rest)? {
            if has_empty_timestamp(document)? {
                special = Some(run.slice_ref(document));
                break;
            }
            batch.push(document);
            if batch.command.len() + read_len(rest).unwrap_or(0) > BATCH || batch.count >= MAX_DOCUMENTS {
                break;
            }
        }
        // What is in the command is not kept besides while the server is at work on it.
        run = match rest {
            [] => Bytes::new(),
            rest => run.slice_ref(rest),
        };
        inserted += batch.send(client, db, coll).await?;
        if let Some(document) = special {
            apply(client, db, coll, &document).await?;
            inserted += 1;
        }
    }
    Ok(inserted)
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

/// An insert command, put together without decoding any document.
struct Batch {
    command: Vec<u8>,
    /// Where the array of documents begins.
    array: usize,
    index: IndexName,
    count: u64,
}

impl Batch {
    /// With room for `bytes` of documents.
    fn begin(coll: &str, ordered: bool, bytes: usize) -> Self {
        let head = rawdoc! {
            "insert": coll, "ordered": ordered, "bypassDocumentValidation": true, "writeConcern": {"w": 1},
        };
        // Each document has its index for a name.
        let mut command = Vec::with_capacity(bytes + bytes / 16 + 256);
        command.extend_from_slice(head.as_bytes());
        command.pop();
        push_name(&mut command, kind::ARRAY, b"documents");
        let array = open(&mut command);
        Self { command, array, index: IndexName::zero(), count: 0 }
    }

    fn push(&mut self, document: &[u8]) {
        push_element(&mut self.command, kind::DOCUMENT, self.index.bytes(), document);
        self.index.advance();
        self.count += 1;
    }

    async fn send(mut self, client: &Client, db: &str, coll: &str) -> Result<u64> {
        if self.count == 0 {
            return Ok(0);
        }
        let doing = format!("inserting into {db}.{coll}");
        let bad = |e: &dyn std::fmt::Display| EngineError::damaged(format!("{doing}: {e}"));
        close(&mut self.command, self.array).and_then(|()| close(&mut self.command, 0)).map_err(|e| bad(&e))?;
        let command = RawDocumentBuf::from_bytes(self.command).map_err(|e| bad(&e))?;
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
        Ok(self.count)
    }
}
