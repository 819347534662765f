//! Framed objects: what is written is read again, in whole and in part.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{cluster, file, noise, read_raw, write_object};
use futures::TryStreamExt;
use hindsight_format::{ObjectKind, ObjectRef};
use hindsight_repository::{Error, FRAME_TARGET, MAX_FRAME_RAW, encode_frame};

#[tokio::test]
async fn an_object_is_a_zstd_file() {
    let (folder, cluster) = cluster().await;
    let key = cluster.keys().snapshot_object("s", "data");
    let frames = [(b"one ".to_vec(), 1), (noise(200_000), 2), (Vec::new(), 0), (b"three".to_vec(), 1)];
    let written = write_object(&cluster, &key, &frames).await.unwrap();

    let raw: Vec<u8> = frames.iter().flat_map(|(raw, _)| raw.clone()).collect();
    let stored = std::fs::read(file(&folder, &key)).unwrap();
    assert_eq!(zstd::decode_all(stored.as_slice()).unwrap(), raw);
    assert_eq!((written.stored_bytes, written.raw_bytes), (stored.len() as u64, raw.len() as u64));
    assert_eq!(written.frames, 4);

    let reader = cluster.object_reader(&key, None).await.unwrap();
    assert_eq!(read_raw(&reader).await.unwrap(), raw);
    reader.verify().await.unwrap();
    assert_eq!(reader.footer().kind, ObjectKind::Data);
    assert_eq!(reader.frame(3).await.unwrap(), b"three");
    assert_eq!(reader.frame(1).await.unwrap(), frames[1].0);
    assert!(matches!(reader.frame(4).await, Err(Error::Refused(_))));
    let of_segment: Vec<_> = reader.stream(|entry| entry.segment == 1, 4).try_collect().await.unwrap();
    let bytes: Vec<_> = of_segment.iter().map(|(_, raw)| raw.as_ref()).collect();
    assert_eq!(bytes, [b"one ".as_slice(), b"three"]);
}

#[tokio::test]
async fn an_object_without_frames_is_fine() {
    let (_folder, cluster) = cluster().await;
    let key = cluster.keys().snapshot_object("s", "nothing");
    write_object(&cluster, &key, &[]).await.unwrap();
    let reader = cluster.object_reader(&key, None).await.unwrap();
    assert!(read_raw(&reader).await.unwrap().is_empty());
    reader.verify().await.unwrap();
}

#[tokio::test]
async fn large_objects_go_in_parts_and_come_back_in_order() {
    let (_folder, cluster) = cluster().await;
    let key = cluster.keys().snapshot_object("s", "large");
    let frames: Vec<_> = (0..30).map(|segment| (noise(1_300_000), segment)).collect();
    write_object(&cluster, &key, &frames).await.unwrap();
    let reader = cluster.object_reader(&key, None).await.unwrap();
    let mut index = 0;
    let mut stream = reader.stream(|_| true, 3);
    while let Some((entry, raw)) = stream.try_next().await.unwrap() {
        assert_eq!((entry.segment, raw.as_ref()), (index, frames[index as usize].0.as_slice()));
        index += 1;
    }
    assert_eq!(index, 30);
    // every other frame, with gaps in between
    let odd: Vec<_> = reader.stream(|entry| entry.segment % 2 == 1, 1).try_collect().await.unwrap();
    assert!(odd.iter().all(|(entry, raw)| raw.as_ref() == frames[entry.segment as usize].0.as_slice()));
    assert_eq!(odd.len(), 15);
}

#[tokio::test]
async fn what_is_not_finished_is_not_there() {
    let (folder, cluster) = cluster().await;
    let key = cluster.keys().snapshot_object("s", "never");
    for abort in [true, false] {
        let mut writer = cluster.object_writer(key.clone(), ObjectKind::Data).await;
        for _ in 0..5 {
            writer.write(encode_frame(&noise(FRAME_TARGET), 1, 0).unwrap()).await.unwrap();
        }
        if abort {
            writer.abort().await;
        } else {
            drop(writer);
        }
        assert!(matches!(cluster.object_reader(&key, None).await, Err(Error::Missing { .. })));
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let left = std::fs::read_dir(file(&folder, &cluster.keys().snapshot("s"))).map(Iterator::count);
    assert_eq!(left.unwrap_or(0), 0, "parts are cleared away");
}

#[tokio::test]
async fn a_reader_holds_an_object_against_its_manifest() {
    let (_folder, cluster) = cluster().await;
    let key = cluster.keys().snapshot_object("s", "data");
    let written = write_object(&cluster, &key, &[(b"x".to_vec(), 0)]).await.unwrap();
    let right = ObjectRef {
        name: "data".into(),
        stored_bytes: written.stored_bytes,
        raw_bytes: written.raw_bytes,
        footer_blake3: written.footer_blake3,
    };
    cluster.object_reader(&key, Some(&right)).await.unwrap();
    for wrong in [
        ObjectRef { stored_bytes: 1, ..right.clone() },
        ObjectRef { raw_bytes: 2, ..right.clone() },
        ObjectRef { footer_blake3: "0".repeat(64), ..right.clone() },
    ] {
        assert!(matches!(cluster.object_reader(&key, Some(&wrong)).await, Err(Error::Damaged { .. })));
    }
}

#[test]
fn frames_have_a_limit() {
    assert!(matches!(encode_frame(&vec![0; MAX_FRAME_RAW + 1], 1, 0), Err(Error::Refused(_))));
}

/// The commands of docs/repository-format.md, where the programs are installed.
#[tokio::test]
async fn an_object_can_be_read_by_hand() {
    let (folder, cluster) = cluster().await;
    let key = cluster.keys().snapshot_object("s", "data");
    write_object(&cluster, &key, &[(b"raw ".to_vec(), 0), (b"bytes".to_vec(), 0)]).await.unwrap();
    let path = file(&folder, &key);
    let run = |command: &str| {
        let output = std::process::Command::new("sh").arg("-c").arg(command).env("OBJECT", &path).output().unwrap();
        output.status.success().then_some(output.stdout)
    };
    if run("command -v zstd && command -v od").is_none() {
        return;
    }
    assert_eq!(run("zstd -d < \"$OBJECT\"").unwrap(), b"raw bytes");
    let footer = "n=$(tail -c 12 \"$OBJECT\" | head -c 4 | od -An -tu4 --endian=little | tr -d ' ')\n\
                  tail -c $((n + 12)) \"$OBJECT\" | head -c \"$n\"";
    let footer = run(footer).unwrap();
    let reader = cluster.object_reader(&key, None).await.unwrap();
    assert_eq!(blake3::hash(&footer).to_hex().as_str(), reader.footer_blake3());
    let record = std::fs::read(file(&folder, "repository.json")).unwrap();
    let hash = blake3::hash(&record[87..]).to_hex();
    assert!(record.starts_with(format!("{{\"checksum\":\"blake3:{hash}\",\n").as_bytes()));
}
