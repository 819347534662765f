//! `delete-pitr`.

use hindsight_catalog::Wish;

use super::removal::{self, Flags, older_than};
use crate::context::Context;
use crate::exit::Failure;

/// Delete captured log
///
/// Snapshots stay, and can be restored as they are. With --older-than, what restoring to that time or
/// later needs stays. While PITR is on, so does what leads from its last base to the present, also
/// with --all. The plan is shown first, with what could not be restored any more; nothing is deleted
/// before it is confirmed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight delete-pitr --older-than 7d --dry-run\n  \
    hindsight delete-pitr --older-than 2021-02-01T00:00:00 --yes\n  \
    hindsight delete-pitr --all")]
pub(crate) struct Args {
    /// What is older than a time, or a number of days such as 30d
    #[arg(long, value_name = "T|Nd", conflicts_with = "all", required_unless_present = "all")]
    older_than: Option<String>,
    /// All of it
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long, short_alias = 'f', alias = "force")]
    yes: bool,
    /// Show the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Accepted for the sake of scripts: a deletion is always waited for
    #[arg(short, long, hide = true)]
    wait: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let before = args.older_than.as_deref().map(older_than).transpose()?;
    let flags = Flags { yes: args.yes, dry_run: args.dry_run };
    removal::run(Wish::Log { before }, "delete-pitr", flags, context).await
}
