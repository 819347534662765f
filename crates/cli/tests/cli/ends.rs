//! PostgreSQL: a copy beside its source, and times at and after the end of what is stored.

use hindsight_testkit::{Postgres, PostgresOptions};

use super::support::{Cli, restored, same, state, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_kept_beside_its_source_and_never_taken_for_it() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    server.sql("CREATE TABLE t (a text)").await.unwrap();
    let name = cli.json("backup --cluster shop")["name"].as_str().unwrap().to_owned();
    // The same server under another name is no copy.
    cli.run("backup --cluster shop2").ends(2, "--cluster shop");

    // It leaves its source where what is stored ends.
    let copy = restored(&cli, &name).await;
    copy.sql("INSERT INTO t VALUES ('copy')").await.unwrap();
    server.sql("INSERT INTO t VALUES ('source')").await.unwrap();
    let uri = copy.uri_of("postgres");
    for line in [format!("backup --uri {uri}"), format!("backup --uri {uri} --cluster shop")] {
        let ran = cli.run(&line).ends(3, "left timeline 1 at 0/");
        assert!(ran.err.contains("is on timeline 2") && ran.err.contains("--cluster NAME"), "{ran}");
    }
    assert_eq!(cli.json("list --cluster shop")["snapshots"].as_array().unwrap().len(), 1);
    // Beside it, also once its source has gone on.
    cli.ok(&format!("backup --uri {uri} --cluster copy"));
    cli.ok("backup --cluster shop");
    let ran = cli.run(&format!("backup --uri {uri} --cluster shop")).ends(3, "left timeline 1 at 0/");
    assert!(ran.err.contains("stored is 0/"), "{ran}");
    cli.run("backup").ends(2, "copy, shop");
    cli.run("backup --cluster copy").ends(3, "does not come from");
    for (cluster, count) in [("shop", 2), ("copy", 1)] {
        assert_eq!(cli.json(&format!("list --cluster {cluster}"))["snapshots"].as_array().unwrap().len(), count);
    }
    for (cluster, source) in [("shop", &server), ("copy", &copy)] {
        let back = restored(&cli, &format!("--time latest --cluster {cluster}")).await;
        same(&state(source).await, &state(&back).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_is_exact_while_nobody_works_and_clamped_where_the_log_ends() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    cli.ok("config --set pitr.enabled=true pitr.uploadIntervalSec=1");
    server.sql("CREATE TABLE t (a text)").await.unwrap();
    let log = cli.folder().join("agent.log");
    let agent = cli.start_logged("agent", &log);
    let taken = || !cli.json("list")["snapshots"].as_array().unwrap().is_empty();
    wait_for("a snapshot by the agent", || taken().then_some(()));
    server.sql("INSERT INTO t VALUES ('first')").await.unwrap();
    let now = async || {
        server.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')").await.unwrap()
    };
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    let planned = |time: &str| format!("restore --time {time} --target-dir {} --dry-run", target.data_dir().display());

    // It is about to be captured: nobody gets less than what waiting gives.
    server.sql("SELECT pg_sleep(2.1)").await.unwrap();
    let moment = now().await;
    let ran = cli.run(&planned(&moment)).ends(3, "cannot be restored yet");
    assert!(ran.err.contains("run it again") && ran.err.contains("--time latest"), "{ran}");
    cli.run(&format!("verify --drill --time {moment}")).ends(3, "cannot be restored yet");
    // Nobody works, no log is written, and time passes: what was stored of the last work suffices for it.
    server.sql("SELECT pg_sleep(8)").await.unwrap();
    assert_eq!(agent.end("TERM").code, 0, "{}", std::fs::read_to_string(&log).unwrap());
    let plan = cli.json(&planned(&moment));
    assert!(plan["clamped"].is_null() && plan["restore_point"].as_str().unwrap().contains(&moment), "{plan}");
    // Also for an agent that begins while nobody works.
    let agent = cli.start_logged("agent", &log);
    let moment = now().await;
    let running = || (cli.json("status")["pitr"]["capture"]["running"] == true).then_some(());
    wait_for("the agent", running);
    server.sql("SELECT pg_sleep(9)").await.unwrap();
    assert_eq!(agent.end("TERM").code, 0, "{}", std::fs::read_to_string(&log).unwrap());
    assert!(cli.json(&planned(&moment))["clamped"].is_null());
    cli.run("verify").ends(0, "Nothing is damaged.");

    // What nobody captured is not there, and that is said.
    let before = state(&server).await;
    server.sql("INSERT INTO t VALUES ('later')").await.unwrap();
    server.sql("SELECT pg_sleep(1.1)").await.unwrap();
    let moment = now().await;
    let asked = format!("(asked for: just before {moment})");
    let plan = cli.json(&planned(&moment));
    let words = plan["restore_point"].as_str().unwrap();
    assert!(words.starts_with("everything that is stored, through ") && words.ends_with(&asked), "{plan}");
    assert!(plan["clamped"]["asked_for"] == *moment && plan["clamped"]["ends"] == plan["time"], "{plan}");
    assert!(plan["clamped"]["missing_secs"].as_i64() > Some(0), "{plan}");
    cli.run(&planned(&moment)).ends(0, "is not restored").ends(0, "no agent captures");
    let back = restored(&cli, &format!("--time {moment}")).await;
    same(&before, &state(&back).await);
    cli.run("list --restore").ends(0, &asked);
    // A drill leads where a restore does.
    let tried = cli.json(&format!("verify --drill --time {moment}"));
    assert_eq!(tried["drill"]["passed"], true, "{tried}");
    assert_eq!(tried["drill"]["restore_point"], plan["restore_point"], "{tried}");
    cli.run("verify --drill --time 2100-01-01T00:00:00Z").ends(3, "in the future");
    cli.run(&planned("2100-01-01T00:00:00Z")).ends(3, "in the future");
}
