//! `oplog-replay`.

use hindsight_engine::Progress;
use hindsight_format::RestoreRecord;
use hindsight_jobs::{Replay, propose_replay, replay};
use serde::Serialize;

use super::confirm::confirm;
use super::restore::parse_point;
use crate::cluster::{connect, nothing_stored, to_restore};
use crate::context::Context;
use crate::exit::Failure;
use crate::output::Report;
use crate::progress;
use crate::text;

/// Apply a stretch of the stored log on top of what the database holds
///
/// For a state that came from elsewhere, such as a copy of the files: bring that back first, then
/// replay the log from its moment on. A restore needs no replay. Nothing is removed or checked
/// beforehand; operations that the data know already do no harm.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight oplog-replay --start 2021-02-07T02:00:00 --end 2021-02-07T02:59:59\n  \
    hindsight oplog-replay --start 1612663200,1 --end 1612666799,4 --cluster shop --uri 'mongodb://new1/?replicaSet=rs1'")]
pub(crate) struct Args {
    /// Where to begin: a time, or a position T,I (both inclusive)
    #[arg(long, value_name = "T")]
    start: String,
    /// Where to end: a time (just before it), or a position T,I (through it)
    #[arg(long, value_name = "T")]
    end: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Show the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Accepted for the sake of scripts: a replay is always waited for
    #[arg(short, long)]
    wait: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let engine = context.engine()?;
    let (from, to) = (parse_point(&args.start, &*engine)?, parse_point(&args.end, &*engine)?);
    let connected = connect(context).await?;
    let repository = context.repository().await?.ok_or_else(nothing_stored)?;
    let repository = context.unlocked(&repository).await?;
    let source = to_restore(context, &repository, &connected.probe.identity).await?;
    let planning = async {
        let (from, to) = (from.find(&*engine, &source, None).await?, to.find(&*engine, &source, None).await?);
        Ok::<_, Failure>(propose_replay(&*engine, &repository, &source, &from, &to).await?)
    };
    let plan = context.unless_stopped(planning).await?;
    let shown = ReplayPlan::of(&plan);
    if args.dry_run {
        return context.out.print(&shown);
    }
    context.out.say(&format!("{}\n", shown.text()))?;
    if !args.yes {
        let question = "Replay it on top of what is there? [y/N] ".to_owned();
        confirm(&shown.text(), question, context).await?;
    }
    context.journal.attach(&source, "replay");
    let progress = Progress::default();
    let starting = async { format!("Starting oplog replay of {}...\n", plan.stretch_text()) };
    let work = replay(&*engine, &plan, &progress, &context.stop);
    let (done, _) = progress::shown(context.out, &progress, starting, work).await;
    let (record, totals) = done.map_err(|error| context.told(error).also("what was applied until then stays"))?;
    context.out.print(&Replayed::of(shown, &record, totals.operations, totals.passed_over))
}

/// What would be done.
#[derive(Clone, Debug, Serialize)]
struct ReplayPlan {
    cluster: String,
    stretch: String,
    epoch: u64,
    slices: usize,
    stored_bytes: u64,
    into: String,
}

impl ReplayPlan {
    fn of(plan: &Replay) -> Self {
        let hosts: Vec<_> = plan.into.members.iter().map(|member| member.host.as_str()).collect();
        Self {
            cluster: plan.source.name().to_owned(),
            stretch: plan.stretch_text(),
            epoch: plan.stretch.epoch,
            slices: plan.stretch.slices.len(),
            stored_bytes: plan.stretch.stored_bytes,
            into: hosts.join(","),
        }
    }
}

impl Report for ReplayPlan {
    fn text(&self) -> String {
        let slices = text::things(self.slices as u64, "slice", "slices");
        format!(
            "Replay plan:\n  History of  {}\n  Replayed    {}\n  To read     {slices}, {}\n  Onto        {}, on top of what is there\n",
            self.cluster,
            self.stretch,
            text::bytes(self.stored_bytes),
            self.into,
        )
    }
}

/// What was done.
#[derive(Debug, Serialize)]
struct Replayed {
    plan: ReplayPlan,
    name: String,
    operations: u64,
    passed_over: u64,
    took: String,
}

impl Replayed {
    fn of(plan: ReplayPlan, record: &RestoreRecord, operations: u64, passed_over: u64) -> Self {
        let took = record.finished_at.map(|end| text::took(record.started_at, end)).unwrap_or_default();
        Self { plan, name: record.id.clone(), operations, passed_over, took }
    }
}

impl Report for Replayed {
    fn text(&self) -> String {
        let passed_over = match self.passed_over {
            0 => String::new(),
            n => format!("\n  passed over  {} to what is not there (any more)", text::things(n, "write", "writes")),
        };
        format!(
            "Replay {} is done.\n  applied      {}{passed_over}\n  took         {}\n",
            self.name,
            text::things(self.operations, "operation", "operations"),
            self.took
        )
    }
}
