//! In place: a restored directory takes the place of the one that it is beside, which is kept.
//!
//! Two names are changed, one after the other, as no call of all systems exchanges them: who is cut off in between leaves all
//! that there was, and the next attempt says how to put it back.

use std::fs::File;
use std::path::Path;

use hindsight_engine::{EngineError, FailureKind, Gate, Result};

use super::leave::{Start, end, start};
use super::place::quoted;
use super::present::{Present, remove, require_still};
use crate::feed::blocking;
use crate::server::{Folder, Programs, local};

/// Lets what was restored take the place of the present directory, and starts the server in it, if that is `wanted`. Where that
/// fails, the present directory is put back.
///
/// # Errors
/// What could not be done, and what has become of either directory.
pub(super) async fn take_place(
    programs: &Programs,
    present: &Present,
    gate: &dyn Gate,
    wanted: bool,
    port: Option<u16>,
) -> Result<Start> {
    let old = present.open()?;
    // Recovering takes its time: somebody may have started it meanwhile.
    let still = old.clone();
    blocking(move || require_still(&still)).await.map_err(|error| unchanged(error, present))?;
    gate.cross().await.map_err(|error| unchanged(error, present))?;
    if let Some(failed) = swap(present, &old) {
        return failed.told(present, gate).await;
    }
    let new = present.open()?;
    let started = start(programs, &new, wanted, port).await;
    let error = match started.as_ref().map(Start::warning) {
        Ok(None) => return started,
        Ok(Some(why)) => EngineError::new(FailureKind::Server, why)
            .hint("see what keeps it from starting; --no-start restores all the same, and leaves the start to you"),
        Err(_) => started.err().unwrap_or_else(EngineError::cancelled),
    };
    let put_back = end(programs, &new).await.and_then(|()| back(present));
    Failed { error, put_back }.told(present, gate).await
}

/// Changes the two names; gives what went wrong.
fn swap(present: &Present, old: &Folder) -> Option<Failed> {
    let (directory, beside, kept) = (present.directory(), present.beside(), present.kept());
    if let Err(error) = Folder::move_to(directory, &kept) {
        return Some(Failed { error, put_back: Ok(()) });
    }
    // A server that was started in the very moment goes on in it, whatever it is called.
    let moved = require_still(old).and_then(|()| Folder::move_to(&beside, directory));
    if let Err(error) = moved {
        return Some(Failed { error, put_back: Folder::move_to(&kept, directory) });
    }
    // What is written from now on is gone if the names are not what they are.
    let error = sync(directory).err()?;
    Some(Failed { error, put_back: back(present) })
}

/// Changes them back.
fn back(present: &Present) -> Result<()> {
    let (directory, beside, kept) = (present.directory(), present.beside(), present.kept());
    Folder::move_to(directory, &beside)?;
    Folder::move_to(&kept, directory)
}

/// Waits until a name is on disk.
fn sync(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| local(parent, &error))
}

/// Why the place could not be taken, and whether all is again what it was.
struct Failed {
    error: EngineError,
    put_back: Result<()>,
}

impl Failed {
    /// Tells what has become of the directories.
    async fn told(self, present: &Present, gate: &dyn Gate) -> Result<Start> {
        let Self { error, put_back } = self;
        let (directory, kept) = (present.directory(), present.kept());
        let Err(why) = put_back else {
            let error = unchanged(error, present);
            let Err(untold) = gate.undone().await else { return Err(error) };
            let hint = error.hint.clone().unwrap_or_default();
            return Err(error.hint(format!("{hint}; that it is as it was could not be noted: {untold}")));
        };
        let what = format!("{error}; and {} could not be put back: {why}", kept.display());
        Err(EngineError::new(error.kind, what).hint(format!(
            "when no server runs in either, put it back: mv {0} {0}.restored; mv {1} {0}",
            quoted(directory),
            quoted(&kept)
        )))
    }
}

/// A failure that leaves the present directory as it was, and what was restored beside it.
pub(super) fn unchanged(error: EngineError, present: &Present) -> EngineError {
    let (directory, beside) = (present.directory(), present.beside());
    if !beside.exists() {
        return error;
    }
    let remedy = format!(
        "{} is as it was; what was restored is in {}: remove it, and restore again: {}",
        directory.display(),
        beside.display(),
        remove(directory, &beside)
    );
    let hint = match &error.hint {
        Some(hint) => format!("{hint}; {remedy}"),
        None => remedy,
    };
    error.hint(hint)
}
