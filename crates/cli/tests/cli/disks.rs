//! Disks that fill up: that of the repository, and those of databases. Where the test may not mount small ones, only
//! the repository is tested, in `hindsight-jobs`.

use std::time::{Duration, Instant};

use crate::support::{Cli, wait_for};
use anyhow::{Context, Result, ensure};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use hindsight_testkit::{ClusterState, ReplicaSet, ReplicaSetBuilder, SmallDisk};
use mongodb::Client;
use rand::RngExt;

/// MiB that do not become smaller.
async fn insert(client: &Client, name: &str, mib: u64) -> Result<()> {
    let noise = || (0..256 << 10).map(|_| rand::rng().random()).collect();
    let things = client.database("app").collection::<Document>(name);
    for _ in 0..mib {
        let documents =
            (0..4).map(|_| doc! {"noise": Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: noise() })});
        things.insert_many(documents).await?;
    }
    Ok(())
}

/// A server that keeps little on its disk beside the data.
fn on(disk: &SmallDisk) -> ReplicaSetBuilder {
    ReplicaSet::builder()
        .data_in(&disk.path().join("data"))
        .oplog_mb(16)
        .arg("--wiredTigerEngineConfigString")
        .arg("log=(file_max=1MB,prealloc=false)")
}

fn quickly(uri: &str) -> String {
    format!("{uri}&serverSelectionTimeoutMS=5000")
}

async fn ended(set: &ReplicaSet) -> Result<()> {
    let begun = Instant::now();
    while set.member(0).is_running() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "mongod goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(set.member(0).log().contains("No space left"), "it ended for another reason");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_repository() -> Result<()> {
    let Some(disk) = SmallDisk::mount(24)? else { return Ok(()) };
    let set = ReplicaSet::single().await?;
    let client = set.client().await?;
    insert(&client, "things", 9).await?;
    let repository = disk.path().join("repository");
    let cli = Cli::new(&set.uri()).with([("HINDSIGHT_REPOSITORY", repository.display().to_string())]);
    let first = cli.json("backup")["name"].as_str().context("no name")?.to_owned();
    cli.ok("backup");
    let ran = cli.run("backup").ends(7, "the disk is full");
    ensure!(ran.err.contains(&format!("in the repository file://{}", repository.display())), "{ran}");
    ensure!(ran.err.contains("make room there"), "{ran}");
    cli.run("verify").ends(0, "Nothing is damaged.");
    disk.fill()?;
    cli.run("status").ends(0, "0 B are free on the disk of the repository");
    cli.run("config --set pitr.enabled=true").ends(7, "the disk is full");
    cli.run(&format!("restore {first} -y")).ends(7, "the disk is full");
    // The logs of what was done make room for it.
    cli.ok(&format!("delete-backup {first} -y"));
    cli.ok("backup");
    disk.make_room()?;
    cli.run("verify").ends(0, "Nothing is damaged.");
    ensure!(cli.json("list")["snapshots"].as_array().is_some_and(|found| found.len() == 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_target_of_a_restore() -> Result<()> {
    let Some(disk) = SmallDisk::mount(32)? else { return Ok(()) };
    let (source, target) = tokio::try_join!(ReplicaSet::single(), on(&disk).start())?;
    let client = source.client().await?;
    insert(&client, "things", 40).await?;
    let cli = Cli::new(&source.uri());
    let name = cli.json("backup --cluster source")["name"].as_str().context("no name")?.to_owned();
    cli.ok(&format!("backup --cluster target --uri {}", target.uri()));

    let restore = format!("restore {name} --cluster source --uri {} -y", quickly(&target.uri()));
    let ran = cli.run(&restore);
    ended(&target).await?;
    // The server may have answered before it ended.
    ensure!([1, 5].contains(&ran.code) && ran.err.contains("whose disk is full"), "{ran}");
    cli.run(&format!("status --cluster target --uri {}", quickly(&target.uri()))).ends(0, "half restored");
    cli.run("list --restore --cluster source").ends(0, "error");

    disk.resize(400)?;
    target.member(0).restart().await?;
    target.wait_primary().await?;
    cli.ok(&restore);
    let differences = ClusterState::read(&client).await?.diff(&ClusterState::read(&target.client().await?).await?);
    ensure!(differences.is_empty(), "not what it was:\n{}", differences.join("\n"));
    ensure!(!cli.ok(&format!("status --cluster target --uri {}", target.uri())).contains("half restored"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_source_of_a_backup() -> Result<()> {
    let Some(disk) = SmallDisk::mount(80)? else { return Ok(()) };
    let set = on(&disk).arg("--setParameter").arg("enableTestCommands=1").start().await?;
    let client = set.client().await?;
    insert(&client, "things", 4).await?;
    let cli = Cli::new(&quickly(&set.uri()));
    cli.ok("backup --cluster source");

    // A backup that is in the middle of reading.
    let admin = client.database("admin");
    let wait =
        doc! {"configureFailPoint": "waitInFindBeforeMakingBatch", "mode": "alwaysOn", "data": {"nss": "app.things"}};
    admin.run_command(wait).await?;
    let backup = cli.start("backup --cluster source");
    wait_for("the backup", || (!cli.json("status -s running --cluster source")["running"].is_null()).then_some(()));
    disk.fill()?;
    let filling = insert(&client, "more", 8).await;
    ended(&set).await.with_context(|| format!("{filling:?}"))?;
    let ran = tokio::task::spawn_blocking(move || backup.ended()).await?;
    let ran = ran.ends(5, "while");
    ensure!(ran.err.contains("whose disk is full"), "{ran}");
    ensure!(cli.json("list --cluster source")["snapshots"].as_array().is_some_and(|found| found.len() == 1));

    disk.make_room()?;
    set.member(0).restart().await?;
    set.wait_primary().await?;
    cli.ok("backup --cluster source");
    cli.run("verify --all --cluster source").ends(0, "Nothing is damaged.");
    Ok(())
}
