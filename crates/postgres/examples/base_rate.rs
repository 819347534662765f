//! How fast a base backup is: `base_rate CONNECTION-STRING FOLDER [LEVEL]` backs up a server into a new repository in a folder that
//! does not exist yet.

use std::env;
use std::time::Instant;

use hindsight_engine::{Job, Progress, SnapshotRequest, Throttle};
use hindsight_postgres::{Address, base};
use hindsight_repository::{Repository, RepositorySpec};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let address = Address::parse(&args.next().ok_or("which server?")?)?;
    let folder = args.next().ok_or("which folder?")?;
    let compression_level = args.next().map(|level| level.parse()).transpose()?.unwrap_or(3);
    let cluster = Repository::open_or_create(&RepositorySpec::new(folder)).await?.cluster("measured")?;
    let job =
        Job { cluster, progress: Progress::default(), cancel: CancellationToken::new(), throttle: Throttle::default() };
    let request = SnapshotRequest {
        id: "2026-03-01T10:00:00Z".to_owned(),
        epoch: 1,
        wanted: None,
        parent: None,
        namespaces: Vec::new(),
        compression_level,
        parallel: 0,
        hash: false,
        checkpoint: 0,
        resume: false,
    };
    let begin = Instant::now();
    let taken = base::take(&address, &job, &request).await.map_err(|error| error.to_string())?;
    let (seconds, totals) = (begin.elapsed().as_secs_f64(), taken.totals);
    println!(
        "{seconds:.2} s: {:.0} MB in {} files, {:.0} MB stored, {:.0} MB/s",
        totals.raw_bytes as f64 / 1e6,
        totals.documents,
        totals.stored_bytes as f64 / 1e6,
        totals.raw_bytes as f64 / 1e6 / seconds
    );
    Ok(())
}
