//! How long a server's own log still holds what is not captured yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hindsight_engine::{Engine, Probe};
use hindsight_format::Point;
use jiff::SignedDuration;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Less time than this is worth a warning.
pub const LITTLE_TIME: SignedDuration = SignedDuration::from_hours(1);

/// How long from now on the capture may stand still at `captured` before the server's log rolls over it, when the
/// log goes on as now: `rate` is in bytes per second, none for the mean of what the log holds. None when the
/// server's log has no bounds, or nothing tells its pace.
pub fn time_left(probe: &Probe, captured: &Point, rate: Option<f64>) -> Option<SignedDuration> {
    let room = probe.log_room?;
    // Years are as good as for ever.
    let told = |seconds: f64| SignedDuration::try_from_secs_f64(seconds.clamp(0.0, 1e10)).ok();
    let Some(log_start) = &probe.log_start else {
        return told(room.capacity.saturating_sub(room.used) as f64 / rate?.max(1.0));
    };
    if captured.position.order() < log_start.position.order() {
        return Some(SignedDuration::ZERO);
    }
    let seconds = |from: &Point, to: &Point| to.time.duration_since(from.time).as_secs_f64().max(0.0);
    let window = seconds(log_start, &probe.head).max(1.0);
    let mean = room.used as f64 / window;
    // A burst counts; a quiet minute after a busy day does not.
    let rate = rate.unwrap_or(mean).max(mean).max(1.0);
    // What lies between the two is about as dense as the log is on the whole.
    let behind = seconds(captured, &probe.head);
    let free = (room.capacity as f64 - behind * mean).max(0.0);
    let promised = room.kept_secs as f64 - behind;
    told((free / rate).max(promised))
}

/// Warns long before the server's log rolls over what is not captured yet.
pub(crate) struct Room {
    engine: Arc<dyn Engine>,
    metrics: Arc<Metrics>,
    /// Bytes of log read, and the end of what is stored of it.
    captured: watch::Receiver<(u64, Point)>,
    every: Duration,
    pace: Pace,
    /// The time left when it was warned of last.
    warned: Option<SignedDuration>,
    /// When it was told last what the server has to be warned of.
    told: Option<Instant>,
}

/// What the server has to be warned of is told again after this time.
const TOLD_AGAIN: Duration = Duration::from_secs(600);

impl Room {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        metrics: Arc<Metrics>,
        captured: watch::Receiver<(u64, Point)>,
        every: Duration,
    ) -> Self {
        Self { engine, metrics, captured, every, pace: Pace::default(), warned: None, told: None }
    }

    /// Looks from time to time, without end. Never fails: a server that is away is found out elsewhere.
    pub(crate) async fn watch(mut self) {
        loop {
            self.look().await;
            tokio::time::sleep(self.every).await;
        }
    }

    async fn look(&mut self) {
        let (read, captured) = self.captured.borrow().clone();
        let rate = self.pace.note(Instant::now(), read);
        let Ok(probe) = self.engine.probe().await else { return };
        if probe.warnings.is_empty() {
            self.told = None;
        } else if self.told.is_none_or(|told| told.elapsed() >= TOLD_AGAIN) {
            self.told = Some(Instant::now());
            probe.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        let left = time_left(&probe, &captured, rate);
        self.metrics.log_left(left);
        let Some(left) = left else { return };
        // Again each time that it has halved.
        let is_due = left < self.warned.map_or(LITTLE_TIME, |warned| warned / 2);
        if is_due {
            self.warned = Some(left);
            tracing::warn!(
                "the server's own log holds what is not captured yet (after {captured}) for {} s longer at its present pace: \
                 see what holds the capture back, or give it more room",
                left.as_secs()
            );
        } else if left >= LITTLE_TIME {
            self.warned = None;
        }
    }
}

/// The rate at which the log has come lately.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Bytes seen in all, at some moments of the last minutes.
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    const SPAN: Duration = Duration::from_secs(300);

    /// Notes that `bytes` were seen in all until now; gives bytes per second, once there is enough to tell.
    pub(crate) fn note(&mut self, now: Instant, bytes: u64) -> Option<f64> {
        while self.seen.front().is_some_and(|(then, _)| now.duration_since(*then) > Self::SPAN) {
            self.seen.pop_front();
        }
        self.seen.push_back((now, bytes));
        let (then, before) = self.seen.front()?;
        let elapsed = now.duration_since(*then).as_secs_f64();
        (elapsed >= 10.0).then(|| bytes.saturating_sub(*before) as f64 / elapsed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hindsight_engine::LogRoom;
    use hindsight_format::{ClusterIdentity, Position};
    use jiff::Timestamp;

    use super::*;

    fn point(second: i64) -> Point {
        let position = Position::new(format!("{second:06}"), "1").unwrap();
        Point { time: Timestamp::from_second(second).unwrap(), position }
    }

    fn probe(start: i64, head: i64, room: Option<LogRoom>) -> Probe {
        Probe {
            engine: "x",
            identity: ClusterIdentity { engine: "x".into(), id: "1".into() },
            natural_name: "x".into(),
            streams: vec!["x".into()],
            version: "1".into(),
            members: Vec::new(),
            head: point(head),
            log_start: Some(point(start)),
            log_room: room,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn it_is_what_the_log_can_still_take() {
        let room = |used, capacity, kept_secs| Some(LogRoom { used, capacity, kept_secs });
        let left = |probe: &Probe, at, rate| time_left(probe, &point(at), rate).map(|left| left.as_secs());
        // Full: 100 bytes a second, 10,000 seconds of it.
        let full = probe(10_000, 20_000, room(1_000_000, 1_000_000, 0));
        assert_eq!(left(&full, 20_000, None), Some(10_000));
        assert_eq!(left(&full, 15_000, None), Some(5_000));
        assert_eq!(left(&full, 20_000, Some(1000.0)), Some(1_000));
        assert_eq!(left(&full, 20_000, Some(1.0)), Some(10_000));
        assert_eq!(left(&full, 9_999, None), Some(0));
        // A tenth of it used yet.
        assert_eq!(left(&probe(10_000, 20_000, room(100_000, 1_000_000, 0)), 20_000, None), Some(100_000));
        // The server promises to keep more.
        assert_eq!(left(&probe(10_000, 20_000, room(1_000_000, 1_000_000, 86_400)), 19_000, None), Some(85_400));
        assert_eq!(left(&probe(0, 5, None), 5, None), None);
        // No time is known of its beginning, where it is kept for the capture.
        let kept = Probe { log_start: None, ..probe(0, 5, room(400, 1_000, 0)) };
        assert_eq!((left(&kept, 5, None), left(&kept, 5, Some(2.0))), (None, Some(300)));
        assert!(left(&probe(5, 5, room(0, 1 << 40, 0)), 5, None).unwrap() > 1 << 30);
    }

    #[test]
    fn the_pace_is_that_of_the_last_minutes() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        assert_eq!(pace.note(begun, 0), None);
        for second in 1..=1000_u64 {
            let bytes = if second < 500 { second } else { 500 + (second - 500) * 100 };
            let told = pace.note(begun + Duration::from_secs(second), bytes);
            match second {
                0..10 => assert_eq!(told, None),
                10..500 => assert_eq!(told, Some(1.0)),
                801.. => assert_eq!(told, Some(100.0)),
                _ => {}
            }
        }
    }
}
