//! Whatever happens to the bytes of a repository is noticed, and named.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;

use common::{cluster, file, manifest, noise, point, read_raw, write_object, write_slice};
use hindsight_format::{SliceName, StoredSlice};
use hindsight_repository::{ClusterRepository, Error, Repository, RepositorySpec};

async fn must_be_damaged(cluster: &ClusterRepository, key: &str, what: &str) {
    let result = async {
        let reader = cluster.object_reader(key, None).await?;
        read_raw(&reader).await?;
        reader.verify().await
    };
    match result.await {
        Err(Error::Damaged { key: named, why }) => {
            assert_eq!(named, key, "{what}");
            assert!(!why.is_empty() && !why.contains('\n'), "{what}: {why}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

async fn each_damage(cluster: &ClusterRepository, key: &str, path: &Path, frame_sizes: &[usize]) {
    let good = std::fs::read(path).unwrap();
    let mut edges = vec![0, 24];
    for size in frame_sizes {
        edges.push(edges.last().unwrap() + size);
    }
    let footer = *edges.last().unwrap();
    edges.extend([footer + 4, footer + 8, good.len() - 12, good.len() - 8, good.len() - 4, good.len()]);

    for edge in &edges {
        for length in [edge.saturating_sub(1), *edge, edge + 1] {
            if length < good.len() {
                std::fs::write(path, &good[..length]).unwrap();
                must_be_damaged(cluster, key, &format!("cut off at {length}")).await;
            }
        }
        // a piece is missing in the middle, or there is one too many
        if *edge < good.len() {
            let mut shifted = good.clone();
            shifted.remove(*edge);
            std::fs::write(path, &shifted).unwrap();
            must_be_damaged(cluster, key, &format!("without byte {edge}")).await;
        }
        let mut longer = good.clone();
        longer.insert(*edge, 0);
        std::fs::write(path, &longer).unwrap();
        must_be_damaged(cluster, key, &format!("one more byte at {edge}")).await;
    }

    let everywhere = (0..24).chain((24..footer).step_by(good.len() / 150 + 1)).chain(footer..good.len());
    for at in everywhere {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(path, &flipped).unwrap();
        must_be_damaged(cluster, key, &format!("flipped at {at}")).await;
    }
    std::fs::write(path, &good).unwrap();
    cluster.object_reader(key, None).await.unwrap().verify().await.unwrap();
}

#[tokio::test]
async fn damage_to_objects_is_found_wherever_it_is() {
    let (folder, cluster) = cluster().await;
    // one that is read whole with its footer, and one that is not
    for (name, sizes) in [("small", [300, 5, 1000]), ("large", [60_000, 10, 70_000])] {
        let key = cluster.keys().snapshot_object("s", name);
        let frames: Vec<_> = sizes.iter().map(|size| (noise(*size), 0)).collect();
        write_object(&cluster, &key, &frames).await.unwrap();
        let footer = cluster.object_reader(&key, None).await.unwrap().footer().clone();
        let stored: Vec<_> = footer.frames.iter().map(|frame| frame.stored_len as usize).collect();
        each_damage(&cluster, &key, &file(&folder, &key), &stored).await;
    }
}

#[tokio::test]
async fn objects_that_changed_places_are_found() {
    let (folder, cluster) = cluster().await;
    let keys = ["a", "b"].map(|name| cluster.keys().snapshot_object("s", name));
    for key in &keys {
        write_object(&cluster, key, &[(noise(500), 0)]).await.unwrap();
    }
    let paths = keys.each_ref().map(|key| file(&folder, key));
    let bytes = paths.each_ref().map(|path| std::fs::read(path).unwrap());
    std::fs::write(&paths[0], &bytes[1]).unwrap();
    std::fs::write(&paths[1], &bytes[0]).unwrap();
    let error = cluster.object_reader(&keys[0], None).await.unwrap_err();
    assert!(error.to_string().contains(&keys[1]) && !error.is_retryable(), "{error}");
    must_be_damaged(&cluster, &keys[1], "swapped").await;
}

#[tokio::test]
async fn a_missing_object_is_told_apart() {
    let (_folder, cluster) = cluster().await;
    let error = cluster.object_reader(&cluster.keys().snapshot_object("s", "x"), None).await.unwrap_err();
    assert!(error.is_missing() && error.to_string().contains("snapshots/s/x"), "{error}");
}

#[tokio::test]
async fn a_slice_holds_what_its_name_says() {
    let (folder, cluster) = cluster().await;
    let slice = write_slice(&cluster, 0, 5, &[b"x".to_vec()]).await;
    cluster.slice_reader(&slice).await.unwrap();
    // an object with another key in its footer, and one that is no slice
    let longer = SliceName { end: point(9), ..slice.name.clone() };
    let renamed = StoredSlice { name: longer, ..slice.clone() };
    let (from, to) = (cluster.slice_key(&slice), cluster.slice_key(&renamed));
    std::fs::copy(file(&folder, &from), file(&folder, &to)).unwrap();
    assert!(matches!(cluster.slice_reader(&renamed).await, Err(Error::Damaged { .. })));
    write_object(&cluster, &from, &[]).await.unwrap();
    assert!(matches!(cluster.slice_reader(&slice).await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn damage_to_records_is_found_wherever_it_is() {
    let (folder, cluster) = cluster().await;
    cluster.put_manifest(&manifest("2021-02-03T08:08:36Z")).await.unwrap();
    let path = file(&folder, &cluster.keys().manifest("2021-02-03T08:08:36Z"));
    let good = std::fs::read(&path).unwrap();
    serde_json::from_slice::<serde_json::Value>(&good).unwrap();
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 7);
        for (bytes, what) in [(&flipped[..], "flipped"), (&good[..at], "cut off")] {
            std::fs::write(&path, bytes).unwrap();
            match cluster.snapshots().await {
                Err(Error::Damaged { key, .. }) => assert!(key.contains("2021-02-03T08:08:36Z/manifest.json")),
                other => panic!("{what} at {at}: {other:?}"),
            }
        }
    }
    // under another snapshot's name
    let other = file(&folder, &cluster.keys().manifest("other"));
    std::fs::create_dir(other.parent().unwrap()).unwrap();
    std::fs::write(&path, &good).unwrap();
    std::fs::copy(&path, &other).unwrap();
    assert!(matches!(cluster.snapshot("other").await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn what_a_newer_program_wrote_is_refused_as_such() {
    let (folder, cluster) = cluster().await;
    let mut newer = manifest("new");
    newer.format = 2;
    cluster.put_manifest(&newer).await.unwrap();
    let error = cluster.snapshots().await.unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, known: 1, .. }), "{error}");

    std::fs::write(file(&folder, "repository.json"), b"{}").unwrap();
    let spec = RepositorySpec::new(folder.path().join("repository").display().to_string());
    let error = Repository::open_or_create(&spec).await.unwrap_err();
    assert!(error.to_string().starts_with("repository.json is damaged"), "{error}");
}
