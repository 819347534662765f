//! `describe-restore`.

use hindsight_format::check_name;

use super::stored_cluster;
use crate::context::Context;
use crate::engines;
use crate::exit::{Exit, Failure};
use crate::report::restores::RestoreReport;

/// Show all that is known about one restore
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight list --restore\n  \
    hindsight describe-restore 2021-02-07T03:10:00Z")]
pub(crate) struct Args {
    /// Its name, as `list --restore` shows it
    #[arg(value_name = "NAME")]
    name: String,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let cluster = stored_cluster(context).await?;
    let found = match check_name(&args.name, "restore name") {
        Ok(()) => cluster.restore(&args.name).await?,
        Err(_) => None,
    };
    let record = found.ok_or_else(|| {
        Failure::new(Exit::Unknown, format!("there is no restore {:?}", args.name))
            .hint("`list --restore` shows those there were")
    })?;
    let restoring = hindsight_jobs::overview(&cluster).await?.restoring;
    context.out.print(&RestoreReport::of(&record, &restoring, engines::words(&record.into.engine)))
}
