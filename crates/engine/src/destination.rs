//! Where the data of a restore go.

use std::path::PathBuf;

/// Where the data of a restore go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Into the database that the engine is connected to.
    Connected,
    /// Into a directory of this machine.
    Directory(Directory),
}

/// A directory of this machine, in which a new cluster begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The directory.
    pub path: PathBuf,
}
