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
    Bar(Option<(u32, Instant, ProgressBar)>),
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
                if shown.as_ref().is_none_or(|(step, ..)| *step != now.number) {
                    let fresh = (now.number, Instant::now(), bar(now));
                    if let Some((.., old)) = shown.replace(fresh) {
                        old.finish_and_clear();
                    }
                }
                if let Some((_, begun, bar)) = shown {
                    bar.set_prefix(figures(now, done, begun.elapsed()));
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
                    out.note(&format!("{}: {}", now.name, figures(now, done, begun.elapsed())));
                }
            }
        }
    }

    /// Does what prints something else without it and the bar getting in each other's way.
    fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match self {
            Self::Bar(Some((.., bar))) => bar.suspend(print),
            _ => print(),
        }
    }

    fn clear(&self) {
        if let Self::Bar(Some((.., bar))) = self {
            bar.finish_and_clear();
        }
    }
}

const WITH_TOTAL: &str = "{spinner} {msg} [{wide_bar}] {prefix}";
const WITHOUT_TOTAL: &str = "{spinner} {msg} ({prefix})";

/// A bar for one step, not drawn yet.
fn bar(step: &Step) -> ProgressBar {
    let template = if step.total.is_some() { WITH_TOTAL } else { WITHOUT_TOTAL };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(step.total, ProgressDrawTarget::stderr())
        .with_style(style.progress_chars("=> "))
        .with_message(step.name.clone())
}

/// How far a step is, in numbers. Rates are told once there is something to tell them from.
fn figures(step: &Step, done: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let Some(total) = step.total.filter(|total| *total > 0) else {
        return text::span(seconds.try_into().unwrap_or(i64::MAX));
    };
    let percent = (u128::from(done) * 100 / u128::from(total)).min(100);
    let mut figures = format!("{} of {} ({percent} %)", text::bytes(done), text::bytes(total));
    if let Some(rate) = done.checked_div(seconds).filter(|rate| *rate > 0) {
        let left = i64::try_from(total.saturating_sub(done) / rate).unwrap_or(i64::MAX);
        figures.push_str(&format!(", {}/s, {} left", text::bytes(rate), text::span(left)));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_say_how_far_it_is() {
        let step = Step { name: String::new(), total: Some(3 << 30), number: 2 };
        let at = |done: u64, seconds: u64| figures(&step, done, Duration::from_millis(seconds * 1000 + 10));
        assert_eq!(at(1 << 30, 8), "1.0 GiB of 3.0 GiB (33 %), 128 MiB/s, 16s left");
        assert_eq!(at(1 << 30, 0), "1.0 GiB of 3.0 GiB (33 %)");
        assert_eq!(at(0, 8), "0 B of 3.0 GiB (0 %)");
        assert_eq!(at(4 << 30, 1), "4.0 GiB of 3.0 GiB (100 %), 4.0 GiB/s, 0s left");
        assert_eq!(figures(&Step { total: None, ..step }, 5, Duration::from_secs(61)), "1m 1s");
    }

    #[test]
    fn every_template_is_sound() {
        for template in [WITH_TOTAL, WITHOUT_TOTAL] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
