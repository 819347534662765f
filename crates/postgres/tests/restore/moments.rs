//! What comes back is what was there.

use hindsight_catalog::Target;
use hindsight_postgres::wal::History;
use hindsight_testkit::Postgres;
use jiff::Timestamp;

use super::stored::{Stored, clock};
use super::{restored, source, target};

/// All that pgbench has in its tables, in short.
pub async fn contents(server: &Postgres) -> String {
    let of = |table: &str| format!("SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} t");
    let tables = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"].map(of);
    server.sql(&tables.join(" UNION ALL ")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_moments_by_time_position_and_name() {
    let server = Postgres::start(source()).await.unwrap();
    server.pgbench(&["-i", "-s", "1", "-q"]).await.unwrap();
    let stored = Stored::new().await;
    let first = History::first();
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &first).await;
    assert!(manifest.objects.iter().filter(|object| object.name.starts_with("data/base/")).count() > 3);
    let mut moments = Vec::new();
    for name in ["one", "two", "three", "four", "five"] {
        server.pgbench(&["-n", "-c", "4", "-t", "150"]).await.unwrap();
        // Segments that end in zeros, and a cut soon after such an end.
        if name != "three" {
            server.sql("SELECT pg_switch_wal()").await.unwrap();
        }
        let lsn = server.sql(&format!("SELECT pg_create_restore_point('{name}')")).await.unwrap();
        moments.push((name, clock(&server).await, lsn, contents(&server).await));
    }
    let last = manifest.streams["wal"].last.clone();
    stored.capture(&server, &first, &base, &last, 100).await;
    server.stop().await.unwrap();

    for (name, time, lsn, was) in &moments {
        for text in [format!("name:{name}"), lsn.clone(), time.to_string()] {
            let target = target(&stored, &text).await.unwrap();
            let (found, preview, done) = restored(&stored, &target).await;
            assert_eq!(contents(&found).await, *was, "{text}");
            let reached = preview.reaches.unwrap();
            assert_eq!(done.reached, Some(reached.point));
            assert!(
                reached.last_commit.unwrap() <= *time && reached.left_out.is_none_or(|next| next > *time),
                "{text}"
            );
            assert!(done.totals.documents > 900 && done.totals.log_records > 100, "{:?}", done.totals);
            assert_eq!(found.sql("SELECT timeline_id FROM pg_control_checkpoint()").await.unwrap(), "2");
            assert_eq!(found.sql("SHOW archive_mode").await.unwrap(), "off");
        }
    }
    // Everything, and the base as it is.
    let (found, _, _) = restored(&stored, &Target::Latest).await;
    assert_eq!(contents(&found).await, moments[4].3);
    let (found, preview, _) = restored(&stored, &Target::Snapshot(manifest.id.clone())).await;
    assert_eq!(found.sql("SELECT count(*) FROM pgbench_accounts").await.unwrap(), "100000");
    assert_eq!(found.sql("SELECT count(*) FROM pgbench_history").await.unwrap(), "0");
    assert!(preview.reaches.unwrap().through.unwrap().ends_with("the end of the backup"));

    let refused = target(&stored, "name:six").await.unwrap_err();
    assert!(refused.hint.unwrap().contains("\"five\", \"four\""));
    let refused = target(&stored, "FF/0").await.unwrap_err();
    assert!(refused.hint.unwrap().contains(&base.stop.to_string()));
    let refused = target(&stored, "xid:4000000000").await.unwrap_err();
    assert!(refused.what.contains("no transaction 4000000000"));

    // Another history has the same positions: what is meant has to be said.
    stored.begin_another(2, base.stop, 60 << 20).await;
    let refused = target(&stored, "name:two").await.unwrap_err();
    assert!(refused.what.contains("older history"), "{}", refused.what);
    let hint = format!("--time {} --epoch 1", moments[1].2);
    assert!(refused.hint.as_ref().is_some_and(|found| found.ends_with(&hint)), "{:?}", refused.hint);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cut_is_between_two_transactions() {
    let server = Postgres::start(source()).await.unwrap();
    server.sql("CREATE TABLE event (id int)").await.unwrap();
    let stored = Stored::new().await;
    let first = History::first();
    let (manifest, base) = stored.back_up(&server, "2026-01-01T00:00:00Z", &first).await;
    let insert = |id: u32| format!("INSERT INTO event VALUES ({id})");
    // One after the other, without a pause.
    for id in 1..=40 {
        server.sql(&insert(id)).await.unwrap();
    }
    server.sql("BEGIN; INSERT INTO event VALUES (41); PREPARE TRANSACTION 'order 17'").await.unwrap();
    server.sql("BEGIN; INSERT INTO event VALUES (1000); ROLLBACK").await.unwrap();
    server.sql("COMMIT PREPARED 'order 17'").await.unwrap();
    let times = server
        .sql("SELECT id, xmin, (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM event ORDER BY id")
        .await
        .unwrap();
    let times: Vec<Vec<i64>> =
        times.lines().map(|line| line.split('|').map(|field| field.parse().unwrap()).collect()).collect();
    let last = manifest.streams["wal"].last.clone();
    stored.capture(&server, &first, &base, &last, 7).await;
    server.stop().await.unwrap();
    let at = |id: usize| Timestamp::from_microsecond(times[id - 1][2]).unwrap();

    let ids = "SELECT count(*), max(id) FROM event";
    for id in [20, 21, 40] {
        let (found, preview, _) = restored(&stored, &Target::Before(at(id))).await;
        assert_eq!(found.sql(ids).await.unwrap(), format!("{}|{}", id - 1, id - 1));
        let reached = preview.reaches.unwrap();
        assert_eq!((reached.last_commit, reached.left_out), (Some(at(id - 1)), Some(at(id))));
        // What had been written of the next one is there too, and never happened.
        assert!(reached.through.unwrap().parse::<hindsight_postgres::Lsn>().is_ok());
        let (found, _, _) = restored(&stored, &Target::Before(at(id) + jiff::SignedDuration::from_micros(1))).await;
        assert_eq!(found.sql(ids).await.unwrap(), format!("{id}|{id}"));
        // As was said, it is ready to go on.
        found.sql("INSERT INTO event VALUES (0)").await.unwrap();
    }
    let by_xid = target(&stored, &format!("xid:{}", times[29][1])).await.unwrap();
    let (found, _, _) = restored(&stored, &by_xid).await;
    assert_eq!(found.sql(ids).await.unwrap(), "30|30");
    // Times of commits are still known.
    let time = "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM event WHERE id = 30";
    found.stop().await.unwrap();

    // Between the two halves of a prepared transaction.
    let (found, _, done) = restored(&stored, &Target::Before(at(41))).await;
    assert_eq!(found.sql(ids).await.unwrap(), "40|40");
    assert!(done.next.iter().any(|next| next.starts_with("1 prepared transactions wait")), "{:?}", done.next);
    found.sql("COMMIT PREPARED 'order 17'").await.unwrap();
    assert_eq!(found.sql(ids).await.unwrap(), "41|41");
    let _ = time;
}
