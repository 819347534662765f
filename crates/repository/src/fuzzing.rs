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
use crate::store::Store;

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

/// Reads a whole object, as from its key.
pub async fn read_object(key: &str, bytes: Bytes) -> Result<(Footer, Vec<Bytes>)> {
    let store = Store::new(Arc::new(InMemory::new()));
    let size = bytes.len() as u64;
    store.put(key, bytes.into()).await?;
    let reader = ObjectReader::open(store, key, None, Some(size)).await?;
    let mut frames = Vec::new();
    for index in 0..reader.footer().frames.len() {
        frames.push(reader.frame(index).await?.into());
    }
    reader.verify().await?;
    Ok((reader.footer().clone(), frames))
}
