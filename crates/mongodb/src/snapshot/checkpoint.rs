//! How far a snapshot has come: noted in the repository now and then, so that one that was cut off can go on from there.
//!
//! A checkpoint names what is stored and whole: objects, and the scans all frames of which are in them. What it does not
//! name is read again. The log in between is what makes it one state in the end, so going on needs a server whose oplog
//! still reaches back to the last piece of log that is stored.

use bson::Bson;
use hindsight_engine::{EngineError, FailureKind, Job, Result, SnapshotRequest};
use hindsight_format::{CHECKPOINTS, ObjectKind, ObjectRef, Point, SliceName};
use hindsight_repository::{ClusterRepository, encode_frame};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::log::Stored;
use super::stored::Segment;
use crate::oplog::entry::decode;
use crate::optime::Optime;

/// Numbers of objects and checkpoints that one run has for itself. A run that was given up but is not dead can then not
/// write over what the next one stores.
const RUN: u32 = 1_000_000;

/// A checkpoint, as it is stored: one BSON document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// How often the snapshot was gone on with.
    pub(crate) run: u32,
    pub(crate) epoch: u64,
    pub(crate) namespaces: Vec<String>,
    pub(crate) started_at: Timestamp,
    /// Where the snapshot's own piece of log begins.
    pub(crate) first: Point,
    /// Where reading began.
    pub(crate) read_from: Point,
    /// Greater than that of any scan up to now.
    pub(crate) next_segment: u32,
    /// Objects that are stored.
    pub(crate) objects: Vec<ObjectRef>,
    /// All that is to be read.
    pub(crate) pieces: Vec<NotedPiece>,
}

/// A collection or a range of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NotedPiece {
    pub(crate) uuid: bson::Uuid,
    /// From this `_id` on; none: from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Bson>,
    /// Up to this `_id`, without it; none: to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Bson>,
    /// What was read, once it is read and stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) segment: Option<Segment>,
}

impl Checkpoint {
    /// One with everything that can be in it, to try what reads them.
    pub(crate) fn sample() -> Result<Self> {
        let at = |secs| Optime { secs, inc: 1, term: 2 }.point();
        Ok(Self {
            run: 1,
            epoch: 3,
            namespaces: vec!["shop.*".to_owned()],
            started_at: Timestamp::UNIX_EPOCH,
            first: at(7)?,
            read_from: at(8)?,
            next_segment: 5,
            objects: vec![ObjectRef {
                name: "data/000001.bson.zst".to_owned(),
                stored_bytes: 1000,
                raw_bytes: 4000,
                footer_blake3: "00".repeat(32),
            }],
            pieces: vec![
                NotedPiece {
                    uuid: bson::Uuid::from_bytes([1; 16]),
                    from: Some(Bson::Int32(3)),
                    to: Some(Bson::String("x".to_owned())),
                    segment: Some(Segment { id: 4, documents: 30, bytes: 4000 }),
                },
                NotedPiece { uuid: bson::Uuid::from_bytes([2; 16]), from: None, to: None, segment: None },
            ],
        })
    }

    /// The first number of objects and checkpoints in this run.
    pub(crate) fn first_number(&self) -> u32 {
        self.run.saturating_mul(RUN).saturating_add(1)
    }

    /// Stores it as checkpoint `number`.
    pub(crate) async fn store(&self, job: &Job, id: &str, number: u32) -> Result<()> {
        let bad = |e: bson::error::Error| EngineError::new(FailureKind::Local, format!("a checkpoint: {e}"));
        let raw = bson::serialize_to_vec(self).map_err(bad)?;
        let key = job.cluster.keys().snapshot_object(id, &name(number));
        let mut writer = job.cluster.object_writer(key, ObjectKind::Catalog).await;
        // A single frame: checkpoints are read whole.
        writer.write(encode_frame(&raw, 1, 0)?).await?;
        writer.finish(None).await?;
        if number > self.first_number() {
            // One too many is in nobody's way: the last one counts.
            job.cluster.delete_snapshot_objects(id, &[name(number - 1)]).await.ok();
        }
        Ok(())
    }

    /// From the raw bytes of its object.
    pub(crate) fn parse(raw: &[u8]) -> Option<Self> {
        bson::deserialize_from_document(decode(raw).ok()?).ok()
    }

    /// The last one of the snapshot that is to be gone on with, made ready for another run; and the snapshot's own log
    /// up to now. What is stored beside them is removed.
    pub(super) async fn take_up(job: &Job, request: &SnapshotRequest, stream: &str) -> Result<(Self, Stored)> {
        let (cluster, id) = (&job.cluster, &request.id);
        let found = cluster.snapshot_objects(id, "").await?;
        let Some(newest) =
            found.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with(CHECKPOINTS)).max()
        else {
            let message = format!("how far the backup {id} came was not noted: there is nothing to go on from");
            return Err(EngineError::new(FailureKind::Unsupported, message).hint("start a new backup"));
        };
        let key = cluster.keys().snapshot_object(id, &newest);
        let damaged = || EngineError::damaged(format!("{key} cannot be read")).hint("start a new backup");
        let reader = cluster.object_reader(&key, None).await?;
        let mut last = Self::parse(&reader.frame(0).await?).ok_or_else(damaged)?;
        if last.epoch != request.epoch {
            let message = format!("the cluster was restored after the backup {id} was begun");
            return Err(EngineError::new(FailureKind::Unsupported, message).hint("start a new backup"));
        }
        last.run += 1;
        let log = own_log(cluster, id, stream, Optime::from_point(&last.first)?, &found).await?;
        let kept = |name: &str| {
            last.objects.iter().any(|object| object.name == name)
                || log.slices.iter().any(|slice| format!("{stream}/{slice}") == name)
                || name == newest
        };
        let loose: Vec<_> = found.into_iter().map(|(name, _)| name).filter(|name| !kept(name)).collect();
        cluster.delete_snapshot_objects(id, &loose).await?;
        Ok((last, log))
    }
}

/// The object of checkpoint `number`.
fn name(number: u32) -> String {
    format!("{CHECKPOINTS}{number:08}.bson.zst")
}

/// The unbroken log after `first` that is stored with a snapshot.
async fn own_log(
    cluster: &ClusterRepository,
    id: &str,
    stream: &str,
    first: Optime,
    found: &[(String, u64)],
) -> Result<Stored> {
    let folder = format!("{stream}/");
    let slices: Vec<SliceName> =
        found.iter().filter_map(|(name, _)| name.strip_prefix(&folder)?.parse().ok()).collect();
    let mut log = Stored::starting_at(first);
    loop {
        let at = log.last.point()?;
        // Each is longer than nothing, so this ends.
        let next = slices
            .iter()
            .filter(|slice| slice.start.position == at.position && slice.end.position.order() > at.position.order());
        let Some(next) = next.max_by(|a, b| a.end.position.order().cmp(b.end.position.order())) else { return Ok(log) };
        let key = cluster.keys().snapshot_object(id, &format!("{stream}/{next}"));
        let reader = cluster.object_reader(&key, None).await?;
        let summary = reader.footer().log.as_ref();
        let summary = summary.ok_or_else(|| EngineError::damaged(format!("{key} is no piece of log")))?;
        log.add(next.clone(), summary, reader.raw_bytes(), reader.stored_bytes());
        log.last = Optime::from_point(&next.end)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_written() {
        let raw = bson::serialize_to_vec(&Checkpoint::sample().unwrap()).unwrap();
        assert_eq!(Checkpoint::parse(&raw), Some(Checkpoint::sample().unwrap()));
        assert_eq!(Checkpoint::parse(&raw[..raw.len() - 1]), None);
    }

    /// A run that was given up and is not dead writes nothing that the next one writes too.
    #[test]
    fn each_run_has_numbers_of_its_own() {
        let run = |run| Checkpoint { run, ..Checkpoint::sample().unwrap() };
        assert_eq!((run(0).first_number(), run(1).first_number()), (1, 1_000_001));
        assert!(run(u32::MAX).first_number() > run(4_000).first_number());
    }
}
