//! The same on S3.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{exercise, manifest, noise, read_raw, write_object};
use hindsight_format::PutIfAbsent;
use hindsight_repository::{Error, FailureKind, Outcome, Repository, RepositorySpec, S3Options};
use hindsight_testkit::{Fault, S3_ACCESS_KEY, S3_REGION, S3_SECRET_KEY, S3Op, S3Server};

fn spec(server: &S3Server, url: &str, secret: &str) -> RepositorySpec {
    RepositorySpec {
        url: url.to_owned(),
        s3: S3Options {
            endpoint: Some(server.endpoint()),
            region: Some(S3_REGION.to_owned()),
            access_key_id: Some(S3_ACCESS_KEY.to_owned()),
            secret_access_key: Some(secret.into()),
            ..S3Options::default()
        },
        ..RepositorySpec::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_in_a_bucket() {
    let server = S3Server::start("backups").unwrap();
    let spec = spec(&server, "s3://backups/team/a", S3_SECRET_KEY);
    assert!(Repository::open(&spec).await.unwrap().is_none());
    let repository = Repository::open_or_create(&spec).await.unwrap();
    assert!(!format!("{repository:?}").contains(S3_SECRET_KEY));
    assert_eq!((repository.url(), repository.descriptor().put_if_absent), ("s3://backups/team/a", PutIfAbsent::Atomic));
    let report = repository.check().await;
    assert!(report.steps.iter().all(|step| step.outcome == Outcome::Ok), "{report:#?}");

    exercise(&repository).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_a_bucket_is_named() {
    let server = S3Server::start("backups").unwrap();
    let repository = Repository::open_or_create(&spec(&server, "s3://backups/p", S3_SECRET_KEY)).await.unwrap();
    let cluster = repository.cluster("rs0").unwrap();
    let key = cluster.keys().snapshot_object("s", "data");
    write_object(&cluster, &key, &[(noise(200_000), 0)]).await.unwrap();
    let path = server.file("backups", &format!("p/{key}"));
    let good = std::fs::read(&path).unwrap();
    for length in [0, 10, 24, 100_000, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = cluster.object_reader(&key, None).await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { .. }), "{length}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_bucket_is_said_in_one_line_without_secrets() {
    let server = S3Server::start("backups").unwrap();
    let error = Repository::open(&spec(&server, "s3://backups", "wrong-secret-key")).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(matches!(&error, Error::Store { failure, .. } if failure.kind == FailureKind::Credentials), "{text}");
    assert!(!text.contains("wrong-secret-key"), "{text}");

    let mut gone = spec(&server, "s3://backups", S3_SECRET_KEY);
    gone.s3.endpoint = Some("http://127.0.0.1:1".to_owned());
    let error = Repository::open(&gone).await.unwrap_err();
    assert!(matches!(&error, Error::Store { failure, .. } if failure.kind == FailureKind::Unreachable), "{error}");
    assert!(error.is_retryable() && error.to_string().contains("check the endpoint"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_is_named() {
    let server = S3Server::start("backups").unwrap();
    let spec = spec(&server, "s3://backups/p", S3_SECRET_KEY);
    let repository = Repository::open_or_create(&spec).await.unwrap();
    for (op, step, right) in [
        (S3Op::Get, "read", "s3:GetObject"),
        (S3Op::Put, "write", "s3:PutObject"),
        (S3Op::List, "list", "s3:ListBucket"),
        (S3Op::Delete, "delete", "s3:DeleteObject"),
    ] {
        server.faults().deny(op);
        let report = repository.check().await;
        let failed = report.steps.iter().find(|found| found.name == step).unwrap();
        assert_eq!((failed.outcome, failed.hint.contains(right)), (Outcome::Failed, true), "{report:#?}");
        server.faults().clear();
    }
    assert!(repository.check().await.is_ok());
    // A new repository is refused for the same reasons.
    server.faults().deny(S3Op::Delete);
    let other = RepositorySpec { url: "s3://backups/q".into(), ..spec };
    let error = Repository::open_or_create(&other).await.unwrap_err().to_string();
    assert!(error.contains("s3:DeleteObject"), "{error}");
    server.faults().clear();
    assert!(Repository::open(&other).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_trouble_passes() {
    let server = S3Server::start("backups").unwrap();
    let repository = Repository::open_or_create(&spec(&server, "s3://backups/p", S3_SECRET_KEY)).await.unwrap();
    let cluster = repository.cluster("rs0").unwrap();
    let key = cluster.keys().snapshot_object("s", "data");
    let frames: Vec<_> = (0..10).map(|_| (noise(2_000_000), 0)).collect();
    server.faults().plan(S3Op::Put, "", 4, Fault::Busy);
    server.faults().plan(S3Op::Put, "partNumber=2", 1, Fault::LostAnswer);
    server.faults().plan(S3Op::Get, "", 3, Fault::Error);
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
}
