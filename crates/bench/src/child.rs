//! Children whose time, processor seconds and memory are measured.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::meter::{Meter, Spent, cpu_seconds, peak_memory};

/// The peak of memory is a mark that only rises: what is missed is what the last moments add.
const POLL: Duration = Duration::from_millis(5);

/// What a child cost.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Time and processor seconds.
    pub spent: Spent,
    /// Most memory that was resident, in bytes.
    pub peak: u64,
}

/// A child at work; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    errors: File,
    meter: Meter,
    peak: Arc<AtomicU64>,
}

/// Starts a command. What it says on stderr is kept, and told when it fails.
pub fn start(mut command: Command, servers: &[u32]) -> Result<Running> {
    let what = format!("{command:?}");
    let meter = Meter::start(servers)?;
    let errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let child = command.spawn().with_context(|| what.clone())?;
    let peak = Arc::new(AtomicU64::new(0));
    let (pid, shared) = (child.id(), Arc::downgrade(&peak));
    std::thread::spawn(move || {
        while let (Some(highest), Some(now)) = (shared.upgrade(), peak_memory(pid)) {
            highest.fetch_max(now, Ordering::Relaxed);
            drop(highest);
            std::thread::sleep(POLL);
        }
    });
    Ok(Running { child, what, errors, meter, peak })
}

impl Running {
    /// Processor seconds that it has used up to now.
    pub fn cpu(&self) -> Result<f64> {
        cpu_seconds(self.child.id())
    }

    /// Waits for its end, which must be a success.
    pub async fn end(mut self) -> Result<Ended> {
        tokio::task::spawn_blocking(move || self.reap()).await?
    }

    /// Asks it to stop (SIGTERM) and waits.
    pub async fn stop(self) -> Result<Ended> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.end().await
    }

    fn reap(&mut self) -> Result<Ended> {
        // Its times can be read until it is waited for.
        waitid(WaitId::Pid(Pid::from_child(&self.child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
        let cpu = self.cpu()?;
        let meter = std::mem::replace(&mut self.meter, Meter::start(&[])?);
        let spent = meter.stop_with(Some(cpu))?;
        let status: ExitStatus = self.child.wait()?;
        if !status.success() {
            let mut said = String::new();
            self.errors.rewind()?;
            self.errors.read_to_string(&mut said)?;
            bail!("{} ended with {status}:\n{said}", self.what);
        }
        Ok(Ended { spent, peak: self.peak.load(Ordering::Relaxed) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The only failure of these is a child that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
