//! From what people ask for to the position that a recovery stops at.
//!
//! The rules are the server's own (`recoveryStopsBefore`, `recoveryStopsAfter` in xlogrecovery.c), so that a position
//! found here stops it where `recovery_target_time` and its kind would, but is known before anything is touched:
//!
//! - a time: before the first transaction that ended, committed or not, at that time or later (or, other than with the server,
//!   was prepared then);
//! - a transaction: after the record that it ended with;
//! - a restore point: after the first one of the name.
//!
//! Times are not in order. A transaction takes its time first and its place in the log after, and so may be overtaken by
//! one that is some microseconds younger; and clocks are set back. No position gives exactly what was committed before a time
//! then. The rule errs to one side: nothing from that time on is ever restored, and what was committed before it but
//! lies behind the place to stop is counted.

use jiff::Timestamp;
use thiserror::Error;

use super::error::WalError;
use super::event::{Event, Span, What, Xid};
use super::reader::WalReader;
use crate::Lsn;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All there is.
    Latest,
    /// What was committed before a time.
    Before(Timestamp),
    /// Everything up to the end of a transaction.
    Transaction(Xid),
    /// Everything up to a named restore point.
    RestorePoint(String),
}

/// Where a recovery stops: `recovery_target_lsn` and `recovery_target_inclusive`. The position is always that of a record, so
/// that the server comes upon it: it does not start if its log ends before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Where a record begins.
    pub lsn: Lsn,
    /// Whether that record is still replayed.
    pub inclusive: bool,
}

/// A target, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Where to stop.
    pub stop: Stop,
    /// The last commit that is restored, among those that were read.
    pub before: Option<Event>,
    /// What is stopped at: the end of a transaction at the time asked for or later, which is not restored any more;
    /// the transaction or the restore point asked for. None where the log ended first, which for a time means that
    /// everything is restored.
    pub at: Option<Event>,
    /// Commits that are not restored although their time is before the one asked for, as far as was read.
    pub overtaken: u64,
}

/// Why a target cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreachable {
    /// It is older than what the base needs of the log to be whole.
    #[error("the base is whole only from {consistent_at} on, and a recovery would have to stop at {}", at.span.start)]
    TooEarly {
        /// What would be stopped at.
        at: Event,
        /// Where the base is whole.
        consistent_at: Lsn,
        /// Times after this one can be reached.
        latest: Option<Timestamp>,
    },
    /// The log ends before the base is whole.
    #[error("the base is whole only from {consistent_at} on, and the log ends before")]
    LogTooShort {
        /// Where the base is whole.
        consistent_at: Lsn,
    },
    /// It is not in the log.
    #[error("the log has no such transaction or restore point")]
    NotFound {
        /// The last commit there is.
        last: Option<Event>,
    },
    /// The log is damaged before the target.
    #[error(transparent)]
    Damaged(#[from] WalError),
}

/// Looks for a target in what a log tells, from the position on where the recovery of a base begins.
///
/// It knows nothing of what is in the base already: that a time is not before the base is for the caller to know.
#[derive(Clone, Debug)]
pub struct Resolver {
    target: Target,
    consistent_at: Lsn,
    found: Option<(Stop, Event)>,
    before: Option<Event>,
    overtaken: u64,
    /// Latest time of a transaction's end before the base is whole.
    latest: Option<Timestamp>,
    whole: bool,
}

impl Resolver {
    /// `consistent_at` is where the base is whole: the end of its backup.
    pub fn new(target: Target, consistent_at: Lsn) -> Self {
        Self { target, consistent_at, found: None, before: None, overtaken: 0, latest: None, whole: false }
    }

    /// Takes the next event.
    pub fn see(&mut self, event: &Event) {
        self.whole = self.whole || event.span.start >= self.consistent_at;
        let ended = event.what.transaction().and(event.what.time());
        if !self.whole {
            self.latest = self.latest.max(ended);
        }
        if self.found.is_some() {
            if let (Target::Before(time), true) = (&self.target, event.what.is_commit()) {
                self.overtaken += u64::from(ended.is_some_and(|t| t < *time));
            }
            return;
        }
        let stop = match (&self.target, &event.what) {
            // A server would not stop at one that was only prepared, and hold it from then on.
            (Target::Before(time), What::Prepare { time: prepared, .. }) if prepared >= time => Some(false),
            (Target::Before(time), _) => ended.filter(|t| t >= time).map(|_| false),
            (Target::Transaction(xid), what) => what.transaction().filter(|x| x == xid).map(|_| true),
            (Target::RestorePoint(wanted), What::RestorePoint { name, .. }) if name == wanted => Some(true),
            _ => None,
        };
        if event.what.is_commit() && stop != Some(false) {
            self.before = Some(event.clone());
        }
        self.found = stop.map(|inclusive| (Stop { lsn: event.span.start, inclusive }, event.clone()));
    }

    /// Whether the target was seen.
    pub fn is_found(&self) -> bool {
        self.found.is_some()
    }

    /// Whether no more of the log is needed.
    pub fn is_decided(&self) -> bool {
        self.found.as_ref().is_some_and(|(stop, at)| self.whole || self.is_whole_at(*stop, at.span))
    }

    fn is_whole_at(&self, stop: Stop, span: Span) -> bool {
        (if stop.inclusive { span.end } else { stop.lsn }) >= self.consistent_at
    }

    /// What was found, where `last` is the last record of the log that was read.
    ///
    /// # Errors
    /// The target cannot be reached.
    pub fn finish(self, last: Option<Span>) -> Result<Resolution, Unreachable> {
        let consistent_at = self.consistent_at;
        if let Some((stop, at)) = self.found.clone() {
            if !self.is_whole_at(stop, at.span) {
                return Err(Unreachable::TooEarly { at, consistent_at, latest: self.latest });
            }
            return Ok(Resolution { stop, before: self.before, at: Some(at), overtaken: self.overtaken });
        }
        if matches!(self.target, Target::Transaction(_) | Target::RestorePoint(_)) {
            return Err(Unreachable::NotFound { last: self.before });
        }
        let last = last.filter(|last| last.end >= consistent_at).ok_or(Unreachable::LogTooShort { consistent_at })?;
        let stop = Stop { lsn: last.start, inclusive: true };
        Ok(Resolution { stop, before: self.before, at: None, overtaken: 0 })
    }
}

/// Reads the log until the target is found, or to its end. Of the piece that has the target all is read, so that
/// transactions that were overtaken by others just before it are counted.
///
/// # Errors
/// The target cannot be reached, or the log is damaged before it.
pub fn resolve<P: AsRef<[u8]>>(
    mut reader: WalReader,
    pieces: impl IntoIterator<Item = P>,
    target: Target,
    consistent_at: Lsn,
) -> Result<Resolution, Unreachable> {
    let mut resolver = Resolver::new(target, consistent_at);
    for piece in pieces {
        let read = reader.feed(piece.as_ref(), &mut |event| resolver.see(&event));
        if resolver.is_decided() {
            break;
        }
        read?;
    }
    resolver.finish(reader.last_record())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(start: u64, what: What) -> Event {
        Event { span: Span { start: Lsn(start), end: Lsn(start + 40) }, what }
    }

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn commit(start: u64, second: i64) -> Event {
        at(start, What::Commit { xid: start as u32, time: time(second) })
    }

    fn abort(start: u64, second: i64) -> Event {
        at(start, What::Abort { xid: start as u32, time: time(second) })
    }

    fn run(target: Target, consistent_at: u64, events: &[Event]) -> Result<Resolution, Unreachable> {
        let mut resolver = Resolver::new(target, Lsn(consistent_at));
        events.iter().for_each(|event| resolver.see(event));
        resolver.finish(events.last().map(|event| event.span))
    }

    fn stop(lsn: u64, inclusive: bool) -> Stop {
        Stop { lsn: Lsn(lsn), inclusive }
    }

    #[test]
    fn a_time_stops_before_the_first_end_at_or_after_it() {
        let events = [commit(100, 10), commit(200, 20), abort(300, 30), commit(400, 40)];
        let found = run(Target::Before(time(20)), 0, &events).unwrap();
        assert_eq!(
            (found.stop, found.before, found.at),
            (stop(200, false), Some(events[0].clone()), Some(events[1].clone()))
        );
        let found = run(Target::Before(time(21)), 0, &events).unwrap();
        assert_eq!(
            (found.stop, found.before, found.at),
            (stop(300, false), Some(events[1].clone()), Some(events[2].clone()))
        );
        let found = run(Target::Before(time(5)), 0, &events).unwrap();
        assert_eq!((found.stop, found.before), (stop(100, false), None));
    }

    #[test]
    fn nothing_is_prepared_from_the_time_on() {
        let prepare =
            |start, second| at(start, What::Prepare { xid: start as u32, gid: "g".to_owned(), time: time(second) });
        let events = [commit(100, 10), prepare(200, 19), prepare(300, 20), commit(400, 21)];
        let found = run(Target::Before(time(20)), 0, &events).unwrap();
        assert_eq!((found.stop, found.at), (stop(300, false), Some(events[2].clone())));
    }

    #[test]
    fn a_time_behind_everything_gives_everything() {
        let events = [commit(100, 10), commit(200, 20)];
        let found = run(Target::Before(time(21)), 0, &events).unwrap();
        assert_eq!((found.stop, found.at.as_ref(), found.overtaken), (stop(200, true), None, 0));
        assert_eq!(run(Target::Latest, 0, &events).unwrap(), found);
    }

    #[test]
    fn after_a_clock_was_set_back_nothing_from_the_time_on_is_restored() {
        let events = [commit(100, 10), commit(200, 30), commit(300, 20), abort(400, 20), commit(500, 40)];
        let found = run(Target::Before(time(25)), 0, &events).unwrap();
        assert_eq!((found.stop, found.overtaken), (stop(200, false), 1));
    }

    #[test]
    fn a_stop_before_the_base_is_whole_is_refused_with_what_can_be_reached() {
        let events = [commit(100, 10), commit(200, 30), commit(300, 20), commit(400, 40)];
        let refused = run(Target::Before(time(15)), 350, &events).unwrap_err();
        assert_eq!(
            refused,
            Unreachable::TooEarly { at: events[1].clone(), consistent_at: Lsn(350), latest: Some(time(30)) }
        );
        assert_eq!(run(Target::Before(time(31)), 350, &events).unwrap().stop, stop(400, false));
        // the base is whole exactly where the record ends, or begins
        assert_eq!(run(Target::Transaction(200), 240, &events).unwrap().stop, stop(200, true));
        assert!(matches!(run(Target::Transaction(200), 241, &events), Err(Unreachable::TooEarly { .. })));
        assert_eq!(run(Target::Before(time(30)), 200, &events).unwrap().stop, stop(200, false));
        assert!(matches!(run(Target::Before(time(30)), 201, &events), Err(Unreachable::TooEarly { .. })));
        assert_eq!(run(Target::Latest, 441, &events), Err(Unreachable::LogTooShort { consistent_at: Lsn(441) }));
    }

    #[test]
    fn a_refusal_waits_until_it_can_tell_what_can_be_reached() {
        let mut resolver = Resolver::new(Target::Before(time(5)), Lsn(350));
        for (event, decided) in [(commit(100, 10), false), (commit(300, 20), false), (commit(400, 99), true)] {
            resolver.see(&event);
            assert_eq!(resolver.is_decided(), decided);
        }
        assert!(matches!(resolver.finish(None), Err(Unreachable::TooEarly { latest, .. }) if latest == Some(time(20))));
    }

    #[test]
    fn a_transaction_and_a_restore_point_are_still_restored() {
        let point = |start, name: &str| at(start, What::RestorePoint { name: name.to_owned(), time: time(1) });
        let events = [commit(100, 10), point(200, "a"), point(300, "b"), commit(400, 20), point(500, "b")];
        let found = run(Target::RestorePoint("b".to_owned()), 0, &events).unwrap();
        assert_eq!(
            (found.stop, found.before, found.at),
            (stop(300, true), Some(events[0].clone()), Some(events[2].clone()))
        );
        let found = run(Target::Transaction(400), 0, &events).unwrap();
        assert_eq!((found.stop, found.before), (stop(400, true), Some(events[3].clone())));
        let missing = Unreachable::NotFound { last: Some(events[3].clone()) };
        assert_eq!(run(Target::RestorePoint("c".to_owned()), 0, &events), Err(missing.clone()));
        assert_eq!(run(Target::Transaction(7), 0, &events), Err(missing));
    }
}
