//! Showing how far a job is, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use hindsight_engine::{Progress, Step};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;
use crate::text;

const LOOK: Duration = Duration::from_millis(200);
/// Steps shorter than this are not told where there is no terminal.
const WORTH_TELLING: Duration = Duration::from_secs(2);
const REPEAT: Duration = Duration::from_secs(10);

/// Shows `progress` while `work` goes on, and its warnings afterwards. `beginning` is a line for
/// people to read as soon as it is known; whether it was shown is told with what `work` gave.
pub(crate) async fn shown<T>(
    out: Output,
    progress: &Progress,
    beginning: impl Future<Output = String>,
    work: impl Future<Output = T>,
) -> (T, bool) {
    let mut display = if std::io::stderr().is_terminal() { Display::bar() } else { Display::lines() };
    let mut looks = tokio::time::interval(LOOK);
    looks.tick().await;
    let (mut beginning, mut told) = (std::pin::pin!(beginning), false);
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            line = &mut beginning, if !told => {
                // Nobody reads standard output when it is closed; the work is worth doing all the same.
                let _ = display.aside(|| out.say(&line));
                told = true;
            }
            _ = looks.tick() => display.show(out, &progress.current(), progress.done()),
        }
    };
    display.clear();
    for warning in progress.warnings() {
        out.note(&format!("Warning: {warning}"));
    }
    (done, told)
}

enum Display {
    Bar(Option<(u32, ProgressBar)>),
    Lines { step: Option<u32>, begun: Instant, told: Option<Instant> },
}

impl Display {
    fn bar() -> Self {
        Self::Bar(None)
    }

    fn lines() -> Self {
        Self::Lines { step: None, begun: Instant::now(), told: None }
    }

    fn show(&mut self, out: Output, now: &Step, done: u64) {
        match self {
            Self::Bar(shown) => {
                if shown.as_ref().is_none_or(|(step, _)| *step != now.number) {
                    let fresh = (now.number, bar(now));
                    if let Some((_, old)) = shown.replace(fresh) {
                        old.finish_and_clear();
                    }
                }
                if let Some((_, bar)) = shown {
                    bar.set_position(done);
                    bar.tick();
                }
            }
            Self::Lines { step, begun, told } => {
                if step.replace(now.number) != Some(now.number) {
                    (*begun, *told) = (Instant::now(), None);
                }
                let due = match told {
                    None => begun.elapsed() >= WORTH_TELLING,
                    Some(told) => told.elapsed() >= REPEAT,
                };
                if due {
                    *told = Some(Instant::now());
                    out.note(&line(now, done, begun.elapsed()));
                }
            }
        }
    }

    /// Does what prints something else without it and the bar getting in each other's way.
    fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match self {
            Self::Bar(Some((_, bar))) => bar.suspend(print),
            _ => print(),
        }
    }

    fn clear(&self) {
        if let Self::Bar(Some((_, bar))) = self {
            bar.finish_and_clear();
        }
    }
}

const WITH_TOTAL: &str =
    "{spinner} {msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
const WITHOUT_TOTAL: &str = "{spinner} {msg} ({elapsed})";

/// A bar for one step, not drawn yet.
fn bar(step: &Step) -> ProgressBar {
    let template = if step.total.is_some() { WITH_TOTAL } else { WITHOUT_TOTAL };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(step.total, ProgressDrawTarget::stderr())
        .with_style(style.progress_chars("=> "))
        .with_message(step.name.clone())
}

/// How far a step is, in one line.
fn line(step: &Step, done: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs().max(1);
    match step.total.filter(|total| *total > 0) {
        Some(total) => format!(
            "{}: {} of {} ({} %), {}/s",
            step.name,
            text::bytes(done),
            text::bytes(total),
            (u128::from(done) * 100 / u128::from(total)).min(100),
            text::bytes(done / seconds)
        ),
        None => format!("{} ({})", step.name, text::span(seconds.try_into().unwrap_or(i64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_it_is() {
        let step = Step { name: "copying documents".to_owned(), total: Some(3 << 30), number: 2 };
        let elapsed = Duration::from_secs(8);
        assert_eq!(line(&step, 1 << 30, elapsed), "copying documents: 1.0 GiB of 3.0 GiB (33 %), 128 MiB/s");
        let step = Step { total: None, name: "building indexes".to_owned(), ..step };
        assert_eq!(line(&step, 0, elapsed), "building indexes (8s)");
    }

    #[test]
    fn every_template_is_sound() {
        for template in [WITH_TOTAL, WITHOUT_TOTAL] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
