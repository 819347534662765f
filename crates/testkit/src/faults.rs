//! Faults of a server of objects, and the number of requests it got.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::{Method, Uri};
use tokio::sync::watch;

/// Requests by the right they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum S3Op {
    /// Reading an object or its attributes (`s3:GetObject`).
    Get,
    /// Writing an object, in one piece, in parts or as a copy (`s3:PutObject`).
    Put,
    /// Deleting one object or several (`s3:DeleteObject`).
    Delete,
    /// Listing (`s3:ListBucket`).
    List,
}

impl S3Op {
    /// What a request asks for, in path style. A bucket has one part in its path, an object more.
    pub(crate) fn of(method: &Method, uri: &Uri) -> Self {
        let object = uri.path().trim_matches('/').contains('/');
        let query = uri.query().unwrap_or_default();
        match *method {
            Method::GET | Method::HEAD if object => Self::Get,
            Method::GET | Method::HEAD => Self::List,
            Method::DELETE if !query.contains("uploadId=") => Self::Delete,
            Method::POST if !object && query.starts_with("delete") => Self::Delete,
            _ => Self::Put,
        }
    }
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 403 `AccessDenied`: for good.
    Denied,
    /// 500 `InternalError`, nothing done: clients try again.
    Error,
    /// 503 `SlowDown`, nothing done: clients try again.
    Busy,
    /// It is done, but the connection breaks before the answer: clients can't know.
    LostAnswer,
    /// It is done after this time.
    Delay(Duration),
}

/// A handle to the faults of one server; clones are the same handle.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    hanging: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Default)]
struct State {
    denied: HashSet<S3Op>,
    planned: Vec<Planned>,
    counts: HashMap<S3Op, u64>,
}

#[derive(Debug)]
struct Planned {
    op: S3Op,
    part: String,
    left: u32,
    fault: Fault,
}

impl Faults {
    /// The next `count` requests of a kind fail with [`Fault::Error`].
    pub fn fail_next(&self, op: S3Op, count: u32) {
        self.plan(op, "", count, Fault::Error);
    }

    /// The next `count` requests of a kind whose path and query (percent-encoded) contain `part` meet `fault`. Faults
    /// that fit the same request strike one request each, in the order they were planned.
    pub fn plan(&self, op: S3Op, part: &str, count: u32, fault: Fault) {
        self.state().planned.push(Planned { op, part: part.to_owned(), left: count, fault });
    }

    /// Refuses all requests of a kind, as a missing right does, until [`Faults::clear`].
    pub fn deny(&self, op: S3Op) {
        self.state().denied.insert(op);
    }

    /// Whether requests are taken and not answered, as by a frozen server; they are once it is over.
    pub fn hang(&self, hangs: bool) {
        self.hanging.send_replace(hangs);
    }

    pub(crate) async fn wait_while_hanging(&self) {
        // The sender is in `self`.
        let _ = self.hanging.subscribe().wait_for(|hangs| !hangs).await;
    }

    /// Takes back all that was planned or denied.
    pub fn clear(&self) {
        self.hang(false);
        let mut state = self.state();
        state.denied.clear();
        state.planned.clear();
    }

    /// How many requests of a kind there were so far, those that failed included.
    pub fn count(&self, op: S3Op) -> u64 {
        self.state().counts.get(&op).copied().unwrap_or(0)
    }

    /// Counts a request and says what befalls it.
    pub(crate) fn strike(&self, op: S3Op, uri: &Uri) -> Option<Fault> {
        let mut state = self.state();
        *state.counts.entry(op).or_default() += 1;
        if state.denied.contains(&op) {
            return Some(Fault::Denied);
        }
        let text = uri.path_and_query().map_or("", |text| text.as_str());
        let fits = |planned: &&mut Planned| planned.op == op && planned.left > 0 && text.contains(&planned.part);
        let planned = state.planned.iter_mut().find(fits)?;
        planned.left -= 1;
        Some(planned.fault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
