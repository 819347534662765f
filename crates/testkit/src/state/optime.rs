//! The moment a cluster is at.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bson::{Document, Timestamp, doc};
use mongodb::Client;
use tokio::time::sleep;

/// The optime of the last write: seconds, increment and election term.
///
/// It is majority committed: this waits until all that was written before the call is so. Idle primaries write no-ops
/// of their own about every 10 s, so it grows without anyone's doing.
///
/// # Errors
/// Those of the driver; a server that is no replica set member; no majority within 30 s.
pub async fn last_optime(client: &Client) -> Result<(u32, u32, i64)> {
    let admin = client.database("admin");
    let begun = Instant::now();
    let mut target = None;
    loop {
        let hello = admin.run_command(doc! {"hello": 1}).await?;
        let last_write = hello.get_document("lastWrite")?;
        let target = *target.get_or_insert(optime(last_write, "opTime")?);
        // Right after an election there may be none.
        let majority = last_write.contains_key("majorityOpTime").then(|| optime(last_write, "majorityOpTime"));
        let majority = majority.transpose()?;
        if let Some(majority) = majority.filter(|majority| *majority >= target) {
            return Ok(majority);
        }
        if begun.elapsed() > Duration::from_secs(30) {
            bail!("{target:?} is not majority committed, only {majority:?} is");
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn optime(last_write: &Document, which: &str) -> Result<(u32, u32, i64)> {
    let optime = last_write.get_document(which)?;
    let Timestamp { time, increment } = optime.get_timestamp("ts")?;
    Ok((time, increment, optime.get_i64("t")?))
}
