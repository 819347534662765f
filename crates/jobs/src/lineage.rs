//! Whether a database is still the one whose history is stored: a copy has the identity of its source.

use hindsight_catalog::trails;
use hindsight_engine::Engine;
use hindsight_repository::ClusterRepository;

use crate::overview::history;
use crate::{JobError, Result};

/// Why the connected database does not go on from what is stored of a cluster, as a sentence; none where it does, or nothing
/// is stored yet.
pub async fn departure(engine: &dyn Engine, cluster: &ClusterRepository) -> Result<Option<String>> {
    // All that is stored is listed for it.
    if !engine.copies_share_identity() {
        return Ok(None);
    }
    let epoch = cluster.current_epoch().await?;
    for trail in trails(&history(cluster).await?, epoch) {
        if let Some(why) = engine.departure(&trail).await? {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

/// Refuses a database of another history than the one that is stored: what it has at the same positions is something else.
pub(crate) async fn require_same(engine: &dyn Engine, cluster: &ClusterRepository) -> Result<()> {
    match departure(engine, cluster).await? {
        None => Ok(()),
        Some(why) => Err(JobError::OtherHistory { cluster: cluster.name().to_owned(), why }),
    }
}
