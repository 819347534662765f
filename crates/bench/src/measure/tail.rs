//! Reading the server's log as it is written, and compressing it, with nothing else done: the least that a capture costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use bson::{RawDocumentBuf, Timestamp, doc};
use futures::StreamExt as _;
use mongodb::Client;
use mongodb::options::{CursorType, ReadConcern};
use rustix::time::{ClockId, clock_gettime};

use super::backup::compressor;

/// As in slices.
const FRAME: usize = 4 << 20;

/// Follows the log on a thread of its own.
pub struct Tail {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<f64>>,
}

impl Tail {
    /// Begins to read at a moment that the log still has.
    pub fn start(uri: String, from: Timestamp, level: i32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(follow(&uri, from, level, &told))?;
            let spent = clock_gettime(ClockId::ThreadCPUTime);
            Ok(spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9)
        });
        Self { stop, thread }
    }

    /// Ends when nothing more comes; gives the processor seconds.
    pub async fn stop(self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        match tokio::task::spawn_blocking(|| self.thread.join()).await? {
            Ok(spent) => spent,
            Err(_) => bail!("the thread that reads the log ended"),
        }
    }
}

async fn follow(uri: &str, from: Timestamp, level: i32, stop: &AtomicBool) -> Result<()> {
    let mut compressor = compressor(level)?;
    let client = Client::with_uri_str(uri).await?;
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let cursor = oplog.find(doc! {"ts": {"$gte": from}}).cursor_type(CursorType::TailableAwait);
    let cursor = cursor.max_await_time(Duration::from_secs(1)).read_concern(ReadConcern::majority());
    let mut batches = cursor.batch().await?;
    let mut frame = Vec::with_capacity(FRAME);
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let documents = batch.doc_slices()?.as_bytes();
        frame.extend_from_slice(documents);
        if frame.len() >= FRAME {
            compressor.compress(&frame)?;
            frame.clear();
        }
        // An empty array has five bytes.
        if documents.len() <= 5 && stop.load(Ordering::Relaxed) {
            break;
        }
    }
    compressor.compress(&frame)?;
    Ok(())
}
