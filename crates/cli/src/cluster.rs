//! Which cluster of the repository a verb is about.

use std::sync::Arc;

use hindsight_engine::{Engine, Probe};
use hindsight_format::ClusterIdentity;
use hindsight_jobs::{departure, find_cluster, register};
use hindsight_repository::{ClusterRepository, Repository};

use crate::context::Context;
use crate::engines;
use crate::exit::{Exit, Failure};

/// A database that answers.
pub(crate) struct Connected {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) probe: Probe,
}

/// Connects to the database that was named.
pub(crate) async fn connect(context: &Context) -> Result<Connected, Failure> {
    let engine = context.engine()?;
    let probe = context.unless_stopped(engine.probe()).await?;
    Ok(Connected { engine, probe })
}

/// The engine of what is stored, without a database.
pub(crate) async fn engine_of(cluster: &ClusterRepository) -> Result<Arc<dyn Engine>, Failure> {
    match cluster.descriptor().await? {
        Some(descriptor) => engines::offline(&descriptor.identity.engine),
        None => Err(Failure::new(Exit::Damaged, format!("{} is missing", cluster.keys().descriptor()))),
    }
}

/// The connected cluster's part of the repository, made at its first use.
pub(crate) async fn registered(
    context: &Context,
    repository: &Repository,
    Connected { engine, probe }: &Connected,
) -> Result<ClusterRepository, Failure> {
    if let Some(name) = context.cluster() {
        let known = repository.clusters().await?;
        let is_new = !known.iter().any(|cluster| cluster.name == name);
        for other in known.iter().filter(|cluster| is_new && cluster.identity == probe.identity) {
            let stored = repository.cluster(&other.name)?;
            // A copy of it is another one.
            if context.unless_stopped(departure(&**engine, &stored)).await?.is_none() {
                return Err(Failure::usage(format!(
                    "the repository keeps this cluster under the name {:?}",
                    other.name
                ))
                .hint(format!("use --cluster {}, or leave it out", other.name)));
            }
        }
    }
    Ok(register(repository, context.cluster(), probe).await?)
}

/// The cluster to tell about, which needs no database: the one that was named, or the connected
/// one, or the only one. None when nothing at all is stored yet.
pub(crate) async fn to_read(context: &Context, repository: &Repository) -> Result<Option<ClusterRepository>, Failure> {
    if context.cluster().is_some() || context.uri().is_none() {
        return known_or_none(context, repository, None).await;
    }
    to_read_beside(context, repository, &connect(context).await).await
}

/// The same for those who have tried to connect already.
pub(crate) async fn to_read_beside(
    context: &Context,
    repository: &Repository,
    connected: &Result<Connected, Failure>,
) -> Result<Option<ClusterRepository>, Failure> {
    let failure = match connected {
        _ if context.cluster().is_some() || context.uri().is_none() => {
            return known_or_none(context, repository, None).await;
        }
        Ok(connected) => return known_or_none(context, repository, Some(&connected.probe.identity)).await,
        Err(failure) => failure.clone(),
    };
    if matches!(failure.exit, Exit::Usage | Exit::Interrupted) {
        return Err(failure);
    }
    // The repository alone is enough, where it leaves no doubt.
    match known_or_none(context, repository, None).await {
        Ok(found) => {
            context.out.note(&format!("Note: {}; this is from the repository alone", failure.what));
            Ok(found)
        }
        Err(_) => Err(failure.also("or say which cluster is meant with --cluster NAME")),
    }
}

/// The cluster whose history is restored into the connected one.
pub(crate) async fn to_restore(
    context: &Context,
    repository: &Repository,
    into: &ClusterIdentity,
) -> Result<ClusterRepository, Failure> {
    let own = find_cluster(repository, context.cluster(), Some(into)).await?;
    match (own, context.cluster()) {
        (Some(found), _) => Ok(found),
        // Into another cluster, such as the new one after a disaster: there is only one history.
        (None, None) if repository.clusters().await?.len() == 1 => {
            find_cluster(repository, None, None).await?.ok_or_else(nothing_stored)
        }
        _ => Err(unknown(context, repository).await?),
    }
}

async fn known_or_none(
    context: &Context,
    repository: &Repository,
    connected: Option<&ClusterIdentity>,
) -> Result<Option<ClusterRepository>, Failure> {
    if let Some(found) = find_cluster(repository, context.cluster(), connected).await? {
        return Ok(Some(found));
    }
    if repository.clusters().await?.is_empty() { Ok(None) } else { Err(unknown(context, repository).await?) }
}

/// The repository does not keep the cluster that is meant.
async fn unknown(context: &Context, repository: &Repository) -> Result<Failure, Failure> {
    let known: Vec<_> = repository.clusters().await?.into_iter().map(|cluster| cluster.name).collect();
    if known.is_empty() {
        return Ok(nothing_stored());
    }
    let what = match context.cluster() {
        Some(name) => format!("the repository keeps no cluster {name:?}"),
        None => "the repository does not know the connected cluster yet".to_owned(),
    };
    Ok(Failure::new(Exit::Unknown, format!("{what}; it keeps: {}", known.join(", ")))
        .hint("name one of those with --cluster"))
}

/// There is nothing in the repository.
pub(crate) fn nothing_stored() -> Failure {
    Failure::new(Exit::Refused, "no base snapshot found: nothing is stored in the repository yet")
        .hint("take a snapshot with `backup` first, or name another --repository")
}
