//! A repository with a base and log of a server, as a backup and a capture leave them.

use std::collections::BTreeMap;
use std::fs;

use hindsight_catalog::History as Catalog;
use hindsight_format::{
    FORMAT_VERSION, LogSummary, ObjectKind, ObjectRef, Point, SliceName, SnapshotKind, SnapshotManifest,
    SnapshotSource, SnapshotTotals, StreamPart,
};
use hindsight_postgres::base::{StoredBase, StoredDatabase, StoredTablespace, TarEvent, TarReader};
use hindsight_postgres::wal::{Event, Expect, History, Segment, SegmentSize, WalReader, What};
use hindsight_postgres::wire::{BackupEvent, BackupOptions, Connection, Replication};
use hindsight_postgres::{Address, Lsn, of_point, point};
use hindsight_repository::{ClusterRepository, Repository, RepositorySpec, encode_frame};
use hindsight_testkit::Postgres;
use jiff::Timestamp;
use tempfile::TempDir;

const STREAM: &str = "wal";
/// Objects are cut at files after so many bytes: small, so that there are several.
const PART: usize = 6 << 20;
const FRAME: usize = 1 << 20;

pub struct Stored {
    pub cluster: ClusterRepository,
    pub folder: TempDir,
}

impl Stored {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spec = RepositorySpec::new(folder.path().display().to_string());
        let cluster = Repository::open_or_create(&spec).await.unwrap().cluster("shop").unwrap();
        Self { cluster, folder }
    }

    /// What there is, for a plan.
    pub async fn history(&self) -> Catalog {
        let (snapshots, slices) = (self.cluster.snapshots().await.unwrap(), self.cluster.slices().await.unwrap());
        Catalog { cluster: "shop".to_owned(), snapshots, slices, ..Catalog::default() }
    }

    /// Files of the repository whose paths have something in them.
    pub fn files(&self, what: &str) -> Vec<std::path::PathBuf> {
        fn below(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { below(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        below(self.folder.path(), &mut found);
        found.retain(|path| path.display().to_string().contains(what));
        found.sort();
        found
    }

    async fn put(&self, key: String, kind: ObjectKind, frames: &[(u32, &[u8])], log: Option<LogSummary>) -> ObjectRef {
        let mut writer = self.cluster.object_writer(key.clone(), kind).await;
        for (segment, frame) in frames {
            writer.write(encode_frame(frame, 3, *segment).unwrap()).await.unwrap();
        }
        let written = writer.finish(log).await.unwrap();
        ObjectRef {
            name: String::new(),
            stored_bytes: written.stored_bytes,
            raw_bytes: written.raw_bytes,
            footer_blake3: written.footer_blake3,
        }
    }

    /// Takes a base of a server, and stores it with its own log, of which the primary may have to write more.
    pub async fn back_up(&self, server: &Postgres, id: &str, history: &History) -> (SnapshotManifest, StoredBase) {
        let address = Address::parse(&server.uri()).unwrap();
        let mut connection = Connection::connect(&address, Replication::Physical).await.unwrap();
        let identity = connection.identify_system().await.unwrap();
        let mut backup = connection.base_backup(&BackupOptions::default()).await.unwrap();
        let start = backup.start();
        let mut archives: Vec<(String, Vec<u8>)> = Vec::new();
        let (mut manifest, mut in_manifest) = (Vec::new(), false);
        while let Some(event) = backup.next().await.unwrap() {
            match event {
                BackupEvent::Archive { name, .. } => archives.push((name.replace(".tar", ""), Vec::new())),
                BackupEvent::Manifest => in_manifest = true,
                BackupEvent::Data(data) if in_manifest => manifest.extend_from_slice(&data),
                BackupEvent::Data(data) => archives.last_mut().unwrap().1.extend_from_slice(&data),
                BackupEvent::Progress(_) => {}
            }
        }
        let (stop, _) = backup.finish().unwrap();
        let key = |name: &str| self.cluster.keys().snapshot_object(id, name);
        let mut objects = Vec::new();
        for (set, archive) in &archives {
            for (number, part) in parts(archive).into_iter().enumerate() {
                let name = format!("data/{set}/{:06}.tar.zst", number + 1);
                let frames: Vec<_> = part.chunks(FRAME).map(|frame| (0, frame)).collect();
                let object = self.put(key(&name), ObjectKind::Data, &frames, None).await;
                objects.push(ObjectRef { name, ..object });
            }
        }
        let name = "backup_manifest.zst".to_owned();
        let frames: Vec<_> = manifest.chunks(FRAME).map(|frame| (0, frame)).collect();
        let object = self.put(key(&name), ObjectKind::Catalog, &frames, None).await;
        objects.push(ObjectRef { name, ..object });

        let rows = async |sql: &str| -> Vec<Vec<String>> {
            let text = server.sql(sql).await.unwrap();
            text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
        };
        let spaces =
            rows("SELECT oid, spcname, pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16000").await;
        let databases = rows("SELECT oid, datname, pg_database_size(oid) FROM pg_database").await;
        let settings = rows(
            "SELECT name, setting FROM pg_settings WHERE name IN ('max_connections', 'max_prepared_transactions', \
             'max_locks_per_transaction')",
        );
        let base = StoredBase {
            system_identifier: identity.system,
            server_version: server.sql("SHOW server_version").await.unwrap(),
            major: hindsight_testkit::postgres_version().unwrap(),
            wal_segment_size: 16 << 20,
            wal_block_size: 8192,
            block_size: 8192,
            relation_blocks: 131_072,
            data_checksums: true,
            standby: false,
            start: start.lsn,
            start_timeline: start.timeline,
            stop: stop.lsn,
            timeline: stop.timeline,
            history: if stop.timeline == 1 { String::new() } else { history.to_string() },
            tablespaces: spaces
                .iter()
                .map(|row| StoredTablespace {
                    oid: row[0].parse().unwrap(),
                    name: row[1].clone(),
                    location: row[2].clone(),
                })
                .collect(),
            databases: databases
                .iter()
                .map(|row| StoredDatabase {
                    oid: row[0].parse().unwrap(),
                    name: row[1].clone(),
                    bytes: row[2].parse().unwrap(),
                })
                .collect(),
            settings: settings.await.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect(),
            increment: None,
            configured_outside: false,
        };
        let name = "catalog.json.zst".to_owned();
        let json = serde_json::to_vec(&base).unwrap();
        let object = self.put(key(&name), ObjectKind::Catalog, &[(0, &json)], None).await;
        objects.push(ObjectRef { name, ..object });

        // Its own log begins with a segment, and ends where it is whole.
        let now = clock(server).await;
        let first = Lsn(start.lsn.0 / SEGMENT * SEGMENT);
        let before = point(now, first, history.at(Lsn(first.0 - 1))).unwrap();
        let last = point(now, stop.lsn, stop.timeline).unwrap();
        let bytes = log_of(server, history, first, stop.lsn).await;
        let name = SliceName { start: before.clone(), end: last.clone(), fence: 1 };
        let summary = LogSummary { end: last.clone(), ..LogSummary::starting_at(before.clone()) };
        let frames = frames_of(&bytes, first, history);
        self.put(key(&format!("{STREAM}/{name}")), ObjectKind::Slice, &frames, Some(summary)).await;
        let manifest = SnapshotManifest {
            format: FORMAT_VERSION,
            id: id.to_owned(),
            engine: "postgresql".to_owned(),
            kind: SnapshotKind::Physical,
            parent: None,
            epoch: 1,
            namespaces: Vec::new(),
            started_at: now,
            finished_at: now,
            source: SnapshotSource {
                member: "here".to_owned(),
                role: "primary".to_owned(),
                server_version: base.server_version.clone(),
                compatibility_version: Some(base.major.to_string()),
            },
            streams: [(STREAM.to_owned(), StreamPart { first: before, last, slices: vec![name] })].into(),
            totals: SnapshotTotals {
                raw_bytes: objects.iter().map(|object| object.raw_bytes).sum(),
                ..SnapshotTotals::default()
            },
            objects,
            hashes: None,
            created_by: "test".to_owned(),
            seal: None,
        };
        self.cluster.put_manifest(&manifest).await.unwrap();
        (manifest, base)
    }

    /// Stores a slice of another epoch, of zeros.
    pub async fn begin_another(&self, epoch: u64, from: Lsn, bytes: u64) {
        let at = |lsn| point(Timestamp::now(), lsn, 9).unwrap();
        let (start, end) = (at(from), at(Lsn(from.0 + bytes)));
        let summary = LogSummary { end: end.clone(), ..LogSummary::starting_at(start.clone()) };
        let name = SliceName { start, end, fence: 1 };
        let zeros = vec![0; bytes as usize];
        self.put(self.cluster.keys().slice(STREAM, epoch, &name), ObjectKind::Slice, &[(9, &zeros)], Some(summary))
            .await;
    }

    /// Stores the log from `from` to where the server has written it, a slice for every so many transactions. The last one
    /// is as one of an idle server that told its time a while later.
    pub async fn capture(
        &self,
        server: &Postgres,
        history: &History,
        base: &StoredBase,
        from: &Point,
        every: usize,
    ) -> Point {
        let (start, _) = of_point(from).unwrap();
        let flushed: Lsn = server.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap();
        let bytes = log_of(server, history, start, flushed).await;
        let expect = Expect { timeline: history.timeline(), ..base.expect(1).unwrap() };
        let (mut reader, mut events) = (WalReader::at_record(start, expect), Vec::<Event>::new());
        reader.feed(&bytes, &mut |event| events.push(event)).unwrap();
        let end = reader.last_record().unwrap().end;
        let mut cuts: Vec<Lsn> = events
            .iter()
            .filter(|event| event.what.is_commit())
            .map(|event| event.span.end)
            .step_by(every)
            .skip(1)
            .collect();
        cuts.retain(|cut| *cut < end);
        cuts.push(end);
        let mut before = from.clone();
        for cut in &cuts {
            let (at, _) = of_point(&before).unwrap();
            let within: Vec<&Event> =
                events.iter().filter(|event| event.span.start >= at && event.span.end <= *cut).collect();
            let latest = within.iter().filter_map(|event| event.what.transaction().and(event.what.time())).max();
            let mut time = latest.map_or(before.time, |latest| latest.max(before.time));
            if *cut == end {
                time = clock(server).await + jiff::SignedDuration::from_secs(5);
            }
            let after = point(time, *cut, history.at(Lsn(cut.0 - 1))).unwrap();
            let mut summary = LogSummary { end: after.clone(), ..LogSummary::starting_at(before.clone()) };
            for event in within {
                if let What::RestorePoint { name, .. } = &event.what {
                    let counts = BTreeMap::from([("set".to_owned(), 1)]);
                    summary.counts.insert(format!("restore point/{name}"), counts);
                }
            }
            let name = SliceName { start: before, end: after.clone(), fence: 1 };
            let part = &bytes[(at.0 - start.0) as usize..(cut.0 - start.0) as usize];
            let frames = frames_of(part, at, history);
            self.put(self.cluster.keys().slice(STREAM, 1, &name), ObjectKind::Slice, &frames, Some(summary)).await;
            before = after;
        }
        before
    }
}

const SEGMENT: u64 = 16 << 20;

pub async fn clock(server: &Postgres) -> Timestamp {
    let micros = server.sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await.unwrap();
    Timestamp::from_microsecond(micros.parse().unwrap()).unwrap()
}

/// Cut at files.
fn parts(archive: &[u8]) -> Vec<&[u8]> {
    let (mut cuts, mut from) = (Vec::new(), 0);
    let mut each = |event: TarEvent<'_>| {
        if let TarEvent::End { boundary } = event
            && boundary as usize - from >= PART
        {
            from = boundary as usize;
            cuts.push(from);
        }
    };
    TarReader::new().feed(archive, &mut each).unwrap();
    let bounds: Vec<usize> = std::iter::once(0).chain(cuts).chain([archive.len()]).collect();
    bounds.windows(2).map(|pair| &archive[pair[0]..pair[1]]).collect()
}

/// Frames as a capture makes them: none of two timelines.
fn frames_of<'a>(bytes: &'a [u8], start: Lsn, history: &History) -> Vec<(u32, &'a [u8])> {
    let switches = history.branches().iter().map(|branch| branch.end.0.saturating_sub(start.0) as usize);
    let mut bounds: Vec<usize> = (0..bytes.len()).step_by(300_000).chain(switches).chain([bytes.len()]).collect();
    bounds.retain(|bound| *bound <= bytes.len());
    bounds.sort_unstable();
    bounds.dedup();
    bounds.windows(2).map(|pair| (history.at(Lsn(start.0 + pair[0] as u64)), &bytes[pair[0]..pair[1]])).collect()
}

/// The log on the disk of a server that runs.
async fn log_of(server: &Postgres, history: &History, from: Lsn, to: Lsn) -> Vec<u8> {
    let size = SegmentSize::DEFAULT;
    let mut bytes = Vec::new();
    for number in from.0 / SEGMENT..=(to.0 - 1) / SEGMENT {
        let (start, end) = (number * SEGMENT, (number + 1) * SEGMENT);
        let timeline = history.at(Lsn(end.min(to.0) - 1));
        let path = server.data_dir().join("pg_wal").join(Segment { timeline, number }.name(size));
        let file = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let part = from.0.max(start) - start..to.0.min(end) - start;
        bytes.extend_from_slice(&file[part.start as usize..part.end as usize]);
    }
    bytes
}
