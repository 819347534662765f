//! The folder of ours in a data directory, for as long as we work on it.

use std::fs;
use std::path::{Path, PathBuf};

use hindsight_engine::Result;

use super::{Folder, Owner, local};

/// Its name. That it is there says that the directory is not whole.
pub(crate) const PRIVATE: &str = "hindsight.restore";

/// A folder in a data directory that nobody but its owner gets into: for sockets, settings and files that are on their way.
#[derive(Debug)]
pub(crate) struct Private {
    data: Folder,
    own: Folder,
}

impl Private {
    /// Makes it.
    ///
    /// # Errors
    /// Those of the file system; it may be there already.
    pub(crate) fn create(data: Folder) -> Result<Self> {
        let own = data.make(PRIVATE)?;
        let about = "This directory is being restored by hindsight, or a restore into it was cut off: as long as this folder \
                     is here, it is not whole. Remove all of it before it is restored again.\n";
        own.write("README", about.as_bytes())?;
        Ok(Self { data, own })
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Folder {
        &self.data
    }

    /// The folder itself.
    pub(crate) fn own(&self) -> &Folder {
        &self.own
    }

    /// The path of the data directory.
    pub(crate) fn directory(&self) -> &Path {
        self.data.path()
    }

    /// Whose it is.
    pub(crate) fn owner(&self) -> &Owner {
        self.data.owner()
    }

    /// Where its sockets are: addresses of sockets have 107 bytes at most (unix(7)), paths of data directories can be longer.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.own.here()
    }

    /// Removes it: the directory is whole.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn remove(self) -> Result<()> {
        // Links in it are removed, not followed.
        fs::remove_dir_all(self.data.here().join(PRIVATE)).map_err(|error| local(self.own.path(), &error))
    }
}
