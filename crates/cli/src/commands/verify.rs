//! `verify`.

use std::path::PathBuf;
use std::sync::Arc;

use hindsight_catalog::Target;
use hindsight_engine::{Engine, Progress};
use hindsight_format::check_name;
use hindsight_jobs::{DrillRequest, Planned, drill, history, verify};
use hindsight_repository::ClusterRepository;

use super::restore::parse_point;
use super::stored_cluster;
use crate::cluster::engine_of;
use crate::context::Context;
use crate::engines;
use crate::exit::{Exit, Failure};
use crate::progress;
use crate::report::verify::Verification;

/// Read everything that is stored, and make sure that it can be restored
///
/// Reads every object of a snapshot, or of the cluster, and checks checksums, structure, counts, and that the
/// log has no holes. With --drill it is restored as well, into a server that is started for that on this machine and
/// gone afterwards. Needs no database. The result is kept in the repository, and shown by `list` and `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight verify\n  \
    hindsight verify 2021-02-03T08:08:36Z\n  \
    hindsight verify 2021-02-03T08:08:36Z --drill\n  \
    hindsight verify --drill --time latest --program /opt/mongodb/bin/mongod")]
pub(crate) struct Args {
    /// The snapshot [default: everything of the cluster]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Everything of the cluster
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// Restore it into a server of its own, and let that check it
    #[arg(long)]
    drill: bool,
    /// The restore point of the drill, as for `restore`: a time, a position, or `latest` [default: the end of the snapshot, or latest]
    #[arg(long, value_name = "T", requires = "drill")]
    time: Option<String>,
    /// The server's program for the drill, or the folder that it is in [env: HINDSIGHT_MONGOD or HINDSIGHT_PG_BIN, by the
    /// kind of database; default: where it usually is]
    #[arg(long, alias = "mongod", value_name = "PATH", requires = "drill")]
    program: Option<PathBuf>,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        check_name(name, "snapshot name")
            .map_err(|_| Failure::new(Exit::Unknown, format!("there is no snapshot {name:?}")).hint("see `list`"))?;
    }
    let cluster = context.unless_stopped(stored_cluster(context)).await?;
    let cluster = context.unlocked(cluster.repository()).await?.cluster(cluster.name())?;
    context.journal.attach(&cluster, "verify");
    let engine = context.unless_stopped(engine_of(&cluster)).await?;
    let target = context.unless_stopped(args.target(&*engine, &cluster)).await?;
    let only = context.unless_stopped(args.only(&cluster, &target)).await?;

    let progress = Progress::default();
    let work = verify(&engine, &cluster, only.as_deref(), &progress, &context.stop);
    let (verified, _) = progress::shown(context.out, &progress, std::future::pending(), work).await;
    let verified = verified.map_err(|error| context.told(error))?;
    let drilled = match args.drill && verified.proof.passed {
        true => Some(args.drilled(&engine, &cluster, target, context).await?),
        false => None,
    };
    let report = Verification::of(verified, drilled, args.drill, engine.words());
    context.out.print(&report)?;
    if report.passed() { Ok(()) } else { Err(Failure::told(Exit::Damaged)) }
}

impl Args {
    /// What a drill restores.
    async fn target(&self, engine: &dyn Engine, cluster: &ClusterRepository) -> Result<Target, Failure> {
        match (&self.time, &self.name) {
            (Some(time), _) => parse_point(time, engine)?.find(engine, cluster, None).await,
            (None, Some(name)) => Ok(Target::Snapshot(name.clone())),
            (None, None) => Ok(Target::Latest),
        }
    }

    /// The snapshot that is read; none for everything. For a moment it is the base that leads there: its log is read
    /// by the drill itself. A moment that cannot be restored is refused before anything is read.
    async fn only(&self, cluster: &ClusterRepository, target: &Target) -> Result<Option<String>, Failure> {
        if self.time.is_none() {
            return Ok(self.name.clone());
        }
        let planned = Planned::of(cluster, &history(cluster).await?, None, target, self.name.as_deref()).await?;
        Ok(if self.all { None } else { Some(planned.plan.base.id) })
    }

    async fn drilled(
        &self,
        engine: &Arc<dyn Engine>,
        cluster: &ClusterRepository,
        target: Target,
        context: &Context,
    ) -> Result<hindsight_jobs::Drilled, Failure> {
        let base = self.name.clone().filter(|_| self.time.is_some());
        let name = &cluster.descriptor().await?.map(|own| own.identity.engine).unwrap_or_default();
        let program = engines::program(name, self.program.as_deref());
        let request = DrillRequest { target, base, program, folder: std::env::temp_dir() };
        let progress = Progress::default();
        let work = drill(engine, cluster, &request, &progress, &context.stop);
        let (drilled, _) = progress::shown(context.out, &progress, std::future::pending(), work).await;
        drilled.map_err(|error| context.told(error))
    }
}
