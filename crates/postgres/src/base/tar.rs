//! The archives that `BASE_BACKUP` sends, one event after another.
//!
//! Servers write plain ustar headers (`tarCreateHeader` in src/port/tar.c): files, directories and links to tablespaces;
//! no extension for long names, as they refuse paths and targets of 100 bytes and more (`_tarWriteHeader` in
//! basebackup.c); numbers that do not fit in octal, such as sizes from 8 GiB on, in base 256. Anything else was not written
//! by a server, or has been changed since.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

/// Headers, and what data are padded to.
pub const BLOCK: usize = 512;

/// More tablespaces than this are not believed.
const MAX_LINKS: usize = 100_000;

/// An archive that cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the archive is damaged at byte {at}: {problem}")]
pub struct TarError {
    /// Where the block begins that it was found in.
    pub at: u64,
    /// What is wrong there.
    pub problem: TarProblem,
}

/// What is wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// The header's bytes are not those that were written.
    #[error("the checksum of the header is wrong")]
    Checksum,
    /// No header.
    #[error("there is no header of a file")]
    NoHeader,
    /// A kind of entry that servers do not write.
    #[error("an entry of the unknown kind {:?}", char::from(*_0))]
    Kind(u8),
    /// A number that is none, or is negative, or too large.
    #[error("its {0} is no number that a file can have")]
    Number(&'static str),
    /// A path that does not stay within the folder that it is relative to.
    #[error("the path {} is not one of a data directory", Shown(_0))]
    Path(Vec<u8>),
    /// A link that is none to a tablespace.
    #[error("the link {} is not one to a tablespace", Shown(_0))]
    Link(Vec<u8>),
    /// A path that leads through a link.
    #[error("the path {} leads through a link", Shown(_0))]
    ThroughLink(Vec<u8>),
    /// A directory or link that has data.
    #[error("{} has data, and is no file", Shown(_0))]
    Data(Vec<u8>),
    /// It goes on after its end.
    #[error("it goes on after its end")]
    AfterEnd,
    /// It ends too early.
    #[error("it ends in the midst of a file")]
    Cut,
}

/// A path, for people.
pub(crate) struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.0))
    }
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, to the folder of a tablespace on the server.
    Link {
        /// Where it leads.
        target: Vec<u8>,
    },
}

/// The header of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarHeader {
    /// The path: relative, without empty parts, `.` and `..`, and without a slash at its end. Any bytes otherwise.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: TarKind,
    /// Bytes of data, none for what is no file.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// When it was changed, in seconds since 1970.
    pub mtime: i64,
    /// Where the header begins in the archive. It can be cut here.
    pub at: u64,
}

/// What comes in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarEvent<'a> {
    /// An entry begins.
    File(&'a TarHeader),
    /// Its data go on; never empty.
    Data(&'a [u8]),
    /// The entry is over.
    End {
        /// Where the next one begins in the archive, or its end does. It can be cut here.
        boundary: u64,
    },
}

#[derive(Clone, Debug)]
enum State {
    Header,
    Data {
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    /// Zero blocks.
    Over,
    Failed(TarError),
}

/// Reads an archive in pieces of any size. Holds less than a block of it.
#[derive(Clone, Debug)]
pub struct TarReader {
    state: State,
    at: u64,
    block: Vec<u8>,
    /// Numbers of tablespaces that there are links to.
    links: BTreeSet<Vec<u8>>,
}

impl Default for TarReader {
    fn default() -> Self {
        Self::new()
    }
}

impl TarReader {
    /// From its first byte.
    pub fn new() -> Self {
        Self::at(0)
    }

    /// From a place where it can be cut, which the offsets told are counted from the archive's beginning with. Links before it
    /// are not known then.
    pub fn at(at: u64) -> Self {
        Self { state: State::Header, at, block: Vec::with_capacity(BLOCK), links: BTreeSet::new() }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The archive is not one that servers write. Nothing can be read after that.
    pub fn feed(&mut self, bytes: &[u8], each: &mut dyn FnMut(TarEvent<'_>)) -> Result<(), TarError> {
        let fed = self.try_feed(bytes, each);
        if let Err(error) = &fed {
            self.state = State::Failed(error.clone());
        }
        fed
    }

    /// There is no more of it. Gives whether the two blocks of zeros have come that end an archive (servers from 15 on
    /// write them); a part that was cut off before another file has none.
    ///
    /// # Errors
    /// It ends within a file, or has failed before.
    pub fn finish(self) -> Result<bool, TarError> {
        match self.state {
            State::Failed(error) => Err(error),
            State::Header if self.block.is_empty() => Ok(false),
            State::Over if self.at.is_multiple_of(BLOCK as u64) => Ok(true),
            _ => Err(TarError { at: self.at, problem: TarProblem::Cut }),
        }
    }

    fn try_feed(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(TarEvent<'_>)) -> Result<(), TarError> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Failed(error) => return Err(error.clone()),
                State::Data { left, padding } => {
                    let (now, later) = split(bytes, *left);
                    (bytes, *left) = (later, *left - now.len() as u64);
                    self.at += now.len() as u64;
                    each(TarEvent::Data(now));
                    if *left == 0 {
                        let padding = *padding;
                        self.end(padding, each);
                    }
                }
                State::Padding { left } => {
                    // What it holds is of no meaning.
                    let (now, later) = split(bytes, *left);
                    (bytes, *left) = (later, *left - now.len() as u64);
                    self.at += now.len() as u64;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                }
                State::Over => {
                    if let Some(more) = bytes.iter().position(|byte| *byte != 0) {
                        let at = self.at + more as u64;
                        return Err(TarError { at: at - at % BLOCK as u64, problem: TarProblem::AfterEnd });
                    }
                    self.at += bytes.len() as u64;
                    return Ok(());
                }
                State::Header => {
                    let (now, later) = split(bytes, (BLOCK - self.block.len()) as u64);
                    bytes = later;
                    self.block.extend_from_slice(now);
                    if self.block.len() == BLOCK {
                        let block = std::mem::take(&mut self.block);
                        self.header(&block, each).map_err(|problem| TarError { at: self.at, problem })?;
                        self.block = block;
                        self.block.clear();
                    }
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, block: &[u8], each: &mut dyn FnMut(TarEvent<'_>)) -> Result<(), TarProblem> {
        let next = self.at.checked_add(BLOCK as u64).ok_or(TarProblem::Number("place"))?;
        if block.iter().all(|byte| *byte == 0) {
            // The second one is not waited for: an archive that lost some zeros lost nothing.
            (self.state, self.at) = (State::Over, next);
            return Ok(());
        }
        let header = parse(block, self.at)?;
        self.check_links(&header)?;
        let end = next.checked_add(header.size).and_then(|end| end.checked_next_multiple_of(BLOCK as u64));
        let padding = end.ok_or(TarProblem::Number("size"))? - next - header.size;
        self.at = next;
        each(TarEvent::File(&header));
        match header.size {
            0 => self.end(0, each),
            left => self.state = State::Data { left, padding },
        }
        Ok(())
    }

    fn end(&mut self, padding: u64, each: &mut dyn FnMut(TarEvent<'_>)) {
        each(TarEvent::End { boundary: self.at + padding });
        self.state = if padding == 0 { State::Header } else { State::Padding { left: padding } };
    }

    /// Who unpacks it could be led elsewhere by a link, and by a path that goes through one.
    fn check_links(&mut self, header: &TarHeader) -> Result<(), TarProblem> {
        let Some(inside) = header.path.strip_prefix(b"pg_tblspc/") else { return Ok(()) };
        let first = inside.split(|byte| *byte == b'/').next().unwrap_or_default();
        if self.links.contains(first) {
            return Err(TarProblem::ThroughLink(header.path.clone()));
        }
        if matches!(header.kind, TarKind::Link { .. }) {
            if self.links.len() >= MAX_LINKS {
                return Err(TarProblem::Link(header.path.clone()));
            }
            self.links.insert(first.to_vec());
        }
        Ok(())
    }
}

/// The first bytes, as many as there are of `wanted`, and the others.
fn split(bytes: &[u8], wanted: u64) -> (&[u8], &[u8]) {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at(wanted)
}

/// Reads a header's fields (pgtar.h).
fn parse(block: &[u8], at: u64) -> Result<TarHeader, TarProblem> {
    let field = |from: usize, len: usize| block.get(from..from + len).ok_or(TarProblem::NoHeader);
    if field(257, 8)? != b"ustar\x0000" {
        return Err(TarProblem::NoHeader);
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = field(148, 8)?.iter().map(|byte| u64::from(*byte)).sum();
    if number(field(148, 8)?) != Some(sum - own + 8 * u64::from(b' ')) {
        return Err(TarProblem::Checksum);
    }
    // Some directories come with it: `./pg_wal/archive_status` (sendDir in basebackup.c).
    let path = text(field(0, 100)?);
    let mut path = path.strip_prefix(b"./").unwrap_or(path).to_vec();
    // Servers have no use for the part of a path that stands apart.
    if field(345, 155)?.iter().any(|byte| *byte != 0) {
        return Err(TarProblem::Path(path));
    }
    let size = number(field(124, 12)?).ok_or(TarProblem::Number("size"))?;
    let mode = number(field(100, 8)?).and_then(|mode| u32::try_from(mode).ok()).filter(|mode| *mode <= 0o7777);
    let mode = mode.ok_or(TarProblem::Number("mode"))?;
    // Before 1970 it is written as the unsigned number of the same bits.
    let mtime = number(field(136, 12)?).ok_or(TarProblem::Number("time"))?.cast_signed();
    let target = text(field(157, 100)?);
    let kind = match field(156, 1)?.first().copied().unwrap_or_default() {
        b'0' => TarKind::File,
        b'5' => TarKind::Directory,
        b'2' => TarKind::Link { target: target.to_vec() },
        other => return Err(TarProblem::Kind(other)),
    };
    if kind != TarKind::File {
        // Directories end with a slash, and so do links, as they lead to directories.
        path.pop_if(|last| *last == b'/');
        if size != 0 {
            return Err(TarProblem::Data(path));
        }
    }
    if !is_inside(&path) {
        return Err(TarProblem::Path(path));
    }
    if matches!(kind, TarKind::Link { .. }) {
        let number = path.strip_prefix(b"pg_tblspc/").unwrap_or_default();
        if number.is_empty() || !number.iter().all(u8::is_ascii_digit) || !target.starts_with(b"/") {
            return Err(TarProblem::Link(path));
        }
    } else if !target.is_empty() {
        return Err(TarProblem::Link(path));
    }
    Ok(TarHeader { path, kind, size, mode, mtime, at })
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number as servers write it: octal digits and a space or zero, or 0x80 and base 256 (`print_tar_number`). Negative ones
/// would begin with 0xFF.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, digits)) = field.split_first() {
        let (high, low) = digits.split_at(digits.len().saturating_sub(8));
        let small = high.iter().all(|byte| *byte == 0);
        return small.then(|| low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let len = field.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(field.len());
    let (digits, rest) = field.split_at(len);
    if digits.is_empty() || rest.iter().any(|byte| !matches!(byte, b' ' | 0)) {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Whether a path stays within the folder that it is relative to, and is written in the one way there is.
pub(crate) fn is_inside(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as servers write it.
    pub(crate) fn header(path: &[u8], kind: u8, size: u64, target: &[u8]) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path);
        put(100, b"0000600 ");
        put(108, b"0000000 ");
        put(116, b"0000000 ");
        match size {
            0..0o100_000_000_000 => put(124, format!("{size:011o} ").as_bytes()),
            _ => put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat()),
        }
        put(136, b"14570000000 ");
        put(156, &[kind]);
        put(157, target);
        put(257, b"ustar\x0000postgres");
        sealed(block)
    }

    /// The same with its checksum.
    pub(crate) fn sealed(mut block: Vec<u8>) -> Vec<u8> {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:07o} ").as_bytes());
        block
    }

    pub(crate) fn file(path: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = header(path.as_bytes(), b'0', data.len() as u64, b"");
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn folder(path: &str) -> Vec<u8> {
        header(format!("{path}/").as_bytes(), b'5', 0, b"")
    }

    /// A header with its data, and where they end.
    type Found = (TarHeader, Vec<u8>, u64);

    /// Everything in an archive, and whether it was ended.
    fn read(archive: &[u8], piece: usize) -> Result<(Vec<Found>, bool), TarError> {
        let (mut reader, mut entries, mut open) = (TarReader::new(), Vec::new(), None);
        for piece in archive.chunks(piece) {
            reader.feed(piece, &mut |event| match event {
                TarEvent::File(header) => assert!(open.replace((header.clone(), Vec::new())).is_none()),
                TarEvent::Data(data) => {
                    assert!(!data.is_empty());
                    open.as_mut().unwrap().1.extend_from_slice(data);
                }
                TarEvent::End { boundary } => {
                    let (header, data) = open.take().unwrap();
                    assert_eq!(header.size, data.len() as u64);
                    entries.push((header, data, boundary));
                }
            })?;
        }
        Ok((entries, reader.finish()?))
    }

    fn problem(archive: &[u8]) -> TarProblem {
        read(archive, 100).unwrap_err().problem
    }

    #[test]
    fn what_servers_write_is_read() {
        let link = header(b"pg_tblspc/16385/", b'2', 0, b"/fast disk");
        let archive = [folder("base"), file("base/1", b"one"), link, file("empty", b""), vec![0; 1024]].concat();
        let (entries, over) = read(&archive, 1000).unwrap();
        assert!(over);
        let paths: Vec<_> =
            entries.iter().map(|(header, ..)| String::from_utf8(header.path.clone()).unwrap()).collect();
        assert_eq!(paths, ["base", "base/1", "pg_tblspc/16385", "empty"]);
        let (one, data, end) = &entries[1];
        assert_eq!((one.at, *end, data.as_slice()), (512, 1536, b"one".as_slice()));
        assert_eq!((one.mode, one.mtime), (0o600, 0o14570000000));
        assert_eq!(entries[2].0.kind, TarKind::Link { target: b"/fast disk".to_vec() });
        let (entries, _) = read(&folder("./pg_wal/archive_status"), 7).unwrap();
        assert_eq!(entries[0].0.path, b"pg_wal/archive_status");
        // A path of 99 bytes and a folder of 99 fill the field, the latter with its slash.
        let long = "x".repeat(99);
        let (entries, _) = read(&[file(&long, b""), folder(&long.replace('x', "y"))].concat(), 7).unwrap();
        assert_eq!((entries[0].0.path.len(), entries[1].0.path.len()), (99, 99));
    }

    #[test]
    fn sizes_from_8_gib_on_are_in_base_256() {
        for size in [(8 << 30) - 1, 8 << 30, u64::MAX / 2] {
            let (mut reader, mut found) = (TarReader::new(), None);
            let archive = header(b"large", b'0', size, b"");
            reader
                .feed(&archive, &mut |event| match event {
                    TarEvent::File(header) => found = Some(header.size),
                    _ => panic!(),
                })
                .unwrap();
            assert_eq!(found, Some(size));
            assert_eq!(reader.finish().unwrap_err().problem, TarProblem::Cut);
        }
        assert_eq!(problem(&header(b"x", b'0', u64::MAX, b"")), TarProblem::Number("size"));
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        for path in ["../x", "/etc/passwd", "a/../../x", "a//b", "a/./b", "a/.", "..", "a/", "/", "."] {
            assert_eq!(problem(&file(path, b"")), TarProblem::Path(path.into()), "{path}");
        }
        for (path, rest) in [("./", ""), ("./../x", "../x"), ("././x", "./x"), (".//x", "/x")] {
            assert_eq!(problem(&file(path, b"")), TarProblem::Path(rest.into()), "{path}");
        }
        assert_eq!(problem(&header(b"", b'0', 0, b"")), TarProblem::Path(Vec::new()));
        assert_eq!(problem(&header(b"//", b'5', 0, b"")), TarProblem::Path(b"/".to_vec()));
        let mut prefixed = file("x", b"");
        prefixed[345..348].copy_from_slice(b"../");
        assert_eq!(problem(&sealed(prefixed)), TarProblem::Path(b"x".to_vec()));
    }

    #[test]
    fn a_link_that_is_none_to_a_tablespace_is_refused() {
        for (path, target) in [
            ("base/1", "/etc"),
            ("pg_tblspc/16385/x", "/etc"),
            ("pg_tblspc/a", "/etc"),
            ("pg_tblspc", "/etc"),
            ("pg_tblspc/16385", "../x"),
            ("pg_tblspc/16385", ""),
        ] {
            assert_eq!(problem(&header(path.as_bytes(), b'2', 0, target.as_bytes())), TarProblem::Link(path.into()));
        }
        let link = header(b"pg_tblspc/16385/", b'2', 0, b"/etc");
        let through = "pg_tblspc/16385/passwd";
        assert_eq!(problem(&[link.clone(), file(through, b"")].concat()), TarProblem::ThroughLink(through.into()));
        assert_eq!(problem(&[link.clone(), link].concat()), TarProblem::ThroughLink(b"pg_tblspc/16385".to_vec()));
        // A tablespace in place is no link (allow_in_place_tablespaces).
        read(&[folder("pg_tblspc/16385"), file("pg_tblspc/16385/1", b"")].concat(), 100).unwrap();
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        // The extensions of others for long names, hard links and devices.
        for kind in *b"xgLK13467\0" {
            assert_eq!(problem(&header(b"x", kind, 0, b"")), TarProblem::Kind(kind));
        }
        assert_eq!(problem(&header(b"x/", b'5', 1, b"")), TarProblem::Data(b"x".to_vec()));
        assert_eq!(problem(&header(b"x", b'0', 1, b"y")), TarProblem::Link(b"x".to_vec()));
        for (at, field, what) in [
            (124, &b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"[..], "size"),
            (124, b"\x80\0\0\x01\0\0\0\0\0\0\0\0", "size"),
            (124, b"-0000000001 ", "size"),
            (124, b"            ", "size"),
            (124, b"00000000009 ", "size"),
            (124, b"1 1         ", "size"),
            (100, b"0100600 ", "mode"),
            (136, b"x", "time"),
        ] {
            let mut block = file("x", b"");
            block[at..at + field.len()].copy_from_slice(field);
            assert_eq!(problem(&sealed(block)), TarProblem::Number(what), "{field:?}");
        }
        assert_eq!(problem(&[7; BLOCK]), TarProblem::NoHeader);
        assert_eq!(problem(&[vec![0; 1024], file("x", b"")].concat()), TarProblem::AfterEnd);
        for cut in [1, 511, 513, 1023] {
            assert_eq!(problem(&file("x", &[1; 512])[..cut]), TarProblem::Cut, "{cut}");
        }
        assert_eq!(problem(&[0; 700]), TarProblem::Cut);
        // What has failed stays so.
        let mut reader = TarReader::new();
        let first = reader.feed(&[7; BLOCK], &mut |_| panic!());
        assert!(first.is_err());
        assert_eq!(reader.feed(&file("x", b""), &mut |_| panic!()), first);
        assert!(reader.finish().is_err());
    }

    fn entries() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
        let data = prop_oneof![Just(0_usize), 1..3_usize, 510..515_usize, 0..5000_usize];
        let data = (data, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]);
        prop::collection::vec(("[a-z]{1,20}(/[a-z.]{2,9}x){0,3}", data), 0..8)
    }

    proptest! {
        #[test]
        fn it_reads_the_same_in_pieces_and_in_parts(entries in entries(), piece in 1_usize..2000, over: bool) {
            let mut archive: Vec<u8> = entries.iter().flat_map(|(path, data)| file(path, data)).collect();
            archive.resize(archive.len() + if over { 1024 } else { 0 }, 0);
            let (found, ended) = read(&archive, piece).unwrap();
            prop_assert_eq!(ended, over);
            let plain: Vec<_> = found.iter().map(|(h, data, _)| (String::from_utf8(h.path.clone()).unwrap(), data.clone())).collect();
            prop_assert_eq!(plain, entries);
            // From every boundary on, it is the rest of it.
            for (index, (header, _, end)) in found.iter().enumerate() {
                prop_assert_eq!(found.get(index + 1).map_or(*end, |(next, ..)| next.at), *end);
                let (mut part, mut first) = (TarReader::at(header.at), None);
                part.feed(&archive[header.at as usize..*end as usize], &mut |event| {
                    if let TarEvent::File(header) = event {
                        first = Some(header.clone());
                    }
                }).unwrap();
                prop_assert_eq!(first.as_ref(), Some(header));
                prop_assert_eq!(part.finish(), Ok(false));
            }
        }

        #[test]
        fn a_changed_byte_of_a_header_is_noticed(at in 0_usize..512, change in 1_u8..) {
            let mut archive = file("base/1/2", b"data");
            archive[at] ^= change;
            prop_assert!(read(&archive, 512).is_err() || (148..156).contains(&at));
        }

        #[test]
        fn anything_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0_usize..512) {
            let mut archive = file("base/1/2", b"data");
            let end = (at + bytes.len()).min(archive.len());
            archive[at..end].copy_from_slice(&bytes[..end - at]);
            let _ = read(&sealed(archive[..512].to_vec()), 100);
            let _ = read(&archive, 100);
        }
    }
}
