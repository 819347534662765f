//! Where a restore leads: to the point that was asked for, or to the end of what is stored, where that is all there is.

use hindsight_catalog::{Clamped, Cut, History, Nearest, Refusal, RestorePlan, Target, clamp, plan};
use hindsight_format::format_time;
use hindsight_repository::ClusterRepository;
use jiff::Timestamp;

use crate::agent::CAPTURE_LEASE;
use crate::overview::history;
use crate::{JobError, Result};

/// What is stored, up to the epoch that is meant where one is.
pub async fn history_meant(source: &ClusterRepository, epoch: Option<u64>) -> Result<History> {
    let all = history(source).await?;
    Ok(match epoch {
        Some(epoch) => all.until_epoch(epoch),
        None => all,
    })
}

/// A restore point, and what is read for it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The restore point; where what was asked for is later than all that is stored, the end of it.
    pub target: Target,
    /// The time that was asked for, where what is stored ends before, and that end.
    pub clamped: Option<(Timestamp, Timestamp)>,
    /// What is read.
    pub plan: RestorePlan,
}

impl Planned {
    /// Plans for `target`, from the snapshot `base` if one is named. `stored` is what there is of `source`, up to the epoch that is meant
    /// where one is; where that ends before, it is looked at again.
    pub async fn of(
        source: &ClusterRepository,
        stored: &History,
        epoch: Option<u64>,
        target: &Target,
        base: Option<&str>,
    ) -> Result<Self> {
        match plan(stored, target, base, Timestamp::now()) {
            Ok(plan) => Ok(Self { target: target.clone(), clamped: None, plan }),
            Err(Refusal::AfterEnd { .. }) => Self::at_the_end(source, epoch, target, base).await,
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Plans what seems to be later than all that is stored. Where an agent is about to store it, it is refused: nobody is to get less than
    /// what waiting gives. Where none is, and nothing is known to have come after it, the end of what is stored is what there is.
    async fn at_the_end(
        source: &ClusterRepository,
        epoch: Option<u64>,
        target: &Target,
        base: Option<&str>,
    ) -> Result<Self> {
        let capture = source.lease_state(CAPTURE_LEASE).await?;
        // A history that was left comes to no more.
        let present = source.current_epoch().await?;
        let is_present = epoch.is_none_or(|epoch| epoch >= present);
        let capture = capture.filter(|lease| is_present && source.lease_is_live(CAPTURE_LEASE, lease));
        // An agent that has just ended may have stored more since: listed only now, it is all there.
        let (history, now) = (history_meant(source, epoch).await?, Timestamp::now());
        let refusal = match plan(&history, target, base, now) {
            Ok(plan) => return Ok(Self { target: target.clone(), clamped: None, plan }),
            Err(refusal) => refusal,
        };
        let clamped = clamp(&history, &refusal, target, base, now);
        match (clamped, refusal, capture) {
            (Some(Clamped { asked, end, target, plan }), _, None) => {
                Ok(Self { target, clamped: Some((asked, end)), plan })
            }
            // Of a snapshot that has just been taken the log is about to be stored.
            (clamped, Refusal::AfterEnd { target: asked, end, captured: None }, Some(lease))
                if clamped.is_some() || matches!(end, Nearest::Snapshot { .. }) =>
            {
                Err(JobError::NotYetCaptured { asked, end, host: lease.holder.host })
            }
            (_, refusal, _) => Err(refusal.into()),
        }
    }

    /// Where it leads, in words.
    pub(crate) fn restore_point(&self) -> String {
        restore_point(&self.plan, self.clamped)
    }
}

/// The same of a plan, and of the time that was asked for and the end of what is stored, where that is another.
pub(crate) fn restore_point(plan: &RestorePlan, clamped: Option<(Timestamp, Timestamp)>) -> String {
    match (clamped, &plan.cut) {
        (Some((asked, end)), _) => format!(
            "everything that is stored, through {} (asked for: just before {})",
            format_time(end),
            format_time(asked)
        ),
        (None, Cut::AtSnapshotEnd) => format!("the end of snapshot {}", plan.base.id),
        (None, Cut::Before(time)) => format!("just before {}", format_time(*time)),
        (None, Cut::Through { order }) => format!("through position {order}"),
    }
}
