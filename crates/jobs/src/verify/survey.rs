//! What there is of a cluster, by its keys and records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use hindsight_catalog::{Gap, History, parents, timeline};
use hindsight_format::{LeaseState, OperationKind, Place, SnapshotManifest, StoredSlice, format_time};
use hindsight_repository::{ClusterRepository, Entry};

use super::finding::{About, Finding};
use super::reading::{Horizon, Work};
use super::records::{Record, Records};
use crate::Result;
use crate::operation::OPERATION_LEASE;

/// Records that are read at the same time.
const AT_ONCE: usize = 16;

/// What a listing and the records in it tell.
pub(super) struct Survey {
    cluster: ClusterRepository,
    /// Only this snapshot is wanted; the rest is known for what damage means.
    only: Option<String>,
    pub(super) history: History,
    manifests: Vec<Arc<SnapshotManifest>>,
    /// Sizes of all objects in snapshots' folders.
    sizes: BTreeMap<String, u64>,
    /// Snapshots that have a manifest, whether or not it can be read.
    complete: BTreeSet<String>,
    pub(super) findings: Vec<Finding>,
    pub(super) records: u64,
}

impl Survey {
    /// Lists everything, and reads all records.
    pub(super) async fn take(cluster: &ClusterRepository, only: Option<&str>) -> Result<Self> {
        let placed = cluster.stored().await?;
        let mut survey = Self {
            cluster: cluster.clone(),
            only: only.map(str::to_owned),
            history: History { cluster: cluster.name().to_owned(), ..History::default() },
            manifests: Vec::new(),
            sizes: BTreeMap::new(),
            complete: BTreeSet::new(),
            findings: Vec::new(),
            records: 0,
        };
        survey.read_records(&placed).await?;
        for (entry, place) in &placed {
            match place {
                Some(Place::Slice { stream, epoch, name }) => survey.history.slices.push(StoredSlice {
                    stream: stream.clone(),
                    epoch: *epoch,
                    name: name.clone(),
                    stored_bytes: entry.size,
                }),
                Some(Place::SnapshotObject { .. }) => drop(survey.sizes.insert(entry.key.clone(), entry.size)),
                Some(_) => {}
                None => survey.findings.push(Finding::note(
                    &entry.key,
                    format!("nothing in a repository is called so ({} bytes)", entry.size),
                    "nothing reads it: it is foreign, and can be removed",
                )),
            }
        }
        survey.check_epochs(&placed);
        survey.check_parents();
        survey.sort_snapshot_objects(&placed).await;
        if let Some(only) = &survey.only {
            let folder = cluster.keys().snapshot(only);
            survey.findings.retain(|finding| finding.key.starts_with(&folder));
        }
        Ok(survey)
    }

    async fn read_records(&mut self, placed: &[(Entry, Option<Place>)]) -> Result<()> {
        let cluster = &self.cluster.clone();
        let newest = newest(placed);
        let descriptor = cluster.descriptor().await.ok().flatten();
        if !placed.iter().any(|(_, place)| *place == Some(Place::Descriptor)) {
            let means = "which cluster this is is not known: nothing of it is found until the record is put right";
            let missing = Finding::damage(cluster.keys().descriptor(), "it is missing", About::Itself);
            self.findings.push(missing.means(means));
        }
        let records = &Records { cluster, engine: descriptor.map(|descriptor| descriptor.identity.engine) };
        let wanted = placed.iter().filter_map(|(entry, place)| Some((entry, place.as_ref()?)));
        let wanted = wanted.filter(|(_, place)| !matches!(place, Place::SnapshotObject { .. } | Place::Slice { .. }));
        let read: Vec<_> = futures::stream::iter(wanted)
            .map(|(entry, place)| records.read(&entry.key, place, newest.contains(entry.key.as_str())))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        self.records = read.len() as u64;
        for (record, finding) in read {
            self.findings.extend(finding);
            match record {
                Record::Manifest(manifest) => {
                    if self.only.as_ref().is_none_or(|only| *only == manifest.id) {
                        cluster.require_open(&manifest)?;
                    }
                    self.history.snapshots.push((*manifest).clone());
                    self.manifests.push(Arc::new(*manifest));
                }
                Record::Epoch(epoch) => self.history.epochs.push(epoch),
                Record::Gap(gap) => self.history.gaps.push(gap),
                Record::Other => {}
            }
        }
        let manifests = placed.iter().filter_map(|(_, place)| match place {
            Some(Place::Manifest(id)) => Some(id.clone()),
            _ => None,
        });
        self.complete = manifests.collect();
        Ok(())
    }

    /// Every epoch after the first has a record.
    fn check_epochs(&mut self, placed: &[(Entry, Option<Place>)]) {
        let on_record: BTreeSet<_> = placed
            .iter()
            .filter_map(|(_, place)| match place {
                Some(Place::Epoch(number)) => Some(*number),
                _ => None,
            })
            .collect();
        let used = self.history.slices.iter().map(|slice| slice.epoch);
        let used = used.chain(self.history.snapshots.iter().map(|snapshot| snapshot.epoch)).max().unwrap_or(1);
        let last = on_record.last().copied().unwrap_or(1).max(used);
        for number in (2..=last).filter(|number| !on_record.contains(number)) {
            let missing = Finding::damage(self.cluster.keys().epoch(number), "it is missing", About::Itself);
            self.findings.push(missing.means(format!(
                "why the history of epoch {number} began is not known, nor whether an older one is its past; what rests on a base of \
                 its own can be restored. Do not delete anything older, nor \
                 capture before the record is put right: its number could be given again"
            )));
        }
    }

    /// A snapshot that builds upon others is of use with all of them alone.
    fn check_parents(&mut self) {
        for snapshot in &self.history.snapshots {
            let Err(torn) = parents(&self.history, snapshot) else { continue };
            let key = self.cluster.keys().manifest(&snapshot.id);
            let finding = Finding::damage(key, torn.to_string(), About::Snapshot(snapshot.id.clone()));
            self.findings.push(finding.means(torn.hint()));
        }
    }

    /// What lies in a snapshot's folder and does not belong there, and folders that belong to no snapshot.
    async fn sort_snapshot_objects(&mut self, placed: &[(Entry, Option<Place>)]) {
        let cluster = &self.cluster.clone();
        let mut named: BTreeSet<String> = self.all_works(|_| true).iter().map(|work| work.key(cluster)).collect();
        // Where they are sealed, the whole manifests are objects.
        named.extend(self.manifests.iter().map(|manifest| cluster.keys().manifest(&manifest.id)));
        let readable: BTreeSet<_> = self.manifests.iter().map(|manifest| manifest.id.as_str()).collect();
        let mut loose: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (entry, place) in placed {
            let Some(Place::SnapshotObject { snapshot, .. }) = place else { continue };
            if !self.complete.contains(snapshot) {
                let (objects, bytes) = loose.entry(snapshot).or_default();
                (*objects, *bytes) = (*objects + 1, *bytes + entry.size);
            } else if readable.contains(snapshot.as_str()) && !named.contains(&entry.key) {
                let what = format!("the manifest of the snapshot does not name it ({} bytes)", entry.size);
                self.findings.push(Finding::note(
                    &entry.key,
                    what,
                    "nothing reads it: it is foreign, and can be removed",
                ));
            }
        }
        let running = cluster.lease_state(OPERATION_LEASE).await.ok().flatten();
        let running =
            running.filter(|lease| lease.operation.kind == OperationKind::Backup && lease.state == LeaseState::Held);
        for (id, (objects, bytes)) in loose {
            let means = match &running {
                Some(lease) if lease.operation.id == id => "it is the backup that is being made now",
                _ => "an interrupted backup left them: nothing reads them, and they can be removed",
            };
            let what = format!("{objects} objects ({bytes} bytes) without a manifest");
            self.findings.push(Finding::note(cluster.keys().snapshot(id), what, means));
        }
    }

    /// Whether there is a snapshot of this name.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.complete.contains(id)
    }

    /// The snapshots that are wanted and can be read.
    pub(super) fn snapshots(&self) -> Vec<String> {
        let wanted = |id: &&String| self.only.as_ref().is_none_or(|only| only == *id);
        self.complete.iter().filter(wanted).cloned().collect()
    }

    /// Everything framed that is to be read.
    pub(super) fn works(&self) -> Vec<Work> {
        let mut works = self.all_works(|id| self.only.as_ref().is_none_or(|only| only == id));
        if self.only.is_none() {
            works.extend(self.history.slices.iter().cloned().map(Work::Slice));
        }
        works
    }

    fn all_works(&self, wanted: impl Fn(&str) -> bool) -> Vec<Work> {
        let mut works = Vec::new();
        for manifest in self.manifests.iter().filter(|manifest| wanted(&manifest.id)) {
            let objects = manifest.objects.iter().cloned();
            works.extend(objects.map(|object| Work::Object { manifest: manifest.clone(), object }));
            for (stream, part) in &manifest.streams {
                works.extend(part.slices.iter().map(|name| {
                    let key = self.cluster.keys().snapshot_object(&manifest.id, &format!("{stream}/{name}"));
                    let bytes = self.sizes.get(&key).copied().unwrap_or(0);
                    Work::Own { manifest: manifest.clone(), stream: stream.clone(), name: name.clone(), bytes }
                }));
            }
        }
        works
    }

    /// How far the log reaches now.
    pub(super) fn horizon(&self) -> Horizon {
        let mut horizon = Horizon::new();
        for slice in &self.history.slices {
            let end = slice.name.end.position.order();
            let known = horizon.entry((slice.stream.clone(), slice.epoch)).or_default();
            if known.as_str() < end {
                *known = end.to_owned();
            }
        }
        horizon
    }

    /// Breaks in the log that nothing explains.
    pub(super) fn unexplained_gaps(&self) -> Vec<Gap> {
        match self.only {
            Some(_) => Vec::new(),
            None => timeline(&self.history).gaps.into_iter().filter(|gap| !gap.explained).collect(),
        }
    }

    /// Log that no snapshot leads into.
    pub(super) fn loose_ends(&self) -> Vec<Finding> {
        if self.only.is_some() {
            return Vec::new();
        }
        let unbacked = timeline(&self.history).unbacked.into_iter().map(|log| {
            let (start, end) = (format_time(log.start.time), format_time(log.end.time));
            let what =
                format!("no snapshot leads into the log of {} from {start} to {end} (epoch {})", log.stream, log.epoch);
            Finding::note(
                format!("log of {}", log.stream),
                what,
                "these moments cannot be restored; nothing is damaged",
            )
        });
        unbacked.collect()
    }
}

/// Log that must have been there.
pub(super) fn missing_log(cluster: &ClusterRepository, gap: &Gap) -> Finding {
    let key = cluster.keys().slices(&gap.stream, gap.epoch);
    let start = gap.start.as_ref();
    let what = format!(
        "the log breaks off at {} and goes on at {}: {}",
        start.map_or_else(|| "-".to_owned(), |start| start.key_text()),
        gap.end.key_text(),
        gap.cause
    );
    let from = start.map_or_else(|| "-".to_owned(), |start| format_time(start.time));
    let means = format!(
        "cannot be restored: what lies between {from} and {}, nor what follows up to the next snapshot",
        format_time(gap.end.time)
    );
    Finding::damage(key, what, About::Itself).means(means)
}

/// Keys of the settings in force and of the leases' present states.
fn newest(placed: &[(Entry, Option<Place>)]) -> BTreeSet<&str> {
    let mut newest: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for (entry, place) in placed {
        let (kind, number) = match place {
            Some(Place::Config(number)) => ("", *number),
            Some(Place::Lease { name, number }) => (name.as_str(), *number),
            _ => continue,
        };
        let best = newest.entry(kind).or_insert((number, &entry.key));
        if number >= best.0 {
            *best = (number, &entry.key);
        }
    }
    newest.into_values().map(|(_, key)| key).collect()
}
