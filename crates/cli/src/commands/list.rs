//! `list`.

use jiff::Timestamp;

use super::nothing;
use crate::cluster::to_read;
use crate::context::Context;
use crate::exit::Failure;
use crate::report::listing::Listing;
use crate::report::restores::Restores;

/// Show the snapshots, and the times that can be restored
///
/// Needs no database when the repository keeps one cluster only, or with --cluster. All times are
/// UTC; a range can be restored at any second in it, both ends included.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight list\n  \
    hindsight list --cluster rs0 --repository s3://backups/shop\n  \
    hindsight list --restore\n  \
    hindsight list -o json")]
pub(crate) struct Args {
    /// Show the restores instead
    #[arg(long)]
    restore: bool,
    /// Show also log that no base snapshot leads into
    #[arg(long)]
    unbacked: bool,
    /// Show the last N only
    #[arg(long, value_name = "N")]
    size: Option<usize>,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let overview = match context.repository().await? {
        None => nothing(context),
        Some(repository) => match to_read(context, &repository).await? {
            None => nothing(context),
            Some(cluster) => hindsight_jobs::overview(&cluster).await?,
        },
    };
    // What is 0 in pbm is all.
    let size = args.size.filter(|size| *size > 0);
    if args.restore {
        return context.out.print(&Restores::of(&overview, size));
    }
    context.out.print(&Listing::of(&overview, size, args.unbacked, Timestamp::now(), context.program))
}
