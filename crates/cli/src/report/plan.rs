//! What a restore would do: shown before the question, by `--dry-run`, and as JSON.

use hindsight_catalog::{Cut, RestorePlan, Target};
use hindsight_engine::{Destination, NamespaceChange, Noun, Preview, Reached, Words};
use hindsight_format::{LeaseRecord, format_time};
use hindsight_jobs::{Proposal, RestoreRequest};
use jiff::Timestamp;
use serde::Serialize;

use super::Keyed;
use super::restores::RestoreReport;
use crate::output::Report;
use crate::text;

/// Lines of a list of namespaces before it is cut short.
const LIST: usize = 20;

/// What a plan is told from.
pub(crate) struct Facts<'a> {
    /// The cluster whose history is restored.
    pub(crate) source: &'a str,
    /// The repository.
    pub(crate) repository: &'a str,
    pub(crate) request: &'a RestoreRequest,
    pub(crate) plan: &'a RestorePlan,
    pub(crate) preview: &'a Preview,
    pub(crate) words: &'a Words,
    /// The target's name, where the repository keeps it.
    pub(crate) target: Option<&'a str>,
    /// The agent that captures the target.
    pub(crate) capture: Option<&'a LeaseRecord>,
    /// Whether the target's capture is switched on.
    pub(crate) captures_afterwards: bool,
    pub(crate) restore_point: String,
    /// The time that was asked for, where what is stored ends before, and that end.
    pub(crate) clamped: Option<(Timestamp, Timestamp)>,
    /// The time as it was typed, when it had no zone.
    pub(crate) taken_as_utc: Option<&'a str>,
    /// The name of this program.
    pub(crate) program: &'a str,
}

/// What a restore would do.
#[derive(Debug, Serialize)]
pub(crate) struct PlanReport {
    cluster: String,
    repository: String,
    restore_point: String,
    /// The moment that it is; none for the end of a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    taken_as_utc: Option<String>,
    /// What is stored ends before what was asked for: not all of that is restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    clamped: Option<Clamped>,
    /// Where in the log that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reaches: Option<Reached>,
    /// First and last second that can be restored around it.
    range: Option<[String; 2]>,
    base: Base,
    log: Log,
    read_bytes: u64,
    uncompressed_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_secs: Option<u64>,
    into: Into,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    renamed: Option<String>,
    /// Namespaces of the target that the base snapshot has too: they become what they were.
    replaced: Vec<Change>,
    /// Those that it does not have: they go, unless the log has created them before the restore
    /// point.
    dropped: Vec<Change>,
    notes: Vec<String>,
    #[serde(skip)]
    within: Option<String>,
}

/// More was asked for than is stored.
#[derive(Debug, Serialize)]
struct Clamped {
    /// The restore point asked for: just before it.
    asked_for: String,
    /// The end of what is stored.
    ends: String,
    /// From there to what was asked for.
    missing_secs: i64,
}

impl Clamped {
    fn of((asked, end): (Timestamp, Timestamp)) -> Self {
        let missing_secs = asked.duration_since(end).as_secs();
        Self { asked_for: format_time(asked), ends: format_time(end), missing_secs }
    }
}

#[derive(Debug, Serialize)]
struct Base {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// The snapshots that it builds upon, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    builds_upon: Vec<String>,
    restore_time: String,
    epoch: u64,
    stored_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Log {
    slices: u64,
    stored_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Into {
    hosts: String,
    version: String,
    in_place: bool,
    /// Its name in the repository, where it is kept.
    cluster: Option<String>,
    /// The directory in which it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    /// Where what is there now is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

/// A namespace of the target.
#[derive(Debug, Serialize)]
struct Change {
    namespace: String,
    #[serde(flatten)]
    items: Keyed,
    bytes: u64,
    in_base: bool,
    #[serde(skip)]
    holds: String,
}

impl Change {
    fn of(change: &NamespaceChange, item: Noun) -> Self {
        Self {
            namespace: change.namespace.clone(),
            items: Keyed(vec![(item.1, change.items)]),
            bytes: change.bytes,
            in_base: change.in_base,
            holds: text::counted(change.items, item),
        }
    }
}

impl PlanReport {
    /// The plan of a proposal.
    pub(crate) fn of(proposal: &Proposal, words: &Words, taken_as_utc: Option<&str>, program: &str) -> Self {
        Self::told(&Facts {
            source: proposal.source.name(),
            repository: proposal.source.repository().url(),
            request: &proposal.request,
            plan: &proposal.plan,
            preview: &proposal.preview,
            words,
            target: proposal.target.as_ref().map(|target| target.name()),
            capture: proposal.capture.as_ref(),
            captures_afterwards: proposal.captures_afterwards,
            restore_point: proposal.restore_point(),
            clamped: proposal.clamped,
            taken_as_utc,
            program,
        })
    }

    pub(crate) fn told(facts: &Facts<'_>) -> Self {
        let Facts { plan, preview, request, .. } = facts;
        let base = &plan.base;
        let selected = !request.selection.is_all();
        let changes = preview.existing.iter().map(|change| Change::of(change, facts.words.item));
        let (replaced, dropped) = changes.partition(|change| change.in_base);
        let time = match (&plan.cut, &request.target) {
            (Cut::Before(time), _) | (Cut::Through { .. }, Target::Through { time, .. }) => Some(*time),
            (Cut::Through { .. }, _) => plan.range.map(|(_, to)| to),
            (Cut::AtSnapshotEnd, _) => None,
        };
        let of_position = time.filter(|_| matches!(plan.cut, Cut::Through { .. }) && facts.clamped.is_none());
        let restore_point = match of_position {
            Some(time) => format!("{} ({})", facts.restore_point, format_time(time)),
            None => facts.restore_point.clone(),
        };
        Self {
            cluster: facts.source.to_owned(),
            repository: facts.repository.to_owned(),
            restore_point,
            time: time.map(format_time),
            taken_as_utc: facts.taken_as_utc.map(str::to_owned),
            clamped: facts.clamped.map(Clamped::of),
            reaches: preview.reaches.clone(),
            range: plan.range.map(|(from, to)| [from, to].map(format_time)),
            within: plan.range.map(|(from, to)| within(from, to, time)),
            base: Base {
                name: base.id.clone(),
                kind: base.kind.to_string(),
                builds_upon: plan.parents.iter().map(|parent| parent.id.clone()).collect(),
                restore_time: format_time(base.restore_time()),
                epoch: plan.epoch,
                stored_bytes: plan.data_bytes,
            },
            log: Log {
                slices: plan.streams.iter().map(|stream| stream.log.len() as u64).sum(),
                stored_bytes: plan.log_bytes,
            },
            read_bytes: plan.data_bytes + plan.log_bytes,
            uncompressed_bytes: plan.parents.iter().chain([base]).map(|snapshot| snapshot.totals.raw_bytes).sum(),
            estimated_secs: preview.estimated_secs,
            into: Into {
                hosts: preview.into_hosts.clone(),
                version: preview.into_version.clone(),
                in_place: preview.in_place,
                cluster: facts.target.map(str::to_owned),
                kept: preview.kept.as_ref().map(|kept| kept.display().to_string()),
                directory: match &request.destination {
                    Destination::Connected => None,
                    Destination::Directory(directory) => Some(directory.path.display().to_string()),
                },
            },
            namespaces: if selected { request.selection.patterns().to_vec() } else { Vec::new() },
            renamed: request.selection.renaming().map(|r| format!("{} as {}", r.from, r.to)),
            replaced,
            dropped,
            notes: beyond(facts)
                .into_iter()
                .chain(preview.notes.iter().cloned())
                .chain(notes(facts))
                .chain(unchecked(request))
                .collect(),
        }
    }

    /// The question before it is done.
    pub(crate) fn question(&self) -> String {
        let hosts = &self.into.hosts;
        let what = match (&self.renamed, self.namespaces.as_slice()) {
            (Some(renamed), _) => format!("{renamed} in {hosts}"),
            (None, []) => hosts.clone(),
            (None, some) => format!("{} in {hosts}", some.join(", ")),
        };
        let kept =
            self.into.kept.as_ref().map(|kept| format!(", and keep what it is now as {kept}")).unwrap_or_default();
        format!("Are you sure you want to restore {what} to {}{kept}? [y/N] ", self.restore_point)
    }
}

fn within(from: Timestamp, to: Timestamp, time: Option<Timestamp>) -> String {
    let range = format!("{} - {}", format_time(from), format_time(to));
    match time.filter(|time| (from..=to).contains(time)) {
        Some(time) => {
            format!(
                "{range}: {} after its start, {} before its end",
                text::between(from, time),
                text::between(time, to)
            )
        }
        None => range,
    }
}

/// Where the cut is, and what lies on both sides of it.
fn reaches(reached: &Reached) -> String {
    let mut text = reached.through.clone().unwrap_or_else(|| reached.point.to_string());
    if let Some(time) = reached.last_commit {
        text.push_str(&format!(", the last commit in it is of {}", format_time(time)));
    }
    if let Some(time) = reached.left_out {
        text.push_str(&format!(", the first that is not of {}", format_time(time)));
    }
    text
}

/// What is missing where more was asked for than is stored.
fn beyond(facts: &Facts<'_>) -> Option<String> {
    let (_, end) = facts.clamped?;
    Some(format!(
        "no agent captures {}: what was committed after {}, if anything was, is not in the repository; where the database still runs and \
         has its log from there on, start `{} agent` and run this again, for the very moment that was asked for",
        facts.source,
        format_time(end),
        facts.program
    ))
}

/// What happens to the capture.
fn notes(facts: &Facts<'_>) -> Vec<String> {
    let program = facts.program;
    if !facts.request.selection.is_all() {
        return match facts.target {
            Some(_) => vec!["history goes on: this restore becomes a part of it, like any other write".to_owned()],
            None => Vec::new(),
        };
    }
    let note = match (facts.capture, facts.captures_afterwards) {
        (_, true) if is_directory(facts.request) => format!(
            "an agent that waits for the server begins anew by itself afterwards, with a fresh snapshot; where there is none, start \
             `{program} agent`"
        ),
        (Some(lease), true) => format!(
            "the agent on {} is suspended for the restore; afterwards it begins anew by itself, with a fresh snapshot",
            lease.holder.host
        ),
        (Some(lease), false) => {
            format!("the agent on {} is just letting go, as PITR is off; {}", lease.holder.host, by_hand(program))
        }
        (None, true) => format!(
            "PITR is on but no agent is capturing; afterwards start `{program} agent`: it begins anew, with a fresh snapshot"
        ),
        (None, false) if facts.target.is_some() => format!("PITR is off; {}", by_hand(program)),
        (None, false) => {
            let own = match facts.request.destination {
                Destination::Connected => "",
                Destination::Directory(_) => " under a name of its own, with --cluster",
            };
            format!(
                "the repository does not keep the target; to protect it afterwards, take a `{program} backup` of it{own}"
            )
        }
    };
    vec![note]
}

/// Whether its server does not run: an agent that is there has nothing to capture, and waits.
fn is_directory(request: &RestoreRequest) -> bool {
    matches!(request.destination, Destination::Directory(_))
}

/// What it means not to look first.
fn unchecked(request: &RestoreRequest) -> Option<String> {
    let note = "the data are not read through beforehand (--skip-check): damage in them is found when the target is \
                half restored";
    request.skip_check.then(|| note.to_owned())
}

fn by_hand(program: &str) -> String {
    format!("afterwards run `{program} backup`, then `{program} config --set pitr.enabled=true` to protect it again")
}

/// What to do once a restore has succeeded.
pub(crate) fn next_steps(proposal: &Proposal, program: &str) -> String {
    if !proposal.request.selection.is_all() {
        return "Next: nothing. History goes on, with this restore as a part of it.".to_owned();
    }
    let target = proposal.target.is_some();
    match (proposal.capture.is_some(), proposal.captures_afterwards) {
        (_, true) if is_directory(&proposal.request) => format!(
            "Next: an agent that waits for the server begins anew by itself, with a fresh snapshot. Where there is none, start \
             `{program} agent`."
        ),
        (true, true) => "Next: nothing. The agent begins anew by itself, with a fresh snapshot.".to_owned(),
        (false, true) => format!("Next: start `{program} agent`. It begins anew, with a fresh snapshot."),
        (_, false) if target => {
            format!(
                "Next: run `{program} backup`, then `{program} config --set pitr.enabled=true`: this is a new history."
            )
        }
        (_, false) => format!("Next: run `{program} backup`, to protect this cluster as well."),
    }
}

impl Report for PlanReport {
    fn text(&self) -> String {
        let into = match (self.into.in_place, &self.into.cluster, &self.into.directory) {
            (true, ..) => "in place".to_owned(),
            (false, Some(name), _) => format!("another cluster, {name}"),
            (false, None, Some(_)) => "a new cluster".to_owned(),
            (false, None, None) => "another cluster, which the repository does not keep".to_owned(),
        };
        let log = match self.log.slices {
            0 => "none is needed".to_owned(),
            slices => format!("{}, {}", text::things(slices, "slice", "slices"), text::bytes(self.log.stored_bytes)),
        };
        let Base { name, kind, builds_upon, restore_time, .. } = &self.base;
        let mut lines = vec![
            ("History of", format!("{} in {}", self.cluster, self.repository)),
            ("Restore point", self.restore_point.clone()),
        ];
        if let Some(typed) = &self.taken_as_utc {
            lines.push(("", format!("{typed} is taken as UTC")));
        }
        if let Some(Clamped { missing_secs, .. }) = &self.clamped {
            let missing = text::span(*missing_secs);
            lines.push((
                "Clamped",
                format!("what is stored ends {missing} before the time asked for: what came after is not restored"),
            ));
        }
        if let Some(reached) = &self.reaches {
            lines.push(("Reaches", reaches(reached)));
        }
        if let Some(within) = &self.within {
            lines.push(("Range", within.clone()));
        }
        lines.push(("Base snapshot", format!("{name} ({kind}), which is at {restore_time}")));
        if !builds_upon.is_empty() {
            lines.push(("Builds upon", builds_upon.join(", ")));
        }
        lines.push(("Log after it", log));
        lines.push((
            "To read",
            format!("{}, {} uncompressed", text::bytes(self.read_bytes), text::bytes(self.uncompressed_bytes)),
        ));
        lines.push(("Into", format!("{} (version {}), {into}", self.into.hosts, self.into.version)));
        if let Some(kept) = &self.into.kept {
            lines.push(("Kept", format!("what is there now, as {kept}")));
        }
        if let Some(renamed) = &self.renamed {
            lines.push(("Only", renamed.clone()));
        } else if !self.namespaces.is_empty() {
            lines.push(("Only", self.namespaces.join(", ")));
        }
        if let Some(secs) = self.estimated_secs {
            let secs = i64::try_from(secs).unwrap_or(i64::MAX);
            lines.push(("Will take", format!("about {} (an estimate, from the size)", text::span(secs))));
        }

        let rows: Vec<_> = lines.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        let mut text = format!("Restore plan:\n{}", text::table(&rows, &[]));
        text.push_str(&list("Replaced by what they were", &self.replaced));
        text.push_str(&list("Dropped, unless the log has created them before the restore point", &self.dropped));
        if self.into.kept.is_some() {
            text.push_str("All that is there now is replaced, and kept aside.\n");
        } else if self.replaced.is_empty() && self.dropped.is_empty() {
            text.push_str("Nothing that exists in the target is replaced or dropped.\n");
        }
        if !self.notes.is_empty() {
            text.push_str("Notes:\n");
        }
        for note in &self.notes {
            text.push_str(&format!("  - {note}\n"));
        }
        text
    }
}

/// Namespaces with their sizes, the largest first, cut short when there are many.
fn list(title: &str, changes: &[Change]) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let mut changes: Vec<_> = changes.iter().collect();
    let all = changes.len();
    if all > LIST {
        changes.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.namespace.cmp(&b.namespace)));
        changes.truncate(LIST);
    }
    let row = |change: &&Change| vec![change.namespace.clone(), change.holds.clone(), text::bytes(change.bytes)];
    let rows: Vec<_> = changes.iter().map(row).collect();
    let more = match all - changes.len() {
        0 => String::new(),
        more => format!("  and {} more\n", text::count(more as u64)),
    };
    format!("{title} ({}):\n{}{more}", text::count(all as u64), text::table(&rows, &[1, 2]))
}

/// A restore that has succeeded.
#[derive(Debug, Serialize)]
pub(crate) struct Restored {
    pub(crate) plan: PlanReport,
    pub(crate) restore: RestoreReport,
    pub(crate) warnings: Vec<String>,
    /// What the engine says is to be done next.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) next: Vec<String>,
    /// What it did, for people.
    #[serde(skip)]
    pub(crate) done: String,
}

impl Report for Restored {
    fn text(&self) -> String {
        self.done.clone()
    }
}
