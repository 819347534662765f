//! Whether a backup is what its manifest says, found out while it streams by.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use super::checksum::{Checksum, Checksummer};
use super::increment::{Change, IncrementError, IncrementReader, changes_of};
use super::manifest::BackupManifest;
use super::page::{PageProblem, PageSizes, Pages};
use super::tar::{Shown, TarEvent, TarKind};
use crate::Lsn;
use crate::wal::{SegmentSize, WalFile};
use crate::wire::ManifestChecksums;

/// Damaged pages that are named; more are only counted.
const MAX_PAGES: usize = 1000;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// The kind of checksum that the manifest has, or will have.
    pub checksums: ManifestChecksums,
    /// For clusters with checksums of pages: how they keep relations, and where the backup begins in the log. Pages that
    /// were written since may be torn, and are not looked at.
    pub pages: Option<(PageSizes, Lsn)>,
    /// For incremental backups: how the cluster keeps the relations of which there are only the changes.
    pub increments: Option<PageSizes>,
}

impl VerifyOptions {
    /// Files alone, and no pages in them.
    pub fn files(checksums: ManifestChecksums) -> Self {
        Self { checksums, pages: None, increments: None }
    }
}

/// Something that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, by its path in the data directory.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub what: Wrong,
}

/// What can be wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Wrong {
    /// It is in the manifest, and did not come.
    Missing,
    /// It came, and is not in the manifest.
    Unexpected,
    /// It came more than once.
    Twice,
    /// It is longer or shorter.
    Size {
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// Its bytes are others.
    Checksum,
    /// The manifest has another kind of checksum than was computed, so that its bytes could not be compared.
    NotCompared {
        /// The kind.
        expected: ManifestChecksums,
    },
    /// Its changes cannot be made out.
    Increment(IncrementError),
    /// A page is damaged.
    Page(PageProblem),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = Shown(&self.path);
        match &self.what {
            Wrong::Missing => write!(f, "{path} is missing"),
            Wrong::Unexpected => write!(f, "{path} is there, and not in the manifest"),
            Wrong::Twice => write!(f, "{path} is there twice"),
            Wrong::Size { expected, found } => write!(f, "{path} has {found} bytes instead of {expected}"),
            Wrong::Checksum => write!(f, "{path} has another checksum than the manifest says"),
            Wrong::NotCompared { expected } => {
                write!(f, "{path} cannot be compared: its checksum is one by {}", expected.name())
            }
            Wrong::Increment(error) => write!(f, "{path} is not what it should be: {error}"),
            Wrong::Page(PageProblem { block, stored, computed }) => {
                write!(
                    f,
                    "{path} is damaged in page {block}: its checksum is {computed:04X}, and should be {stored:04X}"
                )
            }
        }
    }
}

/// What a file was like.
#[derive(Clone, Debug)]
struct Seen {
    size: u64,
    checksum: Checksum,
    /// Bytes that it has once restored, if it holds only what changed.
    restored: Option<u64>,
}

/// Looks at the events of one archive, or of a part of one that begins with a file.
#[derive(Debug)]
pub struct Verifier {
    options: VerifyOptions,
    /// What manifests have before the paths of this archive.
    prefix: Vec<u8>,
    open: Option<Open>,
    verified: Verified,
}

#[derive(Debug)]
struct Open {
    path: Vec<u8>,
    size: u64,
    checksum: Checksummer,
    pages: Option<Pages>,
    changes: Option<Changes>,
}

/// A file that holds only what changed.
#[derive(Debug)]
struct Changes {
    /// The file that it holds changes of.
    of: Vec<u8>,
    reader: IncrementReader,
    failed: Option<IncrementError>,
}

impl Verifier {
    /// Of the archive of a tablespace, by its OID, or of the main data directory.
    pub fn new(options: VerifyOptions, tablespace: Option<u32>) -> Self {
        // AddFileToBackupManifest
        let prefix = tablespace.map(|oid| format!("pg_tblspc/{oid}/").into_bytes()).unwrap_or_default();
        Self { options, prefix, open: None, verified: Verified::default() }
    }

    /// Takes the next event.
    pub fn take(&mut self, event: TarEvent<'_>) {
        match event {
            TarEvent::File(header) if header.kind == TarKind::File => {
                let path = [self.prefix.as_slice(), &header.path].concat();
                let changes = self.options.increments.zip(changes_of(&path));
                let changes =
                    changes.map(|(sizes, of)| Changes { of, reader: IncrementReader::new(sizes), failed: None });
                let relation = changes.as_ref().map_or(&path, |changes| &changes.of);
                let pages = self.options.pages.and_then(|(sizes, start)| Pages::of(relation, sizes, start));
                let checksum = Checksummer::new(self.options.checksums);
                self.open = Some(Open { path, size: 0, checksum, pages, changes });
            }
            TarEvent::File(_) => self.open = None,
            TarEvent::Data(data) => {
                let Some(open) = &mut self.open else { return };
                open.size += data.len() as u64;
                open.checksum.update(data);
                let Open { path, pages, changes, .. } = open;
                match (changes, pages) {
                    (None, None) => {}
                    (None, Some(pages)) => pages.feed(data, &mut |problem| self.verified.page(path, problem)),
                    (Some(changes), pages) => changes.feed(data, pages.as_mut(), &mut self.verified),
                }
            }
            TarEvent::End { .. } => {
                let Some(Open { path, size, checksum, pages: _, changes }) = self.open.take() else { return };
                let restored = changes.and_then(|changes| changes.finish(&path, &mut self.verified));
                self.verified.see(path.into(), Seen { size, checksum: checksum.finish(), restored });
            }
        }
    }

    /// What was in it. A file that did not come whole is not.
    pub fn finish(self) -> Verified {
        self.verified
    }
}

impl Changes {
    fn feed(&mut self, data: &[u8], mut pages: Option<&mut Pages>, verified: &mut Verified) {
        if self.failed.is_some() {
            return;
        }
        let of = &self.of;
        let fed = self.reader.feed(data, &mut |change| {
            let (Change::Data { block, offset, bytes }, Some(pages)) = (change, pages.as_deref_mut()) else { return };
            if offset == 0 {
                pages.go_to(of, block);
            }
            pages.feed(bytes, &mut |problem| verified.page(of, problem));
        });
        self.failed = fed.err();
    }

    /// Bytes that the file has once restored.
    fn finish(self, path: &[u8], verified: &mut Verified) -> Option<u64> {
        let block = self.reader.sizes().block() as u64;
        match self.failed.map_or_else(|| self.reader.finish(), Err) {
            Ok(changed) => Some(u64::from(changed.whole()) * block),
            Err(error) => {
                verified.findings.push(Finding { path: path.to_vec(), what: Wrong::Increment(error) });
                None
            }
        }
    }
}

/// What was in a backup, or in some of its archives.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    files: HashMap<Box<[u8]>, Seen>,
    findings: Vec<Finding>,
    damaged_pages: u64,
}

impl Verified {
    fn see(&mut self, path: Box<[u8]>, seen: Seen) {
        match self.files.entry(path) {
            Entry::Occupied(first) => {
                self.findings.push(Finding { path: first.key().to_vec(), what: Wrong::Twice });
            }
            Entry::Vacant(free) => {
                free.insert(seen);
            }
        }
    }

    fn page(&mut self, path: &[u8], problem: PageProblem) {
        if self.damaged_pages < MAX_PAGES as u64 {
            self.findings.push(Finding { path: path.to_vec(), what: Wrong::Page(problem) });
        }
        self.damaged_pages += 1;
    }

    /// Adds what was in another archive or part.
    pub fn absorb(&mut self, other: Self) {
        for (path, seen) in other.files {
            self.see(path, seen);
        }
        for finding in other.findings {
            match finding.what {
                Wrong::Page(problem) => self.page(&finding.path, problem),
                _ => self.findings.push(finding),
            }
        }
    }

    /// Compares all that came with the manifest.
    pub fn compare(self, manifest: &BackupManifest) -> Report {
        let Self { files, mut findings, damaged_pages } = self;
        let mut report = Report { damaged_pages, ..Report::default() };
        let mut found = |path: &[u8], what| findings.push(Finding { path: path.to_vec(), what });
        for (path, seen) in &files {
            report.files += 1;
            report.bytes = report.bytes.saturating_add(seen.restored.unwrap_or(seen.size));
            if let Some(bytes) = seen.restored {
                report.restored.insert(path.clone(), bytes);
            }
            let Some(expected) = manifest.expect(path) else {
                if !goes_without(path) {
                    found(path, Wrong::Unexpected);
                }
                continue;
            };
            let (size, kind) = (expected.size, expected.checksum.kind);
            if seen.size != size {
                found(path, Wrong::Size { expected: size, found: seen.size });
            } else if kind == ManifestChecksums::None {
                report.by_size_alone += 1;
            } else if kind != seen.checksum.kind {
                found(path, Wrong::NotCompared { expected: kind });
            } else if expected.checksum != seen.checksum {
                found(path, Wrong::Checksum);
            }
        }
        for (path, _) in manifest.files().filter(|(path, _)| !files.contains_key(*path)) {
            found(path, Wrong::Missing);
        }
        findings.sort_unstable();
        report.findings = findings;
        report
    }
}

/// Whether servers send it without an entry (basebackup.c): that is the log, if it was asked for, which is verified by
/// itself. Of what they put beside it, `.history` and `archive_status`, there are entries; so there are of `backup_label`
/// and `tablespace_map`. The manifest can only be in an archive that a client put it into, and never names itself.
fn goes_without(path: &[u8]) -> bool {
    let segment = path.strip_prefix(b"pg_wal/").and_then(|name| std::str::from_utf8(name).ok());
    // Whatever the size of segments is: with the smallest, all names are ones.
    let smallest = SegmentSize::new(1 << 20).unwrap_or_default();
    let segment = segment.and_then(|name| WalFile::parse(name, smallest));
    matches!(segment, Some(WalFile::Segment(_))) || path == b"backup_manifest"
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that came.
    pub files: u64,
    /// Their bytes, once restored.
    pub bytes: u64,
    /// Of files that hold only what changed, bytes that they have once restored.
    pub restored: HashMap<Box<[u8]>, u64>,
    /// Files that the manifest has no checksum of.
    pub by_size_alone: u64,
    /// Pages that are damaged, of which the first thousand are among the findings.
    pub damaged_pages: u64,
    /// Everything that is wrong, by path.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::increment::tests::{BLOCK, increment};
    use super::super::manifest::tests::{entry, manifest};
    use super::super::page::tests::page;
    use super::super::tar::TarReader;
    use super::super::tar::tests::{file, header};
    use super::*;

    const CRC: VerifyOptions = VerifyOptions { checksums: ManifestChecksums::Crc32c, pages: None, increments: None };

    fn verified(options: VerifyOptions, tablespace: Option<u32>, archive: &[u8]) -> Verified {
        let (mut reader, mut verifier) = (TarReader::new(), Verifier::new(options, tablespace));
        for piece in archive.chunks(1000) {
            reader.feed(piece, &mut |event| verifier.take(event)).unwrap();
        }
        verifier.finish()
    }

    fn listed(files: &[(&str, &[u8])]) -> BackupManifest {
        let entries: Vec<_> = files
            .iter()
            .map(|(path, data)| {
                let mut sum = Checksummer::new(ManifestChecksums::Crc32c);
                sum.update(data);
                entry(path, data.len() as u64, &sum.finish().to_string())
            })
            .collect();
        BackupManifest::parse(manifest(&entries).as_bytes()).unwrap()
    }

    fn told(report: &Report) -> Vec<String> {
        report.findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_as_it_should_be() {
        let manifest = listed(&[
            ("backup_label", b"label"),
            ("base/1/2", b"data"),
            ("empty", b""),
            ("pg_tblspc/16385/PG_15/1/3", b"more"),
            ("pg_wal/archive_status/000000010000000000000002.done", b""),
        ]);
        let base = [
            file("backup_label", b"label"),
            header(b"base/", b'5', 0, b""),
            header(b"pg_tblspc/16385/", b'2', 0, b"/x"),
            file("base/1/2", b"data"),
            file("empty", b""),
            file("pg_wal/000000010000000000000002", b"log"),
            // with segments of 1 MiB
            file("pg_wal/000000010000000000000FFF", b"log"),
            file("pg_wal/archive_status/000000010000000000000002.done", b""),
            file("backup_manifest", b"{}"),
        ]
        .concat();
        let mut all = verified(CRC, Some(16385), &file("PG_15/1/3", b"more"));
        all.absorb(verified(CRC, None, &base));
        let report = all.compare(&manifest);
        assert_eq!(told(&report), Vec::<String>::new());
        assert_eq!((report.files, report.is_clean()), (8, true));
    }

    #[test]
    fn everything_that_is_wrong_is_found_at_once() {
        let manifest = listed(&[
            ("changed", b"data"),
            ("gone", b""),
            ("longer", b"data"),
            ("PG_15/1/3", b"data"),
            ("pg_wal/00000002.history", b""),
            ("twice", b"data"),
        ]);
        let archive = [
            file("changed", b"dita"),
            file("longer", b"data."),
            file("twice", b"data"),
            file("twice", b"other"),
            file("pg_wal/0000000100000000000000023", b""),
            file("base/pg_wal/000000010000000000000002", b""),
        ]
        .concat();
        let mut all = verified(CRC, None, &archive);
        all.absorb(verified(CRC, Some(7), &file("PG_15/1/3", b"data")));
        let report = all.compare(&manifest);
        assert_eq!(
            told(&report),
            [
                "\"PG_15/1/3\" is missing",
                "\"base/pg_wal/000000010000000000000002\" is there, and not in the manifest",
                "\"changed\" has another checksum than the manifest says",
                "\"gone\" is missing",
                "\"longer\" has 5 bytes instead of 4",
                "\"pg_tblspc/7/PG_15/1/3\" is there, and not in the manifest",
                "\"pg_wal/0000000100000000000000023\" is there, and not in the manifest",
                "\"pg_wal/00000002.history\" is missing",
                "\"twice\" is there twice",
            ]
        );
    }

    #[test]
    fn what_cannot_be_compared_is_not_called_good() {
        let sha = VerifyOptions::files(ManifestChecksums::Sha256);
        let report = verified(sha, None, &file("x", b"data")).compare(&listed(&[("x", b"data")]));
        assert_eq!(told(&report), ["\"x\" cannot be compared: its checksum is one by CRC32C"]);
        let bare = "{ \"Path\": \"x\", \"Size\": 4 }".to_owned();
        let bare = BackupManifest::parse(manifest(&[bare]).as_bytes()).unwrap();
        let report = verified(CRC, None, &file("x", b"data")).compare(&bare);
        assert_eq!((report.by_size_alone, report.is_clean()), (1, true));
        // Half a file did not come.
        let half = &file("x", b"data")[..514];
        assert_eq!(told(&verified(CRC, None, half).compare(&bare)), ["\"x\" is missing"]);
    }

    #[test]
    fn a_damaged_page_is_named() {
        let options = VerifyOptions { pages: Some((PageSizes::default(), Lsn(1000))), ..CRC };
        let mut data: Vec<u8> = (0..1200).flat_map(|block| page(block, 7, 1)).collect();
        data[8192 * 3 + 100] ^= 1;
        let part = |path: &str, tablespace| verified(options, tablespace, &file(path, &data));
        let mut all = part("base/5/16384", None);
        all.absorb(part("PG_15_202209061/5/16384", Some(16385)));
        all.absorb(part("base/5/not_one", None));
        let manifest = listed(&[
            ("base/5/16384", &data),
            ("base/5/not_one", &data),
            ("pg_tblspc/16385/PG_15_202209061/5/16384", &data),
        ]);
        let report = all.compare(&manifest);
        assert_eq!((report.damaged_pages, report.findings.len()), (2, 2));
        let shown = report.findings[1].to_string();
        assert!(shown.starts_with("\"pg_tblspc/16385/PG_15_202209061/5/16384\" is damaged in page 3: "), "{shown}");
        // Of many, only some are named.
        let data: Vec<u8> = data.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at % 8192 == 99)).collect();
        let report = verified(options, None, &file("base/5/1", &data)).compare(&listed(&[("base/5/1", &data)]));
        assert_eq!((report.damaged_pages, report.findings.len()), (1200, MAX_PAGES));
    }

    #[test]
    fn of_changes_the_pages_are_looked_at_and_the_size_to_be() {
        let sizes = PageSizes::default();
        let options = VerifyOptions { pages: Some((sizes, Lsn(1000))), increments: Some(sizes), ..CRC };
        // Two of nine pages, the second of them damaged.
        let mut data = increment(9, &[(3, 0), (6, 0)]);
        data.truncate(BLOCK);
        data.extend(page(131_072 + 3, 7, 1));
        data.extend(page(131_072 + 6, 7, 1));
        let path = "base/5/INCREMENTAL.16384.1";
        let report = verified(options, None, &file(path, &data)).compare(&listed(&[(path, &data)]));
        assert_eq!(told(&report), Vec::<String>::new());
        assert_eq!((report.bytes, report.restored.get(path.as_bytes())), (9 * 8192, Some(&(9 * 8192))));
        data[2 * BLOCK + 100] ^= 1;
        let report = verified(options, None, &file(path, &data)).compare(&listed(&[(path, &data)]));
        let shown = told(&report).concat();
        assert!(shown.starts_with("\"base/5/16384.1\" is damaged in page 131078: "), "{shown}");
        data.pop();
        let report = verified(options, None, &file(path, &data)).compare(&listed(&[(path, &data)]));
        assert_eq!(
            told(&report),
            ["\"base/5/INCREMENTAL.16384.1\" is not what it should be: it has 24575 bytes, and says that it has 24576"]
        );
        // Where nothing builds upon anything, a file may be called so.
        let report = verified(CRC, None, &file(path, &data)).compare(&listed(&[(path, &data)]));
        assert!(report.is_clean());
    }
}
