//! Holding the readers back while members of the replica set fall behind.

use std::time::Duration;

use hindsight_engine::Job;
use tokio::time::Instant;

use crate::cluster::{Cluster, MAX_LAG};

/// Members are looked at this often.
const POLL: Duration = Duration::from_secs(1);
/// If a member does not catch up in this time, it is not for the readers that it is behind.
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds `job` while a member lags that did not lag when the job began. Never returns.
pub(super) async fn watch(cluster: &Cluster, job: &Job) -> std::convert::Infallible {
    let mut tolerated = MAX_LAG;
    // Lag at two looks in a row: after a rest of the whole cluster the first write makes all but the primary look late.
    let mut before = 0;
    // Each is said once.
    let (mut waited, mut in_vain) = (false, false);
    loop {
        tokio::time::sleep(POLL).await;
        let Ok((host, lag)) = cluster.lag().await else { continue };
        if lag.min(std::mem::replace(&mut before, lag)) <= tolerated {
            continue;
        }
        if !std::mem::replace(&mut waited, true) {
            job.progress.warn(format!("reading waited, as {host} was {lag} s behind"));
        }
        job.throttle.hold(true);
        let held = Instant::now();
        while before > tolerated / 2 && held.elapsed() < PATIENCE {
            tokio::time::sleep(POLL).await;
            before = cluster.lag().await.map_or(before, |(_, lag)| lag);
        }
        job.throttle.hold(false);
        if before >= lag {
            tolerated = before + MAX_LAG;
            if !std::mem::replace(&mut in_vain, true) {
                job.progress.warn(format!("{host} fell behind while nothing was read too; reading goes on"));
            }
        }
    }
}
