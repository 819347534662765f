//! The stored log that leads from a base to a cut, and its bytes.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use hindsight_catalog::{RestorePlan, StreamPlan};
use hindsight_engine::{EngineError, FailureKind, Result};
use hindsight_format::{FrameEntry, SliceName, StoredSlice};
use hindsight_repository::{ClusterRepository, ObjectReader};

use super::segments::{LogSlice, Piece, Segments, SegmentsError};
use crate::base::StoredBase;
use crate::{Lsn, of_point};

/// Slices that are opened ahead: of an idle server there are hundreds in a segment.
pub(super) const OPENED_AHEAD: usize = 8;
/// Frames that are decompressed ahead.
const FRAMES_AHEAD: usize = 2;

/// Where a slice is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Among what a snapshot stored with its data.
    Own(SliceName),
    /// In the captured log.
    Captured(StoredSlice),
}

impl Source {
    pub(crate) fn name(&self) -> &SliceName {
        match self {
            Self::Own(name) => name,
            Self::Captured(slice) => &slice.name,
        }
    }
}

/// The log of one base, up to where it is cut.
#[derive(Clone, Debug)]
pub(crate) struct StoredLog {
    cluster: ClusterRepository,
    snapshot: String,
    stream: String,
    epoch: u64,
    sources: Vec<Source>,
    segments: Segments,
}

impl StoredLog {
    /// Of a plan; up to its end if no cut is given.
    ///
    /// # Errors
    /// The slices do not make up one log, or not all of it.
    pub(crate) async fn of(
        cluster: &ClusterRepository,
        plan: &RestorePlan,
        base: &StoredBase,
        cut: Option<Lsn>,
    ) -> Result<Self> {
        let StreamPlan { stream, own, log } = only_stream(plan)?;
        let own = own.iter().cloned().map(Source::Own);
        let sources: Vec<Source> = own.chain(log.iter().cloned().map(Source::Captured)).collect();
        let log = Unread { cluster, snapshot: &plan.base.id, stream, epoch: plan.epoch };
        log.put_together(sources, base, cut).await
    }

    /// The same, from what is stored of it now: slices are merged while they are read.
    ///
    /// # Errors
    /// Those of [`StoredLog::of`].
    pub(crate) async fn again(&self, base: &StoredBase) -> Result<Self> {
        let own = self.sources.iter().filter(|source| matches!(source, Source::Own(_)));
        let mut sources: Vec<Source> = own.cloned().collect();
        let (from, cut) = (order(self.segments.start()), order(self.segments.cut()));
        let mut slices = self.cluster.slices_of(&self.stream, self.epoch).await?;
        slices.retain(|slice| {
            let [start, end] = [&slice.name.start, &slice.name.end].map(|point| point.position.order());
            start < cut.as_str() && end > from.as_str()
        });
        slices.sort_by_key(|StoredSlice { name, .. }| {
            (name.start.position.order().to_owned(), Reverse(name.end.position.order().to_owned()))
        });
        sources.extend(slices.into_iter().map(Source::Captured));
        let Self { cluster, snapshot, stream, epoch, .. } = self;
        let log = Unread { cluster, snapshot, stream, epoch: *epoch };
        let mut found = log.put_together(sources, base, Some(self.segments.cut())).await?;
        found.segments.taken(self.segments.others());
        Ok(found)
    }

    /// Which bytes there are, and the segments that they make up.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// The same, to be told of other timelines.
    pub(crate) fn segments_mut(&mut self) -> &mut Segments {
        &mut self.segments
    }

    /// The slices, in their order.
    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The bytes of a part of the log, in their order.
    pub(crate) fn read(self: &Arc<Self>, part: Range<Lsn>) -> BoxStream<'static, Result<Bytes>> {
        self.pieces(self.segments.stored(part))
    }

    /// The bytes of the stored ones among some pieces, and of those that were made.
    pub(crate) fn pieces(self: &Arc<Self>, pieces: Vec<Piece>) -> BoxStream<'static, Result<Bytes>> {
        let log = self.clone();
        stream::iter(pieces)
            .map(move |piece| {
                let log = log.clone();
                async move {
                    Ok::<_, EngineError>(match piece {
                        Piece::Stored { slice, bytes } => frames(&log.open(slice).await?, bytes),
                        Piece::Made(bytes) => stream::once(async { Ok(Bytes::from(bytes)) }).boxed(),
                        Piece::Zeros(zeros) => stream::iter(zeroes(zeros).map(Ok)).boxed(),
                    })
                }
            })
            .buffered(OPENED_AHEAD)
            .try_flatten()
            .boxed()
    }

    /// Opens a slice, and makes sure that it is as long as its name says.
    pub(super) async fn open(&self, index: usize) -> Result<ObjectReader> {
        let source = self.sources.get(index).ok_or_else(|| EngineError::damaged("a slice of the log is missing"))?;
        let log = Unread { cluster: &self.cluster, snapshot: &self.snapshot, stream: &self.stream, epoch: self.epoch };
        log.open(source).await
    }
}

/// Zeros, some at a time.
fn zeroes(mut left: u64) -> impl Iterator<Item = Bytes> {
    const SOME: &[u8] = &[0; 64 << 10];
    std::iter::from_fn(move || {
        let some = usize::try_from(left).unwrap_or(usize::MAX).min(SOME.len());
        left -= some as u64;
        (some > 0).then(|| Bytes::from_static(SOME.get(..some).unwrap_or_default()))
    })
}

/// Raw bytes of a slice.
fn frames(reader: &ObjectReader, wanted: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let holds = holding(wanted.clone());
    let mut at = 0;
    let mut parts = VecDeque::new();
    for frame in &reader.footer().frames {
        let start = at;
        at += u64::from(frame.raw_len);
        if holds(frame) {
            // lengths of one frame, which fit into 32 bits
            let part = wanted.start.clamp(start, at) - start..wanted.end.clamp(start, at) - start;
            parts.push_back(part.start as usize..part.end as usize);
        }
    }
    let cut = move |read: hindsight_repository::Result<(_, Bytes)>| {
        let (_, frame) = read?;
        let part = parts.pop_front().filter(|part| part.end <= frame.len());
        Ok(part.map(|part| frame.slice(part)).unwrap_or(frame))
    };
    reader.stream(holding(wanted), FRAMES_AHEAD).map(cut).boxed()
}

/// Whether a frame holds some of these raw bytes of a slice, for frames that are asked after in their order.
pub(super) fn holding(wanted: Range<u64>) -> impl Fn(&FrameEntry) -> bool {
    let next = Cell::new(0);
    move |frame| {
        let start = next.get();
        next.set(start + u64::from(frame.raw_len));
        start.max(wanted.start) < next.get().min(wanted.end)
    }
}

/// Log of which it is not known yet what it holds.
struct Unread<'a> {
    cluster: &'a ClusterRepository,
    snapshot: &'a str,
    stream: &'a str,
    epoch: u64,
}

impl Unread<'_> {
    async fn open(&self, source: &Source) -> Result<ObjectReader> {
        let reader = match source {
            Source::Own(name) => self.cluster.snapshot_slice_reader(self.snapshot, self.stream, name).await?,
            Source::Captured(slice) => self.cluster.slice_reader(slice).await?,
        };
        let SliceName { start, end, .. } = source.name();
        let ((start, _), (end, _)) = (position(start)?, position(end)?);
        if end.since(start) == Some(reader.raw_bytes()) {
            return Ok(reader);
        }
        Err(EngineError::damaged(format!(
            "{} holds {} bytes of log, its name says that it reaches from {start} to {end}",
            reader.key(),
            reader.raw_bytes()
        )))
    }

    async fn put_together(self, sources: Vec<Source>, base: &StoredBase, cut: Option<Lsn>) -> Result<StoredLog> {
        let this = &self;
        let slices = stream::iter(sources.clone()).map(|source| async move { this.slice(&source).await });
        let slices: Vec<LogSlice> = slices.buffered(OPENED_AHEAD).try_collect().await?;
        let ends: Vec<_> = sources.iter().map(|source| position(&source.name().end)).collect::<Result<_>>()?;
        let (end, timeline) = ends.into_iter().max().ok_or_else(|| missing(&SegmentsError::Empty))?;
        let expect = base.expect(timeline).ok_or_else(|| unknown_version(base))?;
        let segments = Segments::new(&slices, &base.history()?, cut.unwrap_or(end), expect);
        let segments = segments.map_err(|error| missing(&error))?;
        Ok(StoredLog {
            cluster: self.cluster.clone(),
            snapshot: self.snapshot.to_owned(),
            stream: self.stream.to_owned(),
            epoch: self.epoch,
            sources,
            segments,
        })
    }

    /// What a slice holds: its name tells, unless it crosses from one timeline to another.
    async fn slice(&self, source: &Source) -> Result<LogSlice> {
        if let Some(slice) = LogSlice::by_name(source.name()).map_err(|error| missing(&error))? {
            return Ok(slice);
        }
        let reader = self.open(source).await?;
        LogSlice::by_frames(source.name(), &reader.footer().frames).map_err(|error| missing(&error))
    }
}

/// The one stream that a cluster has.
pub(crate) fn only_stream(plan: &RestorePlan) -> Result<&StreamPlan> {
    match plan.streams.as_slice() {
        [stream] => Ok(stream),
        streams => Err(EngineError::damaged(format!(
            "snapshot {} has {} streams of log, a PostgreSQL cluster has one",
            plan.base.id,
            streams.len()
        ))),
    }
}

/// A position of what is stored.
pub(crate) fn position(point: &hindsight_format::Point) -> Result<(Lsn, crate::TimelineId)> {
    of_point(point).map_err(|error| EngineError::damaged(error.to_string()))
}

/// How positions are spelled where they are stored.
pub(crate) fn order(lsn: Lsn) -> String {
    format!("{:016X}", lsn.0)
}

pub(crate) fn unknown_version(base: &StoredBase) -> EngineError {
    EngineError::new(
        FailureKind::Unsupported,
        format!("this program cannot read the log of PostgreSQL {}", base.server_version),
    )
    .hint("use a newer hindsight")
}

fn missing(error: &SegmentsError) -> EngineError {
    EngineError::damaged(error.to_string())
        .hint("`hindsight verify` tells what else is wrong; another snapshot or restore point may do without this part")
}
