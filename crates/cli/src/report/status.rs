//! `status`: the cluster, the capture, what runs, what is stored.

use hindsight_engine::{Member, Probe};
use hindsight_format::{LeaseRecord, format_time};
use hindsight_jobs::Overview;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::listing::Snapshots;
use super::pitr::Pitr;
use super::restores::standing;
use crate::engines;
use crate::exit::Failure;
use crate::output::Report;
use crate::text;

/// Fewer free bytes than these are worth a warning.
const LITTLE_ROOM: u64 = 64 << 20;

/// Everything about one cluster; sections that were not asked for are none.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<Cluster>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pitr: Option<Pitr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) running: Option<Running>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backups: Option<Backups>,
}

/// The database.
#[derive(Debug, Serialize)]
pub(crate) struct Cluster {
    /// Its name in the repository; none when it is not kept there yet.
    name: Option<String>,
    #[serde(flatten)]
    state: State,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum State {
    Reached {
        engine: &'static str,
        version: String,
        natural_name: String,
        /// The end of what is committed.
        head: String,
        /// How far back its own log goes, where that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        log_start: Option<String>,
        /// That in seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        log_span_secs: Option<i64>,
        /// Bytes of it, where that is known instead.
        #[serde(skip_serializing_if = "Option::is_none")]
        log_kept_bytes: Option<u64>,
        /// How long the capture may stand still before that log rolls over its position.
        #[serde(skip_serializing_if = "Option::is_none")]
        log_left_secs: Option<i64>,
        members: Vec<Member>,
    },
    NotReached {
        error: String,
        hint: Option<String>,
    },
}

/// What runs now.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Running(Option<Operation>);

#[derive(Debug, Serialize)]
struct Operation {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    detail: String,
    host: String,
    process: u32,
    since: String,
    #[serde(skip)]
    lasts: String,
}

/// What is stored.
#[derive(Debug, Serialize)]
pub(crate) struct Backups {
    repository: String,
    /// What can still be stored there, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    free_bytes: Option<u64>,
    stored_bytes: u64,
    snapshots: Snapshots,
    last_restore: Option<LastRestore>,
    #[serde(skip)]
    slices: u64,
    #[serde(skip)]
    log_bytes: u64,
    #[serde(skip)]
    program: String,
}

#[derive(Debug, Serialize)]
struct LastRestore {
    name: String,
    status: &'static str,
    target: String,
    into: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Cluster {
    pub(crate) fn of(name: Option<&str>, probed: Result<&Probe, &Failure>, left: Option<SignedDuration>) -> Self {
        let state = match probed {
            Ok(probe) => State::Reached {
                engine: probe.engine,
                version: probe.version.clone(),
                natural_name: probe.natural_name.clone(),
                head: format_time(probe.head.time),
                log_start: probe.log_start.as_ref().map(|start| format_time(start.time)),
                log_span_secs: probe
                    .log_start
                    .as_ref()
                    .map(|start| probe.head.time.duration_since(start.time).as_secs()),
                log_kept_bytes: probe.log_room.filter(|_| probe.log_start.is_none()).map(|room| room.used),
                log_left_secs: left.map(|left| left.as_secs()),
                members: probe.members.clone(),
            },
            Err(failure) => State::NotReached { error: failure.what.clone(), hint: failure.hint.clone() },
        };
        Self { name: name.map(str::to_owned), state }
    }

    fn text(&self) -> String {
        let kept = match &self.name {
            Some(name) => format!("kept in the repository as {name:?}"),
            None => "not kept in the repository yet".to_owned(),
        };
        match &self.state {
            State::Reached {
                engine,
                version,
                natural_name,
                log_start,
                log_span_secs,
                log_kept_bytes,
                log_left_secs,
                members,
                ..
            } => {
                let mut text = format!("  {natural_name}: {engine} {version}, {kept}\n");
                let row = |member: &Member| {
                    let lag = match member.lag_secs {
                        Some(lag) if lag > 0 => format!("{} behind", text::span(lag)),
                        _ => String::new(),
                    };
                    let health = if member.healthy { "ok" } else { "NOT HEALTHY" };
                    vec![format!("  {}", member.host), member.role.clone(), health.to_owned(), lag]
                };
                text.push_str(&text::table(&members.iter().map(row).collect::<Vec<_>>(), &[]));
                let left = log_left_secs.map(|left| format!("; the capture may stand still for {}", text::span(left)));
                let left = left.unwrap_or_default();
                let kept = match (log_start, log_span_secs, log_kept_bytes) {
                    (Some(start), Some(span), _) => format!("its own log goes back {} to {start}", text::span(*span)),
                    (_, _, Some(bytes)) => {
                        let log = engines::words(engine).log;
                        format!("it keeps {} of {log} for the capture", text::bytes(*bytes))
                    }
                    _ => return text,
                };
                text.push_str(&format!("  {kept}{left}\n"));
                text
            }
            State::NotReached { error, hint } => {
                let hint = hint.as_ref().map(|hint| format!("    hint: {hint}\n")).unwrap_or_default();
                format!("  {kept}\n  not reached: {error}\n{hint}")
            }
        }
    }
}

impl Running {
    pub(crate) fn of(operation: Option<&LeaseRecord>, now: Timestamp) -> Self {
        Self(operation.map(|lease| Operation {
            kind: lease.operation.kind.to_string(),
            name: lease.operation.id.clone(),
            detail: lease.operation.detail.clone(),
            host: lease.holder.host.clone(),
            process: lease.holder.pid,
            since: format_time(lease.acquired_at),
            lasts: text::span(now.duration_since(lease.acquired_at).as_secs().max(0)),
        }))
    }

    fn text(&self) -> String {
        let Some(Operation { kind, name, detail, host, process, lasts, .. }) = &self.0 else {
            return "  (none)\n".to_owned();
        };
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        format!("  {kind} {name} on {host} (process {process}), for {lasts}{detail}\n")
    }
}

impl Backups {
    pub(crate) fn of(overview: &Overview, repository: &str, free: Option<u64>, now: Timestamp, program: &str) -> Self {
        let history = &overview.history;
        let log_bytes = history.slices.iter().map(|slice| slice.stored_bytes).fold(0, u64::saturating_add);
        let snapshots =
            history.snapshots.iter().map(|snapshot| snapshot.totals.stored_bytes).fold(0, u64::saturating_add);
        let last_restore = overview.restores.last().map(|record| LastRestore {
            name: record.id.clone(),
            status: standing(record, &overview.restoring),
            target: record.target.clone(),
            into: record.into_hosts.clone(),
            error: record.error.clone(),
        });
        Self {
            repository: repository.to_owned(),
            free_bytes: free,
            stored_bytes: snapshots + log_bytes,
            snapshots: Snapshots::of(overview, None, now, program),
            last_restore,
            slices: history.slices.len() as u64,
            log_bytes,
            program: program.to_owned(),
        }
    }

    fn text(&self) -> String {
        let slices = text::things(self.slices, "slice", "slices");
        let mut text = format!(
            "  {}: {} in all, {} of it captured log in {slices}\n  {}",
            self.repository,
            text::bytes(self.stored_bytes),
            text::bytes(self.log_bytes),
            self.snapshots.text().trim_end().replace('\n', "\n  "),
        );
        text.push('\n');
        if let Some(free) = self.free_bytes.filter(|free| *free < LITTLE_ROOM) {
            text.push_str(&format!(
                "  WARNING: {} are free on the disk of the repository. When it is full, backups fail and the capture waits: \
                 make room, such as with `{} cleanup --older-than 30d`\n",
                text::bytes(free),
                self.program
            ));
        }
        if let Some(LastRestore { name, status, target, into, error }) = &self.last_restore {
            let error = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            text.push_str(&format!("  Last restore: {name}, {target}, into {into}: {status}{error}\n"));
        }
        text
    }
}

impl Report for Status {
    fn text(&self) -> String {
        let section = |title: &str, body: String| format!("{title}:\n{}\n{body}", "=".repeat(title.len() + 1));
        let sections = [
            self.cluster.as_ref().map(|cluster| section("Cluster", cluster.text())),
            self.pitr.as_ref().map(|pitr| {
                let state = pitr.state().to_uppercase();
                section("PITR incremental backup", format!("  Status [{state}]\n{}", pitr.body()))
            }),
            self.running.as_ref().map(|running| section("Currently running", running.text())),
            self.backups.as_ref().map(|backups| section("Backups", backups.text())),
        ];
        sections.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }
}
