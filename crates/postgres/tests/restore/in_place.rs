//! A restore in place: the stopped cluster is replaced by what it was, and kept, whatever happens.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use hindsight_catalog::{History as Stock, Target, plan};
use hindsight_engine::{Destination, Directory, EngineError, Gate, Preview, Restored, Selection};
use hindsight_postgres::restore;
use hindsight_postgres::wal::History;
use hindsight_repository::{Repository, RepositorySpec};
use hindsight_testkit::{Postgres, PostgresOptions};
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::refused::until;
use super::stored::Stored;
use super::{Crossed, job, options, restore_to, source};

const INSERT: &str = "INSERT INTO event SELECT FROM generate_series(1, 100)";

/// A cluster that was captured with 200 rows, and stands still with 300.
struct Scene {
    server: Arc<Postgres>,
    stored: Stored,
}

impl Scene {
    async fn new(options: PostgresOptions) -> Self {
        let server = Postgres::start(options).await.unwrap();
        let fast = server.new_folder("a fast disk").unwrap();
        server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display())).await.unwrap();
        server.sql("CREATE TABLE event (id serial primary key) TABLESPACE fast").await.unwrap();
        server.sql("ALTER SYSTEM SET work_mem = '5MB'").await.unwrap();
        server.sql(INSERT).await.unwrap();
        let stored = Stored::new().await;
        let first = History::first();
        let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &first).await;
        server.sql(INSERT).await.unwrap();
        stored.capture(&server, &first, &base, &manifest.streams["wal"].last, 1000).await;
        // What happens after that is the disaster; but how the server is run is nothing to go back on.
        server.sql(INSERT).await.unwrap();
        server.sql("ALTER SYSTEM SET work_mem = '7MB'").await.unwrap();
        server.stop().await.unwrap();
        Self { server: Arc::new(server), stored }
    }

    fn data(&self) -> PathBuf {
        self.server.data_dir()
    }

    fn beside(&self) -> PathBuf {
        with_ending(&self.data(), ".restoring")
    }

    fn directory(&self) -> Directory {
        Directory { in_place: true, start: false, ..Directory::new(self.data()) }
    }

    async fn restore(&self, directory: &Directory, gate: Arc<dyn Gate>) -> Result<(Preview, Restored), EngineError> {
        restore_to(&self.stored, &Target::Latest, directory, gate).await
    }

    async fn refused(&self, directory: &Directory) -> EngineError {
        let plan = plan(&self.stored.history().await, &Target::Latest, None, Timestamp::now()).unwrap();
        let destination = Destination::Directory(directory.clone());
        restore::prepare(&self.stored.cluster, &plan, &Selection::default(), &destination).await.unwrap_err()
    }

    /// Starts a restore in place, in a process of its own.
    fn restores_to_be_killed(&self, stage: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "in_place::is_killed", "--nocapture"])
            .env(KILLED, format!("{}|{}|{stage}", self.stored.folder.path().display(), self.data().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts the cluster as it was started first, and counts its rows.
    async fn rows(&self) -> String {
        self.server.restart().await.unwrap();
        let rows = self.server.sql("SELECT count(*) FROM event").await.unwrap();
        self.server.stop().await.unwrap();
        rows
    }

    /// The folder of the tablespace in which the cluster has its data.
    fn space(&self) -> PathBuf {
        let link = fs::read_dir(self.data().join("pg_tblspc")).unwrap().next().unwrap().unwrap();
        fs::read_link(link.path()).unwrap()
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", path.display()))
}

/// All files of a directory and when they were changed.
fn files(path: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            let name = entry.path().strip_prefix(path).unwrap().to_owned();
            found.insert(name, (metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
        }
    }
    found
}

fn sh(command: &str) {
    let done = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The command in a hint.
fn remedy(error: &EngineError) -> String {
    let hint = error.hint.as_ref().unwrap_or_else(|| panic!("no hint: {error:?}"));
    hint.rsplit_once(": ").unwrap_or_else(|| panic!("no command: {error:?}")).1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_goes_on_as_what_it_was_and_what_it_had_become_is_kept() {
    let scene = Scene::new(source()).await;
    let (data, space) = (scene.data(), scene.space());
    let before = files(&data);
    // It is found where a link leads to it, too.
    let link = data.parent().unwrap().join("main");
    symlink(&data, &link).unwrap();
    let directory = Directory { in_place: true, ..Directory::new(&link) };
    let gate = Arc::new(Crossed::default());
    let (preview, done) = scene.restore(&directory, gate.clone()).await.unwrap();
    assert_eq!(gate.0.load(Ordering::SeqCst), 1);

    // All of it was said before, in full.
    let kept = preview.kept.clone().unwrap();
    assert_eq!(kept.parent(), data.parent());
    assert!(preview.in_place && preview.into.id.bytes().all(|byte| byte.is_ascii_digit()), "{:?}", preview.into);
    assert!(preview.into_hosts.ends_with(&format!(":{}", data.display())), "{}", preview.into_hosts);
    let told = preview.notes.join("\n");
    for words in [
        format!("{} becomes {}", data.display(), kept.display()),
        format!("{} becomes {}", scene.beside().display(), data.display()),
        format!("its tablespaces where they are: {}", space.display()),
        format!("is what {} has now", data.display()),
    ] {
        assert!(told.contains(&words), "no {words:?} in {told}");
    }
    // A server runs on the port and with the options that it had, and as it was configured last.
    let server = &scene.server;
    assert!(!done.next.is_empty() && done.next[0].contains(&format!("port {}", server.port())), "{:?}", done.next);
    assert_eq!(server.sql("SELECT count(*) FROM event").await.unwrap(), "200");
    for (name, value) in
        [("work_mem", "7MB"), ("wal_keep_size", "8GB"), ("restore_command", ""), ("archive_mode", "off")]
    {
        assert_eq!(server.sql(&format!("SHOW {name}")).await.unwrap(), value, "{name}");
    }
    assert_eq!(server.sql("SELECT timeline_id FROM pg_control_checkpoint()").await.unwrap(), "2");
    let now = scene.space();
    assert!(now.parent() == space.parent() && now != space, "{}", now.display());
    server.end_of_others().await.unwrap();
    assert_eq!(files(&kept), before);
    assert!(!scene.beside().exists());

    // What it had become, and what it was, are both whole.
    assert_eq!(scene.rows().await, "200");
    let other = with_ending(&data, ".other");
    fs::rename(&data, &other).unwrap();
    fs::rename(&kept, &data).unwrap();
    assert_eq!(scene.rows().await, "300");
    fs::rename(&data, &kept).unwrap();
    fs::rename(&other, &data).unwrap();

    // Once more, with a configuration that lies elsewhere, as on Debian: nothing that was kept is in the way, and names do not
    // grow.
    let etc = server.new_folder("etc").unwrap();
    let configuration = etc.join("postgresql.conf");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(name), etc.join(name)).unwrap();
    }
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, format!("{text}\nhba_file = '{}'\n", etc.join("pg_hba.conf").display())).unwrap();
    let opts = fs::read_to_string(data.join("postmaster.opts")).unwrap();
    let opts = format!("{} \"-c\" \"config_file={}\"\n", opts.trim_end(), configuration.display());
    fs::write(data.join("postmaster.opts"), opts).unwrap();
    let (again, _) = scene.restore(&directory, Arc::new(Crossed::default())).await.unwrap();
    assert!(again.notes.iter().any(|note| note.contains(&kept.display().to_string())), "{:?}", again.notes);
    assert_eq!(server.sql("SHOW config_file").await.unwrap(), configuration.display().to_string());
    assert_eq!(server.sql("SELECT count(*) FROM event").await.unwrap(), "200");
    assert_eq!(scene.space().as_os_str().len(), now.as_os_str().len());
    // Neither of the timelines that it has been on is begun again, though the repository knows the first one alone.
    assert_eq!(server.sql("SELECT timeline_id FROM pg_control_checkpoint()").await.unwrap(), "3");
    let kept = [kept, again.kept.unwrap()];
    sh(&format!("rm -r {} {} '{}'", kept[0].display(), kept[1].display(), space.display()));
    assert_eq!(server.sql(INSERT).await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replaced_is_told_before_anything_is_touched() {
    let scene = Scene::new(source()).await;
    let data = scene.data();
    let before = files(&data);
    let refused = async |what: &str, hint: &str| {
        let error = scene.refused(&scene.directory()).await;
        assert!(error.what.contains(what), "no {what:?}: {}", error.what);
        assert!(error.hint.as_ref().is_some_and(|text| text.contains(hint)), "no {hint:?}: {error:?}");
        error
    };
    // It runs, was killed a moment ago, or has left a number that is another's by now.
    scene.server.restart().await.unwrap();
    refused("is in use by a server that runs", "pg_ctl -D").await;
    let own = data.join("postmaster.pid");
    let said = fs::read_to_string(&own).unwrap();
    fs::remove_file(&own).unwrap();
    refused("is in use by a server that runs", "pg_ctl -D").await;
    fs::write(&own, said).unwrap();
    scene.server.stop().await.unwrap();

    // Another cluster, another version, a standby, none at all.
    let moved = with_ending(&data, ".moved");
    let (pg_version, standby) = (data.join("PG_VERSION"), data.join("standby.signal"));
    fs::write(&pg_version, "14\n").unwrap();
    refused("is of PostgreSQL 14", "leave --in-place out").await;
    let version = format!("{}\n", hindsight_testkit::postgres_version().unwrap());
    fs::write(&pg_version, version).unwrap();
    fs::write(&standby, "").unwrap();
    refused("is the directory of a standby", "restore the primary's").await;
    fs::remove_file(&standby).unwrap();
    let control = data.join("global/pg_control");
    let was = fs::read(&control).unwrap();
    let mut other = was.clone();
    other[0] ^= 1;
    fs::write(&control, other).unwrap();
    refused("is another cluster", "--cluster").await;
    fs::write(&control, b"what is this").unwrap();
    refused("cannot be told", "mv ").await;
    fs::write(&control, was).unwrap();
    fs::rename(&data, &moved).unwrap();
    refused("does not exist", "leave --in-place out").await;
    fs::create_dir(&data).unwrap();
    let owner = fs::metadata(&moved).unwrap();
    chown(&data, Some(owner.uid()), Some(owner.gid())).unwrap();
    refused("has no PG_VERSION", "leave --in-place out").await;
    fs::remove_dir(&data).unwrap();
    fs::rename(&moved, &data).unwrap();

    // Its configuration leads elsewhere.
    let configuration = data.join("postgresql.conf");
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, format!("{text}data_directory = '/srv/other'\n")).unwrap();
    refused("runs in /srv/other", "name /srv/other").await;
    fs::write(&configuration, text).unwrap();

    // The tablespace of the one that is to be kept is no place for a new one.
    let mapped = vec![("fast".to_owned(), scene.space())];
    let error = scene.refused(&Directory { mapped, ..scene.directory() }).await;
    assert!(error.what.contains("is not empty") && error.hint.unwrap().contains("map it to another"), "{}", error.what);
    let mapped = vec![("fast".to_owned(), data.join("x"))];
    assert!(scene.refused(&Directory { mapped, ..scene.directory() }).await.what.contains("cannot be in"));

    assert_eq!(before.keys().collect::<Vec<_>>(), files(&data).keys().collect::<Vec<_>>());
    assert_eq!(scene.rows().await, "300");
}

/// What a gate does to the restore that crosses it.
#[derive(Debug)]
enum Blow {
    /// The old directory cannot be moved.
    Block,
    /// What was restored is gone.
    Remove(PathBuf),
    /// A server is started in the old directory, after that was looked at.
    Start(Arc<Postgres>),
    /// The restore is killed.
    Kill,
}

/// A gate that does harm, and counts how often the harm was undone.
struct Harmful {
    blow: Blow,
    kept: PathBuf,
    undone: AtomicU64,
}

#[async_trait]
impl Gate for Harmful {
    async fn cross(&self) -> hindsight_engine::Result<()> {
        match &self.blow {
            Blow::Block => fs::create_dir_all(self.kept.join("x")).unwrap(),
            Blow::Remove(beside) => fs::rename(beside, with_ending(beside, ".gone")).unwrap(),
            Blow::Start(server) => server.restart().await.unwrap(),
            Blow::Kill => kill_process(Pid::from_raw(std::process::id() as i32).unwrap(), Signal::KILL).unwrap(),
        }
        Ok(())
    }

    async fn undone(&self) -> hindsight_engine::Result<()> {
        self.undone.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_fails_is_undone() {
    let scene = Scene::new(source()).await;
    let (data, beside) = (scene.data(), scene.beside());
    let plan = plan(&scene.stored.history().await, &Target::Latest, None, Timestamp::now()).unwrap();
    let fails = async |blow: Blow| {
        let (all, destination) = (Selection::default(), Destination::Directory(scene.directory()));
        let preview = restore::prepare(&scene.stored.cluster, &plan, &all, &destination).await.unwrap();
        let kept = preview.kept.clone().unwrap();
        let gate = Arc::new(Harmful { blow, kept: kept.clone(), undone: AtomicU64::new(0) });
        let (job, options) = (job(&scene.stored.cluster), options(gate.clone()));
        let command = super::command();
        let run = restore::run_asking(&job, &plan, &all, &destination, &preview, &options, command);
        let error = run.await.unwrap_err();
        assert_eq!(gate.undone.load(Ordering::SeqCst), 1, "{error:?}");
        (error, kept)
    };
    // Somebody does not know of the restore. Their server has not noticed.
    let (error, kept) = fails(Blow::Start(Arc::clone(&scene.server))).await;
    assert!(error.what.contains("is in use by a server") && !kept.exists(), "{}", error.what);
    scene.server.sql("CHECKPOINT").await.unwrap();
    assert_eq!(scene.rows().await, "300");
    sh(&remedy(&error));
    let before = files(&data);
    // The first of the two names cannot be changed.
    let (error, kept) = fails(Blow::Block).await;
    assert!(error.what.contains("cannot become"), "{}", error.what);
    assert_eq!(files(&data), before);
    assert!(remedy(&error).starts_with(&format!("rm -r {}", beside.display())), "{error:?}");
    sh(&remedy(&error));
    fs::remove_dir_all(kept).unwrap();
    let left = fs::read_dir(data.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path().display().to_string());
    let left: Vec<String> = left.filter(|path| path.contains(".rest") || path.contains(".before")).collect();
    assert!(left.is_empty(), "{left:?}");
    // The second.
    let (error, kept) = fails(Blow::Remove(beside.clone())).await;
    assert!(error.what.contains("cannot become") && !kept.exists(), "{}", error.what);
    assert_eq!(files(&data), before);
    let gone = with_ending(&beside, ".gone");
    fs::rename(&gone, &beside).unwrap();
    let error = scene.refused(&scene.directory()).await;
    assert!(error.what.contains("was cut off, or runs"), "{}", error.what);
    sh(&remedy(&error));
    // The server does not start: its port is taken.
    let taken = std::net::TcpListener::bind(("127.0.0.1", scene.server.port())).unwrap();
    let gate = Arc::new(Crossed::default());
    let error = scene.restore(&Directory { start: true, ..scene.directory() }, gate.clone()).await.unwrap_err();
    assert_eq!(gate.0.load(Ordering::SeqCst), 1);
    assert!(error.what.contains("Address already in use"), "{}", error.what);
    assert!(error.hint.as_ref().unwrap().contains("--no-start"), "{error:?}");
    assert_eq!(files(&data), before);
    sh(&remedy(&error));
    drop(taken);
    assert_eq!(scene.rows().await, "300");
    let (_, done) = scene.restore(&scene.directory(), Arc::new(Crossed::default())).await.unwrap();
    assert!(done.next.iter().any(|next| next.contains("-o ") && next.contains("port=")), "{:?}", done.next);
    assert_eq!(scene.rows().await, "200");
}

const KILLED: &str = "HINDSIGHT_TEST_IN_PLACE";

/// Restores in place what the environment says, for a process that is killed: while it recovers, by itself at the gate, or at
/// any time.
#[tokio::test(flavor = "multi_thread")]
async fn is_killed() {
    let Ok(said) = std::env::var(KILLED) else { return };
    let words: Vec<&str> = said.split('|').collect();
    let [folder, place, stage] = words.as_slice() else { panic!("{said}") };
    let repository = Repository::open(&RepositorySpec::new((*folder).to_owned())).await.unwrap().unwrap();
    let cluster = repository.cluster("shop").unwrap();
    let (snapshots, slices) = (cluster.snapshots().await.unwrap(), cluster.slices().await.unwrap());
    let history = Stock { snapshots, slices, ..Stock::default() };
    let plan = plan(&history, &Target::Latest, None, Timestamp::now()).unwrap();
    let directory = Directory { in_place: true, start: false, ..Directory::new(*place) };
    let (all, destination) = (Selection::default(), Destination::Directory(directory));
    let preview = restore::prepare(&cluster, &plan, &all, &destination).await.unwrap();
    let kept = preview.kept.clone().unwrap();
    let gate: Arc<dyn Gate> = match *stage {
        "any" => Arc::new(Crossed::default()),
        _ => Arc::new(Harmful { blow: Blow::Kill, kept, undone: AtomicU64::new(0) }),
    };
    let (job, options) = (job(&cluster), options(gate));
    let command = match *stage {
        "gate" | "any" => super::command(),
        _ => "while [ -d hindsight.restore ]; do sleep 0.1; done; exit 255".to_owned(),
    };
    restore::run_asking(&job, &plan, &all, &destination, &preview, &options, command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_it_is_killed_the_old_directory_is_whole_and_the_next_attempt_says_what_to_do() {
    let scene = Scene::new(source()).await;
    let (data, beside) = (scene.data(), scene.beside());
    let before = files(&data);
    // While a server recovers beside it.
    let mut child = scene.restores_to_be_killed("recovery");
    let log = beside.join("hindsight.restore/log");
    until("the server recovers", || {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        fs::read_to_string(&log).is_ok_and(|log| log.contains("database system was interrupted"))
    })
    .await;
    let pid = fs::read_to_string(beside.join("postmaster.pid")).unwrap();
    let recovering = Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the server ends", || test_kill_process(recovering).is_err()).await;
    assert_eq!(files(&data), before);
    assert_eq!(scene.rows().await, "300");
    let error = scene.refused(&scene.directory()).await;
    assert!(error.what.contains("was cut off, or runs"), "{}", error.what);
    assert!(remedy(&error).contains("a fast disk.restored-"), "{error:?}");
    sh(&remedy(&error));

    // When all is ready, right before the first name is changed.
    let before = files(&data);
    let mut child = scene.restores_to_be_killed("gate");
    assert!(!child.wait().unwrap().success());
    assert_eq!(files(&data), before);
    assert_eq!(scene.rows().await, "300");
    let error = scene.refused(&scene.directory()).await;
    assert!(error.what.contains("was cut off, or runs"), "{}", error.what);

    // Between the two names: that is how it is then.
    let before = files(&data);
    let kept = with_ending(&data, ".before-20260101T000000Z");
    fs::rename(&data, &kept).unwrap();
    let error = scene.refused(&scene.directory()).await;
    assert!(error.what.contains(&format!("had moved it to {}", kept.display())), "{}", error.what);
    assert!(remedy(&error).starts_with(&format!("mv {} {} && rm -r ", kept.display(), data.display())), "{error:?}");
    sh(&remedy(&error));
    assert!(!beside.exists() && !kept.exists());
    assert_eq!(files(&data), before);

    // After what it says there is nothing in the way.
    scene.restore(&scene.directory(), Arc::new(Crossed::default())).await.unwrap();
    assert_eq!(scene.rows().await, "200");
}

/// Short by default; `IN_PLACE_KILLS` says how often. Wherever it is killed, one command leads back to a cluster that is whole.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_time_it_leaves_a_cluster_that_is_whole() {
    let scene = Scene::new(source()).await;
    let data = scene.data();
    let kills: u32 = std::env::var("IN_PLACE_KILLS").map_or(2, |kills| kills.parse().unwrap());
    // How long it takes, of one that is left alone.
    let begun = Instant::now();
    assert!(scene.restores_to_be_killed("any").wait().unwrap().success());
    let takes = begun.elapsed();
    let mut seen = BTreeMap::new();
    for kill in 0..=kills {
        if kill > 0 {
            let mut child = scene.restores_to_be_killed("any");
            // The later part of it is the one that matters.
            tokio::time::sleep(takes.mul_f64(1.1 - 0.8 * f64::from(kill - 1) / f64::from(kills))).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let own = scene.beside().join("postmaster.pid");
        let pid = || fs::read_to_string(&own).ok().and_then(|text| Pid::from_raw(text.lines().next()?.parse().ok()?));
        until("the server ends", || pid().is_none_or(|pid| test_kill_process(pid).is_err())).await;
        let plan = plan(&scene.stored.history().await, &Target::Latest, None, Timestamp::now()).unwrap();
        let destination = Destination::Directory(scene.directory());
        let prepared = restore::prepare(&scene.stored.cluster, &plan, &Selection::default(), &destination).await;
        let told = prepared.err().map_or("nothing is left".to_owned(), |error| {
            sh(&remedy(&error));
            error.what.split(": ").last().unwrap().to_owned()
        });
        let mut names = fs::read_dir(data.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
        let kept = names.find(|path| path.display().to_string().contains(".before-"));
        assert_eq!(scene.rows().await, if kept.is_some() { "200" } else { "300" }, "{told}");
        // As it was, for the next one.
        if let Some(kept) = &kept {
            sh(&format!("rm -r {0} && mv {1} {0}", data.display(), kept.display()));
            assert_eq!(scene.rows().await, "300");
        }
        *seen.entry((told, kept.is_some())).or_insert(0) += 1;
    }
    println!("{kills} kills of a restore of {takes:?}: {seen:?}");
}
