//! Base backups: taking one, what is kept of it, and checking that.
//!
//! [`TarReader`] takes its archives apart, [`BackupManifest`] is the server's own list of what is in them, and a
//! [`Verifier`] compares the two, and looks at the pages of relations if it is asked to; these do no I/O. [`take`] stores
//! a backup that it verifies while it comes, one that holds all or, with an [`IncrementReader`], one that holds what changed; and [`SnapshotCheck`] verifies what is stored.

mod check;
mod checksum;
mod contents;
mod copied_database;
mod copy;
mod cut;
mod damage;
mod increment;
mod look;
mod manifest;
mod own_log;
mod page;
mod parent;
mod source;
mod stored;
mod take;
mod tar;
mod verify;

pub use check::SnapshotCheck;
pub use checksum::{Checksum, Checksummer};
pub use contents::describe;
pub(crate) use copied_database::CopiedDatabase;
#[cfg(test)]
pub(crate) use increment::tests as increment_tests;
pub use increment::{Change, Changed, IncrementError, IncrementReader, changes_of, with_changes_of};
#[cfg(test)]
pub(crate) use manifest::tests as manifest_tests;
pub use manifest::{BackupManifest, Expected, ManifestError, ManifestReader, WalRange};
pub use page::{PageProblem, PageSizes, page_checksum};
pub use stored::{StoredBase, StoredDatabase, StoredIncrement, StoredTablespace};
pub(crate) use stored::{archive_of, load_backup_manifest};
pub use take::{accept_type, take};
#[cfg(test)]
pub(crate) use tar::tests as tar_tests;
pub use tar::{BLOCK, TarError, TarEvent, TarHeader, TarKind, TarProblem, TarReader};
pub use verify::{Finding, Report, Verified, Verifier, VerifyOptions, Wrong};
