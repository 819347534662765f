//! The members of a cluster that a connection string names, and which of them is the one to follow.
//!
//! After a failover several may answer: the one that was promoted, standbys, and the old primary that somebody has started again.
//! The newest timeline leads, and on it the one that writes.

use std::cmp::Reverse;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hindsight_engine::Result;
use tokio::time::timeout;

use crate::TimelineId;
use crate::address::{Address, Host, TargetSession};
use crate::wire::{self, Connection, Replication};

/// How long the other members may still take once a primary has answered.
const GRACE: Duration = Duration::from_secs(2);

/// How much a member is the one to follow: the greatest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// The timeline that it is on.
    pub(crate) timeline: TimelineId,
    /// Whether it is one that writes.
    pub(crate) primary: bool,
}

/// The member to follow.
#[derive(Debug)]
pub(crate) struct Leader {
    /// This one alone.
    pub(crate) address: Address,
    /// Those that did not answer. One of them may be further.
    pub(crate) silent: Vec<Host>,
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// The identifier of its system.
    pub(crate) system: u64,
    pub(crate) rank: Rank,
}

impl Standing {
    /// Asks a member.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) async fn ask(connection: &mut Connection) -> wire::Result<Self> {
        let system = connection.identify_system().await?;
        let primary = !connection.in_recovery().await?;
        let rank = Rank { timeline: system.timeline, primary };
        Ok(Self { system: system.system, rank })
    }
}

/// Whether the best of several servers is to be followed, whichever that is: a role that was asked for is not overruled.
pub(crate) fn is_choice(address: &Address) -> bool {
    use TargetSession::{Any, Primary, ReadWrite};
    address.hosts().len() > 1 && matches!(address.target, Any | Primary | ReadWrite)
}

/// The member to follow. Of one server alone nothing is asked.
///
/// # Errors
/// No server answers, or none of the right role, or it does not let us in.
pub(crate) async fn leader(address: &Address) -> Result<Leader> {
    let alone = |address| Leader { address, silent: Vec::new() };
    if address.hosts().len() == 1 {
        return Ok(alone(address.clone()));
    }
    if is_choice(address)
        && let Some(leader) = best(address).await
    {
        return Ok(leader);
    }
    // As it says why none will do.
    let connection = Connection::connect(address, Replication::Physical).await?;
    let found = address.at(connection.host().clone());
    connection.close().await;
    Ok(alone(found))
}

async fn best(address: &Address) -> Option<Leader> {
    let asking = address.hosts().iter().enumerate().map(|(index, host)| async move {
        let asked = async {
            let mut connection = Connection::connect(&address.at(host.clone()), Replication::Physical).await?;
            let standing = Standing::ask(&mut connection).await;
            connection.close().await;
            standing
        };
        (index, asked.await)
    });
    let mut asking: FuturesUnordered<_> = asking.collect();
    let mut ranks = Vec::new();
    loop {
        let sure = ranks.iter().any(|(rank, _): &(Rank, _)| rank.primary);
        let next = if sure { timeout(GRACE, asking.next()).await.ok().flatten() } else { asking.next().await };
        match next {
            Some((index, Ok(standing))) => ranks.push((standing.rank, Reverse(index))),
            Some((index, Err(error))) => tracing::debug!(member = index, %error, "a member does not answer"),
            None => break,
        }
    }
    let any_role = address.target == TargetSession::Any;
    let (_, Reverse(index)) = *ranks.iter().filter(|(rank, _)| any_role || rank.primary).max()?;
    let answered = |index: usize| ranks.iter().any(|(_, Reverse(known))| *known == index);
    let hosts = address.hosts();
    let silent =
        hosts.iter().enumerate().filter(|(index, _)| !answered(*index)).map(|(_, host)| host.clone()).collect();
    Some(Leader { address: address.at(hosts.get(index)?.clone()), silent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_timeline_leads_and_on_it_who_writes() {
        let rank = |timeline, primary| Rank { timeline, primary };
        let mut ranks = [rank(2, true), rank(1, true), rank(2, false), rank(1, false)];
        ranks.sort();
        assert_eq!(ranks, [rank(1, false), rank(1, true), rank(2, false), rank(2, true)]);
    }

    #[test]
    fn a_role_that_was_asked_for_is_not_overruled() {
        for (text, choice) in [
            ("postgresql://me@a,b/", true),
            ("postgresql://me@a/", false),
            ("postgresql://me@a,b/?target_session_attrs=primary", true),
            ("postgresql://me@a,b/?target_session_attrs=standby", false),
        ] {
            assert_eq!(is_choice(&Address::parse(text).unwrap()), choice, "{text}");
        }
    }
}
