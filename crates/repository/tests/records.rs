//! Opening repositories, and the records of a cluster, also when many write at once.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Mood, MoodyStore, cluster, file, manifest, point, repository, write_object, write_slice};
use hindsight_format::{ClusterIdentity, EpochCause, GapRecord, PutIfAbsent, RestoreRecord, RestoreState};
use hindsight_repository::{Error, Outcome, Repository, RepositorySpec};
use jiff::Timestamp;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

#[tokio::test]
async fn a_repository_is_made_once_and_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let spec = RepositorySpec::new(folder.path().join("a/b").display().to_string());
    assert!(Repository::open(&spec).await.unwrap().is_none());
    assert!(!folder.path().join("a").exists(), "opening never writes");

    let makers = (0..4).map(|_| Repository::open_or_create(&spec));
    let made: Vec<_> = futures::future::join_all(makers).await.into_iter().map(Result::unwrap).collect();
    assert!(made.iter().all(|one| one.descriptor() == made[0].descriptor()), "all open the same one");
    assert_eq!(made[0].descriptor().put_if_absent, PutIfAbsent::Atomic);
    assert!(made[0].url().starts_with("file:///") && made[0].url().ends_with("/a/b"));
    let left: Vec<_> = std::fs::read_dir(folder.path().join("a/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["repository.json"], "what was tried out is removed");
    let mode = std::fs::metadata(folder.path().join("a/b")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    let report = made[0].check().await;
    assert!(report.is_ok() && report.steps.iter().all(|step| step.outcome == Outcome::Ok), "{report:#?}");
    assert!(serde_json::to_string(&report).unwrap().contains("\"put_if_absent\":\"atomic\""));
}

#[tokio::test]
async fn a_file_is_no_repository() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Repository::open_or_create(&RepositorySpec::new(file.path().display().to_string())).await.unwrap_err();
    assert!(error.to_string().contains("not a folder"), "{error}");
}

#[tokio::test]
async fn a_store_that_refuses_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(MoodyStore::new(folder.path(), Mood::ReadOnly));
    let error = Repository::over(store.clone(), "moody://").await.unwrap_err().to_string();
    assert!(error.contains("write") && error.contains("s3:PutObject") && !error.contains('\n'), "{error}");

    store.set(Mood::Fine);
    let repository = Repository::over(store.clone(), "moody://").await.unwrap();
    store.set(Mood::ReadOnly);
    let report = repository.check().await;
    assert!(!report.is_ok());
    let names: Vec<_> = report.steps.iter().map(|step| (step.name, step.outcome)).collect();
    assert_eq!(names, [("open", Outcome::Ok), ("write", Outcome::Failed)]);
    assert!(report.failure().unwrap().hint.contains("s3:PutObject"));
}

#[tokio::test]
async fn stores_without_put_if_absent_are_found_out_and_still_work() {
    for (mood, ability) in [
        (Mood::NoCreate, PutIfAbsent::Absent),
        (Mood::RefusesCreate, PutIfAbsent::Absent),
        (Mood::RacyCreate, PutIfAbsent::Racy),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::over(Arc::new(MoodyStore::new(folder.path(), mood)), "moody://").await.unwrap();
        assert_eq!(repository.descriptor().put_if_absent, ability, "{mood:?}");
        let report = repository.check().await;
        assert!(report.is_ok(), "{report:?}");
        let step = report.steps.iter().find(|step| step.name == "put if absent").unwrap();
        assert_eq!(step.outcome, Outcome::Warning);
        assert!(step.hint.contains("one agent"), "{step:?}");
        let cluster = repository.cluster("rs0").unwrap();
        cluster.put_manifest(&manifest("a")).await.unwrap();
        assert!(matches!(cluster.put_manifest(&manifest("b")).await, Ok(())));
        let mut again = manifest("a");
        again.engine = "other".into();
        assert!(matches!(cluster.put_manifest(&again).await, Err(Error::Exists { .. })));
    }
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_is_not_taken_for_a_lost_race() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(MoodyStore::new(folder.path(), Mood::Fine));
    let cluster = Repository::over(store.clone(), "moody://").await.unwrap().cluster("rs0").unwrap();
    store.set(Mood::LosesAnswers);
    let error = cluster.put_manifest(&manifest("a")).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    store.set(Mood::Fine);
    cluster.put_manifest(&manifest("a")).await.unwrap();
}

#[tokio::test]
async fn a_name_stands_for_one_cluster() {
    let (_folder, repository) = repository().await;
    let identity = |id: &str| ClusterIdentity { engine: "mongodb".into(), id: id.into() };
    let cluster = repository.cluster("rs0").unwrap();
    assert!(cluster.descriptor().await.unwrap().is_none());
    let first = cluster.register(&identity("one")).await.unwrap();
    assert_eq!(cluster.register(&identity("one")).await.unwrap(), first);
    let error = cluster.register(&identity("two")).await.unwrap_err();
    assert!(matches!(&error, Error::OtherCluster { .. }) && error.to_string().contains("--cluster"), "{error}");
    repository.cluster("a:b").unwrap().register(&identity("three")).await.unwrap();
    let names: Vec<_> = repository.clusters().await.unwrap().into_iter().map(|cluster| cluster.name).collect();
    assert_eq!(names, ["a:b", "rs0"]);
    assert!(repository.cluster("../x").is_err());
}

#[tokio::test]
async fn settings_that_many_change_at_once_keep_every_change() {
    let (_folder, cluster) = cluster().await;
    assert_eq!(cluster.config().await.unwrap().0, 0);
    let changes = (0..8).map(|_| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            cluster
                .update_config(|config| {
                    let next = config.pitr.upload_interval_sec + 1;
                    config.with("pitr.uploadIntervalSec", &next.to_string())
                })
                .await
        })
    });
    for change in futures::future::join_all(changes).await {
        change.unwrap().unwrap();
    }
    let (number, config) = cluster.config().await.unwrap();
    // Two writers of the very same settings may share a number: both have what they wanted.
    assert!(number <= 8 && u64::from(config.pitr.upload_interval_sec) == 5 + number, "{number} {config:?}");
    let refused = cluster.update_config(|config| config.with("pitr.oplogSpanMin", "0")).await;
    assert!(matches!(refused, Err(Error::Config(_))));
    assert_eq!(cluster.config().await.unwrap().0, number);
}

#[tokio::test]
async fn only_complete_snapshots_are_listed() {
    let (folder, cluster) = cluster().await;
    for id in ["2021-02-03T08:08:36Z", "2021-02-01T00:00:00Z"] {
        write_object(&cluster, &cluster.keys().snapshot_object(id, "rs0/data"), &[]).await.unwrap();
        cluster.put_manifest(&manifest(id)).await.unwrap();
    }
    write_object(&cluster, &cluster.keys().snapshot_object("2021-02-02T00:00:00Z", "data"), &[]).await.unwrap();
    let ids = |list: Vec<hindsight_format::SnapshotManifest>| list.into_iter().map(|m| m.id).collect::<Vec<_>>();
    assert_eq!(ids(cluster.snapshots().await.unwrap()), ["2021-02-01T00:00:00Z", "2021-02-03T08:08:36Z"]);
    assert_eq!(cluster.snapshot_ids_in_use().await.unwrap().len(), 3);
    assert!(cluster.snapshot("2021-02-02T00:00:00Z").await.unwrap().is_none());
    let again = manifest("2021-02-01T00:00:00Z");
    let changed = hindsight_format::SnapshotManifest { epoch: 2, ..again };
    assert!(matches!(cluster.put_manifest(&changed).await, Err(Error::Exists { .. })));
    for id in cluster.snapshot_ids_in_use().await.unwrap() {
        cluster.delete_snapshot(&id).await.unwrap();
        cluster.delete_snapshot(&id).await.unwrap();
    }
    assert!(cluster.snapshot_ids_in_use().await.unwrap().is_empty());
    assert!(!file(&folder, &cluster.keys().snapshots()).exists(), "no empty folders are left");
}

#[tokio::test]
async fn slices_are_listed_by_name_and_strangers_are_set_apart() {
    let (folder, cluster) = cluster().await;
    assert!(cluster.slices().await.unwrap().is_empty());
    let mut slices = Vec::new();
    for start in [10, 0, 5] {
        slices.push(write_slice(&cluster, start, start + 5, &[b"x".to_vec()]).await);
    }
    slices.sort_by_key(|slice| slice.name.start.time);
    std::fs::write(file(&folder, &cluster.keys().slices("rs0", 1)).join("notes.txt"), "x").unwrap();
    let listing = cluster.slice_listing().await.unwrap();
    assert_eq!(listing.slices, slices);
    assert_eq!(listing.foreign, ["clusters/rs0/log/rs0/000001/notes.txt"]);
    assert_eq!(cluster.slices_from("rs0", 1, Some(&slices[0].name)).await.unwrap(), slices[1..]);
    assert_eq!(cluster.slices_from("rs0", 1, None).await.unwrap(), slices);
    assert!(cluster.slices_from("rs0", 2, None).await.unwrap().is_empty());
    assert!(cluster.slices_from("../x", 1, None).await.is_err());
    cluster.delete_slice(&slices[0]).await.unwrap();
    cluster.delete_slice(&slices[0]).await.unwrap();
    assert_eq!(cluster.slices().await.unwrap(), slices[1..]);
}

#[tokio::test]
async fn epochs_follow_one_another() {
    let (_folder, cluster) = cluster().await;
    assert_eq!(cluster.current_epoch().await.unwrap(), 1);
    let cause = |id: usize| EpochCause::Restore(format!("r{id}"));
    let begun = futures::future::join_all((0..5).map(|id| cluster.begin_epoch(cause(id), None))).await;
    let mut numbers: Vec<_> = begun.into_iter().map(|record| record.unwrap().number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3, 4, 5, 6]);
    let last = cluster.epochs().await.unwrap().pop().unwrap();
    assert_eq!(
        cluster.begin_epoch(last.cause.clone(), None).await.unwrap(),
        last,
        "the same work begins no second epoch"
    );
    assert_eq!(cluster.current_epoch().await.unwrap(), 6);
}

#[tokio::test]
async fn gaps_and_restores_are_kept() {
    let (_folder, cluster) = cluster().await;
    let gap = GapRecord {
        start: Some(point(0)),
        end: point(60),
        cause: "the oplog was too small".into(),
        detected_at: Timestamp::UNIX_EPOCH,
    };
    cluster.put_gap("rs0", 1, &gap).await.unwrap();
    cluster.put_gap("rs0", 1, &GapRecord { cause: "later".into(), ..gap.clone() }).await.unwrap();
    let gaps = cluster.gaps().await.unwrap();
    assert_eq!((gaps.len(), &gaps[0].record, gaps[0].epoch), (1, &gap, 1));
    cluster.delete_gap(&gaps[0]).await.unwrap();
    assert!(cluster.gaps().await.unwrap().is_empty());

    let mut record = RestoreRecord {
        format: 1,
        id: "2021-02-07T03:00:00Z".into(),
        state: RestoreState::InProgress,
        step: "data".into(),
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: None,
        snapshot: "s".into(),
        target: "just before 2021-02-07T02:59:59Z".into(),
        namespaces: Vec::new(),
        renamed: None,
        into: ClusterIdentity { engine: "mongodb".into(), id: "x".into() },
        into_hosts: "localhost".into(),
        new_epoch: Some(2),
        kept: None,
        reached: None,
        touched: Default::default(),
        totals: Default::default(),
        error: None,
        run_by: "test".into(),
    };
    cluster.put_restore(&record).await.unwrap();
    record.state = RestoreState::Success;
    cluster.put_restore(&record).await.unwrap();
    assert_eq!(cluster.restores().await.unwrap(), [record.clone()]);
    assert_eq!(cluster.restore(&record.id).await.unwrap(), Some(record));
}
