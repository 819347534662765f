//! The replication slot by which a server keeps its log until it is captured.
//!
//! It is one for each repository that the log is captured to, of the same name on every member that the connection string names: the
//! one that is followed moves it as the log is stored, the others are told from time to time (`follow/keeper.rs`). So whoever is
//! promoted still has what is not stored yet.

use std::time::{Duration, SystemTime};

use futures::future::join_all;
use hindsight_engine::{EngineError, FailureKind, Kept, Result};
use hindsight_repository::ClusterRepository;
use tokio::time::timeout;

use crate::cluster::require_supported;
use crate::synchronous::waits_for;
use crate::wire::{Connection, Replication, quote_text};
use crate::{Address, members};

/// How all names of slots begin.
pub(crate) const PREFIX: &str = "hindsight_";
/// The longest name that a slot can have (`NAMEDATALEN`).
const LONGEST: usize = 63;
/// The part of a repository's identity that is part of the name.
const IDENTITY: usize = 8;
/// How long a slot may still be in use that is to go: a receiver of ours that has just ended may not be noticed yet.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the members that are not followed may take to answer, when a slot is to be made.
const OTHERS: Duration = Duration::from_secs(3);
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
    let repository = repository.chars().filter(char::is_ascii_alphanumeric).map(plain).take(IDENTITY);
    of_cluster(cluster).chars().chain(['_']).chain(repository).collect()
}

/// What the capture of a cluster is called at its servers: `hindsight_shop`. It is also a name that needs no quotes.
pub(crate) fn of_cluster(cluster: &str) -> String {
    let cluster = cluster.chars().map(plain).take(LONGEST - PREFIX.len() - 1 - IDENTITY);
    PREFIX.chars().chain(cluster).collect()
}

fn plain(c: char) -> char {
    if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }
}

/// The name of a slot that goes with its session, which nobody else will have.
pub(crate) fn passing() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{PREFIX}backup_{:x}_{:x}", std::process::id(), now.as_nanos())
}

/// Makes the slot of a cluster on every member that is named if it is not there, or removes it. One that a server has given up, as it
/// had no room for so much log, is made anew: what is lost of the log is found out by who goes on with it.
///
/// # Errors
/// The member to follow cannot be reached or refuses: its `wal_level` is too low, or it has no free slot; or somebody else still uses
/// a slot that is to go. Others that cannot be reached are warned of.
pub async fn keep(address: &Address, cluster: &ClusterRepository, keep: bool) -> Result<Kept> {
    let name = name(cluster);
    if keep { make_everywhere(address, &name).await } else { drop_everywhere(address, &name).await }
}

async fn make_everywhere(address: &Address, name: &str) -> Result<Kept> {
    let leader = members::leader(address).await?.address;
    let mut connection = enter(&leader).await?;
    let names = connection.show("synchronous_standby_names").await?;
    if waits_for(&names, &leader.application_name) {
        tracing::warn!(
            "the server counts the capture as a standby that commits wait for (synchronous_standby_names is {names:?}): name the \
             standbys there, or commits take as long as storing them; where that is wanted, see pitr.synchronous"
        );
    }
    let followed = &connection.host().clone();
    let kept = make(&mut connection, name).await;
    connection.close().await;
    let kept = kept?;
    let others = address.hosts().iter().filter(|host| *host != followed).map(|host| async move {
        let made = async {
            let mut connection = enter(&address.at(host.clone())).await?;
            let made = make(&mut connection, name).await;
            connection.close().await;
            made
        };
        let made = timeout(OTHERS, made).await.unwrap_or_else(|_| Err(slow()));
        made.inspect_err(|error| {
            tracing::warn!(
                "there may be no replication slot on {host} ({error}): should it be promoted before there is one, log may be missing"
            );
        })
        .ok()
        .map(|made| (host, made))
    });
    let others = join_all(others).await;
    if address.hosts().len() == 1 {
        return Ok(kept);
    }
    let all = [(followed, kept)].into_iter().chain(others.into_iter().flatten());
    let (mut made, mut told) = (false, Vec::new());
    for (host, kept) in all {
        if let Kept::Made(what) | Kept::Already(what) = &kept {
            told.push(format!("{host}: {what}"));
        }
        made |= matches!(kept, Kept::Made(_));
    }
    let told = told.join("; ");
    Ok(if made { Kept::Made(told) } else { Kept::Already(told) })
}

async fn drop_everywhere(address: &Address, name: &str) -> Result<Kept> {
    let each = address.hosts().iter().map(|host| async move {
        match enter(&address.at(host.clone())).await {
            Ok(mut connection) => {
                let dropped = drop(&mut connection, name).await;
                connection.close().await;
                (host, Ok(dropped))
            }
            Err(error) => (host, Err(error)),
        }
    });
    let (mut reached, mut away) = (Vec::new(), Vec::new());
    for (host, outcome) in join_all(each).await {
        match outcome {
            Ok(dropped) => reached.push((host, dropped)),
            Err(error) => away.push((host, error)),
        }
    }
    if reached.is_empty()
        && let Some((_, error)) = away.pop()
    {
        return Err(error);
    }
    for (host, error) in away {
        tracing::warn!(
            "the replication slot {name} may still be on {host}, where it keeps the log until its disk is full ({error}); when it runs \
             again: SELECT pg_drop_replication_slot({}) FROM pg_replication_slots WHERE slot_name = {0}",
            quote_text(name)
        );
    }
    let (mut released, mut told) = (false, Vec::new());
    let several = address.hosts().len() > 1;
    for (host, dropped) in reached {
        let dropped = dropped?;
        released |= matches!(dropped, Kept::Released(_));
        if let Kept::Released(what) | Kept::Already(what) = dropped {
            told.push(if several { format!("{host}: {what}") } else { what });
        }
    }
    let told = told.join("; ");
    Ok(if released { Kept::Released(told) } else { Kept::Already(told) })
}

/// A session for replication commands, with a server that is known.
async fn enter(address: &Address) -> Result<Connection> {
    let connection = Connection::connect(address, Replication::Physical).await?;
    require_supported(&connection)?;
    Ok(connection)
}

fn slow() -> EngineError {
    EngineError::new(FailureKind::Unreachable, format!("no answer within {} s", OTHERS.as_secs()))
}

pub(crate) async fn make(connection: &mut Connection, name: &str) -> Result<Kept> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
