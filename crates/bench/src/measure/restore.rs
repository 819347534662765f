//! Restore against raw inserts of the same documents and the building of the same indexes.

use anyhow::{Result, ensure};

use super::{Bench, Rounds, mib, say};
use crate::meter::Meter;

/// Numbers of connections that are tried.
const CONNECTIONS: [usize; 4] = [1, 2, 4, 8];

/// Measures raw inserts with index builds and restores in turns, and notes the ratio.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let size = mib(bench.data.bytes());
    let best = best_connections(bench).await?;
    let snapshot = bench.hindsight.newest_snapshot().await?;
    let [mut insert, mut index, mut restore] = [(); 3].map(|()| Rounds::default());
    let mut raw = f64::INFINITY;
    let mut peak = 0;
    for round in 0..bench.rounds {
        say(&format!("raw insert, restore: round {} of {}", round + 1, bench.rounds));
        bench.target.clear().await?;
        let inserting = Meter::start(&[bench.target.pid()])?;
        bench.target.insert(&bench.data, best).await?;
        let inserted = inserting.stop()?;
        let indexing = Meter::start(&[bench.target.pid()])?;
        bench.target.build_indexes(&bench.data).await?;
        let indexed = indexing.stop()?;
        raw = raw.min(inserted.wall + indexed.wall);
        insert.push(inserted);
        index.push(indexed);

        bench.target.clear().await?;
        let ended = bench.hindsight.run(&bench.target, &["restore", &snapshot, "--yes"]).await?;
        restore.push(ended.spent);
        peak = peak.max(ended.peak);
        let (documents, _) = bench.target.fingerprint(&bench.data).await?;
        ensure!(documents == bench.data.documents(), "{documents} documents were restored");
    }
    let documents = bench.data.documents() as f64;
    let indexes = bench.data.indexes();
    let table = &mut bench.table;
    table.add("raw insert", insert.wall(), "s", format!("{best} connections; {}", insert.note()));
    table.add("raw insert: server", insert.server() / size * 1024.0, "core-s/GiB", "");
    table.add("raw index builds", index.wall(), "s", format!("{indexes} secondary indexes; {}", index.note()));
    table.add("raw insert + index builds", raw, "s", "of the same round");
    table.add("restore", restore.wall(), "s", restore.note());
    table.add("restore: rate", size / restore.wall(), "MiB/s", "of BSON, with its indexes");
    table.add("restore: documents", documents / restore.wall(), "1/s", "");
    table.add("restore: client", restore.client() / size * 1024.0, "core-s/GiB", "");
    table.add("restore: server", restore.server() / size * 1024.0, "core-s/GiB", "inserts and index builds");
    table.add("restore: peak memory", mib(peak), "MiB", "resident, highest of all rounds");
    table.add("RATIO restore / raw insert + index builds", restore.wall() / raw, "x", "");
    let note = "core-seconds of client and server: depends less on what else runs";
    table.add("RATIO restore / raw, processor work", restore.work() / (insert.work() + index.work()), "x", note);
    Ok(())
}

/// The number of connections over which the server takes documents fastest.
async fn best_connections(bench: &mut Bench) -> Result<usize> {
    let mut best = (f64::INFINITY, 1);
    for connections in CONNECTIONS {
        say(&format!("raw insert over {connections} connections"));
        bench.target.clear().await?;
        let meter = Meter::start(&[bench.target.pid()])?;
        bench.target.insert(&bench.data, connections).await?;
        let spent = meter.stop()?;
        let note = format!("{:.2} s; others kept {:.1} cores busy", spent.wall, spent.others);
        let name = format!("raw insert, {connections} connections");
        bench.table.add(name, mib(bench.data.bytes()) / spent.wall, "MiB/s", note);
        if spent.wall < best.0 {
            best = (spent.wall, connections);
        }
    }
    Ok(best.1)
}
