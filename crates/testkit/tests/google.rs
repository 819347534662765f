//! The server of Google Cloud Storage, as the client that Hindsight uses sees it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all};
use hindsight_testkit::{Fault, GoogleServer, S3Op};
use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::path::Path;
use object_store::{
    Error, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig, StaticCredentialProvider,
    UpdateVersion, WriteMultipart,
};

const BUCKET: &str = "backups";

fn builder(server: &GoogleServer) -> GoogleCloudStorageBuilder {
    GoogleCloudStorageBuilder::new().with_bucket_name(BUCKET).with_service_account_key(server.key())
}

fn start() -> (GoogleServer, GoogleCloudStorage) {
    let server = GoogleServer::start(BUCKET).unwrap();
    let store = builder(&server).build().unwrap();
    (server, store)
}

async fn get(store: &GoogleCloudStorage, path: &Path) -> object_store::Result<Vec<u8>> {
    Ok(store.get(path).await?.bytes().await?.to_vec())
}

fn names(list: Vec<ObjectMeta>) -> Vec<Path> {
    list.into_iter().map(|meta| meta.location).collect()
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
    for missing in ["nothing", "a", "a/b"].map(Path::from) {
        assert!(matches!(store.head(&missing).await.unwrap_err(), Error::NotFound { .. }));
        assert!(matches!(store.get(&missing).await.unwrap_err(), Error::NotFound { .. }));
        // Unlike with S3.
        assert!(matches!(store.delete(&missing).await.unwrap_err(), Error::NotFound { .. }));
    }

    let under_a = store.list(Some(&Path::from("a"))).try_collect().await.unwrap();
    assert_eq!(names(under_a), paths[..3]);
    let after = store.list_with_offset(Some(&Path::from("a")), &paths[0]).try_collect().await.unwrap();
    assert_eq!(names(after), paths[1..3]);
    let flat = store.list_with_delimiter(Some(&Path::from("a"))).await.unwrap();
    assert_eq!((names(flat.objects), flat.common_prefixes), (paths[..2].to_vec(), vec![Path::from("a/b")]));

    store.copy(&paths[3], &Path::from("d")).await.unwrap();
    assert_eq!(get(&store, &Path::from("d")).await.unwrap(), b"c");
    let again = store.copy_if_not_exists(&paths[3], &Path::from("d")).await.unwrap_err();
    assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
    let gone = futures::stream::iter(paths.to_vec()).map(Ok).boxed();
    store.delete_stream(gone).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(names(store.list(None).try_collect().await.unwrap()), [Path::from("d")]);
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
    assert_eq!(store.list_with_offset(None, &Path::from("n/0050")).count().await, 1049);
}

#[tokio::test]
async fn large_objects_come_in_parts() {
    let (_server, store) = start();
    let data: Vec<u8> = (0..13_000_000_u32).map(|i| (i % 251) as u8).collect();
    let path = Path::from("a/whole");
    let mut upload = WriteMultipart::new(store.put_multipart(&path).await.unwrap());
    upload.write(&data);
    let stored = upload.finish().await.unwrap();
    assert!(get(&store, &path).await.unwrap() == data);
    assert_eq!(store.head(&path).await.unwrap().version, stored.version);

    let aborted = Path::from("aborted");
    let mut upload = store.put_multipart(&aborted).await.unwrap();
    upload.put_part(data[..6_000_000].to_vec().into()).await.unwrap();
    upload.abort().await.unwrap();
    assert!(matches!(store.head(&aborted).await.unwrap_err(), Error::NotFound { .. }));
}

#[tokio::test]
async fn generations_grow_and_are_conditions() {
    let (_server, store) = start();
    let path = Path::from("a");
    let update = |version: Option<String>| PutMode::Update(UpdateVersion { e_tag: None, version });
    let first = store.put(&path, "1".into()).await.unwrap().version;
    let second = store.put_opts(&path, "2".into(), update(first.clone()).into()).await.unwrap().version;
    assert!(first.as_ref().unwrap().parse::<u64>().unwrap() < second.as_ref().unwrap().parse::<u64>().unwrap());
    let error = store.put_opts(&path, "3".into(), update(first).into()).await.unwrap_err();
    assert!(matches!(error, Error::Precondition { .. }), "{error}");
    assert_eq!(get(&store, &path).await.unwrap(), b"2");
    assert_eq!(store.head(&path).await.unwrap().version, second);
    store.delete(&path).await.unwrap();
    store.put_opts(&path, "4".into(), PutMode::Create.into()).await.unwrap();
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
async fn who_has_no_token_of_the_account_is_refused() {
    let (server, store) = start();
    let path = Path::from("a");
    store.put(&path, "x".into()).await.unwrap();
    let good = store.credentials().get_credential().await.unwrap().bearer.clone();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let other = GoogleServer::start(BUCKET).unwrap();
    let foreign = builder(&other).build().unwrap().credentials().get_credential().await.unwrap().bearer.clone();
    let tokens =
        [String::new(), "ya29.guessed".into(), format!("{signed}."), format!("{signed}x.{signature}"), foreign];
    for bearer in tokens {
        let credentials = Arc::new(StaticCredentialProvider::new(GcpCredential { bearer }));
        let stranger = builder(&server).with_credentials(credentials).build().unwrap();
        for error in [
            stranger.get(&path).await.unwrap_err(),
            stranger.put(&path, "y".into()).await.unwrap_err(),
            stranger.list(None).try_collect::<Vec<_>>().await.unwrap_err(),
        ] {
            assert!(error.to_string().contains("<Code>AuthenticationRequired</Code>"), "{error}");
        }
    }
    assert_eq!(get(&store, &path).await.unwrap(), b"x");

    for op in [S3Op::Get, S3Op::Put, S3Op::Delete, S3Op::List] {
        let doomed = Path::from("doomed");
        store.put(&doomed, "x".into()).await.unwrap();
        server.faults().deny(op);
        let errors = [
            (S3Op::Get, store.get(&path).await.err()),
            (S3Op::Put, store.put(&Path::from("big"), vec![0; 6_000_000].into()).await.err()),
            (S3Op::Put, store.put_multipart(&path).await.err()),
            (S3Op::List, store.list(None).try_collect::<Vec<_>>().await.err()),
            (S3Op::Delete, store.delete(&doomed).await.err()),
        ];
        for (which, error) in errors {
            assert_eq!(error.is_some(), which == op, "{op:?} denied, {which:?}: {error:?}");
            assert!(error.is_none_or(|error| error.to_string().contains("403 Forbidden")));
        }
        server.faults().clear();
    }
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

    faults.plan(S3Op::Put, "", 1, Fault::LostAnswer);
    let lease = Path::from("lease");
    let lost = store.put_opts(&lease, "mine".into(), PutMode::Create.into()).await;
    assert!(lost.is_err(), "who creates cannot know whose it is");
    assert_eq!(get(&store, &lease).await.unwrap(), b"mine");
}

#[tokio::test]
async fn an_object_changes_once_a_second_where_that_is_the_limit() {
    let (server, _) = start();
    server.limit_writes(true);
    let hasty = builder(&server).with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() }).build().unwrap();
    let path = Path::from("a");
    let begun = Instant::now();
    hasty.put(&path, "1".into()).await.unwrap();
    for result in [hasty.put(&path, "2".into()).await.map(drop), hasty.delete(&path).await] {
        assert!(begun.elapsed() > Duration::from_secs(1) || result.unwrap_err().to_string().contains("429"));
    }
    hasty.put(&Path::from("b"), "1".into()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    hasty.put(&path, "2".into()).await.unwrap();
}
