//! `status`.

use clap::ValueEnum;
use hindsight_jobs::time_left;
use jiff::Timestamp;

use super::nothing;
use crate::cluster::{connect, to_read_beside};
use crate::context::Context;
use crate::exit::Failure;
use crate::report::pitr::Pitr;
use crate::report::status::{Backups, Cluster, Running, Status};

/// Show the cluster, the capture, what runs, and what is stored
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight status\n  \
    hindsight status -s pitr,running")]
pub(crate) struct Args {
    /// Only these sections
    #[arg(short, long, value_name = "SECTION,..", value_delimiter = ',')]
    sections: Vec<Section>,
}

/// The sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Members of the database, their roles and lag
    Cluster,
    /// What can be restored, and the capture
    Pitr,
    /// The backup or restore that runs
    Running,
    /// What is stored
    Backups,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let wanted = |section| args.sections.is_empty() || args.sections.contains(&section);
    let repository = context.repository().await?;
    let connected = connect(context).await;
    let cluster = match &repository {
        Some(repository) => to_read_beside(context, repository, &connected).await?,
        None => None,
    };
    let overview = match &cluster {
        Some(cluster) => hindsight_jobs::overview(cluster).await?,
        None => nothing(context),
    };
    let now = Timestamp::now();
    let captured = overview.captured_until().filter(|_| overview.config.pitr.enabled);
    let left = connected.as_ref().ok().zip(captured).and_then(|(now, at)| time_left(&now.probe, at, None));
    let mut status = Status { cluster: None, pitr: None, running: None, backups: None };
    if wanted(Section::Cluster) {
        let name = cluster.as_ref().map(|cluster| cluster.name());
        status.cluster = Some(Cluster::of(name, connected.as_ref().map(|connected| &connected.probe), left));
    }
    if wanted(Section::Pitr) {
        let mut pitr = Pitr::of(&overview, false, now, context.program);
        pitr.warn_of_room(left);
        if let Ok(now) = &connected {
            pitr.warn_of(&now.probe.warnings);
            if let Some(cluster) = &cluster {
                let waits = now.engine.synchronous(cluster).await.map_err(|error| error.what);
                pitr.tell_who_waits(overview.config.pitr.synchronous, waits.as_ref().map_err(String::as_str));
            }
        }
        status.pitr = Some(pitr);
    }
    if wanted(Section::Running) {
        status.running = Some(Running::of(overview.operation.as_ref(), now));
    }
    if wanted(Section::Backups) {
        let url = repository.as_ref().map_or(context.spec().url.as_str(), |repository| repository.url());
        let free = repository.as_ref().and_then(|repository| repository.free_bytes());
        status.backups = Some(Backups::of(&overview, url, free, now, context.program));
    }
    context.out.print(&status)
}
