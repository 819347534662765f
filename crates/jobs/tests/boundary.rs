//! Jobs with an engine that is no MongoDB: its server keeps the log only when it is asked to, its log has parts, and it
//! restores into directories.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use hindsight_catalog::{History, RestorePlan, Stretch, Target};
use hindsight_engine::{
    BackupType, Content, DataCheck, Destination, Directory, Engine, EngineError, FailureKind, Grant, Job, Kept,
    LogBuffer, LogCheck, LogReader, LogRequest, LogStart, Preview, Probe, Progress, Reached, ReplayTotals,
    RestoreOptions, Restored, Scratch, ScratchRequest, Selection, SnapshotRequest, Spoken, Words,
};
use hindsight_format::{
    ClusterIdentity, EpochCause, FORMAT_VERSION, LogSummary, ObjectKind, ObjectRef, Point, Position, SnapshotKind,
    SnapshotManifest, SnapshotSource, SnapshotTotals, StreamPart,
};
use hindsight_jobs::{
    Agent, OPERATION_LEASE, RestoreRequest, Tuning, history, overview, propose, register, restore, verify,
};
use hindsight_repository::{ClusterRepository, Repository, RepositorySpec, encode_frame};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

type Outcome<T> = hindsight_engine::Result<T>;

/// The log begins here when it is first asked for, and ends there.
const BEGIN: u64 = 10;
const END: u64 = 40;
/// From here on it is another part of it.
const SWITCH: u64 = 25;

static WORDS: Words =
    Words { container: ("shelf", "shelves"), item: ("book", "books"), index: None, log: "diary", comment: "--" };

/// A server that counts: each record of its log is one byte, its position.
#[derive(Default)]
struct Counting {
    at: Arc<AtomicU64>,
    kept: Mutex<Vec<bool>>,
    /// Whether it has left the history that is stored.
    left: AtomicBool,
    /// Up to where it has that history all the same; 0 where that is not known.
    common: AtomicU64,
    stored: Arc<Mutex<Vec<Point>>>,
    /// Whether backups were held up while it restored.
    was_alone: Mutex<Option<bool>>,
    /// What the checks were given.
    checked: Arc<Mutex<Vec<(String, u32, u8)>>>,
}

fn part(at: u64) -> u32 {
    if at > SWITCH { 2 } else { 1 }
}

fn point(at: u64) -> Point {
    let position = Position::new(format!("{at:016X}"), part(at).to_string()).unwrap();
    Point { time: Timestamp::from_second(1_700_000_000 + at as i64).unwrap(), position }
}

fn number(point: &Point) -> u64 {
    u64::from_str_radix(point.position.order(), 16).unwrap()
}

struct Follower {
    next: u64,
    at: Arc<AtomicU64>,
    stored: Arc<Mutex<Vec<Point>>>,
}

#[async_trait]
impl LogReader for Follower {
    async fn read(&mut self, buffer: &mut LogBuffer) -> Outcome<()> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if self.next <= END {
            buffer.begin_segment(part(self.next));
            buffer.push(&[self.next as u8]);
            buffer.summary.count("", "step", point(self.next).time.as_second(), 1);
            buffer.summary.end = point(self.next);
            buffer.substantial = true;
            self.at.store(self.next, Ordering::SeqCst);
            self.next += 1;
        }
        Ok(())
    }

    fn stored(&mut self, until: &Point) {
        self.stored.lock().unwrap().push(until.clone());
    }
}

struct Steps {
    summary: LogSummary,
    checked: Arc<Mutex<Vec<(String, u32, u8)>>>,
}

impl LogCheck for Steps {
    fn frame(&mut self, segment: u32, raw: &[u8]) -> std::result::Result<(), String> {
        for step in raw {
            self.summary.count("", "step", point((*step).into()).time.as_second(), 1);
            self.checked.lock().unwrap().push(("log".into(), segment, *step));
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> std::result::Result<LogSummary, String> {
        Ok(self.summary)
    }
}

struct Books(Arc<Mutex<Vec<(String, u32, u8)>>>);

impl DataCheck for Books {
    fn frame(&self, object: &str, segment: u32, raw: &[u8]) -> std::result::Result<(), String> {
        self.0.lock().unwrap().extend(raw.iter().map(|byte| (object.to_owned(), segment, *byte)));
        Ok(())
    }

    fn finish(&self) -> Vec<String> {
        Vec::new()
    }
}

fn not_here() -> EngineError {
    EngineError::new(FailureKind::Unsupported, "not here")
}

#[async_trait]
impl Engine for Counting {
    fn words(&self) -> &'static Words {
        &WORDS
    }

    fn parse_point(&self, text: &str) -> Option<Spoken> {
        text.starts_with('#').then(|| Spoken::ToFind(text.to_owned()))
    }

    async fn find(&self, _: &ClusterRepository, history: &History, text: &str) -> Outcome<Target> {
        let order = format!("{:016X}", text.trim_start_matches('#').parse::<u64>().map_err(|_| not_here())?);
        let holds = |end: &Point| end.position.order() >= order.as_str();
        let time =
            history.slices.iter().map(|slice| &slice.name.end).filter(|end| holds(end)).map(|end| end.time).min();
        Ok(Target::Through { time: time.ok_or_else(not_here)?, order })
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }

    async fn probe(&self) -> Outcome<Probe> {
        Ok(Probe {
            engine: "counting",
            identity: ClusterIdentity { engine: "counting".into(), id: "1".into() },
            natural_name: "count".into(),
            streams: vec!["diary".into()],
            version: "1".into(),
            members: Vec::new(),
            head: point(self.at.load(Ordering::SeqCst)),
            log_start: None,
            log_room: None,
            warnings: Vec::new(),
        })
    }

    async fn keep_log(&self, _: &ClusterRepository, keep: bool) -> Outcome<Kept> {
        self.kept.lock().unwrap().push(keep);
        Ok(if keep { Kept::Made("it keeps a diary".into()) } else { Kept::Released("it keeps none".into()) })
    }

    fn accept_type(&self, _: Option<BackupType>) -> Outcome<()> {
        Ok(())
    }

    async fn snapshot(&self, job: &Job, request: &SnapshotRequest) -> Outcome<SnapshotManifest> {
        let name = "data/books.zst";
        let key = job.cluster.keys().snapshot_object(&request.id, name);
        let mut writer = job.cluster.object_writer(key, ObjectKind::Data).await;
        for byte in b"abc" {
            writer.write(encode_frame(&[*byte], 1, 7)?).await?;
        }
        let written = writer.finish(None).await?;
        let last = point(BEGIN);
        let part = StreamPart { first: last.clone(), last, slices: Vec::new() };
        Ok(SnapshotManifest {
            format: FORMAT_VERSION,
            id: request.id.clone(),
            engine: "counting".into(),
            kind: SnapshotKind::Physical,
            parent: None,
            epoch: request.epoch,
            namespaces: Vec::new(),
            started_at: Timestamp::now(),
            finished_at: Timestamp::now(),
            source: SnapshotSource {
                member: "here".into(),
                role: "primary".into(),
                server_version: "1".into(),
                compatibility_version: None,
            },
            streams: [("diary".to_owned(), part)].into(),
            objects: vec![ObjectRef {
                name: name.to_owned(),
                stored_bytes: written.stored_bytes,
                raw_bytes: written.raw_bytes,
                footer_blake3: written.footer_blake3,
            }],
            totals: SnapshotTotals::default(),
            hashes: None,
            created_by: "test".into(),
            seal: None,
        })
    }

    async fn describe(&self, _: &ClusterRepository, _: &SnapshotManifest) -> Outcome<Vec<Content>> {
        Ok(Vec::new())
    }

    async fn came_by(&self, _: &ClusterRepository, stored: &[Point]) -> Outcome<Option<Point>> {
        let common = self.common.load(Ordering::SeqCst);
        Ok(stored.iter().rev().find(|point| number(point) <= common).cloned())
    }

    async fn open_log(&self, request: &LogRequest<'_>) -> Outcome<LogStart> {
        if request.after.is_some() && self.left.load(Ordering::SeqCst) {
            self.left.store(false, Ordering::SeqCst);
            return Ok(LogStart::Left { cause: "it was left".into() });
        }
        let at = request.after.cloned().unwrap_or_else(|| point(BEGIN));
        let reader = Follower { next: number(&at) + 1, at: self.at.clone(), stored: self.stored.clone() };
        Ok(LogStart::Continues { reader: Box::new(reader), at })
    }

    fn accept(&self, destination: &Destination) -> Outcome<()> {
        match destination {
            Destination::Connected => Err(not_here()),
            Destination::Directory(_) => Ok(()),
        }
    }

    async fn prepare_restore(
        &self,
        _: &ClusterRepository,
        plan: &RestorePlan,
        _: &Selection,
        destination: &Destination,
    ) -> Outcome<Preview> {
        let Destination::Directory(Directory { path, in_place, .. }) = destination else { return Err(not_here()) };
        let hindsight_catalog::Cut::Through { order } = &plan.cut else { return Err(not_here()) };
        let point = point(u64::from_str_radix(order, 16).unwrap());
        Ok(Preview {
            into: ClusterIdentity {
                engine: "counting".into(),
                id: if *in_place { "1".into() } else { format!("1@{}", path.display()) },
            },
            into_hosts: path.display().to_string(),
            into_version: "1".into(),
            in_place: *in_place,
            kept: in_place.then(|| path.with_extension("before")),
            existing: Vec::new(),
            notes: Vec::new(),
            reaches: Some(Reached { point, through: None, last_commit: None, left_out: None }),
            estimated_secs: None,
        })
    }

    async fn restore(
        &self,
        job: &Job,
        _: &RestorePlan,
        _: &Selection,
        destination: &Destination,
        preview: &Preview,
        options: &RestoreOptions,
    ) -> Outcome<Restored> {
        options.gate.cross().await?;
        let lease = job.cluster.lease_state(OPERATION_LEASE).await?;
        *self.was_alone.lock().unwrap() =
            Some(lease.is_some_and(|lease| job.cluster.lease_is_live(OPERATION_LEASE, &lease)));
        let restoring = overview(&job.cluster).await.unwrap().restoring;
        assert_eq!(restoring.len(), 1, "it is seen to run");
        let Destination::Directory(Directory { path, .. }) = destination else { return Err(not_here()) };
        if path.ends_with("put-back") {
            options.gate.undone().await?;
        }
        if preview.in_place && !path.ends_with("replaced") {
            return Err(not_here());
        }
        let reached = preview.reaches.as_ref().map(|reached| reached.point.clone());
        Ok(Restored { reached, next: vec!["read it".into()], ..Restored::default() })
    }

    async fn replay(&self, _: &Job, _: &Stretch, _: PathBuf) -> Outcome<ReplayTotals> {
        Err(not_here())
    }

    async fn check_data(&self, _: &ClusterRepository, _: &SnapshotManifest) -> Outcome<Box<dyn DataCheck>> {
        Ok(Box::new(Books(self.checked.clone())))
    }

    fn check_log(&self, start: &Point, end: &Point) -> Outcome<Box<dyn LogCheck>> {
        let summary = LogSummary { end: end.clone(), ..LogSummary::starting_at(start.clone()) };
        Ok(Box::new(Steps { summary, checked: self.checked.clone() }))
    }

    async fn start_scratch(&self, _: &ScratchRequest) -> Outcome<Box<dyn Scratch>> {
        Err(not_here())
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let begun = std::time::Instant::now();
    while !holds().await? {
        ensure!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A repository in which the cluster of `engine` is to be captured.
async fn protected(engine: &dyn Engine, folder: &Path) -> Result<(Repository, ClusterRepository)> {
    let repository = Repository::open_or_create(&RepositorySpec::new(folder.display().to_string())).await?;
    let cluster = register(&repository, None, &engine.probe().await?).await?;
    cluster.update_config(|config| config.with("pitr.enabled", "true")?.with("pitr.uploadIntervalSec", "1")).await?;
    Ok((repository, cluster))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_engine_captures_verifies_and_restores_into_a_directory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let counting = Arc::new(Counting { at: Arc::new(AtomicU64::new(BEGIN)), ..Counting::default() });
    let engine: Arc<dyn Engine> = counting.clone();
    let (repository, cluster) = protected(&*engine, folder.path()).await?;
    let tuning = Tuning {
        poll: Duration::from_millis(100),
        merge_every: Duration::from_millis(500),
        snapshot_pause: Duration::from_secs(1),
        ..Tuning::default()
    };
    let cancel = CancellationToken::new();
    let agent = Agent::new(engine.clone(), cluster.clone()).tuned(tuning);
    let token = cancel.clone();
    let running = tokio::spawn(async move { agent.run(token).await });
    until("everything is captured, and rests on a snapshot", async || {
        let overview = overview(&cluster).await?;
        Ok(overview.captured_until().is_some_and(|end| *end == point(END)) && !overview.timeline.ranges.is_empty())
    })
    .await?;
    cluster.update_config(|config| config.with("pitr.enabled", "false")).await?;
    until("the log is let go", async || Ok(counting.kept.lock().unwrap().last() == Some(&false))).await?;
    cancel.cancel();
    running.await??;
    ensure!(*counting.kept.lock().unwrap() == [true, false], "asked once each: {:?}", counting.kept);
    let stored = counting.stored.lock().unwrap().clone();
    ensure!(stored.is_sorted_by_key(number) && stored.last() == Some(&point(END)), "{stored:?}");

    let (progress, never) = (Progress::default(), CancellationToken::new());
    let verified = verify(&engine, &cluster, None, &progress, &never).await?;
    ensure!(verified.findings.is_empty(), "{:?}", verified.findings);
    let mut checked = counting.checked.lock().unwrap().clone();
    let log: Vec<_> = checked.extract_if(.., |(object, ..)| object == "log").collect();
    ensure!(log.iter().all(|(_, segment, step)| *segment == part((*step).into())), "{log:?}");
    ensure!(log.len() as u64 == END - BEGIN, "{log:?}");
    ensure!(checked == [b'a', b'b', b'c'].map(|byte| ("data/books.zst".to_owned(), 7, byte)), "{checked:?}");

    let Some(Spoken::ToFind(text)) = engine.parse_point("#30") else { anyhow::bail!("it is to be found") };
    let target = engine.find(&cluster, &history(&cluster).await?, &text).await?;
    let refused = propose(&*engine, &repository, &cluster, RestoreRequest::to(target.clone())).await;
    ensure!(refused.is_err(), "it restores into directories alone");
    let destination = Destination::Directory(Directory::new(folder.path().join("new")));
    let request = RestoreRequest { destination, ..RestoreRequest::to(target) };
    let proposal = propose(&*engine, &repository, &cluster, request).await?;
    ensure!(proposal.target.is_none() && !proposal.begins_epoch);
    let done = restore(&*engine, &proposal, &progress, &never).await?;
    ensure!(done.next == ["read it"] && done.record.reached == Some(point(30)), "{done:?}");
    ensure!(*counting.was_alone.lock().unwrap() == Some(false), "nobody has to wait for a copy");
    let left = cluster.lease_names().await?.into_iter().filter(|name| name.starts_with("reading.")).count();
    ensure!(left == 0 && cluster.current_epoch().await? == 1);
    ensure!(cluster.restore(&done.record.id).await?.is_some_and(|record| record.reached == Some(point(30))));

    // Where all is replaced in one step nothing is ever half restored, and the record says how to tell what is there.
    for (epoch, (name, touched, kept)) in
        (2..).zip([("unknown", false, true), ("put-back", false, false), ("replaced", true, true)])
    {
        let directory = Directory { in_place: true, ..Directory::new(folder.path().join(name)) };
        let target = engine.find(&cluster, &history(&cluster).await?, &text).await?;
        let request = RestoreRequest { destination: Destination::Directory(directory), ..RestoreRequest::to(target) };
        let proposal = propose(&*engine, &repository, &cluster, request).await?;
        ensure!(proposal.begins_epoch);
        let done = restore(&*engine, &proposal, &progress, &never).await;
        ensure!(done.is_ok() == touched, "{name}: {done:?}");
        let restores = cluster.restores().await?;
        let record = restores.iter().find(|record| record.new_epoch == Some(epoch));
        let record = record.with_context(|| format!("{name}: {restores:?}"))?;
        ensure!((record.touched, record.kept.is_some()) == (touched, kept), "{name}: {record:?}");
        ensure!(record.kept.iter().all(|kept| kept.ends_with(".before")), "{name}: {record:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_by_stored_positions_again_begins_a_new_history() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let counting = Arc::new(Counting { at: Arc::new(AtomicU64::new(BEGIN)), ..Counting::default() });
    let engine: Arc<dyn Engine> = counting.clone();
    let (_, cluster) = protected(&*engine, folder.path()).await?;
    for epoch in 1..=2 {
        counting.left.store(epoch == 2, Ordering::SeqCst);
        capture_all(&engine, &cluster, epoch).await?;
    }
    let history = history(&cluster).await?;
    let causes: Vec<_> = history.epochs.iter().map(|epoch| (epoch.number, epoch.cause.clone())).collect();
    ensure!(causes == [(2, EpochCause::Left("it was left".into()))], "{causes:?}");
    ensure!(history.gaps.is_empty(), "{:?}", history.gaps);
    let gaps = overview(&cluster).await?.timeline.gaps;
    ensure!(gaps.iter().any(|gap| gap.epoch == 2 && gap.cause == "it was left" && gap.explained), "{gaps:?}");
    Ok(())
}

/// Captures the log of an epoch to its end, until it rests on a snapshot.
async fn capture_all(engine: &Arc<dyn Engine>, cluster: &ClusterRepository, epoch: u64) -> Result<()> {
    let tuning =
        Tuning { poll: Duration::from_millis(100), snapshot_pause: Duration::from_secs(1), ..Tuning::default() };
    let (agent, cancel) = (Agent::new(engine.clone(), cluster.clone()).tuned(tuning), CancellationToken::new());
    let token = cancel.clone();
    let running = tokio::spawn(async move { agent.run(token).await });
    until("everything is captured, and rests on a snapshot", async || {
        let ranges = overview(cluster).await?.timeline.ranges;
        Ok(ranges.iter().any(|range| range.epoch == epoch && range.end == point(END)))
    })
    .await?;
    cancel.cancel();
    running.await?.map_err(Into::into)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_branches_off_rests_on_the_snapshot_before_that() -> Result<()> {
    // Amid the log, and where no slice ends any more.
    for common in [SWITCH, BEGIN] {
        let folder = tempfile::tempdir()?;
        let counting = Arc::new(Counting { at: Arc::new(AtomicU64::new(BEGIN)), ..Counting::default() });
        let engine: Arc<dyn Engine> = counting.clone();
        let (_, cluster) = protected(&*engine, folder.path()).await?;
        capture_all(&engine, &cluster, 1).await?;
        let before = cluster.slices().await?;
        counting.left.store(true, Ordering::SeqCst);
        counting.common.store(common, Ordering::SeqCst);
        capture_all(&engine, &cluster, 2).await?;

        let history = history(&cluster).await?;
        let branch = history.epochs[0].branch.clone().expect("it branches off");
        let bounds = before.iter().flat_map(|slice| [&slice.name.start, &slice.name.end]).map(number);
        ensure!(Some(number(&branch.at)) == bounds.filter(|bound| *bound <= common).max(), "{branch:?}");
        ensure!((branch.epoch, branch.stream.as_str()) == (1, "diary"));
        ensure!(history.snapshots.len() == 1, "another one was taken");
        let own = history.slices.iter().filter(|slice| slice.epoch == 2).map(|slice| number(&slice.name.start)).min();
        ensure!(own == Some(number(&branch.at)), "{own:?}");
        let timeline = overview(&cluster).await?.timeline;
        ensure!(timeline.gaps.is_empty() && timeline.unbacked.is_empty(), "{timeline:?}");
        let whole = timeline.ranges.last().filter(|range| (&range.start, &range.end) == (&point(BEGIN), &point(END)));
        ensure!(whole.is_some_and(|range| range.epoch == 2), "{timeline:?}");
        let left = timeline.ranges.first().filter(|range| range.start == branch.at && range.epoch == 1);
        ensure!(left.is_some_and(|range| range.left_behind.as_deref() == Some("it was left")), "{timeline:?}");
        // Nothing that was stored before was touched.
        let after = cluster.slices().await?;
        ensure!(before.iter().all(|slice| after.contains(slice)));
        let (progress, never) = (Progress::default(), CancellationToken::new());
        let verified = verify(&engine, &cluster, None, &progress, &never).await?;
        ensure!(verified.findings.is_empty(), "{:?}", verified.findings);
    }
    Ok(())
}
