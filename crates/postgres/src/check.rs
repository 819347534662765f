//! Checking what is stored: that a slice is the log that its name promises.

use hindsight_engine::{EngineError, LogCheck, Result};
use hindsight_format::{LogSummary, Point};

use crate::summary::count;
use crate::wal::WalReader;
use crate::{Lsn, TimelineId, of_point};

/// Log pages have this many bytes.
const PAGE: u64 = 8192;

/// Checks one slice: every page and record in it, that they follow each other from its start to its end, and that the pages are of the
/// timeline that their frame says. Which server it is of is what its pages say.
#[derive(Debug)]
pub struct LogPieceCheck {
    reader: WalReader,
    start: Lsn,
    end: Lsn,
    /// The timeline of the present frame.
    timeline: TimelineId,
    /// The timeline of the last byte.
    last: TimelineId,
    summary: LogSummary,
    /// Records that were counted.
    records: u64,
    /// What is wrong was told: what follows cannot be trusted to follow.
    told: bool,
}

impl LogPieceCheck {
    /// Of the slice after `start`, up to `end`.
    ///
    /// # Errors
    /// They are no points of a PostgreSQL log.
    pub fn new(start: &Point, end: &Point) -> Result<Self> {
        let of = |point| of_point(point).map_err(|error| EngineError::damaged(error.to_string()).caused_by(error));
        let ((from, timeline), (until, last)) = (of(start)?, of(end)?);
        let summary = LogSummary { end: end.clone(), ..LogSummary::starting_at(start.clone()) };
        let reader = WalReader::of_piece(from, timeline);
        Ok(Self { reader, start: from, end: until, timeline, last, summary, records: 0, told: false })
    }

    fn read(&mut self, timeline: TimelineId, raw: &[u8]) -> std::result::Result<(), String> {
        let at = self.reader.position();
        if timeline < self.timeline || timeline > self.last {
            let (first, last) = (self.timeline, self.last);
            return Err(format!(
                "the log from {at} on is said to be of timeline {timeline}, between {first} and {last}"
            ));
        }
        self.timeline = timeline;
        self.reader.only(timeline);
        let mut events = Vec::new();
        let read = self.reader.feed(raw, &mut |event| events.push(event));
        read.map_err(|error| error.to_string())?;
        let end = self.summary.end.time;
        let late = events.iter().find(|event| event.what.time().is_some_and(|time| time.as_second() > end.as_second()));
        if let Some(event) = late {
            return Err(format!("the record at {} is of a later time than the end, {end}", event.span.start));
        }
        let records = self.reader.extent().records;
        count(&mut self.summary, records - self.records, &events);
        self.records = records;
        Ok(())
    }
}

impl LogCheck for LogPieceCheck {
    fn frame(&mut self, segment: u32, raw: &[u8]) -> std::result::Result<(), String> {
        if self.told {
            return Ok(());
        }
        let read = self.read(segment, raw);
        self.told = read.is_err();
        read
    }

    fn finish(self: Box<Self>) -> std::result::Result<LogSummary, String> {
        let (start, end, position) = (self.start, self.end, self.reader.position());
        if position != end {
            let (found, wanted) = (position.0 - start.0, end.0.saturating_sub(start.0));
            return Err(format!("{found} bytes of log are in it, from {start} to {end} there are {wanted}"));
        }
        if self.timeline != self.last {
            return Err(format!("it ends on timeline {}, and should on {}", self.timeline, self.last));
        }
        // A sign of life: there is nothing in it.
        if start == end {
            return Ok(self.summary);
        }
        // The parts of a long record end with pages.
        let ends_record = self.reader.whole().is_some_and(|whole| whole.end == end);
        if !ends_record && !end.0.is_multiple_of(PAGE) {
            return Err(format!("no record ends at {end}"));
        }
        Ok(self.summary)
    }
}
