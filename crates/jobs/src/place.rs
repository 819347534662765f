//! Which cluster of the repository is meant.

use hindsight_engine::Probe;
use hindsight_format::ClusterIdentity;
use hindsight_repository::{ClusterRepository, Repository};

use crate::{JobError, Result};

/// The cluster of the repository that is meant: by name; or by the identity of the database that is
/// connected; or because there is only one. None when the repository does not know it (yet).
pub async fn find_cluster(
    repository: &Repository,
    name: Option<&str>,
    connected: Option<&ClusterIdentity>,
) -> Result<Option<ClusterRepository>> {
    let known = repository.clusters().await?;
    let names = || known.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(name) = name {
        if !known.iter().any(|cluster| cluster.name == name) {
            return Ok(None);
        }
        return Ok(Some(repository.cluster(name)?));
    }
    if let Some(identity) = connected {
        let same: Vec<_> =
            known.iter().filter(|cluster| cluster.identity == *identity).map(|c| c.name.as_str()).collect();
        return match same.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(repository.cluster(only)?)),
            several => Err(JobError::WhichCluster {
                what: format!("the connected cluster may be any of {}, which are copies of one", several.join(", ")),
                hint: "say which with --cluster NAME".to_owned(),
            }),
        };
    }
    match known.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(repository.cluster(&only.name)?)),
        _ => Err(JobError::WhichCluster {
            what: format!("the repository keeps several clusters: {}", names()),
            hint: "say which with --cluster NAME, or connect with --uri".to_owned(),
        }),
    }
}

/// The part of the repository that belongs to the connected cluster, registered at first use under
/// `name`, or the name that it has by itself.
pub async fn register(repository: &Repository, name: Option<&str>, probe: &Probe) -> Result<ClusterRepository> {
    if name.is_none()
        && let Some(known) = find_cluster(repository, None, Some(&probe.identity)).await?
    {
        return Ok(known);
    }
    let cluster = repository.cluster(name.unwrap_or(&probe.natural_name))?;
    cluster.register(&probe.identity).await?;
    Ok(cluster)
}
