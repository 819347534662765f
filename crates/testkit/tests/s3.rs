//! The S3 server, as the client that Hindsight uses sees it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all};
use hindsight_testkit::{Fault, S3_ACCESS_KEY, S3_REGION, S3_SECRET_KEY, S3Op, S3Server};
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, WriteMultipart};

const BUCKET: &str = "backups";

fn builder(server: &S3Server) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(server.endpoint())
        .with_bucket_name(BUCKET)
        .with_region(S3_REGION)
        .with_access_key_id(S3_ACCESS_KEY)
        .with_secret_access_key(S3_SECRET_KEY)
        .with_allow_http(true)
}

fn start() -> (S3Server, AmazonS3) {
    let server = S3Server::start(BUCKET).unwrap();
    let store = builder(&server).build().unwrap();
    (server, store)
}

async fn get(store: &AmazonS3, path: &Path) -> object_store::Result<Vec<u8>> {
    Ok(store.get(path).await?.bytes().await?.to_vec())
}

#[tokio::test]
async fn objects_are_stored_read_listed_and_deleted() {
    let (server, store) = start();
    let paths = ["a/1", "a/2 & 3", "a/b/4", "c"].map(Path::from);
    for path in &paths {
        store.put(path, path.as_ref().as_bytes().to_vec().into()).await.unwrap();
    }
    assert_eq!(get(&store, &paths[1]).await.unwrap(), b"a/2 & 3");
    assert_eq!(std::fs::read(server.file(BUCKET, "a/2 & 3")).unwrap(), b"a/2 & 3");
    assert_eq!(store.get_range(&paths[2], 2..4).await.unwrap(), &b"b/"[..]);
    assert_eq!(store.head(&paths[3]).await.unwrap().size, 1);
    for missing in ["nothing", "a", "a/b"] {
        let error = store.head(&Path::from(missing)).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        let error = store.get(&Path::from(missing)).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }

    let names = |list: Vec<object_store::ObjectMeta>| list.into_iter().map(|meta| meta.location).collect::<Vec<_>>();
    let under_a = store.list(Some(&Path::from("a"))).try_collect().await.unwrap();
    assert_eq!(names(under_a), paths[..3]);
    let after = store.list_with_offset(None, &paths[1]).try_collect().await.unwrap();
    assert_eq!(names(after), paths[2..]);
    let flat = store.list_with_delimiter(Some(&Path::from("a"))).await.unwrap();
    assert_eq!((names(flat.objects), flat.common_prefixes), (paths[..2].to_vec(), vec![Path::from("a/b")]));

    store.copy(&paths[3], &Path::from("d")).await.unwrap();
    assert_eq!(get(&store, &Path::from("d")).await.unwrap(), b"c");
    store.delete(&paths[3]).await.unwrap();
    let gone = futures::stream::iter(paths[..3].to_vec()).map(Ok).boxed();
    store.delete_stream(gone).try_collect::<Vec<_>>().await.unwrap();
    let left = store.list(None).try_collect().await.unwrap();
    assert_eq!(names(left), [Path::from("d")]);
}

#[tokio::test]
async fn lists_of_more_than_a_page_are_whole() {
    let (_server, store) = start();
    let puts = (0..1100).map(|i| {
        let (store, path) = (&store, Path::from(format!("n/{i:04}")));
        async move { store.put(&path, PutPayload::new()).await.unwrap() }
    });
    futures::stream::iter(puts).buffer_unordered(16).count().await;
    assert_eq!(store.list(None).count().await, 1100);
}

#[tokio::test]
async fn large_objects_come_in_parts() {
    let (server, store) = start();
    let store_with_checksums = builder(&server).with_checksum_algorithm(Checksum::SHA256).build().unwrap();
    let data: Vec<u8> = (0..13_000_000_u32).map(|i| (i % 251) as u8).collect();
    for (store, path) in [(&store, "plain"), (&store_with_checksums, "checksums")] {
        let path = Path::from(path);
        let mut upload = WriteMultipart::new(store.put_multipart(&path).await.unwrap());
        upload.write(&data);
        upload.finish().await.unwrap();
        assert!(get(store, &path).await.unwrap() == data);
    }
    let aborted = Path::from("aborted");
    let mut upload = store.put_multipart(&aborted).await.unwrap();
    upload.put_part(data[..6_000_000].to_vec().into()).await.unwrap();
    upload.abort().await.unwrap();
    assert!(matches!(store.head(&aborted).await.unwrap_err(), Error::NotFound { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_writers_creates_an_object() {
    let (_server, store) = start();
    for round in 0..10 {
        let path = Path::from(format!("lease/{round}"));
        let writers = (0..16_u8).map(|writer| {
            let (store, path) = (store.clone(), path.clone());
            tokio::spawn(async move {
                let result = store.put_opts(&path, vec![writer; 1000].into(), PutMode::Create.into()).await;
                (writer, result)
            })
        });
        let results: Vec<_> = join_all(writers).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<u8> = results.iter().filter(|(_, result)| result.is_ok()).map(|(writer, _)| *writer).collect();
        let [winner] = winners[..] else { panic!("winners: {winners:?}") };
        assert_eq!(get(&store, &path).await.unwrap(), vec![winner; 1000]);
        for (_, result) in results.into_iter().filter(|(writer, _)| *writer != winner) {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn wrong_secrets_and_missing_rights_are_refused() {
    let (server, store) = start();
    let path = Path::from("a");
    let stranger = builder(&server).with_secret_access_key("wrong").build().unwrap();
    let error = stranger.put(&path, "x".into()).await.unwrap_err();
    assert!(error.to_string().contains("SignatureDoesNotMatch"), "{error}");
    let anonymous = builder(&server).with_skip_signature(true).build().unwrap();
    let error = anonymous.put(&path, "x".into()).await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert!(matches!(store.head(&path).await.unwrap_err(), Error::NotFound { .. }));

    store.put(&path, "x".into()).await.unwrap();
    for op in [S3Op::Get, S3Op::Put, S3Op::Delete, S3Op::List] {
        server.faults().deny(op);
        let big = vec![0; 6_000_000];
        let errors = [
            (S3Op::Get, store.get(&path).await.err()),
            (S3Op::Put, store.put(&Path::from("big"), big.into()).await.err()),
            (S3Op::Put, store.put_multipart(&path).await.err()),
            (S3Op::List, store.list(None).try_collect::<Vec<_>>().await.err()),
            (S3Op::Delete, store.delete(&Path::from("b")).await.err()),
        ];
        for (which, error) in errors {
            assert_eq!(error.is_some(), which == op, "{op:?} denied, {which:?}: {error:?}");
            // The client gives a refused list as a generic error, so this looks at the text.
            assert!(error.is_none_or(|error| error.to_string().contains("403 Forbidden")));
        }
        server.faults().clear();
    }
    assert!(server.faults().count(S3Op::Put) > 4);
}

#[tokio::test]
async fn faults_strike_and_pass() {
    let (server, store) = start();
    let (path, faults) = (Path::from("a"), server.faults());
    faults.fail_next(S3Op::Put, 2);
    faults.plan(S3Op::Get, "/backups/a", 1, Fault::Busy);
    store.put(&path, "x".into()).await.unwrap();
    assert_eq!(faults.count(S3Op::Put), 3, "the client tries again");
    assert_eq!(get(&store, &path).await.unwrap(), b"x");
    assert_eq!(faults.count(S3Op::Get), 2);

    // The client tries again by itself, and finds what it has just created: "exists" may mean "is mine".
    faults.plan(S3Op::Put, "", 1, Fault::LostAnswer);
    let lease = Path::from("lease");
    let error = store.put_opts(&lease, "mine".into(), PutMode::Create.into()).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!(get(&store, &lease).await.unwrap(), b"mine");

    faults.plan(S3Op::Get, "", 1, Fault::Delay(Duration::from_millis(300)));
    let begun = Instant::now();
    get(&store, &path).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300));

    drop(server);
    tokio::time::timeout(Duration::from_millis(500), store.head(&path)).await.expect_err("nobody answers");
}
