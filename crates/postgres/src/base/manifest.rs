//! `backup_manifest`: the server's own list of what it sent (<https://www.postgresql.org/docs/current/backup-manifest-format.html>).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::checksum::{Checksum, from_hex};
use super::tar::{Shown, is_inside};
use crate::wire::ManifestChecksums;
use crate::{Lsn, TimelineId};

/// Of one file's entry. Paths have less than 1024 bytes (`MAXPGPATH`), and six times as many at most once they are escaped.
const MAX_ENTRY: usize = 64 << 10;

/// Of everything that is no entry of a list.
const MAX_FRAME: usize = 16 << 10;

/// A manifest that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is no manifest.
    #[error("the backup manifest is damaged: {0}")]
    Damaged(String),
    /// One of a later version.
    #[error("the backup manifest is of version {0}, which this version of Hindsight does not know")]
    Version(u64),
    /// Its bytes are not those that the server wrote.
    #[error("the backup manifest is damaged: its checksum is wrong")]
    Checksum,
}

fn damaged(what: impl Into<String>) -> ManifestError {
    ManifestError::Damaged(what.into())
}

/// What a file has to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its bytes.
    pub size: u64,
    /// Their checksum.
    pub checksum: Checksum,
}

/// Log that has to be replayed for the backup to be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// From here.
    pub start: Lsn,
    /// Up to here.
    pub end: Lsn,
}

/// A manifest. Its own checksum was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupManifest {
    /// 1, or 2 from PostgreSQL 17 on.
    pub version: u64,
    /// The cluster's, from version 2 on.
    pub system_identifier: Option<u64>,
    /// The log that is needed, newest timeline first.
    pub wal: Vec<WalRange>,
    files: HashMap<Box<[u8]>, Expected>,
}

impl BackupManifest {
    /// Reads one that is in memory.
    ///
    /// # Errors
    /// Those of [`ManifestReader`].
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let mut reader = ManifestReader::new();
        reader.feed(json)?;
        reader.finish()
    }

    /// What the file at a path of the data directory has to be like; none if there is no such file.
    pub fn expect(&self, path: &[u8]) -> Option<&Expected> {
        self.files.get(path)
    }

    /// All files, in no order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&[u8], &Expected)> {
        self.files.iter().map(|(path, expected)| (path.as_ref(), expected))
    }

    /// The one kind of checksum that its files have; none if they have several.
    pub fn checksums(&self) -> Option<ManifestChecksums> {
        let mut kinds = self.files.values().map(|file| file.checksum.kind);
        let first = kinds.next().unwrap_or(ManifestChecksums::None);
        kinds.all(|kind| kind == first).then_some(first)
    }
}

/// Reads a manifest in pieces of any size. Holds the table of its files, but never its text.
///
/// The text is split into the entries of its lists and the frame around them, and each of these is read by itself.
#[derive(Debug)]
pub struct ManifestReader {
    hash: Sha256,
    /// From the last but one line on: how much of it the checksum is of is known at the end.
    lines: Vec<u8>,
    /// Everything that is not in a list.
    frame: Vec<u8>,
    /// The entry that is not whole yet.
    entry: Vec<u8>,
    list: List,
    depth: usize,
    in_text: bool,
    escaped: bool,
    files: HashMap<Box<[u8]>, Expected>,
    wal: Vec<WalRange>,
    failed: Option<ManifestError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    None,
    Files,
    WalRanges,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Frame {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u64,
    #[serde(rename = "System-Identifier")]
    system_identifier: Option<u64>,
    #[serde(rename = "Files")]
    _files: [(); 0],
    #[serde(rename = "WAL-Ranges")]
    _wal: [(); 0],
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    _modified: Option<String>,
    #[serde(rename = "Checksum-Algorithm")]
    kind: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WalEntry {
    #[serde(rename = "Timeline")]
    timeline: TimelineId,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl Default for ManifestReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestReader {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self {
            hash: Sha256::new(),
            lines: Vec::new(),
            frame: Vec::new(),
            entry: Vec::new(),
            list: List::None,
            depth: 0,
            in_text: false,
            escaped: false,
            files: HashMap::new(),
            wal: Vec::new(),
            failed: None,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// It is no manifest. Nothing can be read after that.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut fed = self.hash(bytes);
        if fed.is_ok() {
            fed = bytes.iter().try_for_each(|byte| self.take(*byte));
        }
        if let Err(error) = &fed {
            self.failed = Some(error.clone());
        }
        fed
    }

    /// There is no more of it.
    ///
    /// # Errors
    /// It is no manifest, or not the one that the server wrote.
    pub fn finish(self) -> Result<BackupManifest, ManifestError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        check_version(&self.frame)?;
        let frame: Frame = serde_json::from_slice(&self.frame).map_err(|error| damaged(error.to_string()))?;
        if self.lines.last() != Some(&b'\n') || from_hex(&frame.checksum).as_deref() != Some(&self.hash.finalize()) {
            return Err(ManifestError::Checksum);
        }
        let (version, system_identifier) = (frame.version, frame.system_identifier);
        if (version == 2) != system_identifier.is_some() {
            return Err(damaged("its version does not fit the identifier of the cluster"));
        }
        Ok(BackupManifest { version, system_identifier, wal: self.wal, files: self.files })
    }

    /// The checksum is of all lines but the last (`verify_manifest_checksum` in parse_manifest.c).
    fn hash(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        self.lines.extend_from_slice(bytes);
        let end = self.lines.len() - usize::from(self.lines.last() == Some(&b'\n'));
        let before = self.lines.get(..end).and_then(|lines| lines.iter().rposition(|byte| *byte == b'\n'));
        if let Some(before) = before {
            let rest = self.lines.split_off(before + 1);
            self.hash.update(&self.lines);
            self.lines = rest;
        }
        if self.lines.len() > 2 * MAX_ENTRY { Err(damaged("it has no lines")) } else { Ok(()) }
    }

    fn take(&mut self, byte: u8) -> Result<(), ManifestError> {
        if self.in_text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            return self.keep(byte);
        }
        match byte {
            b'"' => self.in_text = true,
            b'[' if self.depth == 1 => {
                self.keep(byte)?;
                self.list = self.begun()?;
                self.depth = 2;
                return Ok(());
            }
            b']' if self.depth == 2 => {
                (self.depth, self.list) = (1, List::None);
                return self.keep(byte);
            }
            b'{' => self.depth += 1,
            b'}' if self.depth == 3 => {
                self.keep(byte)?;
                self.depth = 2;
                let entry = std::mem::take(&mut self.entry);
                self.read(&entry)?;
                self.entry = entry;
                self.entry.clear();
                return Ok(());
            }
            b'}' => self.depth = self.depth.checked_sub(1).ok_or_else(|| damaged("it ends before it begins"))?,
            // What stands between the entries of a list.
            b',' | b' ' | b'\n' | b'\r' | b'\t' if self.depth == 2 => return Ok(()),
            _ => {}
        }
        if self.depth > 3 || (self.depth == 2 && self.list == List::None) {
            return Err(damaged("it is nested too deep"));
        }
        self.keep(byte)
    }

    fn keep(&mut self, byte: u8) -> Result<(), ManifestError> {
        let (kept, limit) = match self.depth {
            0 | 1 => (&mut self.frame, MAX_FRAME),
            2 => return Err(damaged("its lists hold something unknown")),
            _ => (&mut self.entry, MAX_ENTRY),
        };
        if kept.len() >= limit {
            return Err(damaged("it has an entry that is too long"));
        }
        kept.push(byte);
        Ok(())
    }

    /// The list that begins, by the key before it.
    fn begun(&self) -> Result<List, ManifestError> {
        // Entries of a later version may be different ones: it is said before they are read.
        let so_far = [&self.frame[..], b"]}"].concat();
        check_version(&so_far)?;
        let key = self.frame.strip_suffix(b"[").unwrap_or_default().trim_ascii_end();
        match key.strip_suffix(b":").unwrap_or_default().trim_ascii_end() {
            key if key.ends_with(b"\"Files\"") => Ok(List::Files),
            key if key.ends_with(b"\"WAL-Ranges\"") => Ok(List::WalRanges),
            _ => Err(damaged("it has an unknown list")),
        }
    }

    fn read(&mut self, entry: &[u8]) -> Result<(), ManifestError> {
        match self.list {
            List::Files => {
                let entry: FileEntry = serde_json::from_slice(entry).map_err(|error| damaged(error.to_string()))?;
                let (path, expected) = entry.check()?;
                match self.files.entry(path.into()) {
                    Entry::Occupied(twice) => Err(damaged(format!("it has {} twice", Shown(twice.key())))),
                    Entry::Vacant(free) => {
                        free.insert(expected);
                        Ok(())
                    }
                }
            }
            List::WalRanges => {
                let entry: WalEntry = serde_json::from_slice(entry).map_err(|error| damaged(error.to_string()))?;
                let lsn = |text: &str| text.parse::<Lsn>().map_err(|error| damaged(error.to_string()));
                self.wal.push(WalRange { timeline: entry.timeline, start: lsn(&entry.start)?, end: lsn(&entry.end)? });
                Ok(())
            }
            List::None => Err(damaged("it has an entry of no list")),
        }
    }
}

impl FileEntry {
    fn check(self) -> Result<(Vec<u8>, Expected), ManifestError> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            // Paths that are no UTF-8.
            (None, Some(path)) => from_hex(&path).ok_or_else(|| damaged("a path is not encoded as it should be"))?,
            _ => return Err(damaged("a file has no path, or two")),
        };
        let wrong = |what: &str| damaged(format!("{} {what}", Shown(&path)));
        if !is_inside(&path) {
            return Err(wrong("is no path of a data directory"));
        }
        let checksum = match (self.kind, self.checksum) {
            (None, None) => Checksum::new(ManifestChecksums::None, []),
            (Some(kind), Some(value)) => {
                let kind = ManifestChecksums::named(&kind).ok_or_else(|| wrong("has an unknown kind of checksum"))?;
                from_hex(&value).and_then(|value| Checksum::new(kind, value))
            }
            _ => None,
        };
        let checksum = checksum.ok_or_else(|| wrong("has a checksum that is none"))?;
        Ok((path, Expected { size: self.size, checksum }))
    }
}

/// Whether it is of a version that is known.
fn check_version(frame: &[u8]) -> Result<(), ManifestError> {
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
        version: u64,
    }
    let frame: Version = serde_json::from_slice(frame).map_err(|error| damaged(error.to_string()))?;
    if matches!(frame.version, 1 | 2) { Ok(()) } else { Err(ManifestError::Version(frame.version)) }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A manifest as servers write it.
    pub(crate) fn manifest(entries: &[String]) -> String {
        let files = entries.join(",\n");
        sealed(&format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": \
             2, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
        ))
    }

    fn sealed(text: &str) -> String {
        let sum: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{text}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    pub(crate) fn entry(path: &str, size: u64, crc: &str) -> String {
        format!(
            "{{ \"Path\": {}, \"Size\": {size}, \"Last-Modified\": \"2026-03-01 10:00:00 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}",
            serde_json::to_string(path).unwrap()
        )
    }

    fn parse(text: &str) -> Result<BackupManifest, ManifestError> {
        BackupManifest::parse(text.as_bytes())
    }

    fn refused(text: &str) -> String {
        parse(&sealed(text)).unwrap_err().to_string()
    }

    #[test]
    fn what_servers_write_is_read() {
        let odd = "a \"quoted\" [{path}],\\";
        let encoded = "{ \"Encoded-Path\": \"62ff\", \"Size\": 0, \"Last-Modified\": \"2026-03-01 10:00:00 GMT\" }";
        let text = manifest(&[entry("base/1", 3, "839206e3"), entry(odd, 0, "00000000"), encoded.to_owned()]);
        let read = parse(&text).unwrap();
        assert_eq!((read.version, read.system_identifier, read.files().len()), (1, None, 3));
        assert_eq!(read.wal, [WalRange { timeline: 2, start: Lsn(0x200_0028), end: Lsn(0x200_0100) }]);
        let one = read.expect(b"base/1").unwrap();
        assert_eq!((one.size, one.checksum.kind), (3, ManifestChecksums::Crc32c));
        assert_eq!(*one.checksum.value, 0xE306_9283_u32.to_le_bytes());
        assert!(read.expect(odd.as_bytes()).is_some());
        assert_eq!(read.expect(b"b\xFF").unwrap().checksum.kind, ManifestChecksums::None);
        assert_eq!((read.expect(b"base"), read.checksums()), (None, None));
        // Version 2, and nothing in it.
        let text = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7320280665284567118,\n\"Files\": \
                    [\n],\n\"WAL-Ranges\": [\n],\n";
        assert_eq!(parse(&sealed(text)).unwrap().system_identifier, Some(7_320_280_665_284_567_118));
    }

    #[test]
    fn a_later_version_is_told_apart_from_damage() {
        let text = "{ \"PostgreSQL-Backup-Manifest-Version\": 3, \"New\": 1,\n\"Files\": [\n{ \"New\": 1 }\n],\n";
        assert_eq!(parse(&sealed(text)), Err(ManifestError::Version(3)));
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        let good = manifest(&[entry("base/1", 3, "839206e3")]);
        let text = good.split("\"Manifest-Checksum").next().unwrap();
        for (from, to, why) in [
            ("base/1", "../1", "no path of a data directory"),
            ("base/1", "/etc/passwd", "no path of a data directory"),
            ("839206e3", "839206", "a checksum that is none"),
            ("839206e3", "839206eg", "a checksum that is none"),
            ("CRC32C", "CRC64", "unknown kind"),
            ("\"Size\": 3", "\"Size\": -3", "invalid"),
            ("\"Size\": 3", "\"Size\": 3e30", "invalid"),
            ("\"Size\": 3", "\"Size\": [{\"a\": [1]}]", "too deep"),
            ("\"Path\"", "\"Encoded-Path\"", "not encoded"),
            ("\"Size\"", "\"Bytes\"", "unknown field"),
            ("Timeline", "Line", "unknown field"),
            ("0/2000028", "2000028", "not a position"),
            ("\"WAL-Ranges\": [", "\"Else\": [", "unknown list"),
            ("\"Files\": [", "\"Files\": [[", "something unknown"),
            ("\"Files\": [", "\"Files\": [1,", "something unknown"),
            ("\"Files\": [", "\"Files\": {\"x\": [", "damaged"),
            ("-Version\": 1", "-Version\": 2", "does not fit"),
        ] {
            let refusal = refused(&text.replace(from, to));
            assert!(refusal.contains(why), "{to}: {refusal}");
        }
        let twice = manifest(&[entry("base/1", 3, "839206e3"), entry("base/1", 3, "839206e3")]);
        assert!(parse(&twice).unwrap_err().to_string().contains("twice"));
        for text in ["", "\n", "[]\n", "{}\n", "}\n", "{\n", "\"\n", "null\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for long in ["x".repeat(1 << 20), format!("{{ \"{}", "x".repeat(1 << 20)), "\"\n\"".repeat(1 << 18)] {
            let mut reader = ManifestReader::new();
            let failed = long.as_bytes().chunks(1000).find_map(|piece| reader.feed(piece).err()).unwrap();
            assert_eq!(reader.feed(b"x"), Err(failed.clone()));
            assert_eq!(reader.finish(), Err(failed));
        }
    }

    proptest! {
        #[test]
        fn it_reads_the_same_in_pieces(
            paths in prop::collection::btree_set("[a-z\"\\\\{}\\[\\]é\n,:]{1,12}", 0..12), piece in 1_usize..300,
        ) {
            let entries: Vec<_> = paths.iter().map(|path| entry(path, path.len() as u64, "00000000")).collect();
            let text = manifest(&entries);
            let mut reader = ManifestReader::new();
            for piece in text.as_bytes().chunks(piece) {
                reader.feed(piece).unwrap();
            }
            let read = reader.finish().unwrap();
            prop_assert_eq!(read.files().len(), paths.len());
            for path in &paths {
                prop_assert_eq!(read.expect(path.as_bytes()).unwrap().size, path.len() as u64);
            }
            prop_assert_eq!(parse(&text), Ok(read));
        }

        #[test]
        fn a_changed_byte_is_noticed(at: prop::sample::Index, change in 1_u8..) {
            let mut text = manifest(&[entry("base/1", 3, "839206e3"), entry("base/2", 4, "839206e3")]).into_bytes();
            let at = at.index(text.len());
            text[at] ^= change;
            // The case of the checksum's digits is of no meaning, and neither is a space after it.
            let lines = text.len() - 88;
            prop_assert!(BackupManifest::parse(&text).is_err() || at >= lines);
        }

        #[test]
        fn anything_is_harmless(text in "[\\[\\]{}\":, \n\\\\a1]{0,60}", at in 0_usize..200) {
            let mut good = manifest(&[entry("base/1", 3, "839206e3")]);
            let _ = parse(&text);
            good.insert_str(at, &text);
            let _ = parse(&good);
        }
    }
}
