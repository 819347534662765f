//! The memory that backup and restore take, and nothing else: for sizes at which the limits would take hours to measure.

use anyhow::{Result, ensure};

use super::{Bench, mib, say};

/// Notes the highest memory of one backup and one restore.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    say("memory of a backup and a restore");
    let hindsight = bench.hindsight.another()?;
    let backup = hindsight.run(&bench.source, &["backup"]).await?;
    bench.target.clear().await?;
    let restore = hindsight.run(&bench.target, &["restore", "--time", "latest", "--yes"]).await?;
    let (documents, _) = bench.target.fingerprint(&bench.data).await?;
    ensure!(documents == bench.data.documents(), "{documents} documents were restored");
    for (name, ended) in [("backup", backup), ("restore", restore)] {
        let note = format!("resident; took {:.1} s", ended.spent.wall);
        bench.table.add(
            format!("{name} of {:.0} MiB: peak memory", mib(bench.data.bytes())),
            mib(ended.peak),
            "MiB",
            note,
        );
    }
    Ok(())
}
