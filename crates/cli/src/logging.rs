//! Logging, to standard error.

use std::fmt;
use std::io::IsTerminal;

use hindsight_format::format_time;
use jiff::Timestamp;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::args::{LogFormat, LogLevel};

/// Times as everywhere: UTC, whole seconds.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        w.write_str(&format_time(Timestamp::now()))
    }
}

/// Begins to log. A service tells what it does; a command only what is wrong, and its warnings are
/// printed where they belong.
pub(crate) fn start(level: Option<LogLevel>, format: LogFormat, service: bool) {
    let own = match (level, service) {
        (Some(level), _) => format!("{level:?}").to_lowercase(),
        (None, true) => "info".to_owned(),
        (None, false) => "warn,hindsight_engine::progress=off".to_owned(),
    };
    let others = if matches!(level, Some(LogLevel::Off)) { "off" } else { "warn" };
    let filter = EnvFilter::builder().parse_lossy(format!("{others},hindsight={own}"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_timer(Utc)
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
