//! `logs`.

use std::time::Duration;

use clap::ValueEnum;
use hindsight_format::Severity;
use hindsight_jobs::{LogFilter, LogReader};

use super::stored_cluster;
use crate::context::Context;
use crate::exit::Failure;
use crate::report::logs::{Entry, Lines};

/// New lines are looked for this often.
const LOOK: Duration = Duration::from_secs(1);

/// Show what jobs did
///
/// Backups, restores, cleanups, changes of settings and the agents write down in the repository what
/// they do, wherever they run. A line has the time (UTC), its severity, the host, the job, and what it
/// said. Needs no database.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight logs\n  \
    hindsight logs --follow\n  \
    hindsight logs --tail 0 --severity W\n  \
    hindsight logs --event backup/2021-02-03T08:08:36Z\n  \
    hindsight logs --event pitr --node db1")]
pub(crate) struct Args {
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// The last N lines; 0 for all
    #[arg(short, long, value_name = "N", default_value = "20")]
    tail: usize,
    /// This severity, and worse
    #[arg(short, long, value_name = "LETTER", default_value = "I", ignore_case = true)]
    severity: Letter,
    /// Only of this kind of job, such as backup, restore, pitr, cleanup; or of one job, such as
    /// backup/NAME
    #[arg(short, long, value_name = "EVENT[/NAME]")]
    event: Option<String>,
    /// Only from hosts whose names begin so
    #[arg(short, long, value_name = "HOST")]
    node: Option<String>,
    /// Only of the job of this name
    #[arg(short = 'i', long, value_name = "NAME")]
    opid: Option<String>,
}

/// Severities, by their letters.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Letter {
    /// Debug
    #[value(name = "D")]
    Debug,
    /// Info
    #[value(name = "I")]
    Info,
    /// Warning
    #[value(name = "W")]
    Warning,
    /// Error
    #[value(name = "E", alias = "F")]
    Error,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let cluster = context.unless_stopped(stored_cluster(context)).await?;
    let filter = LogFilter {
        severity: match args.severity {
            Letter::Debug => Severity::Debug,
            Letter::Info => Severity::Info,
            Letter::Warning => Severity::Warning,
            Letter::Error => Severity::Error,
        },
        event: args.event.clone(),
        name: args.opid.clone(),
        host: args.node.clone(),
    };
    let mut reader = LogReader::new(cluster, filter);
    let last = context.unless_stopped(reader.tail(args.tail)).await?;
    if !args.follow {
        return context.out.print(&Lines::of(&last));
    }
    // One by one: a stream has no end at which a list could be closed.
    last.iter().try_for_each(|entry| context.out.print(&Entry::of(entry)))?;
    while !context.stop.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = context.stop.cancelled() => break,
        }
        let fresh = tokio::select! {
            fresh = reader.fresh() => fresh?,
            () = context.stop.cancelled() => break,
        };
        fresh.iter().try_for_each(|entry| context.out.print(&Entry::of(entry)))?;
    }
    Ok(())
}
