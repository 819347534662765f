//! Ctrl-C and SIGTERM.

use std::io::Write;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// Cancels `stop` at the first signal, so that work ends cleanly; ends the program at the second.
/// `slow` says whether there may be something to wait for in between.
pub(crate) fn on_signals(stop: CancellationToken, slow: bool) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_cancelled() {
                std::process::exit(Exit::Interrupted as i32);
            }
            if slow {
                // There is nobody to tell when standard error is closed.
                let _ = writeln!(std::io::stderr(), "stopping; once more stops at once");
            }
            stop.cancel();
        }
    });
    Ok(())
}
