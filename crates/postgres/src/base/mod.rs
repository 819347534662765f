//! A base backup, from the bytes that a server sends to what is wrong with them. No I/O.
//!
//! [`TarReader`] takes its archives apart, [`BackupManifest`] is the server's own list of what is in them, and a
//! [`Verifier`] compares the two, and looks at the pages of relations if it is asked to.

mod checksum;
mod manifest;
mod page;
mod stored;
mod tar;
mod verify;

pub use checksum::{Checksum, Checksummer};
pub use manifest::{BackupManifest, Expected, ManifestError, ManifestReader, WalRange};
pub use page::{PageProblem, PageSizes, page_checksum};
pub use stored::{StoredBase, StoredDatabase, StoredTablespace};
#[cfg(test)]
pub(crate) use tar::tests as tar_tests;
pub use tar::{BLOCK, TarError, TarEvent, TarHeader, TarKind, TarProblem, TarReader};
pub use verify::{Finding, Report, Verified, Verifier, VerifyOptions, Wrong};
