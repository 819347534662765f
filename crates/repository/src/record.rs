//! Records: the small JSON objects. Their first line holds a checksum of all that follows it.
//!
//! ```text
//! {"checksum":"blake3:<64 hex digits>",
//! "format":1, ... }
//! ```
//! The whole is plain JSON; `tail -n +2 FILE | b3sum` gives the checksum again.

use bytes::Bytes;
use hindsight_format::FORMAT_VERSION;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const OPENING: &[u8] = b"{\"checksum\":\"blake3:";
const CLOSING: &[u8] = b"\",\n";
const HASH_LEN: usize = 64;

/// The bytes of a record.
pub(crate) fn encode<T: Serialize>(key: &str, record: &T) -> Result<Bytes> {
    let fail = |why: String| Error::Refused(format!("{key} cannot be written: {why}"));
    let json = serde_json::to_vec_pretty(record).map_err(|error| fail(error.to_string()))?;
    let body = json.strip_prefix(b"{\n").ok_or_else(|| fail("it has no fields".to_owned()))?;
    Ok(seal(&[body, b"\n"].concat()).into())
}

/// The bytes of a record whose first line is followed by `body`.
pub(crate) fn seal(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OPENING.len() + HASH_LEN + CLOSING.len() + body.len());
    bytes.extend(OPENING);
    bytes.extend(blake3::hash(body).to_hex().as_bytes());
    bytes.extend(CLOSING);
    bytes.extend(body);
    bytes
}

/// Reads a record, if its checksum is right and its format known.
pub(crate) fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    decode_up_to(FORMAT_VERSION, key, bytes)
}

/// The same for a record of which newer formats are known.
pub(crate) fn decode_up_to<T: DeserializeOwned>(known: u32, key: &str, bytes: &[u8]) -> Result<T> {
    let sealed = bytes.strip_prefix(OPENING).and_then(|rest| rest.split_at_checked(HASH_LEN));
    let Some((hash, body)) = sealed.and_then(|(hash, rest)| Some((hash, rest.strip_prefix(CLOSING)?))) else {
        let why = format!("its first line should hold its checksum ({} bytes)", bytes.len());
        return Err(Error::damaged(key, why));
    };
    if blake3::hash(body).to_hex().as_bytes() != hash {
        let why = format!("it does not match its checksum ({} bytes): it was cut off or changed", bytes.len());
        return Err(Error::damaged(key, why));
    }
    let json = [b"{", body].concat();
    check_format_up_to(known, key, &json)?;
    serde_json::from_slice(&json).map_err(|error| Error::damaged(key, format!("it cannot be read: {error}")))
}

/// Refuses what a newer program wrote, before its fields are looked at.
pub(crate) fn check_format(key: &str, json: &[u8]) -> Result<()> {
    check_format_up_to(FORMAT_VERSION, key, json)
}

fn check_format_up_to(known: u32, key: &str, json: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Versioned {
        format: Option<u32>,
    }
    match serde_json::from_slice::<Versioned>(json) {
        Ok(Versioned { format: Some(found) }) if found > known => {
            Err(Error::NewerFormat { key: key.to_owned(), found, known })
        }
        _ => Ok(()),
    }
}
