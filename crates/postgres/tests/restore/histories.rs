//! Bases of standbys, switches of timelines, tablespaces, slices that are merged meanwhile, servers that stay.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use hindsight_catalog::Target;
use hindsight_engine::{Directory, Gate};
use hindsight_postgres::wal::{History, Segment, SegmentSize};
use hindsight_repository::{ClusterRepository, merge_slices};
use hindsight_testkit::{Postgres, PostgresOptions};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::stored::{Stored, clock};
use super::{Crossed, command, restore_asking, restore_to, restored, source, target};

const INSERT: &str = "INSERT INTO event SELECT FROM generate_series(1, 100)";

async fn caught_up(standby: &Postgres, server: &Postgres) {
    let end = server.sql("SELECT pg_current_wal_lsn()").await.unwrap();
    while standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")).await.unwrap() != "t" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_of_a_standby_and_a_log_that_goes_on_in_another_timeline() {
    let server = Postgres::start(source()).await.unwrap();
    server.sql("CREATE TABLE event (id serial primary key)").await.unwrap();
    let standby = server.standby(source()).await.unwrap();
    server.sql(INSERT).await.unwrap();
    server.sql("CHECKPOINT").await.unwrap();
    caught_up(&standby, &server).await;
    standby.sql("CHECKPOINT").await.unwrap();
    let stored = Stored::new().await;
    let first = History::first();
    let (manifest, base) = stored.back_up(&standby, "2026-01-01T00:00:00Z", &first).await;
    let since = manifest.streams["wal"].last.clone();
    server.sql(INSERT).await.unwrap();
    let before = clock(&server).await;
    let since = stored.capture(&server, &first, &base, &since, 1).await;
    server.sql(INSERT).await.unwrap();
    caught_up(&standby, &server).await;
    standby.promote().await.unwrap();
    server.stop().await.unwrap();
    let file = fs::read_to_string(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
    let second = History::parse(2, &file).unwrap();
    standby.sql(INSERT).await.unwrap();
    standby.sql("SELECT pg_create_restore_point('promoted')").await.unwrap();
    standby.sql(INSERT).await.unwrap();
    stored.capture(&standby, &second, &base, &since, 1000).await;
    standby.stop().await.unwrap();

    for (target, rows, timeline) in [
        (Target::Latest, "500", "3"),
        (target(&stored, "name:promoted").await.unwrap(), "400", "3"),
        // Before the switch the new timeline is none of those that there were after it.
        (Target::Before(before), "200", "3"),
        (Target::Snapshot(manifest.id.clone()), "100", "3"),
    ] {
        let (found, _, _) = restored(&stored, &target).await;
        assert_eq!(found.sql("SELECT count(*) FROM event").await.unwrap(), rows, "{target:?}");
        assert_eq!(found.sql("SELECT timeline_id FROM pg_control_checkpoint()").await.unwrap(), timeline, "{target:?}");
        assert_eq!(found.sql("SHOW primary_conninfo").await.unwrap(), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_go_to_folders_of_their_own() {
    let server = Postgres::start(source()).await.unwrap();
    let folder = server.new_folder("a fast disk").unwrap();
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", folder.display())).await.unwrap();
    server.sql("CREATE TABLE event (id serial primary key) TABLESPACE fast").await.unwrap();
    server.sql(INSERT).await.unwrap();
    let stored = Stored::new().await;
    let first = History::first();
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &first).await;
    server.sql(INSERT).await.unwrap();
    let since = stored.capture(&server, &first, &base, &manifest.streams["wal"].last, 1000).await;
    let lsn = server.sql("SELECT pg_current_wal_lsn()").await.unwrap();

    let source_folder =
        |server: &Postgres| fs::read_dir(server.data_dir().parent().unwrap().join("a fast disk")).unwrap().count();
    for mapped in [None, Some("mapped")] {
        let place = Postgres::prepare(PostgresOptions::default()).unwrap();
        let new = mapped.map(|name| place.new_folder(name).unwrap());
        let mapped = new.iter().map(|path| ("fast".to_owned(), path.clone())).collect();
        let directory = Directory { start: false, mapped, ..Directory::new(place.data_dir()) };
        let gate = Arc::new(Crossed::default());
        let (preview, _) = restore_to(&stored, &Target::Latest, &directory, gate).await.unwrap();
        let expected = new.unwrap_or_else(|| {
            let oid = base.tablespaces[0].oid.to_string();
            Path::new(&format!("{}.tablespaces", place.data_dir().display())).join(oid)
        });
        let note = format!("the tablespace fast goes to {}", expected.display());
        assert!(preview.notes.contains(&note), "{:?}", preview.notes);
        place.restart().await.unwrap();
        assert_eq!(place.sql("SELECT count(*) FROM event").await.unwrap(), "200");
        let location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'";
        assert_eq!(place.sql(location).await.unwrap(), expected.display().to_string());
        place.sql(INSERT).await.unwrap();
    }
    // The source's has not noticed.
    assert_eq!((server.sql("SELECT count(*) FROM event").await.unwrap().as_str(), source_folder(&server)), ("200", 1));

    // One that is created later would be the source's own.
    let late = server.new_folder("late").unwrap();
    server.sql(&format!("CREATE TABLESPACE late LOCATION '{}'", late.display())).await.unwrap();
    server.sql("CREATE TABLE more (id int) TABLESPACE late").await.unwrap();
    stored.capture(&server, &first, &base, &since, 1000).await;
    let place = Postgres::prepare(PostgresOptions::default()).unwrap();
    let directory = Directory { start: false, ..Directory::new(place.data_dir()) };
    let gate = Arc::new(Crossed::default());
    let refused = restore_to(&stored, &Target::Latest, &directory, gate.clone()).await.unwrap_err();
    assert!(refused.what.contains(&late.display().to_string()), "{}", refused.what);
    assert!(
        gate.0.load(std::sync::atomic::Ordering::SeqCst) == 0
            && fs::read_dir(place.data_dir()).unwrap().next().is_none()
    );
    // Before that it can be.
    let before = target(&stored, &lsn).await.unwrap();
    restore_to(&stored, &before, &directory, gate).await.unwrap();
}

/// Merges all that was captured when the gate is crossed, as an agent does at any time.
struct Merging(ClusterRepository);

#[async_trait]
impl Gate for Merging {
    async fn cross(&self) -> hindsight_engine::Result<()> {
        let slices = self.0.slices().await?;
        merge_slices(&self.0, "wal", 1, &slices, 1, 3).await?;
        for slice in slices {
            self.0.delete_slice(&slice).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_may_be_merged_and_segments_asked_for_again_while_they_are_replayed() {
    let server = Postgres::start(source()).await.unwrap();
    server.sql("CREATE TABLE event (id serial primary key)").await.unwrap();
    let stored = Stored::new().await;
    let first = History::first();
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &first).await;
    for _ in 0..4 {
        server.sql(INSERT).await.unwrap();
        server.sql("SELECT pg_switch_wal()").await.unwrap();
    }
    server.sql(INSERT).await.unwrap();
    stored.capture(&server, &first, &base, &manifest.streams["wal"].last, 1).await;
    let place = Postgres::prepare(PostgresOptions::default()).unwrap();
    let directory = Directory { start: false, ..Directory::new(place.data_dir()) };
    assert!(stored.cluster.slices().await.unwrap().len() > 2);
    // The first segment is asked for again before each, as by a server that starts over, and each is asked for twice.
    let first = Segment::at(1, base.start, SegmentSize::DEFAULT).name(SegmentSize::DEFAULT);
    let again = "hindsight.restore/again";
    let ask = |file: &str, to: &str| command().replace("%f", file).replace("%p", to);
    let command = format!("{} || exit 255; {}; {}", ask(&first, again), ask("%f", again), ask("%f", "%p"));
    let merging = Arc::new(Merging(stored.cluster.clone()));
    restore_asking(&stored, &Target::Latest, &directory, merging, command).await.unwrap();
    assert_eq!(stored.cluster.slices().await.unwrap().len(), 1);
    place.restart().await.unwrap();
    assert_eq!(place.sql("SELECT count(*) FROM event").await.unwrap(), "500");
}

/// Ends a server that was left running.
struct Left(Pid);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::QUIT);
        while test_kill_process(self.0).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_left_running_as_it_is_configured() {
    let server = Postgres::start(source()).await.unwrap();
    let sockets = server.new_folder("sockets").unwrap();
    server.sql("CREATE TABLE event (id serial primary key)").await.unwrap();
    for setting in [
        &format!("unix_socket_directories = '{}'", sockets.display()),
        "archive_mode = 'on'",
        "archive_command = 'false'",
        "shared_buffers = '16MB'",
        "work_mem = '7MB'",
    ] {
        server.sql(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    // It would take what its source is to get.
    server.sql("CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)").await.unwrap();
    server.sql("ALTER SUBSCRIPTION s ENABLE").await.unwrap();
    let stored = Stored::new().await;
    let first = History::first();
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &first).await;
    server.sql(INSERT).await.unwrap();
    // Who has made a cluster need not be called postgres.
    server.sql("CREATE ROLE admin SUPERUSER LOGIN").await.unwrap();
    let rename = async |from: &str, to: &str| {
        let mut psql = server.program("psql");
        psql.env("PGUSER", "admin").args(["-X", "-q", "-c", &format!("ALTER ROLE {from} RENAME TO {to}")]);
        assert!(psql.status().unwrap().success());
    };
    rename("postgres", "boss").await;
    let text = |psql: &mut std::process::Command| {
        let output = psql.args(["-X", "-A", "-t", "-q"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let now = text(server.program("psql").env("PGUSER", "admin").args(["-c", "SELECT pg_current_wal_insert_lsn()"]));
    rename("boss", "postgres").await;
    stored.capture(&server, &first, &base, &manifest.streams["wal"].last, 1000).await;
    let renamed = target(&stored, &now).await.unwrap();

    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = Postgres::prepare(PostgresOptions::default()).unwrap();
    let directory = Directory { port: Some(port), ..Directory::new(place.data_dir()) };
    let (_, done) = restore_to(&stored, &renamed, &directory, Arc::new(Crossed::default())).await.unwrap();
    let pid = fs::read_to_string(place.data_dir().join("postmaster.pid")).unwrap();
    let left = Left(Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap());
    let next = &done.next[0];
    assert!(next.contains(&format!("listens on port {port}, and its socket is in {}", sockets.display())), "{next}");
    let ask = |sql: &str| {
        let mut psql = server.program("psql");
        psql.env("PGHOST", &sockets).env("PGPORT", port.to_string()).env("PGUSER", "boss");
        text(psql.args(["-c", sql]))
    };
    assert_eq!(ask("SELECT count(*) FROM event"), "100");
    for (name, value) in [
        ("archive_mode", "off"),
        ("shared_buffers", "16MB"),
        ("work_mem", "7MB"),
        ("fsync", "on"),
        ("max_logical_replication_workers", "0"),
        ("restore_command", ""),
        ("recovery_target_lsn", ""),
    ] {
        assert_eq!(ask(&format!("SHOW {name}")), value, "{name}");
    }
    assert!(done.next.iter().any(|next| next.contains("subscriptions are held back")), "{:?}", done.next);
    let names: Vec<String> = fs::read_dir(place.data_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|name| name == "hindsight.restore" || name.ends_with(".signal")), "{names:?}");

    // The port is taken now: the data are restored all the same, and what to do is said.
    let second = Postgres::prepare(PostgresOptions::default()).unwrap();
    server.sql(&format!("ALTER SYSTEM SET port = {port}")).await.unwrap();
    let (manifest, _) = stored.back_up(&server, "2026-01-02T00:00:00Z", &first).await;
    let snapshot = Target::Snapshot(manifest.id);
    let directory = Directory::new(second.data_dir());
    let (_, done) = restore_to(&stored, &snapshot, &directory, Arc::new(Crossed::default())).await.unwrap();
    assert!(done.next[0].contains("does not start as it is configured"), "{:?}", done.next);
    assert!(done.next[0].contains("set another port"), "{:?}", done.next);
    drop(left);
}

/// What a configuration says that names the source's own directory counts more than where a server is told to start.
#[tokio::test(flavor = "multi_thread")]
async fn the_directory_of_the_source_is_not_started_instead() {
    let server = Postgres::start(source()).await.unwrap();
    let configuration = server.data_dir().join("postgresql.conf");
    let line = format!("data_directory = '{}'\n", server.data_dir().display());
    fs::write(&configuration, fs::read_to_string(&configuration).unwrap() + &line).unwrap();
    let stored = Stored::new().await;
    let (manifest, _) = stored.back_up(&server, "2026-01-01T00:00:00Z", &History::first()).await;
    server.stop().await.unwrap();
    for start in [true, false] {
        let place = Postgres::prepare(PostgresOptions::default()).unwrap();
        let directory = Directory { start, ..Directory::new(place.data_dir()) };
        let snapshot = Target::Snapshot(manifest.id.clone());
        let (_, done) = restore_to(&stored, &snapshot, &directory, Arc::new(Crossed::default())).await.unwrap();
        assert!(
            !server.data_dir().join("postmaster.pid").exists() && !place.data_dir().join("postmaster.pid").exists()
        );
        let next = &done.next[0];
        assert!(next.contains("remove that line") && next.contains(&server.data_dir().display().to_string()), "{next}");
        assert!(!done.next.iter().any(|next| next.contains("pg_ctl")), "{:?}", done.next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_nobody_may_connect_to_is_in_nobodys_way() {
    let server = Postgres::start(source()).await.unwrap();
    server.sql("ALTER DATABASE template1 ALLOW_CONNECTIONS false").await.unwrap();
    let stored = Stored::new().await;
    let (manifest, _) = stored.back_up(&server, "2026-01-01T00:00:00Z", &History::first()).await;
    server.stop().await.unwrap();
    let (_, _, done) = restored(&stored, &Target::Snapshot(manifest.id.clone())).await;
    assert_eq!(done.totals.collections, 3);
}
