//! What there is to do when there is nothing to do.

use anyhow::{Context as _, Result};
use hindsight_format::{Point, Position, SliceName};
use jiff::Timestamp;

use super::{Bench, Rounds, say};
use crate::hindsight::Hindsight;

/// Slices in a long history.
const SLICES: u64 = 100_000;
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

    say(&format!("list of {SLICES} slices"));
    let slices = lengthen(empty).await?;
    let mut long = Rounds::default();
    for _ in 0..ROUNDS {
        long.push(empty.run(&bench.target, &["list"]).await?.spent);
    }
    bench.table.add(format!("list of {slices} slices"), long.wall() * 1e3, "ms", long.note());
    Ok(())
}

/// Gives the repository a history of many slices, which follow each other after its newest snapshot. To list them their
/// names suffice, so they are empty.
async fn lengthen(empty: &Hindsight) -> Result<usize> {
    let cluster = empty.cluster().await?;
    let snapshot = cluster.snapshots().await?.pop().context("there is no snapshot")?;
    let (stream, part) = snapshot.streams.first_key_value().context("a snapshot without a log")?;
    let mut start = part.last.clone();
    let first = start.time.as_second();
    for number in 1..=SLICES {
        let second = first + number as i64 * 5;
        let position = Position::new(format!("{second:010}.{:010}", 1), start.position.tag())?;
        let end = Point { time: Timestamp::from_second(second)?, position };
        let name = SliceName { start, end: end.clone(), fence: 1 };
        let path = empty.path().join(cluster.keys().slice(stream, snapshot.epoch, &name));
        if number == 1 {
            std::fs::create_dir_all(path.parent().context("a key without a folder")?)?;
        }
        std::fs::File::create(path)?;
        start = end;
    }
    Ok(cluster.slices().await?.len())
}
