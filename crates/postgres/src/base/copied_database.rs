//! Databases that are copied as files while a base is taken, which no base stands.
//!
//! `ALTER DATABASE ... SET TABLESPACE` and `CREATE DATABASE ... STRATEGY file_copy` copy a folder, and log no more of it than where
//! from and where to. Whoever replays that empties the folder it leads to, and copies again: from the folder that it has itself
//! (`dbase_redo`, dbcommands.c). In a base that is the folder of a later moment. Of a database that was moved it is gone; the
//! server that recovers makes an empty one (`recovery_create_dbdir`), copies that, says nothing, and has lost the database. Of one
//! that others change it has what was changed after it was copied.
//!
//! The databases that `initdb` makes are copied from in any case: to be of use for that they are left alone.

use hindsight_engine::{EngineError, FailureKind};
use thiserror::Error;

use crate::Lsn;
use crate::wal::{Event, What};

/// The first OID that `initdb` does not give (`FirstNormalObjectId`, transam.h).
const FIRST_OF_USERS: u32 = 16_384;

/// A database that was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopiedDatabase {
    /// Where the log says so.
    pub(crate) at: Lsn,
    /// The OID of the one that was copied.
    pub(crate) database: u32,
}

impl CopiedDatabase {
    /// The copy that an event tells of, if it spoils a base that was being taken then.
    pub(crate) fn of(event: &Event) -> Option<Self> {
        match event.what {
            What::CopyDatabase { from, .. } if from >= FIRST_OF_USERS => {
                Some(Self { at: event.span.start, database: from })
            }
            _ => None,
        }
    }

    /// Why there is no base.
    pub(super) fn failure(self) -> EngineError {
        let what = format!(
            "the database with the OID {} was copied or moved to another tablespace (at {}) while the backup was taken, \
             which would be lost when it is restored",
            self.database, self.at
        );
        EngineError::new(FailureKind::Server, what)
            .hint("start the backup again when no ALTER DATABASE ... SET TABLESPACE or CREATE DATABASE ... STRATEGY file_copy runs")
            .caused_by(Spoilt)
    }

    /// Whether that is why there is none.
    pub(super) fn is_cause_of(error: &EngineError) -> bool {
        error.source.as_ref().is_some_and(|source| source.is::<Spoilt>())
    }
}

/// What tells a failure of this kind from others.
#[derive(Debug, Error)]
#[error("a database was copied")]
struct Spoilt;
