//! A record that cannot be read is named, and stands in the way of nothing but what needs it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Cli, wait_for};
use bson::{Document, doc};
use hindsight_testkit::{ClusterState, ReplicaSet, last_optime};
use jiff::Timestamp;
use mongodb::Client;

/// The end of what can be restored in an epoch.
fn end(cli: &Cli, epoch: u64) -> Option<Timestamp> {
    let ranges = cli.json("list")["pitr"]["ranges"].as_array().unwrap().clone();
    ranges.iter().filter(|range| range["epoch"] == epoch).filter_map(|range| range["to"].as_str()?.parse().ok()).max()
}

/// Makes an agent capture what is written now, in a second of its own: one that is told already would be waited for in vain.
async fn captures(cli: &Cli, client: &Client, epoch: u64) {
    second_after(client).await;
    let before = end(cli, epoch);
    let agent = cli.start("agent");
    let things = client.database("shop").collection::<Document>("later");
    things.insert_one(doc! {}).await.unwrap();
    let (seconds, ..) = last_optime(client).await.unwrap();
    let written = Timestamp::from_second(i64::from(seconds)).unwrap();
    wait_for("the capture", || end(cli, epoch).filter(|end| *end >= written && Some(*end) > before));
    agent.end("TERM").ends(0, "everything captured is stored");
}

/// Spoils a file; gives its bytes.
fn spoil(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let mut bad = bytes.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(path, bad).unwrap();
    bytes
}

/// A second later than what was written last.
async fn second_after(client: &Client) {
    let (seconds, ..) = last_optime(client).await.unwrap();
    while Timestamp::now().as_second() <= i64::from(seconds) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_stands_in_the_way_of_what_needs_it_only() {
    let set = ReplicaSet::single().await.unwrap();
    let cli = Cli::new(&set.uri());
    let client = set.client().await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");
    let backup = || cli.json("backup")["name"].as_str().unwrap().to_owned();
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let first = backup();
    cli.ok("config --set pitr.enabled=true --set pitr.uploadIntervalSec=1");
    captures(&cli, &client, 1).await;
    orders.insert_one(doc! {"_id": 2}).await.unwrap();
    let second = backup();
    let wanted = ClusterState::read(&client).await.unwrap();
    captures(&cli, &client, 1).await;
    cli.ok("verify");
    let cluster: PathBuf = cli.repository().join("clusters/rs0");

    // The manifest of the older snapshot, on which the log rests as well.
    let key = format!("snapshots/{first}/manifest.json");
    spoil(&cluster.join(&key));
    for verb in ["list", "status"] {
        let said = cli.ok(verb);
        let row = said.lines().find(|line| line.trim_start().starts_with(&first)).unwrap();
        assert!(row.contains("DAMAGED") && said.contains(&second), "{said}");
        assert!(said.contains(&format!("snapshot {first} cannot be read: clusters/rs0/{key} is damaged: ")), "{said}");
    }
    let json = cli.json("list");
    let entry = json["snapshots"].as_array().unwrap().iter().find(|entry| entry["name"] == first.as_str()).unwrap();
    assert!(entry["status"] == "damaged" && entry["error"].as_str().unwrap().contains(&key), "{json}");
    cli.run("verify").ends(8, &key);
    let before = ClusterState::read(&client).await.unwrap();
    cli.run(&format!("restore {first} -y")).ends(8, &key);
    cli.run(&format!("describe-backup {first}")).ends(8, &key);
    assert_eq!(before.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
    captures(&cli, &client, 1).await;

    // Log that it may lead into stays; another snapshot is restored, which begins the epoch 2.
    second_after(&client).await;
    let plan = cli.ok("cleanup --older-than 0d --dry-run");
    assert!(plan.contains(&format!("snapshot {first}: it cannot be read; delete it by its name")), "{plan}");
    assert!(plan.contains(&format!("snapshot {first} cannot be read, and may need it")), "{plan}");
    assert!(!plan.contains("Log to delete"), "{plan}");
    cli.run(&format!("restore {second} -y")).ends(0, &format!("snapshot {first} cannot be read"));
    assert_eq!(wanted.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
    cli.run(&format!("delete-backup {first} -y")).ends(0, "1 snapshot that could not be read");
    let list = cli.ok("list");
    assert!(list.contains(&second) && !list.contains("DAMAGED") && !list.contains("cannot be read"), "{list}");
    assert!(!cluster.join(&key).exists());
    captures(&cli, &client, 2).await;
    cli.ok("verify");

    // Why an epoch began tells nothing that a restore or a capture needs: the number is in the key.
    let epoch = cluster.join("epochs/000002.json");
    let good = spoil(&epoch);
    for verb in ["list", "status"] {
        assert!(cli.ok(verb).contains("why epoch 2 began cannot be read: clusters/rs0/epochs/000002.json is damaged"));
    }
    cli.run("verify").ends(8, "epochs/000002.json");
    captures(&cli, &client, 2).await;
    cli.ok("cleanup --older-than 1d --dry-run");
    cli.ok(&format!("restore {second} -y"));
    assert_eq!(wanted.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
    assert!(cluster.join("epochs/000003.json").exists(), "its number is not given again");
    std::fs::write(&epoch, good).unwrap();
    captures(&cli, &client, 3).await;

    // How the restore ended that began the present epoch does: the cluster may be half restored.
    let restores = cli.json("list --restore")["restores"].as_array().unwrap().clone();
    let name = restores.last().unwrap()["name"].as_str().unwrap().to_owned();
    let record = cluster.join(format!("restores/{name}.json"));
    let good = spoil(&record);
    let said = cli.ok("list --restore");
    assert!(said.contains(&format!("what restore {name} did cannot be read")), "{said}");
    cli.ok("status");
    let log = cli.folder().join("agent.log");
    let agent = cli.start_logged("agent", &log);
    let told = || std::fs::read_to_string(&log).unwrap();
    wait_for("the refusal", || told().contains(&format!("restores/{name}.json is damaged")).then_some(()));
    drop(agent);
    assert!(!told().contains("capture begins"), "{}", told());
    std::fs::write(&record, good).unwrap();
    captures(&cli, &client, 3).await;
}
