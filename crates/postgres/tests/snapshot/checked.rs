//! What is stored, read without a server.

use std::sync::Arc;

use hindsight_engine::{DataCheck as _, LogCheck as _};
use hindsight_format::SnapshotManifest;
use hindsight_postgres::base::{SnapshotCheck, TarEvent, TarKind, TarReader};
use hindsight_postgres::check::LogPieceCheck;
use hindsight_repository::ClusterRepository;
use hindsight_testkit::{Postgres, PostgresOptions};

use crate::{ID, frames, raw, repository, taken};

/// Reads the data objects, several at once, and tells what is wrong. `change` is shown every frame, and may change it or leave
/// it out.
async fn check_with(
    cluster: &ClusterRepository,
    manifest: &SnapshotManifest,
    change: impl Fn(&str, usize, &mut Vec<u8>) -> bool,
) -> Vec<String> {
    let check = Arc::new(SnapshotCheck::of(cluster, manifest).await.unwrap());
    let mut reading = Vec::new();
    for object in manifest.objects.iter().filter(|object| object.name.starts_with("data/")) {
        let mut all = frames(cluster, &object.name, Some(object)).await;
        let mut number = 0..;
        all.retain_mut(|(_, frame)| change(&object.name, number.next().unwrap(), frame));
        let (check, name) = (check.clone(), object.name.clone());
        reading.push(tokio::task::spawn_blocking(move || {
            for (segment, frame) in all {
                check.frame(&name, segment, &frame).unwrap();
            }
        }));
    }
    for object in reading {
        object.await.unwrap();
    }
    check.finish()
}

/// What is wrong with a snapshot as it is stored, its own log included.
pub(crate) async fn check(cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Vec<String> {
    let mut wrong = check_with(cluster, manifest, |_, _, _| true).await;
    let mut records = 0;
    for slice in &manifest.streams["wal"].slices {
        let reader = cluster.snapshot_slice_reader(ID, "wal", slice).await.unwrap();
        let mut check = Box::new(LogPieceCheck::new(&slice.start, &slice.end).unwrap());
        for (index, entry) in reader.footer().frames.iter().enumerate() {
            wrong.extend(check.frame(entry.segment, &reader.frame(index).await.unwrap()).err());
        }
        match check.finish() {
            Ok(found) => {
                records += found.records;
                assert_eq!(Some(&found), reader.footer().log.as_ref());
            }
            Err(why) => wrong.push(why),
        }
    }
    assert_eq!(records, manifest.totals.log_records);
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_is_named_and_a_hole_is_no_flood() {
    let (server, (cluster, _folder)) = (Postgres::start(PostgresOptions::default()).await.unwrap(), repository().await);
    let folder = server.new_folder("fast").unwrap().display().to_string();
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{folder}'")).await.unwrap();
    server.sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 400000) AS a").await.unwrap();
    let path = server.sql("SELECT pg_relation_filepath('t')").await.unwrap();
    let manifest = taken(&server, &cluster).await;
    let base = "data/base/000001.tar.zst";
    let apart = &manifest.objects.iter().find(|object| object.name != base).unwrap().name;
    assert_eq!(check(&cluster, &manifest).await, Vec::<String>::new());

    // In the midst of a file: its name, its page.
    let whole = raw(&cluster, apart).await;
    let (mut reader, mut place) = (TarReader::new(), 0);
    let each = &mut |event: TarEvent<'_>| match event {
        TarEvent::File(header)
            if header.kind == TarKind::File && path.ends_with(std::str::from_utf8(&header.path).unwrap()) =>
        {
            place = usize::try_from(header.at).unwrap() + 512 + 2 * 8192 + 5000;
        }
        _ => {}
    };
    reader.feed(&whole, each).unwrap();
    assert!(place > 0 && place < 4 << 20, "{path} is at {place}");
    let wrong = check_with(&cluster, &manifest, |name, number, frame| {
        if name == apart && number == 0 {
            frame[place] ^= 1;
        }
        true
    })
    .await;
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains(&path) && wrong[0].contains("another checksum"), "{wrong:?}");
    assert!(wrong[0].ends_with("and one more finding in it"), "its page is damaged too: {wrong:?}");

    // A header: the archive cannot be read on.
    let wrong = check_with(&cluster, &manifest, |name, number, frame| {
        if name == base && number == 0 {
            frame[0] ^= 1;
        }
        true
    })
    .await;
    assert_eq!(wrong, [format!("{base}: the archive is damaged at byte 0: the checksum of the header is wrong")]);

    // Frames that could not be read, at the beginning, in the midst, at the end, and all of an object.
    let count = frames(&cluster, base, None).await.len();
    assert!(count > 3, "{count} frames");
    for missing in [0, 1, count - 1] {
        let wrong = check_with(&cluster, &manifest, |name, number, _| name != base || number != missing).await;
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].starts_with(base) && wrong[0].contains("bytes could be read"), "{wrong:?}");
    }
    let wrong = check_with(&cluster, &manifest, |name, _, _| name != base).await;
    assert_eq!(wrong.len(), 1, "{wrong:?}");

    // An object that the manifest does not name any more.
    let mut lesser = manifest.clone();
    lesser.objects.retain(|object| object.name != *apart);
    let wrong = check(&cluster, &lesser).await;
    assert!(wrong.iter().any(|line| line.contains(&path) && line.contains("is missing")), "{wrong:?}");
}
