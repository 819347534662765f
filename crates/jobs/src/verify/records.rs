//! Reading the records of a cluster one by one, so that one that is damaged does not hide the others.

use hindsight_format::{
    CancelRequest, ClusterConfig, ClusterDescriptor, EpochRecord, GapRecord, JournalBatch, LeaseRecord, Place,
    ProofRecord, RestoreRecord, SnapshotManifest, StoredGap,
};
use hindsight_repository::{ClusterRepository, Error as RepositoryError};
use serde::de::DeserializeOwned;

use super::finding::{About, Finding, Level};
use crate::Result;

/// A record, read.
pub(super) enum Record {
    Manifest(Box<SnapshotManifest>),
    Epoch(EpochRecord),
    Gap(StoredGap),
    /// One that nothing here rests on, or one that cannot be read, or that is gone.
    Other,
}

/// Reads records of one cluster.
pub(super) struct Records<'a> {
    pub(super) cluster: &'a ClusterRepository,
    /// Engine of the cluster; none when its descriptor cannot be read.
    pub(super) engine: Option<String>,
}

impl Records<'_> {
    /// The record at `place`; `newest` says whether it is the one in force of its kind.
    pub(super) async fn read(&self, key: &str, place: &Place, newest: bool) -> Result<(Record, Option<Finding>)> {
        let mut record = Record::Other;
        let found = match place {
            Place::Descriptor => self
                .decode::<ClusterDescriptor>(key, |it| {
                    wrong(it.name != self.cluster.name(), || format!("it is the record of the cluster {}", it.name))
                })
                .await?
                .map(drop),
            Place::Config(_) => self.decode::<ClusterConfig>(key, |_| None).await?.map(drop),
            Place::Lease { number, .. } => self
                .decode::<LeaseRecord>(key, |it| wrong(it.number != *number, || format!("it is state {}", it.number)))
                .await?
                .map(drop),
            Place::Manifest(id) => match self.decode(key, |it| self.manifest(id, it)).await? {
                Ok(Some(found)) => self.whole(found).await?.map(|found| record = Record::Manifest(Box::new(found))),
                other => other.map(drop),
            },
            Place::Epoch(number) => self
                .decode::<EpochRecord>(key, |it| {
                    wrong(it.number != *number, || format!("it is the record of epoch {}", it.number))
                })
                .await?
                .map(|found| {
                    if let Some(found) = found {
                        record = Record::Epoch(found);
                    }
                }),
            Place::Gap { stream, epoch, end } => self
                .decode::<GapRecord>(key, |it| {
                    wrong(it.end != *end, || format!("it is that of a gap until {}", it.end))
                })
                .await?
                .map(|found| {
                    if let Some(found) = found {
                        record = Record::Gap(StoredGap { stream: stream.clone(), epoch: *epoch, record: found });
                    }
                }),
            Place::Restore(id) => self
                .decode::<RestoreRecord>(key, |it| wrong(it.id != *id, || format!("it is that of restore {}", it.id)))
                .await?
                .map(drop),
            Place::Proof(id) => self
                .decode::<ProofRecord>(key, |it| wrong(it.id != *id, || format!("it is that of {}", it.id)))
                .await?
                .map(drop),
            Place::Cancel(_) => self.decode::<CancelRequest>(key, |_| None).await?.map(drop),
            Place::Journal(_) => self.decode::<JournalBatch>(key, |_| None).await?.map(drop),
            Place::SnapshotObject { .. } | Place::Slice { .. } => Ok(()),
        };
        Ok((record, found.err().map(|why| finding(key, place, newest, why))))
    }

    /// The record; or what is wrong with it. None when it is gone meanwhile.
    async fn decode<T: DeserializeOwned>(
        &self,
        key: &str,
        wrong: impl Fn(&T) -> Option<String>,
    ) -> Result<std::result::Result<Option<T>, String>> {
        Ok(match self.cluster.record::<T>(key).await {
            Ok(Some(found)) => match wrong(&found) {
                Some(why) => Err(why),
                None => Ok(Some(found)),
            },
            Ok(None) => Ok(None),
            Err(RepositoryError::Damaged { why, .. }) => Err(why),
            Err(error @ RepositoryError::NewerFormat { .. }) => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        })
    }

    /// The whole manifest, where it is sealed; or what is wrong with it.
    async fn whole(&self, open: SnapshotManifest) -> Result<std::result::Result<SnapshotManifest, String>> {
        match self.cluster.whole(open).await {
            Ok(whole) => Ok(Ok(whole)),
            Err(RepositoryError::Damaged { why, .. }) => Ok(Err(why)),
            Err(error @ RepositoryError::Missing { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// What does not hold together in a manifest.
    fn manifest(&self, id: &str, manifest: &SnapshotManifest) -> Option<String> {
        if manifest.id != id {
            return Some(format!("it is the manifest of the snapshot {}", manifest.id));
        }
        if self.engine.as_ref().is_some_and(|engine| *engine != manifest.engine) {
            return Some(format!("it is a snapshot of {:?}, which the cluster is not", manifest.engine));
        }
        for (stream, part) in &manifest.streams {
            let mut at = &part.first.position;
            for slice in &part.slices {
                if slice.start.position != *at {
                    return Some(format!("the log of {stream} breaks off at {at}: {slice} does not follow"));
                }
                at = &slice.end.position;
            }
            if *at != part.last.position {
                return Some(format!("the log of {stream} ends at {at}, not at {}", part.last.position));
            }
        }
        None
    }
}

fn wrong(is: bool, why: impl FnOnce() -> String) -> Option<String> {
    is.then(why)
}

/// What is told of a record that is not as it should be.
fn finding(key: &str, place: &Place, newest: bool, why: String) -> Finding {
    let older = "nothing: it is an old state, and not read any more";
    let (level, about, means) = match place {
        Place::Config(_) | Place::Lease { .. } if !newest => (Level::Note, About::Itself, older.to_owned()),
        Place::Proof(_) => (Level::Note, About::Itself, "this evidence is not shown any more".to_owned()),
        Place::Cancel(_) | Place::Journal(_) => {
            (Level::Note, About::Itself, "nothing rests on it, and it can be removed".to_owned())
        }
        Place::Manifest(id) => {
            let means = format!(
                "snapshot {id} cannot be restored, nor what only it leads to; log that it may lead into is kept until it is \
                 put right or deleted (delete-backup)"
            );
            (Level::Damage, About::Snapshot(id.clone()), means)
        }
        Place::Config(_) => {
            let means = "the settings are not known: no backup, capture or restore begins until it is removed, which \
                         brings the settings before it back";
            (Level::Damage, About::Itself, means.to_owned())
        }
        Place::Lease { name, .. } => {
            let means = format!("who holds the lease {name:?} is not known: nobody can take it until this is removed");
            (Level::Damage, About::Itself, means)
        }
        Place::Descriptor => {
            let means = "which cluster this is is not known: nothing of it is found until the record is put right";
            (Level::Damage, About::Itself, means.to_owned())
        }
        Place::Gap { .. } => {
            let means = "the gap in the log that it explains is shown without its cause; nothing more is lost";
            (Level::Damage, About::Itself, means.to_owned())
        }
        Place::Epoch(number) => {
            let means = format!(
                "why epoch {number} began is not known, nor what of older ones is its past: moments that only such a base \
                 leads to cannot be restored, and nothing older is deleted for its age, until the record is put right"
            );
            (Level::Damage, About::Itself, means)
        }
        Place::Restore(id) => {
            let means = format!(
                "how restore {id} ended is not known: where it began the present epoch, nothing is captured until the \
                 record is put right, or a restore has succeeded"
            );
            (Level::Damage, About::Itself, means)
        }
        Place::SnapshotObject { .. } | Place::Slice { .. } => {
            (Level::Damage, About::Itself, "what rests on it cannot be restored".to_owned())
        }
    };
    Finding { level, key: key.to_owned(), what: why, means, about }
}
