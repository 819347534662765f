//! Writing a framed object: at once when it is small, in parts of bounded memory when it is not.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use hindsight_format::{FORMAT_VERSION, FrameEntry, LogSummary, ObjectKind, ObjectRef};
use object_store::{MultipartUpload, PutPayload};
use tokio::task::JoinSet;

use crate::error::{Error, FailureKind, Result};
use crate::frames::{EncodedFrame, encode_footer, footer_of, header};
use crate::repository::Repository;
use crate::seal::Sealer;
use crate::store::Store;

/// Parts that are uploaded at the same time.
const PARTS_IN_FLIGHT: usize = 2;
/// Bytes of the end that are kept to be compared.
const END: usize = 64 << 10;
/// Parts that a store takes for one object (Amazon S3, "Multipart upload limits").
const MAX_PARTS: u64 = 10_000;

/// How large the parts are. Some stores want all parts but the last to be of one size, so the size
/// stays the same up to 31 GiB; then it doubles every 1,000 parts, which makes about 1 TiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartSizes {
    pub(crate) first: usize,
    pub(crate) equal: u64,
    pub(crate) step: u64,
}

impl Default for PartSizes {
    fn default() -> Self {
        Self { first: 8 << 20, equal: 4_000, step: 1_000 }
    }
}

impl PartSizes {
    fn of(&self, part: u64) -> usize {
        let doublings = (part + self.step).saturating_sub(self.equal) / self.step;
        self.first << doublings.min(6)
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenObject {
    /// Bytes stored, header and footer included.
    pub stored_bytes: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// BLAKE3 (hex) of the footer.
    pub footer_blake3: String,
    /// Number of frames.
    pub frames: u64,
    /// The last bytes as they are stored, to be compared with what is there.
    pub(crate) end: Bytes,
}

impl WrittenObject {
    /// As the manifest of its snapshot names it.
    pub fn named(self, name: impl Into<String>) -> ObjectRef {
        let Self { stored_bytes, raw_bytes, footer_blake3, .. } = self;
        ObjectRef { name: name.into(), stored_bytes, raw_bytes, footer_blake3 }
    }
}

/// How the bytes of an object become what is stored.
enum Seal {
    Plain,
    /// Nothing was written yet: to whom it is sealed is asked for then.
    ToBegin {
        repository: Repository,
        /// To the session's key too.
        session: bool,
    },
    Begun(Sealer),
}

/// Writes one object frame by frame. Nothing is visible under its key before
/// [`ObjectWriter::finish`] has succeeded; a writer that is dropped leaves nothing.
pub struct ObjectWriter {
    store: Store,
    key: String,
    /// The key under which it is stored.
    stored_key: String,
    seal: Seal,
    session: Option<Repository>,
    end: Bytes,
    kind: ObjectKind,
    sizes: PartSizes,
    frames: Vec<FrameEntry>,
    raw_bytes: u64,
    stored_bytes: u64,
    buffer: VecDeque<Bytes>,
    buffered: usize,
    parts: u64,
    upload: Option<Box<dyn MultipartUpload>>,
    in_flight: JoinSet<object_store::Result<()>>,
}

impl fmt::Debug for ObjectWriter {
    /// Without the upload, which may tell the store's secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter").field("key", &self.key).field("stored_bytes", &self.stored_bytes).finish()
    }
}

impl ObjectWriter {
    /// Begins the object that is under `key` unsealed. With `session`, who captures can open it again
    /// for as long as the repository stays open.
    pub(crate) fn new(repository: &Repository, key: String, kind: ObjectKind, session: bool) -> Self {
        let sizes = repository.sizes();
        let seal = match repository.is_sealed() {
            true => Seal::ToBegin { repository: repository.clone(), session },
            false => Seal::Plain,
        };
        let mut writer = Self {
            store: repository.store().clone(),
            stored_key: repository.stored_key(&key),
            seal,
            session: session.then(|| repository.clone()),
            end: Bytes::new(),
            key,
            kind,
            sizes,
            frames: Vec::new(),
            raw_bytes: 0,
            stored_bytes: 0,
            buffer: VecDeque::new(),
            buffered: 0,
            parts: 0,
            upload: None,
            in_flight: JoinSet::new(),
        };
        if matches!(writer.seal, Seal::Plain) {
            writer.push(writer.header());
        }
        writer
    }

    fn header(&self) -> Bytes {
        Bytes::copy_from_slice(&header(self.kind, FORMAT_VERSION))
    }

    /// Key of the object, without the ending that a sealed one has in the store.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Bytes written up to now, header included.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Bytes before compression, up to now.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Adds a frame. Waits when the store is slower than the caller.
    pub async fn write(&mut self, frame: EncodedFrame) -> Result<()> {
        self.raw_bytes += u64::from(frame.entry.raw_len);
        self.frames.push(frame.entry);
        self.seal_and_push(frame.stored).await?;
        self.send_full_parts().await
    }

    /// Writes the footer and makes the object visible, all at once.
    pub async fn finish(mut self, log: Option<LogSummary>) -> Result<WrittenObject> {
        let footer = footer_of(&self.key, self.kind, std::mem::take(&mut self.frames), log);
        let frames = footer.frames.len() as u64;
        let (bytes, footer_blake3) = encode_footer(&footer)?;
        self.seal_and_push(bytes.into()).await?;
        if let Seal::Begun(sealer) = std::mem::replace(&mut self.seal, Seal::Plain) {
            self.push(sealer.finish()?);
        }
        self.send_full_parts().await?;
        if self.upload.is_none() {
            let payload = self.take(self.buffered);
            self.store.put(&self.stored_key, payload).await?;
        } else {
            if self.buffered > 0 {
                self.send_part(self.buffered).await?;
            }
            while !self.in_flight.is_empty() {
                self.wait_for_part().await?;
            }
            if let Some(upload) = &mut self.upload
                && let Err(error) = upload.complete().await
            {
                let error = self.store.failed("write", &self.stored_key, &error);
                if !is_stored_after(&error, &self.store, &self.stored_key, self.stored_bytes, &self.end).await {
                    return Err(error);
                }
            }
            self.upload = None;
        }
        if let Some(repository) = &self.session {
            repository.remember(&self.stored_key);
        }
        let (stored_bytes, raw_bytes, end) = (self.stored_bytes, self.raw_bytes, std::mem::take(&mut self.end));
        Ok(WrittenObject { stored_bytes, raw_bytes, footer_blake3, frames, end })
    }

    /// Gives up, and waits until what was uploaded is cleared away.
    pub async fn abort(mut self) {
        self.in_flight.shutdown().await;
        if let Some(mut upload) = self.upload.take()
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(key = %self.key, %error, "an upload could not be aborted");
        }
    }

    async fn seal_and_push(&mut self, bytes: Bytes) -> Result<()> {
        if let Seal::ToBegin { repository, session } = &self.seal {
            let mut recipients = repository.recipients().await?;
            recipients.extend(repository.session_recipient().filter(|_| *session));
            let mut sealer = Sealer::begin(&self.stored_key, &recipients)?;
            let start = sealer.seal(self.header()).await?;
            self.seal = Seal::Begun(sealer);
            self.push(start);
        }
        let bytes = match &mut self.seal {
            Seal::Begun(sealer) => sealer.seal(bytes).await?,
            _ => bytes,
        };
        self.push(bytes);
        Ok(())
    }

    fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.end = bytes.slice(bytes.len().saturating_sub(END)..);
        self.stored_bytes += bytes.len() as u64;
        self.buffered += bytes.len();
        self.buffer.push_back(bytes);
    }

    async fn send_full_parts(&mut self) -> Result<()> {
        while self.buffered >= self.sizes.of(self.parts) {
            self.send_part(self.sizes.of(self.parts)).await?;
        }
        Ok(())
    }

    async fn send_part(&mut self, length: usize) -> Result<()> {
        if self.parts >= MAX_PARTS {
            return Err(Error::Refused(format!(
                "{} grows beyond the {MAX_PARTS} parts that a store takes for one object",
                self.key
            )));
        }
        while self.in_flight.len() >= PARTS_IN_FLIGHT {
            self.wait_for_part().await?;
        }
        let payload = self.take(length);
        self.parts += 1;
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => self.upload.insert(self.store.upload(&self.stored_key).await?),
        };
        self.in_flight.spawn(upload.put_part(payload));
        Ok(())
    }

    async fn wait_for_part(&mut self) -> Result<()> {
        match self.in_flight.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(self.store.failed("write", &self.stored_key, &error)),
            Some(Err(_)) => Err(Error::cut_off("write", &self.stored_key)),
        }
    }

    fn take(&mut self, length: usize) -> PutPayload {
        let mut pieces = Vec::new();
        let mut wanted = length;
        while wanted > 0
            && let Some(mut piece) = self.buffer.pop_front()
        {
            if piece.len() > wanted {
                self.buffer.push_front(piece.split_off(wanted));
            }
            wanted -= piece.len();
            pieces.push(piece);
        }
        self.buffered -= length - wanted;
        pieces.into_iter().collect()
    }
}

/// Whether an object of `size` bytes that end with `end` is there although its end was refused. The library repeats a
/// request whose answer got lost, and not every store knows an upload that it has completed:
/// <https://github.com/minio/minio/issues/13318>.
async fn is_stored_after(error: &Error, store: &Store, key: &str, size: u64, end: &Bytes) -> bool {
    let refused = match error {
        Error::Store { failure, .. } => failure.kind == FailureKind::Other,
        other => other.is_missing(),
    };
    refused && store.tail(key, Some(size), end.len() as u64).await.is_ok_and(|found| found.0 == size && found.1 == *end)
}

impl Drop for ObjectWriter {
    /// Parts that were uploaded cost money in an object store until the upload is aborted.
    fn drop(&mut self) {
        self.in_flight.abort_all();
        if let Some(mut upload) = self.upload.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;
    use crate::frames::encode_frame;

    /// Many parts, the sizes of which grow, on a store that keeps them in memory.
    #[tokio::test]
    async fn small_parts_make_the_same_object() {
        let store = Arc::new(InMemory::new());
        let sizes = PartSizes { first: 100, equal: 4, step: 2 };
        let repository = Repository::over_sized(store.clone(), "memory://", &[], sizes).await.unwrap();
        let cluster = repository.cluster("c").unwrap();
        for length in [0_usize, 1, 70, 99, 100, 101, 5_000, 20_000] {
            let key = cluster.keys().snapshot_object("s", &format!("o{length}"));
            let raw: Vec<u8> = (0..length).map(|at| (at * at % 251) as u8).collect();
            let mut writer = cluster.object_writer(key.clone(), ObjectKind::Data).await;
            for piece in raw.chunks(777) {
                writer.write(encode_frame(piece, 1, 0).unwrap()).await.unwrap();
            }
            let written = writer.finish(None).await.unwrap();
            let stored = store.get(&key.as_str().into()).await.unwrap().bytes().await.unwrap();
            assert_eq!(written.stored_bytes, stored.len() as u64);
            assert_eq!(zstd::decode_all(stored.as_ref()).unwrap(), raw);
            cluster.object_reader(&key, None).await.unwrap().verify().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_store_has_a_largest_number_of_parts() {
        let sizes = PartSizes { first: 8, equal: u64::MAX / 2, step: 1 };
        let repository = Repository::over_sized(Arc::new(InMemory::new()), "memory://", &[], sizes).await.unwrap();
        let cluster = repository.cluster("c").unwrap();
        let mut writer = cluster.object_writer(cluster.keys().snapshot_object("s", "o"), ObjectKind::Data).await;
        let noise: Vec<u8> =
            (0..90_000_u32).flat_map(|at| blake3::hash(&at.to_le_bytes()).as_bytes()[..1].to_vec()).collect();
        let error = writer.write(encode_frame(&noise, 1, 0).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("10000 parts"), "{error}");
    }

    #[test]
    fn parts_grow_late_and_reach_far() {
        let sizes = PartSizes::default();
        assert_eq!((sizes.of(0), sizes.of(2_999), sizes.of(3_999)), (8 << 20, 8 << 20, 8 << 20));
        assert_eq!((sizes.of(4_000), sizes.of(9_999)), (16 << 20, 512 << 20));
        let most: u64 = (0..MAX_PARTS).map(|part| sizes.of(part) as u64).sum();
        assert!(most > 1_000 << 30, "{most}");
    }
}
