//! The same on Google Cloud Storage, as far as a server of our own speaks as Google does.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{exercise, manifest, noise, point, read_raw, write_object, write_slice};
use hindsight_format::{LeaseState, Operation, OperationKind, PutIfAbsent};
use hindsight_repository::{
    Acquired, DEFAULT_TTL, Error, FailureKind, GoogleOptions, Outcome, Repository, RepositorySpec,
};
use hindsight_testkit::{Fault, GoogleServer, S3Op};

fn spec(server: &GoogleServer, url: &str) -> RepositorySpec {
    let google = GoogleOptions { service_account: Some(server.key_file()) };
    RepositorySpec { url: url.to_owned(), google, ..RepositorySpec::default() }
}

fn kind(error: &Error) -> Option<FailureKind> {
    match error {
        Error::Store { failure, .. } => Some(failure.kind),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_in_a_bucket() {
    let server = GoogleServer::start("backups").unwrap();
    let spec = spec(&server, "gs://backups/team/a");
    assert!(Repository::open(&spec).await.unwrap().is_none());
    let repository = Repository::open_or_create(&spec).await.unwrap();
    assert!(!format!("{repository:?}").contains("PRIVATE KEY"));
    assert_eq!((repository.url(), repository.descriptor().put_if_absent), ("gs://backups/team/a", PutIfAbsent::Atomic));
    let report = repository.check().await;
    assert!(report.steps.iter().all(|step| step.outcome == Outcome::Ok), "{report:#?}");

    exercise(&repository).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_sixteen_gets_the_lease() {
    let server = GoogleServer::start("backups").unwrap();
    let spec = spec(&server, "gs://backups/p");
    Repository::open_or_create(&spec).await.unwrap();
    // Each as a process of its own would come.
    let tasks = (0..16).map(|_| {
        let spec = spec.clone();
        tokio::spawn(async move {
            let cluster = Repository::open(&spec).await.unwrap().unwrap().cluster("rs0").unwrap();
            let operation = Operation { kind: OperationKind::Backup, id: "x".into(), detail: String::new() };
            cluster.acquire("operation", operation, DEFAULT_TTL).await.unwrap()
        })
    });
    let acquired: Vec<_> = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    let mut held: Vec<_> = acquired
        .into_iter()
        .filter_map(|one| if let Acquired::Held(lease) = one { Some(lease) } else { None })
        .collect();
    assert_eq!(held.len(), 1);
    held.remove(0).release().await.unwrap();
    let cluster = Repository::open(&spec).await.unwrap().unwrap().cluster("rs0").unwrap();
    assert_eq!(cluster.lease_state("operation").await.unwrap().unwrap().state, LeaseState::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_begin_behind_what_is_known() {
    let server = GoogleServer::start("backups").unwrap();
    let repository = Repository::open_or_create(&spec(&server, "gs://backups/p")).await.unwrap();
    let cluster = repository.cluster("rs0").unwrap();
    let mut slices = Vec::new();
    for start in 0..5 {
        slices.push(write_slice(&cluster, start, start + 1, &[b"x".to_vec()]).await);
    }
    assert_eq!(cluster.slices().await.unwrap(), slices);
    assert_eq!(cluster.slices_from("rs0", 1, None).await.unwrap(), slices);
    assert_eq!(cluster.slices_from("rs0", 1, Some(&slices[2].name)).await.unwrap(), slices[3..]);
    assert_eq!(slices[4].name.end, point(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_can_be_made_where_objects_change_once_a_second_only() {
    let server = GoogleServer::start("backups").unwrap();
    server.limit_writes(true);
    let repository = Repository::open_or_create(&spec(&server, "gs://backups/p")).await.unwrap();
    assert_eq!(repository.descriptor().put_if_absent, PutIfAbsent::Atomic);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_in_one_line_without_secrets() {
    let server = GoogleServer::start("backups").unwrap();
    let other = GoogleServer::start("backups").unwrap();
    // A key that was deleted meanwhile.
    let key = server.key().replace(&field(&server, "private_key_id"), &field(&other, "private_key_id"));
    std::fs::write(server.key_file(), key).unwrap();
    let stale = spec(&server, "gs://backups/p");
    let error = Repository::open(&stale).await.unwrap_err();
    assert_eq!(kind(&error), Some(FailureKind::Credentials), "{error}");
    let text = error.to_string();
    assert!(text.contains("does not accept the credentials") && text.contains("key of the service account"), "{text}");
    let report = Repository::try_out(&stale).await.unwrap();
    assert!(report.failure().unwrap().hint.contains("key of the service account"), "{report:#?}");

    std::fs::write(server.key_file(), server.key()).unwrap();
    let error = Repository::open_or_create(&spec(&server, "gs://elsewhere/p")).await.unwrap_err();
    assert_eq!(kind(&error), Some(FailureKind::NoBucket), "{error}");

    let dead = other.endpoint();
    drop(other);
    std::fs::write(server.key_file(), server.key().replace(&server.endpoint(), &dead)).unwrap();
    let error = Repository::open(&spec(&server, "gs://backups/p")).await.unwrap_err();
    assert!(kind(&error) == Some(FailureKind::Unreachable) && error.is_retryable(), "{error}");

    let mut gone = spec(&server, "gs://backups/p");
    gone.google.service_account = Some("/nowhere/key.json".into());
    let error = Repository::open(&gone).await.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Settings(_)) && text.contains("/nowhere/key.json") && text.contains("toml"),
        "{text}"
    );
}

fn field(server: &GoogleServer, name: &str) -> String {
    let key = server.key();
    let (_, rest) = key.split_once(&format!("\"{name}\":\"")).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_is_named() {
    let server = GoogleServer::start("backups").unwrap();
    let spec = spec(&server, "gs://backups/p");
    let repository = Repository::open_or_create(&spec).await.unwrap();
    for (op, step, right) in [
        (S3Op::Get, "read", "storage.objects.get"),
        (S3Op::Put, "write", "storage.objects.create"),
        (S3Op::List, "list", "storage.objects.list"),
        (S3Op::Delete, "delete", "storage.objects.delete"),
    ] {
        server.faults().deny(op);
        let report = repository.check().await;
        let failed = report.steps.iter().find(|found| found.name == step).unwrap();
        assert_eq!((failed.outcome, failed.hint.contains(right)), (Outcome::Failed, true), "{report:#?}");
        assert!(failed.hint.contains("Storage Object User"), "{report:#?}");
        server.faults().clear();
    }
    // A new repository is refused for the same reasons.
    server.faults().deny(S3Op::Delete);
    let other = RepositorySpec { url: "gs://backups/q".into(), ..spec };
    let error = Repository::open_or_create(&other).await.unwrap_err().to_string();
    assert!(error.contains("storage.objects.delete"), "{error}");
    server.faults().clear();
    assert!(Repository::open(&other).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_trouble_passes() {
    let server = GoogleServer::start("backups").unwrap();
    let repository = Repository::open_or_create(&spec(&server, "gs://backups/p")).await.unwrap();
    let cluster = repository.cluster("rs0").unwrap();
    // The numbers are no answer: what refuses names the key.
    let key = cluster.keys().snapshot_object("s", "data-429-503");
    let frames: Vec<_> = (0..10).map(|_| (noise(2_000_000), 0)).collect();
    server.faults().plan(S3Op::Put, "", 1, Fault::Error);
    server.faults().plan(S3Op::Put, "partNumber=1", 1, Fault::Busy);
    server.faults().plan(S3Op::Put, "partNumber=2", 1, Fault::LostAnswer);
    server.faults().plan(S3Op::Get, "", 2, Fault::Error);
    // It was completed, but the answer was lost: the next attempt is refused, as there is no such upload.
    server.faults().plan(S3Op::Put, "?uploadId=", 1, Fault::LostAnswer);
    write_object(&cluster, &key, &frames).await.unwrap();
    let reader = cluster.object_reader(&key, None).await.unwrap();
    assert_eq!(read_raw(&reader).await.unwrap(), frames.iter().flat_map(|(raw, _)| raw.clone()).collect::<Vec<_>>());
    // It was created, but the answer was lost: the next attempt finds its own record.
    server.faults().plan(S3Op::Put, "manifest", 1, Fault::LostAnswer);
    let lost = cluster.put_manifest(&manifest("s")).await;
    assert!(lost.is_ok() || lost.as_ref().is_err_and(Error::is_retryable), "{lost:?}");
    cluster.put_manifest(&manifest("s")).await.unwrap();
    // It was deleted, but the answer was lost: the next attempt finds nothing.
    server.faults().plan(S3Op::Delete, "", 1, Fault::LostAnswer);
    cluster.delete_snapshot("s").await.unwrap();
}
