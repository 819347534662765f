//! Names, records and framed objects.

use std::fmt::Display;
use std::str::FromStr;

use bytes::Bytes;
use hindsight_format::{
    ClusterConfig, ClusterDescriptor, EpochRecord, Footer, GapRecord, Keys, LeaseRecord, ObjectKind, Point, Position,
    RepositoryDescriptor, RestoreRecord, SliceName, SnapshotManifest, check_name,
};
use hindsight_repository::fuzzing::{Reader, decode_record, encode_record, seal_object, seal_record};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

/// The key under which objects of the corpus were written, or are said to be.
pub(crate) const KEY: &str = "clusters/c/o";

/// The texts in keys: what is taken is spelled in one way only.
pub(crate) fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let text = text.trim_end_matches('\n');
    same_again::<SliceName>(text);
    same_again::<Position>(text);
    if let Ok(point) = Point::from_key_text(text) {
        assert_eq!(Point::from_key_text(&point.key_text()).as_ref(), Ok(&point), "{text:?}");
    }
    if let Ok(point) = serde_json::from_str::<Point>(text) {
        let again = serde_json::to_string(&point).unwrap();
        assert_eq!(serde_json::from_str::<Point>(&again).unwrap(), point);
        point.key_text();
    }
    if check_name(text, "name").is_ok() {
        assert!(!text.contains(['/', '\\', '\0', '#']) && text != "." && text != "..", "{text:?}");
        let key = Keys::new(text).unwrap().descriptor();
        assert_eq!(key.split('/').count(), 3, "{key}");
    }
    if let Some((key, value)) = text.split_once('=')
        && let Ok(config) = ClusterConfig::default().with(key, value)
    {
        assert!(config.get(key).is_ok());
    }
}

fn same_again<T: FromStr + Display>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        assert_eq!(read.to_string(), text);
    }
}

/// Records, as they are, and with a right checksum over whatever they hold.
pub(crate) fn records(input: &[u8]) {
    let sealed = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => seal_record(input.get(end + 1..).unwrap_or_default()),
        None => seal_record(input),
    };
    for (bytes, is_input) in [(input, true), (&sealed, false)] {
        record::<RepositoryDescriptor>(bytes, is_input);
        record::<ClusterDescriptor>(bytes, is_input);
        record::<ClusterConfig>(bytes, is_input);
        record::<EpochRecord>(bytes, is_input);
        record::<GapRecord>(bytes, is_input);
        record::<LeaseRecord>(bytes, is_input);
        record::<SnapshotManifest>(bytes, is_input);
        record::<RestoreRecord>(bytes, is_input);
    }
}

fn record<T: Serialize + DeserializeOwned>(bytes: &[u8], flip: bool) {
    let Ok(read) = decode_record::<T>(KEY, bytes) else { return };
    let written = encode_record(KEY, &read).unwrap();
    let again = decode_record::<T>(KEY, &written).expect("what is written is read");
    assert_eq!(encode_record(KEY, &again).unwrap(), written, "what is read is written in one way");
    if flip {
        let mut flipped = bytes.to_vec();
        for at in some_of(bytes.len() * 8) {
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(decode_record::<T>(KEY, &flipped).is_err(), "bit {at} does not count");
            flipped[at / 8] ^= 1 << (at % 8);
        }
    }
}

/// Some numbers below `end`, the same ones each time.
fn some_of(end: usize) -> impl Iterator<Item = usize> {
    (0..end).step_by((end / 5).max(1)).map(move |at| (at + at / 7 * 3) % end)
}

/// Objects, as they are, and with a right checksum over whatever their footer holds.
pub(crate) fn objects(input: &[u8]) {
    if let Some(read) = object(input) {
        let mut flipped = input.to_vec();
        for at in some_of(input.len() * 8) {
            flipped[at / 8] ^= 1 << (at % 8);
            assert_ne!(object(&flipped).as_ref(), Some(&read), "bit {at} does not count");
            flipped[at / 8] ^= 1 << (at % 8);
        }
    }
    for (kind, (frames, footer)) in
        [ObjectKind::Data, ObjectKind::Catalog, ObjectKind::Slice].into_iter().zip(split(input))
    {
        let sealed = seal_object(kind, 1, frames, footer);
        if let Some((footer, raw)) = object(&sealed) {
            assert_eq!(footer.frames.len(), raw.len());
        }
    }
}

/// Ways to tell frames and footer apart: by the lengths at the end, and by the first brace.
fn split(input: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let body = input.get(24..).unwrap_or_default();
    let footer = |body: &[u8]| body.windows(10).position(|window| window == b"{\"format\":");
    let json = footer(body).map(|at| {
        let (frames, footer) = body.split_at(at);
        let frames = frames.get(..frames.len().saturating_sub(8)).unwrap_or_default();
        (frames, footer.get(..footer.len().saturating_sub(12)).unwrap_or_default())
    });
    let brace = body.iter().position(|byte| *byte == b'{').map(|at| body.split_at(at));
    json.into_iter().chain(brace).chain([(&[][..], input)])
}

/// Objects sealed with age: as stored ones, and as what is sealed.
pub(crate) fn sealed(input: &[u8]) {
    MEMORY.with(|memory| {
        let read = |bytes: &[u8]| memory.block_on(memory.sealed.read(KEY, Bytes::copy_from_slice(bytes))).ok();
        read(input);
        let mut stored = memory.block_on(memory.sealed.seal(KEY, input)).expect("anything can be sealed");
        let opened = read(&stored);
        assert_eq!(opened.as_ref().map(|(footer, _)| footer), object(input).as_ref().map(|(footer, _)| footer));
        if opened.is_none() {
            return;
        }
        for at in some_of(stored.len() * 8) {
            stored[at / 8] ^= 1 << (at % 8);
            assert!(read(&stored).is_none(), "bit {at} does not count");
            stored[at / 8] ^= 1 << (at % 8);
        }
        stored.pop();
        assert!(read(&stored).is_none(), "it was cut off");
    });
}

/// Repositories in memory, made once.
struct Memory {
    runtime: Runtime,
    plain: Reader,
    sealed: Reader,
}

thread_local! {
    static MEMORY: Memory = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let plain = runtime.block_on(Reader::plain()).expect("a repository");
        let sealed = runtime.block_on(Reader::sealed()).expect("a repository");
        Memory { runtime, plain, sealed }
    };
}

impl Memory {
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

fn object(bytes: &[u8]) -> Option<(Footer, Vec<Bytes>)> {
    let bytes = Bytes::copy_from_slice(bytes);
    MEMORY.with(|memory| memory.block_on(memory.plain.read(KEY, bytes)).ok())
}
