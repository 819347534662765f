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

/// A directory of this machine: a new cluster begins in it, or takes the place of the one that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The directory.
    pub path: PathBuf,
    /// Whether what is restored takes the place of a cluster that stands still there, and is kept aside.
    pub in_place: bool,
    /// Whether a server is left running in it.
    pub start: bool,
    /// The port of that server; none for the one that its configuration names.
    pub port: Option<u16>,
    /// The server's program, or the folder that it is in; none to look for it where it usually is.
    pub program: Option<PathBuf>,
    /// Where parts of the data go that were kept elsewhere (PostgreSQL: tablespaces, by name, number or folder).
    pub mapped: Vec<(String, PathBuf)>,
}

impl Directory {
    /// A new directory in which a server is left running, as it is configured.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), in_place: false, start: true, port: None, program: None, mapped: Vec::new() }
    }
}
