//! How a restored cluster is left: on disk, whole, and with a server that runs, if that is wanted.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use hindsight_engine::{EngineError, FailureKind, Result};
use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};

use super::configuration::Configuration;
use super::place::{Made, Place, quoted};
use super::present::Present;
use super::recover::Facts;
use super::settings::{self, Standing};
use crate::feed::blocking;
use crate::server::{Folder, Private, Programs, Server, user_of};

/// Seconds that a server may take to start, which has nothing to recover.
const TO_START: u32 = 120;
/// What a server says that is left running, in its directory.
const LOG: &str = "server.log";

/// Ends the server that has recovered, and leaves its directory as it is to stay. Gives what is to be told of that.
///
/// # Errors
/// It does not end cleanly, or something cannot be written.
pub(super) async fn leave(
    server: Server,
    private: Private,
    made: Arc<Made>,
    standing: Standing,
) -> Result<Option<String>> {
    server.stop().await?;
    blocking(move || {
        let told = settings::leave(made.data(), &standing)?;
        made.sync()?;
        // Only what is on disk is whole.
        private.remove()?;
        made.data().sync()?;
        Ok(told)
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
    /// It was not wanted. With these options, in words of a shell, it was started before.
    NotAsked(String),
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
            Self::NotAsked(_) | Self::Runs(_) => None,
            Self::Fails(why) => Some(format!("the server does not start as it is configured: {why}")),
            Self::Elsewhere(other) => Some(format!("the server is not started: its configuration leads to {other}")),
        }
    }
}

/// Starts the server as it is configured, so that it outlives us, if that is `wanted`, and if it is this one that starts. The
/// options are those that it was started with before, if it was; `port` counts more than they do.
///
/// # Errors
/// Its programs cannot be run.
pub(super) async fn start(programs: &Programs, data: &Folder, wanted: bool, port: Option<u16>) -> Result<Start> {
    let (here, by) = (data.clone(), programs.clone());
    blocking(move || {
        let mut configuration = Configuration::of(&here)?;
        if let Some(other) = configuration.elsewhere(&by, &here)? {
            return Ok(Start::Elsewhere(other));
        }
        if !wanted {
            return Ok(Start::NotAsked(configuration.words()));
        }
        configuration.options.extend(port.iter().flat_map(|port| ["-c".to_owned(), format!("port={port}")]));
        Ok(match start_here(&by, &here, &configuration)? {
            Ok(listening) => Start::Runs(listening),
            Err(why) => Start::Fails(why),
        })
    })
    .await
}

fn start_here(
    programs: &Programs,
    data: &Folder,
    configuration: &Configuration,
) -> Result<std::result::Result<Listening, String>> {
    let before = data.read(LOG)?.unwrap_or_default().len();
    let mut command = pg_ctl(programs, data);
    command.arg("-l").arg(data.path().join(LOG)).args(["-w", "-t", &TO_START.to_string(), "-s"]);
    if !configuration.options.is_empty() {
        command.args(["-o", &configuration.words()]);
    }
    // The server stays: it is to have large pages as its machine gives them, also where this program does without.
    let without = transparent_huge_pages_are_disabled().unwrap_or_default();
    let _ = disable_transparent_huge_pages(false);
    let started = command.arg("start").status();
    let _ = disable_transparent_huge_pages(without);
    let started = started?.success();
    let text = data.read("postmaster.pid")?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // LOCK_FILE_LINE_PORT, LOCK_FILE_LINE_SOCKET_DIR and LOCK_FILE_LINE_PM_STATUS (miscadmin.h)
    let line = |number: usize| text.lines().nth(number).unwrap_or_default().trim().to_owned();
    // Who looks after servers may have been quicker.
    let runs = started || (line(7) == "ready" && user_of(data)?.is_some());
    if !runs {
        let log = data.read(LOG)?.unwrap_or_default();
        return Ok(Err(why(log.get(before..).unwrap_or_default())));
    }
    Ok(Ok(Listening { port: line(3), sockets: line(4) }))
}

fn pg_ctl(programs: &Programs, data: &Folder) -> Command {
    let mut command = data.owner().command(&programs.program("pg_ctl"));
    command.current_dir(data.path()).arg("-D").arg(data.path()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Sees to it that no server runs in a directory, in which one was to start.
///
/// # Errors
/// One runs all the same.
pub(super) async fn end(programs: &Programs, data: &Folder) -> Result<()> {
    let (here, mut command) = (data.clone(), pg_ctl(programs, data));
    blocking(move || {
        if user_of(&here)?.is_some() {
            command.args(["-m", "immediate", "-w", "-s", "stop"]).status()?;
        }
        match user_of(&here)? {
            None => Ok(()),
            Some(user) => {
                let what = format!("the server that was restored does not end ({user})");
                Err(EngineError::new(FailureKind::Server, what))
            }
        }
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
        let (program, directory) = (quoted(&programs.program("pg_ctl")), quoted(place.home()));
        let log: PathBuf = place.home().join(LOG);
        let sudo = if place.owner().is_us() { String::new() } else { format!("sudo -u {} ", place.owner().name()) };
        match what {
            "start" => format!("{sudo}{program} -D {directory} -l {} start", quoted(&log)),
            what => format!("{sudo}{program} -D {directory} {what}"),
        }
    };
    let shown = place.home().display();
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
        Start::NotAsked(options) if options.is_empty() => {
            next.push(format!("it is ready to start: {}", pg_ctl("start")));
        }
        Start::NotAsked(options) => next.push(format!(
            "it is ready to start, with the options that it had before: {} -o {}",
            pg_ctl("start"),
            quoted(Path::new(options))
        )),
    }
    match place.replaces() {
        Some(present) => next.extend(in_place(present, start, facts)),
        None => next.extend(as_a_copy(facts)),
    }
    if facts.prepared > 0 {
        next.push(format!(
            "{} prepared transactions wait in it: see pg_prepared_xacts, and COMMIT PREPARED or ROLLBACK PREPARED each",
            facts.prepared
        ));
    }
    if place.replaces().is_none() {
        next.push(
            "it is not protected yet, and has the identity of its source: keep it under a name of its own with `backup --cluster NAME`, \
             or run the agent with it where it takes the place of its source"
                .to_owned(),
        );
    }
    next
}

/// What to do with a cluster that is not to be mistaken for its source.
fn as_a_copy(facts: &Facts) -> Vec<String> {
    let mut next = vec![
        "archiving, replication and synchronous standbys are switched off in it: before it takes the place of its source, \
         ALTER SYSTEM RESET archive_mode, primary_conninfo, synchronous_standby_names as needed, and restart it"
            .to_owned(),
    ];
    if facts.subscriptions > 0 {
        next.push(
            "its subscriptions are held back, as its source goes on with them: once they are this server's, ALTER SYSTEM RESET \
             max_logical_replication_workers, and restart it"
                .to_owned(),
        );
    }
    next
}

/// What to do with one that has taken the place of what it was.
fn in_place(present: &Present, start: &Start, facts: &Facts) -> Vec<String> {
    let mut next = Vec::new();
    if matches!(start, Start::Runs(_)) {
        next.push("where a service manager looks after it (systemctl), end it, and let that start it".to_owned());
    }
    let spaces: String = present.spaces().map(|space| format!(" {}", quoted(space))).collect();
    next.push(format!(
        "what it was before is in {}; once nobody needs it any more: rm -r {}{spaces}",
        present.kept().display(),
        quoted(&present.kept())
    ));
    next.push(
        "its standbys, if it has any, cannot follow it into the past: make them anew; commits wait for those that \
         synchronous_standby_names demands"
            .to_owned(),
    );
    if facts.subscriptions > 0 {
        next.push(
            "its subscriptions go on where their publishers are by now: what was sent to it since the restore point is not sent \
             again, so make them anew"
                .to_owned(),
        );
    }
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
