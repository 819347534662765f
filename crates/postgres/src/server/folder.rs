//! A folder that somebody else may work in at the same time.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hindsight_engine::{EngineError, FailureKind, Result};
use rustix::fs::{AtFlags, Mode, OFlags, fchmod, mkdirat, openat, renameat, statat, syncfs, unlinkat};

use super::{Owner, local};

/// A folder by its handle, for files of its owner's. Nothing that its owner does meanwhile leads us elsewhere: whatever its
/// path comes to mean, this stays the same folder; links in it are never followed; and what is given to its owner is new.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    owner: Owner,
    handle: Arc<File>,
}

impl Folder {
    /// One that is there.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(path: &Path, owner: &Owner) -> Result<Self> {
        Self::at(path, owner).map_err(|error| local(path, &error))
    }

    fn at(path: &Path, owner: &Owner) -> io::Result<Self> {
        let handle = openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty())?;
        Ok(Self { path: path.to_owned(), owner: owner.clone(), handle: Arc::new(handle.into()) })
    }

    /// One that is made where it is not there, as are those that it is in.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open_or_make(path: &Path, owner: &Owner) -> Result<Self> {
        match (Self::at(path, owner), path.parent().zip(path.file_name().and_then(|name| name.to_str()))) {
            (Err(error), Some((parent, name))) if error.kind() == io::ErrorKind::NotFound => {
                Self::open_or_make(parent, owner)?.make(name)
            }
            (opened, _) => opened.map_err(|error| local(path, &error)),
        }
    }

    /// As it is called.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whose its files are.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The same folder by a short name that only this process knows, whatever its path comes to mean.
    pub(crate) fn here(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }

    /// What there is to know of it.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn metadata(&self) -> Result<Metadata> {
        self.handle.metadata().map_err(|error| local(&self.path, &error))
    }

    /// Makes sure that it belongs to its owner.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub(crate) fn require_owned(&self) -> Result<()> {
        if self.owner.owns(&self.metadata()?) {
            return Ok(());
        }
        let what = format!("{} does not belong to {}", self.path.display(), self.owner.name());
        Err(EngineError::new(FailureKind::Local, what).hint("give it to that user, and try again"))
    }

    /// Sets its permissions.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        fchmod(&self.handle, Mode::from_raw_mode(mode)).map_err(|error| local(&self.path, &error.into()))
    }

    /// Takes it from its owner, so that nobody but us gets in.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn take(&self) -> Result<()> {
        Owner::us().take_file(&self.handle).map_err(|error| local(&self.path, &error))?;
        self.set_mode(0o700)
    }

    /// Gives it to its owner.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn give(&self) -> Result<()> {
        self.owner.give_file(&self.handle).map_err(|error| local(&self.path, &error))
    }

    /// A folder in it that is there.
    ///
    /// # Errors
    /// Those of the file system; it may be a link.
    pub(crate) fn folder(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        let handle = openat(&self.handle, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let handle = handle.map_err(|error| local(&path, &error.into()))?;
        Ok(Self { path, owner: self.owner.clone(), handle: Arc::new(handle.into()) })
    }

    /// Makes a folder in it, for its owner.
    ///
    /// # Errors
    /// Those of the file system; there may be something of this name.
    pub(crate) fn make(&self, name: &str) -> Result<Self> {
        mkdirat(&self.handle, name, Mode::RWXU).map_err(|error| local(&self.path.join(name), &error.into()))?;
        let made = self.folder(name)?;
        made.give()?;
        Ok(made)
    }

    /// Makes an empty file in it, for its owner. What had this name is gone.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(&self, name: &str) -> Result<File> {
        self.remove(name)?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || {
            let file = File::from(openat(&self.handle, name, flags, Mode::RUSR | Mode::WUSR)?);
            self.owner.give_file(&file)?;
            Ok(file)
        };
        create().map_err(|error| local(&self.path.join(name), &error))
    }

    /// Makes a file in it, for its owner, with this in it. What had its name is gone.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.create(name)?.write_all(bytes).map_err(|error| local(&self.path.join(name), &error))
    }

    /// What is in a file of its owner's; none if there is none.
    ///
    /// # Errors
    /// Those of the file system; it is a link, no file, or somebody else's.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let read = || {
            // Whatever it is, opening it must not wait.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut file = File::from(openat(&self.handle, name, flags, Mode::empty())?);
            let metadata = file.metadata()?;
            if !metadata.is_file() || !self.owner.owns(&metadata) {
                let why = format!("it is no file of {}", self.owner.name());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(local(&self.path.join(name), &error)),
        }
    }

    /// Whether there is something of this name.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        match statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(local(&self.path.join(name), &error.into())),
        }
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(local(&self.path.join(name), &error.into())),
        }
    }

    /// Gives a folder another name.
    ///
    /// # Errors
    /// Those of the file system; something of that name is there.
    pub(crate) fn move_to(from: &Path, to: &Path) -> Result<()> {
        let failed = |error: io::Error| {
            let what = format!("{} cannot become {}: {error}", from.display(), to.display());
            EngineError::new(FailureKind::Local, what)
        };
        fs::rename(from, to).map_err(failed)
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        renameat(&self.handle, from, &self.handle, to).map_err(|error| local(&self.path.join(from), &error.into()))
    }

    /// Gives its owner a socket that we have just made in it.
    ///
    /// # Errors
    /// Those of the file system; it is not that socket any more.
    pub(crate) fn give_socket(&self, name: &str) -> Result<()> {
        use std::os::unix::fs::FileTypeExt as _;

        let give = || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let socket = File::from(openat(&self.handle, name, flags, Mode::empty())?);
            let metadata = socket.metadata()?;
            // One of ours that is elsewhere too was linked here.
            if !metadata.file_type().is_socket() || !Owner::us().owns(&metadata) || metadata.nlink() != 1 {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not the socket that was made"));
            }
            self.owner.give_handle(&socket)
        };
        give().map_err(|error| local(&self.path.join(name), &error))
    }

    /// The names of all that is in it.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let names = || {
            let entries = fs::read_dir(self.here())?;
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<_>>()
        };
        names().map_err(|error| local(&self.path, &error))
    }

    /// Waits until all that was written to its file system is on disk, and tells what could not be written since this was
    /// opened (Linux 5.8).
    ///
    /// # Errors
    /// Something could not be written.
    pub(crate) fn sync_all(&self) -> Result<()> {
        syncfs(&self.handle).map_err(|error| local(&self.path, &error.into()))
    }

    /// Waits until its names are on disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn sync(&self) -> Result<()> {
        self.handle.sync_all().map_err(|error| local(&self.path, &error))
    }
}

/// How folders are opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn nothing_is_written_read_or_given_through_a_link() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let inside = tempfile::tempdir().unwrap();
        let folder = Folder::open(inside.path(), &Owner::us()).unwrap();
        let linked = |name: &str, to: &Path| symlink(to, inside.path().join(name)).unwrap();

        linked("file", &secret);
        assert!(folder.read("file").is_err() && folder.has("file").unwrap());
        folder.write("file", b"mine").unwrap();
        assert_eq!(folder.read("file").unwrap().as_deref(), Some(&b"mine"[..]));
        assert!(!inside.path().join("file").is_symlink());
        fs::hard_link(&secret, inside.path().join("same")).unwrap();
        folder.write("same", b"mine").unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");

        linked("dir", outside.path());
        assert!(folder.folder("dir").is_err() && folder.make("dir").is_err());
        let _socket = UnixListener::bind(outside.path().join("socket")).unwrap();
        linked("socket", &outside.path().join("socket"));
        assert!(folder.give_socket("socket").is_err());
        fs::hard_link(outside.path().join("socket"), inside.path().join("shared")).unwrap();
        assert!(folder.give_socket("shared").is_err());
        let _own = UnixListener::bind(folder.here().join("own")).unwrap();
        folder.give_socket("own").unwrap();
    }

    #[test]
    fn it_stays_the_same_where_its_name_leads_elsewhere() {
        let outside = tempfile::tempdir().unwrap();
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a/b");
        let folder = Folder::open_or_make(&path, &Owner::us()).unwrap();
        fs::rename(&path, above.path().join("c")).unwrap();
        symlink(outside.path(), &path).unwrap();
        folder.write("file", b"mine").unwrap();
        folder.make("folder").unwrap().write("file", b"mine").unwrap();
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
        let mut names = folder.names().unwrap();
        names.sort();
        assert_eq!(names, ["file", "folder"]);
    }

    #[test]
    fn files_of_others_and_what_is_none_are_not_read() {
        let inside = tempfile::tempdir().unwrap();
        let folder = Folder::open(inside.path(), &Owner::us()).unwrap();
        assert_eq!(folder.read("file").unwrap(), None);
        folder.make("dir").unwrap();
        assert!(folder.read("dir").is_err());
        // Nobody writes to it, and it is not waited for.
        rustix::fs::mkfifoat(rustix::fs::CWD, inside.path().join("fifo"), Mode::RWXU).unwrap();
        assert!(folder.read("fifo").is_err());
        if Owner::us().is_root() {
            folder.write("file", b"x").unwrap();
            fs::set_permissions(inside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(inside.path().join("file"), Some(65_534), None).unwrap();
            assert!(folder.read("file").is_err());
        }
    }
}
