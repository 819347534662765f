//! What looks after the other members while one of them is followed: each has the slot too, and is told how far the log is stored, so
//! that it still has the rest when it is promoted. It also sees when another one leads.

use std::time::Duration;

use futures::future::join_all;
use hindsight_engine::{EngineError, FailureKind, Result};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::address::Host;
use crate::members::{Rank, Standing, is_choice};
use crate::wire::{Connection, Replication};
use crate::{Address, Lsn, slot};

/// How often the members are visited.
const EVERY: Duration = Duration::from_secs(5);
/// How long a visit may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Looks after all members, until it is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Why another member is to be followed.
    better: watch::Receiver<Option<String>>,
    _task: AbortOnDropHandle<()>,
}

/// What it looks after.
pub(super) struct Members {
    /// All of them.
    pub(super) address: Address,
    /// The one that is followed, which moves its slot by itself.
    pub(super) followed: Host,
    pub(super) slot: String,
    /// The identifier of the system that they are all members of.
    pub(super) system: u64,
    /// Up to where all is in the repository.
    pub(super) stored: watch::Receiver<Lsn>,
}

impl Keeper {
    pub(super) fn start(members: Members) -> Self {
        let (tell, better) = watch::channel(None);
        let task = tokio::spawn(members.look_after(tell));
        Self { better, _task: AbortOnDropHandle::new(task) }
    }

    /// Nothing is read any more from who does not lead any more.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.better.borrow() {
            None => Ok(()),
            Some(why) => Err(EngineError::new(FailureKind::Unreachable, why.clone())
                .hint("nothing is to be done: the capture goes on there")),
        }
    }
}

impl Members {
    /// Nothing that fails here is an error of the capture: it is tried again with the next visit.
    async fn look_after(self, better: watch::Sender<Option<String>>) {
        let hosts = self.address.hosts();
        let mut answers: Vec<Option<bool>> = vec![None; hosts.len()];
        loop {
            sleep(EVERY).await;
            let visits = hosts.iter().map(|host| async {
                let late = || EngineError::new(FailureKind::Unreachable, "it does not answer");
                timeout(PATIENCE, self.visit(host)).await.unwrap_or_else(|_| Err(late()))
            });
            let found = join_all(visits).await;
            for ((host, before), now) in hosts.iter().zip(&mut answers).zip(&found) {
                match (now, before.replace(now.is_ok())) {
                    (Err(error), Some(true)) => tracing::warn!(
                        "the replication slot on {host} cannot be looked after ({error}): it keeps more and more log meanwhile"
                    ),
                    (Ok(_), Some(false)) => tracing::info!("the replication slot on {host} is looked after again"),
                    (Err(error), _) => tracing::debug!(%host, %error, "a member cannot be visited"),
                    (Ok(_), _) => {}
                }
            }
            if let Some((host, rank)) = self.leads_instead(hosts.iter().zip(&found)) {
                let (of, timeline) = (&self.followed, rank.timeline);
                better.send_replace(Some(format!("{host} leads now instead of {of}, on timeline {timeline}")));
            }
        }
    }

    /// The member that ranks above the one that is followed, if one does.
    fn leads_instead<'a>(&self, found: impl Iterator<Item = (&'a Host, &'a Result<Rank>)>) -> Option<(&'a Host, Rank)> {
        if !is_choice(&self.address) {
            return None;
        }
        let answered: Vec<_> = found.filter_map(|(host, rank)| Some((host, *rank.as_ref().ok()?))).collect();
        let (_, own) = *answered.iter().find(|(host, _)| **host == self.followed)?;
        answered.into_iter().filter(|(_, rank)| *rank > own).max_by_key(|(_, rank)| *rank)
    }

    async fn visit(&self, host: &Host) -> Result<Rank> {
        let address = self.address.at(host.clone());
        // One that understands both statements and replication commands.
        let mut connection = Connection::connect(&address, Replication::Database).await?;
        let standing = Standing::ask(&mut connection).await?;
        if standing.system != self.system {
            return Err(EngineError::new(
                FailureKind::Address,
                format!("it is another cluster (system identifier {})", standing.system),
            )
            .hint("name members of one cluster in the connection string"));
        }
        if *host != self.followed {
            self.move_slot(&mut connection).await?;
        }
        connection.close().await;
        Ok(standing.rank)
    }

    async fn move_slot(&self, connection: &mut Connection) -> Result<()> {
        slot::make(connection, &self.slot).await?;
        let stored = *self.stored.borrow();
        let at = connection.read_slot(&self.slot).await?.and_then(|slot| slot.restart);
        if at.is_some_and(|at| at < stored) {
            connection.advance_slot(&self.slot, stored).await?;
        }
        Ok(())
    }
}
