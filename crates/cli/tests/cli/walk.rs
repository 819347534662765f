//! The program against real servers, as a user types it: the walk, and everything that may go wrong
//! on it, each with its exit code and without a change to the database.

use std::time::Duration;

use crate::support::{Cli, wait_for};
use bson::{Document, doc};
use hindsight_format::{Operation, OperationKind, RestoreRecord, RestoreState, format_time};
use hindsight_repository::{Acquired, DEFAULT_TTL, Repository, RepositorySpec};
use hindsight_testkit::{ClusterState, Mongod, ReplicaSet, last_optime};
use jiff::Timestamp;
use mongodb::Client;

/// The first second in which nothing was written yet, once it has come.
async fn next_second(client: &Client) -> Timestamp {
    let (seconds, ..) = last_optime(client).await.unwrap();
    let next = Timestamp::from_second(i64::from(seconds) + 1).unwrap();
    while Timestamp::now() < next {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    next
}

async fn insert(client: &Client, numbers: std::ops::Range<i32>) {
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_many(numbers.map(|n| doc! {"_id": n, "text": "something"})).await.unwrap();
}

fn without_zone(time: Timestamp) -> String {
    format_time(time).trim_end_matches('Z').to_owned()
}

/// The last second that can be restored.
fn last_second(cli: &Cli) -> Option<Timestamp> {
    let ranges = cli.json("list")["pitr"]["ranges"].as_array().unwrap().clone();
    Some(ranges.last()?["to"].as_str()?.parse().unwrap())
}

/// Backup, PITR on, list, PITR off, restore, backup, PITR on: as it is written in the manual.
async fn walk(set: &ReplicaSet, cli: &Cli, name: &str) {
    let client = set.client().await.unwrap();
    insert(&client, 0..500).await;
    assert!(cli.ok("list").contains("none yet"));

    let said = cli.ok("backup");
    assert!(
        said.starts_with("Starting backup \"") && said.contains("\" saved to remote store (path: \"file:///"),
        "{said}"
    );
    let agent = cli.start("agent");
    assert_eq!(cli.ok("config --set pitr.enabled=true"), "[pitr.enabled=true]\n");
    insert(&client, 500..800).await;
    let wanted = ClusterState::read(&client).await.unwrap();
    let target = next_second(&client).await;
    client.database("shop").drop().await.unwrap();
    client.database("later").collection("things").insert_one(doc! {"a": 1}).await.unwrap();

    wait_for("the range", || last_second(cli).filter(|last| *last >= target));
    let list = cli.ok("list");
    assert!(list.contains("PITR <on>:") && list.contains("Captured until"), "{list}");
    let range = list.lines().find(|line| line.contains("base)")).unwrap().trim();
    let (from, to) = (&range[..20], &range[23..43]);
    assert!(from.ends_with('Z') && &range[20..23] == " - " && to.ends_with('Z'), "{range}");
    assert!(from.parse::<Timestamp>().is_ok() && to.parse::<Timestamp>().is_ok(), "{range}");

    assert_eq!(cli.ok("config --set pitr.enabled=false"), "[pitr.enabled=false]\n");
    let said = cli.ok(&format!("restore --time {} --yes", without_zone(target)));
    for words in
        ["Restore plan:", "is taken as UTC", "in place", "later.things", "Starting restore", "is done", "PITR is off"]
    {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    assert!(said.contains(&format!("`{name} config --set pitr.enabled=true`")), "{said}");
    let found = ClusterState::read(&client).await.unwrap();
    assert_eq!(wanted.diff(&found), Vec::<String>::new());

    cli.ok("backup");
    assert_eq!(cli.ok("config --set pitr.enabled=true"), "[pitr.enabled=true]\n");
    insert(&client, 900..950).await;
    let after = next_second(&client).await;
    insert(&client, 950..960).await;
    wait_for("the range of the new history", || last_second(cli).filter(|last| *last >= after));
    let list = cli.ok("list");
    assert!(list.contains("replaced the data") && list.contains("epoch 2"), "{list}");
    assert!(cli.ok("list --restore").contains("success"));
    let status = cli.ok("status");
    for words in ["Cluster:", "primary", "Status [ON]", "(none)", "Last restore:"] {
        assert!(status.contains(words), "no {words:?} in {status}");
    }
    // While PITR is on: the agent is suspended, and begins anew by itself.
    let said = cli.ok(&format!("restore --time {}Z --yes", without_zone(after)));
    assert!(said.contains("is suspended") && said.contains("Next: nothing"), "{said}");
    let orders = client.database("shop").collection::<Document>("orders");
    assert_eq!(orders.count_documents(doc! {"_id": {"$gte": 900}}).await.unwrap(), 50);
    wait_for("a fresh base", || cli.ok("list").contains("epoch 3").then_some(()));

    let ended = agent.end("TERM").ends(0, "capture begins");
    assert!(ended.err.contains("everything captured is stored"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_walk_as_it_is_written() {
    let set = ReplicaSet::single().await.unwrap();
    walk(&set, &Cli::new(&set.uri()), "hindsight").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_walk_under_the_name_pbm() {
    let set = ReplicaSet::single().await.unwrap();
    let cli = Cli::as_pbm(&set.uri());
    walk(&set, &cli, "pbm").await;
    let help = cli.ok("restore --help");
    assert!(
        help.contains("Usage: pbm restore") && help.contains("  pbm restore --time") && !help.contains("  hindsight ")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_has_its_exit_code_and_changes_nothing() {
    let (set, other, alone) =
        tokio::join!(ReplicaSet::single(), ReplicaSet::builder().name("other").start(), Mongod::standalone(),);
    let (set, other, alone) = (set.unwrap(), other.unwrap(), alone.unwrap());
    let cli = Cli::new(&set.uri());
    let client = set.client().await.unwrap();
    insert(&client, 0..100).await;
    cli.run("restore --time latest -y").ends(3, "nothing is stored");
    cli.run("describe-backup x").ends(9, "nothing is stored");
    let name = cli.json("backup")["name"].as_str().unwrap().to_owned();
    cli.ok("config --set pitr.enabled=true");
    let agent = cli.start("agent");
    let target = next_second(&client).await;
    insert(&client, 100..200).await;
    wait_for("the range", || last_second(&cli).filter(|last| *last >= target));
    cli.ok("config --set pitr.enabled=false");
    agent.end("TERM").ends(0, "");

    // After all that is stored, where nobody captures any more.
    let later = format_time(next_second(&client).await);
    cli.run(&format!("restore --time {later} --dry-run")).ends(0, &format!("(asked for: just before {later})"));
    let before = ClusterState::read(&client).await.unwrap();
    let time = format_time(target);
    let restore = format!("restore --time {time}");
    for (line, code, words) in [
        ("restore --time 2099-01-01T00:00:00 -y", 3, "in the future"),
        ("restore --time 2001-01-01 -y", 3, "no base snapshot found before 2001-01-01T00:00:00Z"),
        ("restore --time yesterday -y", 2, "is no time"),
        ("restore -y", 2, "`hindsight restore NAME`"),
        (&format!("restore {name} --time {time} -y"), 2, "--base-snapshot"),
        (&format!("restore {name} --base-snapshot {name} -y"), 2, "--base-snapshot goes with --time"),
        ("restore 2001-01-01T00:00:00Z -y", 9, &format!("did you mean {name}?")),
        (&format!("{restore} --base-snapshot nope -y"), 9, "there is no snapshot"),
        (&format!("{restore} --ns nonsense -y"), 2, "is no namespace"),
        (&format!("{restore} --target-dir /nowhere -y"), 3, "--uri instead of --target-dir"),
        (&format!("{restore} --ns-from shop.orders -y"), 2, "--ns-to"),
        (&restore, 2, "no terminal"),
        ("config nope", 9, "unknown setting"),
        ("config --set pitr.enable=true", 9, "pitr.enabled"),
        ("config --set pitr.enabled=maybe", 2, "true or false"),
        ("config --set pitr.enabled", 2, "KEY=VALUE"),
        ("config --set storage.type=s3", 9, "--repository"),
        ("describe-backup nope", 9, &name),
        ("describe-backup ../../x", 9, "there is no snapshot"),
        ("describe-restore nope", 9, "there is no restore"),
        ("list --cluster nope", 9, "it keeps: rs0"),
        ("list --nope", 2, "--nope"),
        ("list --settings /none", 2, "cannot be read"),
        ("list --repository /dev/null", 7, "not a folder"),
        ("repository check --repository /dev/null", 7, "not a folder"),
        ("delete-backup -y", 2, "--older-than"),
        ("delete-backup 2001-01-01T00:00:00Z -y", 9, &format!("did you mean {name}?")),
        (&format!("delete-backup {name}"), 2, "no terminal"),
        ("delete-backup --older-than 3h -y", 2, "30d"),
        ("delete-backup --older-than 3d --type external -y", 2, "logical, physical, incremental and selective"),
        ("delete-pitr -y", 2, "--older-than"),
        ("delete-pitr --all", 2, "no terminal"),
        ("cleanup --older-than 0d", 2, "no terminal"),
        ("cancel-backup", 3, "no backup is running"),
        ("logs --cluster nope", 9, "it keeps: rs0"),
        ("backup --type physical", 3, "--type logical"),
        ("backup --type nope", 2, "leave out --type"),
        ("backup --ns nonsense", 2, "is no namespace"),
        ("backup --uri mysql://me:geheim@h/db", 2, "mysql://h"),
        ("backup --uri postgres://me:geheim@127.0.0.1:1/db", 5, "no server answers"),
        ("backup --uri mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300", 5, "no answer from the database"),
        (&format!("backup --uri {}", alone.uri()), 3, "not part of a replica set"),
        (&format!("{restore} -y --uri {}", alone.uri()), 3, "--replSet"),
        (&format!("backup --cluster rs0 --uri {}", other.uri()), 3, "another cluster under the name"),
        (&format!("backup --cluster shop --uri {}", set.uri()), 2, "--cluster rs0"),
        (&format!("list --uri {}", other.uri()), 9, "it keeps: rs0"),
    ] {
        let ran = cli.run(line).ends(code, words);
        assert!(
            ran.err.starts_with("Error: ")
                || ran.err.starts_with("error: ")
                || ran.out.starts_with("Restore plan")
                || ran.out.contains(" to delete"),
            "{ran}"
        );
        assert!(!ran.err.contains("geheim"), "{ran}");
        let ran = cli.run(&format!("{line} --out=json"));
        let error: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{ran}"));
        assert!(ran.code == code && error["code"] == code && error["Error"].is_string(), "{ran}");
    }

    busy_and_damaged(&cli, &name, &restore).await;
    cut_off(&cli, &set).await;

    // What needs no database, or another one.
    let plan = cli.json(&format!("{restore} --dry-run"));
    assert!(plan["into"]["in_place"] == true && plan["base"]["name"] == name.as_str(), "{plan}");
    let plan = cli.ok(&format!("{restore} --dry-run --uri {}", other.uri()));
    assert!(plan.contains("another cluster, which the repository does not keep"), "{plan}");
    let away = "--uri mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300";
    let ran = cli.run(&format!("list {away}")).ends(0, &name);
    assert!(ran.err.contains("from the repository alone"), "{ran}");
    cli.run(&format!("status {away}")).ends(0, "not reached: no answer");
    cli.run(&format!("config --set pitr.oplogSpanMin=20 {away}")).ends(0, "[pitr.oplogSpanMin=20]");
    assert_eq!(cli.ok("config pitr.oplogSpanMin"), "20\n");
    cli.run("repository check").ends(0, "can be used");
    let described = cli.ok(&format!("describe-backup {name} --with-collections"));
    assert!(described.contains("shop.orders") && described.contains("documents: 100"), "{described}");

    assert_eq!(before.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
    assert_eq!(cli.ok("config pitr.enabled"), "false\n");

    // One collection under another name, beside the present one.
    let said = cli.ok(&format!("{restore} --ns-from shop.orders --ns-to shop.orders_then -y"));
    assert!(said.contains("shop.orders as shop.orders_then"), "{said}");
    let then = client.database("shop").collection::<Document>("orders_then");
    assert_eq!(then.count_documents(doc! {}).await.unwrap(), 100);
    let kept = before.diff(&ClusterState::read(&client).await.unwrap().retain(|_, coll| coll != "orders_then"));
    assert_eq!(kept, Vec::<String>::new());
}

/// Another operation in progress; stored data damaged.
async fn busy_and_damaged(cli: &Cli, name: &str, restore: &str) {
    let spec = RepositorySpec::new(cli.repository().display().to_string());
    let cluster = Repository::open(&spec).await.unwrap().unwrap().cluster("rs0").unwrap();
    let operation = Operation { kind: OperationKind::Backup, id: "busy".to_owned(), detail: "copying".to_owned() };
    let Acquired::Held(lease) = cluster.acquire("operation", operation, DEFAULT_TTL).await.unwrap() else { panic!() };
    cli.run("backup").ends(4, "another operation in progress: backup busy");
    cli.run(&format!("{restore} -y")).ends(4, "another operation in progress");
    cli.run("status -s running").ends(0, "backup busy on");
    lease.release().await.unwrap();

    let key = cluster.keys().snapshot_object(name, "catalog.bson.zst");
    let path = cli.repository().join(key);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 7]).unwrap();
    cli.run(&format!("{restore} -y")).ends(8, "is damaged");
    std::fs::remove_file(&path).unwrap();
    cli.run(&format!("{restore} -y")).ends(8, "missing");
    std::fs::write(&path, whole).unwrap();
}

/// A restore whose process is gone is told as what it is.
async fn cut_off(cli: &Cli, set: &ReplicaSet) {
    let spec = RepositorySpec::new(cli.repository().display().to_string());
    let cluster = Repository::open(&spec).await.unwrap().unwrap().cluster("rs0").unwrap();
    let mut record = RestoreRecord {
        format: hindsight_format::FORMAT_VERSION,
        id: "2021-02-07T03:00:00Z".to_owned(),
        state: RestoreState::InProgress,
        touched: true,
        step: "copying documents".to_owned(),
        started_at: "2021-02-07T03:00:00Z".parse().unwrap(),
        finished_at: None,
        snapshot: "x".to_owned(),
        target: "just before 2021-02-07T02:59:59Z".to_owned(),
        namespaces: Vec::new(),
        renamed: None,
        into: cluster.descriptor().await.unwrap().unwrap().identity,
        into_hosts: set.uri(),
        new_epoch: None,
        kept: None,
        reached: None,
        totals: Default::default(),
        error: None,
        run_by: "test".to_owned(),
    };
    cluster.put_restore(&record).await.unwrap();
    cli.run("list --restore").ends(0, "cut off");
    cli.run("describe-restore 2021-02-07T03:00:00Z").ends(0, "status: cut off");
    cli.run("list").ends(0, "the cluster is half restored");
    record.state = RestoreState::Success;
    cluster.put_restore(&record).await.unwrap();
    assert!(!cli.ok("status").contains("half restored"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_what_is_missing_and_no_password_is_shown() {
    const PASSWORD: &str = "sehr-geheim";
    let set = ReplicaSet::builder().auth().start().await.unwrap();
    let client = set.client().await.unwrap();
    insert(&client, 0..10).await;
    let user = |name: &str, roles: bson::Array| doc! {"createUser": name, "pwd": PASSWORD, "roles": roles};
    let admin = client.database("admin");
    admin.run_command(user("nobody", bson::Array::new())).await.unwrap();
    admin.run_command(user("keeper", vec!["backup".into(), "clusterMonitor".into()])).await.unwrap();

    let before = ClusterState::read(&client).await.unwrap();
    let cli = Cli::new(&set.uri_as("keeper", PASSWORD));
    let mut all = vec![cli.run("backup --log-level trace").ends(0, "saved to remote store")];
    for (uri, words) in [
        (set.uri_as("keeper", &format!("{PASSWORD}-not")), "does not accept user and password"),
        (set.member(0).uri(), "wants a user and a password"),
        (set.uri_as("nobody", PASSWORD), "lacks the privilege"),
    ] {
        all.push(cli.run(&format!("backup --uri {uri} --log-level trace")).ends(6, words));
        all.push(cli.run(&format!("restore --time latest -y --uri {uri}")).ends(6, words));
        all.push(cli.run(&format!("agent --uri {uri}")).ends(6, words));
    }
    all.push(cli.run("restore --time latest -y --log-level trace").ends(6, "lacks the privilege"));
    all.push(cli.run("status --log-level trace").ends(0, "primary"));
    all.push(cli.run(&format!("list mongodb://u:{PASSWORD}@h")).ends(2, "unexpected argument"));
    all.push(cli.run(&format!("list --uri mongodb://u:{PASSWORD}/@h")).ends(2, "cannot be told apart"));
    let settings = cli.folder().join("hindsight.toml");
    std::fs::write(&settings, format!("[clusters.rs0]\nuri = \"{}\"\n", set.uri_as("keeper", PASSWORD))).unwrap();
    all.push(cli.run("status --cluster rs0").ends(0, "chmod 600"));
    std::fs::write(&settings, format!("[s3]\nsecret = \"{PASSWORD}\"\n")).unwrap();
    all.push(cli.run("list").ends(2, "unknown field `secret`"));
    for ran in all {
        assert!(!ran.out.contains(PASSWORD) && !ran.err.contains(PASSWORD), "{ran}");
    }
    // Nor stored, in the logs of jobs or elsewhere.
    std::fs::remove_file(&settings).unwrap();
    assert!(cli.ok("logs --cluster rs0 -t 0").contains("[backup/"));
    let found = std::process::Command::new("grep").arg("-rlF").arg(PASSWORD).arg(cli.repository()).output().unwrap();
    assert_eq!((found.status.code(), found.stdout), (Some(1), Vec::new()));
    assert_eq!(before.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
}

#[test]
fn ctrl_c_ends_a_command_that_waits_for_a_server_that_does_not_answer() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cli = Cli::new(&format!("mongodb://{}/?directConnection=true", silent.local_addr().unwrap()));
    let started = cli.start("backup");
    std::thread::sleep(Duration::from_secs(1));
    started.end("INT").ends(130, "interrupted");
}

#[test]
fn a_connection_string_that_cannot_be_used_is_a_matter_of_usage() {
    let cli = Cli::new("mongodb://127.0.0.1:1/");
    for uri in [
        "mongodb://127.0.0.1:1/?replicaSet",
        "mongodb://127.0.0.1:1/?maxPoolSize=many",
        "mongodb://127.0.0.1:1/?tls=perhaps",
        "postgres://127.0.0.1:1/",
        "127.0.0.1:1",
    ] {
        for verb in ["backup", "agent"] {
            let ran = cli.run(&format!("{verb} --uri {uri}")).ends(2, "");
            assert!(ran.err.contains("connection string") && ran.err.contains("hint"), "{ran}");
        }
    }
    assert!(!cli.repository().exists());
}

#[test]
fn versions_and_completions_need_nothing() {
    let cli = Cli::new("nonsense");
    assert_eq!(cli.ok("version --short").trim(), env!("CARGO_PKG_VERSION"));
    assert!(cli.ok("version").contains("mongodb"));
    assert_eq!(cli.json("version")["repository_format"], 1);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(cli.ok(&format!("completion {shell}")).contains("describe-backup"));
    }
    assert!(cli.ok("--help").contains("130 interrupted"));
    cli.run("list").ends(2, "no scheme");
    cli.run("").ends(2, "Usage: hindsight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_is_proven_and_what_is_damaged_is_told_everywhere() {
    let set = ReplicaSet::single().await.unwrap();
    let client = set.client().await.unwrap();
    insert(&client, 0..500).await;
    last_optime(&client).await.unwrap();
    let cli = Cli::new(&set.uri());
    cli.run("verify").ends(9, "nothing is stored");
    let taken = cli.json("backup --hash");
    let name = taken["name"].as_str().unwrap().to_owned();
    assert!(taken["snapshot"]["hashes"].as_u64().is_some_and(|hashes| hashes >= 1), "{taken}");

    cli.run("verify nope").ends(9, "there is no snapshot");
    cli.run(&format!("verify {name} --time latest")).ends(2, "--drill");
    cli.run("verify --drill --mongod /nowhere/mongod").ends(1, "--program");
    cli.run("verify").ends(0, "Nothing is damaged.");
    let list = cli.ok("list");
    assert!(list.contains("PROOF") && list.contains("read "), "{list}");
    let mongod = hindsight_testkit::mongod_binary().unwrap().display();
    let said = cli.ok(&format!("verify {name} --drill --program {mongod}"));
    assert!(said.contains("It can be restored, and is what it should be.") && said.contains("recovery time"), "{said}");
    let status = cli.ok("status");
    assert!(status.contains("proven "), "{status}");
    let list = cli.json("list");
    assert_eq!(list["snapshots"][0]["proof"]["kind"], "drill", "{list}");
    assert!(list["snapshots"][0]["proof"]["recovery_ms"].as_u64().is_some(), "{list}");

    let clusters = cli.repository().join("clusters");
    let cluster = std::fs::read_dir(clusters).unwrap().next().unwrap().unwrap().path();
    let data = cluster.join(format!("snapshots/{name}/data"));
    let file = std::fs::read_dir(data).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let key = file.file_name().unwrap().to_string_lossy().into_owned();
    let ran = cli.run(&format!("verify {name} --drill --mongod {mongod}")).ends(8, &key);
    assert!(
        ran.out.contains("DAMAGE (1)") && ran.out.contains(&format!("snapshot {name} cannot be restored")),
        "{ran}"
    );
    assert!(ran.out.contains("No drill was made"), "{ran}");
    let ran = cli.run("verify -o json").ends(8, &key);
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&report["passed"], &report["findings"][0]["level"]), (&false.into(), &"damage".into()), "{report}");
    let list = cli.ok("list");
    assert!(list.contains("DAMAGED (read ") && list.contains("WARNING: the verification"), "{list}");
    let before = ClusterState::read(&client).await.unwrap();
    cli.run(&format!("restore {name} --yes")).ends(8, &key);
    assert_eq!(before.diff(&ClusterState::read(&client).await.unwrap()), Vec::<String>::new());
    let plan = cli.ok(&format!("restore {name} --dry-run --skip-check"));
    assert!(plan.contains("--skip-check"), "{plan}");
}
