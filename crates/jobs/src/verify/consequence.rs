//! What damage means: which snapshots and moments cannot be restored.

use hindsight_catalog::{History, Loss, Timeline, losses, timeline};
use hindsight_format::{Ancestry, StoredSlice, format_time};

use super::finding::{About, Finding, Level};

/// Findings whose cost is worked out one by one; what they cost together is always told.
const EACH: usize = 200;

/// Says of each finding what it means.
pub(super) fn tell(findings: &mut [Finding], history: &History) {
    let before = timeline(history);
    let open = findings.iter_mut().filter(|finding| finding.means.is_empty());
    for finding in open.take(EACH) {
        finding.means = match &finding.about {
            About::Itself => continue,
            About::Snapshot(id) => snapshot(id, history, &before),
            About::Slice(slice) => self::slice(slice, history, &before),
        };
    }
}

/// What cannot be restored with all of them together.
pub(super) fn all(findings: &[Finding], history: &History) -> Vec<Loss> {
    let damage: Vec<_> = findings.iter().filter(|f| f.level == Level::Damage).map(|finding| &finding.about).collect();
    let mut rest = history.clone();
    rest.snapshots.retain(|snapshot| !damage.iter().any(|a| matches!(a, About::Snapshot(id) if *id == snapshot.id)));
    rest.slices.retain(|slice| !damage.iter().any(|about| matches!(about, About::Slice(bad) if **bad == *slice)));
    losses(history, &rest)
}

fn snapshot(id: &str, history: &History, before: &Timeline) -> String {
    let mut rest = history.clone();
    rest.snapshots.retain(|snapshot| snapshot.id != id);
    let mut gone = losses(history, &rest);
    // Its own state is told by its name.
    gone.retain(|loss| loss.seconds.is_some());
    if !gone.is_empty() {
        return format!("snapshot {id} cannot be restored, nor can {}", spans(&gone));
    }
    let based = before.ranges.iter().any(|range| range.from.is_some() && range.bases.iter().any(|base| base == id));
    match based {
        true => {
            format!("snapshot {id} cannot be restored; moments after it can, from an earlier base (--base-snapshot)")
        }
        false => format!("snapshot {id} cannot be restored"),
    }
}

fn slice(slice: &StoredSlice, history: &History, before: &Timeline) -> String {
    let mut rest = history.clone();
    rest.slices.retain(|other| other != slice);
    let gone = losses(history, &rest);
    if !gone.is_empty() {
        return format!("cannot be restored: {}", spans(&gone));
    }
    let (start, end) = (&slice.name.start, &slice.name.end);
    let epochs: Vec<u64> = Ancestry::new(&history.epochs).epochs_of(slice).collect();
    let covered = before.ranges.iter().filter(|range| epochs.contains(&range.epoch)).any(|range| {
        range.streams.iter().any(|part| {
            part.stream == slice.stream
                && part.start.position.order() < end.position.order()
                && start.position.order() < part.end.position.order()
        })
    });
    match covered {
        true => "no moment is lost, as the same log is stored in others too; but a restore that would read this one \
                 is refused until it is removed"
            .to_owned(),
        false => format!(
            "the log from {} to {} cannot be read; no snapshot leads into it",
            format_time(start.time),
            format_time(end.time)
        ),
    }
}

fn spans(lost: &[Loss]) -> String {
    lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
