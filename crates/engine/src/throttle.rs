//! Sparing a server that others need too.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Lets bytes pass at a limited rate, and none at all while it is held. Clones share both.
#[derive(Clone, Debug)]
pub struct Throttle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bytes per second; 0 for any number.
    rate: u64,
    /// When the next bytes may pass.
    next: Mutex<Instant>,
    held: watch::Sender<bool>,
}

impl Throttle {
    /// With a limit of `rate` bytes per second; 0 for none.
    pub fn new(rate: u64) -> Self {
        Self(Arc::new(Inner { rate, next: Mutex::new(Instant::now()), held: watch::Sender::new(false) }))
    }

    /// Stops everything, or lets it go on.
    pub fn hold(&self, held: bool) {
        self.0.held.send_replace(held);
    }

    /// Waits until `bytes` may pass.
    pub async fn pass(&self, bytes: u64) {
        self.0.held.subscribe().wait_for(|held| !held).await.ok();
        if self.0.rate == 0 {
            return;
        }
        let begin = {
            let Ok(mut next) = self.0.next.lock() else { return };
            let begin = (*next).max(Instant::now());
            *next = begin + Duration::from_secs_f64(bytes as f64 / self.0.rate as f64);
            begin
        };
        tokio::time::sleep_until(begin).await;
    }
}

impl Default for Throttle {
    /// Without a limit.
    fn default() -> Self {
        Self::new(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_together_are_no_faster_than_the_limit() {
        let (throttle, begun) = (Throttle::new(10_000), Instant::now());
        let one = |throttle: Throttle| async move {
            for _ in 0..5 {
                throttle.pass(500).await;
            }
        };
        tokio::join!(one(throttle.clone()), one(throttle.clone()));
        // The last 500 bytes pass when those before have had their time.
        assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
        let later = Instant::now();
        throttle.pass(500).await;
        throttle.pass(500).await;
        assert!(later.elapsed() >= Duration::from_millis(50), "what was not used is not saved up");
    }

    #[tokio::test]
    async fn nothing_passes_while_it_is_held() {
        let throttle = Throttle::default();
        throttle.hold(true);
        let (other, passed) = (throttle.clone(), std::sync::atomic::AtomicBool::new(false));
        tokio::join!(
            async {
                throttle.pass(1).await;
                passed.store(true, std::sync::atomic::Ordering::SeqCst);
            },
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert!(!passed.load(std::sync::atomic::Ordering::SeqCst));
                other.hold(false);
            }
        );
        assert!(passed.into_inner());
    }
}
