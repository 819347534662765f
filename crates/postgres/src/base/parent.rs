//! The base that an incremental one builds upon.

use hindsight_engine::{EngineError, FailureKind, Job, Result};
use hindsight_format::SnapshotManifest;

use super::source::Source;
use super::stored::{BACKUP_MANIFEST, StoredBase};
use crate::Lsn;
use crate::wire::{Connection, Error as WireError};

/// The first version that notes which blocks change.
const FIRST: u32 = 17;
/// The functions of a server that find that a backup cannot build upon another.
const PREPARES: &str = "PrepareForIncrementalBackup";
const WAITS: &str = "WaitForWalSummarization";

/// Gives the server the manifest of `parent`, as it has sent it, and tells where that backup began.
///
/// # Errors
/// The server cannot take incremental backups, or not one upon this parent; or what is stored of that cannot be read.
pub(super) async fn hand_over(
    session: &mut Connection,
    source: &Source,
    system: u64,
    job: &Job,
    parent: &SnapshotManifest,
) -> Result<Lsn> {
    require_summaries(source.summarizes, &source.host.to_string(), &source.version)?;
    let base = StoredBase::load(&job.cluster, parent).await?;
    if base.system_identifier != system {
        let what =
            format!("snapshot {} is of another cluster ({}, this is {system})", parent.id, base.system_identifier);
        return Err(EngineError::new(FailureKind::Unsupported, what).hint("take a full backup, with --type physical"));
    }
    let object = job.cluster.snapshot_object(parent, BACKUP_MANIFEST).await?;
    let object =
        object.ok_or_else(|| EngineError::damaged(format!("snapshot {} has no manifest of the server", parent.id)))?;
    session.begin_upload().await?;
    for index in 0..object.footer().frames.len() {
        session.upload(&object.frame(index).await?).await?;
    }
    session.end_upload().await?;
    Ok(base.start)
}

/// Refuses a server that does not know which blocks have changed.
fn require_summaries(summarizes: Option<bool>, host: &str, version: &str) -> Result<()> {
    let refused = |what: String, hint: &str| Err(EngineError::new(FailureKind::Unsupported, what).hint(hint));
    match summarizes {
        Some(true) => Ok(()),
        Some(false) => refused(
            format!("{host} does not note which blocks change: its summarize_wal is off"),
            "run ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf(); there, then take a full backup, which \
             incremental ones can build upon",
        ),
        None => refused(
            format!("incremental backups are taken of PostgreSQL {FIRST} and later, and {host} runs {version}"),
            "use --type physical; PITR keeps what changes after it",
        ),
    }
}

/// What it means that a backup of a primary or a `standby` does not begin.
pub(super) fn told(error: WireError, parent: Option<&SnapshotManifest>, standby: bool) -> EngineError {
    let (Some(parent), WireError::Refused { server, .. }) = (parent, &error) else { return error.into() };
    let what = match &server.detail {
        Some(detail) => format!("{} ({detail})", server.message),
        None => server.message.clone(),
    };
    let what = format!("no incremental backup can be taken upon {}: {what}", parent.id);
    let hint = match server.routine.as_deref() {
        // Its log would have more to say, whatever is the matter.
        Some(WAITS) => {
            "see what the server's log says of its WAL summarizer, or take a full backup, with --type physical"
        }
        // A standby cannot make checkpoints: its backups begin at the last one that it has replayed.
        Some(PREPARES) if standby => {
            "if little has been written since then, run CHECKPOINT on the primary, and try again once the standby has replayed it; \
             else take a full backup, with --type physical"
        }
        Some(PREPARES) => {
            "take a full backup, with --type physical: the server does not know all that has changed since. Its \
             summarize_wal has to be on from one backup to the next, and wal_summary_keep_time longer than that"
        }
        _ => return error.into(),
    };
    EngineError::new(FailureKind::Unsupported, what).hint(hint).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_do_not_know_what_changed_are_refused_with_a_way_out() {
        assert!(require_summaries(Some(true), "db:5432", "17.2").is_ok());
        let off = require_summaries(Some(false), "db:5432", "17.2").unwrap_err();
        assert!(off.what.contains("summarize_wal is off") && off.hint.unwrap().contains("ALTER SYSTEM"));
        let old = require_summaries(None, "db:5432", "15.18").unwrap_err();
        assert!(old.what.contains("17 and later") && old.what.contains("db:5432 runs 15.18"), "{}", old.what);
        assert!(old.hint.unwrap().contains("--type physical"));
    }
}
