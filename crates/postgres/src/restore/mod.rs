//! Restoring: unpack the base, and let a server replay the log that it is given, up to a cut that is made here.
//!
//! The server never decides where to stop. What it is served ends at the record that was resolved beforehand, and that is
//! also its target: it ends its recovery there, or says what keeps it from that.

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
use std::path::Path;
use std::sync::Arc;

use futures::TryFutureExt as _;
use hindsight_catalog::RestorePlan;
use hindsight_engine::{Destination, EngineError, Job, Preview, RestoreOptions, Restored, Result, Selection};
use hindsight_format::{Position, RestoreTotals};
use hindsight_repository::ClusterRepository;

use crate::feed::blocking;
use crate::server::Private;
use crate::{Lsn, TimelineId, of_position};
use leave::{leave, next, start};
use log::{StoredLog, position};
use prepare::Ready;
use recover::{look, recover};
use walk::walk;

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

/// The same with another `restore_command`, which has to come to [`serve::ask`] with the socket `hindsight.restore/log`.
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
    // Everything up to the gate only reads. Damage found here leaves no trace.
    let ready = Ready::of(&job.cluster, plan, selection, destination).await?;
    let directory = prepare::directory(destination)?;
    let (base, id) = (&ready.base, &plan.base.id);
    let reaches = preview.reaches.as_ref().map(|reached| &reached.point);
    let reaches = reaches.ok_or_else(|| EngineError::damaged("the restore was not prepared"))?;
    let (cut, _) = position(reaches)?;
    let log = StoredLog::of(&job.cluster, plan, base, Some(cut)).await?;
    let log = Arc::new(knowing_others(log, &job.cluster).await?);
    let manifest = unpack::manifest(&job.cluster, &plan.base).await?;
    let log_bytes = cut.since(base.start).unwrap_or(0);
    let checking = async {
        match options.skip_check {
            false => unpack::check(job, id, &ready.parts).await,
            true => unpack::open(&job.cluster, id, &ready.parts).await,
        }
    };
    let (what, bytes) = match options.skip_check {
        false => ("reading the log and the data through", log_bytes + unpack::stored_bytes(&ready.parts)),
        true => ("reading the log through", log_bytes),
    };
    job.progress.step(what, Some(bytes));
    let (walked, ()) = tokio::try_join!(walk(job, &log, base), checking)?;
    walked.require_free_folders(ready.place.owner())?;
    job.check()?;
    options.gate.cross().await?;

    job.progress.step("unpacking the base", Some(ready.parts.iter().map(unpack::Part::raw_bytes).sum()));
    let place = Arc::new(ready.place.clone());
    let making = place.clone();
    let private = blocking(move || {
        making.make()?;
        Ok(Private::create(making.directory(), making.owner())?)
    })
    .await?;
    let work = async {
        let unpacked = unpack::run(job, plan, &ready.parts, &place, manifest).await?;
        place.give()?;
        settings::put_aside(&private)?;
        job.progress.step("replaying the log", Some(log_bytes));
        let server = recover(job, &ready.programs, &private, base, log, walked.last.start, command).await?;
        job.progress.step("looking at what was restored", None);
        let (server, facts) = look(&ready.programs, &private, base, server).await?;
        job.check()?;
        job.progress.step("writing all of it to disk", None);
        leave(server, private, &place, base, directory, &facts).await?;
        Ok((unpacked, facts))
    };
    let (unpacked, facts) = work.map_err(|error: EngineError| half_restored(error, place.directory())).await?;
    let started = match directory.start {
        true => {
            job.progress.step("starting the server", None);
            Some(start(&ready.programs, &place).await?)
        }
        false => None,
    };
    if let Some(Err(why)) = &started {
        job.progress.warn(format!("the server does not start as it is configured: {why}"));
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
        next: next(&ready.programs, &place, started.as_ref(), &facts),
    })
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

/// A failure after which a directory is of no use.
fn half_restored(error: EngineError, directory: &Path) -> EngineError {
    let remedy = format!("{} is half restored: remove it before you try again", directory.display());
    let hint = match &error.hint {
        Some(hint) => format!("{hint}; {remedy}"),
        None => remedy,
    };
    EngineError { hint: Some(hint), ..error }
}
