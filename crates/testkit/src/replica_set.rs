//! A replica set of [`Mongod`]s.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bson::{Document, doc};
use futures::future::{join_all, try_join_all};
use mongodb::Client;
use mongodb::options::ClientOptions;
use tokio::time::sleep;

use crate::mongod::{Mongod, MongodOptions};
use crate::tls::Certificates;

/// The administrator of sets with authentication (role `root`).
pub const ROOT_USER: &str = "root";
/// Password of [`ROOT_USER`].
pub const ROOT_PASSWORD: &str = "secret";

/// How long the set may take to have a primary and all its members.
const PATIENCE: Duration = Duration::from_secs(60);

/// What [`ReplicaSet::builder`] makes; see its methods for the defaults.
#[derive(Clone, Debug)]
pub struct ReplicaSetBuilder {
    name: String,
    members: usize,
    auth: bool,
    member_options: Vec<(usize, Document)>,
    mongod: MongodOptions,
}

impl ReplicaSetBuilder {
    /// Name of the set; `rs0` by default.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Number of members; 1 by default.
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// Requires users to log in, and makes [`ROOT_USER`].
    pub fn auth(mut self) -> Self {
        self.auth = true;
        self
    }

    /// Size of the oplog in MB; the server's own choice by default. Sizes below the 990 that `replSetResizeOplog` asks for
    /// are fine here.
    pub fn oplog_mb(mut self, mb: u32) -> Self {
        self.mongod.oplog_mb = Some(mb);
        self
    }

    /// Keeps the data of the one member in this folder.
    pub fn data_in(mut self, folder: &std::path::Path) -> Self {
        self.mongod.data = Some(folder.to_owned());
        self
    }

    /// Lets the server delete by TTL indexes.
    pub fn ttl(mut self) -> Self {
        self.mongod.ttl = true;
        self
    }

    /// Exactly this version of mongod.
    pub fn version(mut self, version: &str) -> Self {
        self.mongod.version = Some(version.to_owned());
        self
    }

    /// One more argument for every mongod.
    pub fn arg(mut self, arg: &str) -> Self {
        self.mongod.args.push(arg.to_owned());
        self
    }

    /// Offers TLS with these certificates; connections without it are taken as well.
    pub fn tls(self, certificates: &Certificates) -> Self {
        let path = |path: std::path::PathBuf| path.display().to_string();
        self.arg("--tlsMode")
            .arg("preferTLS")
            .arg("--tlsCertificateKeyFile")
            .arg(&path(certificates.server()))
            .arg("--tlsCAFile")
            .arg(&path(certificates.authority()))
            .arg("--tlsAllowConnectionsWithoutCertificates")
    }

    /// More fields for member `index` in the set's configuration, as `{hidden: true, priority: 0}`.
    pub fn member_options(mut self, index: usize, options: Document) -> Self {
        self.member_options.push((index, options));
        self
    }

    /// Starts the servers, initiates the set, and waits until one member is a writable primary and all others are ready
    /// to be read.
    ///
    /// # Errors
    /// When a server doesn't start, refuses the configuration, or the set isn't ready within a minute.
    pub async fn start(mut self) -> Result<ReplicaSet> {
        self.mongod.replica_set = Some(self.name.clone());
        self.mongod.key = self.auth.then(|| "hindsighttestkitkeyfile0".to_owned());
        let starts = (0..self.members).map(|_| Mongod::start(self.mongod.clone()));
        let set = ReplicaSet { name: self.name.clone(), auth: self.auth, members: try_join_all(starts).await? };

        let first = set.members.first().context("a replica set needs a member")?;
        quick_client(&first.uri(), None)
            .await?
            .database("admin")
            .run_command(doc! {"replSetInitiate": self.configuration(&set.members)})
            .await?;
        let primary = set.wait_primary().await?;
        if self.auth {
            // Without a user yet, the server lets a local client make the first one.
            quick_client(&set.member(primary).uri(), None)
                .await?
                .database("admin")
                .run_command(doc! {"createUser": ROOT_USER, "pwd": ROOT_PASSWORD, "roles": ["root"]})
                .await?;
        }
        set.wait_members().await?;
        if self.auth {
            set.wait_login().await?;
        }
        Ok(set)
    }

    fn configuration(&self, members: &[Mongod]) -> Document {
        let members: Vec<Document> = members
            .iter()
            .enumerate()
            .map(|(index, mongod)| {
                let mut member = doc! {"_id": index as i32, "host": mongod.address()};
                for (_, options) in self.member_options.iter().filter(|(i, _)| *i == index) {
                    member.extend(options.clone());
                }
                member
            })
            .collect();
        doc! {
            "_id": &self.name,
            "members": members,
            // Elections and the discovery of a lost member in seconds rather than in tens of seconds.
            "settings": {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500},
        }
    }
}

/// A running replica set; its servers are killed when it is dropped.
#[derive(Debug)]
pub struct ReplicaSet {
    name: String,
    auth: bool,
    members: Vec<Mongod>,
}

impl ReplicaSet {
    /// One member, no authentication, no TTL deletions, unless told otherwise.
    pub fn builder() -> ReplicaSetBuilder {
        ReplicaSetBuilder {
            name: "rs0".to_owned(),
            members: 1,
            auth: false,
            member_options: Vec::new(),
            mongod: MongodOptions::default(),
        }
    }

    /// A set of one member, started.
    ///
    /// # Errors
    /// See [`ReplicaSetBuilder::start`].
    pub async fn single() -> Result<Self> {
        Self::builder().start().await
    }

    /// Name of the set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All members, in the order of the configuration.
    pub fn members(&self) -> &[Mongod] {
        &self.members
    }

    /// Member `index`.
    ///
    /// # Panics
    /// When there is none.
    #[allow(clippy::indexing_slicing, reason = "the index is the test's own")]
    pub fn member(&self, index: usize) -> &Mongod {
        &self.members[index]
    }

    /// Connection string for the whole set, with [`ROOT_USER`]'s credentials if it has authentication.
    pub fn uri(&self) -> String {
        match self.auth {
            true => self.uri_as(ROOT_USER, ROOT_PASSWORD),
            false => format!("mongodb://{}/?replicaSet={}", self.addresses(), self.name),
        }
    }

    /// Connection string for the whole set as another user, of the `admin` database. Neither part is escaped.
    pub fn uri_as(&self, user: &str, password: &str) -> String {
        let (hosts, name) = (self.addresses(), &self.name);
        format!("mongodb://{user}:{password}@{hosts}/?replicaSet={name}&authSource=admin")
    }

    /// Connection string for member `index` alone, with credentials if needed.
    pub fn direct_uri(&self, index: usize) -> String {
        let address = self.member(index).address();
        match self.auth {
            true => format!("mongodb://{ROOT_USER}:{ROOT_PASSWORD}@{address}/?directConnection=true&authSource=admin"),
            false => self.member(index).uri(),
        }
    }

    /// A new client for [`ReplicaSet::uri`]; see [`Mongod::client`] about its lifetime.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::with_uri_str(self.uri()).await?)
    }

    /// A new client for [`ReplicaSet::direct_uri`].
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn direct_client(&self, index: usize) -> Result<Client> {
        Ok(Client::with_uri_str(self.direct_uri(index)).await?)
    }

    /// The member that is primary and takes writes now, if any.
    pub async fn primary_index(&self) -> Option<usize> {
        let writable = |hello: &Document| hello.get_bool("isWritablePrimary").unwrap_or(false);
        self.hellos().await.iter().position(|hello| hello.as_ref().is_some_and(writable))
    }

    /// Waits for a member that takes writes and gives its index.
    ///
    /// # Errors
    /// When there is none for a minute.
    pub async fn wait_primary(&self) -> Result<usize> {
        let begun = Instant::now();
        loop {
            if let Some(index) = self.primary_index().await {
                return Ok(index);
            }
            if begun.elapsed() > PATIENCE {
                bail!("replica set {} has no primary", self.name);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until every member that runs is primary, secondary or arbiter, and just one of them thinks that it is primary.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn wait_members(&self) -> Result<()> {
        let is = |hello: &Document, state| hello.get_bool(state).unwrap_or(false);
        let writable = |hello: &Document| is(hello, "isWritablePrimary");
        let ready = |hello: &Document| writable(hello) || is(hello, "secondary") || is(hello, "arbiterOnly");
        let begun = Instant::now();
        loop {
            let hellos = self.hellos().await;
            let mut members = self.members.iter().zip(&hellos);
            if members.all(|(member, hello)| !member.is_running() || hello.as_ref().is_some_and(ready))
                && hellos.iter().flatten().filter(|hello| writable(hello)).count() == 1
            {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("the members of {} are not ready: {hellos:?}", self.name);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes the primary step down, waits for the next one and gives its index: another member, or the same one again
    /// in a set of one.
    ///
    /// # Errors
    /// When there is no primary, it refuses, or no other takes over within a minute.
    pub async fn step_down(&self) -> Result<usize> {
        let old = self.wait_primary().await?;
        // In a set of one the old primary is the next one too, after that many seconds.
        let (seconds, catch_up) = if self.members.len() == 1 { (1, 0) } else { (15, 10) };
        let command = doc! {
            "replSetStepDown": seconds,
            "secondaryCatchUpPeriodSecs": catch_up,
            "force": self.members.len() == 1,
        };
        let (admin, begun) = (self.direct_client(old).await?.database("admin"), Instant::now());
        while let Err(error) = admin.run_command(command.clone()).await {
            // ExceededTimeLimit: no other member has caught up yet.
            let lags = matches!(&*error.kind, mongodb::error::ErrorKind::Command(failed) if failed.code == 262);
            if !lags || begun.elapsed() > PATIENCE {
                return Err(error.into());
            }
        }
        self.wait_primary().await
    }

    /// Waits until the first user has come to all members but arbiters, which have no users.
    async fn wait_login(&self) -> Result<()> {
        let begun = Instant::now();
        for (index, hello) in self.hellos().await.iter().enumerate() {
            if hello.as_ref().is_some_and(|hello| hello.get_bool("arbiterOnly").unwrap_or(false)) {
                continue;
            }
            let admin = self.direct_client(index).await?.database("admin");
            while let Err(error) = admin.run_command(doc! {"ping": 1}).await {
                if begun.elapsed() > PATIENCE {
                    return Err(error).context("the first user can't log in");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    fn addresses(&self) -> String {
        let addresses: Vec<String> = self.members.iter().map(Mongod::address).collect();
        addresses.join(",")
    }

    /// What each member says about itself; none if it doesn't answer soon. `hello` needs no login.
    async fn hellos(&self) -> Vec<Option<Document>> {
        join_all(self.members.iter().map(|member| async move {
            if !member.is_running() {
                return None;
            }
            let client = quick_client(&member.uri(), Some(Duration::from_secs(2))).await.ok()?;
            let admin = client.database("admin");
            let hello = tokio::time::timeout(Duration::from_secs(2), admin.run_command(doc! {"hello": 1}));
            hello.await.ok()?.ok()
        }))
        .await
    }
}

/// A client that gives up on an unreachable server after `patience` (the driver's 30 s if none).
async fn quick_client(uri: &str, patience: Option<Duration>) -> Result<Client> {
    let mut options = ClientOptions::parse(uri).await?;
    options.server_selection_timeout = patience;
    Ok(Client::with_options(options)?)
}
