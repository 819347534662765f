//! Where the bytes of an object come from: as they are stored, or unsealed.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::seal::SealedObject;
use crate::store::Store;

/// An object that was found, under its stored key.
#[derive(Debug)]
pub(crate) enum Source {
    Plain { store: Store, key: String, size: u64 },
    Sealed(Arc<SealedObject>),
}

impl Source {
    /// Finds an object and reads its last `length` bytes; gives also how many bytes it has. `size` is
    /// what is stored, where that is known.
    pub(crate) async fn find(
        repository: &Repository,
        key: &str,
        size: Option<u64>,
        length: u64,
    ) -> Result<(Self, u64, Bytes)> {
        let store = repository.store().clone();
        let Some(keys) = repository.keyring() else {
            let (size, tail) = store.tail(key, size, length).await?;
            return Ok((Self::Plain { store, key: key.to_owned(), size }, size, tail));
        };
        let source = Self::Sealed(Arc::new(SealedObject::find(store, key, size, keys).await?));
        let (size, tail) = source.tail(length).await?;
        Ok((source, size, tail))
    }

    /// Bytes stored.
    pub(crate) fn stored_bytes(&self) -> u64 {
        match self {
            Self::Plain { size, .. } => *size,
            Self::Sealed(object) => object.stored_bytes(),
        }
    }

    /// The size of the object, and its last bytes.
    pub(crate) async fn tail(&self, length: u64) -> Result<(u64, Bytes)> {
        match self {
            Self::Plain { store, key, size } => store.tail(key, Some(*size), length).await,
            Self::Sealed(object) => {
                let size = object.plain_len();
                Ok((size, object.range(size.saturating_sub(length)..size).await?))
            }
        }
    }

    /// Some bytes of the object, all of them.
    pub(crate) async fn range(&self, range: Range<u64>) -> Result<Bytes> {
        let (store, key) = match self {
            Self::Plain { store, key, .. } => (store, key),
            Self::Sealed(object) => return object.range(range).await,
        };
        let bytes = store.range(key, range.clone()).await?;
        if bytes.len() as u64 != range.end - range.start {
            let why = format!("{} bytes at byte {} gave only {}", range.end - range.start, range.start, bytes.len());
            return Err(Error::damaged(key, why));
        }
        Ok(bytes)
    }
}
