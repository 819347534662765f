//! Whatever somebody puts into a repository: no panic, no way out of it, no unbounded memory, and an
//! error that names it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use common::{cluster, file, manifest, noise, opened, repository, sealed, write_object, write_slice};
use hindsight_repository::{ClusterRepository, Error, FRAME_TARGET, Repository, RepositorySpec};

#[tokio::test]
async fn a_symbolic_link_leads_nowhere() {
    let (folder, cluster) = cluster().await;
    let slice = write_slice(&cluster, 0, 1, &[noise(10)]).await;
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), b"untouched").unwrap();
    let named = |result: Error, name: &str| {
        let text = result.to_string();
        assert!(text.contains("symbolic link") && text.contains(name), "{text}");
    };

    // In place of a folder that is written to, read, listed, deleted from.
    symlink(&outside, file(&folder, "clusters/rs0/snapshots")).unwrap();
    let key = cluster.keys().snapshot_object("s", "data");
    named(write_object(&cluster, &key, &[(noise(10), 0)]).await.unwrap_err(), "snapshots");
    named(write_object(&cluster, &key, &[(noise(20 << 20), 0)]).await.unwrap_err(), "snapshots");
    named(cluster.put_manifest(&manifest("m")).await.unwrap_err(), "snapshots");
    named(cluster.object_reader(&key, None).await.unwrap_err(), "snapshots");
    named(cluster.snapshots().await.unwrap_err(), "snapshots");
    named(cluster.delete_snapshot("victim").await.unwrap_err(), "snapshots");
    // In place of an object, and beside some.
    let path = file(&folder, &cluster.slice_key(&slice));
    std::fs::remove_file(&path).unwrap();
    symlink(outside.join("victim"), &path).unwrap();
    named(cluster.slice_reader(&slice).await.unwrap_err(), "log.zst");
    named(cluster.delete_slice(&slice).await.unwrap_err(), "log.zst");
    named(cluster.slices().await.unwrap_err(), "log.zst");
    std::fs::remove_file(&path).unwrap();
    symlink("/", path.with_file_name("root")).unwrap();
    named(cluster.slices().await.unwrap_err(), "root");
    symlink(folder.path().join("repository"), file(&folder, "clusters/again")).unwrap();
    named(cluster.repository().clusters().await.unwrap_err(), "again");

    assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "nothing was written there");
    // The repository's own folder may be one.
    let link = folder.path().join("link");
    let (other, _) = repository().await;
    symlink(other.path().join("repository"), &link).unwrap();
    let linked = Repository::open(&RepositorySpec::new(link.display().to_string())).await.unwrap().unwrap();
    exercise_a_little(&linked.cluster("rs0").unwrap()).await;
}

async fn exercise_a_little(cluster: &ClusterRepository) {
    let slice = write_slice(cluster, 0, 1, &[noise(10)]).await;
    assert_eq!(cluster.slices().await.unwrap(), [slice]);
}

#[tokio::test]
async fn names_that_are_none_are_named() {
    let (folder, cluster) = cluster().await;
    exercise_a_little(&cluster).await;
    let log = file(&folder, "clusters/rs0/log/rs0/000001");
    // What is text is foreign, whatever it says.
    for name in ["..log.zst", "a b", "%2e%2e%2f", "ü", &"n".repeat(255)] {
        std::fs::write(log.join(name), b"x").unwrap();
    }
    std::fs::create_dir(file(&folder, "clusters/with space")).unwrap();
    std::fs::create_dir(file(&folder, "clusters/rs0/unexpected")).unwrap();
    std::fs::write(file(&folder, "clusters/rs0/unexpected/x"), b"x").unwrap();
    let listing = cluster.slice_listing().await;
    match listing {
        Ok(listing) => assert_eq!((listing.slices.len(), listing.foreign.len()), (1, 5)),
        Err(error) => panic!("{error}"),
    }
    cluster.repository().clusters().await.unwrap();
    assert!(cluster.snapshots().await.unwrap().is_empty());

    for name in [&b"bad\xff\xfe"[..], b"bad\nline", b"bad\x1b[2J"] {
        let path = log.join(OsStr::from_bytes(name));
        std::fs::write(&path, b"x").unwrap();
        let error = cluster.slices().await.unwrap_err().to_string();
        assert!(error.contains("has a name that") && error.contains("bad"), "{error}");
        assert!(!error.contains(char::is_control), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    let mut deep = log.clone();
    (0..100).for_each(|_| deep.push("d"));
    std::fs::create_dir_all(&deep).unwrap();
    let error = cluster.slices().await.unwrap_err().to_string();
    assert!(error.contains("deeper"), "{error}");
}

/// A record with a right checksum, whatever is in it.
fn record(body: &str) -> Vec<u8> {
    let body = format!("{body}\n");
    format!("{{\"checksum\":\"blake3:{}\",\n{body}", blake3::hash(body.as_bytes()).to_hex()).into_bytes()
}

#[tokio::test]
async fn hostile_records_are_damaged_records() {
    let (folder, cluster) = cluster().await;
    cluster.put_manifest(&manifest("m")).await.unwrap();
    let path = file(&folder, &cluster.keys().manifest("m"));
    let deep = format!("\"format\":1,\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let number = "\"format\":1,\"epoch\":1e999999}".to_owned();
    for body in [deep, number, "\"format\":-1}".to_owned(), "\"format\":1}".to_owned(), "}".to_owned(), String::new()] {
        std::fs::write(&path, record(&body)).unwrap();
        let error = cluster.snapshots().await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { key, .. } if key.ends_with("m/manifest.json")), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    // A name that leads out of its folder is not that of the folder it is in.
    let mut outside = manifest("m");
    outside.id = "../../../../etc".to_owned();
    let json = serde_json::to_string_pretty(&outside).unwrap();
    std::fs::write(&path, record(json.strip_prefix("{\n").unwrap())).unwrap();
    assert!(matches!(cluster.snapshots().await, Err(Error::Damaged { .. })));
    for id in ["..", "../x", "a/b", ""] {
        assert!(cluster.snapshot(id).await.is_err() && cluster.delete_snapshot(id).await.is_err(), "{id}");
    }
    // Larger than any record, without taking the room on disk.
    let huge = std::fs::File::create(&path).unwrap();
    huge.set_len(1 << 40).unwrap();
    let error = cluster.snapshots().await.unwrap_err();
    assert!(error.to_string().contains("cannot be right"), "{error}");
}

/// An object with this footer behind these stored frames.
fn object(frames: &[u8], footer: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0x184D_2A50_u32.to_le_bytes());
    bytes.extend(16_u32.to_le_bytes());
    bytes.extend(b"HINDSGHT");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(frames);
    bytes.extend(0x184D_2A51_u32.to_le_bytes());
    bytes.extend(u32::try_from(footer.len() + 12).unwrap().to_le_bytes());
    bytes.extend(footer.as_bytes());
    bytes.extend(u32::try_from(footer.len()).unwrap().to_le_bytes());
    bytes.extend(crc32fast::hash(footer.as_bytes()).to_le_bytes());
    bytes.extend(b"HNDF");
    bytes
}

/// Most memory that this process had at once, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn absurd_lengths_take_no_memory() {
    let (folder, cluster) = cluster().await;
    let key = cluster.keys().snapshot_object("s", "o");
    write_object(&cluster, &key, &[(b"x".to_vec(), 0)]).await.unwrap();
    let before = peak();
    // Much that is stored as little, and says that it is little or much.
    let bomb = zstd::bulk::compress(&vec![0; 1 << 30], 1).unwrap();
    let small = zstd::bulk::compress(&vec![0; FRAME_TARGET], 1).unwrap();
    let after_making = peak();
    let crc = |bytes: &[u8]| crc32fast::hash(bytes);
    let footer = |frames: String| format!("{{\"format\":1,\"kind\":\"data\",\"key\":\"{key}\",\"frames\":[{frames}]}}");
    let entry = |l: u64, r: u64, c: u32| format!("{{\"l\":{l},\"r\":{r},\"c\":{c}}}");
    let size = bomb.len() as u64;
    let cases = [
        ("claims", object(&small, &footer(entry(small.len() as u64, 4 << 30, crc(&small))))),
        ("claims", object(&small, &footer(entry(small.len() as u64, (4 << 30) - 1, crc(&small))))),
        ("claims", object(&small, &footer(entry((4 << 30) - 1, 10, crc(&small))))),
        ("decompressed", object(&bomb, &footer(entry(size, 64 << 20, crc(&bomb))))),
        ("decompressed", object(&bomb, &footer(entry(size, 1, crc(&bomb))))),
        ("frames end", object(&small, &footer(vec![entry(200 << 10, 64 << 20, 0); 100_000].join(",")))),
        ("cannot be read", object(&small, &footer("[".repeat(50_000)))),
    ];
    for (words, bytes) in cases {
        std::fs::write(file(&folder, &key), bytes).unwrap();
        let read = async { cluster.object_reader(&key, None).await?.verify().await };
        let error = read.await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { key: named, .. } if *named == key), "{error}");
        // A number too large for its field cannot be read at all.
        let text = error.to_string();
        assert!(text.contains(words) || text.contains("cannot be read"), "{words}: {text}");
    }
    let grown = peak() - after_making;
    assert!(grown < 300 << 20, "{before} {after_making} {grown}");
}

#[tokio::test]
async fn hostile_sealed_objects_are_damaged_objects() {
    let (folder, cluster, identity) = sealed().await;
    let reading = opened(&folder, Some(&identity)).await;
    let key = cluster.keys().snapshot_object("s", "o");
    write_object(&cluster, &key, &[(noise(1000), 0)]).await.unwrap();
    let path = file(&folder, &format!("{key}.age"));
    let age = |plain: &[u8]| {
        let recipient: age::x25519::Recipient = identity.recipients()[0].to_string().parse().unwrap();
        age::encrypt(&recipient, plain).unwrap()
    };
    let mut protection = age::scrypt::Recipient::new("x".to_owned().into());
    protection.set_work_factor(2);
    let stanza = "-> X25519 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
    let stanzas = format!("age-encryption.org/v1\n{}", stanza.repeat(100_000));
    let finished = format!("{}--- {}\n{}", "age-encryption.org/v1\n-> x\n\n", "A".repeat(43), "B".repeat(100));
    let cases = [
        age(b""),
        age(b"not an object"),
        age(&noise(200_000)),
        age::encrypt(&protection, b"x").unwrap(),
        stanzas.into_bytes(),
        finished.into_bytes(),
        noise(100_000),
        b"age-encryption.org/v1\n".to_vec(),
        b"\n--- ".to_vec(),
        format!("\n--- {}\n", "A".repeat(43)).into_bytes(),
    ];
    for (number, bytes) in cases.into_iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let error = reading.object_reader(&key, None).await.unwrap_err();
        let named =
            matches!(&error, Error::Damaged { key, .. } | Error::Sealed { what: key, .. } if key.ends_with("o.age"));
        assert!(named && !error.to_string().contains('\n'), "{number}: {error}");
    }
}

#[tokio::test]
async fn numbers_that_no_writer_got_to_are_left_alone() {
    let (folder, cluster) = cluster().await;
    let set = |value: &'static str| cluster.update_config(move |config| config.with("pitr.oplogSpanMin", value));
    set("2").await.unwrap();
    let lease = |name: &str| file(&folder, &format!("clusters/rs0/leases/capture/{name}.json"));
    std::fs::create_dir_all(lease("x").parent().unwrap()).unwrap();
    std::fs::create_dir_all(file(&folder, "clusters/rs0/epochs")).unwrap();
    for name in ["18446744073709551615", "9", "+000007", "0000000008x"] {
        for kind in ["config", "epochs", "leases/capture"] {
            std::fs::write(file(&folder, &format!("clusters/rs0/{kind}/{name}.json")), b"{}").unwrap();
        }
    }
    assert_eq!(cluster.config().await.unwrap().0, 1);
    set("3").await.unwrap();
    assert_eq!(cluster.config().await.unwrap().0, 2);
    assert_eq!(cluster.current_epoch().await.unwrap(), 1);
    assert!(cluster.epochs().await.unwrap().is_empty());
    assert!(cluster.lease_state("capture").await.unwrap().is_none());
}
