//! What there is to do when there is nothing to do.

use anyhow::Result;

use super::{Bench, Rounds, say};
use crate::hindsight::Hindsight;

/// Rounds of each.
const ROUNDS: usize = 5;

/// Measures backup and restore of an empty cluster, and `list` of a full repository.
pub async fn measure(bench: &mut Bench, empty: &Hindsight) -> Result<()> {
    say("empty backup, empty restore, list");
    bench.target.clear().await?;
    let [mut backup, mut restore, mut list] = [(); 3].map(|()| Rounds::default());
    for _ in 0..ROUNDS {
        backup.push(empty.run(&bench.target, &["backup"]).await?.spent);
        let snapshot = empty.newest_snapshot().await?;
        restore.push(empty.run(&bench.target, &["restore", &snapshot, "--yes"]).await?.spent);
        list.push(bench.hindsight.run(&bench.source, &["list"]).await?.spent);
    }
    bench.table.add("empty backup", backup.wall() * 1e3, "ms", backup.note());
    bench.table.add("empty restore", restore.wall() * 1e3, "ms", restore.note());
    bench.table.add("list", list.wall() * 1e3, "ms", list.note());
    Ok(())
}
