//! Everything that is stored: key names and stored structs, and nothing else.
//!
//! This crate does no I/O and knows no database. `docs/repository-format.md` documents what is
//! here field by field; change the two together, and raise [`FORMAT_VERSION`] when an older
//! reader would misread what a newer writer stores.

mod ancestry;
mod cluster;
mod config;
mod damaged;
mod footer;
mod journal;
mod keys;
mod lease;
mod place;
mod position;
mod proof;
mod repository;
mod restore;
mod slice;
mod snapshot;

pub use ancestry::{Ancestry, Inherited};
pub use cluster::{Branch, ClusterDescriptor, ClusterIdentity, EpochCause, EpochRecord, GapRecord, StoredGap};
pub use config::{BackupConfig, ClusterConfig, ConfigError, PitrConfig, RestoreConfig, RetentionConfig};
pub use damaged::DamagedRecord;
pub use footer::{Footer, FrameEntry, LogSummary, ObjectKind, OpCounts};
pub use journal::{JournalBatch, JournalLine, Severity};
pub use keys::{CHECKPOINTS, Keys, NameError, check_name};
pub use lease::{CancelRequest, LeaseHolder, LeaseRecord, LeaseState, Operation, OperationKind};
pub use place::Place;
pub use position::{Point, Position, PositionError, format_time, format_utc};
pub use proof::{ProofKind, ProofRecord};
pub use repository::{PutIfAbsent, RecipientsRecord, RepositoryDescriptor, SEALED_SUFFIX, WITHHELD};
pub use restore::{RestoreRecord, RestoreState, RestoreTotals};
pub use slice::{SliceName, StoredSlice};
pub use snapshot::{
    ObjectRef, SnapshotHashes, SnapshotKind, SnapshotManifest, SnapshotSeal, SnapshotSource, SnapshotTotals,
    StreamPart, UnfinishedSnapshot,
};

/// Version of everything this crate describes. A reader refuses what is newer than it knows.
pub const FORMAT_VERSION: u32 = 1;

/// Version in the descriptor of a sealed repository, which programs that cannot open one refuse.
/// What is inside the sealed objects has [`FORMAT_VERSION`].
pub const SEALED_FORMAT_VERSION: u32 = 2;
