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

use hindsight_engine::Words;
use hindsight_format::RestoreTotals;
use serde::{Serialize, Serializer};

use crate::text;

/// Values under keys in an engine's words.
#[derive(Clone, Debug)]
pub(crate) struct Keyed<T = u64, K = &'static str>(Vec<(K, T)>);

impl Keyed {
    /// What a restore wrote.
    fn totals(words: &Words, totals: &RestoreTotals) -> Self {
        let mut all =
            vec![(words.container.1, totals.collections), (words.item.1, totals.documents), ("bytes", totals.bytes)];
        all.extend(words.index.map(|index| (index.1, totals.indexes)));
        all.push(("log_records", totals.log_records));
        Self(all)
    }
}

impl<T: Serialize, K: Serialize> Serialize for Keyed<T, K> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// `12 collections, 1,234 documents (3.0 GiB), 20 indexes`: what a restore wrote.
pub(crate) fn written(words: &Words, totals: &RestoreTotals) -> String {
    let index = words.index.map(|index| format!(", {}", text::counted(totals.indexes, index))).unwrap_or_default();
    format!(
        "{}, {} ({}){index}",
        text::counted(totals.collections, words.container),
        text::counted(totals.documents, words.item),
        text::bytes(totals.bytes),
    )
}

/// A value as YAML, which is how `pbm` shows one thing with many fields.
pub(crate) fn yaml(value: &impl Serialize) -> String {
    let mut text = serde_saphyr::to_string(value).unwrap_or_else(|error| format!("# {error}\n"));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
