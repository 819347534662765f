//! Whole clusters over one connection.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use hindsight_engine::FailureKind;
use hindsight_postgres::wire::{
    BackupEvent, BackupOptions, BackupPosition, BaseBackup, Compression, CompressionMethod, Replication,
};
use hindsight_testkit::{Postgres, PostgresOptions, postgres_version};
use sha2::{Digest as _, Sha256};

use crate::{connect, soon, told};

/// What a backup brought: each archive by its name, and the manifest.
struct Taken {
    archives: BTreeMap<String, Vec<u8>>,
    tablespaces: BTreeMap<String, String>,
    manifest: Vec<u8>,
    progress: u64,
    start: BackupPosition,
    end: BackupPosition,
}

async fn take(mut backup: BaseBackup) -> Taken {
    let (mut archives, mut tablespaces) = (BTreeMap::<String, Vec<u8>>::new(), BTreeMap::new());
    let (mut manifest, mut progress, start) = (Vec::new(), 0, backup.start());
    let mut present: Option<String> = None;
    while let Some(event) = soon(backup.next()).await.unwrap() {
        match event {
            BackupEvent::Archive { name, tablespace } => {
                tablespaces.extend(tablespace.map(|folder| (name.clone(), folder)));
                archives.insert(name.clone(), Vec::new());
                present = Some(name);
            }
            BackupEvent::Manifest => present = None,
            BackupEvent::Data(data) => match &present {
                Some(name) => archives.get_mut(name).unwrap().extend_from_slice(&data),
                None => manifest.extend_from_slice(&data),
            },
            BackupEvent::Progress(done) => progress = done,
        }
    }
    let (end, mut connection) = backup.finish().unwrap();
    // The session goes on.
    connection.identify_system().await.unwrap();
    Taken { archives, tablespaces, manifest, progress, start, end }
}

/// The files in a tar archive (<https://www.gnu.org/software/tar/manual/html_node/Standard.html>).
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut at = 0;
    while let Some(header) = archive.get(at..at + 512).filter(|header| header.iter().any(|byte| *byte != 0)) {
        let text = |range: std::ops::Range<usize>| {
            let field = header.get(range).unwrap();
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            String::from_utf8(field.get(..end).unwrap().to_vec()).unwrap()
        };
        let size = usize::from_str_radix(text(124..136).trim(), 8).unwrap();
        let data = archive.get(at + 512..at + 512 + size).unwrap();
        if matches!(text(156..157).as_str(), "" | "0") {
            files.insert(text(0..100), data.to_vec());
        }
        at += 512 + size.next_multiple_of(512);
    }
    files
}

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_backup_is_what_its_manifest_says() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let folder = server.new_folder("fast disk").unwrap().display().to_string();
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{folder}'")).await.unwrap();
    server.sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 200000) AS a").await.unwrap();
    server.pgbench(&["-i", "-s", "3", "-q"]).await.unwrap();

    let connection = connect(&server.uri_of("postgres"), Replication::Physical).await.unwrap();
    let options = BackupOptions { label: "it's mine".to_owned(), ..Default::default() };
    let (_, backup) = tokio::join!(async { server.pgbench(&["-T", "3"]).await.unwrap() }, async {
        soon(connection.base_backup(&options)).await.unwrap()
    });
    let total: u64 = backup.tablespaces().iter().map(|tablespace| tablespace.kib.unwrap()).sum();
    assert_eq!(backup.tablespaces().iter().filter(|tablespace| tablespace.oid.is_none()).count(), 1);
    let taken = take(backup).await;
    assert!(taken.end.lsn > taken.start.lsn);
    assert_eq!((taken.start.timeline, taken.end.timeline), (1, 1));
    assert!(taken.progress > 1 << 20 && taken.progress <= (total + 4096) * 1024, "{} of {total} KiB", taken.progress);
    let oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await.unwrap();
    assert_eq!(taken.tablespaces, BTreeMap::from([(format!("{oid}.tar"), folder)]));

    let mut found = BTreeMap::new();
    for (name, archive) in &taken.archives {
        let prefix = match name.as_str() {
            "base.tar" => String::new(),
            name => format!("pg_tblspc/{}/", name.trim_end_matches(".tar")),
        };
        found.extend(files(archive).into_iter().map(|(path, data)| (format!("{prefix}{path}"), data)));
    }
    let label = String::from_utf8(found.get("backup_label").unwrap().clone()).unwrap();
    assert!(label.contains("LABEL: it's mine\n"), "{label}");
    assert!(label.contains(&format!("START WAL LOCATION: {} ", taken.start.lsn)), "{label}");

    let manifest: serde_json::Value = serde_json::from_slice(&taken.manifest).unwrap();
    let listed = manifest.get("Files").unwrap().as_array().unwrap();
    assert!(listed.len() > 900, "{} files", listed.len());
    for file in listed {
        let text = |name: &str| file.get(name).unwrap().as_str().unwrap();
        let data = found.get(text("Path")).unwrap_or_else(|| panic!("{file} is not there"));
        assert_eq!(file.get("Size").unwrap().as_u64(), u64::try_from(data.len()).ok(), "{file}");
        assert_eq!((text("Checksum-Algorithm"), text("Checksum")), ("SHA256", sha256(data).as_str()), "{file}");
    }
    let end = taken.manifest.windows(21).position(|window| window == b"\"Manifest-Checksum\": ").unwrap();
    assert_eq!(
        manifest.get("Manifest-Checksum").unwrap().as_str().unwrap(),
        sha256(taken.manifest.get(..end).unwrap())
    );
    let range = manifest.get("WAL-Ranges").unwrap().get(0).unwrap();
    assert_eq!(range.get("Start-LSN").unwrap().as_str().unwrap(), taken.start.lsn.to_string());
    assert_eq!(range.get("End-LSN").unwrap().as_str().unwrap(), taken.end.lsn.to_string());

    // Compressed by the server.
    if postgres_version().unwrap() >= 15 {
        for (method, ending) in
            [(CompressionMethod::Gzip, "gz"), (CompressionMethod::Lz4, "lz4"), (CompressionMethod::Zstd, "zst")]
        {
            let connection = connect(&server.uri(), Replication::Physical).await.unwrap();
            let compression = Some(Compression { method, level: Some(1), workers: None });
            let options =
                BackupOptions { compression, manifest: None, progress: false, with_wal: true, ..options.clone() };
            let smaller = take(soon(connection.base_backup(&options)).await.unwrap()).await;
            let (name, archive) = smaller.archives.iter().find(|(name, _)| name.starts_with("base")).unwrap();
            assert_eq!(*name, format!("base.tar.{ending}"));
            assert!(archive.len() < taken.archives["base.tar"].len() / 2);
            assert!(smaller.manifest.is_empty());
        }
    }
}

#[tokio::test]
async fn a_backup_that_is_cut_off() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    server.pgbench(&["-i", "-s", "5", "-q"]).await.unwrap();
    // Slow enough to be in the midst of it.
    let slow = BackupOptions { max_rate: NonZeroU32::new(4096), ..Default::default() };
    let connection = connect(&server.uri_of("postgres"), Replication::Physical).await.unwrap();
    let mut backup = soon(connection.base_backup(&slow)).await.unwrap();
    soon(backup.next()).await.unwrap();
    server.kill9();
    let begun = Instant::now();
    let failure = soon(async {
        loop {
            if let Err(failure) = backup.next().await {
                return failure;
            }
        }
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(told(failure).0, FailureKind::Unreachable);
    assert!(backup.next().await.is_err());
    server.restart().await.unwrap();

    // Who stops reading stops the server; who drops the connection ends its backup.
    let connection = connect(&server.uri_of("postgres"), Replication::Physical).await.unwrap();
    let mut backup = soon(connection.base_backup(&BackupOptions::default())).await.unwrap();
    soon(backup.next()).await.unwrap();
    let streaming = "SELECT count(*) FROM pg_stat_progress_basebackup";
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.sql(streaming).await.unwrap(), "1");
    drop(backup);
    soon(async {
        while server.sql(streaming).await.unwrap() != "0" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn pages_that_are_damaged_fail_a_backup() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 100000) AS a").await.unwrap();
    let file = server.sql("SELECT pg_relation_filepath('t')").await.unwrap();
    server.stop().await.unwrap();
    let path = server.data_dir().join(file);
    let mut data = std::fs::read(&path).unwrap();
    *data.get_mut(8192 + 4000).unwrap() ^= 0xFF;
    std::fs::write(&path, data).unwrap();
    server.restart().await.unwrap();
    let connection = connect(&server.uri(), Replication::Physical).await.unwrap();
    let mut backup = connection.base_backup(&BackupOptions::default()).await.unwrap();
    let failure = soon(async {
        loop {
            match backup.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("nothing was noticed"),
                Err(failure) => return failure,
            }
        }
    })
    .await;
    assert_eq!(failure.sqlstate(), Some("XX001"));
    assert!(told(failure).1.contains("checksum"));
}
