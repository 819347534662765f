//! Merged slices hold the same bytes, in the same order, and say so.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{NAMESPACE, cluster, file, noise, point, read_raw, write_slice, write_slice_of};
use hindsight_format::Point;
use hindsight_repository::{Error, merge_slices};

#[tokio::test]
async fn merging_changes_nothing_but_the_number_of_objects() {
    let (_folder, cluster) = cluster().await;
    let contents: Vec<Vec<Vec<u8>>> = vec![
        vec![b"first".to_vec()],
        vec![],
        vec![noise(1 << 20), b"between".to_vec(), noise((1 << 20) + 5)],
        (0..90).map(|_| noise(100_000)).collect(),
        vec![b"last".to_vec()],
    ];
    let mut parts = Vec::new();
    for (start, frames) in (0..).zip(&contents) {
        parts.push(write_slice(&cluster, start, start + 1, frames).await);
    }
    let merged = merge_slices(&cluster, "rs0", 1, &parts, 9, 3).await.unwrap();
    assert_eq!(cluster.slices().await.unwrap(), std::slice::from_ref(&merged));
    assert_eq!((&merged.name.start, &merged.name.end, merged.name.fence), (&point(0), &point(5), 9));

    let reader = cluster.slice_reader(&merged).await.unwrap();
    assert_eq!(read_raw(&reader).await.unwrap(), contents.concat().concat());
    let log = reader.footer().log.clone().unwrap();
    assert_eq!((log.records, log.counts[NAMESPACE]["i"]), (95, 95));
    let sizes: Vec<_> = reader.footer().frames.iter().map(|frame| frame.raw_len).collect();
    assert_eq!(&sizes[..4], [5, 1 << 20, 7, (1 << 20) + 5], "large frames are copied, small ones put together");
    assert!(sizes.len() <= 8, "{sizes:?}");

    // again, and with a neighbour
    let next = write_slice(&cluster, 5, 6, &[b"more".to_vec()]).await;
    let all = merge_slices(&cluster, "rs0", 1, &[merged, next], 10, 3).await.unwrap();
    let raw = read_raw(&cluster.slice_reader(&all).await.unwrap()).await.unwrap();
    assert!(raw.ends_with(b"lastmore"));
    assert_eq!(merge_slices(&cluster, "rs0", 1, std::slice::from_ref(&all), 11, 3).await.unwrap(), all);
}

#[tokio::test]
async fn frames_stay_in_their_segments() {
    let (_folder, cluster) = cluster().await;
    let first = [(b"a".to_vec(), 1), (b"b".to_vec(), 1), (b"c".to_vec(), 2)];
    let next = [(b"d".to_vec(), 2), (noise(1 << 20), 3), (b"e".to_vec(), 3)];
    let parts = [
        write_slice_of(&cluster, point(0), point(1), &first).await,
        // A slice meets the one before it by its position: the time that is told of that may be another.
        write_slice_of(&cluster, Point { time: point(2).time, ..point(1) }, point(3), &next).await,
    ];
    let merged = merge_slices(&cluster, "rs0", 1, &parts, 2, 3).await.unwrap();
    let reader = cluster.slice_reader(&merged).await.unwrap();
    let frames: Vec<_> = reader.footer().frames.iter().map(|frame| (frame.raw_len, frame.segment)).collect();
    assert_eq!(frames, [(2, 1), (2, 2), (1 << 20, 3), (1, 3)]);
    assert!(read_raw(&reader).await.unwrap().starts_with(b"abcd"));
}

#[tokio::test]
async fn what_does_not_meet_is_not_merged() {
    let (_folder, cluster) = cluster().await;
    let parts = [write_slice(&cluster, 0, 1, &[]).await, write_slice(&cluster, 2, 3, &[]).await];
    assert!(matches!(merge_slices(&cluster, "rs0", 1, &parts, 1, 3).await, Err(Error::Refused(_))));
    assert!(matches!(merge_slices(&cluster, "rs0", 1, &[], 1, 3).await, Err(Error::Refused(_))));
    assert!(matches!(merge_slices(&cluster, "rs0", 2, &parts[..1], 1, 3).await, Err(Error::Refused(_))));
    assert_eq!(cluster.slices().await.unwrap(), parts);
}

#[tokio::test]
async fn a_part_that_is_gone_or_damaged_leaves_the_others_alone() {
    let (folder, cluster) = cluster().await;
    let mut parts = Vec::new();
    for start in 0..3 {
        parts.push(write_slice(&cluster, start, start + 1, &[noise(300)]).await);
    }
    let path = file(&folder, &cluster.slice_key(&parts[1]));
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    std::fs::write(&path, bad).unwrap();
    assert!(matches!(merge_slices(&cluster, "rs0", 1, &parts, 2, 3).await, Err(Error::Damaged { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(merge_slices(&cluster, "rs0", 1, &parts, 2, 3).await.unwrap_err().is_missing());
    assert_eq!(cluster.slices().await.unwrap().len(), 2);
}

#[tokio::test]
async fn two_that_merge_the_same_do_no_harm() {
    let (_folder, cluster) = cluster().await;
    let mut parts = Vec::new();
    for start in 0..6 {
        parts.push(write_slice(&cluster, start, start + 1, &[noise(50_000)]).await);
    }
    let (one, two) =
        tokio::join!(merge_slices(&cluster, "rs0", 1, &parts, 3, 3), merge_slices(&cluster, "rs0", 1, &parts, 4, 3));
    for result in [one, two] {
        assert!(result.is_ok() || result.unwrap_err().is_missing());
    }
    let left = cluster.slices().await.unwrap();
    assert!(!left.is_empty());
    for slice in left {
        let reader = cluster.slice_reader(&slice).await.unwrap();
        assert_eq!(read_raw(&reader).await.unwrap().len(), 300_000);
    }
}
