//! Taking a base backup: the files of a cluster as they are read, and the log that makes them one state.
//!
//! Files are copied at different moments while the server goes on. What makes them whole is the log from where the backup
//! began to where it ended; the snapshot keeps it, so that it can be restored alone.

use std::collections::BTreeMap;

use hindsight_engine::{BackupType, EngineError, FailureKind, Job, Result, SnapshotRequest};
use hindsight_format::{FORMAT_VERSION, SnapshotKind, SnapshotManifest, SnapshotSource, SnapshotTotals, StreamPart};
use jiff::Timestamp;

use super::contents;
use super::copied_database::CopiedDatabase;
use super::copy::{self, Copied};
use super::own_log::OwnLog;
use super::parent;
use super::source::{self, Source};
use super::stored::StoredBase;
use super::verify::VerifyOptions;
use crate::address::Address;
use crate::follow::Reserved;
use crate::wire::{BackupOptions, Connection, ManifestChecksums};

/// The configuration without which no server starts, where it is kept among the data.
const CONFIGURATION: &[u8] = b"postgresql.conf";

/// How often it is begun anew because a database was copied meanwhile.
const ANEW: u32 = 2;

/// Takes a base backup of the first server of `address` that will do, stores all of it but the manifest of the snapshot, and
/// has compared every file with the server's own manifest by then.
///
/// # Errors
/// The server cannot be backed up or fails; files or pages are damaged, which are named; the repository fails; or it was
/// cancelled.
pub async fn take(address: &Address, job: &Job, request: &SnapshotRequest) -> Result<SnapshotManifest> {
    accept(request)?;
    // Whatever is dropped ends by itself: sessions, and with them the slot, tasks and unfinished objects.
    tokio::select! {
        taken = attempts(address, job, request) => taken,
        () = job.cancel.cancelled() => Err(EngineError::cancelled()),
    }
}

async fn attempts(address: &Address, job: &Job, request: &SnapshotRequest) -> Result<SnapshotManifest> {
    let mut left = ANEW;
    loop {
        match steps(address, job, request).await {
            Err(error) if left > 0 && CopiedDatabase::is_cause_of(&error) => {
                job.progress.warn(format!("{error}: it was begun anew"));
                job.cluster.delete_snapshot(&request.id).await?;
                left -= 1;
            }
            taken => return taken,
        }
    }
}

async fn steps(address: &Address, job: &Job, request: &SnapshotRequest) -> Result<SnapshotManifest> {
    let started_at = Timestamp::now();
    job.progress.step("asking the server", None);
    let source = Source::find(address).await?;
    let reserved = Reserved::new(source.address()).await?;
    let (mut session, system) = source.replication().await?;
    same_system(&session, system, reserved.system())?;

    let since = match &request.parent {
        Some(parent) => Some(parent::hand_over(&mut session, &source, system, job, parent).await?),
        None => None,
    };
    job.progress.step("waiting for a checkpoint", None);
    let checksums = ManifestChecksums::Crc32c;
    let label = format!("hindsight {}", request.id);
    let options =
        BackupOptions { label, manifest: Some(checksums), incremental: since.is_some(), ..BackupOptions::default() };
    let backup = session.base_backup(&options).await;
    let backup = backup.map_err(|error| parent::told(error, request.parent.as_ref(), source.standby))?;
    let (start, tablespaces) = (backup.start(), backup.tablespaces().to_vec());
    let mut log = OwnLog::start(job, request, reserved, start).await?;

    let pages = source.checksums.then_some((source.pages, start.lsn));
    let options = VerifyOptions { checksums, pages, increments: since.map(|_| source.pages) };
    let copied = tokio::select! {
        copied = copy::copy(job, request, backup, options) => copied?,
        failed = log.failed() => return Err(failed),
    };
    let Copied { mut objects, manifest, files, restored, end, mut connection } = copied;

    job.progress.step("closing the log", None);
    let history = source::history(&mut connection, end.timeline).await?;
    let own = log.finish(end.lsn).await?;
    connection.close().await;
    let names = source.names().await?;

    let databases = contents::databases(names.databases(), &manifest, &restored);
    let base = StoredBase {
        system_identifier: system,
        server_version: source.version.clone(),
        major: source.major,
        wal_segment_size: source.segment_size.bytes(),
        wal_block_size: source.wal_block_size,
        block_size: source.block_size,
        relation_blocks: source.relation_blocks,
        data_checksums: source.checksums,
        standby: source.standby,
        start: start.lsn,
        start_timeline: start.timeline,
        stop: end.lsn,
        timeline: end.timeline,
        history,
        tablespaces: names.of(&tablespaces),
        databases,
        settings: source.settings.clone(),
        increment: since.map(|since| contents::increment(since, &manifest, &restored)),
        configured_outside: manifest.expect(CONFIGURATION).is_none(),
    };
    objects.push(base.store(job, request).await?);
    let totals = SnapshotTotals {
        collections: base.databases.len() as u64,
        documents: files,
        raw_bytes: objects.iter().map(|object| object.raw_bytes).sum::<u64>() + own.raw_bytes,
        stored_bytes: objects.iter().map(|object| object.stored_bytes).sum::<u64>() + own.stored_bytes,
        log_records: own.records,
    };
    let last = own.last(names.at);
    Ok(SnapshotManifest {
        format: FORMAT_VERSION,
        id: request.id.clone(),
        engine: crate::NAME.to_owned(),
        kind: if since.is_some() { SnapshotKind::Incremental } else { SnapshotKind::Physical },
        parent: request.parent.as_ref().map(|parent| parent.id.clone()),
        epoch: request.epoch,
        namespaces: Vec::new(),
        started_at,
        finished_at: Timestamp::now(),
        source: SnapshotSource {
            member: source.host.to_string(),
            role: source.role().to_owned(),
            server_version: source.version.split(' ').next().unwrap_or_default().to_owned(),
            compatibility_version: Some(source.major.to_string()),
        },
        streams: BTreeMap::from([(
            crate::STREAM.to_owned(),
            StreamPart { first: own.first, last, slices: own.slices },
        )]),
        objects,
        totals,
        hashes: None,
        created_by: env!("CARGO_PKG_VERSION").to_owned(),
        seal: None,
    })
}

/// Refuses a type of backup that is not taken.
///
/// # Errors
/// It is one of those.
pub fn accept_type(wanted: Option<BackupType>) -> Result<()> {
    let refused = |what: &str, hint: &str| Err(EngineError::new(FailureKind::Unsupported, what).hint(hint));
    match wanted {
        None | Some(BackupType::Physical | BackupType::Incremental) => Ok(()),
        Some(BackupType::Logical) => refused(
            "backups of the type logical are not taken of PostgreSQL",
            "use --type physical: it holds the whole cluster, and what follows it in the log can be restored on top of it",
        ),
        Some(BackupType::External) => refused(
            "backups of the type external cannot be taken of PostgreSQL",
            "use --type physical; PITR keeps what changes after it",
        ),
    }
}

/// Refuses what cannot be taken, though its type can.
fn accept(request: &SnapshotRequest) -> Result<()> {
    let refused = |what: String, hint: &str| Err(EngineError::new(FailureKind::Unsupported, what).hint(hint));
    if (request.wanted == Some(BackupType::Incremental)) != request.parent.is_some() {
        return refused(
            "an incremental backup builds upon another, and no other backup does".to_owned(),
            "name the type incremental together with the snapshot to build upon",
        );
    }
    if !request.namespaces.is_empty() {
        return refused(
            "a backup of PostgreSQL cannot be limited to some databases or tables: it is of the cluster's files"
                .to_owned(),
            "leave out --ns",
        );
    }
    if request.resume {
        return refused(
            format!(
                "the backup {} cannot be gone on with: PostgreSQL sends its files from the beginning only",
                request.id
            ),
            "start a new backup",
        );
    }
    Ok(())
}

/// A host's name may lead to several servers.
fn same_system(session: &Connection, found: u64, before: u64) -> Result<()> {
    if found == before {
        return Ok(());
    }
    let what = format!("{} leads to several servers: to the cluster {before}, and then to {found}", session.host());
    Err(EngineError::new(FailureKind::Address, what).hint("name one server in the connection string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_taken_is_refused_with_a_way_out() {
        let request = |wanted| SnapshotRequest {
            id: "2021-02-03T08:08:36Z".to_owned(),
            epoch: 1,
            wanted,
            parent: None,
            namespaces: Vec::new(),
            compression_level: 3,
            parallel: 0,
            hash: true,
            checkpoint: 1 << 30,
            resume: false,
        };
        for wanted in [None, Some(BackupType::Physical)] {
            assert!(accept_type(wanted).is_ok() && accept(&request(wanted)).is_ok());
        }
        assert!(accept_type(Some(BackupType::Incremental)).is_ok());
        let types = [BackupType::Logical, BackupType::External].map(|wanted| accept_type(Some(wanted)));
        let others = [
            // There is nothing to build upon.
            request(Some(BackupType::Incremental)),
            SnapshotRequest { namespaces: vec!["shop.*".to_owned()], ..request(None) },
            SnapshotRequest { resume: true, ..request(None) },
        ];
        for refused in types.into_iter().chain(others.iter().map(accept)) {
            let error = refused.unwrap_err();
            assert_eq!(error.kind, FailureKind::Unsupported);
            assert!(error.hint.is_some());
        }
    }
}
