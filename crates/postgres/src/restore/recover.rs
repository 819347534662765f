//! A server that replays the log in a directory, and what is looked at when it has.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use hindsight_engine::{EngineError, FailureKind, Job, Result};

use super::log::StoredLog;
use super::serve::Serving;
use super::settings::{RecoveryTarget, isolated};
use crate::base::StoredBase;
use crate::feed::blocking;
use crate::server::{PRIVATE, Private, Programs, Server};
use crate::wal::{History, SegmentSize, WalFile};
use crate::wire::{Connection, Error as WireError};
use crate::{Lsn, TimelineId};

/// Databases that clusters have, at least one of them; either may have been closed or dropped.
const DATABASES: [&str; 2] = ["template1", "postgres"];
/// No such role, or it may not log in (`invalid_authorization_specification`).
const NO_ROLE: &str = "28000";
/// No such database, or it takes no connections (`invalid_catalog_name`, `object_not_in_prerequisite_state`).
const NO_DATABASE: [&str; 2] = ["3D000", "55000"];

/// Lets a server replay the log to where it is cut, and end its recovery there.
///
/// # Errors
/// The log cannot be read, or the server does not take it.
pub(crate) async fn recover(
    job: &Job,
    programs: &Programs,
    private: &Private,
    base: &StoredBase,
    log: Arc<StoredLog>,
    last: Lsn,
    command: String,
) -> Result<Server> {
    private.data().write("recovery.signal", b"")?;
    let (timeline, cut) = (log.segments().timeline(), log.segments().cut());
    let serving = Serving::start(job, base, log, private)?;
    let target = RecoveryTarget { last, timeline, command };
    let mut server = Server::start(programs, private, &isolated(base, Some(&target))).await?;
    let recovered = tokio::select! {
        ready = server.ready() => ready,
        failure = serving.failure() => Err(failure),
        () = job.cancel.cancelled() => Err(EngineError::cancelled()),
    };
    // Where the log could not be given to it, that is the cause of whatever it says.
    recovered.map_err(|error| serving.take_failure().unwrap_or(error))?;
    check_history(private, timeline, cut)?;
    Ok(server)
}

/// The history of the timeline that the server has begun says where it left the one before.
fn check_history(private: &Private, timeline: TimelineId, cut: Lsn) -> Result<()> {
    let folder = private.data().folder("pg_wal")?;
    let mut newest = None;
    for name in folder.names()? {
        if let Some(WalFile::History(found)) = WalFile::parse(&name, SegmentSize::DEFAULT) {
            newest = newest.max(Some(found));
        }
    }
    let wrong = |what: String| EngineError::new(FailureKind::Server, format!("the server {what}"));
    let newest = newest.filter(|newest| *newest > timeline);
    let newest = newest.ok_or_else(|| wrong(format!("did not begin a timeline after {timeline}")))?;
    let text = folder.read(&WalFile::History(newest).name(SegmentSize::DEFAULT))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let history = History::parse(newest, &text).map_err(|error| wrong(format!("wrote what is no history: {error}")))?;
    match history.branches().last() {
        Some(left) if (left.timeline, left.end) == (timeline, cut) => Ok(()),
        Some(left) => Err(wrong(format!(
            "ended its recovery at {} of timeline {}, instead of {cut} of timeline {timeline}",
            left.end, left.timeline
        ))),
        None => Err(wrong("did not say where it ended its recovery".to_owned())),
    }
}

/// What a restored server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// A user who may do everything.
    pub(crate) superuser: String,
    /// A database that takes connections.
    pub(crate) database: String,
    /// How many databases there are.
    pub(crate) databases: u64,
    /// Transactions that wait to be committed or rolled back by their names.
    pub(crate) prepared: u64,
    /// Subscriptions that are switched on.
    pub(crate) subscriptions: u64,
}

/// Reads what there is in a server that has recovered.
///
/// # Errors
/// It cannot be read.
pub(crate) async fn look(
    programs: &Programs,
    private: &Private,
    base: &StoredBase,
    server: Server,
) -> Result<(Server, Facts)> {
    let doing = "looking at the restored server";
    let (server, database, mut connection) = connect(programs, private, base, server).await?;
    let rows = connection
        .query(
            "SELECT pg_catalog.pg_is_in_recovery(), (SELECT rolname FROM pg_catalog.pg_roles WHERE rolsuper AND \
             rolcanlogin ORDER BY oid LIMIT 1), (SELECT count(*) FROM pg_catalog.pg_database), (SELECT count(*) FROM \
             pg_catalog.pg_prepared_xacts), (SELECT count(*) FROM pg_catalog.pg_subscription WHERE subenabled)",
            doing,
        )
        .await?;
    connection.close().await;
    let row = rows.first().ok_or_else(|| server.failed("does not tell what it has"))?;
    if row.at(0) != Some("f") {
        return Err(server.failed("is still in recovery"));
    }
    let number = |index| row.at(index).and_then(|text| text.parse().ok()).unwrap_or(0);
    let superuser = row.at(1).ok_or_else(|| server.failed("has no superuser that may log in"))?.to_owned();
    let facts = Facts {
        superuser,
        database: database.to_owned(),
        databases: number(2),
        prepared: number(3),
        subscriptions: number(4),
    };
    Ok((server, facts))
}

/// A session of any user there is: what the first one of a cluster is called is for who made it to say.
async fn connect(
    programs: &Programs,
    private: &Private,
    base: &StoredBase,
    server: Server,
) -> Result<(Server, &'static str, Connection)> {
    for user in ["postgres", &private.owner().name()] {
        match connect_as(&server, user).await {
            Ok((database, connection)) => return Ok((server, database, connection)),
            Err(error) if error.sqlstate() == Some(NO_ROLE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Without a session only the server's own program can tell.
    server.stop().await?;
    let user = first_user(programs, private).await?;
    let mut server = Server::start(programs, private, &isolated(base, None)).await?;
    server.ready().await?;
    let (database, connection) = connect_as(&server, &user).await?;
    Ok((server, database, connection))
}

/// A session of a user, in the first database that takes one.
async fn connect_as(server: &Server, user: &str) -> std::result::Result<(&'static str, Connection), WireError> {
    let [first, second] = DATABASES;
    match server.connect(user, first).await {
        Err(error) if error.sqlstate().is_some_and(|state| NO_DATABASE.contains(&state)) => {
            Ok((second, server.connect(user, second).await?))
        }
        connected => Ok((first, connected?)),
    }
}

/// A superuser's name, told by a server that only we talk to (`postgres --single`).
async fn first_user(programs: &Programs, private: &Private) -> Result<String> {
    let command = |database: &str| {
        let mut command = private.owner().tied_command(&programs.program("postgres"));
        command.current_dir(private.directory());
        command.args(["--single", "-D", ".", "-c"]).arg(format!("config_file={PRIVATE}/postgresql.conf")).arg(database);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let commands = DATABASES.map(command);
    let ask = |mut command: Command| -> Result<Option<String>> {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that has no such database does not read it.
            let _ =
                stdin.write_all(b"SELECT rolname FROM pg_authid WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1\n");
        }
        let output = child.wait_with_output()?;
        Ok(user_in(&String::from_utf8_lossy(&output.stdout)))
    };
    blocking(move || {
        for command in commands {
            if let Some(user) = ask(command)? {
                return Ok(user);
            }
        }
        Err(EngineError::new(FailureKind::Server, "the restored server has no superuser that may log in"))
    })
    .await
}

/// From `1: rolname = "postgres"`, a tab, and `(typeid = 19, len = 64, typmod = -1, byval = f)`.
fn user_in(said: &str) -> Option<String> {
    let found = said.split_once("rolname = \"")?.1;
    Some(found.split_once("\"\t(typeid")?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::server::{Folder, Owner};

    #[test]
    fn the_history_has_to_name_the_cut() {
        let folder = tempfile::tempdir().unwrap();
        let wal = folder.path().join("pg_wal");
        fs::create_dir(&wal).unwrap();
        let private = Private::create(Folder::open(folder.path(), &Owner::us()).unwrap()).unwrap();
        let check = || check_history(&private, 2, Lsn(0x300_0028)).map_err(|error| error.what);
        assert!(check().unwrap_err().contains("did not begin a timeline"));
        fs::write(wal.join("00000002.history"), "1\t0/2000000\tx\n").unwrap();
        assert!(check().unwrap_err().contains("did not begin a timeline"));
        fs::write(wal.join("00000005.history"), "1\t0/2000000\tx\n2\t0/3000028\tx\n").unwrap();
        check().unwrap();
        fs::write(wal.join("00000006.history"), "1\t0/2000000\tx\n2\t0/3000060\tx\n").unwrap();
        assert!(check().unwrap_err().contains("at 0/3000060 of timeline 2, instead of 0/3000028"));
    }

    #[test]
    fn a_name_is_read_whatever_is_in_it() {
        let said = "backend> \t 1: rolname\t(typeid = 19, len = 64, typmod = -1, byval = f)\n\t----\n\t 1: rolname = \
                    \"a \"b\"\"\t(typeid = 19, len = 64, typmod = -1, byval = f)\n\t----\n";
        assert_eq!(user_in(said).as_deref(), Some("a \"b\""));
        assert_eq!(user_in("backend> "), None);
    }
}
