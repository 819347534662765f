//! Backups of real servers: what is read of them, and what is noticed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use hindsight_postgres::base::{
    BackupManifest, Finding, ManifestReader, PageSizes, Report, TarError, TarEvent, TarHeader, TarKind, TarReader,
    Verified, Verifier, VerifyOptions, Wrong,
};
use hindsight_postgres::wire::{BackupEvent, BackupOptions, Connection, ManifestChecksums, Replication};
use hindsight_postgres::{Address, Lsn};
use hindsight_testkit::{Postgres, PostgresOptions};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// A backup in memory: its archives, each with the OID of its tablespace.
struct Taken {
    archives: Vec<(Option<u32>, Vec<u8>)>,
    manifest: BackupManifest,
    start: Lsn,
    checksums: ManifestChecksums,
}

/// Takes a backup, and hands on its data as they come.
async fn take(
    server: &Postgres,
    options: &BackupOptions,
    mut each: impl FnMut(Option<u32>, Lsn, &[u8]),
) -> (BackupManifest, Lsn) {
    let address = Address::parse(&server.uri()).unwrap();
    let connection = Connection::connect(&address, Replication::Physical).await.unwrap();
    let mut backup = connection.base_backup(options).await.unwrap();
    let start = backup.start().lsn;
    let (mut manifest, mut present) = (ManifestReader::new(), None);
    while let Some(event) = tokio::time::timeout(Duration::from_secs(60), backup.next()).await.unwrap().unwrap() {
        match event {
            BackupEvent::Archive { name, .. } => present = Some(name.trim_end_matches(".tar").parse().ok()),
            BackupEvent::Manifest => present = None,
            BackupEvent::Data(data) => match present {
                Some(tablespace) => each(tablespace, start, &data),
                None => manifest.feed(&data).unwrap(),
            },
            BackupEvent::Progress(_) => {}
        }
    }
    (manifest.finish().unwrap(), start)
}

impl Taken {
    async fn of(server: &Postgres, options: &BackupOptions) -> Self {
        let mut archives = Vec::<(Option<u32>, Vec<u8>)>::new();
        let (manifest, start) = take(server, options, |tablespace, _, data| match archives.last_mut() {
            Some((present, bytes)) if *present == tablespace => bytes.extend_from_slice(data),
            _ => archives.push((tablespace, data.to_vec())),
        })
        .await;
        Self { archives, manifest, start, checksums: options.manifest.unwrap() }
    }

    fn options(&self, pages: bool) -> VerifyOptions {
        VerifyOptions {
            pages: pages.then_some((PageSizes::default(), self.start)),
            ..VerifyOptions::files(self.checksums)
        }
    }

    fn verify(&self, pages: bool) -> Result<Report, TarError> {
        let mut all = Verified::default();
        for (tablespace, archive) in &self.archives {
            let (mut reader, mut verifier) = (TarReader::new(), Verifier::new(self.options(pages), *tablespace));
            for piece in archive.chunks(32 << 10) {
                reader.feed(piece, &mut |event| verifier.take(event))?;
            }
            assert!(reader.finish()?, "two blocks of zeros are missing");
            all.absorb(verifier.finish());
        }
        Ok(all.compare(&self.manifest))
    }

    /// What is in an archive, with where it ends.
    fn entries(&self, index: usize) -> Vec<(TarHeader, u64)> {
        let (mut reader, mut entries) = (TarReader::new(), Vec::<(TarHeader, u64)>::new());
        let each = &mut |event: TarEvent<'_>| match event {
            TarEvent::File(header) => entries.push((header.clone(), 0)),
            TarEvent::Data(_) => {}
            TarEvent::End { boundary } => entries.last_mut().unwrap().1 = boundary,
        };
        reader.feed(&self.archives[index].1, each).unwrap();
        entries
    }
}

fn clean(report: &Report) {
    assert!(report.is_clean(), "{:#?}", report.findings.iter().map(ToString::to_string).collect::<Vec<_>>());
}

/// A server with whatever looks unusual in a backup.
async fn unusual() -> Postgres {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let folder = server.new_folder(&format!("a fast disk {}", "x".repeat(30))).unwrap().display().to_string();
    for statement in [
        &format!("CREATE TABLESPACE fast LOCATION '{folder}'"),
        "CREATE DATABASE empty",
        "CREATE TABLE none ()",
        "CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 100000) AS a",
        "CREATE INDEX ON t (a)",
        "CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 100000) AS a",
        "VACUUM t",
    ] {
        server.sql(statement).await.unwrap();
    }
    // Files of others in the data directory are taken along; names can be as long as a header has room for, and any bytes.
    let data = server.data_dir();
    fs::write(data.join("l".repeat(99)), b"long").unwrap();
    fs::create_dir(data.join("d".repeat(99))).unwrap();
    fs::write(data.join(OsStr::from_bytes(b"odd \xFF \"name\"\n")), b"odd").unwrap();
    server
}

#[tokio::test]
async fn a_backup_is_verified_while_it_streams() {
    let server = unusual().await;
    server.pgbench(&["-i", "-s", "2", "-q"]).await.unwrap();
    let crc = BackupOptions { manifest: Some(ManifestChecksums::Crc32c), ..BackupOptions::default() };
    // with the log in it, and tablespaces as links
    let options = BackupOptions { with_wal: true, tablespace_map: false, ..crc };
    let (_, taken) =
        tokio::join!(async { server.pgbench(&["-c", "4", "-T", "3"]).await.unwrap() }, Taken::of(&server, &options));
    let report = taken.verify(true).unwrap();
    clean(&report);
    assert!(report.files > 900 && report.bytes > 20 << 20 && report.by_size_alone == 0, "{report:?}");
    assert_eq!(taken.manifest.checksums(), Some(ManifestChecksums::Crc32c));
    assert_eq!((taken.manifest.wal.len(), taken.manifest.wal[0].start), (1, taken.start));

    // The main archive comes last.
    let base = taken.archives.len() - 1;
    let entries = taken.entries(base);
    let kinds = |kind: fn(&TarKind) -> bool| {
        let paths = entries.iter().filter(move |(header, _)| kind(&header.kind)).map(|(header, _)| header.path.clone());
        paths.collect::<BTreeSet<_>>()
    };
    let files = kinds(|kind| *kind == TarKind::File);
    assert!(files.contains("l".repeat(99).as_bytes()) && files.contains(b"odd \xFF \"name\"\n".as_slice()));
    assert!(taken.manifest.expect(b"odd \xFF \"name\"\n").is_some());
    assert!(kinds(|kind| *kind == TarKind::Directory).contains("d".repeat(99).as_bytes()));
    let oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await.unwrap();
    let links = kinds(|kind| matches!(kind, TarKind::Link { .. }));
    assert_eq!(links, BTreeSet::from([format!("pg_tblspc/{oid}").into_bytes()]));
    assert!(files.contains(b"backup_label".as_slice()) && !files.contains(b"tablespace_map".as_slice()));
    assert!(files.iter().any(|path| path.starts_with(b"pg_wal/0000000100000000")));
    let unlogged = server.sql("SELECT pg_relation_filepath('u')").await.unwrap();
    assert!(!files.contains(unlogged.as_bytes()) && files.contains(format!("{unlogged}_init").as_bytes()));

    // Cut at files, the parts are as good as the whole.
    let mut random = StdRng::seed_from_u64(7);
    let (archive, mut parts, mut from) = (&taken.archives[base].1, Verified::default(), 0);
    for (_, boundary) in entries.iter().filter(|_| random.random_bool(0.02)) {
        let (mut reader, mut verifier) = (TarReader::at(from), Verifier::new(taken.options(true), None));
        reader.feed(&archive[from as usize..*boundary as usize], &mut |event| verifier.take(event)).unwrap();
        assert!(!reader.finish().unwrap());
        parts.absorb(verifier.finish());
        from = *boundary;
    }
    assert!(from > 0);
    let (mut reader, mut verifier) = (TarReader::at(from), Verifier::new(taken.options(true), None));
    reader.feed(&archive[from as usize..], &mut |event| verifier.take(event)).unwrap();
    parts.absorb(verifier.finish());
    for (tablespace, archive) in &taken.archives[..base] {
        let mut verifier = Verifier::new(taken.options(true), *tablespace);
        TarReader::new().feed(archive, &mut |event| verifier.take(event)).unwrap();
        parts.absorb(verifier.finish());
    }
    assert_eq!(parts.compare(&taken.manifest), report);

    // The usual form, with strong checksums and a map of tablespaces.
    let taken = Taken::of(&server, &BackupOptions::default()).await;
    clean(&taken.verify(true).unwrap());
    let paths: Vec<_> = taken.entries(taken.archives.len() - 1).into_iter().map(|(header, _)| header.path).collect();
    assert_eq!((&paths[0][..], &paths[1][..]), (&b"backup_label"[..], &b"tablespace_map"[..]));
    assert_eq!(paths.last().unwrap(), b"global/pg_control");
}

#[tokio::test]
async fn a_flipped_byte_is_noticed_and_named() {
    let server = unusual().await;
    let options = BackupOptions { manifest: Some(ManifestChecksums::Crc32c), ..BackupOptions::default() };
    let mut taken = Taken::of(&server, &options).await;
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for index in 0..taken.archives.len() {
        let entries = taken.entries(index);
        let prefix = taken.archives[index].0.map(|oid| format!("pg_tblspc/{oid}/")).unwrap_or_default();
        for _ in 0..12 {
            let (header, _) = &entries[random.random_range(0..entries.len())];
            let len = 512 + usize::try_from(header.size).unwrap();
            let within =
                if random.random_bool(0.5) { random.random_range(0..512) } else { random.random_range(0..len) };
            let (at, bit) = (usize::try_from(header.at).unwrap() + within, 1_u8 << random.random_range(0..8));
            taken.archives[index].1[at] ^= bit;
            let found = taken.verify(false);
            taken.archives[index].1[at] ^= bit;
            let path = [prefix.as_bytes(), &header.path].concat();
            match found {
                // Of a space after a number there is another form.
                Ok(report) if within < 512 => assert!((148..156).contains(&within), "seed {seed}: {report:?}"),
                Ok(report) => assert_eq!(report.findings, [Finding { path, what: Wrong::Checksum }], "seed {seed}"),
                Err(error) => assert!(within < 512 && error.at == header.at, "seed {seed}: {error}"),
            }
        }
        // Cut short, and without one of its files.
        let whole = taken.archives[index].1.clone();
        let (header, boundary) = entries.iter().rfind(|(header, _)| header.size > 0).unwrap();
        taken.archives[index].1.truncate(usize::try_from(*boundary).unwrap() - 513);
        assert!(taken.verify(false).is_err());
        taken.archives[index].1 = whole.clone();
        taken.archives[index].1.drain(usize::try_from(header.at).unwrap()..usize::try_from(*boundary).unwrap());
        let path = [prefix.as_bytes(), &header.path].concat();
        assert_eq!(taken.verify(false).unwrap().findings, [Finding { path, what: Wrong::Missing }]);
        taken.archives[index].1 = whole;
    }
    clean(&taken.verify(false).unwrap());
}

#[tokio::test]
async fn a_path_too_long_for_the_archive_is_refused_by_the_server() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    fs::write(server.data_dir().join("l".repeat(100)), b"long").unwrap();
    let address = Address::parse(&server.uri()).unwrap();
    let connection = Connection::connect(&address, Replication::Physical).await.unwrap();
    let failure = match connection.base_backup(&BackupOptions::default()).await {
        Err(failure) => failure,
        Ok(mut backup) => loop {
            match backup.next().await {
                Ok(event) => assert!(event.is_some()),
                Err(failure) => break failure,
            }
        },
    };
    assert!(failure.to_string().contains("too long for tar format"), "{failure}");
}

/// Damage on the server's disk: its manifest has the checksums of what it read, so only pages can tell.
#[tokio::test]
async fn a_damaged_page_is_named_by_its_number_in_the_relation() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a").await.unwrap();
    let path = server.sql("SELECT pg_relation_filepath('t')").await.unwrap();
    server.stop().await.unwrap();
    // A relation of two files: the first is all holes but for its beginning.
    let file = server.data_dir().join(&path);
    File::options().write(true).open(&file).unwrap().set_len(1 << 30).unwrap();
    server.restart().await.unwrap();
    server.sql("INSERT INTO t SELECT generate_series(1, 2000)").await.unwrap();
    server.stop().await.unwrap();
    let second = server.data_dir().join(format!("{path}.1"));
    let mut data = fs::read(&second).unwrap();
    assert!(data.len() >= 3 * 8192, "{}", data.len());
    data[2 * 8192 + 5000] ^= 4;
    fs::write(&second, data).unwrap();
    server.restart().await.unwrap();

    let checksums = ManifestChecksums::Crc32c;
    let options = BackupOptions { manifest: Some(checksums), verify_checksums: false, ..BackupOptions::default() };
    let mut stream: Option<(TarReader, Verifier)> = None;
    let (manifest, _) = take(&server, &options, |tablespace, start, data| {
        let (reader, verifier) = stream.get_or_insert_with(|| {
            let pages = Some((PageSizes::default(), start));
            let options = VerifyOptions { pages, ..VerifyOptions::files(checksums) };
            (TarReader::new(), Verifier::new(options, tablespace))
        });
        reader.feed(data, &mut |event| verifier.take(event)).unwrap();
    })
    .await;
    let report = stream.unwrap().1.finish().compare(&manifest);
    assert_eq!((report.damaged_pages, report.findings.len()), (1, 1), "{report:?}");
    let Finding { path: found, what: Wrong::Page(page) } = &report.findings[0] else { panic!("{report:?}") };
    assert_eq!((&found[..], page.block), (format!("{path}.1").as_bytes(), 131_074));
}
