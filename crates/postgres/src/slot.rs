//! The replication slot by which a server keeps its log until it is captured.
//!
//! It is one for each repository that the log is captured to, on the server that it is captured from; standbys have their own.

use std::time::{Duration, SystemTime};

use hindsight_engine::{EngineError, FailureKind, Kept, Result};
use hindsight_repository::ClusterRepository;
use tokio::time::timeout;

use crate::Address;
use crate::cluster::require_supported;
use crate::wire::{Connection, Replication};

/// How all names of slots begin.
pub(crate) const PREFIX: &str = "hindsight_";
/// The longest name that a slot can have (`NAMEDATALEN`).
const LONGEST: usize = 63;
/// The part of a repository's identity that is part of the name.
const IDENTITY: usize = 8;
/// How long a slot may still be in use that is to go: a receiver of ours that has just ended may not be noticed yet.
const PATIENCE: Duration = Duration::from_secs(15);
/// SQLSTATE of a slot that is there already (`duplicate_object`).
const DUPLICATE: &str = "42710";
/// SQLSTATE of a slot that is not there any more (`undefined_object`).
const UNDEFINED: &str = "42704";

/// The slot of a cluster in a repository: `hindsight_shop_0f1e2d3c`.
pub(crate) fn name(cluster: &ClusterRepository) -> String {
    named(cluster.name(), &cluster.repository().descriptor().id)
}

/// Names may have small letters, digits and underscores alone (`ReplicationSlotValidateName`).
fn named(cluster: &str, repository: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let cluster = cluster.chars().map(plain).take(LONGEST - PREFIX.len() - 1 - IDENTITY);
    let repository = repository.chars().filter(char::is_ascii_alphanumeric).map(plain).take(IDENTITY);
    PREFIX.chars().chain(cluster).chain(['_']).chain(repository).collect()
}

/// The name of a slot that goes with its session, which nobody else will have.
pub(crate) fn passing() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{PREFIX}backup_{:x}_{:x}", std::process::id(), now.as_nanos())
}

/// Makes the slot of a cluster if it is not there, or removes it. One that the server has given up, as it had no room for so much log,
/// is made anew: what is lost of the log is found out by who goes on with it.
///
/// # Errors
/// The server cannot be reached or refuses: its `wal_level` is too low, or it has no free slot; or somebody else still uses
/// the slot that is to go.
pub async fn keep(address: &Address, cluster: &ClusterRepository, keep: bool) -> Result<Kept> {
    let mut connection = Connection::connect(address, Replication::Physical).await?;
    require_supported(&connection)?;
    let name = name(cluster);
    if keep {
        let names = connection.show("synchronous_standby_names").await?;
        if waits_for(&names, &address.application_name) {
            tracing::warn!(
                "the server counts the capture as a standby that commits wait for (synchronous_standby_names is {names:?}): name \
                 the standbys there, or commits take as long as storing them"
            );
        }
    }
    let kept = if keep { make(&mut connection, &name).await } else { drop(&mut connection, &name).await };
    connection.close().await;
    kept
}

async fn make(connection: &mut Connection, name: &str) -> Result<Kept> {
    let mut given_up = false;
    if let Some(position) = connection.read_slot(name).await? {
        if let Some(restart) = position.restart {
            return Ok(Kept::Already(format!("the replication slot {name} keeps the log from {restart} on")));
        }
        given_up = true;
        connection.drop_slot(name, false).await?;
    }
    match connection.create_physical_slot(name, true).await {
        Ok(()) if given_up => Ok(Kept::Made(format!(
            "the replication slot {name} was made anew, as the server had given it up: see max_slot_wal_keep_size"
        ))),
        Ok(()) => {
            Ok(Kept::Made(format!("the replication slot {name} was made: the server keeps its log for the capture")))
        }
        Err(error) if error.sqlstate() == Some(DUPLICATE) => {
            Ok(Kept::Already(format!("the replication slot {name} keeps the log")))
        }
        Err(error) => Err(error.into()),
    }
}

async fn drop(connection: &mut Connection, name: &str) -> Result<Kept> {
    let none = || Ok(Kept::Already(format!("there is no replication slot {name}")));
    if connection.read_slot(name).await?.is_none() {
        return none();
    }
    match timeout(PATIENCE, connection.drop_slot(name, true)).await {
        Ok(Ok(())) => Ok(Kept::Released(format!("the replication slot {name} was dropped: the log is kept no longer"))),
        Ok(Err(error)) if error.sqlstate() == Some(UNDEFINED) => none(),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(EngineError::new(
            FailureKind::Server,
            format!("the replication slot {name} cannot be dropped: somebody still uses it"),
        )
        .hint("stop the agent that captures this server; pg_replication_slots tells its process (active_pid)")),
    }
}

/// Whether commits can wait for who is called so: `synchronous_standby_names` lists names, or has `*` for all of them.
fn waits_for(names: &str, name: &str) -> bool {
    let mut words = names.split(|c: char| c.is_whitespace() || "(),".contains(c)).map(|word| word.trim_matches('"'));
    words.any(|word| word == "*" || word.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_listed_or_anybody() {
        for (names, waits) in [
            ("", false),
            ("*", true),
            ("a, b", false),
            ("FIRST 2 (a, Hindsight)", true),
            ("ANY 1 (a,\"hindsight\")", true),
            ("2 (*)", true),
            ("hindsight_two", false),
        ] {
            assert_eq!(waits_for(names, "hindsight"), waits, "{names}");
        }
    }

    #[test]
    fn names_are_those_that_slots_can_have() {
        for (cluster, repository, slot) in [
            ("shop", "0f1e2d3c4b5a", "hindsight_shop_0f1e2d3c"),
            ("Shop.eu:5432-a", "0F1E-2D3C-4b5a", "hindsight_shop_eu_5432_a_0f1e2d3c"),
            ("x", "0f", "hindsight_x_0f"),
        ] {
            assert_eq!(named(cluster, repository), slot);
        }
        let long = named(&"a".repeat(100), "0f1e2d3c4b5a");
        assert!(long.len() == LONGEST && long.ends_with("a_0f1e2d3c"), "{long}");
        assert!(passing().len() <= LONGEST);
    }
}
