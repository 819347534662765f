//! A bit of everything, on whatever store a repository is in.

use hindsight_format::{Operation, OperationKind, SnapshotManifest};
use hindsight_repository::{Acquired, DEFAULT_TTL, Error, Repository, merge_slices};

use super::{manifest, noise, read_raw, write_object, write_slice};

pub async fn exercise(repository: &Repository) {
    let cluster = repository.cluster("rs0").unwrap();
    let key = cluster.keys().snapshot_object("2021-02-03T08:08:36Z", "rs0/data");
    let frames: Vec<_> = (0..14).map(|segment| (noise(2_000_000), segment)).collect();
    write_object(&cluster, &key, &frames).await.unwrap();
    let reader = cluster.object_reader(&key, None).await.unwrap();
    assert!(read_raw(&reader).await.unwrap().chunks(2_000_000).eq(frames.iter().map(|(raw, _)| raw.as_slice())));
    assert!(cluster.snapshots().await.unwrap().is_empty());
    cluster.put_manifest(&manifest("2021-02-03T08:08:36Z")).await.unwrap();
    let other = SnapshotManifest { epoch: 2, ..manifest("2021-02-03T08:08:36Z") };
    assert!(matches!(cluster.put_manifest(&other).await, Err(Error::Exists { .. })));
    assert_eq!(cluster.snapshots().await.unwrap().len(), 1);
    assert!(cluster.object_reader("clusters/rs0/none", None).await.unwrap_err().is_missing());

    let mut parts = Vec::new();
    for start in 0..4 {
        parts.push(write_slice(&cluster, start, start + 1, &[vec![b'a' + u8::try_from(start).unwrap()]]).await);
    }
    assert_eq!(cluster.slices().await.unwrap(), parts);
    assert_eq!(cluster.slices_from("rs0", 1, Some(&parts[1].name)).await.unwrap(), parts[2..]);
    let merged = merge_slices(&cluster, "rs0", 1, &parts, 2, 3).await.unwrap();
    assert_eq!(cluster.slices().await.unwrap(), std::slice::from_ref(&merged));
    assert_eq!(read_raw(&cluster.slice_reader(&merged).await.unwrap()).await.unwrap(), b"abcd");

    let operation = || Operation { kind: OperationKind::Backup, id: "x".into(), detail: String::new() };
    let tasks = (0..6).map(|_| cluster.acquire("operation", operation(), DEFAULT_TTL));
    let acquired: Vec<_> = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(acquired.iter().filter(|one| matches!(one, Acquired::Held(_))).count(), 1);

    cluster.delete_snapshot("2021-02-03T08:08:36Z").await.unwrap();
    assert!(cluster.snapshot_ids_in_use().await.unwrap().is_empty());
}
