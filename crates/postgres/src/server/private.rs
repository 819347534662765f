//! The folder of ours in a data directory, for as long as we work on it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::Owner;

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
    pub(crate) fn create(directory: &Path, owner: &Owner) -> io::Result<Self> {
        let path = directory.join(PRIVATE);
        DirBuilder::new().mode(0o700).create(&path)?;
        owner.give(&path)?;
        let handle = File::open(&path)?;
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
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.path(name);
        fs::write(&path, text)?;
        self.owner.give(&path)
    }

    /// Removes it: the directory is whole.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(self.directory.join(PRIVATE))
    }
}
