//! Backup and restore with a repository on an S3 server of this machine: what talking to an object store costs.

use anyhow::{Result, ensure};
use hindsight_testkit::S3Server;

use super::{Bench, Rounds, mib, say};

const BUCKET: &str = "bench";

/// Measures both, in turns with the same in a folder. The server runs in this process; its work is not counted.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = S3Server::start(BUCKET)?;
    let (on_s3, in_folder) = (bench.hindsight.on_s3(&server, BUCKET)?, bench.hindsight.another()?);
    let [mut backup, mut restore, mut folder_backup, mut folder_restore] = [(); 4].map(|()| Rounds::default());
    let (mut backup_peak, mut restore_peak) = (0, 0);
    for round in 0..bench.rounds {
        say(&format!("backup to S3 and back: round {} of {}", round + 1, bench.rounds));
        for (hindsight, (backups, most), (restores, most_again)) in [
            (&on_s3, (&mut backup, &mut backup_peak), (&mut restore, &mut restore_peak)),
            (&in_folder, (&mut folder_backup, &mut 0), (&mut folder_restore, &mut 0)),
        ] {
            bench.source.settle().await?;
            let backup = hindsight.run(&bench.source, &["backup"]).await?;
            bench.target.clear().await?;
            let restore = hindsight.run(&bench.target, &["restore", "--time", "latest", "--yes"]).await?;
            let (documents, _) = bench.target.fingerprint(&bench.data).await?;
            ensure!(documents == bench.data.documents(), "{documents} documents were restored");
            backups.push(backup.spent);
            restores.push(restore.spent);
            *most = backup.peak.max(*most);
            *most_again = restore.peak.max(*most_again);
        }
    }
    let size = mib(bench.data.bytes());
    let table = &mut bench.table;
    table.add("backup to S3", backup.wall(), "s", backup.note());
    table.add("backup to S3: client", backup.client() / size * 1024.0, "core-s/GiB", "");
    table.add("backup to S3: peak memory", mib(backup_peak), "MiB", "resident, highest of all rounds");
    table.add("restore from S3", restore.wall(), "s", restore.note());
    table.add("restore from S3: client", restore.client() / size * 1024.0, "core-s/GiB", "");
    table.add("restore from S3: peak memory", mib(restore_peak), "MiB", "resident, highest of all rounds");
    let note = "the S3 server shares the processor, in the process of the benchmark";
    table.add("RATIO backup to S3 / to a folder", backup.wall() / folder_backup.wall(), "x", note);
    table.add("RATIO restore from S3 / from a folder", restore.wall() / folder_restore.wall(), "x", note);
    Ok(())
}
