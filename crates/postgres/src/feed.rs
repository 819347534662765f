//! From what comes over the network to work that takes its time.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use hindsight_engine::{EngineError, FailureKind, Result};
use tokio::sync::mpsc;

/// Pieces that wait for the work.
const WAITING: usize = 1;

/// Pieces as they come in. They end also where the source fails.
pub(crate) struct Feed(mpsc::Receiver<Bytes>);

impl Iterator for Feed {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.0.blocking_recv()
    }
}

/// Hands what comes on to `work`, on a thread where that may take its time.
///
/// # Errors
/// The source's failure, which ends the work; else that of the work.
pub(crate) async fn feed<T: Send + 'static>(
    mut source: impl Stream<Item = Result<Bytes>> + Unpin,
    work: impl FnOnce(&mut Feed) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (pieces, waiting) = mpsc::channel(WAITING);
    let working = tokio::task::spawn_blocking(move || work(&mut Feed(waiting)));
    let mut failed = None;
    while let Some(piece) = source.next().await {
        match piece {
            Ok(piece) => {
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(pieces);
    let done = working.await.map_err(|error| EngineError::new(FailureKind::Local, format!("work ended: {error}")))?;
    match failed {
        Some(failed) => Err(failed),
        None => done,
    }
}

/// Work that takes its time.
///
/// # Errors
/// Those of the work.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| EngineError::new(FailureKind::Local, format!("work ended: {error}")))?
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn pieces(failing: bool) -> impl Stream<Item = Result<Bytes>> + Unpin {
        let end = failing.then(|| Err(EngineError::damaged("the source")));
        stream::iter([Ok(Bytes::from_static(b"a")), Ok(Bytes::from_static(b"b"))].into_iter().chain(end))
    }

    #[tokio::test]
    async fn the_first_failure_is_told() {
        let all = |feed: &mut Feed| Ok(feed.map(|piece| piece.len()).sum::<usize>());
        assert_eq!(feed(pieces(false), all).await.unwrap(), 2);
        assert_eq!(feed(pieces(true), all).await.unwrap_err().what, "the source");
        let fails = |_: &mut Feed| Err::<(), _>(EngineError::damaged("the work"));
        assert_eq!(feed(pieces(false), fails).await.unwrap_err().what, "the work");
    }
}
