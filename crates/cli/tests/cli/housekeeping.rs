//! Deleting, cancelling and reading the logs, by processes that may be killed.

use std::path::Path;
use std::time::Duration;

use crate::support::{Cli, wait_for};
use bson::{Document, doc};
use hindsight_testkit::{ClusterState, Fault, ReplicaSet, S3Op, S3Server};
use jiff::{SignedDuration, Timestamp};

const BUCKET: &str = "backups";

/// The program with a bucket that can be made slow.
fn in_bucket(set: &ReplicaSet) -> (S3Server, Cli) {
    let server = S3Server::start(BUCKET).unwrap();
    let repository = ("HINDSIGHT_REPOSITORY", format!("s3://{BUCKET}"));
    let cli = Cli::new(&set.uri()).with(server.env()).with([repository]);
    (server, cli)
}

/// Number of files below a folder, which may not be there.
fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

fn restore_time(cli: &Cli, name: &str) -> Timestamp {
    cli.json(&format!("describe-backup {name}"))["restore_time"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleanup_that_was_killed_leaves_the_truth_and_the_next_one_finishes_it() {
    let set = ReplicaSet::single().await.unwrap();
    let (server, cli) = in_bucket(&set);
    let client = set.client().await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let first = cli.json("backup")["name"].as_str().unwrap().to_owned();
    while Timestamp::now().duration_since(restore_time(&cli, &first)) < SignedDuration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    orders.insert_one(doc! {"_id": 2}).await.unwrap();
    let second = cli.json("backup")["name"].as_str().unwrap().to_owned();
    let expected = ClusterState::read(&client).await.unwrap();
    let cleanup = format!("cleanup --older-than {}", restore_time(&cli, &second));

    let plan = cli.json(&format!("{cleanup} --dry-run"));
    assert!(plan["snapshots"][0]["name"] == first.as_str() && plan["deleted"] == false, "{plan}");
    assert_eq!(plan["snapshots"].as_array().unwrap().len(), 1);
    assert!(cli.ok("list").contains(&first), "a dry run changes nothing");

    // The manifest goes first; while the rest is slow to go, the process is killed.
    server.faults().plan(S3Op::Delete, "snapshots", 1000, Fault::Delay(Duration::from_millis(400)));
    let running = cli.start(&format!("{cleanup} -y"));
    let folder = server.file(BUCKET, &format!("clusters/rs0/snapshots/{first}"));
    wait_for("the end of the manifest", || (!folder.join("manifest.json").exists()).then_some(()));
    running.end("KILL").ends(-1, "");
    server.faults().clear();
    let left = cli.json(&format!("{cleanup} --dry-run"));
    assert!(left["unfinished"][0]["id"] == first.as_str(), "it was killed in its midst: {left}");
    assert!(left["snapshots"].as_array().unwrap().is_empty() && left["lost"].as_array().unwrap().is_empty(), "{left}");
    let list = cli.ok("list");
    assert!(!list.contains(&first) && list.contains(&second), "{list}");

    cli.run(&format!("{cleanup} -y")).ends(0, "Deleted: 1 unfinished snapshot");
    cli.run(&format!("{cleanup} -y")).ends(0, "nothing to delete");
    assert_eq!(files(&folder), 0);
    orders.delete_many(doc! {}).await.unwrap();
    cli.ok(&format!("restore {second} -y"));
    let found = ClusterState::read(&client).await.unwrap();
    assert_eq!(expected.diff(&found), Vec::<String>::new());
    let logs = cli.ok("logs -t 0 -e cleanup");
    assert!(
        logs.contains("begins: snapshots: 0") && logs.contains("I [") && logs.contains("[cleanup] done:"),
        "{logs}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_from_under_a_verification() {
    let set = ReplicaSet::single().await.unwrap();
    let (server, cli) = in_bucket(&set);
    let client = set.client().await.unwrap();
    client.database("shop").collection::<Document>("orders").insert_one(doc! {"_id": 1}).await.unwrap();
    let name = cli.json("backup")["name"].as_str().unwrap().to_owned();
    server.faults().plan(S3Op::Get, "catalog", 1000, Fault::Delay(Duration::from_secs(2)));
    let verifying = cli.start("verify");
    let leases = server.file(BUCKET, "clusters/rs0/leases");
    let reads = || {
        std::fs::read_dir(&leases)
            .ok()?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("reading."))
    };
    wait_for("the right to read", reads);
    cli.run(&format!("delete-backup {name} -y")).ends(4, "another operation in progress: verification");
    verifying.ended().ends(0, "Nothing is damaged");
    server.faults().clear();
    assert!(reads().is_none_or(|folder| files(&folder.path()) == 0), "the right was not given back");
    cli.run(&format!("delete-backup {name} -y")).ends(0, "Deleted: 1 snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_cancelled_from_another_process_and_leaves_nothing() {
    let set = ReplicaSet::single().await.unwrap();
    let (server, cli) = in_bucket(&set);
    let client = set.client().await.unwrap();
    client.database("shop").collection::<Document>("orders").insert_one(doc! {"_id": 1}).await.unwrap();
    cli.ok("config --set backup.compressionLevel=1");
    cli.run("cancel-backup").ends(3, "no backup is running");
    server.faults().plan(S3Op::Put, "snapshots", 1000, Fault::Delay(Duration::from_secs(3)));
    let running = cli.start("backup");
    let name = wait_for("the backup", || cli.json("status -s running")["running"]["name"].as_str().map(str::to_owned));
    assert_eq!(cli.ok("cancel-backup"), "Backup cancellation has started\n");
    let ended = running.ended().ends(130, "was cancelled from");
    assert!(ended.err.contains(&name), "{ended}");
    server.faults().clear();
    assert!(!cli.ok("list").contains(&name));
    let folder = server.file(BUCKET, "clusters/rs0");
    assert_eq!((files(&folder.join("snapshots")), files(&folder.join("cancel"))), (0, 0));
    cli.run("cleanup --older-than 0d").ends(0, "nothing to delete");
    cli.ok("backup");

    let lines = cli.ok("logs -t 0");
    for words in [
        format!("[backup/{name}] begins"),
        format!("[backup/{name}] asked to stop, from"),
        format!("[backup/{name}] failed: backup {name} was cancelled from"),
        "[config] set: backup.compressionLevel=1".to_owned(),
        format!("[cancel-backup] backup {name} is asked to stop"),
        "] done: 1 documents, ".to_owned(),
    ] {
        assert!(lines.contains(&words), "no {words:?} in {lines}");
    }
    assert!(cli.ok("logs -s E").lines().all(|line| line.contains(" E [")));
    assert_eq!(cli.ok("logs -t 1").lines().count(), 1);
    assert_eq!(cli.ok(&format!("logs -t 0 -i {name}")), cli.ok(&format!("logs -t 0 -e backup/{name}")));
    assert_eq!(cli.ok("logs -n nowhere"), "");
    let json = cli.json("logs -e config");
    assert!(json[0]["severity"] == "I" && json[0]["event"] == "config", "{json}");

    let mut follow = cli.start("logs --follow -t 1");
    follow.reads("done");
    cli.ok("config --set backup.compressionLevel=2");
    follow.reads("set: backup.compressionLevel=2");
    follow.end("INT").ends(0, "");
}
