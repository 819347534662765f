//! `describe-backup`.

use hindsight_catalog::parents;
use hindsight_format::check_name;
use hindsight_jobs::history;

use super::stored_cluster;
use crate::context::Context;
use crate::engines;
use crate::exit::{Exit, Failure};
use crate::report::snapshot::{SnapshotReport, path};

/// Show all that is known about one snapshot
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight describe-backup 2021-02-03T08:08:36Z\n  \
    hindsight describe-backup 2021-02-03T08:08:36Z --with-contents")]
pub(crate) struct Args {
    /// Its name, as `list` shows it
    #[arg(value_name = "NAME")]
    name: String,
    /// List what is in it, such as collections with their documents, sizes and indexes
    #[arg(long, alias = "with-collections")]
    with_contents: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let mut cluster = stored_cluster(context).await?;
    if args.with_contents || context.has_identity() {
        cluster = context.unlocked(cluster.repository()).await?.cluster(cluster.name())?;
    }
    let found = match check_name(&args.name, "snapshot name") {
        Ok(()) => cluster.snapshot(&args.name).await?,
        Err(_) => None,
    };
    let Some(snapshot) = found else {
        let names = cluster.list_snapshots().await?.records.into_iter().map(|snapshot| snapshot.id).rev().take(5);
        let names = names.collect::<Vec<_>>().join(", ");
        let hint = if names.is_empty() { "there are none".to_owned() } else { format!("the newest are {names}") };
        return Err(Failure::new(Exit::Unknown, format!("there is no snapshot {:?}", args.name)).hint(hint));
    };
    let contents = match args.with_contents {
        true => Some(engines::offline(&snapshot.engine)?.describe(&cluster, &snapshot).await?),
        false => None,
    };
    let words = engines::words(&snapshot.engine);
    let report = SnapshotReport::of(&snapshot, path(&cluster, &snapshot.id), contents, words);
    if snapshot.parent.is_none() {
        return context.out.print(&report);
    }
    let history = history(&cluster).await?;
    match parents(&history, &snapshot) {
        Ok(chain) => context.out.print(&report.upon(chain.into_iter().map(|parent| parent.id.clone()).collect())),
        Err(torn) => {
            context.out.note(&format!("WARNING: {torn}"));
            context.out.print(&report)
        }
    }
}
