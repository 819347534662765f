//! Restoring: unpack the base, and let a server replay the log that it is given, up to a cut that is made here.
//!
//! The server never decides where to stop. What it is served ends at the record that was resolved beforehand, and that is
//! also its target: it ends its recovery there, or says what keeps it from that.

mod combine;
mod leave;
pub(crate) mod log;
mod place;
mod prepare;
pub(crate) mod reach;
pub(crate) mod recover;
mod segments;
pub mod serve;
pub(crate) mod settings;
mod unpack;
mod walk;

use std::collections::BTreeSet;
use std::sync::Arc;

use hindsight_catalog::RestorePlan;
use hindsight_engine::{Destination, EngineError, Job, Preview, RestoreOptions, Restored, Result, Selection};
use hindsight_format::{Position, RestoreTotals};
use hindsight_repository::ClusterRepository;

use crate::base::{BackupManifest, load_backup_manifest};
use crate::feed::blocking;
use crate::server::Private;
use crate::{Lsn, TimelineId, of_position};
use leave::{leave, next, start};
use log::{StoredLog, position};
use prepare::Ready;
use recover::{look, recover};
use settings::Standing;
use walk::{Walked, walk};

pub use prepare::{accept, prepare};
pub use segments::{LogSlice, Piece, Segments, SegmentsError, Wanted};

/// Carries out a plan that was prepared.
///
/// # Errors
/// What is stored cannot be read, or no server can be made of it.
pub async fn run(
    job: &Job,
    plan: &RestorePlan,
    selection: &Selection,
    destination: &Destination,
    preview: &Preview,
    options: &RestoreOptions,
) -> Result<Restored> {
    let command = serve::command(&std::env::current_exe()?);
    run_asking(job, plan, selection, destination, preview, options, command).await
}

/// The same with another `restore_command`, which has to come to [`serve::ask`] with the socket `hindsight.restore/wal`.
///
/// # Errors
/// Those of [`run`].
#[doc(hidden)]
pub async fn run_asking(
    job: &Job,
    plan: &RestorePlan,
    selection: &Selection,
    destination: &Destination,
    preview: &Preview,
    options: &RestoreOptions,
    command: String,
) -> Result<Restored> {
    let ready = Ready::of(&job.cluster, plan, selection, destination).await?;
    let (base, programs) = (&ready.base, &ready.programs);
    let directory = prepare::directory(destination)?;
    let reaches = preview.reaches.as_ref().map(|reached| &reached.point);
    let reaches = reaches.ok_or_else(|| EngineError::damaged("the restore was not prepared"))?;
    // Everything up to the gate only reads. Damage found here leaves no trace.
    let Read { log, walked, manifests } = read(job, plan, &ready, position(reaches)?.0, options.skip_check).await?;
    job.check()?;
    options.gate.cross().await?;

    job.progress.step("unpacking the base", Some(unpack::raw_bytes(&ready.chain)));
    let place = ready.place.clone();
    let making = place.clone();
    let make = move || {
        let made = making.make()?;
        let private = Private::create(made.data().clone())?;
        Ok((Arc::new(made), private))
    };
    let (made, private) = blocking(make).await?;
    let unpacked = unpack::run(job, &ready.chain, (&place, &made), manifests, ready.sizes).await?;
    let before = settings::put_aside(made.data())?;
    // From here on its owner may do anything in it.
    made.give()?;
    job.progress.step("replaying the log", log.segments().cut().since(base.start));
    let server = recover(job, programs, &private, base, log, walked.last.start, command).await?;
    job.progress.step("looking at what was restored", None);
    let (server, facts) = look(programs, &private, base, server).await?;
    job.check()?;
    job.progress.step("writing all of it to disk", None);
    let (port, subscribed) = (directory.port, facts.subscriptions > 0);
    let configured_outside = base.configured_outside.then(|| base.clone());
    let standing = Standing { before, port, subscribed, configured_outside };
    leave(server, private, made.clone(), standing).await?;
    if directory.start {
        job.progress.step("starting the server", None);
    }
    let started = start(programs, made.data(), directory.start).await?;
    if let Some(warning) = started.warning() {
        job.progress.warn(warning);
    }
    Ok(Restored {
        totals: RestoreTotals {
            collections: facts.databases,
            documents: unpacked.files,
            bytes: unpacked.bytes,
            indexes: 0,
            log_records: walked.records,
        },
        reached: Some(reaches.clone()),
        next: next(programs, &place, &started, &facts),
    })
}

/// What was read before anything is touched.
struct Read {
    log: Arc<StoredLog>,
    walked: Walked,
    /// Those of the chain.
    manifests: Vec<BackupManifest>,
}

/// Reads all of the log up to the cut, and, unless that is not wanted, all of the data.
async fn read(job: &Job, plan: &RestorePlan, ready: &Ready, cut: Lsn, skip_data: bool) -> Result<Read> {
    let (base, chain) = (&ready.base, &ready.chain);
    let log = StoredLog::of(&job.cluster, plan, base, Some(cut)).await?;
    let log = Arc::new(knowing_others(log, &job.cluster).await?);
    let mut manifests = Vec::with_capacity(chain.len());
    for snapshot in [&plan.base].into_iter().chain(&plan.parents) {
        manifests.push(load_backup_manifest(&job.cluster, snapshot).await?);
    }
    let listed: Vec<_> = chain.iter().map(|link| link.id.as_str()).zip(&manifests).collect();
    combine::require_whole(&listed)?;
    let bytes = cut.since(base.start).unwrap_or(0);
    let (what, bytes) = match skip_data {
        false => ("reading the log and the data through", bytes.saturating_add(unpack::stored_bytes(chain))),
        true => ("reading the log through", bytes),
    };
    job.progress.step(what, Some(bytes));
    let checking = async {
        for link in chain {
            match skip_data {
                false => unpack::check(job, link).await?,
                true => unpack::open(&job.cluster, link).await?,
            }
        }
        Ok(())
    };
    let (walked, ()) = tokio::try_join!(walk(job, &log, base), checking)?;
    walked.require(ready.place.owner())?;
    Ok(Read { log, walked, manifests })
}

/// Tells the log of all timelines that the repository knows, so that the server begins one that is none of them.
async fn knowing_others(mut log: StoredLog, cluster: &ClusterRepository) -> Result<StoredLog> {
    let mut known: BTreeSet<TimelineId> = BTreeSet::new();
    let mut see = |at: &Position| known.extend(of_position(at).map(|(_, timeline): (Lsn, _)| timeline));
    for slice in cluster.slices().await? {
        see(&slice.name.start.position);
        see(&slice.name.end.position);
    }
    for snapshot in cluster.list_snapshots().await?.records {
        for part in snapshot.streams.values() {
            see(&part.first.position);
            see(&part.last.position);
        }
    }
    log.segments_mut().taken(known);
    Ok(log)
}
