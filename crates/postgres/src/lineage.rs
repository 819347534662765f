//! Whether a server goes on from what is stored of a cluster.
//!
//! A cluster that is restored, or a copy of its files, has the identifier of its source. What tells them apart is where they have
//! come from: whoever ends a recovery begins a timeline, and keeps where it has left those before. A copy that was restored from what
//! is stored has left there, at its end at the latest; a standby that takes over leaves where it likes, which is what is stored
//! or more unless commits were lost.

use hindsight_engine::{EngineError, Result};
use hindsight_format::Point;

use crate::cluster::{history, require_supported};
use crate::wal::History;
use crate::wire::{Connection, Replication};
use crate::{Address, Lsn, TimelineId, of_point};

/// Why the server does not go on from what is stored, if it does not. `stored` are points that whoever does has come by, the last of
/// them is the newest that is stored.
///
/// # Errors
/// The server cannot be reached or refuses.
pub async fn departure(address: &Address, stored: &[Point]) -> Result<Option<String>> {
    let damaged = |error| EngineError::damaged(format!("{error}")).caused_by(error);
    let stored: Vec<_> = stored.iter().map(of_point).collect::<std::result::Result<_, _>>().map_err(damaged)?;
    let Some((newest, before)) = stored.split_last() else { return Ok(None) };
    let mut connection = Connection::connect(address, Replication::Physical).await?;
    require_supported(&connection)?;
    let system = connection.identify_system().await?;
    let history = history(&mut connection, system.timeline).await?;
    // What a standby has not received yet it still may.
    let written = (!connection.in_recovery().await?).then_some(system.flushed);
    connection.close().await;
    let course = Course { timeline: system.timeline, history, written };
    Ok(before.iter().find_map(|point| course.departs_before(*point)).or_else(|| course.departs(*newest)))
}

/// The way that a server has come.
struct Course {
    timeline: TimelineId,
    /// Of that timeline; none if the server has lost it.
    history: Option<History>,
    /// How far its log has come, where nobody else writes it.
    written: Option<Lsn>,
}

impl Course {
    /// Why it has not come by a point, if it has not.
    fn departs_before(&self, (at, timeline): (Lsn, TimelineId)) -> Option<String> {
        let present = self.timeline;
        let Some(history) = &self.history else {
            let why = format!("the server is on timeline {present}, and does not know where that comes from");
            return (timeline != present).then_some(why);
        };
        match history.range(timeline) {
            Some((start, end)) if start < at && end.is_none_or(|end| at <= end) => None,
            Some((start, Some(end))) if start < at => Some(format!(
                "the server left timeline {timeline} at {end}, and is on timeline {present}; stored is {at} of it"
            )),
            _ => Some(format!(
                "the server is on timeline {present}, which does not come from {at} on timeline {timeline}, that is stored"
            )),
        }
    }

    /// Why it does not go on from the newest point that is stored, if it does not.
    fn departs(&self, (at, timeline): (Lsn, TimelineId)) -> Option<String> {
        let (present, range) = (self.timeline, self.history.as_ref().and_then(|history| history.range(timeline)));
        self.departs_before((at, timeline)).or_else(|| match (range, self.written) {
            (Some((_, Some(end))), _) if end == at => Some(format!(
                "the server left timeline {timeline} at {end}, which is just where what is stored ends, and is on timeline {present}"
            )),
            (_, Some(written)) if written < at => Some(format!(
                "the log of the server has come to {written} on timeline {present}, and is stored up to {at}: it was set back"
            )),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn course(timeline: TimelineId, history: &str, written: Option<u64>) -> Course {
        let history = History::parse(timeline, history).unwrap();
        Course { timeline, history: Some(history), written: written.map(Lsn) }
    }

    #[test]
    fn who_left_at_the_end_of_what_is_stored_or_before_does_not_go_on_from_it() {
        let copy = course(2, "1\t0/100\tafter LSN 0/F0\n", Some(0x500));
        for (point, goes_on) in [((0xff, 1), true), ((0x100, 1), false), ((0x101, 1), false), ((0x101, 2), true)] {
            let (at, timeline) = point;
            assert_eq!(copy.departs((Lsn(at), timeline)).is_none(), goes_on, "{point:?}");
        }
        // Where it left is where it has come by.
        assert_eq!(copy.departs_before((Lsn(0x100), 1)), None);
        let told = copy.departs((Lsn(0x400), 1)).unwrap();
        assert!(
            told.contains("timeline 1 at 0/100") && told.contains("timeline 2") && told.contains("0/400"),
            "{told}"
        );
    }

    #[test]
    fn timelines_of_one_number_that_began_elsewhere_are_others() {
        let stored = [(Lsn(0x200), 1), (Lsn(0x400), 2)];
        let departs = |course: &Course| course.departs_before(stored[0]).or_else(|| course.departs(stored[1]));
        assert_eq!(departs(&course(2, "1\t0/200\tx\n", Some(0x500))), None);
        for other in ["1\t0/1FF\tx\n", "1\t0/401\tx\n"] {
            assert!(departs(&course(2, other, Some(0x500))).is_some(), "{other:?}");
        }
        assert!(departs(&course(3, "1\t0/200\tx\n", Some(0x500))).is_some());
        assert_eq!(departs(&course(3, "1\t0/200\tx\n2\t0/401\ty\n", Some(0x500))), None);
        let lost = Course { timeline: 3, history: None, written: None };
        assert!(lost.departs((Lsn(0x400), 2)).is_some() && lost.departs((Lsn(0x400), 3)).is_none());
    }

    #[test]
    fn a_server_that_was_set_back_is_told_from_a_standby_that_is_behind() {
        let told = course(1, "", Some(0x100)).departs((Lsn(0x200), 1)).unwrap();
        assert!(told.contains("0/100") && told.contains("0/200") && told.contains("set back"), "{told}");
        assert_eq!(course(1, "", None).departs((Lsn(0x200), 1)), None);
        assert_eq!(course(1, "", Some(0x200)).departs((Lsn(0x200), 1)), None);
        // A standby that has not followed its primary to the next timeline.
        assert!(course(1, "", None).departs((Lsn(0x200), 2)).unwrap().contains("timeline 2"));
    }
}
