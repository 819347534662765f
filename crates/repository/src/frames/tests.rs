#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const KEY: &str = "clusters/c/x";

fn object(frames: &[Vec<u8>]) -> (Vec<u8>, Footer) {
    let frames: Vec<_> = frames.iter().map(|raw| encode_frame(raw, 1, 0).unwrap()).collect();
    let footer = footer_of(KEY, ObjectKind::Data, frames.iter().map(|frame| frame.entry).collect(), None);
    let mut bytes = header(ObjectKind::Data, FORMAT_VERSION).to_vec();
    for frame in &frames {
        bytes.extend(&frame.stored);
    }
    bytes.extend(encode_footer(&footer).unwrap().0);
    (bytes, footer)
}

/// Reads all of an object in memory, as a reader does piece by piece.
fn read(bytes: &[u8]) -> Result<Vec<u8>> {
    let Tail::Found(layout) = parse_tail(KEY, bytes.len() as u64, bytes)? else { unreachable!("all was given") };
    verify_header(KEY, &layout.footer, bytes)?;
    let mut raw = Vec::new();
    for (entry, offset) in layout.footer.frames.iter().zip(&layout.offsets) {
        let start = usize::try_from(*offset).unwrap();
        let stored = &bytes[start..start + entry.stored_len as usize];
        verify_frame(KEY, *offset, entry, stored)?;
        raw.extend_from_slice(&decode_frame(KEY, *offset, entry, stored)?);
    }
    Ok(raw)
}

/// A footer with a right checksum and these frames, after as many bytes as they claim.
fn claiming(entries: Vec<FrameEntry>) -> Vec<u8> {
    let stored: usize = entries.iter().map(|entry| entry.stored_len as usize).sum();
    let mut bytes = header(ObjectKind::Data, FORMAT_VERSION).to_vec();
    bytes.resize(bytes.len() + stored.min(1 << 20), 0);
    bytes.extend(encode_footer(&footer_of(KEY, ObjectKind::Data, entries, None)).unwrap().0);
    bytes
}

#[test]
fn lengths_are_not_trusted() {
    let crc32 = crc32fast::hash(&[0; 16]);
    let entry = |stored_len, raw_len| FrameEntry { stored_len, raw_len, crc32, segment: 0 };
    for bad in [entry(16, u32::MAX), entry(u32::MAX, 1), entry(0, 0), entry(16, 1 << 20)] {
        let error = read(&claiming(vec![bad])).unwrap_err().to_string();
        assert!(error.contains("byte 24") || error.contains("claims"), "{error}");
    }
    // a bomb: a frame that gives more than its entry says
    let mut frame = encode_frame(&[0; 1 << 20], 1, 0).unwrap();
    frame.entry.raw_len = 100;
    assert!(decode_frame(KEY, 24, &frame.entry, &frame.stored).is_err());
}

#[test]
fn a_long_footer_is_asked_for() {
    let (bytes, footer) = object(&vec![b"x".to_vec(); 2_000]);
    let size = bytes.len() as u64;
    let Tail::NeedsMore(length) = parse_tail(KEY, size, &bytes[bytes.len() - 1_000..]).unwrap() else {
        panic!("1,000 bytes do not hold it")
    };
    let start = bytes.len() - usize::try_from(length).unwrap();
    let Tail::Found(layout) = parse_tail(KEY, size, &bytes[start..]).unwrap() else { panic!("this is all of it") };
    assert_eq!(layout.footer, footer);
}

#[test]
fn a_newer_format_is_told_apart_from_damage() {
    let mut footer = footer_of(KEY, ObjectKind::Data, Vec::new(), None);
    footer.format = FORMAT_VERSION + 1;
    let mut bytes = header(ObjectKind::Data, footer.format).to_vec();
    bytes.extend(encode_footer(&footer).unwrap().0);
    assert!(matches!(read(&bytes), Err(Error::NewerFormat { .. })));
}

proptest! {
    #[test]
    fn frames_round_trip(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3_000), 0..8), level in 1..6) {
        let (bytes, _) = object(&frames);
        prop_assert_eq!(read(&bytes).unwrap(), frames.concat());
        prop_assert_eq!(zstd::decode_all(bytes.as_slice()).unwrap(), frames.concat());
        let frame = encode_frame(&frames.concat(), level, 7).unwrap();
        prop_assert_eq!(decode_frame(KEY, 0, &frame.entry, &frame.stored).unwrap(), frames.concat());
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), mark in any::<bool>(), size in any::<u64>()) {
        let mut bytes = bytes;
        if mark {
            bytes.extend(FOOTER_MAGIC);
        }
        prop_assert!(read(&bytes).is_err());
        prop_assert!(!matches!(parse_tail(KEY, size, &bytes), Ok(Tail::Found(_))));
    }

    /// A footer with a right checksum around JSON that is not one.
    #[test]
    fn random_footers_are_refused(json in "[\\[\\]{}\":,a-z0-9]{0,60}") {
        let mut bytes = header(ObjectKind::Data, FORMAT_VERSION).to_vec();
        let length = u32::try_from(json.len()).unwrap();
        bytes.extend(FOOTER_SKIPPABLE.to_le_bytes());
        bytes.extend((length + 12).to_le_bytes());
        bytes.extend(json.as_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(crc32fast::hash(json.as_bytes()).to_le_bytes());
        bytes.extend(FOOTER_MAGIC);
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn changed_bytes_never_give_other_data(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (bytes, _) = object(&frames);
        let mut changed = bytes.clone();
        let at = at.index(bytes.len());
        changed[at] = value;
        prop_assert!(read(&changed).is_err() || changed == bytes);
        prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn records_survive_anything(bytes in prop::collection::vec(any::<u8>(), 0..300), seal in any::<bool>()) {
        let bytes = if seal {
            let hash = blake3::hash(&bytes).to_hex();
            [b"{\"checksum\":\"blake3:", hash.as_bytes(), b"\",\n", &bytes].concat()
        } else {
            bytes
        };
        prop_assert!(crate::record::decode::<hindsight_format::SnapshotManifest>("k", &bytes).is_err());
    }
}
