//! A base backup, from the bytes that a server sends to what is wrong with them. No I/O.
//!
//! [`TarReader`] takes its archives apart, [`BackupManifest`] is the server's own list of what is in them.

mod checksum;
mod manifest;
mod tar;

pub use checksum::{Checksum, Checksummer};
pub use manifest::{BackupManifest, Expected, ManifestError, ManifestReader, WalRange};
pub use tar::{BLOCK, TarError, TarEvent, TarHeader, TarKind, TarProblem, TarReader};
