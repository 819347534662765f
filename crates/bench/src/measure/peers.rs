//! What others need for the same work, where their programs are in `PATH`.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Bench, Rounds, mib, say};
use crate::child::{self, Ended};
use crate::machine::cores;
use crate::server::Server;

/// Measures `mongodump` and `mongorestore`.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let missing = |name: &&str| !is_there(name);
    if let Some(name) = ["mongodump", "mongorestore"].iter().find(|name| missing(name)) {
        say(&format!("{name} is not in PATH: not compared with"));
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("hindsight-bench-").tempdir()?;
    let [mut dump, mut restore] = [(); 2].map(|()| Rounds::default());
    let (mut dump_peak, mut restore_peak) = (0, 0);
    for round in 0..bench.rounds {
        say(&format!("mongodump, mongorestore: round {} of {}", round + 1, bench.rounds));
        bench.source.settle().await?;
        let parallel = format!("--numParallelCollections={}", cores());
        let dumped = run("mongodump", &bench.source, folder.path(), &["--oplog", &parallel]).await?;
        bench.target.clear().await?;
        let workers = format!("--numInsertionWorkersPerCollection={}", cores());
        let restored =
            run("mongorestore", &bench.target, folder.path(), &["--oplogReplay", &parallel, &workers]).await?;
        let (documents, _) = bench.target.fingerprint(&bench.data).await?;
        ensure!(documents == bench.data.documents(), "{documents} documents were restored");
        dump.push(dumped.spent);
        restore.push(restored.spent);
        dump_peak = dump_peak.max(dumped.peak);
        restore_peak = restore_peak.max(restored.peak);
    }
    let table = &mut bench.table;
    table.add("mongodump --gzip", dump.wall(), "s", dump.note());
    table.add("mongodump --gzip: peak memory", mib(dump_peak), "MiB", "resident, highest of all rounds");
    table.add("mongorestore --gzip", restore.wall(), "s", restore.note());
    table.add("mongorestore --gzip: peak memory", mib(restore_peak), "MiB", "resident, highest of all rounds");
    Ok(())
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|said| said.status.success())
}

async fn run(program: &str, on: &Server, folder: &Path, more: &[&str]) -> Result<Ended> {
    let mut command = Command::new(program);
    let place = if program == "mongodump" { "--out" } else { "--dir" };
    command.args(["--uri", &on.uri(), "--gzip", place]).arg(folder).args(more);
    child::start(command, &[on.pid()])?.end().await
}
