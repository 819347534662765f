//! What can be restored to, and how the capture is doing.

use hindsight_catalog::{Gap, Range};
use hindsight_engine::{Synchronous, Wait};
use hindsight_format::{LeaseRecord, OperationKind, format_time};
use hindsight_jobs::{Captured, LITTLE_TIME, Overview};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::restores::{half_restored, replaced_or_not};
use crate::text;

/// Seconds that a capture may lag without being worth a warning: an idle server gives signs of life
/// now and then, and those are stored once a minute.
const USUAL_LAG: i64 = 120;

/// An agent that let go a shorter time ago may be about to begin again.
const LOOKS_AROUND: SignedDuration = SignedDuration::from_secs(10);

/// Ranges, gaps and the state of the capture.
#[derive(Debug, Serialize)]
pub(crate) struct Pitr {
    /// Whether capture is switched on.
    on: bool,
    /// What can be restored to.
    ranges: Vec<Stretch>,
    /// Why it is more than one range.
    gaps: Vec<Hole>,
    /// Log that no snapshot leads into; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    unbacked: Option<Vec<Stretch>>,
    /// The capture.
    capture: Capture,
    /// What is wrong.
    warnings: Vec<String>,
    /// Whether commits of the database wait until they are stored; only where they are to.
    #[serde(skip_serializing_if = "Option::is_none")]
    synchronous: Option<Wait>,
    /// The ranges and gaps in the order of history.
    #[serde(skip)]
    lines: Vec<String>,
    /// Whether there are snapshots, which can be restored as they are.
    #[serde(skip)]
    snapshots: bool,
    #[serde(skip)]
    now: Timestamp,
    /// That commits wait, as a sentence.
    #[serde(skip)]
    waits: Option<String>,
}

#[derive(Debug, Serialize)]
struct Stretch {
    /// As `pbm` gives it: Unix seconds.
    range: Seconds,
    from: String,
    to: String,
    epoch: u64,
    /// Base snapshots, oldest first.
    bases: Vec<String>,
    /// Why the server left this behind, and went on in another way: `restore --epoch` leads there.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_behind: Option<String>,
}

#[derive(Debug, Serialize)]
struct Seconds {
    start: i64,
    end: i64,
}

#[derive(Debug, Serialize)]
struct Hole {
    from: Option<String>,
    to: String,
    epoch: u64,
    cause: String,
}

/// How the capture is doing.
#[derive(Debug, Serialize)]
struct Capture {
    running: bool,
    /// The agent's host and process, or those of the last one.
    host: Option<String>,
    process: Option<u32>,
    /// The end of what is stored of the present epoch.
    captured_until: Option<String>,
    lag_secs: Option<i64>,
    #[serde(skip)]
    until: Option<Timestamp>,
    /// When there was a sign of life of an agent that is gone.
    #[serde(skip)]
    last_seen: Option<Timestamp>,
}

impl Pitr {
    /// How `overview` stands at `now`, told by a program called `program`.
    pub(crate) fn of(overview: &Overview, unbacked: bool, now: Timestamp, program: &str) -> Self {
        let timeline = &overview.timeline;
        let several = overview.epoch > 1;
        let mut lines: Vec<_> = timeline.ranges.iter().filter_map(|range| ordered_range(range, several)).collect();
        lines.extend(timeline.gaps.iter().map(ordered_gap));
        lines.sort_by(|(a, _), (b, _)| a.cmp(b));
        let capture = Capture::of(overview, now);
        Self {
            on: overview.config.pitr.enabled,
            ranges: timeline.ranges.iter().filter_map(Stretch::of).collect(),
            gaps: timeline.gaps.iter().map(Hole::of).collect(),
            unbacked: unbacked.then(|| unbacked_of(overview)),
            warnings: warnings(overview, &capture, now, program),
            capture,
            synchronous: None,
            lines: lines.into_iter().map(|(_, line)| line).collect(),
            snapshots: !overview.history.snapshots.is_empty(),
            now,
            waits: None,
        }
    }

    /// Says whether commits wait for the capture; `wanted` is what is set.
    pub(crate) fn tell_who_waits(&mut self, wanted: bool, now: Result<&Synchronous, &str>) {
        let on = self.on && wanted;
        match now {
            Ok(now) if on => {
                self.synchronous = Some(now.wait);
                match now.wait {
                    Wait::Always => self.waits = Some(now.told.clone()),
                    Wait::Sometimes | Wait::Never => {
                        self.warnings.push(format!("pitr.synchronous is on, but {}", now.told));
                    }
                }
            }
            // By its own name: nobody answers to that while it is off.
            Ok(now) if now.wait == Wait::Always => self.warnings.push(format!(
                "commits wait for a capture that does not acknowledge them (pitr.enabled or pitr.synchronous is off); {}",
                now.release
            )),
            Err(why) if on => self.warnings.push(format!("pitr.synchronous is on, but {why}")),
            Ok(_) | Err(_) => {}
        }
    }

    /// What the server itself has to be warned of.
    pub(crate) fn warn_of(&mut self, warnings: &[String]) {
        if self.on {
            self.warnings.extend_from_slice(warnings);
        }
    }

    /// Warns when the server's own log does not hold what is not captured yet for much longer.
    pub(crate) fn warn_of_room(&mut self, left: Option<SignedDuration>) {
        let Some(left) = left.filter(|left| self.on && *left < LITTLE_TIME) else { return };
        self.warnings.push(match left.as_secs() {
            ..1 => "the server's own log has rolled over what is not captured yet: there will be a gap, and a new range \
                    with the next snapshot"
                .to_owned(),
            seconds => format!(
                "the server's own log holds what is not captured yet for {} longer at its present pace: see what holds the \
                 capture back, or give it more room",
                text::span(seconds)
            ),
        });
    }

    /// `PITR <on>:` and what follows.
    pub(crate) fn text(&self) -> String {
        format!("PITR <{}>:\n{}", self.state(), self.body())
    }

    /// `on` or `off`.
    pub(crate) fn state(&self) -> &'static str {
        if self.on { "on" } else { "off" }
    }

    /// Ranges, gaps, the capture, warnings.
    pub(crate) fn body(&self) -> String {
        let mut text = String::new();
        if self.ranges.is_empty() {
            let but = if self.snapshots { ", but the snapshots can, each as it is" } else { "" };
            text.push_str(&format!("  no time range can be restored yet{but}\n"));
        }
        for line in &self.lines {
            text.push_str(line);
        }
        if let Some(unbacked) = &self.unbacked {
            text.push_str("  Captured without a base snapshot before it:\n");
            for stretch in unbacked {
                text.push_str(&format!("    {} - {}\n", stretch.from, stretch.to));
            }
            if unbacked.is_empty() {
                text.push_str("    none\n");
            }
        }
        if let Some(line) = self.capture.text(self.now) {
            text.push_str(&format!("  {line}\n"));
        }
        if let Some(waits) = &self.waits {
            text.push_str(&format!("  {waits}\n"));
        }
        for warning in &self.warnings {
            text.push_str(&format!("  WARNING: {warning}\n"));
        }
        text
    }
}

/// Where a line belongs in the order of history: epoch, time, position, gaps before ranges.
type Place = (u64, Timestamp, String, u8);

fn ordered_range(range: &Range, several_epochs: bool) -> Option<(Place, String)> {
    let (from, to) = range.from.zip(range.to)?;
    let place = (range.epoch, range.start.time, range.start.position.order().to_owned(), 1);
    if let Some(cause) = &range.left_behind {
        let about = format!("{}, --epoch {}", text::between(from, to), range.epoch);
        return Some((
            place,
            format!("    left behind {} - {} ({about}): {cause}\n", format_time(from), format_time(to)),
        ));
    }
    let mut about = format!("{}, {}", text::between(from, to), text::things(range.bases.len() as u64, "base", "bases"));
    if several_epochs {
        about.push_str(&format!(", epoch {}", range.epoch));
    }
    let line = format!("  {} - {}  ({about})\n", format_time(from), format_time(to));
    Some((place, line))
}

fn ordered_gap(gap: &Gap) -> (Place, String) {
    let (start, end) = (gap.start.as_ref().map(|point| point.time), gap.end.time);
    let line = match start {
        Some(start) => {
            let (from, to) = (format_time(start), format_time(end));
            format!("    gap {from} - {to} ({}): {}\n", text::between(start, end), gap.cause)
        }
        None => format!("    gap before {}: {}\n", format_time(end), gap.cause),
    };
    ((gap.epoch, end, gap.end.position.order().to_owned(), 0), line)
}

impl Stretch {
    fn of(range: &Range) -> Option<Self> {
        let (from, to) = range.from.zip(range.to)?;
        let left_behind = range.left_behind.clone();
        Some(Self { left_behind, ..Self::new(from, to, range.epoch, range.bases.clone()) })
    }

    fn new(from: Timestamp, to: Timestamp, epoch: u64, bases: Vec<String>) -> Self {
        let range = Seconds { start: from.as_second(), end: to.as_second() };
        Self { range, from: format_time(from), to: format_time(to), epoch, bases, left_behind: None }
    }
}

impl Hole {
    fn of(gap: &Gap) -> Self {
        Self {
            from: gap.start.as_ref().map(|point| format_time(point.time)),
            to: format_time(gap.end.time),
            epoch: gap.epoch,
            cause: gap.cause.clone(),
        }
    }
}

fn unbacked_of(overview: &Overview) -> Vec<Stretch> {
    let unbacked = overview.timeline.unbacked.iter();
    unbacked.map(|log| Stretch::new(log.start.time, log.end.time, log.epoch, Vec::new())).collect()
}

impl Capture {
    fn of(overview: &Overview, now: Timestamp) -> Self {
        let (running, lease) = match &overview.capture {
            Captured::Running(lease) => (true, Some(lease)),
            Captured::Idle(lease) => (false, lease.as_ref()),
        };
        let until = overview.captured_until().map(|point| point.time);
        Self {
            running,
            host: lease.map(|lease| lease.holder.host.clone()),
            process: lease.map(|lease| lease.holder.pid),
            captured_until: until.map(format_time),
            lag_secs: until.filter(|_| running).map(|until| now.duration_since(until).as_secs().max(0)),
            until,
            last_seen: lease.filter(|_| !running).map(|lease| lease.renewed_at),
        }
    }

    fn text(&self, now: Timestamp) -> Option<String> {
        let agent = match (&self.host, self.process) {
            (Some(host), Some(process)) => format!("the agent on {host} (process {process})"),
            _ => "an agent".to_owned(),
        };
        match (self.running, self.until) {
            (true, Some(until)) => {
                let ago = text::span(now.duration_since(until).as_secs().max(0));
                Some(format!("Captured until {}, {ago} ago, by {agent}", format_time(until)))
            }
            (true, None) => Some(format!("Capture by {agent} begins; nothing is stored yet")),
            (false, until) => {
                let until = until.map(|until| format!("Captured until {}; ", format_time(until))).unwrap_or_default();
                let seen = self.last_seen.map(|seen| text::span(now.duration_since(seen).as_secs().max(0)));
                match seen {
                    Some(ago) => Some(format!("{until}no agent is capturing now, {agent} was last seen {ago} ago")),
                    None if until.is_empty() => None,
                    None => Some(format!("{until}no agent is capturing now")),
                }
            }
        }
    }
}

fn is_restore(lease: &LeaseRecord) -> bool {
    lease.operation.kind == OperationKind::Restore
}

fn warnings(overview: &Overview, capture: &Capture, now: Timestamp, program: &str) -> Vec<String> {
    let mut warnings = half_restored(overview, program);
    warnings.extend(replaced_or_not(overview, program));
    if !overview.config.pitr.enabled {
        return warnings;
    }
    let restoring = overview.operation.as_ref().filter(|lease| is_restore(lease));
    let based = overview.history.snapshots_of(overview.epoch).any(|snapshot| snapshot.namespaces.is_empty());
    if let (false, Some(restore)) = (capture.running, restoring) {
        warnings.push(format!("capture waits for the restore {} to end", restore.operation.id));
    } else if !capture.running && warnings.is_empty() {
        // One that has just let go, for a restore as an example, may soon be back.
        if capture.last_seen.is_none_or(|seen| now.duration_since(seen) > LOOKS_AROUND) {
            warnings.push(format!("PITR is on but no agent is capturing: start `{program} agent`"));
        }
    } else if !based && capture.running {
        warnings.push(format!(
            "what is captured cannot be restored before there is a base snapshot: the agent takes one by itself, \
             or run `{program} backup`"
        ));
    }
    if let Some(lag) =
        capture.lag_secs.filter(|lag| *lag > USUAL_LAG.max(3 * i64::from(overview.config.pitr.upload_interval_sec)))
    {
        warnings.push(format!("the capture is {} behind: see the agent's log", text::span(lag)));
    }
    warnings
}
