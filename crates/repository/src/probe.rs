//! Trying out a store: every kind of request that Hindsight makes, on objects that are removed again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use hindsight_format::{Keys, PutIfAbsent};
use serde::Serialize;

use crate::error::{Error, Failure, FailureKind, Result};
use crate::store::Store;

/// Writers that race for one object, and how often: one lucky round proves nothing.
const RACERS: u32 = 8;
const ROUNDS: u32 = 3;

/// What trying out a repository's store gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The repository.
    pub url: String,
    /// What was tried, in order; what comes after a failure that it depends on is left out.
    pub steps: Vec<CheckStep>,
    /// Whether the store can create objects that do not exist; none when that was not reached.
    pub put_if_absent: Option<PutIfAbsent>,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckStep {
    /// What was tried, such as `write`.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// How long it took.
    pub millis: u64,
    /// What was found, one line; empty when there is nothing to say.
    pub why: String,
    /// The way out: the permission or setting that is missing; empty when there is none.
    pub hint: String,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The repository can be used, with the limits that the step names.
    Warning,
    /// The repository cannot be used like this.
    Failed,
}

impl CheckReport {
    /// Whether the repository can be used.
    pub fn is_ok(&self) -> bool {
        self.failure().is_none()
    }

    /// The first step that failed.
    pub fn failure(&self) -> Option<&CheckStep> {
        self.steps.iter().find(|step| step.outcome == Outcome::Failed)
    }

    pub(crate) fn push(&mut self, name: &'static str, since: Instant, result: Result<()>) -> bool {
        let millis = since.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        let (outcome, why, hint) = match result {
            Ok(()) => (Outcome::Ok, String::new(), String::new()),
            Err(Error::Store { failure: Failure { why, hint, .. }, .. }) => (Outcome::Failed, why, hint),
            Err(other) => (Outcome::Failed, other.to_string(), String::new()),
        };
        self.steps.push(CheckStep { name, outcome, millis, why, hint });
        outcome == Outcome::Ok
    }
}

/// What a store that lacks put-if-absent means for its user.
pub(crate) fn warning(ability: PutIfAbsent) -> (&'static str, &'static str) {
    match ability {
        PutIfAbsent::Atomic => ("", ""),
        PutIfAbsent::Racy => (
            "of several writers that create the same object at once, more than one is told that it succeeded",
            "leases are less safe there: run one agent for each cluster only, or use a store with atomic put-if-absent",
        ),
        PutIfAbsent::Absent => (
            "the store cannot refuse to create an object that exists",
            "leases cannot protect there: run one agent for each cluster only, and no command beside it that writes",
        ),
    }
}

/// Tries everything, and clears up.
pub(crate) async fn probe(store: &Store, url: &str) -> CheckReport {
    let folder = format!("{}{:032x}", Keys::PROBE, rand::random::<u128>());
    let mut report = CheckReport { url: url.to_owned(), steps: Vec::new(), put_if_absent: None };
    try_all(store, &folder, &mut report).await;
    let since = Instant::now();
    let wrote = report.steps.first().is_some_and(|step| step.outcome == Outcome::Ok);
    let cleared = clear(store, &folder).await;
    // When nothing could be written there is nothing to clear, and that failure says all.
    if wrote {
        report.push("delete", since, cleared);
    }
    report
}

async fn try_all(store: &Store, folder: &str, report: &mut CheckReport) {
    let key = format!("{folder}/object");
    let bytes = Bytes::from_static(b"hindsight tries out this store; this object may be deleted\n");

    let since = Instant::now();
    if !report.push("write", since, store.put(&key, bytes.clone().into()).await) {
        return;
    }
    let since = Instant::now();
    let read = match store.get(&key).await {
        Ok(Some(found)) if found == bytes => Ok(()),
        Ok(Some(_)) => Err(Error::damaged(&key, "it reads differently from what was written just before")),
        Ok(None) => Err(Error::Missing { key: key.clone() }),
        Err(error) => Err(error),
    };
    report.push("read", since, read);

    let since = Instant::now();
    let listed = match store.list(folder).await {
        Ok(entries) if entries.iter().any(|entry| entry.key == key) => Ok(()),
        Ok(_) => Err(Error::Refused("a listing does not show what was written just before".to_owned())),
        Err(error) => Err(error),
    };
    report.push("list", since, listed);

    let since = Instant::now();
    report.push("upload in parts", since, upload(store, &format!("{folder}/parts"), &bytes).await);

    let since = Instant::now();
    match put_if_absent(store, folder).await {
        Ok(ability) => {
            report.put_if_absent = Some(ability);
            report.push("put if absent", since, Ok(()));
            if let (false, Some(step)) = (ability == PutIfAbsent::Atomic, report.steps.last_mut()) {
                let (why, hint) = warning(ability);
                (step.outcome, step.why, step.hint) = (Outcome::Warning, why.to_owned(), hint.to_owned());
            }
        }
        Err(error) => {
            report.push("put if absent", since, Err(error));
        }
    }
}

async fn upload(store: &Store, key: &str, bytes: &Bytes) -> Result<()> {
    let fail = |error: object_store::Error| store.failed("write", key, &error);
    let mut upload = store.upload(key).await?;
    upload.put_part(bytes.clone().into()).await.map_err(fail)?;
    upload.complete().await.map_err(fail)?;
    match store.get(key).await? {
        Some(found) if found == *bytes => Ok(()),
        _ => Err(Error::damaged(key, "it reads differently from what was uploaded just before")),
    }
}

/// Finds out whether the store refuses to create what exists, also under a race.
async fn put_if_absent(store: &Store, folder: &str) -> Result<PutIfAbsent> {
    let key = format!("{folder}/once");
    match store.try_create(&key, Bytes::from_static(b"first")).await {
        Ok(true) => {}
        Ok(false) => return Ok(PutIfAbsent::Absent),
        // Writing went well before, so it is this kind of request that the store does not take.
        Err(error) => {
            return match &error {
                Error::Store { failure, .. }
                    if !matches!(failure.kind, FailureKind::Unreachable | FailureKind::Busy | FailureKind::Full) =>
                {
                    tracing::debug!(%error, "the store takes no put-if-absent");
                    Ok(PutIfAbsent::Absent)
                }
                _ => Err(error),
            };
        }
    }
    if store.try_create(&key, Bytes::from_static(b"second")).await? {
        return Ok(PutIfAbsent::Absent);
    }
    for round in 0..ROUNDS {
        let key = format!("{folder}/race-{round}");
        let racers = (0..RACERS).map(|racer| store.try_create(&key, Bytes::from(format!("racer {racer}"))));
        let mut winners = 0;
        for result in join_all(racers).await {
            winners += u32::from(result?);
        }
        if winners > 1 {
            return Ok(PutIfAbsent::Racy);
        }
    }
    Ok(PutIfAbsent::Atomic)
}

async fn clear(store: &Store, folder: &str) -> Result<()> {
    let keys: Vec<_> = match store.list(folder).await {
        Ok(entries) => entries.into_iter().map(|entry| entry.key).collect(),
        // Without the right to list, the names are known all the same.
        Err(_) => {
            let races = (0..ROUNDS).map(|round| format!("race-{round}"));
            let names = ["object", "parts", "once"].map(str::to_owned).into_iter().chain(races);
            names.map(|name| format!("{folder}/{name}")).collect()
        }
    };
    let clearing = tokio::time::timeout(Duration::from_secs(60), store.delete_all(keys)).await;
    clearing.unwrap_or_else(|_| Err(Error::cut_off("delete", folder)))
}
