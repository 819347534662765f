//! `cleanup`.

use hindsight_catalog::Wish;

use super::removal::{self, Flags, older_than};
use crate::context::Context;
use crate::exit::Failure;

/// Delete snapshots and log that are older than a time, and what belongs to nothing
///
/// Every moment from that time on that can be restored stays so: the base that it needs, and the log
/// from there, are kept. What interrupted backups have left behind goes too. The plan is shown first,
/// with what could not be restored any more; nothing is deleted before it is confirmed. One that was
/// cut off is finished by the next.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight cleanup --older-than 30d\n  \
    hindsight cleanup --older-than 2021-02-01 --dry-run\n  \
    hindsight cleanup --older-than 30d --yes -o json\n\n\
    The agent does the same by itself: see retention.days and retention.count in `config`.")]
pub(crate) struct Args {
    /// A time, or a number of days such as 30d
    #[arg(long, value_name = "T|Nd")]
    older_than: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Show the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Accepted for the sake of scripts: a cleanup is always waited for
    #[arg(short, long, hide = true)]
    wait: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let wish = Wish::Everything { before: older_than(&args.older_than)? };
    removal::run(wish, "cleanup", Flags { yes: args.yes, dry_run: args.dry_run }, context).await
}
