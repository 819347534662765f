//! The logs of jobs, kept in the repository: what every job said at level INFO or worse, so that
//! `logs` can tell it on any machine.
//!
//! A layer of `tracing` collects it in memory; a task stores it every few seconds. Neither ever
//! fails or delays a job: what cannot be stored is tried again, and given up when it becomes too much.

use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hindsight_format::{FORMAT_VERSION, JournalBatch, JournalLine, Severity};
use hindsight_repository::{ClusterRepository, host_name};
use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Target of the spans that say which job something belongs to. They are for the journal alone.
pub(crate) const JOB: &str = "hindsight_jobs::job";
/// Target of what a job says of its beginning and end, which whoever started it is told anyway.
pub(crate) const RESULT: &str = "hindsight_jobs::result";

/// Lines that are stored this often.
const STORE_EVERY: Duration = Duration::from_secs(3);
/// Lines that wait for a repository that is away at most; then newer ones are given up.
const MAX_WAITING: usize = 20_000;
/// Lines of one object at most.
const BATCH: usize = 2000;
/// How long the end of the program waits for the last lines to be stored.
const FAREWELL: Duration = Duration::from_secs(5);

/// The span in which a job works: its kind, and its name where it has one.
pub(crate) fn job(kind: &str, name: Option<&str>) -> Span {
    let event = name.map_or_else(|| kind.to_owned(), |name| format!("{kind}/{name}"));
    tracing::info_span!(target: JOB, "job", event = event.as_str())
}

/// The journal of this process. Clones are the same.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    waiting: Mutex<Waiting>,
    /// Takes out what is secret.
    scrub: fn(&str) -> String,
    host: String,
    writer: u32,
    /// Where lines go, once that is known, and the event of what belongs to no job.
    place: OnceLock<(ClusterRepository, String)>,
    /// Held while lines are stored.
    storing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Line>,
    /// Lines given up since the last of these.
    lost: u64,
}

struct Line {
    time: Timestamp,
    severity: Severity,
    event: Option<String>,
    message: String,
}

impl Journal {
    /// An empty one. `scrub` takes out of a text what is secret in it.
    pub fn new(scrub: fn(&str) -> String) -> Self {
        Self(Arc::new(Inner {
            waiting: Mutex::default(),
            scrub,
            host: host_name(),
            writer: rand::random(),
            place: OnceLock::new(),
            storing: tokio::sync::Mutex::default(),
        }))
    }

    /// The layer that collects. It wants the events and spans of all of Hindsight's crates.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        Collector(self.clone())
    }

    /// From now on, what was and is collected is stored in `cluster`. `verb` is the event of what
    /// belongs to no job. A process works for one cluster: only the first call counts.
    pub fn attach(&self, cluster: &ClusterRepository, verb: &str) {
        if self.0.place.set((cluster.clone(), verb.to_owned())).is_err() {
            return;
        }
        let journal = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(STORE_EVERY).await;
                journal.store().await;
            }
        });
    }

    /// Stores what is left, if that takes no longer than a few seconds.
    pub async fn finish(&self) {
        tokio::time::timeout(FAREWELL, self.store()).await.ok();
    }

    async fn store(&self) {
        let Some((cluster, verb)) = self.0.place.get() else { return };
        let _storing = self.0.storing.lock().await;
        while let Some(batch) = self.next_batch(verb) {
            if cluster.put_journal(Timestamp::now(), self.0.writer, &batch).await.is_err() {
                // The repository is away: the lines wait.
                return;
            }
            // Lines are added at the end only.
            self.waiting().lines.drain(..batch.lines.len());
        }
    }

    /// The oldest lines, which stay until they are stored.
    fn next_batch(&self, verb: &str) -> Option<JournalBatch> {
        let line = |line: &Line| JournalLine {
            time: line.time,
            severity: line.severity,
            event: line.event.clone().unwrap_or_else(|| verb.to_owned()),
            message: line.message.clone(),
        };
        let lines: Vec<_> = self.waiting().lines.iter().take(BATCH).map(line).collect();
        let batch = JournalBatch { format: FORMAT_VERSION, host: self.0.host.clone(), pid: std::process::id(), lines };
        (!batch.lines.is_empty()).then_some(batch)
    }

    fn push(&self, severity: Severity, event: Option<String>, message: &str) {
        let time = Timestamp::now();
        let message = (self.0.scrub)(message);
        let mut waiting = self.waiting();
        if waiting.lines.len() >= MAX_WAITING {
            waiting.lost += 1;
            return;
        }
        if waiting.lost > 0 {
            let message = format!("{} lines were given up before this one", std::mem::take(&mut waiting.lost));
            waiting.lines.push_back(Line { time, severity: Severity::Warning, event: None, message });
        }
        waiting.lines.push_back(Line { time, severity, event, message });
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects events into the journal.
struct Collector(Journal);

/// The event that a span stands for.
struct JobEvent(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collector {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().target() != JOB {
            return;
        }
        let mut text = Text::default();
        attributes.record(&mut text);
        if let (Some(span), Some(event)) = (context.span(id), text.event) {
            span.extensions_mut().insert(JobEvent(event));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            Level::INFO => Severity::Info,
            _ => return,
        };
        if !metadata.target().starts_with("hindsight") {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let spans = context.event_scope(event).into_iter().flatten();
        let job = spans.filter_map(|span| Some(span.extensions().get::<JobEvent>()?.0.clone())).next();
        self.0.push(severity, job, &text.line());
    }
}

/// What the fields of an event say.
#[derive(Default)]
struct Text {
    message: String,
    others: String,
    hint: String,
    /// That of a job's span.
    event: Option<String>,
}

impl Text {
    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            "hint" => self.hint = value,
            "event" => self.event = Some(value),
            name => {
                let _ = write!(self.others, " {name}={value}");
            }
        }
    }

    /// One line.
    fn line(&self) -> String {
        let hint = if self.hint.is_empty() { String::new() } else { format!(" (hint: {})", self.hint) };
        format!("{}{}{hint}", self.message, self.others).replace(['\n', '\r'], " ")
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tracing::Instrument;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What is collected while `work` runs, as `severity event message`.
    fn collected(work: impl FnOnce()) -> Vec<String> {
        let journal = Journal::new(|text| text.replace("geheim", "***"));
        let subscriber = tracing_subscriber::registry().with(journal.layer());
        tracing::subscriber::with_default(subscriber, work);
        let batch = journal.next_batch("verb").map(|batch| batch.lines).unwrap_or_default();
        batch.iter().map(|line| format!("{} {} {}", line.severity.letter(), line.event, line.message)).collect()
    }

    #[test]
    fn lines_carry_their_job_and_no_secret() {
        let lines = collected(|| {
            tracing::info!("before {}", "geheim");
            job("backup", Some("x")).in_scope(|| {
                tracing::warn!(count = 3, hint = "try again", "odd\nthing");
                tracing::info_span!("other").in_scope(|| tracing::error!(error = %"geheim", "failed"));
                tracing::debug!("not kept");
            });
            tracing::info!(target: "mongodb::driver", "not ours");
        });
        assert_eq!(
            lines,
            ["I verb before ***", "W backup/x odd thing count=3 (hint: try again)", "E backup/x failed error=***",]
        );
    }

    #[tokio::test]
    async fn a_task_of_a_job_that_runs_elsewhere_keeps_its_job() {
        let journal = Journal::new(str::to_owned);
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(journal.layer()));
        let task = async { tokio::spawn(async { tracing::info!("stored") }.in_current_span()).await.unwrap() };
        task.instrument(job("pitr", None)).await;
        assert_eq!(journal.next_batch("verb").unwrap().lines[0].event, "pitr");
    }

    #[test]
    fn what_waits_too_long_is_given_up_and_that_is_told() {
        let journal = Journal::new(str::to_owned);
        (0..MAX_WAITING + 5).for_each(|n| journal.push(Severity::Info, None, &n.to_string()));
        assert_eq!(journal.waiting().lines.len(), MAX_WAITING);
        journal.waiting().lines.drain(..10);
        journal.push(Severity::Info, None, "last");
        let waiting = journal.waiting();
        let end: Vec<_> = waiting.lines.iter().rev().take(2).map(|line| line.message.as_str()).collect();
        assert_eq!(end, ["last", "5 lines were given up before this one"]);
    }
}
