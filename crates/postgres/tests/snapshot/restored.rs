//! What is stored is all that a server needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hindsight_format::{SnapshotKind, SnapshotManifest};
use hindsight_postgres::base::StoredBase;
use hindsight_postgres::wal::{Segment, SegmentSize};
use hindsight_postgres::{Address, Lsn, base, of_point};
use hindsight_repository::ClusterRepository;
use hindsight_testkit::{Postgres, PostgresOptions};

use crate::checked::check;
use crate::{ID, back_up, frames, job, raw, repository, server_with, taken};

/// Unpacks a snapshot with nothing but what it is documented to hold: archives, and the log from the beginning of a segment on.
/// Tablespaces go where `tablespaces` says. Then PostgreSQL's own program has to be content with it.
pub(crate) async fn unpack(
    cluster: &ClusterRepository,
    manifest: &SnapshotManifest,
    to: &Postgres,
    tablespaces: &BTreeMap<u32, PathBuf>,
) {
    let data = to.data_dir();
    let folders: BTreeSet<_> =
        manifest.objects.iter().filter_map(|object| Some(object.name.rsplit_once('/')?.0)).collect();
    for folder in folders {
        let tar = data.with_file_name("archive.tar");
        let mut file = File::create(&tar).unwrap();
        for object in manifest.objects.iter().filter(|object| object.name.starts_with(folder)) {
            for (_, frame) in frames(cluster, &object.name, Some(object)).await {
                file.write_all(&frame).unwrap();
            }
        }
        let into = match folder.strip_prefix("data/").unwrap() {
            "base" => data.clone(),
            oid => tablespaces[&oid.parse().unwrap()].clone(),
        };
        let done = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(into).status().unwrap();
        assert!(done.success());
    }
    for (oid, path) in tablespaces {
        symlink(path, data.join("pg_tblspc").join(oid.to_string())).unwrap();
    }
    write_log(cluster, manifest, &data).await;

    let list = data.with_file_name("backup_manifest");
    fs::write(&list, raw(cluster, "backup_manifest.zst").await).unwrap();
    let verified = to.program("pg_verifybackup").arg("-m").arg(&list).arg(&data).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));

    let map = data.join("tablespace_map");
    if map.exists() {
        let links = tablespaces.iter().map(|(oid, path)| format!("{oid} {}\n", path.display())).collect::<String>();
        fs::write(map, links).unwrap();
    }
    // The server may run as somebody else.
    for path in tablespaces.values() {
        let owner = format!("--reference={}", to.socket_folder().display());
        assert!(Command::new("chown").args(["-R", &owner]).arg(path).status().unwrap().success());
    }
}

/// Splits the snapshot's own log into files, as `split -b 16M` does.
async fn write_log(cluster: &ClusterRepository, manifest: &SnapshotManifest, data: &Path) {
    let (size, part) = (SegmentSize::DEFAULT, &manifest.streams["wal"]);
    let (first, _) = of_point(&part.first).unwrap();
    assert_eq!(first.0 % u64::from(size.bytes()), 0, "it begins with a segment");
    let (mut at, mut before) = (first, part.first.clone());
    let mut segments = BTreeMap::<u64, (u32, Vec<u8>)>::new();
    for slice in &part.slices {
        assert_eq!(slice.start, before);
        before = slice.end.clone();
        let mut raw = 0;
        for (timeline, frame) in frames(cluster, &format!("wal/{slice}"), None).await {
            raw += frame.len();
            for piece in frame.chunks(8192) {
                let number = at.0 / u64::from(size.bytes());
                let (newest, bytes) = segments.entry(number).or_default();
                *newest = timeline;
                let room = (number + 1) * u64::from(size.bytes()) - at.0;
                let (now, later) = piece.split_at(piece.len().min(usize::try_from(room).unwrap()));
                bytes.extend_from_slice(now);
                at = at.checked_add(now.len() as u64).unwrap();
                if !later.is_empty() {
                    segments.insert(number + 1, (timeline, later.to_vec()));
                    at = at.checked_add(later.len() as u64).unwrap();
                }
            }
        }
        assert!(raw <= 33 << 20, "{raw} bytes are in {slice}");
    }
    assert_eq!((before.position, at), (part.last.position.clone(), of_point(&part.last).unwrap().0));
    assert!(before.time <= part.last.time);
    for (number, (timeline, mut bytes)) in segments {
        bytes.resize(size.bytes() as usize, 0);
        fs::write(data.join("pg_wal").join(Segment { timeline, number }.name(size)), bytes).unwrap();
    }
}

/// What there is to compare: a line for each question.
async fn contents(server: &Postgres) -> Vec<String> {
    let mut all = Vec::new();
    for question in [
        "SELECT count(*), sum(hashtext(t::text)) FROM t",
        "SELECT count(*), sum(a) FROM apart",
        "SELECT count(*) FROM gone",
        "SELECT md5(string_agg(data, '' ORDER BY pageno)) FROM pg_largeobject",
        "SELECT last_value FROM numbers",
        "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database",
        "SELECT spcname FROM pg_tablespace ORDER BY 1",
    ] {
        all.push(server.sql(question).await.unwrap());
    }
    all
}

/// A server with something of everything.
async fn shop() -> Postgres {
    server_with(&[
        "CREATE DATABASE other",
        "CREATE TABLE t AS SELECT a, md5(a::text) AS b FROM generate_series(1, 50000) AS a",
        "CREATE TABLE apart TABLESPACE fast AS SELECT generate_series(1, 100000) AS a",
        "CREATE INDEX ON apart (a)",
        "CREATE UNLOGGED TABLE gone AS SELECT generate_series(1, 1000) AS a",
        "SELECT lo_from_bytea(0, decode(repeat('c0ffee', 100000), 'hex'))",
        "CREATE SEQUENCE numbers; SELECT nextval('numbers') FROM generate_series(1, 70)",
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_alone_makes_a_server() {
    let (server, (cluster, _folder)) = (shop().await, repository().await);
    server.pgbench(&["-i", "-s", "2", "-q"]).await.unwrap();
    // So much that the main archive makes more than one object; of zeros, so that it takes no time.
    for name in ["large", "larger"] {
        File::create(server.data_dir().join(name)).unwrap().set_len(150 << 20).unwrap();
    }
    let before = contents(&server).await;
    // What is written while the files are copied is in the log alone, or in that too.
    let job = job(&cluster);
    job.throttle.hold(true);
    let mut steps = job.progress.watch();
    let busy = async {
        steps.wait_for(|step| step.name == "copying files").await.unwrap();
        let many = "CREATE TABLE during AS SELECT a, repeat(md5(a::text), 10) AS b FROM generate_series(1, 80000) AS a";
        server.sql(many).await.unwrap();
        job.throttle.hold(false);
        server.pgbench(&["-c", "2", "-t", "100"]).await.unwrap();
    };
    let uri = server.uri();
    let (manifest, ()) = tokio::join!(back_up(&uri, &job), busy);
    let manifest = manifest.unwrap();
    assert!(manifest.streams["wal"].slices.len() > 2, "{:?}", manifest.streams);

    let oid: u32 = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await.unwrap().parse().unwrap();
    let names: Vec<_> = manifest.objects.iter().map(|object| object.name.as_str()).collect();
    let archive = |folder: &str, number: u32| format!("data/{folder}/{number:06}.tar.zst");
    assert_eq!(
        names,
        [
            archive(&oid.to_string(), 1).as_str(),
            &archive("base", 1),
            &archive("base", 2),
            "backup_manifest.zst",
            "catalog.json.zst"
        ]
    );
    assert_eq!(
        (manifest.kind, manifest.engine.as_str(), manifest.id.as_str()),
        (SnapshotKind::Physical, "postgresql", ID)
    );
    assert_eq!((manifest.source.role.as_str(), manifest.totals.collections), ("primary", 4));
    assert!(manifest.totals.documents > 1000 && manifest.totals.raw_bytes > 300 << 20, "{:?}", manifest.totals);
    assert!(manifest.totals.log_records > 0);
    assert!(manifest.objects[1].raw_bytes >= 256 << 20);
    assert_eq!(server.sql("SELECT count(*) FROM pg_replication_slots").await.unwrap(), "0");

    assert_eq!(check(&cluster, &manifest).await, Vec::<String>::new());
    let described = base::describe(&cluster, &manifest).await.unwrap();
    let named: Vec<_> = described.iter().map(|database| database.name.as_str()).collect();
    assert_eq!(named, ["other", "postgres", "template0", "template1"]);
    assert!(described.iter().all(|database| database.items > 100 && database.bytes > 1 << 20), "{described:?}");

    let restored = Postgres::prepare(PostgresOptions::default()).unwrap();
    let tablespaces = BTreeMap::from([(oid, restored.new_folder("fast").unwrap())]);
    unpack(&cluster, &manifest, &restored, &tablespaces).await;
    restored.restart().await.unwrap();
    let mut after = contents(&restored).await;
    // What is not logged is not there.
    assert_eq!(std::mem::replace(&mut after[2], before[2].clone()), "0");
    assert_eq!(after, before);
    assert_eq!(restored.sql("SELECT count(*) FROM during").await.unwrap(), "80000");
    // Transactions that were under way are in it as a whole or not at all.
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
    let sums = restored.sql(sums).await.unwrap();
    let sums: BTreeSet<_> = sums.split('|').collect();
    assert_eq!(sums.len(), 1, "{sums:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_can_be_backed_up_too() {
    let (primary, (cluster, _folder)) = (shop().await, repository().await);
    // Only one at a time may use the folder of a tablespace on one machine.
    primary.sql("ALTER TABLE apart SET TABLESPACE pg_default").await.unwrap();
    primary.sql("DROP TABLESPACE fast").await.unwrap();
    let standby = primary.standby(PostgresOptions::default()).await.unwrap();
    primary.sql("CREATE TABLE late AS SELECT generate_series(1, 1000) AS a; CHECKPOINT").await.unwrap();
    let before = contents(&primary).await;
    let at: Lsn = primary.sql("SELECT pg_current_wal_lsn()").await.unwrap().parse().unwrap();
    caught_up(&standby, at).await;
    let manifest = taken(&standby, &cluster).await;
    assert_eq!(manifest.source.role, "standby");
    assert_eq!(check(&cluster, &manifest).await, Vec::<String>::new());

    let restored = Postgres::prepare(PostgresOptions::default()).unwrap();
    unpack(&cluster, &manifest, &restored, &BTreeMap::new()).await;
    fs::remove_file(restored.data_dir().join("standby.signal")).unwrap();
    restored.restart().await.unwrap();
    let mut after = contents(&restored).await;
    assert_eq!(std::mem::replace(&mut after[2], before[2].clone()), "0");
    assert_eq!(after, before);
    assert_eq!(restored.sql("SELECT count(*) FROM late").await.unwrap(), "1000");
}

async fn caught_up(standby: &Postgres, at: Lsn) {
    crate::soon(async {
        while standby.sql("SELECT pg_last_wal_replay_lsn()").await.unwrap().parse::<Lsn>().unwrap() < at {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A backup of a primary begins with a segment of its own; that of a standby may begin in the one in which its timeline does.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_follows_a_new_primary_can_be_backed_up() {
    let (primary, (cluster, _folder)) =
        (Postgres::start(PostgresOptions::default()).await.unwrap(), repository().await);
    let heir = primary.standby(PostgresOptions::default()).await.unwrap();
    let standby = primary.standby(PostgresOptions::default()).await.unwrap();
    primary.sql("CREATE TABLE early AS SELECT generate_series(1, 1000) AS a").await.unwrap();
    let at: Lsn = primary.sql("SELECT pg_current_wal_lsn()").await.unwrap().parse().unwrap();
    caught_up(&heir, at).await;
    primary.stop().await.unwrap();
    heir.promote().await.unwrap();
    let follows =
        format!("primary_conninfo = 'host={} port={} user=postgres'\n", heir.socket_folder().display(), heir.port());
    let settings = standby.data_dir().join("postgresql.auto.conf");
    let old = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, old + &follows).unwrap();
    standby.restart().await.unwrap();
    heir.sql("CREATE TABLE late AS SELECT generate_series(1, 1000) AS a; CHECKPOINT").await.unwrap();
    let at: Lsn = heir.sql("SELECT pg_current_wal_lsn()").await.unwrap().parse().unwrap();
    caught_up(&standby, at).await;

    let manifest = taken(&standby, &cluster).await;
    let part = &manifest.streams["wal"];
    let ((first, before), (last, after)) = (of_point(&part.first).unwrap(), of_point(&part.last).unwrap());
    assert_eq!((before, after), (1, 2), "from {first} to {last}");
    let mut timelines = Vec::new();
    for slice in &part.slices {
        timelines.extend(frames(&cluster, &format!("wal/{slice}"), None).await.iter().map(|(timeline, _)| *timeline));
    }
    timelines.dedup();
    assert_eq!(timelines, [1, 2], "from {first} to {last}");
    assert_eq!(check(&cluster, &manifest).await, Vec::<String>::new());

    let restored = Postgres::prepare(PostgresOptions::default()).unwrap();
    unpack(&cluster, &manifest, &restored, &BTreeMap::new()).await;
    let stored: StoredBase = serde_json::from_slice(&raw(&cluster, "catalog.json.zst").await).unwrap();
    assert_eq!((stored.start_timeline, stored.timeline, stored.history().unwrap().at(first)), (2, 2, 1));
    fs::write(restored.data_dir().join("pg_wal/00000002.history"), &stored.history).unwrap();
    fs::remove_file(restored.data_dir().join("standby.signal")).unwrap();
    restored.restart().await.unwrap();
    assert_eq!(
        restored.sql("SELECT (SELECT count(*) FROM early) + (SELECT count(*) FROM late)").await.unwrap(),
        "2000"
    );
}

/// What a user needs is what the guide says, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_replicate_is_enough() {
    let (server, (cluster, _folder)) = (Postgres::start(PostgresOptions::default()).await.unwrap(), repository().await);
    server.sql("CREATE ROLE keeper LOGIN REPLICATION").await.unwrap();
    let address = Address::parse(&server.uri_of("keeper")).unwrap();
    let manifest = crate::soon(base::take(&address, &crate::job(&cluster), &crate::request())).await.unwrap();
    assert_eq!(manifest.source.member, format!("127.0.0.1:{}", server.port()));
    assert_eq!(check(&cluster, &manifest).await, Vec::<String>::new());
}
