//! Telling that the capture stands still: since when, why, and how far it is behind.
//!
//! What it waits for may never answer, so this watches from beside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hindsight_engine::Engine;
use hindsight_format::{Point, format_time};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::room::time_left;

/// It is told again when it has lasted twice as long, and at least this often.
const AT_LEAST_EVERY: Duration = Duration::from_secs(600);
/// The server may be away as well: it is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the capture goes on. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Since when nothing has come of what is tried.
    since: Option<(Instant, Timestamp)>,
    /// What was said of it last.
    why: Option<String>,
    /// The end of what is stored.
    durable: Option<Point>,
}

impl Standing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is tried without which the capture does not go on.
    pub(crate) fn tries(&self) {
        self.state().since.get_or_insert_with(|| (Instant::now(), Timestamp::now()));
    }

    /// It came to nothing. Gives whether that was not known yet.
    pub(crate) fn fails(&self, why: String) -> bool {
        self.tries();
        let mut state = self.state();
        let is_news = state.why.as_ref() != Some(&why);
        state.why = Some(why);
        is_news
    }

    /// It goes on.
    pub(crate) fn goes_on(&self) {
        let mut state = self.state();
        (state.since, state.why) = (None, None);
    }

    /// Everything up to here is stored.
    pub(crate) fn stored(&self, until: &Point) {
        self.goes_on();
        self.at(until);
    }

    /// It begins here.
    pub(crate) fn at(&self, durable: &Point) {
        self.state().durable = Some(durable.clone());
    }

    /// Warns whenever nothing went on for `after`, and says when it does again. Never ends.
    pub(crate) async fn watch(&self, engine: &dyn Engine, after: Duration) {
        // Since when it stands still, and how long it did when that was told last.
        let mut told: Option<(Instant, Duration)> = None;
        loop {
            tokio::time::sleep(after / 4).await;
            let since = self.state().since;
            if let Some((then, _)) = told
                && since.is_none_or(|(since, _)| since != then)
            {
                tracing::info!("the capture goes on, after a standstill of {} s", then.elapsed().as_secs());
                told = None;
            }
            let Some((since, time)) = since else { continue };
            let lasted = since.elapsed();
            let due = told.map_or(after, |(_, before)| (before * 2).min(before + AT_LEAST_EVERY));
            if lasted >= due {
                told = Some((since, lasted));
                let text = self.in_words(engine).await;
                tracing::warn!("the capture stands still since {} ({} s){text}", format_time(time), lasted.as_secs());
            }
        }
    }

    async fn in_words(&self, engine: &dyn Engine) -> String {
        let (why, durable) = {
            let state = self.state();
            (state.why.clone(), state.durable.clone())
        };
        let mut text = format!(": {}", why.as_deref().unwrap_or("there is no answer"));
        let Some(durable) = durable else { return text };
        text.push_str(&format!("; captured until {}", format_time(durable.time)));
        if let Ok(Ok(probe)) = tokio::time::timeout(PATIENCE, engine.probe()).await {
            let behind = probe.head.time.duration_since(durable.time).as_secs().max(0);
            text.push_str(&format!(", {behind} s behind"));
            if let Some(left) = time_left(&probe, &durable, None) {
                text.push_str(&format!("; the server's own log holds the rest for {} s longer", left.as_secs()));
            }
        }
        text
    }
}
