//! The story of PostgreSQL, through the program: a hostile workload, a crash of the agent, and every quiet moment brought
//! back into a new cluster.

use std::path::Path;
use std::sync::Arc;

use hindsight_testkit::{PgState, PgWorkload, PgWorkloadOptions, Postgres, PostgresOptions};

use super::support::{Cli, wait_for};

/// Restores into `target` with a server on its port, and gives what is in it then. The server is gone again.
async fn restored(cli: &Cli, how: &str, target: &Postgres) -> PgState {
    let directory = target.data_dir();
    let line = format!("restore {how} --target-dir {} --port {} -y", directory.display(), target.port());
    let said = cli.ok(&line);
    assert!(said.contains("is done."), "{said}");
    let state = PgState::read(&target.uri_of("postgres")).await.unwrap();
    target.end_of_others().await.unwrap();
    state
}

/// Waits until a moment can be restored.
fn captured(cli: &Cli, moment: &str, directory: &Path) {
    let line = format!("restore --time {moment} --target-dir {} --dry-run", directory.display());
    wait_for(&format!("the log through {moment}"), || (cli.run(&line).code == 0).then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_quiet_moment_of_a_hostile_day_comes_back() {
    let options = PostgresOptions::default().set("max_prepared_transactions", "20").set("max_wal_size", "100MB");
    let server = Arc::new(Postgres::start(options).await.unwrap());
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    cli.run("config --set pitr.enabled=true pitr.uploadIntervalSec=1").ends(0, "pitr.enabled=true").ends(0, "slot");
    let slots = server.sql("SELECT count(*) FROM pg_replication_slots WHERE restart_lsn IS NOT NULL").await.unwrap();
    assert_eq!(slots, "1");
    let log = cli.folder().join("agent.log");
    let mut agent = cli.start_logged("agent", &log);

    let workload = PgWorkload::start(Arc::clone(&server), 11, PgWorkloadOptions::default()).await.unwrap();
    workload.goes_on_for(60).await.unwrap();
    cli.run("backup").ends(0, "databases");
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
