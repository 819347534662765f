//! `delete-backup`.

use hindsight_catalog::{SnapshotSort, Wish};
use hindsight_format::SnapshotKind;

use super::removal::{self, Flags, older_than};
use crate::context::Context;
use crate::exit::Failure;

/// Delete snapshots
///
/// The plan is shown first, with what could not be restored any more; nothing is deleted before it is
/// confirmed. With --older-than, what restoring to that time or later needs stays. The last snapshot
/// that PITR rests on is not deleted while PITR is on. The captured log stays: see delete-pitr and
/// cleanup.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight delete-backup 2021-02-03T08:08:36Z\n  \
    hindsight delete-backup --older-than 30d --dry-run\n  \
    hindsight delete-backup --older-than 2021-02-01 --type selective --yes")]
pub(crate) struct Args {
    /// The snapshot
    #[arg(value_name = "NAME", conflicts_with_all = ["older_than", "kind"])]
    name: Option<String>,
    /// All that are older than a time, or a number of days such as 30d
    #[arg(long, value_name = "T|Nd")]
    older_than: Option<String>,
    /// Only of this type: logical, physical, incremental or selective
    #[arg(short = 't', long = "type", value_name = "TYPE", requires = "older_than")]
    kind: Option<String>,
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
    let flags = Flags { yes: args.yes, dry_run: args.dry_run };
    removal::run(args.wish()?, "delete-backup", flags, context).await
}

impl Args {
    fn wish(&self) -> Result<Wish, Failure> {
        let sort = match self.kind.as_deref() {
            None => None,
            Some("logical") => Some(SnapshotSort::Full(SnapshotKind::Logical)),
            Some("physical") => Some(SnapshotSort::Full(SnapshotKind::Physical)),
            Some("incremental") => Some(SnapshotSort::Full(SnapshotKind::Incremental)),
            Some("selective") => Some(SnapshotSort::Selective),
            Some(other) => {
                return Err(Failure::usage(format!("there is no type of snapshot {other:?}"))
                    .hint("the types are logical, physical, incremental and selective"));
            }
        };
        match (&self.name, &self.older_than) {
            (Some(name), _) => Ok(Wish::Snapshot(name.clone())),
            (None, Some(time)) => Ok(Wish::Snapshots { before: older_than(time)?, sort }),
            (None, None) => Err(Failure::usage("what to delete was not said")
                .hint("name a snapshot, or say --older-than with a time or a number of days")),
        }
    }
}
