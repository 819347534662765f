//! Bad weather: servers that lack something, are others than they were or have lost their log, stored log that is damaged,
//! and repositories that are away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hindsight_repository::Identity;
use hindsight_testkit::{PgState, Postgres, PostgresOptions, S3_SECRET_KEY, S3Server, postgres_version};
use secrecy::ExposeSecret as _;

use crate::secrets::{Heard, children};
use crate::support::{Cli, Started, captured, same, setting, state_at, wait_for};

/// The program for a server whose log is to be captured.
async fn captured_by(cli: Cli, server: &Postgres) -> (Cli, Started) {
    let cli = cli.installed_in(&server.new_folder("bin").unwrap());
    cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1");
    let agent = cli.start_logged("agent", &cli.folder().join("agent.log"));
    wait_for("a first base", || base(&cli, 0));
    (cli, agent)
}

/// Whether there is a snapshot with this number.
fn base(cli: &Cli, number: usize) -> Option<()> {
    cli.json("list")["snapshots"].get(number).map(|_| ())
}

fn log(cli: &Cli) -> String {
    std::fs::read_to_string(cli.folder().join("agent.log")).unwrap_or_default()
}

/// The end of the log, when all that was written is before it.
async fn position(server: &Postgres) -> String {
    server.sql("SELECT pg_switch_wal()").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_lacks_is_named_with_its_remedy_and_nothing_is_switched_on() {
    let doors = ["host all all 127.0.0.1/32 trust", "host replication postgres,weak 127.0.0.1/32 trust"];
    let server = Postgres::start(PostgresOptions::default().hba(&doors)).await.unwrap();
    server.sql("CREATE ROLE weak LOGIN; CREATE ROLE closed LOGIN REPLICATION").await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    let set = async |settings: &[&str]| {
        for setting in settings {
            server.sql(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
        }
        server.restart().await.unwrap();
    };
    // In the words of the server's version.
    let version = postgres_version().unwrap();
    let role = if version < 16 { "replication role" } else { "REPLICATION attribute" };
    let exceeded = if version < 17 { "exceeds max_wal_senders" } else { "exceeds \"max_wal_senders\"" };
    for (settings, user, code, what, hint) in [
        (&["wal_level = minimal", "max_wal_senders = 0"][..], "postgres", 3, "wal_level", "wal_level = replica"),
        (&["wal_level = replica"], "postgres", 3, "max_wal_senders", "max_wal_senders = 10"),
        (
            &["max_wal_senders = 10", "max_replication_slots = 0"],
            "postgres",
            1,
            "replication slot",
            "raise max_replication_slots",
        ),
        (&["max_replication_slots = 10"], "weak", 6, role, "ALTER ROLE name REPLICATION"),
        (&[], "closed", 6, "pg_hba.conf", "pg_hba.conf"),
    ] {
        if !settings.is_empty() {
            set(settings).await;
        }
        for line in ["backup", "config --set pitr.enabled=true"] {
            let ran = cli.run(&format!("{line} --uri {}", server.uri_of(user))).ends(code, what);
            let told = ran.err.split_once("hint: ").unwrap_or_else(|| panic!("no hint: {ran}")).1.to_owned();
            assert!(told.contains(hint), "no {hint:?} in {ran}");
        }
        assert_eq!(cli.ok("config pitr.enabled").trim(), "false");
        assert!(cli.json("list")["snapshots"].as_array().unwrap().is_empty());
    }
    assert_eq!(server.sql("SELECT count(*) FROM pg_replication_slots").await.unwrap(), "0");

    // An agent that runs says why, and goes on by itself when it is no longer so; one that is started then is refused.
    cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1");
    set(&["max_replication_slots = 10"]).await;
    let agent = cli.start_logged("agent", &cli.folder().join("agent.log"));
    wait_for("a first base", || base(&cli, 0));
    set(&["max_wal_senders = 0"]).await;
    wait_for("the cause", || log(&cli).contains(exceeded).then_some(()));
    cli.run("agent").ends(3, "max_wal_senders = 10");
    set(&["max_wal_senders = 10"]).await;
    let end = position(&server).await;
    server.sql("CREATE TABLE t (n int)").await.unwrap();
    captured(&cli, &end);
    agent.end("TERM").ends(0, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_protected_as_its_primary_would_be() {
    let primary = Postgres::start(PostgresOptions::default()).await.unwrap();
    let standby = primary.standby(PostgresOptions::default()).await.unwrap();
    let (cli, agent) = captured_by(Cli::new(&standby.uri_of("postgres")), &standby).await;
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    let end = position(&primary).await;
    let state = PgState::read(&primary.uri()).await.unwrap();
    captured(&cli, &end);
    let name = cli.json("backup")["name"].as_str().unwrap().to_owned();
    cli.run("status").ends(0, "standby");
    same(&state, &state_at(&cli, &format!("--time {end}")).await);
    same(&state, &state_at(&cli, &name).await);
    agent.end("TERM").ends(0, "");
    cli.run("config --set pitr.enabled=false").ends(0, "slot");
    assert_eq!(standby.sql("SELECT count(*) FROM pg_replication_slots").await.unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_reset_is_a_gap_with_its_cause_and_what_was_before_stays() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let (cli, agent) = captured_by(Cli::new(&server.uri_of("postgres")), &server).await;
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    let before = position(&server).await;
    let state = PgState::read(&server.uri()).await.unwrap();
    captured(&cli, &before);
    server.stop().await.unwrap();
    server.reset_wal(&["-f"]).await.unwrap();
    server.restart().await.unwrap();
    server.sql("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    // There is a new base by itself.
    wait_for("a second base", || base(&cli, 1));
    server.sql("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    let after = position(&server).await;
    captured(&cli, &after);
    let gaps = cli.json("list")["pitr"]["gaps"].clone();
    assert!(gaps[0]["cause"].as_str().is_some_and(|cause| cause.contains("removed its log")), "{gaps}");
    assert!(log(&cli).contains("gap in the log from"), "{}", log(&cli));
    same(&PgState::read(&server.uri()).await.unwrap(), &state_at(&cli, &format!("--time {after}")).await);
    same(&state, &state_at(&cli, &format!("--time {before}")).await);
    cli.run("verify").ends(0, "Nothing is damaged.");
    agent.end("TERM").ends(0, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_is_not_taken_for_the_one_that_is_kept() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let other = Postgres::start(PostgresOptions::default()).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres"));
    cli.ok("backup --cluster shop");
    let known = server.sql("SELECT system_identifier FROM pg_control_system()").await.unwrap();
    let found = other.sql("SELECT system_identifier FROM pg_control_system()").await.unwrap();
    for line in ["backup", "config --set pitr.enabled=true", "agent"] {
        let ran = cli.run(&format!("{line} --cluster shop --uri {}", other.uri_of("postgres"))).ends(3, "shop");
        assert!(ran.err.contains(&known) && ran.err.contains(&found) && ran.err.contains("--cluster"), "{ran}");
    }
    assert_eq!(cli.json("list --cluster shop")["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(cli.ok("config pitr.enabled --cluster shop").trim(), "false");
    assert_eq!(other.sql("SELECT count(*) FROM pg_replication_slots").await.unwrap(), "0");
}

/// The stored slices of the log, oldest first.
fn slices(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(slices(&path)),
            false if path.display().to_string().contains("/log/") => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_log_is_named_before_anything_is_touched() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let (cli, agent) = captured_by(Cli::new(&server.uri_of("postgres")), &server).await;
    server.sql("CREATE TABLE t (n int)").await.unwrap();
    let mut moments = Vec::new();
    for _ in 0..3 {
        server.sql("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
        let end = position(&server).await;
        captured(&cli, &end);
        moments.push((format!("--time {end}"), PgState::read(&server.uri()).await.unwrap(), slices(&cli.repository())));
    }
    agent.end("TERM").ends(0, "");
    let [(first, state, before), (second, ..), (_, _, all)] = moments.as_slice() else { panic!("{moments:?}") };
    // One that was stored between the first moment and the second.
    let victim = all.iter().find(|slice| !before.contains(slice)).unwrap();
    let bytes = std::fs::read(victim).unwrap();
    let name = victim.file_name().unwrap().to_str().unwrap().to_owned();
    let mut spoilt = bytes.clone();
    spoilt[bytes.len() / 3] ^= 1;
    for (how, harmed) in
        [("cut", Some(&bytes[..bytes.len() / 2])), ("empty", Some(&[])), ("spoilt", Some(&spoilt)), ("gone", None)]
    {
        match harmed {
            Some(harmed) => std::fs::write(victim, harmed).unwrap(),
            None => std::fs::remove_file(victim).unwrap(),
        }
        let place = Postgres::prepare(PostgresOptions::default()).unwrap();
        let ran = cli.run(&format!("restore {second} --target-dir {} -y", place.data_dir().display()));
        // What is gone is no part of the log any more.
        match harmed {
            Some(_) => assert!(ran.code == 8 && ran.err.contains(&name), "{how}: {ran}"),
            None => assert!(ran.code == 3 && ran.err.contains("hint: "), "{how}: {ran}"),
        }
        assert_eq!(std::fs::read_dir(place.data_dir()).unwrap().count(), 0, "{how}");
        let ran = cli.run("verify");
        match harmed {
            Some(_) => assert!(ran.code == 8 && (ran.out + &ran.err).contains(&name), "{how}"),
            None => assert!(!cli.json("list")["pitr"]["gaps"].as_array().unwrap().is_empty(), "{how}"),
        }
        std::fs::write(victim, &bytes).unwrap();
    }
    same(state, &state_at(&cli, first).await);
    cli.run("verify").ends(0, "Nothing is damaged.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_waits_on_the_server_while_the_repository_is_away() {
    let s3 = S3Server::start("bkt").unwrap();
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let there = [("HINDSIGHT_REPOSITORY", "s3://bkt".to_owned())];
    let cli = Cli::new(&server.uri_of("postgres")).with(s3.env()).with(there);
    let (cli, agent) = captured_by(cli, &server).await;
    server.sql("CREATE TABLE t (n int)").await.unwrap();
    s3.stop();
    let mut positions = Vec::new();
    // More than the agent would keep in memory, over a checkpoint that would remove it, and a restart.
    for turn in 0..5 {
        server.sql("INSERT INTO t SELECT generate_series(1, 100000); DELETE FROM t WHERE n > 10").await.unwrap();
        server.sql("CHECKPOINT").await.unwrap();
        positions.push(position(&server).await);
        if turn == 3 {
            server.restart().await.unwrap();
        }
    }
    let state = PgState::read(&server.uri()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(setting("AWAY_SECS", 4))).await;
    let kept = format!("SELECT restart_lsn <= '{}' FROM pg_replication_slots", positions[0]);
    assert_eq!(server.sql(&kept).await.unwrap(), "t");
    s3.go_on().unwrap();
    let last = positions.last().unwrap();
    captured(&cli, last);
    assert!(cli.json("list")["pitr"]["gaps"].as_array().unwrap().is_empty());
    same(&state, &state_at(&cli, &format!("--time {last}")).await);
    // It is let go when it is stored.
    wait_for("the end of the slot", || {
        let freed = format!("SELECT restart_lsn >= '{last}' FROM pg_replication_slots");
        let asked = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(server.sql(&freed)));
        (asked.unwrap() == "t").then_some(())
    });
    agent.end("TERM").ends(0, "");
}

const PASSWORD: &str = "Kw7-distinctive-password";
const WRONG: &str = "Kw7-distinctive-wrong-password";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_and_with_a_password_into_a_sealed_repository_no_secret_is_said() {
    let lines = [
        "hostssl all hindsight 127.0.0.1/32 scram-sha-256",
        "hostssl replication hindsight 127.0.0.1/32 scram-sha-256",
    ];
    let options = PostgresOptions { tls: true, ..PostgresOptions::default() };
    let server = Postgres::start(options.hba(&lines)).await.unwrap();
    let authority = server.certificates().unwrap().authority().display().to_string();
    let parameters = format!("?sslmode=verify-full&sslrootcert={authority}&channel_binding=require");
    let uri = |password: &str| format!("{}{parameters}", server.uri_of(&format!("hindsight:{password}")));
    let identity = Identity::generate();
    let private = identity.expose().expose_secret().trim().to_owned();
    let cli = Cli::new(&uri(PASSWORD)).installed_in(&server.new_folder("bin").unwrap());
    let key = cli.folder().join("key.txt");
    std::fs::write(&key, &private).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let cli = cli.with([("RUST_LOG", "trace".to_owned()), ("RUST_BACKTRACE", "1".to_owned())]);
    let secrets = [PASSWORD, WRONG, S3_SECRET_KEY, private.rsplit('\n').next().unwrap()];
    let mut heard = Heard::listen(&secrets);

    // The role that is shown does.
    let roles = heard.ran(cli.run("roles --engine postgresql").ends(0, "CREATE ROLE hindsight")).out;
    let statement = roles.lines().find(|line| line.starts_with("CREATE ROLE")).unwrap();
    server.sql(&format!("{statement} ALTER ROLE hindsight PASSWORD '{PASSWORD}'")).await.unwrap();
    server.sql("CREATE TABLE hushed AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    heard.ran(cli.run(&format!("repository init --recipient {}", identity.recipients()[0])).ends(0, "sealed"));
    heard.ran(cli.run("config --set pitr.enabled=true pitr.uploadIntervalSec=1 --log-level trace").ends(0, "slot"));
    let agent = cli.start_logged("agent --log-level trace", &cli.folder().join("agent.log"));
    wait_for("a first base", || base(&cli, 0));
    let name = heard.ran(cli.run("backup --log-level trace -o json").ends(0, "name")).out;
    let name = serde_json::from_str::<serde_json::Value>(&name).unwrap()["name"].as_str().unwrap().to_owned();
    server.sql("INSERT INTO hushed SELECT generate_series(1, 1000)").await.unwrap();
    let end = position(&server).await;
    let state = PgState::read(&server.uri()).await.unwrap();

    // Without the private key nothing is touched; with it everything comes back, and no child is told a secret.
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    let line =
        format!("restore --time {end} --target-dir {} --no-start --log-level trace", target.data_dir().display());
    heard.ran(cli.run(&format!("{line} -y")).ends(2, "--identity"));
    let with = format!("--identity {}", key.display());
    wait_for("the log", || (cli.run(&format!("{line} --dry-run {with}")).code == 0).then_some(()));
    assert_eq!(std::fs::read_dir(target.data_dir()).unwrap().count(), 0);
    let restore = cli.start(&format!("{line} -y {with}"));
    let (process, mut seen) = (restore.id(), 0);
    let watched = tokio::task::spawn_blocking(move || restore.ended());
    while !watched.is_finished() {
        for child in children(process) {
            let read = |name| std::fs::read(child.join(name)).unwrap_or_default();
            let line = read("cmdline");
            // Before it becomes another program it is a copy of its parent.
            if String::from_utf8_lossy(&line).contains("/bin/postgres") {
                seen += 1;
                heard.of("the command line of a child", &line);
                heard.of("the environment of a child", &read("environ"));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    heard.ran(watched.await.unwrap().ends(0, "is done."));
    assert!(seen > 0, "the server that replays was not seen");
    target.restart().await.unwrap();
    same(&state, &PgState::read(&target.uri()).await.unwrap());
    heard.folder(&target.data_dir(), &[]);

    for line in ["list", "status", "config --list", "verify", "logs -t 0", "list --restore -o json"] {
        let ran = heard.ran(cli.run(&format!("{line} {with} --log-level trace")));
        assert_eq!(ran.code, 0, "{ran}");
    }
    heard.ran(cli.run(&format!("describe-backup {name} --log-level trace")).ends(0, ""));
    for (uri, code) in [
        (uri(WRONG), 6),
        (uri(PASSWORD).replace("hindsight:", "postgres:"), 6),
        (uri(PASSWORD).replace("verify-full", "disable").replace("channel_binding=require", ""), 6),
        (uri(PASSWORD).replace("verify-full", "nonsense"), 2),
    ] {
        for verb in ["backup", "status", "config --set pitr.enabled=true"] {
            for more in ["", " -o json"] {
                let ran = heard.ran(cli.run(&format!("{verb} --uri {uri} --log-level trace{more}")).unsaid());
                assert!(ran.code == code || verb == "status" || ran.code == 5, "{code}: {ran}");
            }
        }
    }
    agent.end("TERM").ends(0, "");
    heard.folder(cli.folder(), &[&key]);
}
