//! A sealed repository: written without a private key, read with one, by Hindsight and by age alone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use common::{
    NAMESPACE, cluster, exercise, file, manifest, noise, opened, point, read_raw, sealed, write_object, write_slice,
};
use futures::TryStreamExt;
use hindsight_format::{ObjectRef, RestoreRecord, SliceName, SnapshotManifest, StoredSlice, WITHHELD};
use hindsight_repository::{Error, Identity, Repository, RepositorySpec, merge_slices};
use object_store::local::LocalFileSystem;

/// What age alone makes of a file.
fn unseal(identity: &Identity, bytes: &[u8]) -> Vec<u8> {
    let key: age::x25519::Identity = identity.expose().expose_secret().trim().parse().unwrap();
    age::decrypt(&key, bytes).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn objects_of_all_sizes_come_back() {
    let (folder, cluster, identity) = sealed().await;
    let reading = opened(&folder, Some(&identity)).await;
    const CHUNK: usize = 64 << 10;
    let around = |at: usize| (at - 2)..=(at + 2);
    let wanted = [300].into_iter().chain(around(CHUNK)).chain(around(2 * CHUNK)).chain(around(3 * CHUNK));
    let mut seen = 0;
    for wanted in wanted.chain([CHUNK + 16, 40 * CHUNK, 40 * CHUNK + 1]) {
        // The footer's length varies with the numbers in it: it takes some attempts to hit a size.
        let mut length = wanted - 250;
        for attempt in 0..20 {
            let key = cluster.keys().snapshot_object("s", &format!("{wanted}-{attempt}"));
            let frames = [(noise(length / 2), 0), (Vec::new(), 1), (noise(length - length / 2), 2)];
            let written = write_object(&cluster, &key, &frames).await.unwrap();
            let stored = std::fs::read(file(&folder, &format!("{key}.age"))).unwrap();
            assert_eq!(written.stored_bytes, stored.len() as u64);
            let plain = unseal(&identity, &stored);
            let raw = [frames[0].0.clone(), frames[2].0.clone()].concat();
            assert_eq!(zstd::decode_all(plain.as_slice()).unwrap(), raw);
            let expect = ObjectRef {
                name: String::new(),
                stored_bytes: written.stored_bytes,
                raw_bytes: written.raw_bytes,
                footer_blake3: written.footer_blake3,
            };
            for expect in [None, Some(&expect)] {
                let reader = reading.object_reader(&key, expect).await.unwrap();
                assert_eq!(read_raw(&reader).await.unwrap(), raw);
                assert_eq!(reader.frame(2).await.unwrap(), frames[2].0);
                reader.verify().await.unwrap();
            }
            if plain.len() == wanted {
                seen += 1;
                break;
            }
            length = (length + wanted).saturating_sub(plain.len());
        }
    }
    assert_eq!(seen, 19, "some sizes were not hit");
}

#[tokio::test]
async fn parts_of_large_objects_are_read_alone() {
    let (folder, cluster, identity) = sealed().await;
    let reading = opened(&folder, Some(&identity)).await;
    let key = cluster.keys().snapshot_object("s", "large");
    let frames: Vec<_> = (0..40).map(|segment| (noise(10_000 + 37_000 * segment as usize), segment)).collect();
    write_object(&cluster, &key, &frames).await.unwrap();
    let reader = reading.object_reader(&key, None).await.unwrap();
    for index in [0, 1, 7, 20, 39] {
        assert_eq!(reader.frame(index).await.unwrap(), frames[index].0);
    }
    let every: Vec<_> = reader.stream(|entry| entry.segment % 3 == 1, 2).try_collect().await.unwrap();
    assert_eq!(every.len(), 13);
    assert!(every.iter().all(|(entry, raw)| raw.as_ref() == frames[entry.segment as usize].0.as_slice()));
}

#[tokio::test]
async fn everything_works_in_a_sealed_repository() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::generate();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap().with_automatic_cleanup(true));
    let repository = Repository::over_sealed(store, "sealed://", &identity.recipients()).await.unwrap();
    exercise(&repository.with_identity(identity)).await;
}

#[tokio::test]
async fn damage_to_sealed_objects_is_found_and_named() {
    let (folder, cluster, identity) = sealed().await;
    let reading = opened(&folder, Some(&identity)).await;
    for (name, size) in [("small", 500), ("large", 300_000)] {
        let key = cluster.keys().snapshot_object("s", name);
        write_object(&cluster, &key, &[(noise(size), 0), (noise(size / 2), 1)]).await.unwrap();
        let stored_key = format!("{key}.age");
        let path = file(&folder, &stored_key);
        let good = std::fs::read(&path).unwrap();
        let try_it = async |bytes: &[u8], what: &str| {
            std::fs::write(&path, bytes).unwrap();
            let read = async {
                let reader = reading.object_reader(&key, None).await?;
                reader.verify().await
            };
            match read.await {
                Err(Error::Damaged { key: named, why }) => {
                    assert_eq!(named, stored_key, "{what}");
                    assert!(!why.is_empty() && !why.contains('\n'), "{what}: {why}");
                }
                // What says to whom it is sealed cannot be told from being sealed to others.
                Err(Error::Sealed { what: named, .. }) => assert_eq!(named, stored_key, "{what}"),
                other => panic!("{name} {what}: {other:?}"),
            }
        };
        for at in (0..300).chain((300..good.len()).step_by(good.len() / 80)).chain(good.len() - 40..good.len()) {
            let mut flipped = good.clone();
            flipped[at] ^= 1 << (at % 8);
            try_it(&flipped, &format!("flipped at {at}")).await;
        }
        let head = good.windows(5).position(|window| window == b"\n--- ").unwrap() + 49 + 16;
        let borders = (0..5).map(|chunk| head + chunk * 65_552).filter(|border| *border < good.len());
        for border in borders.chain([good.len() - 1, 1, 20, head - 1]) {
            for at in [border - 1, border, border + 1, border + 16] {
                try_it(&good[..at.min(good.len() - 1)], &format!("cut off at {at}")).await;
                let mut longer = good.clone();
                longer.insert(at.min(good.len()), 7);
                try_it(&longer, &format!("one more byte at {at}")).await;
            }
        }
        try_it(b"", "emptied").await;
        std::fs::write(&path, &good).unwrap();
        reading.object_reader(&key, None).await.unwrap().verify().await.unwrap();
    }
    // Another object of the same repository, sealed to the same keys, is not it.
    let keys = ["small", "large"].map(|name| format!("{}.age", cluster.keys().snapshot_object("s", name)));
    std::fs::copy(file(&folder, &keys[0]), file(&folder, &keys[1])).unwrap();
    let error = reading.object_reader(&cluster.keys().snapshot_object("s", "large"), None).await.unwrap_err();
    assert!(matches!(&error, Error::Damaged { why, .. } if why.contains("small")), "{error}");
}

#[tokio::test]
async fn without_the_right_identity_nothing_is_opened_and_the_error_says_whose_is_needed() {
    let (folder, cluster, identity) = sealed().await;
    let key = cluster.keys().snapshot_object("s", "o");
    write_object(&cluster, &key, &[(noise(100), 0)]).await.unwrap();
    let slice = write_slice(&cluster, 0, 1, &[noise(100)]).await;
    let recipient = identity.recipients()[0].to_string();

    let bare = opened(&folder, None).await;
    let error = bare.object_reader(&key, None).await.unwrap_err();
    assert!(error.to_string().contains(&recipient) && error.to_string().contains("no identity file"), "{error}");
    assert!(matches!(bare.require_open_slice(&slice).await, Err(Error::Sealed { given: None, .. })));
    assert!(bare.repository().require_identity().is_err() && !bare.can_read(&slice));

    let other = Identity::generate();
    let wrong = opened(&folder, Some(&other)).await;
    let error = wrong.slice_reader(&slice).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&recipient) && text.contains(&other.recipients()[0].to_string()), "{text}");
    assert!(!error.is_retryable() && !text.to_uppercase().contains("SECRET"), "{text}");
    assert!(matches!(wrong.require_open_slice(&slice).await, Err(Error::Sealed { given: Some(_), .. })));

    let right = opened(&folder, Some(&other.clone().and(identity.clone()))).await;
    right.require_open_slice(&slice).await.unwrap();
    right.slice_reader(&slice).await.unwrap().verify().await.unwrap();
    let secret = identity.expose();
    assert!(!format!("{identity:?} {right:?} {cluster:?}").contains(secret.expose_secret().trim()));
}

#[tokio::test]
async fn new_data_follow_the_recipients_and_old_ones_stay() {
    let (folder, cluster, first) = sealed().await;
    // One that was open all the time, as an agent is.
    let agent = opened(&folder, None).await;
    let second = Identity::generate();
    let (one, two) = (first.recipients(), second.recipients());
    let keys: Vec<_> = (0..3).map(|n| cluster.keys().snapshot_object("s", &format!("o{n}"))).collect();
    let write = async |n: usize| write_object(&agent, &keys[n], &[(noise(100), 0)]).await.unwrap();

    write(0).await;
    agent.put_manifest(&manifest("2021-02-03T08:08:36Z")).await.unwrap();
    assert_eq!(cluster.repository().change_recipients(&two, &[]).await.unwrap(), [one.clone(), two.clone()].concat());
    write(1).await;
    assert_eq!(cluster.repository().change_recipients(&[], &one).await.unwrap(), two);
    write(2).await;
    agent.put_manifest(&manifest("2021-02-03T09:09:37Z")).await.unwrap();
    for (identity, opens) in [(&first, [true, true, false]), (&second, [false, true, true])] {
        let reading = opened(&folder, Some(identity)).await;
        for (key, opens) in keys.iter().zip(opens) {
            let read = reading.object_reader(key, None).await;
            assert_eq!(read.is_ok(), opens, "{key} {read:?}");
        }
        let snapshots = reading.snapshots().await.unwrap();
        let withheld: Vec<_> = snapshots.iter().map(SnapshotManifest::is_withheld).collect();
        assert_eq!(withheld, [!opens[0], !opens[2]]);
        let named: Vec<_> = snapshots.iter().map(|s| s.seal.as_ref().unwrap().sealed_to.clone()).collect();
        assert_eq!(named, [vec![one[0].to_string()], vec![two[0].to_string()]]);
        let closed = snapshots.iter().find(|snapshot| snapshot.is_withheld()).unwrap();
        assert!(matches!(reading.require_open(closed), Err(Error::Sealed { .. })));
    }
    assert_eq!(opened(&folder, None).await.repository().recipients().await.unwrap(), two);

    let change = async |add: &[_], remove: &[_]| cluster.repository().change_recipients(add, remove).await;
    assert!(change(&[], &two).await.unwrap_err().to_string().contains("last recipient"));
    assert!(change(&[], &one).await.unwrap_err().to_string().contains("not among"));
    assert_eq!(change(&two, &[]).await.unwrap(), two, "nothing changes");
    let three = Identity::generate().recipients();
    let four = Identity::generate().recipients();
    let (a, b) = tokio::join!(change(&three, &[]), change(&four, &[]));
    a.unwrap();
    b.unwrap();
    let all = cluster.repository().recipients().await.unwrap();
    assert!([&two[0], &three[0], &four[0]].iter().all(|one| all.contains(one)), "none of two changes is lost: {all:?}");
    let names: Vec<_> = files(&folder.path().join("repository/recipients")).len().to_string().chars().collect();
    assert_eq!(names, ['4']);
}

#[tokio::test]
async fn who_captured_merges_without_a_private_key_and_nobody_else_does() {
    let (folder, agent, identity) = sealed().await;
    let mut parts = Vec::new();
    for start in 0..4 {
        parts.push(write_slice(&agent, start, start + 1, &[noise(100_000)]).await);
    }
    assert!(parts.iter().all(|part| agent.can_read(part)));
    let restarted = opened(&folder, None).await;
    assert!(!parts.iter().any(|part| restarted.can_read(part)));
    assert!(matches!(merge_slices(&restarted, "rs0", 1, &parts, 2, 3).await, Err(Error::Sealed { .. })));
    assert_eq!(restarted.slices().await.unwrap(), parts, "nothing was harmed");

    let merged = merge_slices(&agent, "rs0", 1, &parts, 3, 3).await.unwrap();
    assert_eq!(agent.slices().await.unwrap(), std::slice::from_ref(&merged));
    assert!(!agent.can_read(&merged), "a merged slice is for the recipients alone");
    assert!(matches!(agent.slice_reader(&merged).await, Err(Error::Sealed { .. })));
    let stored = std::fs::read(file(&folder, &agent.stored_key(&agent.slice_key(&merged)))).unwrap();
    assert_eq!(String::from_utf8_lossy(&stored).matches("-> X25519").count(), 1);
    let reading = opened(&folder, Some(&identity)).await;
    assert_eq!(read_raw(&reading.slice_reader(&merged).await.unwrap()).await.unwrap().len(), 400_000);

    let next = write_slice(&restarted, 4, 5, &[noise(10)]).await;
    let all = merge_slices(&reading, "rs0", 1, &[merged, next], 4, 3).await.unwrap();
    assert_eq!(reading.slices_from("rs0", 1, None).await.unwrap(), [all]);
}

#[tokio::test]
async fn nothing_that_is_stored_tells_about_the_data() {
    let (folder, cluster, identity) = sealed().await;
    let namespaces = vec!["hush.secretplans".to_owned()];
    let mut whole = manifest("2021-02-03T08:08:36Z");
    whole.namespaces = namespaces.clone();
    whole.source.member = "hiddenhost:27017".into();
    whole.objects =
        vec![ObjectRef { name: "data/x".into(), stored_bytes: 1, raw_bytes: 1, footer_blake3: "0".repeat(64) }];
    cluster.put_manifest(&whole).await.unwrap();
    cluster.put_manifest(&whole).await.unwrap();
    let other = SnapshotManifest { epoch: 2, ..whole.clone() };
    assert!(matches!(cluster.put_manifest(&other).await, Err(Error::Exists { .. })));
    let slice = write_slice(&cluster, 0, 1, &[b"hiddentext".to_vec()]).await;
    let record: RestoreRecord = serde_json::from_value(serde_json::json!({
        "format": 1, "id": "r", "state": "error", "touched": true, "step": "checking", "started_at": "2021-02-03T08:08:36Z",
        "snapshot": "s", "target": "t", "namespaces": namespaces, "renamed": "hush.secretplans=hush.b",
        "into": {"engine": "mongodb", "id": "1@hiddenhost:/x"}, "into_hosts": "hiddenhost:1", "kept": "/hidden/before", "error": "hush.secretplans has 5",
        "totals": {"collections": 0, "documents": 0, "bytes": 0, "indexes": 0, "log_records": 0}, "run_by": "1",
    }))
    .unwrap();
    cluster.put_restore(&record).await.unwrap();
    let all = files(folder.path());
    assert!(all.len() >= 5, "{all:?}");
    for path in &all {
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned() + &path.display().to_string();
        for word in ["hush", "secretplans", "hidden", NAMESPACE, "shop", "data/x"] {
            assert!(!text.contains(word), "{word} in {}", path.display());
        }
    }
    let open = cluster.snapshot(&whole.id).await.unwrap().unwrap();
    assert_eq!(
        (open.namespaces.as_slice(), open.epoch, open.totals),
        ([WITHHELD.to_owned()].as_slice(), 1, whole.totals)
    );
    assert_eq!(cluster.restores().await.unwrap()[0].namespaces, [WITHHELD]);

    let reading = opened(&folder, Some(&identity)).await;
    let read = reading.snapshot(&whole.id).await.unwrap().unwrap();
    assert_eq!(SnapshotManifest { seal: None, ..read }, whole);
    assert_eq!(reading.snapshots().await.unwrap()[0].namespaces, namespaces);
    reading.slice_reader(&slice).await.unwrap();

    // The open part and the sealed one must say the same.
    let path = file(&folder, &cluster.keys().manifest(&whole.id));
    let part = |epoch: u64| SnapshotManifest { epoch, ..open.clone() };
    let (fake, _, _) = sealed().await;
    opened(&fake, None).await.put_manifest(&part(7)).await.unwrap();
    let good = std::fs::read(&path).unwrap();
    std::fs::copy(file(&fake, &cluster.keys().manifest(&whole.id)), &path).unwrap();
    assert!(matches!(reading.snapshots().await, Err(Error::Damaged { .. })));
    std::fs::write(&path, good).unwrap();
    std::fs::remove_file(file(&folder, &format!("{}.age", cluster.keys().manifest(&whole.id)))).unwrap();
    assert!(reading.snapshots().await.unwrap_err().is_missing());
    assert_eq!(cluster.snapshots().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_repository_is_sealed_from_its_making_or_never() {
    let (folder, plain) = cluster().await;
    let spec = RepositorySpec::new(folder.path().join("repository").display().to_string());
    let identity = Identity::generate();
    let error = Repository::make(&spec, &identity.recipients()).await.unwrap_err().to_string();
    assert!(error.contains("already") && error.contains("not sealed"), "{error}");
    assert!(plain.repository().change_recipients(&identity.recipients(), &[]).await.is_err());
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file(&folder, "repository.json")).unwrap()).unwrap();
    let fields: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["checksum", "created_at", "created_by", "format", "id", "put_if_absent"]);
    assert_eq!(record["format"], 1);

    let (folder, _, identity) = sealed().await;
    let spec = RepositorySpec::new(folder.path().join("repository").display().to_string());
    let error = Repository::make(&spec, &[]).await.unwrap_err().to_string();
    assert!(error.contains(&identity.recipients()[0].to_string()), "{error}");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file(&folder, "repository.json")).unwrap()).unwrap();
    assert_eq!(record["format"], 2, "programs that know no sealed repositories refuse it");
    // A slice that is not sealed is none in a sealed repository.
    let reading = opened(&folder, Some(&identity)).await;
    let slice = write_slice(&plain, 0, 1, &[]).await;
    let key = plain.slice_key(&slice);
    let to = file(&folder, &key);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::write(&to, b"x").unwrap();
    let listing = reading.slice_listing().await.unwrap();
    assert_eq!((listing.slices.len(), listing.foreign), (0, vec![key]));
    let name = SliceName { start: point(0), end: point(1), fence: 1 };
    let missing = StoredSlice { stream: "rs0".into(), epoch: 1, name, stored_bytes: 1 };
    assert!(reading.slice_reader(&missing).await.unwrap_err().is_missing());
}

#[test]
fn what_is_no_recipient_is_refused_and_a_private_key_is_not_repeated() {
    let parse = |text: &str| text.parse::<hindsight_repository::Recipient>();
    let identity = Identity::generate();
    let secret = identity.expose();
    let error = parse(secret.expose_secret()).unwrap_err().to_string();
    assert!(!error.contains(secret.expose_secret().trim()) && error.contains("private key"), "{error}");
    for bad in ["", "age1", "ssh-ed25519 AAAA", "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let recipient = identity.recipients()[0].clone();
    assert_eq!(parse(&recipient.to_string()).unwrap(), recipient);
}

#[test]
fn identity_files_are_read_and_never_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.txt");
    let identity = Identity::generate();
    let secret = identity.expose();
    let secret = secret.expose_secret().trim();
    let read = |text: &[u8], passphrase: Option<&str>| {
        std::fs::write(&path, text).unwrap();
        Identity::read(&path, || passphrase.map(|text| text.to_owned().into()))
    };
    let kept = read(format!("# created: today\n# public key: age1\n\n{secret}\r\n").as_bytes(), None).unwrap();
    assert_eq!(kept.recipients(), identity.recipients());
    for bad in ["", "# nothing\n", &format!("{secret}x\n"), &format!("{secret} {secret}"), "\u{0}"] {
        let error = read(bad.as_bytes(), None).unwrap_err().to_string();
        assert!(error.contains("key.txt") && !error.contains(secret), "{error}");
    }
    assert!(read(&[0xff, 0xfe], None).is_err());
    assert!(Identity::read(&folder.path().join("none"), || None).unwrap_err().to_string().contains("cannot be read"));

    // protected by a passphrase, as `age --passphrase` does it
    let mut protection = age::scrypt::Recipient::new("open sesame".to_owned().into());
    protection.set_work_factor(4);
    let locked = age::encrypt(&protection, secret.as_bytes()).unwrap();
    let armored = age::encrypt_and_armor(&protection, secret.as_bytes()).unwrap();
    for locked in [locked.as_slice(), armored.as_bytes()] {
        assert_eq!(read(locked, Some("open sesame")).unwrap().recipients(), identity.recipients());
        assert!(read(locked, Some("open")).unwrap_err().to_string().contains("passphrase is wrong"));
        assert!(read(locked, None).unwrap_err().to_string().contains("none was given"));
        assert!(read(&locked[..locked.len() / 2], Some("open sesame")).is_err());
    }
    assert!(read(&age::encrypt(&age::x25519::Identity::generate().to_public(), b"x").unwrap(), None).is_err());
}

/// The commands of docs/repository-format.md, where the programs are installed.
#[tokio::test]
async fn a_sealed_object_can_be_read_by_hand() {
    let (folder, cluster, identity) = sealed().await;
    let key = cluster.keys().snapshot_object("s", "data");
    write_object(&cluster, &key, &[(b"raw ".to_vec(), 0), (noise(300_000), 0)]).await.unwrap();
    cluster.put_manifest(&manifest("2021-02-03T08:08:36Z")).await.unwrap();
    let secret = folder.path().join("key.txt");
    std::fs::write(&secret, identity.expose().expose_secret()).unwrap();
    let run = |command: &str, object: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(command).env("OBJECT", file(&folder, object)).env("KEY", &secret);
        let output = shell.output().unwrap();
        output.status.success().then_some(output.stdout)
    };
    if run("command -v age && command -v zstd", "").is_none() {
        return;
    }
    let raw = run("age -d -i \"$KEY\" \"$OBJECT\" | zstd -d", &format!("{key}.age")).unwrap();
    assert!(raw.starts_with(b"raw ") && raw.len() == 300_004);
    let record = format!("{}.age", cluster.keys().manifest("2021-02-03T08:08:36Z"));
    let record: SnapshotManifest =
        serde_json::from_slice(&run("age -d -i \"$KEY\" \"$OBJECT\"", &record).unwrap()).unwrap();
    assert_eq!(record.source.member, "localhost:27017");
}
