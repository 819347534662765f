//! What is well formed, by other code than that which is tried.

use bson::{RawArray, RawBsonRef, RawDocument};

/// Nesting that a server allows.
pub(crate) const MAX_DEPTH: usize = 200;

/// How deep a document is nested; none when something in it is malformed, or it is nested deeper than twice
/// what a server allows.
pub(crate) fn depth(document: &[u8]) -> Option<usize> {
    of_document(RawDocument::from_bytes(document).ok()?, 0)
}

fn of_document(document: &RawDocument, level: usize) -> Option<usize> {
    deepest(document.iter().map(|field| field.ok().map(|(_, value)| value)), level)
}

fn of_array(array: &RawArray, level: usize) -> Option<usize> {
    deepest(array.into_iter().map(Result::ok), level)
}

fn deepest<'a>(values: impl Iterator<Item = Option<RawBsonRef<'a>>>, level: usize) -> Option<usize> {
    if level > 2 * MAX_DEPTH {
        return None;
    }
    let mut deepest = level;
    for value in values {
        deepest = deepest.max(match value? {
            RawBsonRef::Document(inner) => of_document(inner, level + 1)?,
            RawBsonRef::Array(inner) => of_array(inner, level + 1)?,
            RawBsonRef::JavaScriptCodeWithScope(code) => of_document(code.scope, level + 1)?,
            _ => level,
        });
    }
    Some(deepest)
}
