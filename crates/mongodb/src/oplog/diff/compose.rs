//! Merging two updates of one document whose base is not known yet.

use super::raw::{Element, Elements, close, kind, open, push_element, push_name};
use super::{Malformed, UpdateError};

/// The number of name comparisons above which keeping both updates is cheaper than merging them.
const MAX_COMPARISONS: usize = 4096;

/// Merges two update entries' `o`, `older` applied first, into one with the same effect, appended to `out`. Possible
/// when both are `$v: 2` deltas that only have a `u` section, which is what plain `$set` and `$inc` of top-level fields
/// write; otherwise it returns false and leaves `out` alone.
///
/// `u` appends missing fields in its own order, so those of `older` come first and keep their places.
pub fn compose_simple(older: &[u8], newer: &[u8], out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let merged = merge(older, newer, out);
    if !matches!(merged, Ok(true)) {
        out.truncate(before);
        return false;
    }
    true
}

fn merge(older: &[u8], newer: &[u8], out: &mut Vec<u8>) -> Result<bool, UpdateError> {
    let (older_len, newer_len) = (older.len(), newer.len());
    let (Some(older), Some(newer)) = (only_updates(older)?, only_updates(newer)?) else {
        return Ok(false);
    };
    let newer = fields(newer)?;
    let older = fields(older)?;
    if newer.len() * (older.len() + newer.len()) > MAX_COMPARISONS || named_twice(&newer) {
        return Ok(false);
    }
    // Of a field that is there twice there would be two copies of the new value: never more bytes than both have.
    let limit = out.len() + older_len + newer_len;
    let entry = open(out);
    push_element(out, kind::INT32, b"$v", &2_i32.to_le_bytes());
    push_name(out, kind::DOCUMENT, b"diff");
    let diff = open(out);
    push_name(out, kind::DOCUMENT, b"u");
    let updates = open(out);
    for old in &older {
        let last = newer.iter().find(|new| new.name == old.name);
        out.extend_from_slice(last.unwrap_or(old).whole);
        if out.len() > limit {
            return Ok(false);
        }
    }
    for new in &newer {
        if !older.iter().any(|old| old.name == new.name) {
            out.extend_from_slice(new.whole);
        }
    }
    for at in [updates, diff, entry] {
        close(out, at)?;
    }
    Ok(true)
}

/// The `u` section of a delta that has no other.
fn only_updates(o: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let [version, diff] = fields(o)?[..] else {
        return Ok(None);
    };
    if version.name != b"$v" || version.as_i64() != Some(2) {
        return Ok(None);
    }
    if diff.name != b"diff" || diff.kind != kind::DOCUMENT {
        return Ok(None);
    }
    Ok(match fields(diff.value)?[..] {
        [u] if u.name == b"u" && u.kind == kind::DOCUMENT => Some(u.value),
        _ => None,
    })
}

fn fields(doc: &[u8]) -> Result<Vec<Element<'_>>, Malformed> {
    let mut fields = Vec::new();
    let mut elements = Elements::new(doc)?;
    while let Some(field) = elements.next()? {
        fields.push(field);
    }
    Ok(fields)
}

fn named_twice(fields: &[Element<'_>]) -> bool {
    let mut before = fields.iter().enumerate();
    before.any(|(at, field)| fields.iter().take(at).any(|other| other.name == field.name))
}
