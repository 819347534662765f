//! What verbs print: values that read well as text and as JSON.

pub(crate) mod listing;
pub(crate) mod logs;
pub(crate) mod pitr;
pub(crate) mod plan;
pub(crate) mod proofs;
pub(crate) mod removal;
pub(crate) mod restores;
pub(crate) mod snapshot;
pub(crate) mod status;
mod stretch;
pub(crate) mod verify;

#[cfg(test)]
mod examples;
#[cfg(test)]
mod tests;

use serde::Serialize;

/// A value as YAML, which is how `pbm` shows one thing with many fields.
pub(crate) fn yaml(value: &impl Serialize) -> String {
    let mut text = serde_saphyr::to_string(value).unwrap_or_else(|error| format!("# {error}\n"));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
