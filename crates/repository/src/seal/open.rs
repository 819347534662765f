//! Opening sealed objects: only the pieces that are wanted are fetched.
//!
//! Behind its header, an age file is a run of chunks of 64 KiB, each sealed on its own (the STREAM
//! construction, https://c2sp.org/age#payload). Which chunks hold a range follows from its offsets.

use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use age::x25519;
use bytes::Bytes;

use super::Identity;
use crate::error::{Error, Result};
use crate::store::Store;

const CHUNK: u64 = 64 << 10;
const SEALED_CHUNK: u64 = CHUNK + 16;
/// What stands between the header and the first chunk.
const NONCE: usize = 16;
/// What is read first of an object: its last two chunks, small objects in whole.
const FIRST_TAIL: u64 = 2 * SEALED_CHUNK;
/// What is read of the beginning, in which the header usually ends; and its largest size.
const HEAD: u64 = 8 << 10;
const MAX_HEAD: u64 = 64 << 10;
/// The last line of a header, behind which are 43 characters of its checksum and a line feed.
const LAST_LINE: &[u8] = b"\n--- ";
const CHECKSUM: usize = 43;

/// Private keys that may open an object.
#[derive(Clone)]
pub(crate) struct Keyring {
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) session: x25519::Identity,
    /// To whom the repository is sealed now, for errors.
    pub(crate) sealed_to: Vec<String>,
}

impl Keyring {
    fn refuse(&self, key: &str) -> Error {
        Error::Sealed {
            what: key.to_owned(),
            sealed_to: self.sealed_to.clone(),
            given: self
                .identity
                .as_ref()
                .map(|identity| identity.recipients().iter().map(ToString::to_string).collect()),
        }
    }

    /// The decrypted content of `source`, an age file, from its beginning.
    fn open<R: BufRead>(&self, key: &str, source: R) -> Result<age::stream::StreamReader<R>> {
        let decryptor = age::Decryptor::new_buffered(source).map_err(|error| damaged(key, &error))?;
        let session = std::iter::once(&self.session as &dyn age::Identity);
        let own = self.identity.iter().flat_map(|identity| identity.keys());
        decryptor.decrypt(session.chain(own)).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => self.refuse(key),
            other => damaged(key, &other),
        })
    }
}

fn damaged(key: &str, error: &impl std::fmt::Display) -> Error {
    Error::damaged(key, format!("it cannot be unsealed: {}", crate::error::one_line(&error.to_string())))
}

/// A sealed object in the store.
pub(crate) struct SealedObject {
    store: Store,
    key: String,
    /// Bytes stored.
    size: u64,
    /// Header and nonce.
    head: Bytes,
    /// The end of the object, as far as it was read.
    tail: Bytes,
    keys: Keyring,
}

impl std::fmt::Debug for SealedObject {
    /// Without the private keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedObject").field("key", &self.key).field("size", &self.size).finish_non_exhaustive()
    }
}

impl SealedObject {
    /// Reads the head and the end of an object, the size of which may be known.
    pub(crate) async fn find(store: Store, key: &str, size: Option<u64>, keys: Keyring) -> Result<Self> {
        let (size, tail) = store.tail(key, size, FIRST_TAIL).await?;
        let mut start = match tail.len() as u64 == size {
            true => tail.clone(),
            false => store.range(key, 0..HEAD.min(size)).await?,
        };
        let head = loop {
            match head_length(&start) {
                Some(length) if length <= start.len() => break start.slice(..length),
                _ if start.len() as u64 >= MAX_HEAD.min(size) => {
                    let why = format!("its first {} bytes are not the header of an age file", start.len());
                    return Err(Error::damaged(key, why));
                }
                _ => start = store.range(key, 0..MAX_HEAD.min(size)).await?,
            }
        };
        let object = Self { store, key: key.to_owned(), size, head, tail, keys };
        // A last chunk has a tag at least, and only a first one has nothing else.
        let sealed = object.sealed_len();
        let rest = sealed % SEALED_CHUNK;
        if sealed < 16 || (1..16).contains(&rest) || (rest == 16 && sealed > 16) {
            return Err(Error::damaged(key, format!("an age file cannot have {size} bytes: it was cut off")));
        }
        Ok(object)
    }

    /// Bytes stored.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.size
    }

    /// Bytes of all sealed chunks.
    fn sealed_len(&self) -> u64 {
        self.size.saturating_sub(self.head.len() as u64)
    }

    fn chunks(&self) -> u64 {
        self.sealed_len().div_ceil(SEALED_CHUNK)
    }

    /// Bytes of the content.
    pub(crate) fn plain_len(&self) -> u64 {
        self.sealed_len().saturating_sub(16 * self.chunks())
    }

    /// Whether the keys fit. Reads nothing.
    pub(crate) async fn try_keys(&self) -> Result<()> {
        let source =
            Sparse { size: self.size, head: self.head.clone(), at: self.size, rest: Bytes::new(), position: 0 };
        let (keys, key) = (self.keys.clone(), self.key.clone());
        let opened = tokio::task::spawn_blocking(move || keys.open(&key, source).map(drop));
        opened.await.map_err(|_| Error::cut_off("read", &self.key))?
    }

    /// Some bytes of the content. A range that reaches its end is checked to be the end.
    pub(crate) async fn range(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.plain_len() {
            let why = format!("bytes {} to {} are beyond its {} bytes", range.start, range.end, self.plain_len());
            return Err(Error::damaged(&self.key, why));
        }
        let is_end = range.end == self.plain_len();
        let first = (range.start / CHUNK).min(self.chunks().saturating_sub(1));
        let behind = range.end.div_ceil(CHUNK).max(first + 1);
        let from = self.head.len() as u64 + first * SEALED_CHUNK;
        let to = (self.head.len() as u64 + behind * SEALED_CHUNK).min(self.size);
        let rest = self.fetch(from..to).await?;
        let source = Sparse { size: self.size, head: self.head.clone(), at: from, rest, position: 0 };
        let (keys, key) = (self.keys.clone(), self.key.clone());
        let opening = tokio::task::spawn_blocking(move || {
            let mut content = keys.open(&key, source)?;
            let failed = |error: io::Error| {
                let why = format!(
                    "its content from byte {} to {} cannot be unsealed, it was changed or cut off ({error})",
                    range.start, range.end
                );
                Error::damaged(&key, why)
            };
            let length = usize::try_from(range.end - range.start).map_err(|_| Error::cut_off("read", &key))?;
            let mut bytes = vec![0; length];
            if is_end {
                content.seek(SeekFrom::End(0)).map_err(failed)?;
                content.seek(SeekFrom::Start(0)).map_err(failed)?;
            }
            seek(&mut content, range.start).and_then(|()| content.read_exact(&mut bytes)).map_err(failed)?;
            Ok(bytes.into())
        });
        opening.await.map_err(|_| Error::cut_off("read", &self.key))?
    }

    /// Stored bytes.
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        let tail_at = self.size - self.tail.len() as u64;
        if range.start >= tail_at {
            let (from, to) = ((range.start - tail_at) as usize, (range.end - tail_at) as usize);
            if from <= to && to <= self.tail.len() {
                return Ok(self.tail.slice(from..to));
            }
        }
        let wanted = range.end - range.start;
        let bytes = self.store.range(&self.key, range.clone()).await?;
        if bytes.len() as u64 != wanted {
            let why = format!("{wanted} bytes at byte {} gave only {}", range.start, bytes.len());
            return Err(Error::damaged(&self.key, why));
        }
        Ok(bytes)
    }
}

/// Seeks forward. Where a chunk begins, age looks whether the content ends there, which takes the
/// last chunk; within a chunk it does not.
fn seek<R: BufRead + Seek>(content: &mut age::stream::StreamReader<R>, at: u64) -> io::Result<()> {
    if at >= CHUNK && at.is_multiple_of(CHUNK) {
        content.seek(SeekFrom::Start(at + 1))?;
    }
    content.seek(SeekFrom::Start(at)).map(drop)
}

/// Length of header and nonce; none when the header does not end within `start`.
fn head_length(start: &[u8]) -> Option<usize> {
    let line = start.windows(LAST_LINE.len()).position(|window| window == LAST_LINE)?;
    let end = line + LAST_LINE.len() + CHECKSUM;
    (start.get(end) == Some(&b'\n')).then_some(end + 1 + NONCE)
}

/// Opens a small object that was read whole.
pub(crate) async fn open_whole(key: &str, sealed: Bytes, keys: Keyring) -> Result<Bytes> {
    let named = key.to_owned();
    let opening = tokio::task::spawn_blocking(move || {
        let mut plain = Vec::with_capacity(sealed.len());
        let mut content = keys.open(&named, &sealed[..])?;
        content.read_to_end(&mut plain).map_err(|error| damaged(&named, &error))?;
        Ok(plain.into())
    });
    opening.await.map_err(|_| Error::cut_off("read", key))?
}

/// An object of which only the head and the bytes from `at` on are known.
struct Sparse {
    size: u64,
    head: Bytes,
    at: u64,
    rest: Bytes,
    position: u64,
}

impl BufRead for Sparse {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let within = |start: u64, bytes: &Bytes| {
            let from = usize::try_from(self.position.checked_sub(start)?).ok()?;
            (from < bytes.len()).then_some(from)
        };
        let known = within(0, &self.head).map(|from| (&self.head, from));
        let known = known.or_else(|| within(self.at, &self.rest).map(|from| (&self.rest, from)));
        match known {
            Some((bytes, from)) => Ok(bytes.get(from..).unwrap_or_default()),
            None if self.position >= self.size => Ok(&[]),
            None => Err(io::Error::other("a piece was not fetched")),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
    }
}

impl Read for Sparse {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
