//! Where a cluster is restored to: a new directory, and new folders for its tablespaces.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hindsight_engine::{Directory, EngineError, FailureKind, Result};
use rustix::fs::{Access, access, statvfs};

use super::present::{Present, SPACES, with_ending};
use crate::base::{StoredBase, StoredTablespace};
use crate::server::{Folder, Owner, PRIVATE, local, process_in, user_named};

/// Permissions that servers take for a data directory (`checkDataDir`).
pub(super) const ALLOWED: u32 = 0o750;

/// A folder for a tablespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tablespace {
    pub(crate) oid: u32,
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

/// A place that nothing is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    directory: PathBuf,
    owner: Owner,
    tablespaces: Vec<Tablespace>,
    /// The directory that this one is beside, to take its place in the end.
    replaces: Option<Present>,
}

pub(super) fn refused(what: impl Into<String>, hint: impl Into<String>) -> EngineError {
    EngineError::new(FailureKind::Unsupported, what).hint(hint)
}

impl Place {
    /// The one that was asked for. `kept` is where a directory goes whose place is to be taken, if that was shown already.
    ///
    /// # Errors
    /// It is not empty, or a server cannot live there.
    pub(crate) fn of(directory: &Directory, base: &StoredBase, kept: Option<&Path>) -> Result<Self> {
        let path = std::path::absolute(&directory.path)?;
        let replaces = directory.in_place.then(|| Present::of(&path, base, kept)).transpose()?;
        let (path, owner) = match &replaces {
            None => (path.clone(), owner_of(&path)?),
            Some(present) => (present.beside(), present.owner().clone()),
        };
        let tablespaces = tablespaces(&path, replaces.as_ref(), &directory.mapped, &base.tablespaces)?;
        let place = Self { directory: path, owner, tablespaces, replaces };
        for Tablespace { name, folder, .. } in &place.tablespaces {
            match first_in(folder) {
                Ok(None) => {
                    let metadata = fs::metadata(folder).map_err(|error| local(folder, &error))?;
                    if !place.owner.is_us() && !place.owner.owns(&metadata) {
                        let (shown, user) = (folder.display(), place.owner.name());
                        return Err(refused(
                            format!("{shown} is for the tablespace {name}, and does not belong to {user}"),
                            format!("chown {user} {}", quoted(folder)),
                        ));
                    }
                    require_access(folder, &place.owner)?;
                }
                Ok(Some(found)) => {
                    let what = format!("{} is not empty: it has {found:?}", folder.display());
                    // What is in it may be what is to be kept.
                    let remedy = match place.replaces {
                        None => "remove what is in it, or map it elsewhere",
                        Some(_) => "map it to another folder",
                    };
                    return Err(refused(what, format!("it is for the tablespace {name}; {remedy}")));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => require_parent(folder)?,
                Err(error) => return Err(local(folder, &error)),
            }
        }
        Ok(place)
    }

    /// The same without a look at it, as whoever runs the test.
    #[cfg(test)]
    pub(crate) fn for_tests(directory: &Directory, base: &StoredBase) -> Result<Self> {
        let tablespaces = tablespaces(&directory.path, None, &directory.mapped, &base.tablespaces)?;
        Ok(Self { directory: directory.path.clone(), owner: Owner::us(), tablespaces, replaces: None })
    }

    /// Where it is made.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where it is in the end.
    pub(crate) fn home(&self) -> &Path {
        self.replaces.as_ref().map_or(&self.directory, Present::directory)
    }

    /// The directory whose place it takes, if there is one.
    pub(crate) fn replaces(&self) -> Option<&Present> {
        self.replaces.as_ref()
    }

    /// As whom the server runs.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// The folders of its tablespaces, a line each, for who has to remove what was cut off.
    pub(crate) fn spaces(&self) -> Vec<u8> {
        let line = |space: &Tablespace| [space.folder.as_os_str().as_bytes(), b"\n"].concat();
        self.tablespaces.iter().flat_map(line).collect()
    }

    /// Makes sure that so many bytes fit into the directory, and into the folders of tablespaces by their OIDs.
    ///
    /// # Errors
    /// They do not.
    pub(crate) fn require_room(&self, main: u64, others: &BTreeMap<u32, u64>) -> Result<()> {
        let folders =
            self.tablespaces.iter().map(|space| (&space.folder, others.get(&space.oid).copied().unwrap_or(0)));
        // What lies on one file system has to fit in all.
        let mut needed: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
        for (folder, bytes) in folders.chain([(&self.directory, main)]) {
            let there = existing(folder);
            let device = fs::metadata(there).map_err(|error| local(there, &error))?.dev();
            let (_, sum) = needed.entry(device).or_insert((there, 0));
            *sum = sum.saturating_add(bytes);
        }
        for (folder, bytes) in needed.into_values() {
            let room = statvfs(folder).map_err(|error| local(folder, &error.into()))?;
            let free = room.f_bavail.saturating_mul(room.f_frsize);
            if free < bytes {
                let what = format!(
                    "the data need {} MiB in {}, where {} MiB are free",
                    bytes.div_ceil(1 << 20),
                    folder.display(),
                    free >> 20
                );
                let hint = match &self.replaces {
                    None => "make room there, or restore into a directory with more of it",
                    Some(_) => {
                        "the restored cluster has to fit beside the one that is kept: make room there, such as by removing \
                         what earlier restores have kept, or restore elsewhere, without --in-place"
                    }
                };
                return Err(refused(what, hint));
            }
        }
        Ok(())
    }

    /// Makes what is not there yet. As root, nobody else gets in until [`Made::give`]: files that are written could be led
    /// elsewhere by links otherwise.
    ///
    /// # Errors
    /// Those of the file system; something is there by now.
    pub(crate) fn make(&self) -> Result<Made> {
        let spaces = self.tablespaces.iter().map(|space| Ok((space.oid, self.take(&space.folder)?)));
        Ok(Made { spaces: spaces.collect::<Result<_>>()?, data: self.take(&self.directory)? })
    }

    fn take(&self, path: &Path) -> Result<Folder> {
        let folder = Folder::open_or_make(path, &self.owner)?;
        // Its path may lead elsewhere by now.
        if !self.owner.is_us() {
            folder.require_owned()?;
            folder.take()?;
        } else if folder.metadata()?.permissions().mode() & 0o7777 & !ALLOWED != 0 {
            folder.set_mode(0o700)?;
        }
        match first_in(&folder.here()).map_err(|error| local(path, &error))? {
            Some(found) => Err(filled(path, &found)),
            None => Ok(folder),
        }
    }
}

/// The folders of a place, opened before anything was written to them.
#[derive(Debug)]
pub(crate) struct Made {
    data: Folder,
    /// Of tablespaces, by their OIDs.
    spaces: BTreeMap<u32, Folder>,
}

impl Made {
    /// The data directory.
    pub(crate) fn data(&self) -> &Folder {
        &self.data
    }

    /// The folder of a tablespace.
    pub(crate) fn space(&self, oid: u32) -> Option<&Folder> {
        self.spaces.get(&oid)
    }

    /// Lets their owner in.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn give(&self) -> Result<()> {
        self.folders().try_for_each(Folder::give)
    }

    /// Waits until all that was written is on disk. Since Linux 5.8 this tells what could not be written since they were
    /// opened, whoever wrote it.
    ///
    /// # Errors
    /// Something could not be written.
    pub(crate) fn sync(&self) -> Result<()> {
        let mut synced = Vec::new();
        for folder in self.folders() {
            let device = folder.metadata()?.dev();
            if !synced.contains(&device) {
                folder.sync_all()?;
                synced.push(device);
            }
        }
        Ok(())
    }

    fn folders(&self) -> impl Iterator<Item = &Folder> {
        self.spaces.values().chain([&self.data])
    }
}

/// Whose a new cluster will be: the owner of its directory.
fn owner_of(path: &Path) -> Result<Owner> {
    let us = Owner::us();
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if us.is_root() {
                let what = format!("{} does not exist, and PostgreSQL does not run as root", path.display());
                return Err(refused(
                    what,
                    format!("make it for the user that the server is to run as: {}", install(path)),
                ));
            }
            require_parent(path)?;
            return Ok(us);
        }
        found => found.map_err(|error| local(path, &error))?,
    };
    if !metadata.is_dir() {
        return Err(refused(
            format!("{} is no directory", path.display()),
            "name one that is empty, or does not exist yet",
        ));
    }
    if let Some(found) = first_in(path).map_err(|error| local(path, &error))? {
        return Err(filled(path, &found));
    }
    let owner = Owner::of_file(&metadata);
    if us.is_root() && owner.is_root() {
        let what = format!("{} belongs to root, and PostgreSQL does not run as root", path.display());
        return Err(refused(what, format!("give it to the user that the server is to run as: {}", install(path))));
    }
    if !us.is_root() && !owner.is_us() {
        let what = format!("{} belongs to {}, and PostgreSQL wants to own its directory", path.display(), owner.name());
        return Err(refused(what, format!("run this as {}, or name another directory", owner.name())));
    }
    require_access(path, &owner)?;
    Ok(owner)
}

/// The command that makes a directory for a server.
fn install(path: &Path) -> String {
    let user = if user_named("postgres").is_some() { "postgres" } else { "USER" };
    format!("install -d -o {user} -m 700 {}", quoted(path))
}

/// A path for a shell.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The name of something in a directory.
fn first_in(path: &Path) -> io::Result<Option<String>> {
    let names: Vec<_> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    let telling =
        [PRIVATE, "postmaster.pid", "PG_VERSION"].into_iter().find(|name| names.iter().any(|found| found == name));
    Ok(telling.map(str::to_owned).or_else(|| names.into_iter().min()))
}

/// Why a directory that is not empty is not taken.
pub(super) fn filled(path: &Path, found: &str) -> EngineError {
    let shown = path.display();
    match (found, process_in(path)) {
        (PRIVATE, running) => {
            let mut remedy = format!("rm -r {}", quoted(path));
            if let Some(pid) = running {
                remedy = format!("kill -QUIT {pid} && {remedy}");
            }
            let spaces = beside(path);
            let mapped = half_filled(path, &spaces);
            for gone in spaces.exists().then_some(&spaces).into_iter().chain(mapped.values().flatten()) {
                remedy.push_str(&format!(" {}", quoted(gone)));
            }
            if Owner::us().is_root() {
                remedy.push_str(&format!(" && {}", install(path)));
                mapped.keys().for_each(|folder| remedy.push_str(&format!(" {}", quoted(folder))));
            }
            refused(
                format!("{shown} is half restored: a restore into it was cut off, or runs"),
                format!("if none runs, remove what it left, and restore again: {remedy}"),
            )
        }
        (_, Some(pid)) => refused(
            format!("{shown} is the directory of a server that runs (process {pid})"),
            "name a directory that is empty, or does not exist yet; or stop the server, to replace its data with --in-place",
        ),
        ("postmaster.pid" | "PG_VERSION", None) => refused(
            format!("{shown} holds a cluster already"),
            "name a directory that is empty, or does not exist yet; or replace what it holds with --in-place",
        ),
        ("lost+found", None) => refused(
            format!("{shown} is the root of a file system, which a server does not take"),
            "name a directory below it",
        ),
        _ => refused(
            format!("{shown} is not empty: it has {found:?}"),
            "name a directory that is empty, or does not exist yet",
        ),
    }
}

/// Folders besides `spaces` to which a restore that was cut off had mapped tablespaces, with what it left in them. Who owns the
/// directory can write what they like there: of what is not theirs, or holds anything but a tablespace, nothing is told.
fn half_filled(path: &Path, spaces: &Path) -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let listed = fs::read_to_string(path.join(PRIVATE).join(SPACES)).unwrap_or_default();
    let owner = |path: &Path| path.symlink_metadata().ok().filter(fs::Metadata::is_dir).map(|metadata| metadata.uid());
    let owned = owner(path);
    let is_theirs = |folder: &Path| owner(folder).is_some_and(|user| owned == Some(0) || owned == Some(user));
    let folders = listed.lines().map(PathBuf::from).filter(|folder| !folder.starts_with(spaces) && is_theirs(folder));
    let left = |folder: PathBuf| {
        let entries = fs::read_dir(&folder).ok()?;
        let found: Vec<PathBuf> = entries.map(|entry| Some(entry.ok()?.path())).collect::<Option<_>>()?;
        let is_version = |entry: &PathBuf| entry.file_name().is_some_and(|name| name.as_bytes().starts_with(b"PG_"));
        found.iter().all(is_version).then_some((folder, found))
    };
    folders.filter_map(left).collect()
}

/// Where tablespaces go that nobody said anything about: never to where they were, as that may be in use.
fn beside(directory: &Path) -> PathBuf {
    with_ending(directory, ".tablespaces")
}

fn tablespaces(
    directory: &Path,
    replaces: Option<&Present>,
    mapped: &[(String, PathBuf)],
    stored: &[StoredTablespace],
) -> Result<Vec<Tablespace>> {
    let taken = || replaces.map(Present::directory).into_iter().chain([directory]);
    let is = |space: &StoredTablespace, said: &str| {
        space.name == said || space.oid.to_string() == said || space.location == said
    };
    if let Some((said, _)) = mapped.iter().find(|(said, _)| !stored.iter().any(|space| is(space, said))) {
        let known: Vec<_> = stored.iter().map(|space| format!("{} ({})", space.name, space.location)).collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        return Err(refused(format!("the snapshot has no tablespace {said:?}"), known));
    }
    let mut spaces: Vec<Tablespace> = Vec::new();
    for space in stored {
        let said = mapped.iter().find(|(said, _)| is(space, said)).map(|(_, folder)| folder.clone());
        let folder = match (said, replaces) {
            (Some(folder), _) => std::path::absolute(folder)?,
            (None, Some(present)) => present.space(space)?,
            (None, None) => beside(directory).join(space.oid.to_string()),
        };
        let name = if space.name.is_empty() { space.oid.to_string() } else { space.name.clone() };
        if taken().any(|directory| folder.starts_with(directory) || directory.starts_with(&folder)) {
            let what = format!("the tablespace {name} cannot be in {}, as the data are", folder.display());
            return Err(refused(what, "map it to a folder of its own"));
        }
        if let Some(other) =
            spaces.iter().find(|other| other.folder.starts_with(&folder) || folder.starts_with(&other.folder))
        {
            let what = format!("the tablespaces {} and {name} cannot both be in {}", other.name, folder.display());
            return Err(refused(what, "map each to a folder of its own"));
        }
        spaces.push(Tablespace { oid: space.oid, name, folder });
    }
    Ok(spaces)
}

/// The nearest folder that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}

/// Makes sure that a directory can be made.
fn require_parent(path: &Path) -> Result<()> {
    let parent = existing(path);
    match access(parent, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if parent.is_dir() => Ok(()),
        Ok(()) => Err(refused(format!("{} is no directory", parent.display()), "name a directory below another")),
        Err(error) => {
            let what = format!("{} cannot be made: {}: {error}", path.display(), parent.display());
            Err(refused(what, "make it, or name one that can be made"))
        }
    }
}

/// Makes sure that we, and the user that the server runs as, can write to a directory.
fn require_access(path: &Path, owner: &Owner) -> Result<()> {
    let ours = access(path, Access::WRITE_OK | Access::EXEC_OK);
    let what = match ours {
        Err(error) => format!("{} cannot be written to: {error}", path.display()),
        Ok(()) if owner.is_us() || owner.can(path, "-w")? => return Ok(()),
        Ok(()) => format!("{} cannot be written to by {}, whose it is", path.display(), owner.name()),
    };
    Err(refused(what, "see the permissions of it, and of the folders that it is in"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::settings::tests::base;

    fn space(oid: u32, name: &str, location: &str) -> StoredTablespace {
        StoredTablespace { oid, name: name.to_owned(), location: location.to_owned() }
    }

    #[test]
    fn tablespaces_never_go_to_where_they_were() {
        let stored = [space(16385, "fast", "/mnt/fast"), space(16386, "", "/mnt/b")];
        let places = |mapped: &[(&str, &str)]| {
            let mapped: Vec<_> = mapped.iter().map(|(a, b)| ((*a).to_owned(), PathBuf::from(b))).collect();
            tablespaces(Path::new("/srv/new"), None, &mapped, &stored)
                .map(|spaces| spaces.into_iter().map(|space| space.folder.display().to_string()).collect::<Vec<_>>())
                .map_err(|error| error.what)
        };
        assert_eq!(places(&[]).unwrap(), ["/srv/new.tablespaces/16385", "/srv/new.tablespaces/16386"]);
        for said in ["fast", "16385", "/mnt/fast"] {
            assert_eq!(places(&[(said, "/x")]).unwrap(), ["/x", "/srv/new.tablespaces/16386"]);
        }
        assert!(places(&[("slow", "/x")]).unwrap_err().contains("no tablespace \"slow\""));
        assert!(places(&[("fast", "/srv/new/x")]).unwrap_err().contains("cannot be in"));
        assert!(places(&[("fast", "/srv")]).unwrap_err().contains("cannot be in"));
        assert!(places(&[("fast", "/x"), ("16386", "/x/y")]).unwrap_err().contains("cannot both be in"));
    }

    #[test]
    fn what_is_in_a_directory_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str| {
            let path = folder.path().join(name);
            Place::of(&Directory::new(path), &base(), None).unwrap_err()
        };
        fs::create_dir_all(folder.path().join("some/file")).unwrap();
        assert!(refused("some").what.contains("is not empty: it has \"file\""));
        fs::create_dir_all(folder.path().join("cluster/base")).unwrap();
        fs::write(folder.path().join("cluster/PG_VERSION"), "15\n").unwrap();
        assert!(refused("cluster").what.contains("holds a cluster already"));
        fs::write(folder.path().join("cluster/postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert!(refused("cluster").what.contains("a server that runs"));
        fs::create_dir_all(folder.path().join("half").join(PRIVATE)).unwrap();
        for tablespace in ["fast/PG_15_202209061", "other/PG_15_202209061", "other/file"] {
            fs::create_dir_all(folder.path().join(tablespace)).unwrap();
        }
        let listed = ["fast", "other", "none"].map(|name| folder.path().join(name).display().to_string()).join("\n");
        fs::write(folder.path().join("half").join(PRIVATE).join(SPACES), listed).unwrap();
        let half = refused("half");
        let removed = ["half", "fast/PG_15_202209061"].map(|name| quoted(&folder.path().join(name))).join(" ");
        let hint = half.hint.unwrap();
        assert!(half.what.contains("half restored") && hint.contains(&format!("rm -r {removed}")), "{hint}");
        assert!(!hint.contains("other"), "{hint}");
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(refused("file").what.contains("is no directory"));
        fs::create_dir_all(folder.path().join("disk/lost+found")).unwrap();
        assert!(refused("disk").hint.unwrap().contains("below it"));
    }

    #[test]
    fn too_little_room_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let owner = Owner::us();
        let place = Place { directory: folder.path().join("a/b"), owner, tablespaces: Vec::new(), replaces: None };
        place.require_room(1, &BTreeMap::new()).unwrap();
        let refused = place.require_room(u64::MAX, &BTreeMap::new()).unwrap_err();
        assert!(refused.what.contains("MiB are free"), "{}", refused.what);
    }

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("/srv/new-1")), "/srv/new-1");
        assert_eq!(quoted(Path::new("/srv/a 'b'")), r"'/srv/a '\''b'\'''");
    }
}
