//! The bad night of a PostgreSQL cluster, through the program: data go, the cluster is taken back in place, the agent goes on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hindsight_testkit::{PgState, PgWorkload, PgWorkloadOptions, Postgres, PostgresOptions, postgres_programs};

use super::support::{Cli, captured, same, wait_for};

/// Waits until the agent has taken a snapshot of an epoch, and gives the time from which on it can be restored.
fn based(cli: &Cli, epoch: u64) -> String {
    wait_for(&format!("a snapshot in epoch {epoch}"), || {
        let list = cli.json("list");
        let snapshot = list["snapshots"].as_array()?.iter().find(|snapshot| snapshot["epoch"] == epoch)?;
        Some(snapshot["restore_time"].as_str()?.to_owned())
    })
}

/// Carries out a restore in place, and gives where the old directory is.
fn restored(cli: &Cli, moment: &str, data: &Path) -> PathBuf {
    let line = format!("restore --time {moment} --target-dir {} --in-place", data.display());
    let done = cli.json(&format!("{line} -y"));
    assert_eq!(done["plan"]["into"]["in_place"], true, "{done}");
    assert_eq!(done["restore"]["status"], "success", "{done}");
    let kept = PathBuf::from(done["plan"]["into"]["kept"].as_str().unwrap());
    assert!(kept.join("PG_VERSION").exists(), "{done}");
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_taken_back_in_place_again_and_again() {
    let server = Arc::new(Postgres::start(PostgresOptions::default()).await.unwrap());
    for setting in ["max_prepared_transactions = 20", "max_wal_size = '100MB'"] {
        server.sql(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    server.restart().await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    cli.run("config --set pitr.enabled=true pitr.uploadIntervalSec=1").ends(0, "pitr.enabled=true");
    let log = cli.folder().join("agent.log");
    let agent = cli.start_logged("agent", &log);
    server.sql("CREATE TABLE precious AS SELECT generate_series(1, 5000) AS id").await.unwrap();
    let options = PgWorkloadOptions { tablespaces: true, ..PgWorkloadOptions::default() };
    let workload = PgWorkload::start(Arc::clone(&server), 23, options).await.unwrap();
    workload.goes_on_for(40).await.unwrap();
    let begins = based(&cli, 1);
    server.sql(&format!("SELECT pg_sleep_until('{begins}')")).await.unwrap();
    workload.goes_on_for(80).await.unwrap();
    let paused = workload.pause().await.unwrap();
    let before = PgState::read(&server.uri()).await.unwrap();
    let moment = paused.time.clone();
    paused.resume();
    workload.goes_on_for(40).await.unwrap();
    workload.stop().await.unwrap();

    // The night. Nothing is replaced under a server that runs.
    server.sql("DROP TABLE precious").await.unwrap();
    let lost = PgState::read(&server.uri()).await.unwrap();
    let end = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    captured(&cli, &end);
    let data = server.data_dir();
    let line = format!("restore --time {moment} --target-dir {} --in-place", data.display());
    cli.run(&format!("{line} -y")).ends(3, "is in use by a server that runs").ends(3, "stop it first");
    server.stop().await.unwrap();
    // What is to happen is said in full, and nothing of it is done.
    let plan = cli.ok(&format!("{line} --dry-run"));
    let shown = data.display();
    for words in [
        format!("{shown} becomes {shown}.before-"),
        format!("{shown}.restoring becomes {shown}"),
        "in place\n".to_owned(),
        format!("what is there now, as {shown}.before-"),
        "space_a.restored-".to_owned(),
        "an agent that waits for the server begins anew by itself".to_owned(),
    ] {
        assert!(plan.contains(&words), "no {words:?} in {plan}");
    }
    assert!(!Path::new(&format!("{shown}.restoring")).exists());

    let kept = restored(&cli, &moment, &data);
    let found = PgState::read(&server.uri()).await.unwrap();
    same(&before, &found);
    // The agent goes on with a history of its own.
    based(&cli, 2);
    server.sql("CREATE TABLE after AS SELECT generate_series(1, 1000) AS id").await.unwrap();
    let moment = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let between = PgState::read(&server.uri()).await.unwrap();
    captured(&cli, &moment);
    let status = cli.ok("status");
    assert!(!status.contains("half restored"), "{status}");
    server.sql("DROP TABLE after").await.unwrap();

    // Another night, with a crash.
    server.end_of_others().await.unwrap();
    let again = restored(&cli, &moment, &data);
    let found = PgState::read(&server.uri()).await.unwrap();
    same(&between, &found);
    based(&cli, 3);
    let restores = cli.json("list --restore");
    let restores = restores["restores"].as_array().unwrap();
    assert!(restores.len() == 2 && restores.iter().all(|restore| restore["status"] == "success"), "{restores:?}");
    cli.run("verify").ends(0, "Nothing is damaged.");
    assert_eq!(agent.end("TERM").code, 0, "{}", std::fs::read_to_string(&log).unwrap());
    server.end_of_others().await.unwrap();

    // What was there before is there still: the first cluster, as it was when it was lost.
    let swap = format!("mv '{0}' '{0}.now' && mv '{1}' '{0}'", data.display(), kept.display());
    assert!(again.exists() && Command::new("sh").args(["-c", &swap]).status().unwrap().success());
    server.restart().await.unwrap();
    same(&lost, &PgState::read(&server.uri()).await.unwrap());
}

/// The programs of a server, of which the one that starts it takes its time and then fails.
fn slow_programs(server: &Postgres) -> PathBuf {
    let folder = server.new_folder("programs").unwrap();
    for program in std::fs::read_dir(postgres_programs().unwrap()).unwrap() {
        let program = program.unwrap();
        std::os::unix::fs::symlink(program.path(), folder.join(program.file_name())).unwrap();
    }
    let starts = folder.join("pg_ctl");
    std::fs::remove_file(&starts).unwrap();
    // By another process: what this one has open for writing, children that are being started keep open for a moment.
    let make = format!("printf '#!/bin/sh\\nsleep 20\\nexit 1\\n' > '{0}' && chmod 755 '{0}'", starts.display());
    assert!(Command::new("sh").args(["-c", &make]).status().unwrap().success());
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_once_the_names_are_changed_need_not_be_done_again() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1");
    let log = cli.folder().join("agent.log");
    let agent = cli.start_logged("agent", &log);
    based(&cli, 1);
    server.sql("CREATE TABLE precious AS SELECT generate_series(1, 5000) AS id").await.unwrap();
    let before = PgState::read(&server.uri()).await.unwrap();
    let moment = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    server.sql("DROP TABLE precious").await.unwrap();
    captured(&cli, &moment);
    server.stop().await.unwrap();

    let (data, programs) = (server.data_dir(), slow_programs(&server));
    let (data_dir, programs) = (data.display(), programs.display());
    let line = format!("restore --time {moment} --target-dir {data_dir} --in-place --program {programs} -y");
    let restore = cli.start(&line);
    let kept = wait_for("the other name", || {
        let entries = std::fs::read_dir(data.parent()?).ok()?.flatten().map(|entry| entry.path());
        let mut kept = entries.filter(|path| path.display().to_string().contains(".before-"));
        kept.next().filter(|_| data.join("PG_VERSION").exists())
    });
    restore.end("KILL");

    let status = wait_for("the end of its lease", || {
        let status = cli.run("status").out;
        status.contains("was cut off while taking the place of what was there").then_some(status)
    });
    let what = format!("the data are whole all the same: if {} is there, they are what was restored", kept.display());
    assert!(status.contains(&what) && !status.contains("half restored"), "{status}");
    let restores = cli.json("list --restore");
    assert_eq!(restores["restores"][0]["status"], "cut off", "{restores}");
    let name = restores["restores"][0]["name"].as_str().unwrap();
    cli.run(&format!("describe-restore {name}")).ends(0, &format!("kept: {}", kept.display()));

    // Somebody starts the server, and all goes on.
    server.restart().await.unwrap();
    same(&before, &PgState::read(&server.uri()).await.unwrap());
    based(&cli, 2);
    let status = cli.ok("status");
    assert!(!status.contains("whole all the same") && !status.contains("half restored"), "{status}");
    assert_eq!(agent.end("TERM").code, 0);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("half restored"), "{said}");
}
