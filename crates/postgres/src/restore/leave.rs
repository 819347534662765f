//! How a restored cluster is left: on disk, whole, and with a server that runs, if that is wanted.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use hindsight_engine::Result;

use super::place::{Made, Place, quoted};
use super::recover::Facts;
use super::settings::{self, Standing};
use crate::feed::blocking;
use crate::server::{Folder, Private, Programs, Server};

/// Seconds that a server may take to start, which has nothing to recover.
const TO_START: u32 = 120;
/// What a server says that is left running, in its directory.
const LOG: &str = "server.log";

/// Ends the server that has recovered, and leaves its directory as it is to stay.
///
/// # Errors
/// It does not end cleanly, or something cannot be written.
pub(super) async fn leave(server: Server, private: Private, made: Arc<Made>, standing: Standing) -> Result<()> {
    server.stop().await?;
    blocking(move || {
        settings::leave(made.data(), &standing)?;
        made.sync()?;
        // Only what is on disk is whole.
        private.remove()?;
        made.data().sync()
    })
    .await
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listening {
    port: String,
    sockets: String,
}

/// What came of starting the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It was not wanted.
    NotAsked,
    /// It runs.
    Runs(Listening),
    /// It does not start as it is configured, and why.
    Fails(String),
    /// Its configuration says that the data are in this directory, which is another one: a server that is started here
    /// takes that.
    Elsewhere(String),
}

impl Start {
    /// What is to be told as soon as it is known.
    pub(super) fn warning(&self) -> Option<String> {
        match self {
            Self::NotAsked | Self::Runs(_) => None,
            Self::Fails(why) => Some(format!("the server does not start as it is configured: {why}")),
            Self::Elsewhere(other) => Some(format!("the server is not started: its configuration leads to {other}")),
        }
    }
}

/// Starts the server as it is configured, so that it outlives us, if that is `wanted`, and if it is this one that starts.
///
/// # Errors
/// Its programs cannot be run.
pub(super) async fn start(programs: &Programs, data: &Folder, wanted: bool) -> Result<Start> {
    if let Some(other) = elsewhere(programs, data).await? {
        return Ok(Start::Elsewhere(other));
    }
    if !wanted {
        return Ok(Start::NotAsked);
    }
    Ok(match start_here(programs, data).await? {
        Ok(listening) => Start::Runs(listening),
        Err(why) => Start::Fails(why),
    })
}

/// The directory that a server takes which is told this one, if it is another: `data_directory` in its `postgresql.conf` counts
/// more than what it is told (`SelectConfigFiles` in guc.c). That came from the source, and may name its directory.
async fn elsewhere(programs: &Programs, data: &Folder) -> Result<Option<String>> {
    let mut command = data.owner().command(&programs.program("postgres"));
    command.current_dir(data.path()).arg("-D").arg(data.path()).args(["-C", "data_directory"]).stderr(Stdio::null());
    let data = data.clone();
    blocking(move || {
        let output = command.output()?;
        // What keeps it from reading its configuration keeps it from starting.
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || said.is_empty() {
            return Ok(None);
        }
        let here = data.metadata()?;
        let is_here = fs::metadata(&said).is_ok_and(|found| (found.dev(), found.ino()) == (here.dev(), here.ino()));
        Ok((!is_here).then_some(said))
    })
    .await
}

async fn start_here(programs: &Programs, data: &Folder) -> Result<std::result::Result<Listening, String>> {
    let mut command = data.owner().command(&programs.program("pg_ctl"));
    command.current_dir(data.path()).arg("-D").arg(data.path()).arg("-l").arg(data.path().join(LOG));
    command.args(["-w", "-t", &TO_START.to_string(), "-s", "start"]).stdout(Stdio::null()).stderr(Stdio::null());
    let data = data.clone();
    blocking(move || {
        if !command.status()?.success() {
            return Ok(Err(why(&data.read(LOG)?.unwrap_or_default())));
        }
        let text = data.read("postmaster.pid")?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().map(str::to_owned);
        // LOCK_FILE_LINE_PORT and LOCK_FILE_LINE_SOCKET_DIR (miscadmin.h)
        let (port, sockets) = (lines.nth(3).unwrap_or_default(), lines.next().unwrap_or_default());
        Ok(Ok(Listening { port, sockets }))
    })
    .await
}

/// What a server said that did not start.
fn why(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let telling: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            ["FATAL:", "LOG:  could not", "WARNING:"].iter().find_map(|level| line.get(line.find(level)?..))
        })
        .collect();
    match telling.as_slice() {
        [] => text.lines().last().unwrap_or("it said nothing").to_owned(),
        [one] => (*one).to_owned(),
        // What went wrong first, and what it came to.
        [first, .., last] => format!("{first} | {last}"),
    }
}

/// What to do next, a sentence each.
pub(super) fn next(programs: &Programs, place: &Place, start: &Start, facts: &Facts) -> Vec<String> {
    let pg_ctl = |what: &str| {
        let (program, directory) = (quoted(&programs.program("pg_ctl")), quoted(place.directory()));
        let log: PathBuf = place.directory().join(LOG);
        let sudo = if place.owner().is_us() { String::new() } else { format!("sudo -u {} ", place.owner().name()) };
        match what {
            "start" => format!("{sudo}{program} -D {directory} -l {} start", quoted(&log)),
            what => format!("{sudo}{program} -D {directory} {what}"),
        }
    };
    let shown = place.directory().display();
    let mut next = Vec::new();
    match start {
        Start::Runs(Listening { port, sockets }) => {
            let folder = if sockets.is_empty() { String::new() } else { format!(", and its socket is in {sockets}") };
            next.push(format!(
                "a server runs in {shown}: it listens on port {port}{folder}; end it with: {}",
                pg_ctl("stop")
            ));
        }
        Start::Fails(why) => {
            let taken = why.contains("Address already in use") || why.contains("already exists");
            let remedy = if taken {
                format!("set another port in {shown}/postgresql.auto.conf")
            } else {
                format!("correct {shown}/postgresql.conf")
            };
            next.push(format!(
                "the data are restored and were looked at, but the server does not start as it is configured: {why}; {remedy}, \
                 and start it with: {}",
                pg_ctl("start")
            ));
        }
        Start::Elsewhere(other) => next.push(format!(
            "the data are restored and were looked at, but do not start a server in {shown} yet: data_directory in its \
             configuration leads it to {other}, and it would run there; remove that line from {shown}/postgresql.conf first"
        )),
        Start::NotAsked => next.push(format!("it is ready to start: {}", pg_ctl("start"))),
    }
    next.push(
        "archiving, replication and synchronous standbys are switched off in it: before it takes the place of its source, \
         ALTER SYSTEM RESET archive_mode, primary_conninfo, synchronous_standby_names as needed, and restart it"
            .to_owned(),
    );
    if facts.subscriptions > 0 {
        next.push(
            "its subscriptions are held back, as its source goes on with them: once they are this server's, ALTER SYSTEM RESET \
             max_logical_replication_workers, and restart it"
                .to_owned(),
        );
    }
    if facts.prepared > 0 {
        next.push(format!(
            "{} prepared transactions wait in it: see pg_prepared_xacts, and COMMIT PREPARED or ROLLBACK PREPARED each",
            facts.prepared
        ));
    }
    next.push(
        "it is not protected yet, and has the identity of its source: keep it under a name of its own with `backup --cluster NAME`, \
         or run the agent with it where it takes the place of its source"
            .to_owned(),
    );
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_server_from_starting_is_told() {
        let told = |text: &str| why(text.as_bytes());
        let text = "2026-01-01 UTC [7] LOG:  starting\n2026-01-01 UTC [7] LOG:  could not bind IPv4 address \"127.0.0.1\": Address \
                    already in use\nHINT:  x\n2026-01-01 UTC [7] FATAL:  could not create any TCP/IP sockets\n";
        assert_eq!(
            told(text),
            "LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use | FATAL:  could not create any TCP/IP \
             sockets"
        );
        assert_eq!(told("odd\n"), "odd");
        assert_eq!(told(""), "it said nothing");
    }
}
