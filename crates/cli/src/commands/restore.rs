//! `restore`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hindsight_catalog::{Target, parse_time};
use hindsight_engine::{Destination, Directory, Engine, Progress, Selection, Spoken, Words};
use hindsight_format::{OperationKind, RestoreRecord, RestoreState};
use hindsight_jobs::{Finished, Proposal, RestoreRequest, history_meant, propose, restore};
use hindsight_repository::ClusterRepository;
use jiff::Timestamp;

use super::begun::begun;
use super::confirm::confirm;
use super::stored_cluster;
use crate::cluster::{connect, engine_of, nothing_stored, to_restore};
use crate::context::Context;
use crate::engines;
use crate::exit::Failure;
use crate::output::Report;
use crate::progress;
use crate::report::plan::{PlanReport, Restored, next_steps};
use crate::report::restores::{RestoreReport, whole};
use crate::report::written;
use crate::text;

/// Bring the database back to a moment of its past
///
/// After a restore to a time T the data are exactly what they were just before T: everything that
/// was committed before T, nothing else. What did not exist then does not exist afterwards. T is
/// read as UTC unless it says otherwise. The plan is shown first; nothing is touched before it is
/// confirmed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight restore --time 2021-02-07T02:59:59\n  \
    hindsight restore --time 2021-02-07T03:59:59+01:00 --dry-run\n  \
    hindsight restore --time 1612666799,4\n  \
    hindsight restore --time latest --yes\n  \
    hindsight restore 2021-02-03T08:08:36Z\n  \
    hindsight restore --time 2021-02-07T02:59:59 --ns shop.orders\n  \
    hindsight restore --time 2021-02-07T02:59:59 --ns-from shop.orders --ns-to shop.orders_then\n  \
    hindsight restore --time latest --cluster shop --uri 'mongodb://new1/?replicaSet=rs1'\n  \
    hindsight restore --time 2021-02-07T02:59:59 --target-dir /srv/postgresql/before --port 5433\n  \
    hindsight restore --time 2021-02-07T02:59:59 --target-dir /var/lib/postgresql/15/main --in-place")]
pub(crate) struct Args {
    /// The snapshot to restore as it is
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// The restore point: a time (just before it), a position such as T,I (through it), or `latest`
    #[arg(long, value_name = "T")]
    time: Option<String>,
    /// The snapshot to begin with [default: the newest that leads to the restore point]
    #[arg(long, value_name = "NAME")]
    base_snapshot: Option<String>,
    /// The history to restore from, as if no later epoch had begun: for what the server left behind in a failover
    #[arg(long, value_name = "N", requires = "time", value_parser = clap::value_parser!(u64).range(1..))]
    epoch: Option<u64>,
    /// Only these: db.collection, or db.* for a whole database
    #[arg(long, value_name = "NS,..", value_delimiter = ',')]
    ns: Vec<String>,
    /// Restore this collection, or db.*, under another name, and leave the present one as it is
    #[arg(long, value_name = "NS")]
    ns_from: Option<String>,
    /// The other name, which must be free
    #[arg(long, value_name = "NS")]
    ns_to: Option<String>,
    /// Restore into a new cluster in this directory, or in place of the one there, where the kind of database allows that; needs no
    /// connection
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,
    /// Let it take the place of the stopped cluster in that directory, which is kept aside
    #[arg(long, requires = "target_dir")]
    in_place: bool,
    /// Make the new cluster ready, but leave no server running in it
    #[arg(long, requires = "target_dir")]
    no_start: bool,
    /// Port of the server in it [default: the one that its configuration names]
    #[arg(long, value_name = "N", requires = "target_dir", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The server's program, or the folder that it is in [env: HINDSIGHT_PG_BIN for PostgreSQL; default: where it usually is]
    #[arg(long, value_name = "PATH", requires = "target_dir")]
    program: Option<PathBuf>,
    /// Where a part of the data goes that was kept elsewhere, such as a tablespace, by name; may be given several times
    #[arg(long, alias = "tablespace-map", value_name = "NAME=DIR", requires = "target_dir", value_parser = mapping)]
    map: Vec<(String, PathBuf)>,
    /// Connections that insert at the same time, 0 chooses [default: restore.numInsertionWorkers]
    #[arg(long, value_name = "N", visible_alias = "parallel", alias = "num-parallel-collections", value_parser = clap::value_parser!(u32).range(0..=64))]
    num_insertion_workers_per_collection: Option<u32>,
    /// Bytes to insert per second at most, such as 20M, 0 for any number [default: restore.rateLimitMib]
    #[arg(long, value_name = "RATE", value_parser = text::size)]
    rate_limit: Option<u64>,
    /// Do not read the data through before the target is touched: damage in them is then found too late
    #[arg(long)]
    skip_check: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Show the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Accepted for the sake of scripts: a restore is always waited for
    #[arg(short, long)]
    wait: bool,
}

/// The restore point, as it was typed.
pub(super) struct Point {
    spoken: Spoken,
    /// The text, when it has no zone.
    taken_as_utc: Option<String>,
}

impl Point {
    fn known(target: Target) -> Self {
        Self { spoken: Spoken::Target(target), taken_as_utc: None }
    }

    /// Which it is in the history of `source`.
    pub(super) async fn find(
        &self,
        engine: &dyn Engine,
        source: &ClusterRepository,
        epoch: Option<u64>,
    ) -> Result<Target, Failure> {
        match &self.spoken {
            Spoken::Target(target) => Ok(target.clone()),
            Spoken::ToFind(text) => Ok(engine.find(source, &history_meant(source, epoch).await?, text).await?),
        }
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let selection = Selection::from_flags(&args.ns, args.ns_from.as_deref(), args.ns_to.as_deref())?;
    let Asked { engine, point, source, destination } = match &args.target_dir {
        None => args.connected(context).await?,
        Some(path) => args.offline(path, context).await?,
    };
    let request = RestoreRequest {
        target: context.unless_stopped(point.find(&*engine, &source, args.epoch)).await?,
        base: args.base_snapshot.clone(),
        epoch: args.epoch,
        selection,
        destination,
        parallel: args.num_insertion_workers_per_collection,
        rate_limit: args.rate_limit,
        skip_check: args.skip_check,
    };
    let proposal = context.unless_stopped(propose(&*engine, source.repository(), &source, request)).await?;
    let plan = PlanReport::of(&proposal, engine.words(), point.taken_as_utc.as_deref(), context.program);
    if args.dry_run {
        return context.out.print(&plan);
    }
    context.out.say(&format!("{}\n", plan.text()))?;
    if !args.yes {
        confirm(&plan.text(), plan.question(), context).await?;
    }
    context.journal.attach(&source, "restore");
    let (Finished { record, next }, warnings) = carry_out(&*engine, &proposal, context).await?;
    let done = told(&record, &next, &proposal, engine.words(), context.program);
    let restore = RestoreReport::of(&record, &[], engine.words());
    context.out.print(&Restored { plan, restore, warnings, next, done })
}

/// What a restore is asked of, and of whom.
struct Asked {
    engine: Arc<dyn Engine>,
    point: Point,
    source: ClusterRepository,
    destination: Destination,
}

fn mapping(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("write NAME=DIR".to_owned()),
    }
}

impl Args {
    /// Into a database that runs.
    async fn connected(&self, context: &Context) -> Result<Asked, Failure> {
        let (engine, destination) = (context.engine()?, Destination::Connected);
        engine.accept(&destination)?;
        let point = self.point(&*engine, context.program)?;
        let connected = connect(context).await?;
        let repository = context.repository().await?.ok_or_else(nothing_stored)?;
        let repository = context.unlocked(&repository).await?;
        let source = to_restore(context, &repository, &connected.probe.identity).await?;
        Ok(Asked { engine, point, source, destination })
    }

    /// Into something new: what is stored says which engine it takes.
    async fn offline(&self, path: &Path, context: &Context) -> Result<Asked, Failure> {
        let source = context.unless_stopped(stored_cluster(context)).await?;
        let engine = context.unless_stopped(engine_of(&source)).await?;
        let name = source.descriptor().await?.map(|own| own.identity.engine).unwrap_or_default();
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let destination = Destination::Directory(Directory {
            path: absolute(path),
            in_place: self.in_place,
            start: !self.no_start,
            port: self.port,
            program: engines::program(&name, self.program.as_deref()),
            mapped: self.map.iter().map(|(name, path)| (name.clone(), absolute(path))).collect(),
        });
        engine.accept(&destination)?;
        let point = self.point(&*engine, context.program)?;
        let source = context.unlocked(source.repository()).await?.cluster(source.name())?;
        Ok(Asked { engine, point, source, destination })
    }

    fn point(&self, engine: &dyn Engine, program: &str) -> Result<Point, Failure> {
        let forms =
            format!("`{program} restore NAME` restores a snapshot as it is, `{program} restore --time T` any moment");
        match (&self.name, &self.time) {
            (None, None) => Err(Failure::usage("what to restore was not said").hint(forms)),
            (Some(name), Some(_)) => Err(Failure::usage("a snapshot and a time were both given").hint(format!(
                "{forms}; to restore a time from the snapshot {name}, say --time T --base-snapshot {name}"
            ))),
            (Some(_), None) if self.base_snapshot.is_some() => {
                Err(Failure::usage("--base-snapshot goes with --time: a snapshot is restored from itself").hint(forms))
            }
            (Some(name), None) => Ok(Point::known(Target::Snapshot(name.clone()))),
            (None, Some(time)) => parse_point(time, engine),
        }
    }
}

pub(super) fn parse_point(text: &str, engine: &dyn Engine) -> Result<Point, Failure> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("latest") {
        return Ok(Point::known(Target::Latest));
    }
    if let Some(spoken) = engine.parse_point(text) {
        return Ok(Point { spoken, taken_as_utc: None });
    }
    let time = parse_time(text, Timestamp::now()).map_err(|error| Failure::usage(error.to_string()))?;
    let taken_as_utc = time.assumed_utc.then(|| text.to_owned());
    Ok(Point { taken_as_utc, ..Point::known(Target::Before(time.time)) })
}

async fn carry_out(
    engine: &dyn Engine,
    proposal: &Proposal,
    context: &Context,
) -> Result<(Finished, Vec<String>), Failure> {
    let progress = Progress::default();
    let since = Timestamp::now();
    let starting = |name: &str| format!("Starting restore {name} from '{}'....\n", proposal.plan.base.id);
    let beginning = async { starting(&begun(&proposal.source, OperationKind::Restore).await) };
    let work = restore(engine, proposal, &progress, &context.stop);
    let (done, told) = progress::shown(context.out, &progress, beginning, work).await;
    let finished = match done {
        Ok(finished) => finished,
        Err(error) => return Err(with_consequences(context.told(error), since, proposal, context.program).await),
    };
    if !told {
        context.out.say(&starting(&finished.record.id))?;
    }
    Ok((finished, progress.warnings()))
}

/// How long a repository that may be away is asked for that.
const PATIENCE: Duration = Duration::from_secs(5);

/// A failed restore must say in what state it left the target.
async fn with_consequences(failure: Failure, since: Timestamp, proposal: &Proposal, program: &str) -> Failure {
    let Ok(Ok(records)) = tokio::time::timeout(PATIENCE, proposal.source.restores()).await else {
        return failure.also(
            "the target may be half restored: see `list --restore` when the repository answers, and restore again",
        );
    };
    match records.into_iter().rev().find(|record| record.started_at >= since) {
        // It did not come as far as a record, or to nothing more than that.
        None => failure,
        // It replaces the target in one step, which it may have come to or not.
        Some(record) if record.kept.is_some() && record.state != RestoreState::Success => {
            failure.also(&whole(&record, program).unwrap_or_default())
        }
        Some(record) if !record.touched => failure.also("nothing was changed in the target"),
        Some(record) if record.state == RestoreState::Success => failure,
        Some(record) if proposal.target.is_none() && matches!(proposal.request.destination, Destination::Directory(_)) => failure.also(&format!(
            "the new cluster in {} is not whole: remove what is there, and restore again (see `{program} describe-restore {}`)",
            record.into_hosts, record.id
        )),
        Some(record) => failure.also(&format!(
            "the target is now half restored, and its data are not whole until a restore has succeeded: \
             run `{program} restore` again (see `{program} describe-restore {}`)",
            record.id
        )),
    }
}

/// What a restore did, and what to do next.
fn told(record: &RestoreRecord, next: &[String], proposal: &Proposal, words: &Words, program: &str) -> String {
    let totals = &record.totals;
    let took = record.finished_at.map(|end| text::took(record.started_at, end)).unwrap_or_default();
    let reached = record.reached.as_ref().map(|at| format!("  reached        {at}\n")).unwrap_or_default();
    let mut lines: Vec<String> = next.iter().map(|step| format!("Next: {step}")).collect();
    // Who begins something new knows best what becomes of it.
    if lines.is_empty() || proposal.target.is_some() {
        lines.push(next_steps(proposal, program));
    }
    let next = lines.join("\n");
    format!(
        "Restore {} is done.\n  \
         restore point  {}\n\
         {reached}  \
         restored       {}\n  \
         log            {} taken into account\n  \
         took           {took}\n{next}\n",
        record.id,
        record.target,
        written(words, totals),
        text::things(totals.log_records, "record", "records"),
    )
}
