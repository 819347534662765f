//! Merging small slices of a stream into a large one.

use futures::TryStreamExt;
use hindsight_format::{LogSummary, ObjectKind, SliceName, StoredSlice, check_name};

use crate::cluster::ClusterRepository;
use crate::error::{Error, Result};
use crate::frames::{EncodedFrame, FRAME_TARGET, encode_frame};
use crate::writer::ObjectWriter;

/// Frames with at least this many raw bytes are copied as they are stored; smaller ones compress
/// better together.
const WORTH_COPYING: u32 = 1 << 20;

/// Merges adjacent slices into one, and removes them once the new one is stored and checked. Where
/// this is cut off, the parts, or the parts and the whole, are there: readers cope with both.
///
/// `fence` is the number of the lease under which this happens. [`Error::Missing`] names a part that
/// is gone: somebody else merged or removed it.
pub async fn merge_slices(
    cluster: &ClusterRepository,
    stream: &str,
    epoch: u64,
    parts: &[StoredSlice],
    fence: u64,
    level: i32,
) -> Result<StoredSlice> {
    check_name(stream, "stream name")?;
    for part in parts {
        if (part.stream.as_str(), part.epoch) != (stream, epoch) {
            return Err(Error::Refused(format!("the slice {} belongs to another stream or epoch", part.name)));
        }
    }
    let (first, last) = match parts {
        [] => return Err(Error::Refused("there are no slices to merge".to_owned())),
        [only] => return Ok(only.clone()),
        [first, .., last] => (first, last),
    };
    for pair in parts.windows(2) {
        if let [before, next] = pair
            && before.name.end.position != next.name.start.position
        {
            return Err(Error::Refused(format!("the slices {} and {} do not meet", before.name, next.name)));
        }
    }

    let name = SliceName { start: first.name.start.clone(), end: last.name.end.clone(), fence };
    let mut merged = StoredSlice { stream: stream.to_owned(), epoch, name, stored_bytes: 0 };
    let key = cluster.slice_key(&merged);
    // Nobody but the recipients opens it: parts that this session captured are opened for the last time.
    let mut writer = ObjectWriter::new(cluster.repository(), key, ObjectKind::Slice, false);
    let written = match copy_all(cluster, parts, &mut writer, level).await {
        Ok(summary) => writer.finish(Some(summary)).await?,
        Err(error) => {
            writer.abort().await;
            return Err(error);
        }
    };
    merged.stored_bytes = written.stored_bytes;

    let key = cluster.stored_key(&cluster.slice_key(&merged));
    let store = cluster.repository().store();
    let (size, end) = store.tail(&key, Some(written.stored_bytes), written.end.len() as u64).await?;
    if (size, &end) != (written.stored_bytes, &written.end) {
        return Err(Error::damaged(&key, "it reads differently from what was written just before"));
    }
    for part in parts.iter().filter(|part| part.name != merged.name) {
        cluster.delete_slice(part).await?;
    }
    Ok(merged)
}

async fn copy_all(
    cluster: &ClusterRepository,
    parts: &[StoredSlice],
    writer: &mut ObjectWriter,
    level: i32,
) -> Result<LogSummary> {
    let mut summary: Option<LogSummary> = None;
    let mut small = Small::default();
    for part in parts {
        let reader = cluster.slice_reader(part).await?;
        let footer = reader.footer();
        match (&mut summary, &footer.log) {
            (Some(summary), Some(log)) => summary.absorb(log),
            (None, log) => summary.clone_from(log),
            (Some(_), None) => {}
        }
        let mut frames = reader.stored(|_| true);
        while let Some((index, stored)) = frames.try_next().await? {
            match footer.frames.get(index) {
                Some(entry) if entry.raw_len >= WORTH_COPYING => {
                    small.flush(writer, level).await?;
                    writer.write(EncodedFrame::copied(*entry, stored)).await?;
                }
                entry => {
                    let segment = entry.map_or(0, |entry| entry.segment);
                    if segment != small.segment {
                        small.flush(writer, level).await?;
                        small.segment = segment;
                    }
                    small.raw.extend_from_slice(&reader.decode(index, stored).await?);
                    if small.raw.len() >= FRAME_TARGET {
                        small.flush(writer, level).await?;
                    }
                }
            }
        }
    }
    small.flush(writer, level).await?;
    summary.ok_or_else(|| Error::Refused("there are no slices to merge".to_owned()))
}

/// What is put together into one frame. A frame belongs to one segment.
#[derive(Default)]
struct Small {
    segment: u32,
    raw: Vec<u8>,
}

impl Small {
    async fn flush(&mut self, writer: &mut ObjectWriter, level: i32) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let (raw, segment) = (std::mem::take(&mut self.raw), self.segment);
        let encoded = tokio::task::spawn_blocking(move || encode_frame(&raw, level, segment)).await;
        writer.write(encoded.map_err(|_| Error::cut_off("write", writer.key()))??).await
    }
}
