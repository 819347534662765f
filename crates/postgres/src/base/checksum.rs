//! Checksums of files, as manifests have them (src/common/checksum_helper.c).

use std::fmt;

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

use crate::wire::ManifestChecksums;

/// The checksum of a file.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Checksum {
    /// How it is computed.
    pub kind: ManifestChecksums,
    /// Its bytes, in the order that a manifest has them in.
    pub value: Box<[u8]>,
}

impl Checksum {
    /// One, if the value is as long as those of the kind are.
    pub fn new(kind: ManifestChecksums, value: impl Into<Box<[u8]>>) -> Option<Self> {
        let value = value.into();
        (value.len() == kind.len()).then_some(Self { kind, value })
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {self}", self.kind)
    }
}

impl ManifestChecksums {
    /// Bytes of a value.
    pub(crate) const fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// By the name that a manifest gives it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::None, Self::Crc32c, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Computes a checksum.
#[derive(Clone, Debug)]
pub struct Checksummer(State);

#[derive(Clone, Debug)]
enum State {
    None,
    Crc32c(u32),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Checksummer {
    /// Of a kind, of no bytes yet.
    pub fn new(kind: ManifestChecksums) -> Self {
        Self(match kind {
            ManifestChecksums::None => State::None,
            ManifestChecksums::Crc32c => State::Crc32c(0),
            ManifestChecksums::Sha224 => State::Sha224(Sha224::new()),
            ManifestChecksums::Sha256 => State::Sha256(Sha256::new()),
            ManifestChecksums::Sha384 => State::Sha384(Sha384::new()),
            ManifestChecksums::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::None => {}
            State::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            State::Sha224(sha) => sha.update(bytes),
            State::Sha256(sha) => sha.update(bytes),
            State::Sha384(sha) => sha.update(bytes),
            State::Sha512(sha) => sha.update(bytes),
        }
    }

    /// The checksum of all of them.
    pub fn finish(self) -> Checksum {
        let (kind, value) = match self.0 {
            State::None => (ManifestChecksums::None, Box::default()),
            // The number as it lies in the server's memory (pg_checksum_final): little-endian, as the log is.
            State::Crc32c(crc) => (ManifestChecksums::Crc32c, crc.to_le_bytes().into()),
            State::Sha224(sha) => (ManifestChecksums::Sha224, sha.finalize().as_slice().into()),
            State::Sha256(sha) => (ManifestChecksums::Sha256, sha.finalize().as_slice().into()),
            State::Sha384(sha) => (ManifestChecksums::Sha384, sha.finalize().as_slice().into()),
            State::Sha512(sha) => (ManifestChecksums::Sha512, sha.finalize().as_slice().into()),
        };
        Checksum { kind, value }
    }
}

/// Two digits a byte, in lower or upper case.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_that_everybody_knows() {
        let of = |kind| {
            let mut checksummer = Checksummer::new(kind);
            checksummer.update(b"1234");
            checksummer.update(b"56789");
            let checksum = checksummer.finish();
            assert_eq!(Checksum::new(kind, checksum.value.clone()), Some(checksum.clone()));
            checksum.to_string()
        };
        assert_eq!(of(ManifestChecksums::None), "");
        // 0xE3069283, turned round.
        assert_eq!(of(ManifestChecksums::Crc32c), "839206e3");
        assert_eq!(of(ManifestChecksums::Sha224), "9b3e61bf29f17c75572fae2e86e17809a4513d07c8a18152acf34521");
        let sha256 = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
        assert_eq!(of(ManifestChecksums::Sha256), sha256);
        assert!(of(ManifestChecksums::Sha384).starts_with("eb455d56d2c1a69d"));
        assert!(of(ManifestChecksums::Sha512).starts_with("d9e6762dd1c8eaf6"));
    }

    #[test]
    fn digits() {
        assert_eq!(from_hex("00fFa9"), Some(vec![0, 255, 169]));
        for text in ["0", "0g", "+1", "é"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
