//! Base backups, and restores of what is in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Scene, Taken, child, mib, said, say};
use crate::child::Ended;
use crate::machine::cores;
use crate::measure::Rounds;
use crate::table::Table;

/// Measures backups and restores in turns with those of others.
pub(super) async fn measure(scene: &Scene, table: &mut Table) -> Result<Taken> {
    let [mut own, mut others, mut threaded, mut peer] = [(); 4].map(|()| Rounds::default());
    let (mut peak, mut other_peak) = (0, 0);
    let files = scene.folder.path().join("basebackup");
    let mut peer_there = !said("pgbackrest", &["version"]).is_empty();
    if !peer_there {
        say("pgbackrest is not in PATH: not compared with");
    }
    for round in 0..scene.rounds {
        say(&format!("base backups: round {} of {}", round + 1, scene.rounds));
        scene.server.sql("CHECKPOINT").await?;
        // The fairer rival first: what is restored later is of the other.
        threaded.push(basebackup(scene, &files, &format!("level={},workers={}", scene.level, cores())).await?.spent);
        let other = basebackup(scene, &files, &format!("level={}", scene.level)).await?;
        if round > 0 {
            scene.hindsight.forget_snapshots().await?;
        }
        let ended = scene.hindsight(&["backup"]).await?;
        if peer_there {
            match pgbackrest(scene).await {
                Ok(ended) => peer.push(ended.spent),
                Err(error) => {
                    say(&format!("not compared with pgbackrest: {error:#}"));
                    peer_there = false;
                }
            }
        }
        peak = peak.max(ended.peak);
        other_peak = other_peak.max(other.peak);
        own.push(ended.spent);
        others.push(other.spent);
    }
    let size = scene.size;
    let stored = scene.hindsight.stored_bytes("/snapshots/")?;
    let level = scene.level;
    table.add("postgres: backup", own.wall(), "s", own.note());
    table.add("postgres: backup: rate", size / own.wall(), "MiB/s", "of data files");
    table.add("postgres: backup: client", own.client() / size * 1024.0, "core-s/GiB", "");
    table.add("postgres: backup: peak memory", mib(peak), "MiB", "resident, highest of all rounds");
    table.add("postgres: backup: stored", mib(stored), "MiB", "all objects of the snapshot");
    let name = format!("postgres: pg_basebackup, client-zstd:{level}");
    table.add(&name, others.wall(), "s", others.note());
    table.add(format!("{name}: peak memory"), mib(other_peak), "MiB", "resident, highest of all rounds");
    table.add(format!("{name}: stored"), mib(bytes_in(&files)?), "MiB", "with its log");
    let threads = format!("postgres: pg_basebackup, client-zstd:{level}, {} workers", cores());
    table.add(&threads, threaded.wall(), "s", threaded.note());
    table.add("RATIO postgres: backup / pg_basebackup", own.wall() / others.wall(), "x", "");
    table.add("RATIO postgres: backup / pg_basebackup with workers", own.wall() / threaded.wall(), "x", "");
    if peer_there {
        table.add("postgres: pgbackrest backup", peer.wall(), "s", peer.note());
        table.add("RATIO postgres: backup / pgbackrest", own.wall() / peer.wall(), "x", "");
    }
    let taken = Taken { files, snapshot: scene.hindsight.newest_snapshot().await? };
    restores(scene, &taken, table, others.wall()).await?;
    Ok(taken)
}

async fn restores(scene: &Scene, taken: &Taken, table: &mut Table, basebackup: f64) -> Result<()> {
    let [mut own, mut unchecked, mut unpacked, mut whole] = [(); 4].map(|()| Rounds::default());
    let mut peak = 0;
    for round in 0..scene.rounds {
        say(&format!("restores of a base: round {} of {}", round + 1, scene.rounds));
        let (unpacking, all) = scene.unpack(taken, &[]).await?;
        let ended = scene.restore(&[&taken.snapshot]).await?;
        unchecked.push(scene.restore(&[&taken.snapshot, "--skip-check"]).await?.spent);
        peak = peak.max(ended.peak);
        own.push(ended.spent);
        unpacked.push(unpacking);
        whole.push(all);
    }
    table.add("postgres: restore of a base", own.wall(), "s", own.note());
    table.add("postgres: restore of a base: client", own.client() / scene.size * 1024.0, "core-s/GiB", "");
    table.add("postgres: restore of a base: peak memory", mib(peak), "MiB", "resident, highest of all rounds");
    let note = format!("the data are not read through beforehand; {}", unchecked.note());
    table.add("postgres: restore of a base with --skip-check", unchecked.wall(), "s", note);
    table.add("postgres: untar of pg_basebackup's files", unpacked.wall(), "s", unpacked.note());
    let note = format!("until the server has recovered and stopped; {}", whole.note());
    table.add("postgres: untar and recovery", whole.wall(), "s", note);
    table.add("RATIO postgres: restore / untar and recovery", own.wall() / whole.wall(), "x", "reads all twice");
    table.add(
        "RATIO postgres: restore with --skip-check / untar and recovery",
        unchecked.wall() / whole.wall(),
        "x",
        "",
    );
    let note = "the backup of the one and the untar of it against the restore of the other";
    table.add(
        "RATIO postgres: restore / pg_basebackup and untar",
        own.wall() / (basebackup + unpacked.wall()),
        "x",
        note,
    );
    Ok(())
}

async fn basebackup(scene: &Scene, files: &Path, detail: &str) -> Result<Ended> {
    if files.exists() {
        std::fs::remove_dir_all(files)?;
    }
    let mut command = scene.server.program("pg_basebackup");
    command.args(["--format=tar", "--wal-method=stream", "--checkpoint=fast"]);
    command.arg(format!("--compress=client-zstd:{detail}")).arg("--pgdata").arg(files);
    child::start(command, &[])?.end().await
}

/// A full backup by pgBackRest into a new repository, with as many processes as there are cores and no archive.
async fn pgbackrest(scene: &Scene) -> Result<Ended> {
    let folder = scene.folder.path().join("pgbackrest");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir(&folder)?;
    let run = |verb: &str| {
        let mut command = Command::new("pgbackrest");
        command.args(["--stanza=bench", "--config=/dev/null", "--pg1-user=postgres"]);
        for option in ["repo1-path", "log-path", "lock-path"] {
            command.arg(format!("--{option}={}", folder.display()));
        }
        command.arg(format!("--pg1-path={}", scene.server.data_dir().display()));
        command.arg(format!("--pg1-socket-path={}", scene.server.socket_folder().display()));
        command.arg(format!("--pg1-port={}", scene.server.port()));
        if verb == "backup" {
            command.args([
                "--type=full",
                "--start-fast",
                "--no-archive-check",
                "--repo1-retention-full=1",
                "--compress-type=zst",
            ]);
            command.arg(format!("--compress-level={}", scene.level)).arg(format!("--process-max={}", cores()));
        }
        command.arg(verb);
        child::start(command, &[])
    };
    run("stanza-create")?.end().await?;
    run("backup")?.end().await
}

fn bytes_in(folder: &PathBuf) -> Result<u64> {
    let files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len()));
    files.sum()
}
