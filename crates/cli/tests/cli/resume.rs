//! A backup that was cut off is gone on with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Cli, Started};
use bson::{Document, doc};
use hindsight_testkit::{ClusterState, ReplicaSet};
use mongodb::Database;

/// Collections of about 1.5 MB each.
const COLLECTIONS: usize = 40;

async fn fill(shop: &Database) {
    for number in 0..COLLECTIONS {
        let text = |n: usize| blake3_like(number * 10_000 + n).repeat(20);
        let documents: Vec<Document> =
            (0..1000).map(|n| doc! {"_id": n as i32, "n": number as i32, "text": text(n)}).collect();
        shop.collection(&format!("c{number:02}")).insert_many(documents).await.unwrap();
    }
    shop.run_command(doc! {"create": "capped", "capped": true, "size": 1 << 20}).await.unwrap();
}

/// Text that compresses badly, and differs from document to document.
fn blake3_like(seed: usize) -> String {
    let mut x = seed as u64 + 1;
    (0..9).fold(String::new(), |text, _| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{text}{x:016x}")
    })
}

/// What changes data that was copied, and data that was not.
async fn change(shop: &Database, round: i32) {
    for number in [0, 7, 20, 39] {
        let collection = shop.collection::<Document>(&format!("c{number:02}"));
        collection.insert_one(doc! {"_id": 10_000 + round, "late": true}).await.unwrap();
        collection.update_many(doc! {"_id": {"$lt": 300}}, doc! {"$inc": {"round": round}}).await.unwrap();
        collection.delete_many(doc! {"_id": {"$gte": 500 + 10 * round, "$lt": 505 + 10 * round}}).await.unwrap();
    }
    let drop = format!("c{:02}", 10 + round);
    shop.collection::<Document>(&drop).drop().await.unwrap();
    if round == 2 {
        shop.collection::<Document>(&drop).insert_one(doc! {"_id": 1, "again": true}).await.unwrap();
    }
    let (from, to) = (format!("shop.c{:02}", 25 + round), format!("shop.renamed{round}"));
    shop.client().database("admin").run_command(doc! {"renameCollection": from, "to": to}).await.unwrap();
    shop.collection::<Document>("capped").insert_one(doc! {"round": round}).await.unwrap();
    let index =
        doc! {"createIndexes": "c30", "indexes": [{"key": {format!("n{round}"): 1}, "name": format!("n{round}")}]};
    shop.run_command(index).await.unwrap();
}

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder.join("checkpoint")).into_iter().flatten();
    found
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "zst"))
        .collect()
}

/// The snapshots that are listed.
fn names(cli: &Cli) -> Vec<String> {
    let list = cli.json("list");
    list["snapshots"].as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap().to_owned()).collect()
}

/// The folder of the one snapshot that has no manifest.
fn unfinished(cli: &Cli) -> Option<PathBuf> {
    let folders = std::fs::read_dir(cli.repository().join("clusters/rs0/snapshots")).into_iter().flatten();
    folders.map(|entry| entry.unwrap().path()).find(|path| !path.join("manifest.json").exists())
}

/// Lets a backup run until it has noted how far it came, other than `before`, and kills it.
fn cut_off(cli: &Cli, running: Started, before: &[PathBuf]) -> PathBuf {
    let begun = Instant::now();
    let folder = loop {
        let noted = |folder: &PathBuf| checkpoints(folder).iter().any(|path| !before.contains(path));
        if let Some(folder) = unfinished(cli).filter(noted) {
            break folder;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(2));
    };
    running.end("KILL").ends(-1, "");
    assert!(!folder.join("manifest.json").exists(), "it was killed before its end");
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_killed_twice_is_gone_on_with_and_exact() {
    let (set, target) = tokio::try_join!(ReplicaSet::single(), ReplicaSet::single()).unwrap();
    let cli = Cli::new(&set.uri());
    let shop = set.client().await.unwrap().database("shop");
    fill(&shop).await;
    cli.run("backup --resume").ends(3, "no interrupted backup can be gone on with");
    cli.ok("config --set backup.checkpointMib=1 --set backup.numParallelCollections=2");

    let folder = cut_off(&cli, cli.start("backup"), &[]);
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(names(&cli).is_empty(), "what is not complete is not listed");
    let plan = cli.ok("cleanup --older-than 1970-01-01 --dry-run");
    assert!(plan.contains(&name) && plan.contains("backup --resume"), "{plan}");
    change(&shop, 1).await;

    let before = checkpoints(&folder);
    cut_off(&cli, cli.start("backup --resume"), &before);
    change(&shop, 2).await;

    let objects = std::fs::read_dir(folder.join("data")).unwrap().count();
    let said = cli.ok(&format!("backup --resume {name}"));
    assert!(said.contains(&format!("Resuming backup \"{name}\"")), "{said}");
    assert!(objects >= 2 && checkpoints(&folder).is_empty(), "nothing but the snapshot stays");
    cli.ok(&format!("verify {name}"));
    assert_eq!(cli.json("cleanup --older-than 1970-01-01 --dry-run")["unfinished"].as_array().map(Vec::len), Some(0));

    let expected = ClusterState::read(shop.client()).await.unwrap();
    cli.ok(&format!("restore {name} --cluster rs0 --uri {} -y", target.uri()));
    let found = ClusterState::read(&target.client().await.unwrap()).await.unwrap();
    assert_eq!(expected.diff(&found), Vec::<String>::new());

    // What was read before a restore is of another history.
    let folder = cut_off(&cli, cli.start("backup"), &[]);
    let second = folder.file_name().unwrap().to_str().unwrap().to_owned();
    cli.ok(&format!("restore {name} -y"));
    cli.run("backup --resume").ends(3, "the cluster was restored after the backup");
    cli.run(&format!("backup --resume {name}")).ends(9, "is no interrupted backup");
    cli.ok("backup");
    cli.ok("cleanup --older-than 1970-01-01 -y");
    let left = cli.json("cleanup --older-than 1970-01-01 --dry-run")["unfinished"].clone();
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
    assert!(!names(&cli).contains(&second));
}
