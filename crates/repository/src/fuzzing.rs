//! What fuzz targets need of the readers of stored bytes, without a store and its round trips. Not
//! for anything else.

use std::sync::Arc;

use bytes::Bytes;
use hindsight_format::{Footer, ObjectKind};
use object_store::memory::InMemory;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::frames::{encode_footer_json, header};
use crate::reader::ObjectReader;
use crate::repository::Repository;
use crate::seal::{Identity, seal_whole};

/// Reads a record, as from its key.
pub fn decode_record<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    crate::record::decode(key, bytes)
}

/// The bytes of a record.
pub fn encode_record<T: Serialize>(key: &str, record: &T) -> Result<Bytes> {
    crate::record::encode(key, record)
}

/// A record with these bytes after its first line, under a right checksum.
pub fn seal_record(body: &[u8]) -> Vec<u8> {
    crate::record::seal(body)
}

/// An object with these bytes as its frames and its footer, under a right checksum.
pub fn seal_object(kind: ObjectKind, format: u32, frames: &[u8], footer: &[u8]) -> Vec<u8> {
    let footer = encode_footer_json(footer).unwrap_or_default();
    [header(kind, format).as_slice(), frames, &footer].concat()
}

/// A repository in memory, to read objects from.
pub struct Reader {
    repository: Repository,
}

impl Reader {
    /// One whose objects are as they are.
    pub async fn plain() -> Result<Self> {
        let repository = Repository::over(Arc::new(InMemory::new()), "memory://").await?;
        Ok(Self { repository })
    }

    /// A sealed one, with the keys at hand.
    pub async fn sealed() -> Result<Self> {
        let identity = Identity::generate();
        let store = Arc::new(InMemory::new());
        let repository = Repository::over_sealed(store, "memory://", &identity.recipients()).await?;
        Ok(Self { repository: repository.with_identity(identity) })
    }

    /// What a sealed object is stored as.
    pub async fn seal(&self, key: &str, plain: &[u8]) -> Result<Vec<u8>> {
        Ok(seal_whole(key, &self.repository.recipients().await?, plain)?.to_vec())
    }

    /// Reads and verifies a whole object, stored as `bytes`.
    pub async fn read(&self, key: &str, bytes: Bytes) -> Result<(Footer, Vec<Bytes>)> {
        let size = bytes.len() as u64;
        self.repository.store().put(&self.repository.stored_key(key), bytes.into()).await?;
        let reader = ObjectReader::open(&self.repository, key, None, Some(size)).await?;
        let mut frames = Vec::new();
        for index in 0..reader.footer().frames.len() {
            frames.push(reader.frame(index).await?.into());
        }
        reader.verify().await?;
        Ok((reader.footer().clone(), frames))
    }
}
