//! Leases: the right to be the only one who does a thing, kept as a numbered chain of small records.
//!
//! The highest number is what counts. Taking, renewing and releasing create the next number, which
//! only one writer can do; whoever created one then looks whether it is the highest indeed, for a
//! number that was cleared away could be created again by someone who slept meanwhile.
//!
//! A lease that is not renewed runs out. Clocks of two machines may differ, so a clock alone takes
//! nobody's lease away: either the state stayed the same while this process watched it for the
//! whole time to live, or the clock says that it ran out and a third of that time of watching
//! showed no sign of life. A holder whose process is gone from this very machine loses it at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hindsight_format::{LeaseHolder, LeaseRecord, LeaseState, Operation, check_name};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::cluster::ClusterRepository;
use crate::error::{Error, Result};

/// How long a lease lasts without renewal, unless the caller has a reason for another time.
pub const DEFAULT_TTL: Duration = Duration::from_secs(20);

/// How far past its end a lease must be by the clock, for differences between clocks.
const CLOCK_MARGIN: SignedDuration = SignedDuration::from_secs(2);
/// A chain moves on while it is read; more often than this in a row is no coincidence.
const ATTEMPTS: u32 = 20;
/// A store that does not answer is asked this often to take a lease back, with pauses that grow by this much.
const ANSWERS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);

/// When a state of a lease was seen first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    number: u64,
    since: Instant,
}

/// What came of the attempt to take a lease.
#[derive(Debug)]
pub enum Acquired {
    /// It is ours.
    Held(Lease),
    /// Somebody else has it.
    Busy(LeaseRecord),
}

/// A lease that is held. It is renewed in the background until it is released or dropped; when
/// dropped it runs out by itself.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    renewal: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    cluster: ClusterRepository,
    name: String,
    ttl: Duration,
    fence: AtomicU64,
    lost: CancellationToken,
    /// Why it could not be renewed last.
    failure: Mutex<Option<Error>>,
    detail: Mutex<String>,
    /// The state that was created first, as a pattern for the next ones.
    first: LeaseRecord,
}

/// Whether a lease that is marked as held is.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Alive,
    /// Its time is over by the clock; watching it for this long will tell.
    Doubtful(Duration),
    Dead,
}

/// What came of an attempt to renew.
enum Renewal {
    Renewed,
    /// Another number was there that this lease had created, without an answer: try again.
    Adopted,
    Taken,
}

impl ClusterRepository {
    /// The newest state of a lease; none when it was never taken. Whether a state that says `held`
    /// is still alive is for [`ClusterRepository::lease_is_live`].
    pub async fn lease_state(&self, name: &str) -> Result<Option<LeaseRecord>> {
        check_name(name, "lease name")?;
        let folder = self.keys().leases(name);
        for _ in 0..ATTEMPTS {
            let Some(&number) = self.numbers(&folder, |number| self.keys().lease(name, number)).await?.last() else {
                return Ok(None);
            };
            let key = self.keys().lease(name, number);
            // Gone again: the chain moved on by more than it keeps.
            let Some(record) = self.repository().read::<LeaseRecord>(&key).await? else { continue };
            if record.number != number {
                return Err(Error::damaged(&key, format!("it is state {} of a lease", record.number)));
            }
            return Ok(Some(record));
        }
        Err(Error::cut_off("read", &folder))
    }

    /// Whether this state of a lease stands for somebody who is at work, as far as this process can
    /// tell now. The longer it has been watched, the better it can.
    pub fn lease_is_live(&self, name: &str, record: &LeaseRecord) -> bool {
        record.state == LeaseState::Held && self.standing(name, record) == Standing::Alive
    }

    /// Takes a lease, if it is free or its holder is gone. To wait for it, call this again and
    /// again: what is seen by one call counts for the next ones. Where the holder's time is over by
    /// the clock but it was not watched before, a call takes a third of its time to live.
    pub async fn acquire(&self, name: &str, operation: Operation, ttl: Duration) -> Result<Acquired> {
        let holder = holder();
        let acquired_at = Timestamp::now();
        let mut watched = None;
        for _ in 0..ATTEMPTS {
            let newest = self.lease_state(name).await?;
            if let Some(record) = newest.as_ref().filter(|record| record.state == LeaseState::Held) {
                match self.standing(name, record) {
                    Standing::Alive => return Ok(Acquired::Busy(record.clone())),
                    // It moved on while it was watched: its clock is wrong, but it is at work.
                    Standing::Doubtful(_) if watched.is_some_and(|number| number != record.number) => {
                        return Ok(Acquired::Busy(record.clone()));
                    }
                    Standing::Doubtful(wait) => {
                        watched = Some(record.number);
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                    Standing::Dead => {
                        tracing::info!(lease = name, holder = %record.holder.host, pid = record.holder.pid,
                            "takes over a lease that ran out");
                    }
                }
            }
            let number = newest.map_or(0, |record| record.number) + 1;
            let started = Instant::now();
            let record = LeaseRecord {
                number,
                state: LeaseState::Held,
                holder: holder.clone(),
                operation: operation.clone(),
                acquired_at,
                renewed_at: Timestamp::now(),
                ttl_secs: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1),
            };
            match self.append(name, &record).await {
                Ok(true) => return Ok(Acquired::Held(Lease::start(self.clone(), name, ttl, record, started))),
                Ok(false) => {}
                Err(error) => {
                    self.withdraw(name, &record).await;
                    return Err(error);
                }
            }
        }
        Err(Error::cut_off("create", &self.keys().leases(name)))
    }

    /// Gives back what may have been taken without an answer: nobody would renew it, and others would wait for it
    /// to run out. As far as the store lets it.
    async fn withdraw(&self, name: &str, taken: &LeaseRecord) {
        for attempt in 0..ANSWERS {
            tokio::time::sleep(PAUSE * attempt).await;
            match self.lease_state(name).await {
                Ok(Some(newest)) if newest.holder.id == taken.holder.id && newest.state == LeaseState::Held => {
                    let (number, renewed_at) = (newest.number + 1, Timestamp::now());
                    let released = LeaseRecord { number, state: LeaseState::Released, renewed_at, ..newest };
                    if self.append(name, &released).await.is_ok() {
                        return;
                    }
                }
                Ok(_) => return,
                Err(error) => tracing::debug!(lease = name, %error, "cannot be given back yet"),
            }
        }
    }

    /// Adds a state to the chain. `false`: somebody else did.
    async fn append(&self, name: &str, record: &LeaseRecord) -> Result<bool> {
        let key = self.keys().lease(name, record.number);
        if !self.repository().create_record(&key, record).await? {
            return Ok(false);
        }
        let numbers = self.numbers(&self.keys().leases(name), |number| self.keys().lease(name, number)).await?;
        if numbers.last() == Some(&record.number) {
            return Ok(true);
        }
        self.repository().store().delete(&key).await?;
        Ok(false)
    }

    fn standing(&self, name: &str, record: &LeaseRecord) -> Standing {
        let now = Instant::now();
        let since = {
            let mut observations = self.repository().observations();
            let seen = observations.entry(self.keys().leases(name)).or_insert(Observation { number: 0, since: now });
            if seen.number != record.number {
                *seen = Observation { number: record.number, since: now };
            }
            seen.since
        };
        if is_gone(&record.holder) {
            return Standing::Dead;
        }
        let ttl = Duration::from_secs(record.ttl_secs.into());
        let watched = now.saturating_duration_since(since);
        if watched >= ttl {
            return Standing::Dead;
        }
        let age = Timestamp::now().duration_since(record.renewed_at);
        if age <= SignedDuration::from_secs(record.ttl_secs.into()) + CLOCK_MARGIN {
            return Standing::Alive;
        }
        match (ttl / 3 + Duration::from_secs(1)).checked_sub(watched) {
            None | Some(Duration::ZERO) => Standing::Dead,
            Some(rest) => Standing::Doubtful(rest),
        }
    }
}

/// This process, as the holder of one lease. The id is new each time, so that a lease is never
/// mistaken for another one that the same process took later.
fn holder() -> LeaseHolder {
    LeaseHolder {
        id: format!("{:032x}", rand::random::<u128>()),
        host: host_name(),
        pid: std::process::id(),
        pid_space: pid_space(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The name of this host, as records tell it.
pub fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// Within which process numbers mean the same: this boot of this machine, and the PID namespace
/// (containers may share a host name, but not their process numbers).
fn pid_space() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// Whether the holder is surely dead: its process number is not in use where it was.
fn is_gone(holder: &LeaseHolder) -> bool {
    if holder.pid_space.is_none() || holder.pid_space != pid_space() {
        return false;
    }
    let pid = i32::try_from(holder.pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

impl Lease {
    fn start(cluster: ClusterRepository, name: &str, ttl: Duration, first: LeaseRecord, started: Instant) -> Self {
        let shared = Arc::new(Shared {
            cluster,
            name: name.to_owned(),
            ttl,
            fence: AtomicU64::new(first.number),
            lost: CancellationToken::new(),
            failure: Mutex::new(None),
            detail: Mutex::new(first.operation.detail.clone()),
            first,
        });
        let renewal = tokio::spawn(keep(shared.clone(), started + ttl).in_current_span());
        Self { shared, renewal: Some(renewal) }
    }

    /// The fencing token: the number of the state that is held. It grows with every renewal.
    pub fn fence(&self) -> u64 {
        self.shared.fence.load(Ordering::Acquire)
    }

    /// Name of the lease.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The id of this holding of the lease: random, and never used again.
    pub fn holder_id(&self) -> &str {
        &self.shared.first.holder.id
    }

    /// Cancelled as soon as the lease is not held any more: somebody else took it, it could not be
    /// renewed in time, or it was released or dropped.
    pub fn lost(&self) -> CancellationToken {
        self.shared.lost.clone()
    }

    /// Why it could not be renewed last; none where it could, where somebody else took it, and when it was asked before.
    pub fn take_failure(&self) -> Option<Error> {
        self.shared.failure().take()
    }

    /// One line on how far the work is; stored with the next renewal.
    pub fn set_detail(&self, detail: String) {
        *self.shared.detail.lock().unwrap_or_else(PoisonError::into_inner) = detail;
    }

    /// Gives the lease back. One that was lost already is fine.
    pub async fn release(mut self) -> Result<()> {
        if let Some(renewal) = self.renewal.take() {
            renewal.abort();
            // An attempt that was cut off is found by reading the chain.
            renewal.await.ok();
        }
        if self.shared.lost.is_cancelled() {
            return Ok(());
        }
        let mut failures = 0;
        for _ in 0..ATTEMPTS {
            match self.give_back().await {
                Ok(true) => break,
                Ok(false) => {}
                // What has just failed for want of room may be about to give it back.
                Err(error) if (error.is_retryable() || error.is_full()) && failures < ANSWERS => {
                    failures += 1;
                    tokio::time::sleep(PAUSE * failures).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// `false`: the chain moved on meanwhile.
    async fn give_back(&self) -> Result<bool> {
        let Some(newest) = self.shared.mine().await? else { return Ok(true) };
        let released = self.shared.next(newest, LeaseState::Released);
        if !self.shared.cluster.append(&self.shared.name, &released).await? {
            return Ok(false);
        }
        if let Err(error) = self.shared.clear_old().await {
            tracing::debug!(%error, "old states of a lease stay for the next holder to clear");
        }
        Ok(true)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
        self.shared.lost.cancel();
    }
}

/// Renews until the lease is lost. Wherever it waits, it waits no longer than the lease lasts.
async fn keep(shared: Arc<Shared>, mut ends: Instant) {
    let mut renewed_at = shared.first.renewed_at;
    let mut pause = shared.ttl / 3;
    let mut doubtful = false;
    loop {
        tokio::time::sleep_until(ends.min(Instant::now() + pause)).await;
        // The monotonic clock stands still while a machine is suspended; the other one does not.
        let by_clock = Timestamp::now().duration_since(renewed_at);
        if Instant::now() >= ends || by_clock > SignedDuration::try_from(shared.ttl).unwrap_or(SignedDuration::MAX) {
            tracing::warn!(lease = %shared.name, "could not be renewed in time");
            break;
        }
        let (started, now) = (Instant::now(), Timestamp::now());
        let limit = ends.min(started + shared.ttl / 3);
        match tokio::time::timeout_at(limit, shared.renew(doubtful)).await {
            Ok(Ok(Renewal::Renewed)) => {
                shared.failure().take();
                (ends, renewed_at) = (started + shared.ttl, now);
                (pause, doubtful) = (shared.ttl / 3, false);
            }
            Ok(Ok(Renewal::Adopted)) => pause = Duration::ZERO,
            Ok(Ok(Renewal::Taken)) => {
                shared.failure().take();
                tracing::warn!(lease = %shared.name, "was taken over by another process");
                break;
            }
            Ok(Err(error)) => {
                tracing::warn!(lease = %shared.name, %error, "could not be renewed, tries again");
                *shared.failure() = Some(error);
                (pause, doubtful) = (shared.ttl / 10, true);
            }
            Err(_) => {
                let waited = started.elapsed().as_secs();
                tracing::warn!(lease = %shared.name, "could not be renewed for {waited} s, tries again");
                let folder = shared.cluster.keys().leases(&shared.name);
                *shared.failure() = Some(Error::unanswered("renew", &folder, waited));
                (pause, doubtful) = (shared.ttl / 20, true);
            }
        }
    }
    shared.lost.cancel();
}

impl Shared {
    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest state, if this lease made it.
    async fn mine(&self) -> Result<Option<u64>> {
        let newest = self.cluster.lease_state(&self.name).await?;
        let mine = newest.filter(|record| record.holder.id == self.first.holder.id);
        Ok(mine.filter(|record| record.state == LeaseState::Held).map(|record| record.number))
    }

    fn next(&self, number: u64, state: LeaseState) -> LeaseRecord {
        let mut record = self.first.clone();
        record.number = number + 1;
        record.state = state;
        record.renewed_at = Timestamp::now();
        record.operation.detail = self.detail.lock().unwrap_or_else(PoisonError::into_inner).clone();
        record
    }

    /// Creates the next state. After an attempt without an answer (`doubtful`) it looks first
    /// whether that attempt did reach the store.
    async fn renew(&self, doubtful: bool) -> Result<Renewal> {
        if doubtful {
            match self.mine().await? {
                Some(number) => self.fence.store(number, Ordering::Release),
                None => return Ok(Renewal::Taken),
            }
        }
        let next = self.next(self.fence.load(Ordering::Acquire), LeaseState::Held);
        if self.cluster.append(&self.name, &next).await? {
            self.fence.store(next.number, Ordering::Release);
            // Clearing up can wait for the next time.
            if let Err(error) = self.clear_old().await {
                tracing::debug!(lease = %self.name, %error, "old states could not be removed");
            }
            return Ok(Renewal::Renewed);
        }
        match self.mine().await? {
            Some(number) => {
                self.fence.store(number, Ordering::Release);
                Ok(Renewal::Adopted)
            }
            None => Ok(Renewal::Taken),
        }
    }

    /// Removes all states but the two newest.
    async fn clear_old(&self) -> Result<()> {
        let (folder, key) =
            (self.cluster.keys().leases(&self.name), |number| self.cluster.keys().lease(&self.name, number));
        let mut numbers = self.cluster.numbers(&folder, key).await?;
        numbers.truncate(numbers.len().saturating_sub(2));
        let keys = numbers.into_iter().map(key).collect();
        self.cluster.repository().store().delete_all(keys).await
    }
}

#[cfg(test)]
mod tests;
