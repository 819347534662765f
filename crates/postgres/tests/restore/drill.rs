//! Drills: a restore that is read by a server, and gone afterwards.

use std::fs;
use std::sync::Arc;

use hindsight_catalog::{Target, plan};
use hindsight_engine::{Destination, Scratch, ScratchRequest, Selection};
use hindsight_postgres::restore;
use hindsight_postgres::scratch::ScratchServer;
use hindsight_postgres::wal::History;
use hindsight_testkit::Postgres;
use jiff::Timestamp;

use super::stored::Stored;
use super::{Crossed, command, job, options, source};

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_reads_everything_and_finds_what_is_wrong() {
    let server = Postgres::start(source()).await.unwrap();
    server.sql("CREATE DATABASE second").await.unwrap();
    // As a DROP DATABASE leaves it that was cut off.
    server.sql("CREATE DATABASE half").await.unwrap();
    server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'").await.unwrap();
    server.sql("CREATE TABLE event AS SELECT generate_series(1, 100000) AS id").await.unwrap();
    server.sql("CREATE INDEX event_id ON event (id)").await.unwrap();
    let stored = Stored::new().await;
    let first = History::first();
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &first).await;
    server.sql("INSERT INTO event SELECT generate_series(100001, 100100)").await.unwrap();
    stored.capture(&server, &first, &base, &manifest.streams["wal"].last, 1000).await;
    let index = server.sql("SELECT pg_relation_filepath('event_id')").await.unwrap();
    server.stop().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    // Whoever the server runs as has to get in.
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let request =
        ScratchRequest { program: None, folder: folder.path().to_owned(), must_hold: base.server_version.clone() };
    for damaged in [false, true] {
        let scratch: Box<dyn Scratch> = Box::new(ScratchServer::start(&request).await.unwrap());
        assert!(scratch.version().starts_with(&base.major.to_string()));
        let plan = plan(&stored.history().await, &Target::Latest, None, Timestamp::now()).unwrap();
        let (engine, destination) = (scratch.engine(), scratch.destination());
        let (all, job) = (Selection::default(), job(&stored.cluster));
        let preview = engine.prepare_restore(&stored.cluster, &plan, &all, &destination).await.unwrap();
        let options = options(Arc::new(Crossed::default()));
        // The program of the test is not the one that a server asks for its log.
        let done = restore::run_asking(&job, &plan, &all, &destination, &preview, &options, command()).await.unwrap();
        let Destination::Directory(directory) = &destination else { panic!() };
        assert_eq!(done.totals.collections, 5);
        if damaged {
            // An entry of the index leads elsewhere than it did.
            let path = directory.path.join(&index);
            let mut bytes = fs::read(&path).unwrap();
            bytes[3 * 8192 + 5000] ^= 0x55;
            fs::write(&path, bytes).unwrap();
        }
        let examined = scratch.examine(&job, &plan, &done.totals).await.unwrap();
        assert_eq!(examined.containers, 3);
        assert!(examined.items > 600, "{examined:?}");
        assert_eq!(examined.problems.is_empty(), !damaged, "{:?}", examined.problems);
        assert!(
            !damaged || examined.problems.iter().any(|problem| problem.contains("event_id")),
            "{:?}",
            examined.problems
        );
        assert_eq!(job.progress.warnings(), Vec::<String>::new());
        scratch.stop().await.unwrap();
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }
    let refused = ScratchServer::start(&ScratchRequest { must_hold: "9.6.24".to_owned(), ..request }).await;
    assert!(refused.is_err_and(|error| error.what.contains("PostgreSQL 9")));
}
