//! PostgreSQL through the program: what torture and bad weather leave of it, and what is refused.

mod torture;
mod weather;

use hindsight_testkit::{Postgres, PostgresOptions};

use super::support::Cli;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_before_anything_is_done() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let cli = Cli::new(&server.uri_of("postgres")).installed_in(&server.new_folder("bin").unwrap());
    for (line, code, words) in [
        ("backup --type logical", 3, "--type physical"),
        ("backup --ns shop.*", 3, "leave out --ns"),
        ("restore --time latest -y", 3, "--target-dir"),
        ("restore --time latest --port 5433 -y", 2, "--target-dir"),
        ("restore --time latest --target-dir x --map y -y", 2, "NAME=DIR"),
    ] {
        cli.run(line).ends(code, words);
    }
    let name = cli.json("backup")["name"].as_str().unwrap().to_owned();
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    let directory = target.data_dir().display().to_string();
    let full = target.new_folder("full").unwrap();
    std::fs::write(full.join("file"), "").unwrap();
    let (full, port) = (full.display(), server.port());
    for (line, words) in [
        (format!("restore {name} -y"), "--target-dir"),
        (format!("restore {name} --target-dir {full} -y"), "not empty"),
        (format!("restore {name} --target-dir {directory} --ns shop.orders -y"), "pg_dump"),
        (format!("restore {name} --target-dir {directory} --port {port} -y"), "--port"),
        (format!("restore {name} --target-dir {directory} --map none=/x -y"), "none"),
        (format!("restore --time 2020-01-01 --target-dir {directory} -y"), "no base snapshot"),
        (format!("restore --time FF/1 --target-dir {directory} -y"), "FF/1"),
        ("oplog-replay --start 2020-01-01 --end 2020-01-02 -y".to_owned(), "as a part of a restore"),
    ] {
        let ran = cli.run(&line).ends(3, words);
        assert!(ran.err.contains("hint: "), "{ran}");
    }
    cli.run(&format!("restore {name} --target-dir {directory} --program /none -y")).ends(1, "--program");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    assert_eq!(cli.json("list --restore")["restores"].as_array().unwrap().len(), 0);
    // A snapshot is restored as it is, without any log after it and without the server that it is of.
    server.stop().await.unwrap();
    cli.ok(&format!("restore {name} --target-dir {directory} --no-start -y"));
    target.restart().await.unwrap();
    assert_eq!(target.sql("SELECT pg_is_in_recovery()").await.unwrap(), "f");
}
