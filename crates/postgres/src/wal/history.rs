//! Where a timeline comes from: the text files that servers write when one begins (timeline.c).

use std::fmt;

use thiserror::Error;

use crate::{Lsn, TimelineId};

/// A timeline that another branched off from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The one that is left.
    pub timeline: TimelineId,
    /// Where: the next timeline's log goes on from here.
    pub end: Lsn,
    /// What the server gives as the reason, for people.
    pub reason: String,
}

/// A timeline with all that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    timeline: TimelineId,
    branches: Vec<Branch>,
}

/// A history that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the history of timeline {timeline} cannot be read: line {line} {what}")]
pub struct HistoryError {
    /// Whose.
    pub timeline: TimelineId,
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl History {
    /// Of a timeline that comes from no other: the first one.
    pub fn first() -> Self {
        Self { timeline: 1, branches: Vec::new() }
    }

    /// Reads the file of a timeline.
    ///
    /// # Errors
    /// It is malformed, or not in order.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, HistoryError> {
        let mut branches: Vec<Branch> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let wrong = |what| HistoryError { timeline, line: index + 1, what };
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.splitn(3, char::is_whitespace);
            let id = fields.next().and_then(|id| id.parse().ok()).ok_or(wrong("does not begin with a timeline"))?;
            let end = fields.next().and_then(|end| end.parse().ok()).ok_or(wrong("has no position"))?;
            // Both only ever grow, or one of the branches would be no part of the way here. A timeline that nothing was
            // written on ends where it begins.
            if branches.last().is_some_and(|last| last.timeline >= id || last.end > end) {
                return Err(wrong("is not behind the line before it"));
            }
            if id >= timeline {
                return Err(wrong("names a timeline that is not older"));
            }
            branches.push(Branch { timeline: id, end, reason: fields.next().unwrap_or_default().trim().to_owned() });
        }
        Ok(Self { timeline, branches })
    }

    /// Whose it is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// What it comes from, oldest first.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The history of a timeline that branches off from this one at `end`. None if it is not newer, or branches off before
    /// this one begins.
    pub fn branched(&self, end: Lsn, timeline: TimelineId, reason: &str) -> Option<Self> {
        let begins = self.branches.last().map_or(Lsn::INVALID, |last| last.end);
        if timeline <= self.timeline || end < begins {
            return None;
        }
        let mut branches = self.branches.clone();
        branches.push(Branch { timeline: self.timeline, end, reason: reason.to_owned() });
        Some(Self { timeline, branches })
    }

    /// The history of a timeline on the way here.
    pub fn of(&self, timeline: TimelineId) -> Option<Self> {
        if timeline == self.timeline {
            return Some(self.clone());
        }
        let before = self.branches.iter().position(|branch| branch.timeline == timeline)?;
        Some(Self { timeline, branches: self.branches.iter().take(before).cloned().collect() })
    }

    /// The timeline that the byte at `lsn` is of.
    pub fn at(&self, lsn: Lsn) -> TimelineId {
        self.branches.iter().find(|branch| lsn < branch.end).map_or(self.timeline, |branch| branch.timeline)
    }

    /// Where a timeline begins and ends on the way here; open at the end if it is the last one. None if it is not on it.
    pub fn range(&self, timeline: TimelineId) -> Option<(Lsn, Option<Lsn>)> {
        let mut start = Lsn::INVALID;
        for branch in &self.branches {
            if branch.timeline == timeline {
                return Some((start, Some(branch.end)));
            }
            start = branch.end;
        }
        (timeline == self.timeline).then_some((start, None))
    }
}

/// As the file of the timeline: what servers read.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Branch { timeline, end, reason } in &self.branches {
            writeln!(f, "{timeline}\t{end}\t{reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str =
        "1\t0/3000148\tno recovery target specified\n\n# by hand\n2\t0/5000000\tbefore 2026-11-24 11:00:00+00\n";

    #[test]
    fn tells_which_timeline_a_position_is_of() {
        let history = History::parse(5, TEXT).unwrap();
        assert_eq!(
            history.branches().iter().map(|b| b.reason.as_str()).collect::<Vec<_>>(),
            ["no recovery target specified", "before 2026-11-24 11:00:00+00"]
        );
        let at = |lsn: &str| history.at(lsn.parse().unwrap());
        assert_eq!((at("0/3000147"), at("0/3000148"), at("0/4FFFFFF"), at("0/5000000"), at("9/0")), (1, 2, 2, 5, 5));
        let lsn = |lsn: &str| lsn.parse::<Lsn>().unwrap();
        assert_eq!(history.range(1), Some((Lsn(0), Some(lsn("0/3000148")))));
        assert_eq!(history.range(2), Some((lsn("0/3000148"), Some(lsn("0/5000000")))));
        assert_eq!(history.range(5), Some((lsn("0/5000000"), None)));
        assert_eq!(history.range(3), None);
        assert_eq!(History::parse(5, &history.to_string()), Ok(history));
        assert_eq!(History::first().at(Lsn(1)), 1);
    }

    #[test]
    fn what_is_out_of_order_or_malformed_is_refused() {
        for (text, line) in [
            ("x\t0/1\t", 1),
            ("1\n", 1),
            ("1\t0-1\tx", 1),
            ("2\t0/2\tx\n1\t0/3\tx", 2),
            ("1\t0/2\tx\n2\t0/1\tx", 2),
            ("# x\n3\t0/2\tx", 2),
        ] {
            assert_eq!(History::parse(3, text).unwrap_err().line, line, "{text}");
        }
    }
}
