//! Telling whether two `_id`s are the same document to the server, by a key of bytes.
//!
//! What the `_id` index takes for equal under the simple collation (key_string.cpp, index version 2; the type bits it
//! keeps aside do not count):
//! - numbers of equal value, whatever their type: 1, 1L, 1.0 and NumberDecimal("1.00"), compared exactly and not by
//!   rounding; both zeros; every NaN; a decimal whose coefficient is out of range is zero;
//! - a string and a symbol of the same bytes;
//! - documents with the same field names and equal values in the same order; arrays of equal values (their index names
//!   do not count); JavaScript with scope likewise, by code and scope;
//! - all else only by type and bytes. Null and undefined differ.

mod number;

#[cfg(test)]
mod tests;

use super::diff::Malformed;
use super::diff::raw::{Elements, MAX_DEPTH, cstring_len, kind, read_len};

/// Type byte and value bytes of the top-level `_id`; `None` if there is none.
///
/// # Errors
/// The document is malformed as far as it had to be read: normally `_id` is the first field.
pub fn raw_id(doc: &[u8]) -> Result<Option<(u8, &[u8])>, Malformed> {
    let mut elements = Elements::new(doc)?;
    while let Some(element) = elements.next()? {
        if element.name == b"_id" {
            return Ok(Some((element.kind, element.value)));
        }
    }
    Ok(None)
}

/// Appends to `out` the key of an `_id`, given as its type byte and value bytes ([`raw_id`]). Two keys are equal exactly
/// when the server takes the two `_id`s for the same. The order of keys means nothing.
///
/// # Errors
/// The value is malformed, of an unknown type, or nested deeper than a server allows; `out` is then as it was.
pub fn canonical_key(kind: u8, value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let before = out.len();
    let done = append(kind, value, 0, out);
    if done.is_err() {
        out.truncate(before);
    }
    done
}

/// Follows each element inside a document or an array; [`END`] follows the last one.
const MORE: u8 = 1;
const END: u8 = 0;

/// Every encoding begins with a tag and tells its own length, so that a sequence of them can be read in one way only.
fn append(kind: u8, value: &[u8], depth: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match kind {
        kind::OBJECT_ID => fixed::<12>(kind, value, out),
        kind::STRING | kind::SYMBOL => {
            out.push(kind::STRING);
            text(value, out)
        }
        kind::INT32 | kind::INT64 | kind::DOUBLE | kind::DECIMAL => number::append(kind, value, out),
        kind::DATE | kind::TIMESTAMP => fixed::<8>(kind, value, out),
        kind::NULL | kind::UNDEFINED | kind::MIN_KEY | kind::MAX_KEY => fixed::<0>(kind, value, out),
        kind::BOOL => {
            let [byte] = value else {
                return Err(Malformed("boolean"));
            };
            out.extend_from_slice(&[kind, u8::from(*byte != 0)]);
            Ok(())
        }
        kind::BINARY => {
            let len = read_len(value).filter(|len| value.len() == len + 5);
            len.ok_or(Malformed("binary"))?;
            out.push(kind);
            out.extend_from_slice(value);
            Ok(())
        }
        kind::REGEX => {
            let pattern = cstring_len(value).ok_or(Malformed("regular expression"))?;
            let flags = value.get(pattern + 1..).and_then(cstring_len);
            if flags.is_none_or(|flags| pattern + flags + 2 != value.len()) {
                return Err(Malformed("regular expression"));
            }
            out.push(kind);
            out.extend_from_slice(value);
            Ok(())
        }
        kind::DB_POINTER => {
            out.push(kind);
            let (namespace, id) = value.split_last_chunk::<12>().ok_or(Malformed("DBPointer"))?;
            text(namespace, out)?;
            out.extend_from_slice(id);
            Ok(())
        }
        kind::CODE => {
            out.push(kind);
            text(value, out)
        }
        kind::CODE_W_SCOPE => {
            let inner = value.get(4..).ok_or(Malformed("code with scope"))?;
            let code_len = read_len(inner).ok_or(Malformed("code with scope"))?;
            let (code, scope) = inner.split_at_checked(code_len + 4).ok_or(Malformed("code with scope"))?;
            out.push(kind);
            text(code, out)?;
            members(scope, true, depth, out)
        }
        kind::DOCUMENT | kind::ARRAY => {
            out.push(kind);
            members(value, kind == kind::DOCUMENT, depth, out)
        }
        _ => Err(Malformed("type of _id")),
    }
}

fn fixed<const N: usize>(kind: u8, value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    if value.len() != N {
        return Err(Malformed("length of a value"));
    }
    out.push(kind);
    out.extend_from_slice(value);
    Ok(())
}

/// A BSON string: its length and its bytes, which may contain NUL.
fn text(value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let len = read_len(value).filter(|len| *len >= 1 && value.len() == len + 4);
    if len.is_none() || value.last() != Some(&0) {
        return Err(Malformed("string"));
    }
    out.extend_from_slice(value);
    Ok(())
}

fn members(doc: &[u8], named: bool, depth: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    if depth >= MAX_DEPTH {
        return Err(Malformed("nested too deep"));
    }
    let mut elements = Elements::new(doc)?;
    while let Some(element) = elements.next()? {
        out.push(MORE);
        if named {
            out.extend_from_slice(element.name);
            out.push(0);
        }
        append(element.kind, element.value, depth + 1, out)?;
    }
    out.push(END);
    Ok(())
}
