//! Logging: to standard error, and to the journal that is kept in the repository.

use std::fmt;
use std::io::IsTerminal;

use hindsight_format::format_time;
use hindsight_jobs::Journal;
use jiff::Timestamp;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::args::{LogFormat, LogLevel};

/// Times as everywhere: UTC, whole seconds.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        w.write_str(&format_time(Timestamp::now()))
    }
}

/// Begins to log. A service tells what it does; a command only what is wrong, and its warnings and its
/// failure are printed where they belong. The journal gets everything at INFO and worse, whatever is
/// shown.
pub(crate) fn start(level: Option<LogLevel>, format: LogFormat, service: bool, journal: &Journal) {
    let own = match (level, service) {
        (Some(level), _) => format!("{level:?}").to_lowercase(),
        (None, true) => "info".to_owned(),
        (None, false) => "warn,hindsight_engine::progress=off,hindsight_jobs::result=off".to_owned(),
    };
    let others = if matches!(level, Some(LogLevel::Off)) { "off" } else { "warn" };
    // Which job a line belongs to is told in the journal only.
    let shown = EnvFilter::builder().parse_lossy(format!("{others},hindsight={own},hindsight_jobs::job=off"));
    let kept = Targets::new().with_target("hindsight", LevelFilter::INFO);
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_timer(Utc)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(journal.layer().with_filter(kept));
    match format {
        LogFormat::Text => registry.with(log.with_filter(shown)).init(),
        LogFormat::Json => registry.with(log.json().with_filter(shown)).init(),
    }
}
