//! `backup`.

use hindsight_engine::{BackupType, Progress, Selection};
use hindsight_format::OperationKind;
use hindsight_jobs::{BackupRequest, Resume, backup};

use super::begun::begun;
use crate::cluster::{connect, registered};
use crate::context::Context;
use crate::exit::Failure;
use crate::progress;
use crate::report::snapshot::{SnapshotReport, Taken, path};
use crate::text;

/// Take a snapshot of the database, and store it
///
/// The snapshot is consistent at one moment, its restore time, while the database goes on being
/// written to. With PITR on, every moment after that can be restored as well.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight backup\n  \
    hindsight backup --ns shop.*,crm.customers\n  \
    hindsight backup --type incremental\n  \
    hindsight backup --uri 'mongodb://me@db1,db2/?replicaSet=rs0' --repository s3://backups/shop")]
pub(crate) struct Args {
    /// Only these, where a part can be taken: db.collection, or db.* for a whole database
    #[arg(long, value_name = "NS,..", value_delimiter = ',')]
    ns: Vec<String>,
    /// zstd level, 1 to 19 [default: backup.compressionLevel]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=19))]
    compression_level: Option<i32>,
    /// Readers at the same time, 0 chooses [default: backup.numParallelCollections]
    #[arg(long, value_name = "N", visible_alias = "parallel", value_parser = clap::value_parser!(u32).range(0..=64))]
    num_parallel_collections: Option<u32>,
    /// Bytes to read per second at most, such as 20M, 0 for any number [default: backup.rateLimitMib]
    #[arg(long, value_name = "RATE", value_parser = text::size)]
    rate_limit: Option<u64>,
    /// Keep hashes of the data, for `verify --drill` to compare with, where the kind of database makes any; MongoDB locks
    /// databases against writes while it hashes them, twice [default: backup.hash]
    #[arg(long)]
    hash: bool,
    /// How it is made, as far as there is a choice: logical, physical, or incremental, which holds what has changed since
    /// another snapshot [default: by the kind of database]
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The snapshot that an incremental one builds upon [default: the newest]
    #[arg(long, value_name = "NAME", requires = "kind")]
    parent: Option<String>,
    /// Compression: zstd
    #[arg(long, value_name = "NAME", default_value = "zstd")]
    compression: String,
    /// Go on with a backup that was cut off: the newest, or the one of this name
    #[arg(long, value_name = "NAME", num_args = 0..=1, conflicts_with = "ns")]
    resume: Option<Option<String>>,
    /// Accepted for the sake of scripts: a backup is always waited for
    #[arg(short, long)]
    wait: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let request = args.request(context)?;
    // Before anybody is asked, or anything is made.
    context.engine()?.accept_type(request.wanted)?;
    let connected = connect(context).await?;
    let mut repository = context.unless_stopped(context.make_repository()).await?;
    if request.resume.is_some() || request.wanted == Some(BackupType::Incremental) {
        // What was stored has to be read again.
        repository = context.unlocked(&repository).await?;
    }
    let cluster = registered(context, &repository, &connected).await?;

    context.journal.attach(&cluster, "backup");
    let progress = Progress::default();
    let verb = if request.resume.is_some() { "Resuming" } else { "Starting" };
    let starting = |name: &str| format!("{verb} backup \"{name}\"....\n");
    let beginning = async { starting(&begun(&cluster, OperationKind::Backup).await) };
    let work = backup(&*connected.engine, &cluster, &request, &progress, &context.stop);
    let (taken, told) = progress::shown(context.out, &progress, beginning, work).await;
    let manifest = taken.map_err(|error| context.told(error))?;
    if !told {
        context.out.say(&starting(&manifest.id))?;
    }

    let protected = cluster.config().await?.1.pitr.enabled;
    let program = context.program;
    let next = (!protected).then(|| {
        format!("PITR is off: what comes after it is not kept. Switch it on with `{program} config --set pitr.enabled=true`.")
    });
    let report = SnapshotReport::of(&manifest, path(&cluster, &manifest.id), None, connected.engine.words());
    context.out.print(&Taken::of(report, progress.warnings(), next))
}

impl Args {
    fn request(&self, context: &Context) -> Result<BackupRequest, Failure> {
        let wanted = match self.kind.as_deref() {
            None => None,
            Some("logical") => Some(BackupType::Logical),
            Some("physical") => Some(BackupType::Physical),
            Some("incremental") => Some(BackupType::Incremental),
            Some("external") => Some(BackupType::External),
            Some(other) => {
                return Err(Failure::usage(format!("there is no type of backup {other:?}"))
                    .hint("leave out --type, or see the guide for those that the kind of database has"));
            }
        };
        if self.parent.is_some() && wanted != Some(BackupType::Incremental) {
            return Err(Failure::usage("only an incremental backup builds upon another")
                .hint("say --type incremental, or leave out --parent"));
        }
        if self.compression != "zstd" {
            context.out.note(&format!("Note: zstd is used, not {}: everything is stored with it", self.compression));
        }
        let selection = Selection::new(self.ns.clone())?;
        Ok(BackupRequest {
            wanted,
            parent: self.parent.clone(),
            namespaces: selection.patterns().to_vec(),
            compression_level: self.compression_level,
            parallel: self.num_parallel_collections,
            rate_limit: self.rate_limit,
            hash: self.hash.then_some(true),
            resume: self.resume.clone().map(|name| name.map_or(Resume::Newest, Resume::Named)),
            keep_unfinished: true,
        })
    }
}
