//! The verbs: each reads its flags, calls the jobs, prints a report.

pub(crate) mod agent;
pub(crate) mod backup;
pub(crate) mod cancel_backup;
pub(crate) mod cleanup;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod delete_backup;
pub(crate) mod delete_pitr;
pub(crate) mod describe_backup;
pub(crate) mod describe_restore;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod oplog_replay;
pub(crate) mod repository;
pub(crate) mod restore;
pub(crate) mod roles;
pub(crate) mod status;
pub(crate) mod verify;
pub(crate) mod version;

mod begun;
mod confirm;
mod pbm_config;
mod removal;

use hindsight_catalog::{History, Timeline};
use hindsight_format::ClusterConfig;
use hindsight_jobs::{Captured, Overview};
use hindsight_repository::ClusterRepository;

use crate::args::Verb;
use crate::cluster::to_read;
use crate::context::Context;
use crate::exit::{Exit, Failure};

/// Does what `verb` says.
pub(crate) async fn run(verb: &Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Backup(args) => backup::run(args, context).await,
        Verb::List(args) => list::run(args, context).await,
        Verb::Status(args) => status::run(args, context).await,
        Verb::Config(args) => config::run(args, context).await,
        Verb::DescribeBackup(args) => describe_backup::run(args, context).await,
        Verb::Restore(args) => restore::run(args, context).await,
        Verb::OplogReplay(args) => oplog_replay::run(args, context).await,
        Verb::DescribeRestore(args) => describe_restore::run(args, context).await,
        Verb::Verify(args) => verify::run(args, context).await,
        Verb::DeleteBackup(args) => delete_backup::run(args, context).await,
        Verb::DeletePitr(args) => delete_pitr::run(args, context).await,
        Verb::Cleanup(args) => cleanup::run(args, context).await,
        Verb::CancelBackup(args) => cancel_backup::run(args, context).await,
        Verb::Logs(args) => logs::run(args, context).await,
        Verb::Agent(args) => agent::run(args, context).await,
        Verb::Repository(args) => repository::run(args, context).await,
        Verb::Roles(args) => roles::run(args, context),
        Verb::Version(args) => version::run(args, &context.out),
        Verb::Completion(args) => completion::run(args, context.program),
    }
}

/// What there is to tell while nothing is stored; says where nothing is.
fn nothing(context: &Context) -> Overview {
    context.out.note(&format!("Note: nothing is stored at {} yet", context.spec().url));
    Overview {
        descriptor: None,
        config: ClusterConfig::default(),
        history: History::default(),
        timeline: Timeline::default(),
        epoch: 1,
        restores: Vec::new(),
        damaged: Vec::new(),
        proofs: Vec::new(),
        operation: None,
        restoring: Vec::new(),
        capture: Captured::Idle(None),
    }
}

/// The cluster that the repository must keep for there to be anything to describe.
async fn stored_cluster(context: &Context) -> Result<ClusterRepository, Failure> {
    let nothing = || {
        Failure::new(Exit::Unknown, format!("nothing is stored at {} yet", context.spec().url))
            .hint("take a snapshot with `backup` first, or name another --repository")
    };
    let repository = context.repository().await?.ok_or_else(nothing)?;
    to_read(context, &repository).await?.ok_or_else(nothing)
}
