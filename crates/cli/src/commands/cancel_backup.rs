//! `cancel-backup`.

use hindsight_jobs::cancel_backup;
use serde::Serialize;

use super::stored_cluster;
use crate::context::Context;
use crate::exit::Failure;
use crate::output::Report;

/// Stop the backup that is running, on whatever machine
///
/// It ends within seconds, and what it had stored is removed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hindsight cancel-backup")]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, context: &Context) -> Result<(), Failure> {
    let cluster = stored_cluster(context).await?;
    let operation = cancel_backup(&cluster).await?;
    context.journal.attach(&cluster, "cancel-backup");
    tracing::info!("backup {} is asked to stop", operation.id);
    context.out.print(&Begun { backup: operation.id })
}

#[derive(Serialize)]
struct Begun {
    backup: String,
}

impl Report for Begun {
    fn text(&self) -> String {
        "Backup cancellation has started\n".to_owned()
    }
}
