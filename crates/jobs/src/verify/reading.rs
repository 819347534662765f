//! Reading framed objects through: frames, documents, counts, order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use hindsight_engine::{DataCheck, Engine, EngineError, FailureKind, Progress};
use hindsight_format::{FrameEntry, LogSummary, ObjectKind, ObjectRef, SliceName, SnapshotManifest, StoredSlice};
use hindsight_repository::{ClusterRepository, Error as RepositoryError, ObjectReader};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::finding::{About, Finding};
use crate::{JobError, Result};

/// Problems of one object that are told.
const TOLD: usize = 8;
/// Frames of an object that are decompressed ahead.
const AHEAD: usize = 2;

/// An object to read.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// One that a manifest names.
    Object { manifest: Arc<SnapshotManifest>, object: ObjectRef },
    /// A slice that belongs to a snapshot; with its size, where it was listed.
    Own { manifest: Arc<SnapshotManifest>, stream: String, name: SliceName, bytes: u64 },
    /// A captured slice.
    Slice(StoredSlice),
}

/// Ends of the log by stream and epoch, beyond which nothing more is read.
pub(super) type Horizon = BTreeMap<(String, u64), String>;

impl Work {
    pub(super) fn key(&self, cluster: &ClusterRepository) -> String {
        match self {
            Self::Object { manifest, object } => cluster.keys().snapshot_object(&manifest.id, &object.name),
            Self::Own { manifest, stream, name, .. } => {
                cluster.keys().snapshot_object(&manifest.id, &format!("{stream}/{name}"))
            }
            Self::Slice(slice) => cluster.slice_key(slice),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Object { object, .. } => object.stored_bytes,
            Self::Own { bytes, .. } => *bytes,
            Self::Slice(slice) => slice.stored_bytes,
        }
    }

    fn about(&self) -> About {
        match self {
            Self::Object { manifest, .. } | Self::Own { manifest, .. } => About::Snapshot(manifest.id.clone()),
            Self::Slice(slice) => About::Slice(Box::new(slice.clone())),
        }
    }

    /// Whether it was there at the beginning, or came out of what was.
    fn is_within(&self, horizon: &Horizon) -> bool {
        match self {
            Self::Slice(slice) => horizon
                .get(&(slice.stream.clone(), slice.epoch))
                .is_some_and(|end| slice.name.start.position.order() < end.as_str()),
            _ => true,
        }
    }
}

/// Reads objects, and keeps what was found.
pub(super) struct Reading<'a> {
    engine: &'a Arc<dyn Engine>,
    cluster: &'a ClusterRepository,
    progress: &'a Progress,
    cancel: &'a CancellationToken,
    seen: BTreeSet<String>,
    pub(super) findings: Vec<Finding>,
    pub(super) objects: u64,
    pub(super) slices: u64,
    pub(super) bytes: u64,
}

impl<'a> Reading<'a> {
    pub(super) fn new(
        engine: &'a Arc<dyn Engine>,
        cluster: &'a ClusterRepository,
        progress: &'a Progress,
        cancel: &'a CancellationToken,
    ) -> Self {
        let (seen, findings) = (BTreeSet::new(), Vec::new());
        Self { engine, cluster, progress, cancel, seen, findings, objects: 0, slices: 0, bytes: 0 }
    }

    /// Whether there is something that was not read yet.
    pub(super) fn has_news(&self, works: &[Work], horizon: &Horizon) -> bool {
        works.iter().any(|work| work.is_within(horizon) && !self.seen.contains(&work.key(self.cluster)))
    }

    /// Reads what was not read yet, on all cores.
    pub(super) async fn read(&mut self, mut works: Vec<Work>, horizon: &Horizon) -> Result<()> {
        works.retain(|work| work.is_within(horizon) && self.seen.insert(work.key(self.cluster)));
        if works.is_empty() {
            return Ok(());
        }
        // The largest first, so that all cores have something to do to the end.
        works.sort_by_key(|work| std::cmp::Reverse(work.bytes()));
        let total = works.iter().map(Work::bytes).sum();
        let mut checks = self.checks(&works).await?;
        self.progress.step("reading everything", Some(total));
        let at_once = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let tasks: Vec<_> = works
            .into_iter()
            .map(|work| {
                let check = match &work {
                    Work::Object { manifest, .. } => checks.get(&manifest.id).and_then(|check| check.data.clone()),
                    _ => None,
                };
                Task {
                    engine: self.engine.clone(),
                    cluster: self.cluster.clone(),
                    progress: self.progress.clone(),
                    cancel: self.cancel.clone(),
                    work,
                    check,
                }
            })
            .collect();
        let mut running = futures::stream::iter(tasks)
            .map(|task| AbortOnDropHandle::new(tokio::spawn(task.run())))
            .buffer_unordered(at_once);
        while let Some(done) = running.next().await {
            let ended =
                |e: tokio::task::JoinError| EngineError::new(FailureKind::Local, format!("a reader ended: {e}"));
            let (work, problems) = done.map_err(ended)??;
            self.bytes += work.bytes();
            self.objects += 1;
            self.slices += u64::from(matches!(work, Work::Slice(_)));
            let (key, about) = (work.key(self.cluster), work.about());
            if let (Work::Object { manifest, .. }, false) = (&work, problems.is_empty())
                && let Some(check) = checks.get_mut(&manifest.id)
            {
                check.complete = false;
            }
            self.findings.extend(problems.into_iter().map(|what| Finding::damage(key.clone(), what, about.clone())));
        }
        self.add_up(checks);
        Ok(())
    }

    /// What checks the data, for each snapshot that is to be read.
    async fn checks(&mut self, works: &[Work]) -> Result<HashMap<String, Check>> {
        let mut checks = HashMap::new();
        for work in works {
            let Work::Object { manifest, .. } = work else { continue };
            if checks.contains_key(&manifest.id) {
                continue;
            }
            let check = match self.engine.check_data(self.cluster, manifest).await {
                Ok(check) => Check { data: Some(Arc::from(check)), complete: true, failed: None },
                Err(error) if error.kind == FailureKind::Damaged => {
                    Check { data: None, complete: false, failed: Some(error.to_string()) }
                }
                Err(error) => return Err(error.into()),
            };
            checks.insert(manifest.id.clone(), check);
        }
        Ok(checks)
    }

    /// Counts, where every frame could be read; and a catalog that makes no sense, where nothing else says why.
    fn add_up(&mut self, checks: HashMap<String, Check>) {
        for (id, check) in checks {
            let about = About::Snapshot(id.clone());
            let mut wrong = match &check.data {
                Some(data) if check.complete => data.finish(),
                _ => Vec::new(),
            };
            if !self.findings.iter().any(|finding| finding.about == about) {
                wrong.extend(check.failed);
            }
            let key = self.cluster.keys().snapshot(&id);
            self.findings.extend(wrong.into_iter().map(|what| Finding::damage(key.clone(), what, about.clone())));
        }
    }
}

/// What checks the data of one snapshot.
struct Check {
    data: Option<Arc<dyn DataCheck>>,
    /// Every frame was given to it.
    complete: bool,
    failed: Option<String>,
}

/// One object on its way through a core.
struct Task {
    engine: Arc<dyn Engine>,
    cluster: ClusterRepository,
    progress: Progress,
    cancel: CancellationToken,
    work: Work,
    check: Option<Arc<dyn DataCheck>>,
}

impl Task {
    /// The object, and what is wrong with it.
    async fn run(self) -> Result<(Work, Vec<String>)> {
        let problems = match self.problems().await {
            Ok(problems) => problems,
            Err(JobError::Repository(RepositoryError::Damaged { why, .. })) => vec![why],
            Err(JobError::Repository(RepositoryError::Missing { .. })) => vec!["it is missing".to_owned()],
            // A manifest may name what no key can be.
            Err(JobError::Repository(error @ (RepositoryError::NewerFormat { .. } | RepositoryError::Refused(_)))) => {
                vec![error.to_string()]
            }
            Err(JobError::Engine(error)) if error.kind == FailureKind::Damaged => vec![error.to_string()],
            Err(error) => return Err(error),
        };
        Ok((self.work, problems))
    }

    async fn problems(&self) -> Result<Vec<String>> {
        match &self.work {
            Work::Object { object, .. } => {
                let reader = self.cluster.object_reader(&self.work.key(&self.cluster), Some(object)).await?;
                let check = self.check.as_ref().filter(|_| reader.footer().kind == ObjectKind::Data);
                let checked = |entry: &FrameEntry, raw: &Bytes| match check {
                    Some(check) => check.frame(&object.name, entry.segment, raw),
                    None => Ok(()),
                };
                self.frames(&reader, checked).await
            }
            Work::Own { manifest, stream, name, .. } => {
                let reader = self.cluster.snapshot_slice_reader(&manifest.id, stream, name).await?;
                self.slice(&reader, name).await
            }
            Work::Slice(slice) => {
                let reader = self.cluster.slice_reader(slice).await?;
                self.slice(&reader, &slice.name).await
            }
        }
    }

    async fn slice(&self, reader: &ObjectReader, name: &SliceName) -> Result<Vec<String>> {
        let mut check = self.engine.check_log(&name.start, &name.end)?;
        let mut problems = self.frames(reader, |entry, raw| check.frame(entry.segment, raw)).await?;
        if problems.is_empty() {
            match (check.finish(), &reader.footer().log) {
                (Ok(found), Some(told)) => problems.extend(differences(&found, told)),
                (Err(why), _) => problems.push(why),
                (Ok(_), None) => {}
            }
        }
        Ok(problems)
    }

    /// Hands on every frame that can be read, and goes on after those that cannot.
    async fn frames(
        &self,
        reader: &ObjectReader,
        mut each: impl FnMut(&FrameEntry, &Bytes) -> std::result::Result<(), String>,
    ) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let mut frames = reader.stream(|_| true, AHEAD);
        while let Some(next) = frames.next().await {
            if self.cancel.is_cancelled() {
                return Err(EngineError::cancelled().into());
            }
            match next {
                Ok((entry, raw)) => {
                    self.progress.add(entry.stored_len.into());
                    problems.extend(each(&entry, &raw).err());
                }
                Err(RepositoryError::Damaged { why, .. }) => problems.push(why),
                Err(error) => return Err(error.into()),
            }
            if problems.len() >= TOLD {
                problems.push("more of it is damaged".to_owned());
                break;
            }
        }
        Ok(problems)
    }
}

/// What a slice says of itself must be what is in it.
fn differences(found: &LogSummary, told: &LogSummary) -> Option<String> {
    let same = (found.records, &found.counts, &found.histogram) == (told.records, &told.counts, &told.histogram)
        && (told.notable.is_none() || found.notable == told.notable);
    match found.records == told.records {
        _ if same => None,
        true => Some("the records in it are not those that its footer counts".to_owned()),
        false => Some(format!("{} records are in it, its footer says {}", found.records, told.records)),
    }
}
