//! Servers that are started here: their programs, as whom they run, how they are watched and ended.

mod folder;
mod owner;
mod private;
mod process;
mod programs;
mod running;

use std::ffi::OsString;
use std::io;
use std::path::Path;

use hindsight_engine::{EngineError, FailureKind};

pub(crate) use folder::Folder;
pub(crate) use owner::{Owner, user_named};
pub(crate) use private::{PRIVATE, Private};
pub(crate) use process::Server;
pub(crate) use programs::{Programs, major};
pub(crate) use running::{process_in, user_of};

/// What programs get of the environment, which otherwise holds what opens databases and stores.
const VARIABLES: [&str; 5] = ["PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH"];

/// The environment of programs that are run here, but for what is theirs alone.
pub(crate) fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

/// A failure of this machine, with the file that it is about.
pub(crate) fn local(path: &Path, error: &io::Error) -> EngineError {
    EngineError::new(FailureKind::Local, format!("{}: {error}", path.display()))
}
