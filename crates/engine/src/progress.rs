//! Progress: told by the job, shown by whoever started it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Where a job tells how far it is. Cheap to clone; all clones tell the same.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    step: watch::Sender<Step>,
    done: AtomicU64,
    warnings: std::sync::Mutex<Vec<String>>,
}

/// A step of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is being done, such as `copying documents`.
    pub name: String,
    /// Bytes that there are to do, where known.
    pub total: Option<u64>,
    /// Steps are numbered so that a change is seen even when names repeat.
    pub number: u32,
}

impl Default for Progress {
    fn default() -> Self {
        let step = Step { name: "starting".to_owned(), total: None, number: 0 };
        Self(Arc::new(Inner { step: watch::Sender::new(step), done: AtomicU64::new(0), warnings: Default::default() }))
    }
}

impl Progress {
    /// Begins a step of `total` bytes, where known.
    pub fn step(&self, name: &str, total: Option<u64>) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.step.send_modify(|step| {
            *step = Step { name: name.to_owned(), total, number: step.number + 1 };
        });
        tracing::debug!(step = name, "step");
    }

    /// Counts `bytes` more as done in the present step.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done in the present step.
    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// The present step.
    pub fn current(&self) -> Step {
        self.0.step.borrow().clone()
    }

    /// A receiver that sees every new step.
    pub fn watch(&self) -> watch::Receiver<Step> {
        self.0.step.subscribe()
    }

    /// Something that the user must hear about although the job goes on.
    pub fn warn(&self, warning: impl Into<String>) {
        let warning = warning.into();
        tracing::warn!("{warning}");
        if let Ok(mut warnings) = self.0.warnings.lock() {
            warnings.push(warning);
        }
    }

    /// All warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.0.warnings.lock().map(|w| w.clone()).unwrap_or_default()
    }
}
