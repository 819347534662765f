//! What is of PostgreSQL: records of all kinds, entries of archives, a manifest and a catalog.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use hindsight_postgres::base::{StoredBase, StoredDatabase, StoredTablespace, TarEvent, TarReader};
use hindsight_postgres::fuzzing::{MadeUp, sealed_manifest};
use hindsight_postgres::wal::Version;
use hindsight_postgres::wire::{BackupEvent, BackupOptions, Connection, ManifestChecksums, Replication};
use hindsight_postgres::{Address, Lsn};
use hindsight_testkit::{Postgres, PostgresOptions, postgres_version};

use super::keep;

/// No record is larger.
const SMALL: usize = 300;
const PAGE: usize = 8192;

pub async fn make() -> Result<()> {
    let options = PostgresOptions::default().set("wal_level", "logical").set("max_prepared_transactions", "5");
    let options = options.set("wal_keep_size", "1GB");
    let server = Postgres::start(options).await?;
    let folder = server.new_folder("fast")?.display().to_string();
    let tablespace = format!("create tablespace fast location '{folder}'");
    for statement in [
        "create table item (id serial primary key, text text)",
        "insert into item (text) select 'x' from generate_series(1, 100)",
        "begin; insert into item (text) values ('p'); drop table if exists gone; prepare transaction 'order 17'",
        "commit prepared 'order 17'",
        "begin; insert into item (text) values ('p'); prepare transaction 'order 18'",
        "rollback prepared 'order 18'",
        "begin; insert into item (text) values ('r'); rollback",
        "begin; savepoint s; insert into item (text) values ('s'); release s; create table gone (n int); commit",
        "select pg_create_restore_point('before it')",
        "select pg_logical_emit_message(true, 'x', 'y')",
        &tablespace,
        "drop table gone",
        "vacuum item",
        "checkpoint",
        "select pg_switch_wal()",
    ] {
        server.sql(statement).await?;
    }
    archives(&server).await?;
    let mut kinds = BTreeMap::new();
    for file in std::fs::read_dir(server.data_dir().join("pg_wal"))? {
        let path = file?.path();
        if path.is_file() {
            smallest(&std::fs::read(path)?, &mut kinds);
        }
    }
    log(&kinds)
}

/// Records by resource manager and what it calls their kind.
type Kinds = BTreeMap<(u8, u8), Vec<u8>>;

/// Keeps the smallest record of each kind in a segment.
fn smallest(segment: &[u8], kinds: &mut Kinds) {
    // Its records without what breaks them into pages.
    let pages = segment.chunks(PAGE).enumerate();
    let stream: Vec<u8> = pages.flat_map(|(index, page)| &page[if index == 0 { 40 } else { 24 }..]).copied().collect();
    // The rest of one that began before, where there is one.
    let rest = u32::from_le_bytes([segment[16], segment[17], segment[18], segment[19]]) as usize;
    let mut stream = stream.get(rest.next_multiple_of(8)..).unwrap_or_default();
    // As headers of pages are as long as multiples of 8, places where records begin are such here too.
    while let Some(length) = stream.first_chunk().map(|length| u32::from_le_bytes(*length) as usize) {
        let Some(record) = stream.get(..length).filter(|record| record.len() >= 24) else { break };
        if length <= SMALL {
            let kept = kinds.entry((record[17], record[16] & 0xF0)).or_insert_with(|| record.to_vec());
            if kept.len() > length {
                *kept = record.to_vec();
            }
        }
        stream = stream.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
}

/// The records of each resource manager; and a log that is made of those that tell something.
fn log(kinds: &Kinds) -> Result<()> {
    let version = Version::from_major(postgres_version()?).context("an unknown version")?;
    let number = Version::ALL.iter().position(|known| *known == version).context("an unknown version")? as u8;
    let mut inputs: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let mut log = MadeUp::new(version);
    for ((manager, info), record) in kinds {
        let body = &record[24..];
        let input = inputs.entry(*manager).or_insert_with(|| vec![number]);
        input.extend([*manager, record[16]]);
        input.extend((body.len() as u16).to_le_bytes());
        input.extend(body);
        // A switch would leave most of a segment empty.
        if [0, 1, 5].contains(manager) && (*manager, *info) != (0, 0x40) {
            log.record(*manager, record[16], body);
        }
    }
    for (manager, input) in inputs {
        keep("wal", &format!("manager-{manager:02}"), &input)?;
    }
    keep("wal", "log", &[&[number][..], &log.bytes].concat())?;
    let mut long = MadeUp::new(version);
    long.record(10, 0, &[7; 9000]);
    keep("wal", "two-pages", &[&[number][..], &long.bytes].concat())?;
    let history = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-11-24 11:00:00+00\n";
    keep("wal", "history", history.as_bytes())?;
    keep("wal", "name", b"000000010000000000000003.00000028.backup")
}

/// Small entries of each archive, and a manifest with few files.
async fn archives(server: &Postgres) -> Result<()> {
    for (name, checksums) in [("sha256", ManifestChecksums::Sha256), ("crc32c", ManifestChecksums::Crc32c)] {
        let connection = Connection::connect(&Address::parse(&server.uri())?, Replication::Physical).await?;
        let options = BackupOptions { manifest: Some(checksums), ..BackupOptions::default() };
        let mut backup = connection.base_backup(&options).await?;
        let (mut parts, mut in_manifest) = (Vec::<Vec<u8>>::new(), false);
        let mut manifest = Vec::new();
        while let Some(event) = backup.next().await? {
            match event {
                BackupEvent::Archive { .. } => parts.push(Vec::new()),
                BackupEvent::Manifest => in_manifest = true,
                BackupEvent::Data(data) if in_manifest => manifest.extend_from_slice(&data),
                BackupEvent::Data(data) => parts.last_mut().context("data of no archive")?.extend_from_slice(&data),
                BackupEvent::Progress(_) => {}
            }
        }
        for (number, archive) in parts.iter().enumerate() {
            keep("tar", &format!("archive-{number}"), &few_entries(archive)?)?;
        }
        keep("manifest", name, &few_files(&String::from_utf8(manifest)?))?;
    }
    let base = StoredBase {
        system_identifier: 7_576_432_109_876_543_210,
        server_version: "15.18 (Debian 15.18-0+deb12u1)".to_owned(),
        major: 15,
        wal_segment_size: 16 << 20,
        wal_block_size: 8192,
        block_size: 8192,
        relation_blocks: 131_072,
        data_checksums: true,
        standby: false,
        start: Lsn(0x300_0028),
        start_timeline: 2,
        stop: Lsn(0x300_0138),
        timeline: 2,
        history: "1\t0/2000148\tno recovery target specified\n".to_owned(),
        tablespaces: vec![StoredTablespace { oid: 16_385, name: "fast".to_owned(), location: "/mnt/fast".to_owned() }],
        databases: vec![StoredDatabase { oid: 5, name: "postgres".to_owned(), bytes: 7_000_000 }],
        settings: [("max_connections".to_owned(), "100".to_owned())].into(),
        increment: None,
        configured_outside: true,
    };
    keep("manifest", "catalog", &serde_json::to_vec(&base)?)
}

/// Files that are short, links and some directories; and the end.
fn few_entries(archive: &[u8]) -> Result<Vec<u8>> {
    let (mut kept, mut begin, mut size, mut end) = (Vec::new(), 0, 0, 0);
    let mut reader = TarReader::new();
    reader.feed(archive, &mut |event| match event {
        TarEvent::File(header) => (begin, size) = (header.at as usize, header.size),
        TarEvent::Data(_) => {}
        TarEvent::End { boundary } => {
            end = boundary as usize;
            if size <= 300 && kept.len() < 6000 {
                kept.extend_from_slice(&archive[begin..end]);
            }
        }
    })?;
    kept.extend_from_slice(&archive[end..]);
    Ok(kept)
}

fn few_files(manifest: &str) -> Vec<u8> {
    let files: Vec<&str> = manifest.lines().filter(|line| line.starts_with("{ \"Path\"")).collect();
    let few = files.iter().step_by(files.len() / 3).take(3).map(|line| line.trim_end_matches(',')).collect::<Vec<_>>();
    let (before, rest) = manifest.split_once(files.first().copied().unwrap_or_default()).unwrap_or_default();
    let after = rest.split_once("\n],\n").map_or("", |(_, after)| after);
    sealed_manifest(format!("{before}{}\n],\n{after}", few.join(",\n")).trim_end().as_bytes())
}
