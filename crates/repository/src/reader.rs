//! Reading a framed object: the footer first, then only the frames that are wanted.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use hindsight_format::{Footer, FrameEntry, ObjectRef};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, Result};
use crate::frames::{HEADER_LEN, Layout, Tail, decode_frame, parse_tail, verify_frame, verify_header};
use crate::repository::Repository;
use crate::source::Source;

/// What is read first: small slices fit in whole.
const FIRST_TAIL: u64 = 64 << 10;
/// Neighbouring frames are read with one request of about this many bytes.
const RUN_BYTES: u64 = 8 << 20;
/// Unwanted bytes between wanted frames that cost less to read than another request.
const RUN_GAP: u64 = 512 << 10;
/// Requests that are under way at the same time.
const RUNS_AHEAD: usize = 2;

/// Reads one object. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ObjectReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    key: String,
    /// Bytes of the object, unsealed.
    size: u64,
    layout: Layout,
    /// The end of the object, as far as it was read already.
    tail: Bytes,
}

/// Frames `first..=last` that are read with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    bytes: Range<u64>,
    frames: Vec<usize>,
}

impl ObjectReader {
    /// Opens an object: reads its footer and checks all that can be checked without the frames.
    /// `size` is what a listing said. The key is the one that it has unsealed.
    pub(crate) async fn open(
        repository: &Repository,
        key: &str,
        expect: Option<&ObjectRef>,
        size: Option<u64>,
    ) -> Result<Self> {
        let size = expect.map(|expect| expect.stored_bytes).or(size);
        let key = &*repository.stored_key(key);
        let (source, mut size, mut tail) = Source::find(repository, key, size, FIRST_TAIL).await?;
        if let Some(expect) = expect.filter(|expect| expect.stored_bytes != source.stored_bytes()) {
            let why = format!("it has {} bytes, the manifest says {}", source.stored_bytes(), expect.stored_bytes);
            return Err(Error::damaged(key, why));
        }
        let layout = loop {
            match parse_tail(key, size, &tail)? {
                Tail::Found(layout) => break *layout,
                Tail::NeedsMore(length) => {
                    let known = tail.len() as u64;
                    (size, tail) = source.tail(length).await?;
                    if (tail.len() as u64) <= known {
                        return Err(Error::damaged(key, "its footer could not be read whole"));
                    }
                }
            }
        };
        if let Some(expect) = expect {
            if layout.footer_blake3 != expect.footer_blake3 {
                return Err(Error::damaged(key, "its footer is not the one that the manifest names"));
            }
            if layout.raw_bytes != expect.raw_bytes {
                let why = format!("it holds {} raw bytes, the manifest says {}", layout.raw_bytes, expect.raw_bytes);
                return Err(Error::damaged(key, why));
            }
        }
        if tail.len() as u64 == size {
            verify_header(key, &layout.footer, &tail)?;
        }
        Ok(Self { shared: Arc::new(Shared { source, key: key.to_owned(), size, layout, tail }) })
    }

    /// Key of the object, as it is stored.
    pub fn key(&self) -> &str {
        &self.shared.key
    }

    /// Bytes stored.
    pub fn stored_bytes(&self) -> u64 {
        self.shared.source.stored_bytes()
    }

    /// Bytes after decompression.
    pub fn raw_bytes(&self) -> u64 {
        self.shared.layout.raw_bytes
    }

    /// BLAKE3 (hex) of the footer.
    pub fn footer_blake3(&self) -> &str {
        &self.shared.layout.footer_blake3
    }

    /// The footer.
    pub fn footer(&self) -> &Footer {
        &self.shared.layout.footer
    }

    /// One frame, decompressed.
    pub async fn frame(&self, index: usize) -> Result<Vec<u8>> {
        let frames = &self.footer().frames;
        if index >= frames.len() {
            return Err(Error::Refused(format!("{} has {} frames, no frame {index}", self.key(), frames.len())));
        }
        let runs = self.shared.runs(&[index]);
        let run = runs.into_iter().next().ok_or_else(|| Error::cut_off("read", self.key()))?;
        let stored = self.shared.clone().read_run(run).await?;
        let (index, stored) = stored.into_iter().next().ok_or_else(|| Error::cut_off("read", self.key()))?;
        Ok(self.shared.clone().decode(index, stored).await?.1.to_vec())
    }

    /// The wanted frames, decompressed and in order. Reads ahead by two requests of about 8 MiB
    /// and by `ahead` decompressed frames, and no more.
    pub fn stream(
        &self,
        want: impl Fn(&FrameEntry) -> bool,
        ahead: usize,
    ) -> BoxStream<'static, Result<(FrameEntry, Bytes)>> {
        let shared = self.shared.clone();
        self.stored(want)
            .map(move |stored| {
                let shared = shared.clone();
                async move {
                    let (index, stored) = stored?;
                    shared.decode(index, stored).await
                }
            })
            .buffered(ahead.max(1))
            .boxed()
    }

    /// The wanted frames as they are stored, checked, and in order.
    pub(crate) fn stored(&self, want: impl Fn(&FrameEntry) -> bool) -> BoxStream<'static, Result<(usize, Bytes)>> {
        let shared = self.shared.clone();
        let frames = self.footer().frames.iter().enumerate();
        let wanted: Vec<_> = frames.filter(|(_, entry)| want(entry)).map(|(index, _)| index).collect();
        stream::iter(shared.runs(&wanted))
            .map(move |run| {
                let reading = AbortOnDropHandle::new(tokio::spawn(shared.clone().read_run(run)));
                let shared = shared.clone();
                async move { reading.await.map_err(|_| Error::cut_off("read", &shared.key))? }
            })
            .buffered(RUNS_AHEAD)
            .map_ok(|frames| stream::iter(frames).map(Ok))
            .try_flatten()
            .boxed()
    }

    /// Decompresses what [`ObjectReader::stored`] gave.
    pub(crate) async fn decode(&self, index: usize, stored: Bytes) -> Result<Bytes> {
        Ok(self.shared.clone().decode(index, stored).await?.1)
    }

    /// Reads the wanted frames, and checks that they are as they were written; decompresses nothing.
    /// `read` is told the bytes of each.
    pub async fn check_stored(&self, want: impl Fn(&FrameEntry) -> bool, read: impl Fn(u64)) -> Result<()> {
        let mut frames = self.stored(want);
        while let Some((_, stored)) = frames.try_next().await? {
            read(stored.len() as u64);
        }
        Ok(())
    }

    /// Reads every frame and checks all there is to check.
    pub async fn verify(&self) -> Result<()> {
        let mut frames = self.stream(|_| true, 2);
        while frames.try_next().await?.is_some() {}
        if self.footer().frames.is_empty() {
            let start = self.shared.read(0..HEADER_LEN as u64).await?;
            verify_header(self.key(), self.footer(), &start)?;
        }
        Ok(())
    }
}

impl Shared {
    fn place(&self, index: usize) -> Result<(FrameEntry, u64)> {
        let entry = self.layout.footer.frames.get(index).copied();
        let offset = self.layout.offsets.get(index).copied();
        entry.zip(offset).ok_or_else(|| Error::Refused(format!("{} has no frame {index}", self.key)))
    }

    /// Puts neighbouring frames into common requests. With frame 0 comes the header, to be checked.
    fn runs(&self, wanted: &[usize]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &index in wanted {
            let Ok((entry, offset)) = self.place(index) else { continue };
            let start = if index == 0 { 0 } else { offset };
            let end = offset + u64::from(entry.stored_len);
            match runs.last_mut() {
                Some(run) if start - run.bytes.end <= RUN_GAP && end - run.bytes.start <= RUN_BYTES => {
                    run.bytes.end = end;
                    run.frames.push(index);
                }
                _ => runs.push(Run { bytes: start..end, frames: vec![index] }),
            }
        }
        runs
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let tail_at = self.size - self.tail.len() as u64;
        if range.start >= tail_at {
            let (from, to) = ((range.start - tail_at) as usize, (range.end - tail_at) as usize);
            if to <= self.tail.len() {
                return Ok(self.tail.slice(from..to));
            }
        }
        self.source.range(range).await
    }

    async fn read_run(self: Arc<Self>, run: Run) -> Result<Vec<(usize, Bytes)>> {
        let bytes = self.read(run.bytes.clone()).await?;
        let mut frames = Vec::with_capacity(run.frames.len());
        for index in run.frames {
            let (entry, offset) = self.place(index)?;
            if index == 0 {
                verify_header(&self.key, &self.layout.footer, &bytes)?;
            }
            let from = (offset - run.bytes.start) as usize;
            let stored = bytes.slice(from..from + entry.stored_len as usize);
            verify_frame(&self.key, offset, &entry, &stored)?;
            frames.push((index, stored));
        }
        Ok(frames)
    }

    async fn decode(self: Arc<Self>, index: usize, stored: Bytes) -> Result<(FrameEntry, Bytes)> {
        let (entry, offset) = self.place(index)?;
        let shared = self.clone();
        let raw = tokio::task::spawn_blocking(move || decode_frame(&shared.key, offset, &entry, &stored)).await;
        Ok((entry, raw.map_err(|_| Error::cut_off("read", &self.key))??))
    }
}
