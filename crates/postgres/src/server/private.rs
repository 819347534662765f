//! The folder of ours in a data directory, for as long as we work on it.

use std::fs::{self, DirBuilder, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use hindsight_engine::Result;

use super::{Owner, local};

/// Its name. That it is there says that the directory is not whole.
pub(crate) const PRIVATE: &str = "hindsight.restore";

/// A folder in a data directory that nobody but its owner gets into: for sockets, settings and files that are on their way.
#[derive(Debug)]
pub(crate) struct Private {
    directory: PathBuf,
    owner: Owner,
    handle: File,
}

impl Private {
    /// Makes it.
    ///
    /// # Errors
    /// Those of the file system; it may be there already.
    pub(crate) fn create(directory: &Path, owner: &Owner) -> Result<Self> {
        let path = directory.join(PRIVATE);
        let make = || {
            DirBuilder::new().mode(0o700).create(&path)?;
            owner.give(&path)?;
            File::open(&path)
        };
        let handle = make().map_err(|error| local(&path, &error))?;
        let private = Self { directory: directory.to_owned(), owner: owner.clone(), handle };
        let about = "This directory is being restored by hindsight, or a restore into it was cut off: as long as this folder \
                     is here, it is not whole. Remove all of it before it is restored again.\n";
        private.write("README", about)?;
        Ok(private)
    }

    /// The data directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whose it is.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// A file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(PRIVATE).join(name)
    }

    /// The same folder by a short name that only this process knows: addresses of sockets have 107 bytes at most
    /// (unix(7)), paths of data directories can be longer.
    pub(crate) fn sockets(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }

    /// Writes a file of it, for its owner to read.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, text).and_then(|()| self.owner.give(&path)).map_err(|error| local(&path, &error))
    }

    /// Makes a folder in it, for its owner.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).and_then(|()| self.owner.give(&path)).map_err(|error| local(&path, &error))?;
        Ok(path)
    }

    /// Removes it: the directory is whole.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn remove(self) -> Result<()> {
        let path = self.directory.join(PRIVATE);
        fs::remove_dir_all(&path).map_err(|error| local(&path, &error))
    }
}
