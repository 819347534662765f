//! What a state is known by.

use anyhow::Result;
use bson::doc;
use hindsight_testkit::{ClusterState, last_optime};
use mongodb::Client;

use crate::stage::say;

/// The databases whose hashes are shown.
const DATABASES: [&str; 1] = [super::shop::DATABASE];

/// All data of a replica set at one moment.
pub struct State {
    /// Database to the md5 that the command `dbHash` gives.
    hashes: Vec<(&'static str, String)>,
    /// Every collection with its options, indexes and documents, every user and role.
    all: ClusterState,
    /// Second of the last write, committed by a majority.
    pub last_write: i64,
}

impl State {
    /// Reads the state; nothing may write meanwhile.
    pub async fn read(client: &Client) -> Result<Self> {
        let all = ClusterState::read(client).await?;
        let mut hashes = Vec::new();
        for database in DATABASES {
            let reply = client.database(database).run_command(doc! {"dbHash": 1}).await?;
            hashes.push((database, reply.get_str("md5")?.to_owned()));
        }
        let (last_write, ..) = last_optime(client).await?;
        Ok(Self { hashes, all, last_write: last_write.into() })
    }

    /// Prints the hashes.
    pub fn show(&self) -> Result<()> {
        self.hashes.iter().try_for_each(|(database, hash)| say(&format!("dbHash of {database}: {hash}")))
    }

    /// What is not as it was, one line each.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let hashes = self.hashes.iter().zip(&found.hashes).filter(|(expected, found)| expected != found);
        let hashes = hashes.map(|((database, expected), (_, found))| {
            format!("dbHash of {database}: expected {expected}, found {found}")
        });
        hashes.chain(self.all.diff(&found.all)).collect()
    }
}
