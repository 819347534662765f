//! The demo: a shop on a real database loses its data, and gets them back as they were a second before.
//!
//! Everything is real: the servers, the `hindsight` program beside this one, and what it prints. The story is told as a
//! session in a shell: `#` begins what happens, `$` what is typed. It ends with a proof, or with exit code 1.
//!
//! Without an argument it is played on a replica set of MongoDB, with `postgres` on PostgreSQL.

mod postgres;
mod replica_set;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// How long the agent may take to store what has just happened, and to begin anew after a restore.
const PATIENCE: Duration = Duration::from_secs(40);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let played = tokio::select! {
        played = play() => played,
        stopped = asked_to_stop() => stopped,
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The play. The servers, the agent and all files are gone when this has returned or is dropped.
async fn play() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => replica_set::play().await,
        Some("postgres") => postgres::play().await,
        Some(other) => bail!("there is no demo {other:?}, only \"postgres\", or none for MongoDB"),
    }
}

/// Waits until the clock shows a later second than `than`, and gives that second.
async fn next_second(than: i64) -> i64 {
    loop {
        let now = Timestamp::now().as_second();
        if now > than {
            return now;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// As it is typed, such as `2021-02-07T02:59:59Z`.
fn time(second: i64) -> Result<String> {
    Ok(Timestamp::from_second(second)?.to_string())
}

async fn asked_to_stop() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    bail!("stopped; servers and files are removed")
}
