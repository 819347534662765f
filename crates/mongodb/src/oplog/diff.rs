//! Applying one oplog update to a document, byte for byte as mongod does when it applies oplog
//! entries. Works on raw BSON: nothing is decoded, and what an update does not touch is copied.
//!
//! An update entry's `o` comes in three forms ([`classify`]):
//! - the whole new document (any version);
//! - `{$v: 2, diff: {...}}`, a delta (5.0 and later, [`v2`]);
//! - `{$v: 1, $set: {...}, $unset: {...}}` (4.4 and older, [`v1`]).
//!
//! All of them are safe to apply to a document that is newer than the entry: what does not fit is
//! passed over in the way the server does it, since a later entry writes that place again.
//!
//! Facts: mongo/src/mongo/db/update/ of 4.4 to master; tests/diff_against_server.rs asks real servers.

mod compose;
pub(crate) mod raw;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use bson::RawDocument;

use raw::{Element, Elements, close, kind, open};

pub use compose::compose;

/// Bytes that do not hold together as BSON; says which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed BSON: {0}")]
pub struct Malformed(pub &'static str);

/// Why an update cannot be applied. None of them happens with what a server wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The document or the entry is not BSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A delta that breaks the rules of its format.
    #[error("invalid $v:2 diff: {0}")]
    InvalidDiff(String),
    /// A modifier update that breaks the rules of its format.
    #[error("invalid $v:1 update: {0}")]
    InvalidModifiers(String),
    /// An update of a form that this version of Hindsight does not know.
    #[error("unknown form of update: {0}")]
    UnknownForm(String),
    /// Nested deeper than a server allows.
    #[error("nested deeper than {} levels", raw::MAX_DEPTH)]
    TooDeep,
    /// The result would be larger than any server could hold.
    #[error("the updated document would exceed {} MiB", MAX_DOCUMENT >> 20)]
    TooLarge,
}

/// No result may be larger, in bytes: the server's largest buffer (`BufferMaxSize`), four times its largest document.
const MAX_DOCUMENT: usize = 64 << 20;

/// What an update entry's `o` says.
#[derive(Clone, Copy, Debug)]
pub enum Update<'a> {
    /// The whole new document.
    Replacement(&'a RawDocument),
    /// The `diff` of a `$v: 2` delta.
    DiffV2(&'a RawDocument),
    /// The modifiers of a `$v: 1` update.
    ModifiersV1 {
        /// Dotted paths and their new values.
        set: Option<&'a RawDocument>,
        /// Dotted paths to remove.
        unset: Option<&'a RawDocument>,
    },
}

/// Tells the forms of an update entry's `o` apart.
///
/// The server's rule (`UpdateModification::parseFromOplogEntry`): with an `_id` it is a replacement, in which even `$v`
/// may be a user's field; else `$v` decides. Without either it is told by its first field, as 4.4 does.
///
/// # Errors
/// [`UpdateError::UnknownForm`] for a version or a modifier not known here, [`UpdateError::Malformed`].
pub fn classify(o: &RawDocument) -> Result<Update<'_>, UpdateError> {
    let mut version = None;
    let mut diff = None;
    let mut set = None;
    let mut unset = None;
    let mut other = None;
    let mut first = None;
    let mut elements = Elements::new(o.as_bytes())?;
    while let Some(element) = elements.next()? {
        first.get_or_insert(element.name);
        match element.name {
            b"_id" => return Ok(Update::Replacement(o)),
            b"$v" => version = Some(element),
            b"diff" => diff = Some(element),
            b"$set" => set = Some(element),
            b"$unset" => unset = Some(element),
            _ => other = Some(element),
        }
    }
    if !first.is_some_and(|name| name.starts_with(b"$")) {
        return Ok(Update::Replacement(o));
    }
    match (version.map(|v| v.as_i64()), diff, set, unset, other) {
        (Some(Some(2)), Some(diff), None, None, None) => Ok(Update::DiffV2(document(&diff)?)),
        (None | Some(Some(1)), None, set, unset, None) => Ok(Update::ModifiersV1 {
            set: set.as_ref().map(document).transpose()?,
            unset: unset.as_ref().map(document).transpose()?,
        }),
        _ => {
            let names = [version.map(|v| v.name), diff.map(|d| d.name), other.map(|o| o.name)];
            let names = names.into_iter().flatten().map(|name| String::from_utf8_lossy(name).into_owned());
            Err(UpdateError::UnknownForm(names.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// Appends to `out` what `base` becomes under the update entry's `o`. On an error `out` is as it was.
///
/// # Errors
/// See [`UpdateError`].
pub fn apply(base: &RawDocument, o: &RawDocument, out: &mut Vec<u8>) -> Result<(), UpdateError> {
    let before = out.len();
    let base = base.as_bytes();
    let done = match classify(o)? {
        Update::Replacement(new) => replace(base, new.as_bytes(), out),
        Update::DiffV2(diff) => v2::apply(base, diff.as_bytes(), out).and_then(|()| put_id_first(out, before)),
        Update::ModifiersV1 { set, unset } => {
            let (set, unset) = (set.map(RawDocument::as_bytes), unset.map(RawDocument::as_bytes));
            v1::apply(base, set, unset, out).and_then(|()| put_id_first(out, before))
        }
    };
    if done.is_err() {
        out.truncate(before);
    }
    done
}

/// A replacement: `_id` comes first, whatever its place in `o`. Its value is that of `o`, which may be another numeric
/// type than the base's (the server only asks that they compare equal); without one the base's is kept.
fn replace(base: &[u8], new: &[u8], out: &mut Vec<u8>) -> Result<(), UpdateError> {
    let id = find(new, b"_id")?;
    if id.is_some_and(|id| id.start == 4) {
        out.extend_from_slice(new);
        return Ok(());
    }
    let at = open(out);
    let end = new.len() - 1;
    let (first, second) = match id {
        Some(id) => {
            out.extend_from_slice(id.whole);
            (4..id.start, id.end()..end)
        }
        None => {
            out.extend_from_slice(find(base, b"_id")?.map_or(&[], |id| id.whole));
            (4..end, end..end)
        }
    };
    for part in [first, second] {
        out.extend_from_slice(new.get(part).unwrap_or_default());
    }
    close(out, at)
}

/// A delta that writes the fields anew in another order writes `_id` too. The server puts it back to the beginning, of
/// whatever came of an update (mongo/src/mongo/db/exec/update_stage.cpp, `ensureIdFieldIsFirst`). `out` ends with the
/// document that begins at `at`.
fn put_id_first(out: &mut [u8], at: usize) -> Result<(), UpdateError> {
    let document = out.get_mut(at..).unwrap_or_default();
    let Some(id) = find(document, b"_id")?.filter(|id| id.start > 4) else { return Ok(()) };
    let (end, length) = (id.end(), id.whole.len());
    document.get_mut(4..end).unwrap_or_default().rotate_right(length);
    Ok(())
}

/// The first top-level field called `name`.
fn find<'a>(doc: &'a [u8], name: &[u8]) -> Result<Option<Element<'a>>, Malformed> {
    let mut elements = Elements::new(doc)?;
    while let Some(element) = elements.next()? {
        if element.name == name {
            return Ok(Some(element));
        }
    }
    Ok(None)
}

fn document<'a>(element: &Element<'a>) -> Result<&'a RawDocument, UpdateError> {
    if element.kind != kind::DOCUMENT {
        let name = String::from_utf8_lossy(element.name);
        return Err(UpdateError::UnknownForm(format!("{name} is not a document")));
    }
    RawDocument::from_bytes(element.value).map_err(|_| Malformed("document frame").into())
}
