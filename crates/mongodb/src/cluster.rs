//! The replica set: who it is, who is in it, whom to read from.

use std::time::{Duration, Instant};

use bson::{Document, Timestamp, doc};
use hindsight_engine::{EngineError, FailureKind, Member, Result};
use hindsight_format::ClusterIdentity;
use mongodb::Client;
use mongodb::options::{ClientOptions, ServerAddress};
use tokio::time::sleep;

use crate::failure::{driver, unsupported};
use crate::optime::Optime;

/// Seconds behind the primary with which a secondary is still read from.
pub(crate) const MAX_LAG: i64 = 10;
/// How long a member may not know what is committed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what is written may be neither applied nor committed.
const COMMIT_PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a replica set, through its present primary or whichever member the connection
/// string names.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    options: ClientOptions,
    pub(crate) set_name: String,
    pub(crate) identity: ClusterIdentity,
    pub(crate) version: String,
    pub(crate) compatibility_version: Option<String>,
    members: Vec<Candidate>,
}

#[derive(Clone, Debug)]
struct Candidate {
    member: Member,
    hidden: bool,
    usable: bool,
}

/// Whether there is something between user and options. The driver's own message might repeat what is before it.
fn names_a_host(uri: &str) -> bool {
    let rest = uri.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().is_some_and(|hosts| !hosts.is_empty())
}

/// A direct connection to one member.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) client: Client,
    pub(crate) host: String,
    pub(crate) role: String,
}

/// How far a member is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// The last entry that it has applied.
    pub(crate) applied: Optime,
    /// The last entry that it knows to be safe from rollback.
    pub(crate) committed: Optime,
}

impl Cluster {
    /// Connects, and refuses what is no replica set.
    pub(crate) async fn connect(uri: &str) -> Result<Self> {
        let doing = "connecting";
        if !names_a_host(uri) {
            return Err(EngineError::new(FailureKind::Address, "the connection string names no host")
                .hint("a connection string looks like mongodb://user:password@host:27017/?replicaSet=rs0"));
        }
        let mut options = ClientOptions::parse(uri).await.map_err(|e| driver(doing, e))?;
        options.app_name.get_or_insert_with(|| "hindsight".to_owned());
        options.server_selection_timeout.get_or_insert(Duration::from_secs(10));
        options.connect_timeout.get_or_insert(Duration::from_secs(5));
        let client = Client::with_options(options.clone()).map_err(|e| driver(doing, e))?;
        let admin = client.database("admin");
        let hello = admin.run_command(doc! {"hello": 1}).await.map_err(|e| driver(doing, e))?;
        if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
            return Err(unsupported(
                "this is a mongos, the router of a sharded cluster",
                "sharded clusters cannot be protected as a whole: connect to a replica set",
            ));
        }
        let Ok(set_name) = hello.get_str("setName") else {
            return Err(unsupported(
                "this mongod is not part of a replica set, so it has no oplog",
                "start mongod with --replSet rs0, and run rs.initiate() once (one member is enough)",
            ));
        };
        let run = |command: Document| {
            let admin = admin.clone();
            async move {
                let doing = format!("asking for {}", command.keys().next().map_or("", String::as_str));
                admin.run_command(command).await.map_err(|e| driver(&doing, e))
            }
        };
        let config = run(doc! {"replSetGetConfig": 1}).await?;
        let status = run(doc! {"replSetGetStatus": 1}).await?;
        let build = run(doc! {"buildInfo": 1}).await?;
        let fcv = run(doc! {"getParameter": 1, "featureCompatibilityVersion": 1}).await.ok();
        let config = config.get_document("config").map_err(|e| odd("replSetGetConfig", &e))?;
        let id = config
            .get_document("settings")
            .and_then(|settings| settings.get_object_id("replicaSetId"))
            .map_err(|e| odd("replSetGetConfig", &e))?;
        Ok(Self {
            set_name: set_name.to_owned(),
            identity: ClusterIdentity { engine: crate::NAME.to_owned(), id: id.to_hex() },
            version: build.get_str("version").map_err(|e| odd("buildInfo", &e))?.to_owned(),
            compatibility_version: fcv
                .as_ref()
                .and_then(|d| d.get_document("featureCompatibilityVersion").ok()?.get_str("version").ok())
                .map(str::to_owned),
            members: candidates(config, &status),
            options,
            client,
        })
    }

    /// Its members.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.members.iter().map(|candidate| candidate.member.clone()).collect()
    }

    /// Its hosts.
    pub(crate) fn hosts(&self) -> String {
        let hosts: Vec<_> = self.members.iter().map(|c| c.member.host.as_str()).collect();
        format!("{}/{}", self.set_name, hosts.join(","))
    }

    /// A connection to the member that is best read from: a hidden secondary, another secondary,
    /// the primary. One that is named by a direct connection string is taken as it is.
    pub(crate) async fn source(&self) -> Result<Source> {
        if self.options.direct_connection == Some(true) {
            let host = self.options.hosts.first().map(ToString::to_string).unwrap_or_default();
            let role = self.role_of(&host);
            return Ok(Source { client: self.client.clone(), host, role });
        }
        let mut failure = None;
        let mut order: Vec<_> = self.members.iter().filter(|c| c.usable).collect();
        order.sort_by_key(|c| (c.member.role == "primary", !c.hidden, c.member.lag_secs));
        for candidate in order {
            match self.direct(&candidate.member.host).await {
                Ok(client) => {
                    let (host, role) = (candidate.member.host.clone(), candidate.member.role.clone());
                    return Ok(Source { client, host, role });
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| {
            unsupported(
                format!("the replica set {} has no member that can be read from", self.set_name),
                "see `status`: at least one member must be primary, or a secondary without delay",
            )
        }))
    }

    /// The member that is furthest behind, and by how many seconds. What did not keep up when the connection was made
    /// does not count, nor what is down.
    pub(crate) async fn lag(&self) -> Result<(String, i64)> {
        let doing = "asking for replSetGetStatus";
        let status = self.client.database("admin").run_command(doc! {"replSetGetStatus": 1}).await;
        let states = members_of(&status.map_err(|e| driver(doing, e))?);
        let applied = states.iter().filter(|state| number(state, "health") == Some(1)).filter_map(|state| {
            let host = state.get_str("name").ok()?;
            let usable = self.members.iter().any(|candidate| candidate.usable && candidate.member.host == host);
            Some((host, applied_secs(state).filter(|_| usable)?))
        });
        let applied: Vec<(&str, i64)> = applied.collect();
        let newest = applied.iter().map(|(_, secs)| *secs).max().unwrap_or_default();
        let last = applied.iter().min_by_key(|(_, secs)| *secs);
        Ok(last.map(|(host, secs)| ((*host).to_owned(), newest - secs)).unwrap_or_default())
    }

    fn role_of(&self, host: &str) -> String {
        self.members.iter().find(|c| c.member.host == host).map_or("member", |c| &c.member.role).to_owned()
    }

    async fn direct(&self, host: &str) -> Result<Client> {
        let doing = format!("connecting to {host}");
        let mut options = self.options.clone();
        options.hosts = vec![ServerAddress::parse(host).map_err(|e| driver(&doing, e))?];
        options.direct_connection = Some(true);
        options.repl_set_name = None;
        options.load_balanced = None;
        options.server_selection_timeout = Some(Duration::from_secs(5));
        let client = Client::with_options(options).map_err(|e| driver(&doing, e))?;
        client.database("admin").run_command(doc! {"ping": 1}).await.map_err(|e| driver(&doing, e))?;
        Ok(client)
    }
}

impl Source {
    /// How far this member is.
    pub(crate) async fn progress(&self) -> Result<Progress> {
        progress(&self.client).await
    }

    /// Waits until this member has applied all that it shows by now, and says up to where it has then. What it says at
    /// once may be less: a secondary shows what a batch of entries does to indexes before it says that it has applied
    /// the batch (6.0.5, tried). But the cluster's time, which each answer carries, is never before an entry that the
    /// member knows of (mongo/src/mongo/db/vector_clock.h).
    pub(crate) async fn shown(&self) -> Result<Optime> {
        let hello = hello(&self.client).await?;
        let known = hello.get_document("$clusterTime").and_then(|time| time.get_timestamp("clusterTime")).ok();
        // Time may have gone on without an entry: a primary at rest writes one every 10 s.
        let enough = |progress: &Progress| known.is_none_or(|known| progress.applied.timestamp() >= known);
        let unmet = || format!("{} did not apply within 2 minutes what it knew of", self.host);
        Ok(wait(&self.client, enough, unmet).await?.applied)
    }

    /// Which life of the member this is, and which of its states: another one after each restart, election, rollback
    /// and reconfiguration (`topologyVersion`, mongo/src/mongo/db/repl/topology_version_observer.h).
    pub(crate) async fn standing(&self) -> Result<Option<Document>> {
        Ok(hello(&self.client).await?.get_document("topologyVersion").ok().cloned())
    }
}

/// How far the member behind `client` is.
pub(crate) async fn progress(client: &Client) -> Result<Progress> {
    let begun = Instant::now();
    loop {
        let hello = hello(client).await?;
        let write = hello.get_document("lastWrite").map_err(|e| odd("hello", &e))?;
        if let Some(progress) = read_progress(write)? {
            return Ok(progress);
        }
        if begun.elapsed() > PATIENCE {
            return Err(EngineError::new(
                hindsight_engine::FailureKind::Unreachable,
                "the member does not know what a majority of the members has committed",
            )
            .hint("see `status`: a majority of the members must be up and replicating"));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn hello(client: &Client) -> Result<Document> {
    let hello = client.database("admin").run_command(doc! {"hello": 1}).await;
    hello.map_err(|e| driver("asking how far the member is", e))
}

/// What `lastWrite` in the answer to `hello` says. For a moment after a start or an election a member may not know
/// what is committed: then `majorityOpTime` is left out.
fn read_progress(write: &Document) -> Result<Option<Progress>> {
    if !write.contains_key("majorityOpTime") {
        return Ok(None);
    }
    Ok(Some(Progress { applied: optime(write, "opTime")?, committed: optime(write, "majorityOpTime")? }))
}

/// Waits until `optime` is safe from rollback on the member behind `client`.
pub(crate) async fn wait_committed(client: &Client, optime: Optime) -> Result<()> {
    let unmet = || format!("{optime} was not committed by a majority of the members within 2 minutes");
    wait(client, |progress| progress.committed >= optime, unmet).await.map(drop)
}

/// Asks the member behind `client` how far it is until that is enough; `unmet` says what was not, when it takes too long.
async fn wait(client: &Client, enough: impl Fn(&Progress) -> bool, unmet: impl FnOnce() -> String) -> Result<Progress> {
    let mut pause = Duration::from_millis(5);
    let begun = Instant::now();
    loop {
        let progress = progress(client).await?;
        if enough(&progress) {
            return Ok(progress);
        }
        if begun.elapsed() > COMMIT_PATIENCE {
            return Err(EngineError::new(FailureKind::Server, unmet())
                .hint("see `status`: a majority of the members must be up and replicating"));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Reads an optime (`{ts, t}`) out of a reply.
pub(crate) fn optime(holder: &Document, field: &str) -> Result<Optime> {
    let found = holder.get_document(field).map_err(|e| odd(field, &e))?;
    let ts: Timestamp = found.get_timestamp("ts").map_err(|e| odd(field, &e))?;
    let term = found.get_i64("t").map_err(|e| odd(field, &e))?;
    // Before a set's first election there is no term.
    Ok(Optime::new(ts, term.max(0)))
}

/// A reply that is not what servers send.
pub(crate) fn odd(what: &str, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::new(
        hindsight_engine::FailureKind::Server,
        format!("the server's answer to {what} is not understood: {error}"),
    )
}

/// The members in a configuration or a status.
fn members_of(doc: &Document) -> Vec<Document> {
    let members = doc.get_array("members").map(Vec::as_slice).unwrap_or_default();
    members.iter().filter_map(|m| m.as_document().cloned()).collect()
}

/// The second of the last entry that a member has applied, as `replSetGetStatus` has it.
fn applied_secs(state: &Document) -> Option<i64> {
    state.get_document("optime").and_then(|o| o.get_timestamp("ts")).map(|ts| i64::from(ts.time)).ok()
}

fn candidates(config: &Document, status: &Document) -> Vec<Candidate> {
    let states = members_of(status);
    let newest = states.iter().filter_map(applied_secs).max();
    members_of(config)
        .into_iter()
        .map(|member| {
            let host = member.get_str("host").unwrap_or_default().to_owned();
            let flag = |name: &str| member.get_bool(name).unwrap_or(false);
            let delay = ["secondaryDelaySecs", "slaveDelay"].iter().find_map(|name| number(&member, name)).unwrap_or(0);
            let state = states.iter().find(|s| s.get_str("name").is_ok_and(|name| name == host));
            let name = state.and_then(|s| s.get_str("stateStr").ok()).unwrap_or("unknown").to_lowercase();
            let healthy = state.and_then(|s| number(s, "health")) == Some(1);
            let lag = newest.zip(state.and_then(applied_secs)).map(|(newest, mine)| newest - mine);
            let serves = matches!(name.as_str(), "primary" | "secondary");
            let usable = healthy && serves && delay == 0 && lag.is_some_and(|lag| lag <= MAX_LAG);
            let role = match (flag("arbiterOnly"), flag("hidden"), delay) {
                (true, ..) => "arbiter".to_owned(),
                (_, _, 1..) => format!("{name}, delayed by {delay} s"),
                (_, true, _) => format!("{name}, hidden"),
                _ => name,
            };
            Candidate { member: Member { host, role, healthy, lag_secs: lag }, hidden: flag("hidden"), usable }
        })
        .collect()
}

/// A number of whichever type the server chose.
pub(crate) fn number(doc: &Document, field: &str) -> Option<i64> {
    match doc.get(field)? {
        bson::Bson::Int32(n) => Some((*n).into()),
        bson::Bson::Int64(n) => Some(*n),
        bson::Bson::Double(n) => Some(*n as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hindsight_testkit::ReplicaSet;

    use super::*;

    #[test]
    fn a_string_without_a_host_is_told_from_others() {
        assert!(["mongodb://a", "mongodb://u:p@a:1,b/x?y=z", "mongodb+srv://u@a/"].into_iter().all(names_a_host));
        assert!(!["", "mongodb://", "mongodb://u:p@", "mongodb://u:p@/a?b=c"].into_iter().any(names_a_host));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_secondary_shows_ahead_of_what_it_has_applied_is_waited_for() -> anyhow::Result<()> {
        let set = ReplicaSet::builder().members(2).arg("--setParameter").arg("enableTestCommands=1").start().await?;
        let primary = Source { client: set.client().await?, host: String::new(), role: String::new() };
        let secondary = Source { client: set.direct_client(1 - set.wait_primary().await?).await?, ..primary.clone() };
        let app = primary.client.database("app");
        // Whether a batch of entries that is applied comes to its end.
        let stop = async |mode: &str| {
            let stop = doc! {"configureFailPoint": "pauseBatchApplicationBeforeCompletion", "mode": mode};
            secondary.client.database("admin").run_command(stop).await
        };
        // It may stop too early, with a sign of life.
        for _ in 0..10 {
            let index = doc! {"name": "n", "key": {"n": 1}};
            app.run_command(doc! {"createIndexes": "things", "indexes": [index], "writeConcern": {"w": 2}}).await?;
            stop("alwaysOn").await?;
            app.run_command(doc! {"dropIndexes": "things", "index": "n", "writeConcern": {"w": 1}}).await?;
            let dropped = primary.progress().await?.applied;
            for _ in 0..20 {
                let shown = secondary.client.database("app").run_command(doc! {"listIndexes": "things"}).await?;
                if shown.get_document("cursor")?.get_array("firstBatch")?.len() == 1 {
                    assert!(secondary.progress().await?.applied < dropped);
                    let shown = tokio::spawn({
                        let secondary = secondary.clone();
                        async move { secondary.shown().await }
                    });
                    sleep(Duration::from_millis(200)).await;
                    assert!(!shown.is_finished());
                    stop("off").await?;
                    assert!(shown.await?? >= dropped);
                    return Ok(());
                }
                sleep(Duration::from_millis(50)).await;
            }
            stop("off").await?;
        }
        anyhow::bail!("the drop of an index was never seen early")
    }

    #[test]
    fn a_member_that_does_not_know_yet_what_is_committed_is_asked_again() {
        let at = doc! {"ts": Timestamp { time: 7, increment: 1 }, "t": 3_i64};
        assert!(read_progress(&doc! {"opTime": at.clone()}).unwrap().is_none());
        let known = read_progress(&doc! {"opTime": at.clone(), "majorityOpTime": at}).unwrap().unwrap();
        assert_eq!(known.committed, known.applied);
        assert!(read_progress(&doc! {"majorityOpTime": 1}).is_err());
    }
}
