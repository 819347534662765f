//! The program with a sealed repository, and what it lets others see: files, names, secrets.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::{Cli, wait_for};
use bson::doc;
use hindsight_repository::Identity;
use hindsight_testkit::{ClusterState, ReplicaSet};
use secrecy::ExposeSecret;

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// A pair of keys: the public one, and the file of the private one.
fn keys(cli: &Cli, name: &str) -> (String, PathBuf, String) {
    let identity = Identity::generate();
    let path = cli.folder().join(name);
    let secret = identity.expose().expose_secret().to_owned();
    std::fs::write(&path, &secret).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    (identity.recipients()[0].to_string(), path, secret.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_repository_is_used_without_and_opened_with_the_private_key() {
    let set = ReplicaSet::single().await.unwrap();
    let client = set.client().await.unwrap();
    client.database("hush").collection("plans").insert_many((0..50).map(|n| doc! {"_id": n})).await.unwrap();
    let cli = Cli::new(&set.uri());
    let (key, file, secret) = keys(&cli, "key.txt");
    let (other_key, other_file, _) = keys(&cli, "other.txt");
    let with = |file: &Path| format!("--identity {}", file.display());

    cli.run("repository recipients").ends(9, "no repository");
    cli.run(&format!("repository init --recipient {secret}")).ends(2, "private key");
    assert!(cli.ok(&format!("repository init --recipient {key}")).contains(&format!("sealed to\n  {key}\n")));
    cli.run("repository init").ends(3, &format!("already, sealed to {key}"));
    assert!(cli.ok("repository check").contains(&format!("Sealed to {key}.")));
    assert_eq!(cli.json("repository check")["sealed_to"][0], key);

    // None of this needs the private key.
    cli.ok("backup");
    let name = cli.json("list")["snapshots"][0]["name"].as_str().unwrap().to_owned();
    cli.ok("backup --ns hush.plans");
    let agent = cli.start("agent");
    cli.ok("config --set pitr.enabled=true --set pitr.uploadIntervalSec=1");
    client.database("hush").collection("plans").insert_one(doc! {"_id": "late"}).await.unwrap();
    wait_for("the range", || cli.json("list")["pitr"]["ranges"].get(0).map(|_| ()));
    cli.ok("status");
    let list = cli.ok("list");
    assert!(list.contains("(sealed)") && !list.contains("hush"), "{list}");
    let described = cli.ok(&format!("describe-backup {name}"));
    assert!(described.contains(&key) && !described.contains(set.uri().split('/').nth(2).unwrap()), "{described}");
    assert_eq!(agent.end("TERM").code, 0);

    // This does, and refuses without a change.
    let before = ClusterState::read(&client).await.unwrap();
    let restore = format!("restore {name} --yes");
    cli.run(&restore).ends(2, &key).ends(2, "--identity");
    cli.run(&format!("describe-backup {name} --with-collections")).ends(2, &key);
    cli.run(&format!("{restore} {}", with(&other_file))).ends(3, &other_key);
    cli.run(&format!("{restore} --identity /nowhere")).ends(2, "cannot be read");
    std::fs::write(cli.folder().join("bad.txt"), format!("{secret}x")).unwrap();
    let bad = cli.run(&format!("{restore} {}", with(&cli.folder().join("bad.txt")))).ends(2, "line 1");
    assert!(!bad.err.contains(&secret), "{bad}");
    assert!(cli.ok("list --restore").contains("none"));
    assert_eq!(before.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());

    let described = cli.ok(&format!("describe-backup {name} --with-collections {}", with(&file)));
    assert!(described.contains("hush.plans"), "{described}");
    client.database("hush").drop().await.unwrap();
    let said = cli.run(&format!("{restore} {} --log-level debug", with(&file)));
    assert_eq!(said.code, 0, "{said}");
    let plans = client.database("hush").collection::<bson::Document>("plans");
    assert_eq!(plans.count_documents(doc! {}).await.unwrap(), 50);

    // New data are sealed to another key; a file in the environment's or the settings' place.
    let said = cli.ok(&format!("repository recipients --add {other_key} --remove {key}"));
    assert!(said.contains(&other_key) && !said.contains(&key), "{said}");
    cli.run(&format!("repository recipients --remove {other_key}")).ends(3, "last recipient");
    cli.ok("backup");
    let newest = cli.json("list")["snapshots"].as_array().unwrap().last().unwrap()["name"].as_str().unwrap().to_owned();
    std::fs::write(cli.folder().join("hindsight.toml"), format!("identity = '{}'\n", other_file.display())).unwrap();
    assert!(cli.ok(&format!("describe-backup {newest} --with-collections")).contains("hush.plans"));
    cli.run(&format!("describe-backup {name} --with-collections")).ends(3, &key);
    cli.ok(&format!("describe-backup {name} --with-collections {} {}", with(&file), with(&other_file)));

    for path in files(&cli.repository()) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
        assert!(!text.contains("hush") && !text.contains("SECRET"), "{}", path.display());
    }
    assert!(!said.contains("SECRET"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_cannot_move_the_cursor_and_files_are_private() {
    let set = ReplicaSet::single().await.unwrap();
    let client = set.client().await.unwrap();
    let name = "evil\u{1b}[2J\nError: \u{202e}\u{9b}31m\u{7}";
    client.database("app").collection(name).insert_one(doc! {"_id": 1}).await.unwrap();
    let cli = Cli::new(&set.uri());
    cli.ok("backup");
    cli.ok("config --set pitr.enabled=true");
    for path in files(&cli.repository()) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{}", path.display());
    }
    let snapshot = cli.json("list")["snapshots"][0]["name"].as_str().unwrap().to_owned();
    let hurts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    for line in [
        format!("describe-backup {snapshot} --with-collections"),
        format!("restore {snapshot} --dry-run"),
        format!("describe-backup {snapshot} --with-collections -o json-pretty"),
        "restore \u{1b}[2J\u{9b} --dry-run".to_owned(),
        "list --cluster \u{1b}[2J".to_owned(),
    ] {
        let ran = cli.run(&line);
        assert!(!ran.out.contains(hurts) && !ran.err.contains(hurts), "{line:?}: {:?} {:?}", ran.out, ran.err);
        assert!(!ran.out.lines().any(|line| line.starts_with("Error: ")), "{line}: {}", ran.out);
    }
    let described = cli.json(&format!("describe-backup {snapshot} --with-collections"));
    let collections = described["collections"].as_array().unwrap();
    assert!(collections.iter().any(|one| one["name"] == format!("app.{name}")), "{described}");
}
