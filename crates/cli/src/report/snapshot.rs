//! One snapshot: `describe-backup`, and what `backup` says when it is done.

use hindsight_engine::{Content, Words};
use hindsight_format::{SnapshotManifest, SnapshotTotals, format_time};
use hindsight_repository::ClusterRepository;
use serde::Serialize;

use super::{Keyed, yaml};
use crate::output::Report;
use crate::text;

/// One snapshot with all that is known about it. Fields are named as `pbm describe-backup` names
/// them where it has them.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotReport {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// The snapshots that it builds upon, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    builds_upon: Vec<String>,
    status: &'static str,
    engine: String,
    epoch: u64,
    restore_time: String,
    last_write_time: String,
    started_at: String,
    finished_at: String,
    duration: String,
    /// Empty: everything.
    namespaces: Vec<String>,
    server_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    compatibility_version: Option<String>,
    member: String,
    role: String,
    size: u64,
    size_h: String,
    size_uncompressed: u64,
    size_uncompressed_h: String,
    #[serde(flatten)]
    counts: Keyed<u64, String>,
    path: String,
    hindsight_version: String,
    /// Its own piece of each log: the snapshot is consistent at `last`.
    log: Vec<OwnLog>,
    objects: Vec<Object>,
    /// The public keys to which it is sealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed_to: Option<Vec<String>>,
    /// Containers of which a hash is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    hashes: Option<u64>,
    /// What is in it, under the engine's word for that.
    #[serde(flatten)]
    contents: Option<Keyed<Vec<Held>>>,
    #[serde(skip)]
    totals: SnapshotTotals,
    #[serde(skip)]
    words: &'static Words,
}

/// A container in it.
#[derive(Debug, Serialize)]
struct Held {
    name: String,
    #[serde(flatten)]
    items: Keyed,
    bytes: u64,
    #[serde(flatten)]
    indexes: Option<Keyed>,
}

#[derive(Debug, Serialize)]
struct OwnLog {
    stream: String,
    first: String,
    last: String,
    slices: usize,
    records: u64,
}

#[derive(Debug, Serialize)]
struct Object {
    name: String,
    size: u64,
    size_uncompressed: u64,
}

/// Where a snapshot is.
pub(crate) fn path(cluster: &ClusterRepository, id: &str) -> String {
    format!(
        "{}/{}",
        cluster.repository().url().trim_end_matches('/'),
        cluster.keys().snapshot(id).trim_end_matches('/')
    )
}

impl SnapshotReport {
    pub(crate) fn of(
        snapshot: &SnapshotManifest,
        path: String,
        contents: Option<Vec<Content>>,
        words: &'static Words,
    ) -> Self {
        let totals = &snapshot.totals;
        let held = |content: Content| Held {
            name: content.name,
            items: Keyed(vec![(words.item.1, content.items)]),
            bytes: content.bytes,
            indexes: words.index.map(|index| Keyed(vec![(index.1, content.indexes)])),
        };
        let log = snapshot.streams.iter().map(|(stream, part)| OwnLog {
            stream: stream.clone(),
            first: part.first.to_string(),
            last: part.last.to_string(),
            slices: part.slices.len(),
            records: totals.log_records,
        });
        let objects = snapshot.objects.iter().map(|object| Object {
            name: object.name.clone(),
            size: object.stored_bytes,
            size_uncompressed: object.raw_bytes,
        });
        Self {
            name: snapshot.id.clone(),
            kind: snapshot.kind.to_string(),
            builds_upon: snapshot.parent.iter().cloned().collect(),
            status: "done",
            engine: snapshot.engine.clone(),
            epoch: snapshot.epoch,
            restore_time: format_time(snapshot.restore_time()),
            last_write_time: format_time(snapshot.restore_time()),
            started_at: format_time(snapshot.started_at),
            finished_at: format_time(snapshot.finished_at),
            duration: text::took(snapshot.started_at, snapshot.finished_at),
            namespaces: snapshot.namespaces.clone(),
            server_version: snapshot.source.server_version.clone(),
            compatibility_version: snapshot.source.compatibility_version.clone(),
            member: snapshot.source.member.clone(),
            role: snapshot.source.role.clone(),
            size: totals.stored_bytes,
            size_h: text::bytes(totals.stored_bytes),
            size_uncompressed: totals.raw_bytes,
            size_uncompressed_h: text::bytes(totals.raw_bytes),
            counts: Keyed(vec![
                (format!("{}_count", words.container.0), totals.collections),
                (format!("{}_count", words.item.0), totals.documents),
            ]),
            path,
            hindsight_version: snapshot.created_by.clone(),
            log: log.collect(),
            objects: objects.collect(),
            sealed_to: snapshot.seal.as_ref().map(|seal| seal.sealed_to.clone()),
            hashes: snapshot.hashes.as_ref().map(|hashes| hashes.collections.len() as u64),
            contents: contents.map(|all| Keyed(vec![(words.container.1, all.into_iter().map(held).collect())])),
            totals: *totals,
            words,
        }
    }
}

impl SnapshotReport {
    /// The same with all that it builds upon, nearest first.
    pub(crate) fn upon(self, chain: Vec<String>) -> Self {
        Self { builds_upon: chain, ..self }
    }
}

impl Report for SnapshotReport {
    fn text(&self) -> String {
        yaml(self)
    }
}

/// A snapshot that was just taken.
#[derive(Debug, Serialize)]
pub(crate) struct Taken {
    name: String,
    /// Where it is.
    storage: String,
    snapshot: SnapshotReport,
    warnings: Vec<String>,
    /// What to do next, for people.
    #[serde(skip)]
    next: Option<String>,
}

impl Taken {
    pub(crate) fn of(snapshot: SnapshotReport, warnings: Vec<String>, next: Option<String>) -> Self {
        Self { name: snapshot.name.clone(), storage: snapshot.path.clone(), snapshot, warnings, next }
    }
}

impl Report for Taken {
    fn text(&self) -> String {
        let Self { name, storage, snapshot: s, next, .. } = self;
        let next = next.as_ref().map(|next| format!("{next}\n")).unwrap_or_default();
        let containers = text::counted(s.totals.collections, s.words.container);
        let items = text::counted(s.totals.documents, s.words.item);
        let hashes = s.hashes.map(|n| format!("  hashes        of {}\n", text::counted(n, s.words.container)));
        let hashes = hashes.unwrap_or_default();
        let upon = s.builds_upon.first().map(|parent| format!("  builds upon   {parent}\n")).unwrap_or_default();
        format!(
            "Backup \"{name}\" saved to remote store (path: \"{storage}\")\n  \
             holds         {containers}, {items}\n  \
             size          {}, {} uncompressed\n{upon}  \
             restore time  {}\n  \
             took          {}, read from {} ({})\n{hashes}{next}",
            s.size_h, s.size_uncompressed_h, s.restore_time, s.duration, s.member, s.role,
        )
    }
}
