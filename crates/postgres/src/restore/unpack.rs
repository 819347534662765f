//! From the objects of a base to the files of a data directory.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hindsight_engine::{EngineError, FailureKind, Job, Result};
use hindsight_format::{ObjectRef, SnapshotManifest};
use hindsight_repository::{ClusterRepository, ObjectReader};
use tokio_util::task::AbortOnDropHandle;

use super::combine::{Combining, Fault, Filling, WRITTEN_AT_ONCE, lacks, plain_label};
use super::place::{Made, Place};
use crate::base::{
    BackupManifest, PageSizes, TarEvent, TarHeader, TarKind, TarReader, Verified, Verifier, VerifyOptions, archive_of,
    changes_of,
};
use crate::feed::{blocking, feed};
use crate::server::{Folder, local};
use crate::wire::ManifestChecksums;

/// Objects that are unpacked at the same time at most: each takes some 24 MiB of memory.
const AT_ONCE: usize = 8;
/// Objects that are opened, or read through, at the same time.
const READ_AT_ONCE: usize = 4;
/// Frames of each that are decompressed ahead.
const FRAMES_AHEAD: usize = 1;
/// Files that are not for the server: the map would lead it to where tablespaces were, the others would make it a standby.
const LEFT_OUT: [&[u8]; 4] = [b"tablespace_map", b"standby.signal", b"recovery.signal", b"backup_manifest"];

/// Where the recovery begins; of a base that holds only what changed, it says that too.
const LABEL: &[u8] = b"backup_label";
/// Servers write some lines.
const LONGEST_LABEL: usize = 64 << 10;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// An object with a part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    object: ObjectRef,
    /// The tablespace's OID; none for the main data directory.
    pub(crate) tablespace: Option<u32>,
}

impl Part {
    /// Bytes before compression.
    pub(crate) fn raw_bytes(&self) -> u64 {
        self.object.raw_bytes
    }
}

/// A base, or one that it builds upon.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Its name.
    pub(crate) id: String,
    pub(crate) parts: Vec<Part>,
    /// Whether it holds only what changed since another.
    pub(crate) changes: bool,
}

impl Link {
    /// That of a snapshot.
    ///
    /// # Errors
    /// It has parts that are of no archive, or none.
    pub(crate) fn of(manifest: &SnapshotManifest) -> Result<Self> {
        Ok(Self { id: manifest.id.clone(), parts: parts(manifest)?, changes: manifest.parent.is_some() })
    }
}

/// The parts of a base.
fn parts(manifest: &SnapshotManifest) -> Result<Vec<Part>> {
    let data = manifest.objects.iter().filter(|object| object.name.starts_with("data/"));
    let parts = data.map(|object| {
        let archive = archive_of(&object.name);
        let tablespace =
            archive.ok_or_else(|| EngineError::damaged(format!("{} is of no archive of a base", object.name)))?;
        Ok(Part { object: object.clone(), tablespace })
    });
    let parts: Vec<Part> = parts.collect::<Result<_>>()?;
    if parts.iter().any(|part| part.tablespace.is_none()) {
        return Ok(parts);
    }
    Err(EngineError::damaged(format!("snapshot {} has no data", manifest.id)))
}

/// Opens all data objects, which checks their footers.
///
/// # Errors
/// One is missing or damaged.
pub(crate) async fn open(cluster: &ClusterRepository, Link { id, parts, .. }: &Link) -> Result<()> {
    let open = |part: Part| async move { reader(cluster, id, &part).await.map(drop) };
    stream::iter(parts.iter().cloned().map(open)).buffer_unordered(AT_ONCE).try_collect().await
}

async fn reader(cluster: &ClusterRepository, id: &str, part: &Part) -> Result<ObjectReader> {
    let key = cluster.keys().snapshot_object(id, &part.object.name);
    Ok(cluster.object_reader(&key, Some(&part.object)).await?)
}

/// Reads all data through, and makes sure that they are as they were written. They are not decompressed for that.
///
/// # Errors
/// One is damaged.
pub(crate) async fn check(job: &Job, Link { id, parts, .. }: &Link) -> Result<()> {
    let one = |part: Part| async move {
        job.check()?;
        let reader = reader(&job.cluster, id, &part).await?;
        let checked = reader.check_stored(|_| true, |bytes| job.progress.add(bytes));
        tokio::select! {
            checked = checked => Ok(checked?),
            () = job.cancel.cancelled() => Err(EngineError::cancelled()),
        }
    };
    stream::iter(parts.iter().cloned().map(one)).buffer_unordered(READ_AT_ONCE).try_collect().await
}

/// Bytes stored of the data.
pub(crate) fn stored_bytes(chain: &[Link]) -> u64 {
    sum(chain, |part| part.object.stored_bytes)
}

/// The same before compression.
pub(crate) fn raw_bytes(chain: &[Link]) -> u64 {
    sum(chain, Part::raw_bytes)
}

fn sum(chain: &[Link], bytes: impl Fn(&Part) -> u64) -> u64 {
    chain.iter().flat_map(|link| &link.parts).map(bytes).fold(0, u64::saturating_add)
}

/// Unpacks a base to its place, which has been made, and fills what it lacks from those that it builds upon: `chain` has them,
/// the newest first. All that they hold is compared with their lists.
///
/// # Errors
/// Something cannot be written, or is not what it was.
pub(crate) async fn run(
    job: &Job,
    chain: &[Link],
    (place, made): (&Place, &Arc<Made>),
    manifests: Vec<BackupManifest>,
    sizes: PageSizes,
) -> Result<Unpacked> {
    let combining = Arc::new(Combining::new(sizes));
    let mut unpacked = None;
    for (link, manifest) in chain.iter().zip(manifests) {
        let newest = unpacked.is_none();
        let found = unpack(job, link, made, manifest, (&combining, newest)).await?;
        unpacked.get_or_insert(found);
        if let Some(path) = combining.go_on() {
            return Err(lacks(&link.id, &path));
        }
    }
    // Of the last one nothing is wanted that it does not have.
    if let (Some(path), Some(last)) = (combining.go_on(), chain.last()) {
        return Err(lacks(&last.id, &path));
    }
    let (place, made) = (place.clone(), made.clone());
    blocking(move || link_spaces(&place, &made)).await?;
    Ok(unpacked.unwrap_or_default())
}

/// Unpacks one of them, and compares it with its list.
async fn unpack(
    job: &Job,
    link: &Link,
    made: &Arc<Made>,
    manifest: BackupManifest,
    (combining, newest): (&Arc<Combining>, bool),
) -> Result<Unpacked> {
    let checksums = manifest.checksums().unwrap_or(ManifestChecksums::Sha256);
    let increments = link.changes.then_some(combining.sizes);
    let options = VerifyOptions { increments, ..VerifyOptions::files(checksums) };
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(AT_ONCE);
    let one = |part: Part| {
        let (job, id, made) = (job.clone(), link.id.clone(), made.clone());
        let role = Role { newest, changes: link.changes, combining: combining.clone() };
        async move {
            let unpacking = tokio::spawn(async move { part_of(&job, &id, part, &made, options, role).await });
            let unpacked = AbortOnDropHandle::new(unpacking).await;
            unpacked.map_err(|error| EngineError::new(FailureKind::Local, format!("unpacking ended: {error}")))?
        }
    };
    let mut unpacked = stream::iter(link.parts.iter().cloned().map(one)).buffer_unordered(workers);
    let mut all = Verified::default();
    while let Some(verified) = unpacked.try_next().await? {
        all.absorb(verified);
    }
    let id = link.id.clone();
    blocking(move || {
        let report = all.compare(&manifest);
        let Some(first) = report.findings.first() else {
            return Ok(Unpacked { files: report.files, bytes: report.bytes });
        };
        let more = match report.findings.len() {
            1 => String::new(),
            all => format!(", and {} more", all - 1),
        };
        Err(EngineError::damaged(format!("snapshot {id} is not what the server sent: {first}{more}"))
            .hint("restore from another snapshot"))
    })
    .await
}

/// Links to tablespaces: made when nothing is unpacked any more that could be led through them.
fn link_spaces(place: &Place, made: &Made) -> Result<()> {
    for space in place.tablespaces() {
        let name = Path::new("pg_tblspc").join(space.oid.to_string());
        let link = made.data().here().join(&name);
        let linked = symlink(&space.folder, &link).and_then(|()| place.owner().give(&link));
        linked.map_err(|error| local(&place.directory().join(name), &error))?;
    }
    Ok(())
}

async fn part_of(job: &Job, id: &str, part: Part, made: &Made, options: VerifyOptions, role: Role) -> Result<Verified> {
    let reader = reader(&job.cluster, id, &part).await?;
    let unpacker = Unpacker::new(made, part.tablespace, options, role)?;
    let name = part.object.name;
    let frames = reader.stream(|_| true, FRAMES_AHEAD).then(|frame| async move {
        let (_, frame) = frame?;
        job.pass(frame.len() as u64).await?;
        job.progress.add(frame.len() as u64);
        Ok::<_, EngineError>(frame)
    });
    let unpacking = feed(Box::pin(frames), move |frames| unpacker.unpack(&name, frames));
    tokio::select! {
        verified = unpacking => verified,
        () = job.cancel.cancelled() => Err(EngineError::cancelled()),
    }
}

/// What a base is to others.
#[derive(Clone, Debug)]
struct Role {
    /// Whether it says which files there are; of others only what that one lacks is taken.
    newest: bool,
    /// Whether it holds only what changed since another.
    changes: bool,
    combining: Arc<Combining>,
}

/// A file that is being written.
enum Writing {
    Whole(PathBuf, File),
    Filled(PathBuf, Filling),
    /// `backup_label` of one that holds only what changed.
    Label(PathBuf, File, Vec<u8>),
}

/// Unpacks one part.
struct Unpacker {
    role: Role,
    /// Where its paths begin; none of a tablespace that there is no more.
    root: Option<Folder>,
    tablespace: Option<u32>,
    verifier: Verifier,
    /// Directories that are known to be there.
    known: HashSet<Vec<u8>>,
    file: Option<Writing>,
}

impl Unpacker {
    fn new(made: &Made, tablespace: Option<u32>, options: VerifyOptions, role: Role) -> Result<Self> {
        let root = tablespace.map_or(Some(made.data()), |oid| made.space(oid)).cloned();
        if root.is_none() && role.newest {
            return Err(EngineError::damaged("the snapshot has data of a tablespace that it does not name"));
        }
        let verifier = Verifier::new(options, tablespace);
        Ok(Self { role, root, tablespace, verifier, known: HashSet::new(), file: None })
    }

    fn unpack(mut self, name: &str, frames: &mut crate::feed::Feed) -> Result<Verified> {
        let damaged = |why: &dyn std::fmt::Display| EngineError::damaged(format!("{name} is damaged: {why}"));
        let mut reader = TarReader::new();
        let mut failed = None;
        for frame in frames {
            let read = reader.feed(&frame, &mut |event| {
                if failed.is_none() {
                    failed = self.take(event).err();
                }
            });
            if let Some(error) = failed.take() {
                return Err(error);
            }
            read.map_err(|error| damaged(&error))?;
        }
        reader.finish().map_err(|error| damaged(&error))?;
        Ok(self.verifier.finish())
    }

    fn take(&mut self, event: TarEvent<'_>) -> Result<()> {
        self.verifier.take(event);
        match event {
            TarEvent::File(header) => match self.root.clone() {
                Some(root) if self.role.newest => self.begin(&root, header),
                Some(root) => self.fill(&root, header),
                None => Ok(()),
            },
            TarEvent::Data(data) => match &mut self.file {
                Some(Writing::Whole(path, file)) => {
                    let written = data.chunks(WRITTEN_AT_ONCE).try_for_each(|piece| file.write_all(piece));
                    written.map_err(|error| failed(path, &error))
                }
                Some(Writing::Filled(path, filling)) => filling.feed(data).map_err(|fault| unfilled(path, fault)),
                Some(Writing::Label(_, _, label)) => {
                    label.extend_from_slice(data);
                    match label.len() > LONGEST_LABEL {
                        true => Err(EngineError::damaged("the snapshot has a backup_label that no server writes")),
                        false => Ok(()),
                    }
                }
                None => Ok(()),
            },
            TarEvent::End { .. } => match self.file.take() {
                Some(Writing::Filled(path, filling)) => {
                    let (file, wanted) = filling.finish().map_err(|fault| unfilled(&path, fault))?;
                    self.role.combining.want(file, wanted);
                    Ok(())
                }
                Some(Writing::Label(path, mut file, label)) => {
                    file.write_all(&plain_label(&label)).map_err(|error| failed(&path, &error))
                }
                Some(Writing::Whole(..)) | None => Ok(()),
            },
        }
    }

    /// A file of an older base begins: what is wanted of it is taken.
    fn fill(&mut self, root: &Folder, header: &TarHeader) -> Result<()> {
        if header.kind != TarKind::File {
            return Ok(());
        }
        let path = self.listed(&header.path);
        let changes = changes_of(&path).filter(|_| self.role.changes);
        let whole = changes.is_none();
        let target = changes.unwrap_or(path);
        let Some(wanted) = self.role.combining.take(&target) else { return Ok(()) };
        let own = OsStr::from_bytes(self.unlisted(&target));
        let shown = root.path().join(own);
        // It was made by the newest one, and nobody else can have changed that.
        let file = File::options().write(true).open(root.here().join(own)).map_err(|error| failed(&shown, &error))?;
        let filling = Filling::older(target, file, self.role.combining.sizes, wanted, whole);
        self.file = Some(Writing::Filled(shown, filling));
        Ok(())
    }

    /// A path as manifests have it.
    fn listed(&self, path: &[u8]) -> Vec<u8> {
        match self.tablespace {
            Some(oid) => [format!("pg_tblspc/{oid}/").as_bytes(), path].concat(),
            None => path.to_vec(),
        }
    }

    /// The same the other way round.
    fn unlisted<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        let within = self.tablespace.and_then(|oid| path.strip_prefix(format!("pg_tblspc/{oid}/").as_bytes()));
        within.unwrap_or(path)
    }

    fn begin(&mut self, root: &Folder, header: &TarHeader) -> Result<()> {
        let inside = |folder: &[u8]| header.path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'));
        let is_main = self.tablespace.is_none();
        match &header.kind {
            // They are made by us, for the tablespaces that are known.
            TarKind::Link { .. } => return Ok(()),
            // Links will be there.
            _ if is_main && inside(b"pg_tblspc") => {
                let path = String::from_utf8_lossy(&header.path);
                let what = format!("a tablespace lies within the data directory ({path}), which is not supported");
                return Err(EngineError::new(FailureKind::Unsupported, what));
            }
            TarKind::Directory => {
                self.directory(root, &header.path)?;
                let mode = fs::Permissions::from_mode(header.mode & 0o777);
                let set = fs::set_permissions(within(root.here(), &header.path), mode);
                return set.map_err(|error| failed(&within(root.path(), &header.path), &error));
            }
            // What the server needs of the log, and no more, it gets from us.
            TarKind::File if is_main && (LEFT_OUT.contains(&&header.path[..]) || inside(b"pg_wal")) => return Ok(()),
            TarKind::File => {}
        }
        if let Some(slash) = header.path.iter().rposition(|byte| *byte == b'/') {
            let folder = header.path.get(..slash).unwrap_or_default().to_vec();
            self.directory(root, &folder)?;
        }
        let changes = changes_of(&self.listed(&header.path)).filter(|_| self.role.changes);
        let name = changes.as_ref().map_or(&header.path[..], |target| self.unlisted(target));
        let path = within(root.here(), name);
        let open = || {
            let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.set_permissions(fs::Permissions::from_mode(header.mode & 0o777))?;
            root.owner().give_file(&file)?;
            Ok(file)
        };
        let shown = within(root.path(), name);
        let file = open().map_err(|error: io::Error| failed(&shown, &error))?;
        self.file = Some(match changes {
            Some(target) => Writing::Filled(shown, Filling::newest(target, file, self.role.combining.sizes)),
            None if is_main && self.role.changes && header.path == LABEL => Writing::Label(shown, file, Vec::new()),
            None => Writing::Whole(shown, file),
        });
        Ok(())
    }

    /// Makes a directory, with those that it is in: of another part they may come later.
    fn directory(&mut self, root: &Folder, path: &[u8]) -> Result<()> {
        if self.known.contains(path) {
            return Ok(());
        }
        if let Some(slash) = path.iter().rposition(|byte| *byte == b'/') {
            let above = path.get(..slash).unwrap_or_default().to_vec();
            self.directory(root, &above)?;
        }
        let made = within(root.here(), path);
        match DirBuilder::new().mode(0o700).create(&made) {
            Ok(()) => root.owner().give(&made).map_err(|error| failed(&within(root.path(), path), &error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(&made) => {}
            Err(error) => return Err(failed(&within(root.path(), path), &error)),
        }
        self.known.insert(path.to_vec());
        Ok(())
    }
}

fn within(folder: impl AsRef<Path>, path: &[u8]) -> PathBuf {
    folder.as_ref().join(OsStr::from_bytes(path))
}

/// A file cannot be put together.
fn unfilled(path: &Path, fault: Fault) -> EngineError {
    match fault {
        Fault::Stored(error) => EngineError::damaged(format!(
            "what the snapshot has of {} is not what it should be: {error}",
            path.display()
        )),
        Fault::Disk(error) => failed(path, &error),
    }
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn failed(path: &Path, error: &io::Error) -> EngineError {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return EngineError::damaged(format!("the snapshot has {} twice", path.display()));
    }
    local(path, error)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::base::tar_tests::{file, header, sealed};
    use crate::restore::settings::tests::base;

    /// Unpacks an archive into a new directory below `folder`.
    async fn unpack(folder: &Path, tablespace: Option<u32>, archive: Vec<u8>) -> Result<Verified> {
        let directory = hindsight_engine::Directory::new(folder.join("data"));
        let mut base = base();
        if tablespace.is_some() {
            let (name, location) = ("fast".to_owned(), "/mnt/fast".to_owned());
            base.tablespaces.push(crate::base::StoredTablespace { oid: 16385, name, location });
        }
        // As root it would have to be somebody else's.
        let place = Place::for_tests(&directory, &base)?;
        let made = place.make()?;
        let options = VerifyOptions::files(ManifestChecksums::Crc32c);
        let combining = Arc::new(Combining::new(PageSizes::default()));
        let role = Role { newest: true, changes: false, combining };
        let unpacker = Unpacker::new(&made, tablespace, options, role)?;
        let pieces: Vec<_> = archive.chunks(700).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let verified = feed(stream::iter(pieces), move |frames| unpacker.unpack("x.tar", frames)).await?;
        fs::create_dir_all(folder.join("data/pg_tblspc"))?;
        link_spaces(&place, &made)?;
        Ok(verified)
    }

    #[tokio::test]
    async fn files_come_with_their_modes_and_what_is_not_for_the_server_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = header(b"open/", b'5', 0, b"");
        open[100..108].copy_from_slice(b"0000750 ");
        let archive = [
            file("base/5/1", b"data"),
            sealed(open),
            file("open/x", b""),
            file("standby.signal", b""),
            file("tablespace_map", b"16385 /mnt/fast\n"),
            file("pg_wal/000000010000000000000001", b"log"),
            header(b"pg_wal/archive_status/", b'5', 0, b""),
            header(b"pg_tblspc/", b'5', 0, b""),
            header(b"pg_tblspc/16385/", b'2', 0, b"/mnt/fast"),
        ]
        .concat();
        unpack(folder.path(), None, archive).await.unwrap();
        let data = folder.path().join("data");
        let mode = |path: &str| fs::metadata(data.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(fs::read(data.join("base/5/1")).unwrap(), b"data");
        assert_eq!([mode("base/5/1"), mode("base/5"), mode("open"), mode("open/x")], [0o600, 0o700, 0o750, 0o600]);
        for gone in ["standby.signal", "tablespace_map", "pg_wal/000000010000000000000001", "pg_tblspc/16385"] {
            assert!(fs::symlink_metadata(data.join(gone)).is_err(), "{gone}");
        }
        assert!(data.join("pg_wal/archive_status").is_dir());
    }

    #[tokio::test]
    async fn a_tablespace_goes_to_its_folder_with_a_link_to_it() {
        let folder = tempfile::tempdir().unwrap();
        unpack(folder.path(), Some(16385), file("PG_15_202209061/5/1", b"data")).await.unwrap();
        let link = folder.path().join("data/pg_tblspc/16385");
        assert_eq!(fs::read_link(&link).unwrap(), folder.path().join("data.tablespaces/16385"));
        assert_eq!(fs::read(link.join("PG_15_202209061/5/1")).unwrap(), b"data");
    }

    #[tokio::test]
    async fn nothing_is_written_elsewhere() {
        for archive in [
            file("../x", b"data"),
            file("/x", b"data"),
            file("base/../../x", b"data"),
            [header(b"pg_tblspc/7/", b'2', 0, b"/tmp"), file("pg_tblspc/7/x", b"data")].concat(),
            file("pg_tblspc/7/x", b"data"),
            header(b"base", b'2', 0, b"/tmp"),
            [file("x", b"data"), file("x", b"other")].concat(),
            [file("x", b"data"), file("x/y", b"data")].concat(),
            file("x", b"data")[..700].to_vec(),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let refused = unpack(folder.path(), None, archive.clone()).await.unwrap_err();
            assert!(!refused.what.is_empty());
            let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["data"], "{}", refused.what);
        }
    }
}
