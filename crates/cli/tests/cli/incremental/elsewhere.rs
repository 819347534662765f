//! Increments of servers that are no lone primaries, and in repositories that not everybody reads.

use std::os::unix::fs::PermissionsExt as _;

use hindsight_repository::Identity;
use hindsight_testkit::{Postgres, PostgresOptions, postgres_version};
use secrecy::ExposeSecret as _;

use super::combined::as_by_hand;
use super::{comes_back, name_of};
use crate::support::{Cli, captured, same, state, state_at, wait_for};

const INCREMENTAL: &str = "backup --type incremental";

/// Rows of some pages, and others in a table that shrinks.
const BEGINNING: &str = "
    CREATE TABLE t AS SELECT n, repeat('t', 200) AS text FROM generate_series(1, 20000) n;
    CREATE TABLE shrunk AS SELECT n, repeat('k', 200) AS text FROM generate_series(1, 9000) n";

/// A server that notes what changes.
fn options() -> PostgresOptions {
    PostgresOptions::default().set("summarize_wal", "on").set("wal_keep_size", "1GB")
}

/// Whether there is nothing to test.
fn takes_none() -> bool {
    postgres_version().unwrap() < 17
}

/// Changes some of it, in a way of its own.
async fn change(server: &Postgres, round: u32) {
    server
        .sql(&format!(
            "UPDATE t SET text = 'round {round}' WHERE n % {} = 0; DELETE FROM shrunk WHERE n > {}; \
             CREATE TABLE of_{round} AS SELECT n FROM generate_series(1, 3000) n",
            400 + round,
            9000 - 1500 * round
        ))
        .await
        .unwrap();
    server.sql("VACUUM shrunk").await.unwrap();
}

/// Waits until a standby has replayed all that its primary has written.
async fn followed(primary: &Postgres, standby: &Postgres) {
    let end = primary.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let query = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    let begun = std::time::Instant::now();
    while standby.sql(&query).await.unwrap() != "t" {
        assert!(begun.elapsed().as_secs() < 60, "the standby does not follow");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn snapshots(cli: &Cli) -> Vec<String> {
    let listed = cli.json("list");
    let names = listed["snapshots"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned());
    names.collect()
}

/// What was refused has left nothing, neither in the repository nor, a moment later, on the server.
async fn left_nothing(cli: &Cli, server: &Postgres, stored: usize) {
    assert_eq!(snapshots(cli).len(), stored);
    assert_eq!(std::fs::read_dir(folder_of_snapshots(cli)).unwrap().count(), stored);
    let begun = std::time::Instant::now();
    while server.sql("SELECT count(*) FROM pg_replication_slots WHERE temporary").await.unwrap() != "0" {
        assert!(begun.elapsed().as_secs() < 30, "the slot of the backup stays");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn folder_of_snapshots(cli: &Cli) -> std::path::PathBuf {
    let found = cli.json(&format!("describe-backup {}", snapshots(cli)[0]));
    let path = std::path::PathBuf::from(found["path"].as_str().unwrap().trim_start_matches("file://"));
    path.parent().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_gives_increments_also_when_it_is_promoted() {
    if takes_none() {
        return;
    }
    let primary = Postgres::start(options()).await.unwrap();
    primary.sql(BEGINNING).await.unwrap();
    let standby = primary.standby(options()).await.unwrap();
    let cli = Cli::new(&standby.uri_of("postgres")).installed_in(&standby.new_folder("bin").unwrap());
    followed(&primary, &standby).await;
    let mut chain = vec![name_of(&cli, &standby, "backup").await];

    // A standby begins a backup at the last checkpoint of its primary, which is where the one before began.
    let refused = cli.run(INCREMENTAL).ends(3, &format!("upon {}", chain[0]));
    assert!(refused.err.contains("CHECKPOINT on the primary"), "{refused}");
    left_nothing(&cli, &standby, 1).await;

    for round in 1..=2 {
        change(&primary, round).await;
        primary.sql("CHECKPOINT").await.unwrap();
        followed(&primary, &standby).await;
        chain.push(name_of(&cli, &standby, INCREMENTAL).await);
        comes_back(&cli, &chain[chain.len() - 1], &state(&primary).await).await;
        as_by_hand(&cli, &chain);
    }
    primary.stop().await.unwrap();
    standby.promote().await.unwrap();
    change(&standby, 3).await;
    chain.push(name_of(&cli, &standby, INCREMENTAL).await);
    comes_back(&cli, &chain[3], &state(&standby).await).await;
    as_by_hand(&cli, &chain);
    cli.run("verify").ends(0, "Nothing is damaged.");
}

/// Both members in one connection string.
fn members(all: [&Postgres; 2]) -> String {
    let [one, other] = all.map(Postgres::port);
    format!("postgresql://postgres@127.0.0.1:{one},127.0.0.1:{other}/postgres")
}

/// A primary, its standby, and what captures whichever of them leads.
async fn pair() -> (Postgres, Postgres, Cli) {
    let primary = Postgres::start(options()).await.unwrap();
    primary.sql(BEGINNING).await.unwrap();
    let standby = primary.standby(options()).await.unwrap();
    let cli = Cli::new(&members([&primary, &standby])).installed_in(&primary.new_folder("bin").unwrap());
    cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1");
    (primary, standby, cli)
}

fn based(cli: &Cli, count: usize) {
    wait_for("a base by the agent", || (snapshots(cli).len() >= count).then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_without_loss_a_chain_goes_on() {
    if takes_none() {
        return;
    }
    let (primary, standby, cli) = pair().await;
    let agent = cli.start_logged("agent", &cli.folder().join("agent.log"));
    based(&cli, 1);
    let mut chain = vec![name_of(&cli, &primary, "backup").await];
    change(&primary, 1).await;
    chain.push(name_of(&cli, &primary, INCREMENTAL).await);
    change(&primary, 2).await;
    followed(&primary, &standby).await;
    // In good order: the standby has all of it.
    primary.stop().await.unwrap();
    standby.promote().await.unwrap();
    change(&standby, 3).await;
    let described = |name: &str| cli.json(&format!("describe-backup {name}"))["builds_upon"].clone();
    chain.push(name_of(&cli, &standby, INCREMENTAL).await);
    assert_eq!(described(&chain[2]), serde_json::json!([chain[1], chain[0]]));
    comes_back(&cli, &chain[2], &state(&standby).await).await;
    as_by_hand(&cli, &chain);

    // And the log goes on from it, on the new timeline as on the old.
    change(&standby, 4).await;
    let moment = standby.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let then = state(&standby).await;
    standby.sql("INSERT INTO t VALUES (0, 'too late')").await.unwrap();
    captured(&cli, &moment);
    for base in [&chain[0], &chain[2]] {
        comes_back(&cli, &format!("--time {moment} --base-snapshot {base}"), &then).await;
    }
    assert_eq!(agent.end("TERM").code, 0);
    assert!(cli.json("status")["pitr"]["gaps"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_builds_upon_what_a_promoted_standby_never_had() {
    if takes_none() {
        return;
    }
    let (primary, standby, cli) = pair().await;
    let log = cli.folder().join("agent.log");
    let agent = cli.start_logged("agent", &log);
    based(&cli, 1);
    let before = name_of(&cli, &primary, "backup").await;
    followed(&primary, &standby).await;
    standby.stop().await.unwrap();
    change(&primary, 1).await;
    let lost = name_of(&cli, &primary, "backup").await;
    captured(&cli, &primary.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap());
    assert_eq!(agent.end("TERM").code, 0);
    primary.crash();
    standby.restart().await.unwrap();
    standby.promote().await.unwrap();
    change(&standby, 2).await;

    // Nobody has said yet that its history is the one to go on with.
    let upon_before = [INCREMENTAL.to_owned(), format!("{INCREMENTAL} --parent {before}")];
    for line in &upon_before {
        cli.run(line).ends(3, "left timeline 1 at");
    }
    let agent = cli.start_logged("agent", &log);
    wait_for("the new history", || {
        let listed = cli.json("list");
        listed["pitr"]["ranges"].as_array().unwrap().iter().any(|range| range["epoch"] == 2).then_some(())
    });
    let refused = cli.run(&format!("{INCREMENTAL} --parent {lost}")).ends(3, &format!("upon {lost}"));
    assert!(refused.err.contains("take a full backup"), "{refused}");
    left_nothing(&cli, &standby, 3).await;

    // Upon the newest that both have in common, named or not, if the server's summaries begin just where its timeline does
    // (those of 17.10 begin behind the header of a page).
    let mut stored = 3;
    for line in &upon_before {
        let ran = cli.run(line);
        if ran.code == 0 {
            stored += 1;
            let name = snapshots(&cli).pop().unwrap();
            assert_eq!(cli.json(&format!("describe-backup {name}"))["builds_upon"][0], before);
            same(&state(&standby).await, &state_at(&cli, &name).await);
        } else {
            let refused = ran.ends(3, &format!("upon {before}"));
            assert!(refused.err.contains("take a full backup"), "{refused}");
            left_nothing(&cli, &standby, stored).await;
        }
    }

    // And upon a base of the new history.
    let full = name_of(&cli, &standby, "backup").await;
    change(&standby, 3).await;
    let name = name_of(&cli, &standby, INCREMENTAL).await;
    assert_eq!(cli.json(&format!("describe-backup {name}"))["builds_upon"], serde_json::json!([full]));
    same(&state(&standby).await, &state_at(&cli, &name).await);
    assert_eq!(agent.end("TERM").code, 0);
    cli.run("verify").ends(0, "Nothing is damaged.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_sealed_repository_a_chain_is_made_and_restored_with_the_private_key() {
    if takes_none() {
        return;
    }
    let server = Postgres::start(options()).await.unwrap();
    server.sql(BEGINNING).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    let identity = Identity::generate();
    let key = cli.folder().join("key.txt");
    std::fs::write(&key, identity.expose().expose_secret()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let with = format!("--identity {}", key.display());
    cli.run(&format!("repository init --recipient {}", identity.recipients()[0])).ends(0, "sealed");
    let full = name_of(&cli, &server, "backup").await;
    change(&server, 1).await;

    // Something is read of the snapshot before.
    cli.run(INCREMENTAL).ends(2, "--identity");
    left_nothing(&cli, &server, 1).await;
    let first = name_of(&cli, &server, &format!("{INCREMENTAL} {with}")).await;
    change(&server, 2).await;
    let second = name_of(&cli, &server, &format!("{INCREMENTAL} {with}")).await;
    let described = cli.json(&format!("describe-backup {second}"));
    assert_eq!(described["builds_upon"], serde_json::json!([first, full]), "{described}");
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    cli.run(&format!("restore {second} --target-dir {} -y", target.data_dir().display())).ends(2, "--identity");
    same(&state(&server).await, &state_at(&cli, &format!("{second} {with}")).await);
    cli.run(&format!("verify {with}")).ends(0, "Nothing is damaged.");
    cli.run(&format!("verify {second} --drill {with}")).ends(0, "");
}
