//! What cannot be restored is told before anything is touched; what was cut off is told from what is whole.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hindsight_catalog::{Target, plan};
use hindsight_engine::{Destination, Directory, EngineError, FailureKind, Selection};
use hindsight_postgres::restore;
use hindsight_postgres::wal::History;
use hindsight_repository::{Repository, RepositorySpec};
use hindsight_testkit::{Postgres, PostgresOptions};
use jiff::Timestamp;
use rustix::process::{Pid, test_kill_process};

use super::stored::Stored;
use super::{Crossed, job, options, restore_to, source};

/// A small base with a little log, and an empty place to restore to.
async fn small() -> (Stored, Postgres) {
    let server = Postgres::start(source()).await.unwrap();
    server.sql("CREATE TABLE event (id int)").await.unwrap();
    let stored = Stored::new().await;
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &History::first()).await;
    for id in 1..=20 {
        server.sql(&format!("INSERT INTO event VALUES ({id})")).await.unwrap();
    }
    stored.capture(&server, &History::first(), &base, &manifest.streams["wal"].last, 4).await;
    (stored, Postgres::prepare(PostgresOptions::default()).unwrap())
}

fn directory(place: &Postgres) -> Directory {
    Directory { start: false, ..Directory::new(place.data_dir()) }
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).unwrap().next().is_none()
}

async fn prepare(stored: &Stored, selection: &Selection, destination: &Destination) -> EngineError {
    let plan = plan(&stored.history().await, &Target::Latest, None, Timestamp::now()).unwrap();
    restore::prepare(&stored.cluster, &plan, selection, destination).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_named() {
    let (stored, place) = small().await;
    let all = Selection::default();
    let refused = async |directory: Directory| prepare(&stored, &all, &Destination::Directory(directory)).await;
    let some = Selection::new(vec!["public.event".to_owned()]).unwrap();
    let error = prepare(&stored, &some, &Destination::Directory(directory(&place))).await;
    assert!(error.what.contains("public.event alone cannot be") && error.hint.unwrap().contains("pg_dump -t"));
    let error = prepare(&stored, &all, &Destination::Connected).await;
    assert!(error.hint.unwrap().contains("--target-dir"));

    // Programs of another version.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("postgres");
    fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9 (Debian 14.9-1)'\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let error = refused(Directory { program: Some(program), ..directory(&place) }).await;
    assert!(error.what.contains("14.9 (Debian 14.9-1)") && error.kind == FailureKind::Unsupported, "{}", error.what);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Some(taken.local_addr().unwrap().port());
    assert!(refused(Directory { port, ..directory(&place) }).await.hint.unwrap().contains("--port"));

    let mapped = vec![("fast".to_owned(), "/x".into())];
    assert!(refused(Directory { mapped, ..directory(&place) }).await.what.contains("no tablespace \"fast\""));

    // Root owns what it makes, and a server does not run as root.
    if rustix::process::geteuid().is_root() {
        let own = folder.path().join("own");
        let error = refused(Directory::new(&own)).await;
        assert!(error.hint.unwrap().contains("install -d -o"), "{}", error.what);
        fs::create_dir(&own).unwrap();
        let error = refused(Directory::new(&own)).await;
        assert!(error.what.contains("belongs to root"), "{}", error.what);
        // Its owner does not get through the folders above.
        chown(&own, Some(65_534), Some(65_534)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let error = refused(Directory::new(&own)).await;
        assert!(error.what.contains("cannot be written to by nobody"), "{}", error.what);
    }
    assert!(is_empty(&place.data_dir()));
    fs::write(place.data_dir().join("a file"), "").unwrap();
    assert!(refused(directory(&place)).await.what.contains("is not empty: it has \"a file\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_before_anything_is_touched() {
    let (stored, place) = small().await;
    let gate = Arc::new(Crossed::default());
    let failed = async || {
        let error = restore_to(&stored, &Target::Latest, &directory(&place), gate.clone()).await.unwrap_err();
        assert_eq!((error.kind, gate.0.load(Ordering::SeqCst)), (FailureKind::Damaged, 0), "{}", error.what);
        assert!(is_empty(&place.data_dir()), "{}", error.what);
        error.what
    };
    let log = stored.files("/log/");
    assert!(log.len() > 4);
    let own = stored.files("/wal/").into_iter().find(|path| !log.contains(path)).unwrap();
    let of_base = [&stored.files("/data/base/")[1], &own, &stored.files("backup_manifest")[0]];
    for path in of_base.into_iter().chain([&log[2]]) {
        let whole = fs::read(path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 3] ^= 4;
        fs::write(path, damaged).unwrap();
        let error = failed().await;
        assert!(error.contains(name), "{error}");
        fs::remove_file(path).unwrap();
        if path != &log[2] {
            let error = failed().await;
            assert!(error.contains(name), "{error}");
        }
        fs::write(path, whole).unwrap();
    }
    restore_to(&stored, &Target::Latest, &directory(&place), gate).await.unwrap();
}

/// What is looked for may be in another slice than the one that is damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_found_beside_damage() {
    let server = Postgres::start(source()).await.unwrap();
    server.sql("CREATE TABLE event (id int)").await.unwrap();
    let stored = Stored::new().await;
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &History::first()).await;
    for id in 1..=20 {
        server.sql(&format!("INSERT INTO event VALUES ({id})")).await.unwrap();
    }
    let xid = server.sql("SELECT xmin FROM event WHERE id = 2").await.unwrap();
    stored.capture(&server, &History::first(), &base, &manifest.streams["wal"].last, 4).await;
    let newest = stored.files("/log/").pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 4;
    fs::write(&newest, bytes).unwrap();
    super::target(&stored, &format!("xid:{xid}")).await.unwrap();
    // Where it is not found it may be in what cannot be read.
    let error = super::target(&stored, "xid:4000000000").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Damaged, "{}", error.what);
}

/// A slice that was there when the plan was made is gone when the log is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_goes_away_is_told_as_missing() {
    let (stored, place) = small().await;
    let (all, destination) = (Selection::default(), Destination::Directory(directory(&place)));
    let plan = plan(&stored.history().await, &Target::Latest, None, Timestamp::now()).unwrap();
    let preview = restore::prepare(&stored.cluster, &plan, &all, &destination).await.unwrap();
    fs::remove_file(&stored.files("/log/")[2]).unwrap();
    let gate = Arc::new(Crossed::default());
    let (job, options) = (job(&stored.cluster), options(gate.clone()));
    let run = restore::run_asking(&job, &plan, &all, &destination, &preview, &options, super::command());
    let error = run.await.unwrap_err();
    let source = error.source.as_ref().and_then(|source| source.downcast_ref::<hindsight_repository::Error>());
    assert!(source.is_some_and(hindsight_repository::Error::is_missing), "{}", error.what);
    assert!(is_empty(&place.data_dir()) && gate.0.load(Ordering::SeqCst) == 0);
}

/// The server's user may do anything in its directory, but leads nobody else out of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_links_to_is_left_alone() {
    let (stored, place) = small().await;
    let other = place.new_folder("other").unwrap().join("file");
    fs::write(&other, "# somebody else's\n").unwrap();
    let links = format!("ln -sf '{}' postgresql.auto.conf; {}", other.display(), super::command());
    let gate = Arc::new(Crossed::default());
    super::restore_asking(&stored, &Target::Latest, &directory(&place), gate, links).await.unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "# somebody else's\n");
    let settings = place.data_dir().join("postgresql.auto.conf");
    assert!(!settings.is_symlink() && fs::read_to_string(&settings).unwrap().contains("archive_mode = 'off'"));
}

const CUT_OFF: &str = "HINDSIGHT_TEST_CUT_OFF";

/// Restores what the environment says, with a log that never comes: for a process that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn cut_off() {
    let Ok(said) = std::env::var(CUT_OFF) else { return };
    let (folder, place) = said.split_once('|').unwrap();
    let repository = Repository::open(&RepositorySpec::new(folder.to_owned())).await.unwrap().unwrap();
    let cluster = repository.cluster("shop").unwrap();
    let (snapshots, slices) = (cluster.snapshots().await.unwrap(), cluster.slices().await.unwrap());
    let history = hindsight_catalog::History { snapshots, slices, ..hindsight_catalog::History::default() };
    let plan = plan(&history, &Target::Latest, None, Timestamp::now()).unwrap();
    let (all, destination) = (Selection::default(), Destination::Directory(Directory::new(place)));
    let preview = restore::prepare(&cluster, &plan, &all, &destination).await.unwrap();
    let (job, options) = (job(&cluster), options(Arc::new(Crossed::default())));
    let waits = "while [ -d hindsight.restore ]; do sleep 0.1; done; exit 255".to_owned();
    restore::run_asking(&job, &plan, &all, &destination, &preview, &options, waits).await.unwrap();
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what}: not within two minutes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_leaves_no_server_and_is_told_from_a_whole_one() {
    let (stored, place) = small().await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "refused::cut_off", "--nocapture"])
        .env(CUT_OFF, format!("{}|{}", stored.folder.path().display(), place.data_dir().display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let log = place.data_dir().join("hindsight.restore/log");
    let recovers = || fs::read_to_string(&log).is_ok_and(|log| log.contains("database system was interrupted"));
    until("the server recovers", || {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        recovers()
    })
    .await;
    let pid = fs::read_to_string(place.data_dir().join("postmaster.pid")).unwrap();
    let pid = Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the server ends", || test_kill_process(pid).is_err()).await;
    let error =
        restore_to(&stored, &Target::Latest, &directory(&place), Arc::new(Crossed::default())).await.unwrap_err();
    let shown = place.data_dir().display().to_string();
    assert!(error.what.contains("is half restored"), "{}", error.what);
    assert!(error.hint.as_ref().unwrap().contains(&format!("rm -r {shown}")), "{:?}", error.hint);

    // What it says is enough.
    let remedy = error.hint.unwrap().split_once(": ").unwrap().1.to_owned();
    assert!(Command::new("sh").args(["-c", &remedy]).status().unwrap().success(), "{remedy}");
    restore_to(&stored, &Target::Latest, &directory(&place), Arc::new(Crossed::default())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_cancelled_ends_its_server() {
    let (stored, place) = small().await;
    let (all, destination) = (Selection::default(), Destination::Directory(directory(&place)));
    let plan = plan(&stored.history().await, &Target::Latest, None, Timestamp::now()).unwrap();
    let preview = restore::prepare(&stored.cluster, &plan, &all, &destination).await.unwrap();
    let (job, options) = (job(&stored.cluster), options(Arc::new(Crossed::default())));
    let waits = "while [ -d hindsight.restore ]; do sleep 0.1; done; exit 255".to_owned();
    let run = restore::run_asking(&job, &plan, &all, &destination, &preview, &options, waits);
    let file = place.data_dir().join("postmaster.pid");
    let mut pid = None;
    let cancel = async {
        until("the server recovers", || {
            pid = fs::read_to_string(&file).ok().and_then(|text| Pid::from_raw(text.lines().next()?.parse().ok()?));
            pid.is_some()
        })
        .await;
        job.cancel.cancel();
    };
    let (done, ()) = tokio::join!(run, cancel);
    assert_eq!(done.unwrap_err().kind, FailureKind::Cancelled);
    // Children of one that is ended within a command may take some seconds.
    until("the server ends", || test_kill_process(pid.unwrap()).is_err()).await;
}
