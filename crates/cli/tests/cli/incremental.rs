//! Incremental backups of PostgreSQL, through the program: a chain over everything that can become of a relation's files, brought
//! back from each of its links and to a moment after it. Servers before 17 do not take them, and say so.

mod combined;
mod elsewhere;

use std::path::PathBuf;

use hindsight_testkit::{PgState, Postgres, PostgresOptions, postgres_version};
use serde_json::Value;

use super::support::{Cli, captured};
use combined::as_by_hand;

/// What there is at first: tables of some sizes, one of them in a tablespace, indexes, large objects, another database.
const BEGINNING: &str = "
    CREATE TABLE still AS SELECT n, repeat('s', 200) AS text FROM generate_series(1, 20000) n;
    CREATE TABLE updated AS SELECT n, repeat('u', 200) AS text FROM generate_series(1, 20000) n;
    CREATE INDEX ON updated (n);
    CREATE TABLE shrunk AS SELECT n, repeat('k', 200) AS text FROM generate_series(1, 20000) n;
    CREATE TABLE emptied AS SELECT n FROM generate_series(1, 5000) n;
    CREATE TABLE refilled AS SELECT n, repeat('r', 100) AS text FROM generate_series(1, 20000) n;
    CREATE TABLE dropped AS SELECT n FROM generate_series(1, 5000) n;
    CREATE TABLE rewritten AS SELECT n, repeat('w', 50) AS text FROM generate_series(1, 9000) n;
    CREATE TABLE apart TABLESPACE fast AS SELECT n, repeat('a', 200) AS text FROM generate_series(1, 9000) n;
    CREATE TABLE moved AS SELECT n FROM generate_series(1, 5000) n;
    CREATE UNLOGGED TABLE unlogged AS SELECT n FROM generate_series(1, 100) n;
    CREATE SEQUENCE numbers; SELECT nextval('numbers');
    SELECT lo_from_bytea(4711, repeat('large', 1000)::bytea);
    VACUUM";

const CHANGES: [&str; 3] = [
    "UPDATE updated SET text = 'one' WHERE n % 500 = 0;
     DELETE FROM shrunk WHERE n > 5000; VACUUM shrunk;
     TRUNCATE emptied;
     TRUNCATE refilled; INSERT INTO refilled SELECT n, 'anew' FROM generate_series(1, 300) n;
     DROP TABLE dropped;
     CREATE TABLE new AS SELECT n, repeat('n', 300) AS text FROM generate_series(1, 5000) n;
     UPDATE apart SET text = 'one' WHERE n < 20;
     VACUUM FULL rewritten;
     CREATE DATABASE logged STRATEGY wal_log;
     CREATE DATABASE copied STRATEGY file_copy TEMPLATE other;
     SELECT nextval('numbers'); SELECT lo_put(4711, 10, 'changed')",
    "UPDATE updated SET text = 'two' WHERE n % 700 = 0;
     INSERT INTO shrunk SELECT n, 'back' FROM generate_series(5001, 30000) n;
     INSERT INTO emptied SELECT n FROM generate_series(1, 7000) n;
     DELETE FROM refilled WHERE n > 10; VACUUM refilled;
     DROP TABLE new; CREATE TABLE new AS SELECT 'other' AS text;
     ALTER TABLE moved SET TABLESPACE faster;
     REINDEX TABLE updated;
     DROP DATABASE logged;
     ALTER DATABASE copied SET TABLESPACE faster;
     DELETE FROM apart WHERE n > 4000; VACUUM apart;
     ALTER TABLE still ADD COLUMN more int",
    "UPDATE updated SET text = 'three' WHERE n % 900 = 0;
     INSERT INTO shrunk SELECT n, 'more' FROM generate_series(30001, 31000) n;
     DROP TABLE rewritten;
     CREATE TABLE last TABLESPACE fast AS SELECT n FROM generate_series(1, 4000) n;
     UPDATE moved SET n = n + 1",
];

/// Each statement by itself: some go in no transaction.
async fn run(server: &Postgres, statements: &str) {
    for statement in statements.split(';') {
        server.sql(statement).await.unwrap();
    }
}

async fn name_of(cli: &Cli, server: &Postgres, line: &str) -> String {
    let taken = cli.json(line);
    // What follows it in the log is of a later second.
    let until = taken["snapshot"]["restore_time"].as_str().unwrap();
    server.sql(&format!("SELECT pg_sleep_until('{until}')")).await.unwrap();
    taken["name"].as_str().unwrap().to_owned()
}

/// Restores into `target` with a server on its port, and gives what is in it then. The server is gone again.
async fn restored(cli: &Cli, how: &str, target: &Postgres) -> PgState {
    let directory = target.data_dir();
    let line = format!("restore {how} --target-dir {} --port {} -y", directory.display(), target.port());
    let said = cli.ok(&line);
    assert!(said.contains("is done.") && said.contains("a server runs in"), "{said}");
    let state = PgState::read(&target.uri_of("postgres")).await.unwrap();
    target.end_of_others().await.unwrap();
    state
}

/// Restores, and compares everything with what was.
async fn comes_back(cli: &Cli, how: &str, expected: &PgState) {
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    let found = restored(cli, how, &target).await;
    let differences = expected.differences(&found);
    assert!(differences.is_empty(), "restore {how}:\n{}", differences.join("\n"));
}

/// An object with data of a snapshot.
fn object(cli: &Cli, name: &str) -> PathBuf {
    let found = cli.json(&format!("describe-backup {name}"));
    let (object, path) = (&found["objects"][0]["name"], found["path"].as_str().unwrap());
    PathBuf::from(path.trim_start_matches("file://")).join(object.as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_backups_comes_back_from_each_of_its_links() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    let incremental = "backup --type incremental";
    cli.run("backup --parent x --type physical").ends(2, "--type incremental");
    let nothing = cli.run(incremental).ends(3, "no snapshot");
    assert!(nothing.err.contains("take a full one first"), "{nothing}");
    if postgres_version().unwrap() < 17 {
        cli.ok("backup");
        let refused = cli.run(incremental).ends(3, "17 and later");
        assert!(refused.err.contains("--type physical"), "{refused}");
        return;
    }
    for (name, folder) in [("fast", "a"), ("faster", "b")] {
        let folder = server.new_folder(folder).unwrap();
        server.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", folder.display())).await.unwrap();
    }
    server.sql("CREATE DATABASE other").await.unwrap();
    server.sql_in("other", "CREATE TABLE x AS SELECT generate_series(1, 3000) n").await.unwrap();
    run(&server, BEGINNING).await;

    // A server that does not note what changes.
    cli.ok("backup");
    let off = cli.run(incremental).ends(3, "summarize_wal is off");
    assert!(off.err.contains("ALTER SYSTEM SET summarize_wal = on"), "{off}");
    server.sql("ALTER SYSTEM SET summarize_wal = on").await.unwrap();
    server.sql("SELECT pg_reload_conf()").await.unwrap();

    cli.run("config --set pitr.enabled=true pitr.uploadIntervalSec=1").ends(0, "slot");
    let agent = cli.start_logged("agent", &cli.folder().join("agent.log"));
    let full = name_of(&cli, &server, "backup").await;
    let (mut chain, mut states) = (vec![full.clone()], Vec::new());
    for changes in &CHANGES[..2] {
        run(&server, changes).await;
        chain.push(name_of(&cli, &server, incremental).await);
        states.push(PgState::read(&server.uri()).await.unwrap());
    }
    let [_, first, second] = chain.as_slice() else { panic!("{chain:?}") };
    run(&server, CHANGES[2]).await;
    let last = PgState::read(&server.uri()).await.unwrap();
    let moment = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    server.sql("INSERT INTO new VALUES ('too late')").await.unwrap();
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    let nowhere = target.data_dir();
    captured(&cli, &moment);
    assert_eq!(agent.end("TERM").code, 0);

    // It tells what builds upon what, and is smaller.
    let listed = cli.json("list");
    let row =
        |name: &str| listed["snapshots"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!(
        (row(first)["parent"].as_str(), row(first)["type"].as_str()),
        (Some(full.as_str()), Some("incremental"))
    );
    assert_eq!((row(second)["parent"].as_str(), &row(&full)["parent"]), (Some(first.as_str()), &Value::Null));
    assert!(row(second)["size"].as_u64() < row(&full)["size"].as_u64(), "{listed}");
    cli.run("list").ends(0, "BUILDS UPON");
    let described = cli.json(&format!("describe-backup {second} --with-contents"));
    assert_eq!(described["builds_upon"], serde_json::json!([first, full]));
    assert!(described["databases"].as_array().unwrap().iter().any(|database| database["name"] == "copied"));

    // All of it is read, and tried out.
    cli.run("verify").ends(0, "Nothing is damaged.");
    cli.run(&format!("verify --drill --time {moment}")).ends(0, "");
    comes_back(&cli, first, &states[0]).await;
    comes_back(&cli, second, &states[1]).await;
    for links in 2..=chain.len() {
        as_by_hand(&cli, &chain[..links]);
    }
    let plan = cli.json(&format!("restore --time {moment} --target-dir {} --dry-run", nowhere.display()));
    assert_eq!(plan["base"]["builds_upon"], serde_json::json!([first, full]), "{plan}");
    comes_back(&cli, &format!("--time {moment}"), &last).await;
    comes_back(&cli, &format!("--time {moment} --base-snapshot {full}"), &last).await;

    // Nothing goes that others build upon.
    for (name, children) in
        [(&full, format!("{first} and {second} build on it")), (first, format!("{second} builds on it"))]
    {
        cli.run(&format!("delete-backup {name} -y")).ends(3, &children);
    }
    let stays = cli.run("delete-backup --older-than 0d --dry-run").ends(0, "Stays, though asked for");
    assert!(stays.out.contains("builds upon it"), "{stays}");

    // What lacks a part is refused before anything is made of it.
    let into = format!("restore {second} --target-dir {} -y", nowhere.display());
    let lost = object(&cli, &full);
    let aside = cli.folder().join("aside");
    std::fs::rename(&lost, &aside).unwrap();
    let refused = cli.run(&into);
    assert!(refused.code != 0 && refused.err.contains("data/"), "{refused}");
    std::fs::write(&lost, &std::fs::read(&aside).unwrap()[..1000]).unwrap();
    assert_ne!(cli.run(&into).code, 0);
    let found = cli.run("verify");
    assert!(found.code != 0 && found.out.contains(&full), "{found}");
    std::fs::rename(&aside, &lost).unwrap();
    let manifest = cli.repository().join(lost.to_str().unwrap().split_once("/data/").unwrap().0).join("manifest.json");
    std::fs::rename(&manifest, &aside).unwrap();
    cli.run(&into).ends(8, &format!("it builds upon {full}, which is not stored"));
    let torn = cli.run("verify");
    assert!(torn.code != 0 && torn.out.contains(&format!("it builds upon {full}")), "{torn}");
    assert!(cli.ok("list").contains("WARNING"));
    std::fs::rename(&aside, &manifest).unwrap();
    assert_eq!(std::fs::read_dir(&nowhere).unwrap().count(), 0);

    // A server that has forgotten what changed.
    for file in std::fs::read_dir(server.data_dir().join("pg_wal/summaries")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let forgotten = cli.run(&format!("{incremental} --parent {full}")).ends(3, &format!("upon {full}"));
    assert!(forgotten.err.contains("wal_summary_keep_time"), "{forgotten}");
    cli.run(&format!("{incremental} --parent x")).ends(9, "there is no snapshot");

    cli.run("config --set pitr.enabled=false").ends(0, "slot");
    for name in [second, first, &full] {
        cli.run(&format!("delete-backup {name} -y")).ends(0, "Deleted");
    }
}
