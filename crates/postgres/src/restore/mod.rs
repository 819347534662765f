//! Restoring: unpack the base, and let a server replay the log that it is given, up to a cut that is made here.
//!
//! The server never decides where to stop. What it is served ends at the record that was resolved beforehand, and that is
//! also its target: it ends its recovery there, or says what keeps it from that.

mod combine;
mod configuration;
mod leave;
pub(crate) mod log;
mod place;
mod prepare;
mod present;
pub(crate) mod reach;
pub(crate) mod recover;
mod segments;
pub mod serve;
pub(crate) mod settings;
mod swap;
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
use configuration::Configuration;
use leave::{leave, next, start};
use log::{StoredLog, position};
use place::{Made, Place};
use prepare::Ready;
use present::Present;
use recover::{Facts, look, recover};
use settings::Standing;
use unpack::Unpacked;
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
    let ready = Ready::of(&job.cluster, plan, selection, destination, preview.kept.as_deref()).await?;
    let (place, programs) = (&ready.place, &ready.programs);
    let directory = prepare::directory(destination)?;
    let reaches = preview.reaches.as_ref().map(|reached| &reached.point);
    let reaches = reaches.ok_or_else(|| EngineError::damaged("the restore was not prepared"))?;
    // Damage that is found here leaves no trace.
    let read = read(job, plan, &ready, position(reaches)?.0, options.skip_check).await?;
    let records = read.walked.records;
    job.check()?;
    let in_place = place.replaces();
    // Beside the directory that it replaces, a restored one does not touch the target yet.
    if in_place.is_none() {
        options.gate.cross().await?;
    }
    let made = make(job, &ready, read, directory.port, command).await;
    let (made, unpacked, facts) = made.map_err(|error| match in_place {
        Some(present) => swap::unchanged(error, present),
        None => error,
    })?;
    match in_place {
        Some(_) => job.progress.step("taking the place of what was there", None),
        None if directory.start => job.progress.step("starting the server", None),
        None => {}
    }
    let started = match in_place {
        Some(present) => swap::take_place(programs, present, &*options.gate, directory.start, directory.port).await?,
        None => start(programs, made.data(), directory.start, None).await?,
    };
    if let Some(warning) = started.warning() {
        job.progress.warn(warning);
    }
    Ok(Restored {
        totals: RestoreTotals {
            collections: facts.databases,
            documents: unpacked.files,
            bytes: unpacked.bytes,
            indexes: 0,
            log_records: records,
        },
        reached: Some(reaches.clone()),
        next: next(programs, place, &started, &facts),
    })
}

/// Makes the directory: unpacks it, lets a server recover in it, looks at that, and leaves it as it is to stay.
async fn make(
    job: &Job,
    ready: &Ready,
    read: Read,
    port: Option<u16>,
    command: String,
) -> Result<(Arc<Made>, Unpacked, Facts)> {
    let Ready { base, programs, place, chain, sizes } = ready;
    let Read { log, walked, manifests } = read;
    job.progress.step("unpacking the base", Some(unpack::raw_bytes(chain)));
    let making = place.clone();
    let make = move || {
        let made = making.make()?;
        let private = Private::create(made.data().clone())?;
        private.own().write(present::SPACES, &making.spaces())?;
        Ok((Arc::new(made), private))
    };
    let (made, private) = blocking(make).await?;
    let unpacked = unpack::run(job, chain, (place, &made), manifests, *sizes).await?;
    let before = settings::put_aside(made.data())?;
    // From here on its owner may do anything in it.
    made.give()?;
    job.progress.step("replaying the log", log.segments().cut().since(base.start));
    let server = recover(job, programs, &private, base, log, walked.last.start, command).await?;
    job.progress.step("looking at what was restored", None);
    let (server, facts) = look(programs, &private, base, server).await?;
    job.check()?;
    job.progress.step("writing all of it to disk", None);
    let replaces = place.replaces().map(Present::open).transpose()?;
    let configured = replaces.as_ref().map(Configuration::of).transpose()?.is_some_and(|found| found.has_settings);
    let configured_outside = (base.configured_outside && !configured).then(|| base.clone());
    let standing = Standing { before, port, subscribed: facts.subscriptions > 0, configured_outside, replaces };
    if let Some(warning) = leave(server, private, made.clone(), standing).await? {
        job.progress.warn(warning);
    }
    if let Some(present) = place.replaces() {
        made.data().set_mode(present.mode() & place::ALLOWED)?;
    }
    job.check()?;
    Ok((made, unpacked, facts))
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
    let log = Arc::new(knowing_others(log, &job.cluster, &ready.place).await?);
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

/// Tells the log of all timelines that the repository knows, and a directory that is replaced, so that the server begins one that is none of them.
async fn knowing_others(mut log: StoredLog, cluster: &ClusterRepository, place: &Place) -> Result<StoredLog> {
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
    known.extend(place.replaces().into_iter().flat_map(Present::timelines));
    log.segments_mut().taken(known);
    Ok(log)
}
