//! The directory of a cluster that stands still, which a restored one is to take the place of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hindsight_engine::{EngineError, Result};
use jiff::{SignedDuration, Timestamp};
use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags, access, statx};

use super::place::{filled, quoted, refused};
use crate::TimelineId;
use crate::base::{StoredBase, StoredTablespace};
use crate::server::{Folder, Owner, PRIVATE, local, major, process_in, user_of};
use crate::wal::{SegmentSize, WalFile};

/// Ends the name of a folder that is restored into, beside the one whose place it takes.
const RESTORING: &str = ".restoring";
/// Comes between the name of a directory and the time at which it was kept aside.
const BEFORE: &str = ".before-";
/// The same of the folder of a tablespace, and the time of the restore that it belongs to.
const RESTORED: &str = ".restored-";
/// How those times are written: names are of no use to others with colons in them.
const STAMP: &str = "%Y%m%dT%H%M%SZ";
/// Bytes of a folder's name that fit into an archive of a base (ustar).
const LINKED: usize = 99;

/// A data directory whose server does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    /// As it is called where no link leads to it.
    directory: PathBuf,
    owner: Owner,
    mode: u32,
    /// Part of all names that are new.
    stamp: String,
    /// Timelines that it has known.
    timelines: BTreeSet<TimelineId>,
    /// Folders of its tablespaces, by their OIDs.
    spaces: BTreeMap<u32, PathBuf>,
    /// Where its log is, if that is elsewhere.
    log: Option<PathBuf>,
}

impl Present {
    /// Looks at the one that was named, and refuses what cannot be replaced. `kept` is where it goes, if that was shown already.
    ///
    /// # Errors
    /// It is none, or another cluster's, or in use, or cannot be moved; an earlier attempt has left something.
    pub(crate) fn of(path: &Path, base: &StoredBase, kept: Option<&Path>) -> Result<Self> {
        let directory = match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone(path)),
            found => found.map_err(|error| local(path, &error))?,
        };
        let shown = directory.display();
        let metadata = fs::metadata(&directory).map_err(|error| local(&directory, &error))?;
        if !metadata.is_dir() {
            return Err(no_cluster(format!("{shown} is no directory")));
        }
        if directory.join(PRIVATE).exists() {
            return Err(filled(&directory, PRIVATE));
        }
        let owner = Owner::of_file(&metadata);
        if owner.is_root() || !(Owner::us().is_root() || owner.is_us()) {
            let what = format!("{shown} belongs to {}", owner.name());
            let hint = if owner.is_root() {
                "PostgreSQL does not run as root: give it to the user that its server runs as".to_owned()
            } else {
                format!("run this as {}, or as root", owner.name())
            };
            return Err(refused(what, hint));
        }
        let folder = Folder::open(&directory, &owner)?;
        require_same(&folder, base)?;
        let beside = with_ending(&directory, RESTORING);
        if beside.symlink_metadata().is_ok() {
            return Err(left(&directory, &beside));
        }
        require_still(&folder)?;
        if folder.has("standby.signal")? {
            return Err(refused(
                format!("{shown} is the directory of a standby (it has standby.signal)"),
                "restore the primary's in place, and make its standbys anew from it",
            ));
        }
        require_movable(&directory)?;
        let stamp = kept.and_then(stamp_of).unwrap_or_else(|| free_stamp(&directory));
        let control = control(&folder)?;
        let present = Self {
            mode: metadata.permissions().mode() & 0o777,
            timelines: timelines(&folder)?.chain(control.map(|(_, timeline)| timeline)).collect(),
            spaces: spaces(&directory),
            log: fs::read_link(directory.join("pg_wal")).ok(),
            directory,
            owner,
            stamp,
        };
        if present.kept().symlink_metadata().is_ok() {
            return Err(refused(format!("{} is there already", present.kept().display()), "try again in a moment"));
        }
        Ok(present)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Its permissions.
    pub(crate) fn mode(&self) -> u32 {
        self.mode
    }

    /// Timelines that it has known, so that the restored one begins another.
    pub(crate) fn timelines(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.timelines.iter().copied()
    }

    /// Where the restored one is made.
    pub(crate) fn beside(&self) -> PathBuf {
        with_ending(&self.directory, RESTORING)
    }

    /// Where it is afterwards.
    pub(crate) fn kept(&self) -> PathBuf {
        with_ending(&self.directory, &format!("{BEFORE}{}", self.stamp))
    }

    /// The directory itself.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(&self) -> Result<Folder> {
        Folder::open(&self.directory, &self.owner)
    }

    /// Where its tablespaces are.
    pub(crate) fn spaces(&self) -> impl Iterator<Item = &Path> {
        self.spaces.values().map(PathBuf::as_path)
    }

    /// Where a tablespace of the restored one goes that nobody said anything about: beside the present one, which the directory
    /// that is kept goes on to use.
    ///
    /// # Errors
    /// There is no such place.
    pub(crate) fn space(&self, space: &StoredTablespace) -> Result<PathBuf> {
        let now = self.spaces.get(&space.oid);
        let now = now.map_or_else(|| Path::new(&space.location), PathBuf::as_path);
        let (name, shown) = (&space.name, now.display());
        let refused = |why: String| {
            Err(refused(
                format!("the tablespace {name} cannot be restored beside {shown}: {why}"),
                format!("name a folder for it with --map {name}=DIR"),
            ))
        };
        if now.exists() && is_mounted(now) {
            return refused("a file system is mounted there, and what is beside it is on another one".to_owned());
        }
        if !now.parent().is_some_and(Path::is_dir) {
            return refused("there is no such folder here".to_owned());
        }
        // That of an earlier restore has a time already.
        let text = now.as_os_str().to_string_lossy();
        let plain =
            text.rsplit_once(RESTORED).filter(|(_, stamp)| is_stamp(stamp)).map(|(plain, _)| PathBuf::from(plain));
        let folder = with_ending(plain.as_deref().unwrap_or(now), &format!("{RESTORED}{}", self.stamp));
        if folder.as_os_str().len() > LINKED {
            let why = format!("a name of more than {LINKED} bytes has no place in a backup");
            return refused(why);
        }
        Ok(folder)
    }

    /// What must be known of it beforehand.
    pub(crate) fn notes(&self) -> Vec<String> {
        let (shown, beside, kept) = (self.directory.display(), self.beside(), self.kept());
        let (beside, kept) = (beside.display(), kept.display());
        let mut notes = vec![format!(
            "it is restored into {beside}, while {shown} stays as it is; once the log is replayed and what came of it was looked \
             at, {shown} becomes {kept}, and {beside} becomes {shown}"
        )];
        let spaces: Vec<String> = self.spaces().map(|space| space.display().to_string()).collect();
        let spaces = match spaces.as_slice() {
            [] => String::new(),
            spaces => format!(", and its tablespaces where they are: {}", spaces.join(", ")),
        };
        notes.push(format!(
            "{kept} stays whole{spaces}; nothing removes it but you. Where the restored server does not start, it is put back"
        ));
        if let Some(log) = &self.log {
            notes.push(format!(
                "pg_wal is a link to {} now, which stays with {kept}: in the restored directory it is a folder",
                log.display()
            ));
        }
        let earlier = befores(&self.directory);
        if !earlier.is_empty() {
            let shown: Vec<String> = earlier.iter().map(|path| path.display().to_string()).collect();
            notes.push(format!("of earlier restores there is still {}", shown.join(", ")));
        }
        notes
    }
}

/// Makes sure that nobody uses a directory.
///
/// # Errors
/// Somebody does.
pub(crate) fn require_still(folder: &Folder) -> Result<()> {
    match user_of(folder)? {
        None => Ok(()),
        Some(user) => {
            let shown = quoted(folder.path());
            Err(refused(
                format!("{} is in use by a server that runs ({user})", folder.path().display()),
                format!("stop it first: by its service manager, or with pg_ctl -D {shown} stop"),
            ))
        }
    }
}

fn no_cluster(what: String) -> EngineError {
    refused(
        what,
        "name the data directory of the cluster that is to be replaced, or leave --in-place out to make a new one",
    )
}

/// Makes sure that it is the cluster that the base is of.
fn require_same(folder: &Folder, base: &StoredBase) -> Result<()> {
    let shown = folder.path().display();
    let version = folder.read("PG_VERSION")?;
    let version = version.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let Some(version) = version else {
        return Err(no_cluster(format!("{shown} is no data directory of PostgreSQL: it has no PG_VERSION")));
    };
    if major(&version) != Some(base.major) {
        return Err(refused(
            format!("{shown} is of PostgreSQL {version}, the snapshot is of PostgreSQL {}", base.major),
            "name the directory that it was taken of, or leave --in-place out to restore into a new one",
        ));
    }
    let Some((system, _)) = control(folder)? else {
        let hint = format!(
            "to restore all the same, move it away (mv {0} {0}.damaged), and restore into a new directory, without --in-place",
            quoted(folder.path())
        );
        return Err(refused(
            format!("which cluster {shown} is cannot be told: global/pg_control cannot be read"),
            hint,
        ));
    };
    if system == base.system_identifier {
        return Ok(());
    }
    Err(refused(
        format!(
            "{shown} is another cluster: its system identifier is {system}, the snapshot's is {}",
            base.system_identifier
        ),
        "name the directory that the snapshot was taken of; if the repository keeps this one too, name it with --cluster; or leave \
         --in-place out to restore into a new directory",
    ))
}

/// System identifier and timeline of a cluster (`ControlFileData` in pg_control.h); none where they cannot be read.
fn control(folder: &Folder) -> Result<Option<(u64, TimelineId)>> {
    if !folder.has("global")? {
        return Ok(None);
    }
    let bytes = folder.folder("global")?.read("pg_control")?.unwrap_or_default();
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let system = bytes.get(..8).and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
    // pg_control_version, and checkPointCopy.ThisTimeLineID, where they have been since version 13.
    let is_known = number(8).is_some_and(|version| (1000..10_000).contains(&version));
    Ok(system.zip(number(48)).filter(|(system, _)| is_known && *system != 0))
}

/// Timelines that files in a directory name.
fn timelines(folder: &Folder) -> Result<impl Iterator<Item = TimelineId>> {
    // It may be a link.
    let path = folder.path().join("pg_wal");
    let names = match fs::read_dir(&path) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(local(&path, &error)),
    };
    Ok(names.into_iter().filter_map(|name| match WalFile::parse(&name, SegmentSize::DEFAULT)? {
        WalFile::History(timeline) => Some(timeline),
        WalFile::Segment(segment) | WalFile::Partial(segment) | WalFile::Backup(segment, _) => Some(segment.timeline),
    }))
}

/// The folders of tablespaces of a directory, by their OIDs.
fn spaces(directory: &Path) -> BTreeMap<u32, PathBuf> {
    let links = fs::read_dir(directory.join("pg_tblspc")).into_iter().flatten().flatten();
    let space = |link: fs::DirEntry| Some((link.file_name().to_str()?.parse().ok()?, fs::read_link(link.path()).ok()?));
    links.filter_map(space).collect()
}

/// Makes sure that a directory can be given another name.
fn require_movable(directory: &Path) -> Result<()> {
    let shown = directory.display();
    let elsewhere = "restore into a new directory instead, without --in-place, and let the server take that";
    let parent = directory.parent().filter(|_| !is_mounted(directory));
    let Some(parent) = parent else {
        return Err(refused(
            format!("{shown} cannot be kept aside: a file system is mounted there, so that it cannot be renamed"),
            format!("{elsewhere}: --target-dir {}, for example", quoted(&directory.join("restored"))),
        ));
    };
    access(parent, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let what = format!("{shown} cannot be kept aside: {} cannot be written to: {error}", parent.display());
        refused(what, format!("run this as a user who can, such as root; or {elsewhere}"))
    })
}

/// Whether a file system begins at a folder.
fn is_mounted(path: &Path) -> bool {
    let told = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).ok();
    let told = told.filter(|told| told.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT));
    if let Some(told) = told {
        return told.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    }
    // Before Linux 5.8
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    path.parent().is_none_or(|parent| device(parent) != device(path))
}

/// What to say of a directory that is not there: a restore may have been cut off when it had moved it.
fn gone(path: &Path) -> EngineError {
    // It may be a link that leads nowhere by now.
    let above = path.parent().unwrap_or(path);
    let path = fs::read_link(path).map_or_else(|_| path.to_owned(), |to| above.join(to));
    let shown = path.display();
    let beside = with_ending(&path, RESTORING);
    let Some(before) = befores(&path).pop() else {
        return no_cluster(format!("{shown} does not exist"));
    };
    let mut remedy = format!("mv {} {}", quoted(&before), quoted(&path));
    if beside.exists() {
        remedy.push_str(&format!(" && {}", remove(&path, &beside)));
    }
    refused(
        format!("{shown} does not exist: a restore in place was cut off when it had moved it to {}", before.display()),
        format!("put it back, remove what was restored, and restore again: {remedy}"),
    )
}

/// What to say where an earlier attempt has left something.
fn left(directory: &Path, beside: &Path) -> EngineError {
    let mut remedy = remove(directory, beside);
    if let Some(pid) = process_in(beside) {
        remedy = format!("kill -QUIT {pid} && {remedy}");
    }
    refused(
        format!("{} is there: a restore in place of {} was cut off, or runs", beside.display(), directory.display()),
        format!("if none runs, remove what it left, and restore again: {remedy}"),
    )
}

/// The command that removes what was restored beside a directory, with its tablespaces: those that a list names for as long as it
/// is made, or its links lead to.
pub(crate) fn remove(directory: &Path, beside: &Path) -> String {
    let listed = fs::read_to_string(beside.join(PRIVATE).join(SPACES)).unwrap_or_default();
    let listed = listed.lines().map(PathBuf::from);
    let others: BTreeSet<PathBuf> = spaces(directory).into_values().collect();
    let owner = fs::metadata(beside).map(|metadata| metadata.uid()).ok();
    // Who owns the directory can write what they like there, and must not make root remove what is not theirs.
    let is_theirs = |space: &PathBuf| {
        let found = space.symlink_metadata().ok().filter(fs::Metadata::is_dir);
        let ours = space.to_str().and_then(|text| text.rsplit_once(RESTORED)).is_some_and(|(_, stamp)| is_stamp(stamp));
        found.is_some_and(|found| Some(found.uid()) == owner && (found.uid() != 0 || ours))
    };
    let folders: BTreeSet<PathBuf> = spaces(beside).into_values().chain(listed).collect();
    let folders = folders.into_iter().filter(|space| !others.contains(space) && is_theirs(space));
    let folders: String = folders.map(|space| format!(" {}", quoted(&space))).collect();
    format!("rm -r {}{folders}", quoted(beside))
}

/// A file in the private folder with the folders of tablespaces that were made, a line each.
pub(crate) const SPACES: &str = "tablespaces";

/// What earlier restores have kept of a directory, oldest first.
fn befores(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.parent().map(fs::read_dir).and_then(io::Result::ok).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| {
        stamp_of(path).is_some_and(|stamp| *path == with_ending(directory, &format!("{BEFORE}{stamp}")))
    });
    found.sort();
    found
}

fn stamp_of(kept: &Path) -> Option<String> {
    let (_, stamp) = kept.file_name()?.to_str()?.rsplit_once(BEFORE)?;
    is_stamp(stamp).then(|| stamp.to_owned())
}

fn is_stamp(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "00000000T000000Z"
}

/// The time from now on by which nothing is kept yet: two restores in one second need two names.
fn free_stamp(directory: &Path) -> String {
    let now = Timestamp::now();
    let stamps = (0..).map(|seconds| now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now));
    let mut stamps = stamps.map(|time| time.strftime(STAMP).to_string());
    let is_free = |stamp: &String| with_ending(directory, &format!("{BEFORE}{stamp}")).symlink_metadata().is_err();
    stamps.find(is_free).unwrap_or_else(|| now.strftime(STAMP).to_string())
}

/// The path whose name goes on with `ending`.
pub(super) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_was_kept_from_what_is_called_alike() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        for name in [
            "data.before-20260102T000000Z",
            "data.before-20260101T000000Z",
            "data.before-then",
            "data2.before-20260101T000000Z",
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names: Vec<_> = befores(&data).iter().filter_map(|path| stamp_of(path)).collect();
        assert_eq!(names, ["20260101T000000Z", "20260102T000000Z"]);
        let told = gone(&data);
        assert!(told.hint.unwrap().contains("data.before-20260102T000000Z"));
        // A link that leads nowhere leads to what is gone.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("data", &link).unwrap();
        assert!(gone(&link).what.contains("had moved it to"));
        assert!(gone(&folder.path().join("other")).what.ends_with("does not exist"));
    }

    #[test]
    fn what_is_kept_has_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut stamps = Vec::new();
        for _ in 0..3 {
            stamps.push(free_stamp(&data));
            fs::create_dir(with_ending(&data, &format!("{BEFORE}{}", stamps.last().unwrap()))).unwrap();
        }
        let kept: Vec<_> = befores(&data).iter().filter_map(|path| stamp_of(path)).collect();
        assert_eq!(kept, stamps);
    }

    #[test]
    fn what_cannot_be_renamed_is_told() {
        let told = require_movable(Path::new("/proc")).unwrap_err();
        assert!(told.what.contains("mounted") && told.hint.unwrap().contains("/proc/restored"));
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        require_movable(&data).unwrap();
        if !Owner::us().is_root() {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
            assert!(require_movable(&data).unwrap_err().what.contains("cannot be written to"));
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    #[test]
    fn only_what_is_its_owners_is_to_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (data, beside) = (folder.path().join("data"), folder.path().join("data.restoring"));
        fs::create_dir_all(beside.join(PRIVATE)).unwrap();
        let space = folder.path().join("fast.restored-20260101T000000Z");
        fs::create_dir(&space).unwrap();
        let listed = format!("/etc\n/usr\n{}\n/none\n", space.display());
        fs::write(beside.join(PRIVATE).join(SPACES), listed).unwrap();
        assert_eq!(remove(&data, &beside), format!("rm -r {} {}", beside.display(), space.display()));
    }
}
