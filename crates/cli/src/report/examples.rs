//! Values made by hand, for the tests of what is printed.
#![allow(clippy::unwrap_used)]

use hindsight_catalog::{Cut, History, RestorePlan, StreamPlan, Target, timeline};
use hindsight_engine::{Member, NamespaceChange, Preview, Probe, Selection};
use hindsight_format::{
    ClusterConfig, ClusterDescriptor, ClusterIdentity, EpochCause, EpochRecord, GapRecord, LeaseHolder, LeaseRecord,
    LeaseState, ObjectRef, Operation, OperationKind, Point, Position, RestoreRecord, RestoreState, RestoreTotals,
    SliceName, SnapshotKind, SnapshotManifest, SnapshotSource, SnapshotTotals, StoredGap, StoredSlice, StreamPart,
};
use hindsight_jobs::{Captured, Overview, RestoreRequest};
use jiff::{SignedDuration, Timestamp};

pub(super) fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) fn point(text: &str) -> Point {
    let time = time(text);
    Point { time, position: Position::new(format!("{}.0000000001", time.as_second()), "1").unwrap() }
}

pub(super) fn identity() -> ClusterIdentity {
    ClusterIdentity { engine: "mongodb".to_owned(), id: "601a5f14c8a1b7b9c0ffee00".to_owned() }
}

/// A full snapshot that is consistent at `at`, six seconds after its start.
pub(super) fn snapshot(at: &str, epoch: u64) -> SnapshotManifest {
    let started_at = time(at) - SignedDuration::from_secs(6);
    let part = StreamPart { first: point(&started_at.to_string()), last: point(at), slices: Vec::new() };
    let object = |name: &str, stored_bytes, raw_bytes| ObjectRef {
        name: name.to_owned(),
        stored_bytes,
        raw_bytes,
        footer_blake3: String::new(),
    };
    SnapshotManifest {
        format: 1,
        id: started_at.to_string(),
        engine: "mongodb".to_owned(),
        kind: SnapshotKind::Logical,
        parent: None,
        epoch,
        namespaces: Vec::new(),
        started_at,
        finished_at: time(at) + SignedDuration::from_secs(20),
        source: SnapshotSource {
            member: "db2:27017".to_owned(),
            role: "secondary, hidden".to_owned(),
            server_version: "7.0.14".to_owned(),
            compatibility_version: Some("7.0".to_owned()),
        },
        streams: [("rs0".to_owned(), part)].into(),
        objects: vec![object("data/000001.bson.zst", 1 << 30, 3 << 30), object("catalog.bson.zst", 4096, 20_000)],
        totals: SnapshotTotals {
            collections: 12,
            documents: 1_234_567,
            raw_bytes: 3 << 30,
            stored_bytes: 1 << 30,
            log_records: 321,
        },
        hashes: None,
        created_by: "0.1.0".to_owned(),
        seal: None,
    }
}

pub(super) fn slice(start: &str, end: &str, epoch: u64) -> StoredSlice {
    let name = SliceName { start: point(start), end: point(end), fence: 7 };
    StoredSlice { stream: "rs0".to_owned(), epoch, name, stored_bytes: 5 << 20 }
}

pub(super) fn lease(kind: OperationKind, id: &str, detail: &str) -> LeaseRecord {
    LeaseRecord {
        number: 12,
        state: LeaseState::Held,
        holder: LeaseHolder {
            id: "x".to_owned(),
            host: "db1".to_owned(),
            pid: 4711,
            pid_space: None,
            version: "0.1.0".to_owned(),
        },
        operation: Operation { kind, id: id.to_owned(), detail: detail.to_owned() },
        acquired_at: time("2021-02-09T12:00:00Z"),
        renewed_at: time("2021-02-09T12:20:20Z"),
        ttl_secs: 20,
    }
}

pub(super) fn restored(id: &str, state: RestoreState, touched: bool) -> RestoreRecord {
    let done = state == RestoreState::Success;
    RestoreRecord {
        format: 1,
        id: id.to_owned(),
        state,
        touched,
        step: if done { "checking" } else { "copying documents" }.to_owned(),
        started_at: time(id),
        finished_at: (state != RestoreState::InProgress).then(|| time(id) + SignedDuration::from_secs(72)),
        snapshot: "2021-02-03T08:08:30Z".to_owned(),
        target: "just before 2021-02-07T02:59:59Z".to_owned(),
        namespaces: Vec::new(),
        renamed: None,
        into: identity(),
        into_hosts: "rs0/db1:27017,db2:27017".to_owned(),
        new_epoch: touched.then_some(2),
        kept: None,
        reached: None,
        totals: match done {
            true => RestoreTotals {
                collections: 12,
                documents: 1_234_000,
                bytes: 3 << 30,
                indexes: 20,
                log_records: 98_765,
            },
            false => RestoreTotals::default(),
        },
        error: (state == RestoreState::Error).then(|| "the connection broke while inserting".to_owned()),
        run_by: "0.1.0".to_owned(),
    }
}

/// PITR is on, an agent captures, one snapshot, one range.
pub(super) fn healthy() -> Overview {
    let history = History {
        cluster: "rs0".to_owned(),
        snapshots: vec![snapshot("2021-02-03T08:08:35Z", 1)],
        slices: vec![
            slice("2021-02-03T08:00:00Z", "2021-02-07T02:50:00Z", 1),
            slice("2021-02-07T02:50:00Z", "2021-02-09T12:20:23Z", 1),
        ],
        epochs: Vec::new(),
        gaps: Vec::new(),
        damaged: Vec::new(),
    };
    let mut config = ClusterConfig::default();
    config.pitr.enabled = true;
    Overview {
        descriptor: Some(ClusterDescriptor {
            name: "rs0".to_owned(),
            identity: identity(),
            created_at: time("2021-02-03T08:00:00Z"),
        }),
        config,
        timeline: timeline(&history),
        history,
        epoch: 1,
        proofs: Vec::new(),
        restores: Vec::new(),
        damaged: Vec::new(),
        operation: None,
        restoring: Vec::new(),
        capture: Captured::Running(lease(OperationKind::Capture, "rs0", "captured until ...")),
    }
}

/// As [`healthy`], then a gap, then a restore, a selective snapshot, and an epoch after it.
pub(super) fn eventful() -> Overview {
    let mut overview = healthy();
    let history = &mut overview.history;
    history.slices.push(slice("2021-02-09T14:00:00Z", "2021-02-10T06:00:00Z", 1));
    history.snapshots.push(snapshot("2021-02-09T15:00:00Z", 1));
    history.gaps.push(StoredGap {
        stream: "rs0".to_owned(),
        epoch: 1,
        record: GapRecord {
            start: Some(point("2021-02-09T12:20:23Z")),
            end: point("2021-02-09T14:00:00Z"),
            cause: "the oplog of db1:27017 no longer held what followed".to_owned(),
            detected_at: time("2021-02-09T14:00:01Z"),
        },
    });
    history.epochs.push(EpochRecord {
        branch: None,
        number: 2,
        started_at: time("2021-02-10T06:30:00Z"),
        cause: EpochCause::Restore("2021-02-10T06:29:00Z".to_owned()),
    });
    let mut selective = snapshot("2021-02-10T07:00:00Z", 2);
    selective.namespaces = vec!["shop.*".to_owned(), "crm.customers".to_owned()];
    history.snapshots.push(selective);
    history.snapshots.push(snapshot("2021-02-10T07:30:00Z", 2));
    history.slices.push(slice("2021-02-10T06:40:00Z", "2021-02-10T08:00:00Z", 2));
    overview.timeline = timeline(&overview.history);
    overview.epoch = 2;
    overview.restores = vec![restored("2021-02-10T06:29:00Z", RestoreState::Success, true)];
    overview
}

pub(super) fn probe() -> Probe {
    let member = |host: &str, role: &str, healthy, lag_secs| Member {
        host: host.to_owned(),
        role: role.to_owned(),
        healthy,
        lag_secs,
    };
    Probe {
        engine: "mongodb",
        identity: identity(),
        natural_name: "rs0".to_owned(),
        streams: vec!["rs0".to_owned()],
        version: "7.0.14".to_owned(),
        members: vec![
            member("db1:27017", "primary", true, Some(0)),
            member("db2:27017", "secondary, hidden", true, Some(75)),
            member("db3:27017", "unknown", false, None),
        ],
        head: point("2021-02-09T12:20:27Z"),
        log_start: Some(point("2021-02-08T09:20:27Z")),
        log_room: None,
        warnings: Vec::new(),
    }
}

pub(super) fn request(selection: Selection) -> RestoreRequest {
    let target = Target::Before(time("2021-02-07T02:59:59Z"));
    RestoreRequest { selection, ..RestoreRequest::to(target) }
}

pub(super) fn plan() -> RestorePlan {
    RestorePlan {
        base: snapshot("2021-02-03T08:08:35Z", 1),
        parents: Vec::new(),
        epoch: 1,
        cut: Cut::Before(time("2021-02-07T02:59:59Z")),
        streams: vec![StreamPlan {
            stream: "rs0".to_owned(),
            own: Vec::new(),
            log: vec![
                slice("2021-02-03T08:00:00Z", "2021-02-07T02:50:00Z", 1),
                slice("2021-02-07T02:50:00Z", "2021-02-09T12:20:23Z", 1),
            ],
        }],
        log_bytes: 10 << 20,
        data_bytes: 1 << 30,
        range: Some((time("2021-02-03T08:08:36Z"), time("2021-02-09T12:20:23Z"))),
    }
}

/// What a restore does to a target with these many collections, the last two of them new.
pub(super) fn preview(collections: u64) -> Preview {
    let change = |number: u64| NamespaceChange {
        namespace: format!("shop.coll{number:03}"),
        items: number * 1000 + 1,
        bytes: number * 123_456 + 30,
        in_base: number + 2 < collections,
    };
    Preview {
        into: identity(),
        into_hosts: "rs0/db1:27017,db2:27017".to_owned(),
        into_version: "7.0.14".to_owned(),
        in_place: true,
        kept: None,
        existing: (0..collections).map(change).collect(),
        notes: vec!["users and roles become what they were; the user of this connection stays as it is".to_owned()],
        reaches: None,
        estimated_secs: Some(1 + (3 << 30) / (60 << 20)),
    }
}
