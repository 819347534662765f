//! What the tests of the repository share.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod exercise;
mod moody;

pub use exercise::exercise;
use futures::TryStreamExt;
use hindsight_format::{
    LogSummary, ObjectKind, Point, Position, SliceName, SnapshotKind, SnapshotManifest, SnapshotSource, SnapshotTotals,
    StoredSlice,
};
use hindsight_repository::{
    ClusterRepository, Identity, ObjectReader, Repository, RepositorySpec, Result, WrittenObject, encode_frame,
};
use jiff::Timestamp;
pub use moody::{Mood, MoodyStore};
use rand::RngExt;
use tempfile::TempDir;

pub const NAMESPACE: &str = "shop.orders";

pub async fn repository() -> (TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().join("repository").display().to_string();
    let repository = Repository::open_or_create(&RepositorySpec::new(url)).await.unwrap();
    (folder, repository)
}

pub async fn cluster() -> (TempDir, ClusterRepository) {
    let (folder, repository) = repository().await;
    let cluster = repository.cluster("rs0").unwrap();
    (folder, cluster)
}

/// A sealed repository, who can open it, and its folder. The handle has no private key.
pub async fn sealed() -> (TempDir, ClusterRepository, Identity) {
    let identity = Identity::generate();
    let folder = tempfile::tempdir().unwrap();
    let spec = RepositorySpec::new(folder.path().join("repository").display().to_string());
    let repository = Repository::make(&spec, &identity.recipients()).await.unwrap();
    let cluster = repository.cluster("rs0").unwrap();
    (folder, cluster, identity)
}

/// A cluster of the same folder as another process would open it.
pub async fn opened(folder: &TempDir, identity: Option<&Identity>) -> ClusterRepository {
    let spec = RepositorySpec::new(folder.path().join("repository").display().to_string());
    let repository = Repository::open(&spec).await.unwrap().unwrap();
    let repository = identity.map_or_else(|| repository.clone(), |identity| repository.with_identity(identity.clone()));
    repository.cluster("rs0").unwrap()
}

/// The file of a key in a repository made by [`repository`].
pub fn file(folder: &TempDir, key: &str) -> std::path::PathBuf {
    folder.path().join("repository").join(key)
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::rng().fill(bytes.as_mut_slice());
    bytes
}

pub fn point(second: i64) -> Point {
    Point {
        time: Timestamp::from_second(1_612_339_700 + second).unwrap(),
        position: Position::new(format!("{:010}.0000000001", 1_612_339_700 + second), "7").unwrap(),
    }
}

pub async fn write_object(cluster: &ClusterRepository, key: &str, frames: &[(Vec<u8>, u32)]) -> Result<WrittenObject> {
    let mut writer = cluster.object_writer(key.to_owned(), ObjectKind::Data).await;
    for (raw, segment) in frames {
        writer.write(encode_frame(raw, 3, *segment)?).await?;
    }
    writer.finish(None).await
}

/// Writes the slice `(start, end]` with these frames, one record each.
pub async fn write_slice(cluster: &ClusterRepository, start: i64, end: i64, frames: &[Vec<u8>]) -> StoredSlice {
    let frames: Vec<_> = frames.iter().map(|raw| (raw.clone(), 0)).collect();
    write_slice_of(cluster, point(start), point(end), &frames).await
}

/// The same with the segment of each frame.
pub async fn write_slice_of(
    cluster: &ClusterRepository,
    start: Point,
    end: Point,
    frames: &[(Vec<u8>, u32)],
) -> StoredSlice {
    let name = SliceName { start: start.clone(), end: end.clone(), fence: 1 };
    let mut slice = StoredSlice { stream: "rs0".into(), epoch: 1, name, stored_bytes: 0 };
    let mut writer = cluster.object_writer(cluster.slice_key(&slice), ObjectKind::Slice).await;
    let mut log = LogSummary::starting_at(start);
    for (raw, segment) in frames {
        log.count(NAMESPACE, "i", end.time.as_second(), 1);
        writer.write(encode_frame(raw, 3, *segment).unwrap()).await.unwrap();
    }
    log.end = end;
    slice.stored_bytes = writer.finish(Some(log)).await.unwrap().stored_bytes;
    slice
}

pub async fn read_raw(reader: &ObjectReader) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    let mut frames = reader.stream(|_| true, 2);
    while let Some((_, bytes)) = frames.try_next().await? {
        raw.extend_from_slice(&bytes);
    }
    Ok(raw)
}

pub fn manifest(id: &str) -> SnapshotManifest {
    SnapshotManifest {
        format: 1,
        id: id.to_owned(),
        engine: "mongodb".into(),
        kind: SnapshotKind::Logical,
        parent: None,
        epoch: 1,
        namespaces: Vec::new(),
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        source: SnapshotSource {
            member: "localhost:27017".into(),
            role: "primary".into(),
            server_version: "8.0.0".into(),
            compatibility_version: None,
        },
        streams: Default::default(),
        objects: Vec::new(),
        totals: SnapshotTotals::default(),
        hashes: None,
        created_by: "test".into(),
        seal: None,
    }
}
