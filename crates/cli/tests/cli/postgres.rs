//! The story of PostgreSQL, through the program: a hostile workload, a crash of the agent, and every quiet moment brought
//! back into a new cluster.

use std::path::Path;
use std::sync::Arc;

use hindsight_testkit::{PgState, PgWorkload, PgWorkloadOptions, Postgres, PostgresOptions};

use super::support::{Cli, wait_for};

/// Restores into `target` with a server on its port, and gives what is in it then. The server is gone again.
pub async fn restored(cli: &Cli, how: &str, target: &Postgres) -> PgState {
    let directory = target.data_dir();
    let line = format!("restore {how} --target-dir {} --port {} -y", directory.display(), target.port());
    let said = cli.ok(&line);
    assert!(said.contains("is done.") && said.contains("a server runs in"), "{said}");
    let state = PgState::read(&target.uri_of("postgres")).await.unwrap();
    target.end_of_others().await.unwrap();
    state
}

/// Waits until a moment can be restored.
pub fn captured(cli: &Cli, moment: &str, directory: &Path) {
    let line = format!("restore --time {moment} --target-dir {} --dry-run", directory.display());
    wait_for(&format!("the log through {moment}"), || (cli.run(&line).code == 0).then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_quiet_moment_of_a_hostile_day_comes_back() {
    let server = Arc::new(Postgres::start(PostgresOptions::default()).await.unwrap());
    // In its configuration, which comes back with it.
    for setting in ["max_prepared_transactions = 20", "max_wal_size = '100MB'"] {
        server.sql(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    server.restart().await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    cli.run("config --set pitr.enabled=true pitr.uploadIntervalSec=1").ends(0, "pitr.enabled=true").ends(0, "slot");
    let slots = server.sql("SELECT count(*) FROM pg_replication_slots WHERE restart_lsn IS NOT NULL").await.unwrap();
    assert_eq!(slots, "1");
    let log = cli.folder().join("agent.log");
    let mut agent = cli.start_logged("agent", &log);

    let workload = PgWorkload::start(Arc::clone(&server), 11, PgWorkloadOptions::default()).await.unwrap();
    workload.goes_on_for(60).await.unwrap();
    let backup = cli.json("backup");
    assert!(backup["snapshot"]["database_count"].as_u64() >= Some(4), "{backup}");
    // What can be restored begins with the second after the end of the backup.
    let begins = backup["snapshot"]["restore_time"].as_str().unwrap();
    server.sql(&format!("SELECT pg_sleep_until('{begins}')")).await.unwrap();
    let mut moments = Vec::new();
    for turn in 0..5 {
        workload.goes_on_for(80).await.unwrap();
        if turn == 2 {
            // What it has read and not stored yet, the server still has.
            agent.end("KILL");
            workload.goes_on_for(80).await.unwrap();
            agent = cli.start_logged("agent", &log);
        }
        let paused = workload.pause().await.unwrap();
        let state = PgState::read(&server.uri()).await.unwrap();
        // A position, or a time between two writes.
        let moment = if turn % 2 == 0 { paused.time.clone() } else { paused.lsn.clone() };
        moments.push((format!("--time {moment}"), state));
        paused.resume();
    }
    workload.goes_on_for(20).await.unwrap();
    workload.stop().await.unwrap();
    let last = PgState::read(&server.uri()).await.unwrap();
    let end = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    captured(&cli, &end, &target.data_dir());
    moments.push(("--time latest".to_owned(), last));
    assert_eq!(agent.end("TERM").code, 0, "{}", std::fs::read_to_string(&log).unwrap());

    for (how, expected) in moments {
        let target = Postgres::prepare(PostgresOptions::default()).unwrap();
        let found = restored(&cli, &how, &target).await;
        let differences = expected.differences(&found);
        assert!(differences.is_empty(), "restore {how}:\n{}", differences.join("\n"));
    }

    // Everything else that there is to do with what is stored.
    cli.run("verify").ends(0, "Nothing is damaged.");
    cli.run("list").ends(0, "physical");
    let snapshots = cli.json("list");
    let name = snapshots["snapshots"][0]["name"].as_str().unwrap().to_owned();
    cli.run("status").ends(0, "postgresql 1");
    cli.run(&format!("describe-backup {name} --with-collections")).ends(0, "databases:");
    cli.run("logs").ends(0, "restore");
    cli.run("list --restore").ends(0, "success");
    cli.run("config --set pitr.enabled=false").ends(0, "slot");
    assert_eq!(server.sql("SELECT count(*) FROM pg_replication_slots").await.unwrap(), "0");
    cli.run("delete-pitr --all -y").ends(0, "");
    cli.run(&format!("delete-backup {name} -y")).ends(0, "");
    cli.run("cleanup --older-than 0d -y").ends(0, "");
    assert!(cli.json("list")["snapshots"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_before_anything_is_done() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    for (line, code, words) in [
        ("backup --type logical", 3, "--type physical"),
        ("backup --ns shop.*", 3, "leave out --ns"),
        ("restore --time latest -y", 3, "--target-dir"),
        ("restore --time latest --port 5433 -y", 2, "--target-dir"),
        ("restore --time latest --target-dir x --map y -y", 2, "NAME=DIR"),
    ] {
        cli.run(line).ends(code, words);
    }
    let name = cli.json("backup")["name"].as_str().unwrap().to_owned();
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    let directory = target.data_dir().display().to_string();
    let full = target.new_folder("full").unwrap();
    std::fs::write(full.join("file"), "").unwrap();
    let (full, port) = (full.display(), server.port());
    for (line, words) in [
        (format!("restore {name} -y"), "--target-dir"),
        (format!("restore {name} --target-dir {full} -y"), "not empty"),
        (format!("restore {name} --target-dir {directory} --ns shop.orders -y"), "pg_dump"),
        (format!("restore {name} --target-dir {directory} --port {port} -y"), "--port"),
        (format!("restore {name} --target-dir {directory} --map none=/x -y"), "none"),
        (format!("restore --time 2020-01-01 --target-dir {directory} -y"), "no base snapshot"),
        (format!("restore --time FF/1 --target-dir {directory} -y"), "FF/1"),
        ("oplog-replay --start 2020-01-01 --end 2020-01-02 -y".to_owned(), "as a part of a restore"),
    ] {
        let ran = cli.run(&line).ends(3, words);
        assert!(ran.err.contains("hint: "), "{ran}");
    }
    cli.run(&format!("restore {name} --target-dir {directory} --program /none -y")).ends(1, "--program");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    assert_eq!(cli.json("list --restore")["restores"].as_array().unwrap().len(), 0);
    // A snapshot is restored as it is, without any log after it and without the server that it is of.
    server.stop().await.unwrap();
    cli.ok(&format!("restore {name} --target-dir {directory} --no-start -y"));
    target.restart().await.unwrap();
    assert_eq!(target.sql("SELECT pg_is_in_recovery()").await.unwrap(), "f");
}
