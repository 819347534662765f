//! What all verbs that delete have in common: plan, question, deed.

use hindsight_catalog::{Wish, parse_time};
use hindsight_engine::Progress;
use hindsight_jobs::{propose_removal, remove};
use jiff::{SignedDuration, Timestamp};

use super::confirm::confirm;
use super::stored_cluster;
use crate::context::Context;
use crate::exit::Failure;
use crate::output::Report;
use crate::progress;
use crate::report::removal::RemovalReport;

/// The flags of a verb that deletes.
#[derive(Clone, Copy)]
pub(crate) struct Flags {
    pub(crate) yes: bool,
    pub(crate) dry_run: bool,
}

/// Shows what `wish` deletes, asks, and does it. `verb` is the event in the logs.
pub(crate) async fn run(wish: Wish, verb: &str, flags: Flags, context: &Context) -> Result<(), Failure> {
    let cluster = stored_cluster(context).await?;
    let plan = context.unless_stopped(propose_removal(&cluster, &wish)).await?;
    let report = RemovalReport::of(&plan, false);
    if flags.dry_run || plan.is_empty() {
        return context.out.print(&report);
    }
    context.out.say(&format!("{}\n", report.text()))?;
    if !flags.yes {
        let question = "Are you sure you want to delete this? [y/N] ".to_owned();
        confirm(&report.text(), question, context).await?;
    }
    context.journal.attach(&cluster, verb);
    let progress = Progress::default();
    let work = remove(&cluster, &wish, &plan, &progress, &context.stop);
    let (done, _) = progress::shown(context.out, &progress, std::future::pending(), work).await;
    let done = done.map_err(|error| context.told(error))?;
    context.out.print(&RemovalReport::of(&done, true))
}

/// Reads what follows `--older-than`: a time, or a number of days such as `30d`.
pub(crate) fn older_than(text: &str) -> Result<Timestamp, Failure> {
    let (text, now) = (text.trim(), Timestamp::now());
    if let Some(days) = text.strip_suffix('d').filter(|days| !days.is_empty() && !days.contains('-')) {
        let ago = days.parse().ok().and_then(|days: u32| {
            let time = now.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).ok()?;
            Timestamp::from_second(time.as_second()).ok()
        });
        return ago.ok_or_else(|| Failure::usage(format!("{text:?} is no number of days such as 30d")));
    }
    let time = parse_time(text, now).map_err(|error| {
        Failure::usage(error.to_string()).hint("--older-than takes a time, or a number of days such as 30d")
    })?;
    Ok(time.time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_age_is_a_time_or_a_number_of_days() {
        let days = |n: i64| Timestamp::now().as_second() - n * 86_400;
        assert!((older_than("30d").unwrap().as_second() - days(30)).abs() < 5);
        assert!((older_than(" 0d ").unwrap().as_second() - days(0)).abs() < 5);
        assert_eq!(older_than("2021-02-03").unwrap(), "2021-02-03T00:00:00Z".parse().unwrap());
        assert_eq!(older_than("2021-02-03T04:05:06").unwrap(), "2021-02-03T04:05:06Z".parse().unwrap());
        for bad in ["", "d", "30", "-3d", "3h", "99999999999d", "soon", "1.5d"] {
            assert!(older_than(bad).is_err(), "{bad}");
        }
    }
}
