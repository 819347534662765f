//! On a store of your choice: `HINDSIGHT_TEST_REPOSITORY=az://container/empty-prefix cargo test --test elsewhere`, with the
//! store's own variables set (`AWS_*`, `HINDSIGHT_S3_*`, `AZURE_*`, `GOOGLE_*`). Does nothing without that variable.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use hindsight_repository::{Repository, RepositorySpec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_elsewhere() {
    let Ok(url) = std::env::var("HINDSIGHT_TEST_REPOSITORY") else { return };
    let spec = RepositorySpec::new(url);
    assert!(Repository::open(&spec).await.unwrap().is_none(), "the place should be empty");
    let repository = Repository::open_or_create(&spec).await.unwrap();
    println!("{:#?}", repository.check().await);
    common::exercise(&repository).await;
}
