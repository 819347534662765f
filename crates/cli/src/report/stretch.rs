//! Moments that can, or cannot, be restored.

use hindsight_catalog::{Loss, Range};
use hindsight_format::format_time;
use serde::Serialize;

use crate::text;

/// First and last second that can, or cannot, be restored.
#[derive(Debug, Serialize)]
pub(super) struct Stretch {
    from: String,
    to: String,
    epoch: u64,
    /// The selective snapshot that leads there.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    /// For people.
    #[serde(skip)]
    line: String,
}

impl Stretch {
    pub(super) fn lost(loss: &Loss) -> Self {
        let lasts = loss.seconds.map(|(from, to)| format!("  ({})", text::between(from, to)));
        Self {
            from: format_time(loss.first()),
            to: format_time(loss.last()),
            epoch: loss.epoch,
            snapshot: loss.snapshot.clone(),
            line: format!("  {}{}{}\n", loss.moments(), lasts.unwrap_or_default(), loss.origin()),
        }
    }

    pub(super) fn left(range: &Range) -> Self {
        let everything = Loss {
            epoch: range.epoch,
            snapshot: None,
            from: range.start.clone(),
            to: range.end.clone(),
            seconds: range.from.zip(range.to),
        };
        Self::lost(&everything)
    }

    /// A line for people.
    pub(super) fn text(&self) -> &str {
        &self.line
    }
}
