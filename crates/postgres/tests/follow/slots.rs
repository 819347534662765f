//! Slots, and servers that cannot be captured.

use hindsight_engine::{FailureKind, Kept, LogReader as _};
use hindsight_postgres::follow::Reserved;
use hindsight_postgres::{Address, cluster, grants, slot};
use hindsight_testkit::{Postgres, PostgresOptions};

use crate::captured::Capture;
use crate::{address, open, repository, soon, written};

#[tokio::test]
async fn a_slot_is_made_once_and_dropped_once() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let standby = server.standby(PostgresOptions::default()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    for server in [&server, &standby] {
        let address = address(server);
        let keep = async |keep| soon(slot::keep(&address, &cluster, keep)).await.unwrap();
        assert!(matches!(keep(false).await, Kept::Already(_)));
        assert!(matches!(keep(true).await, Kept::Made(_)));
        assert!(matches!(keep(true).await, Kept::Already(_)));
        let slots = "select slot_name, slot_type, temporary, restart_lsn is null from pg_replication_slots";
        let repository = &cluster.repository().descriptor().id.replace('-', "")[..8];
        let wanted = format!("hindsight_shop_{}|physical|f|f", repository.to_lowercase());
        assert_eq!(server.sql(slots).await.unwrap(), wanted);
        // One that is in use goes as soon as who uses it is gone.
        let capture = Capture::open(server, &cluster, None).await;
        let (released, ()) = tokio::join!(keep(false), async { drop(capture) });
        assert!(matches!(released, Kept::Released(_)), "{released:?}");
        assert_eq!(server.sql(slots).await.unwrap(), "");
        assert!(matches!(keep(false).await, Kept::Already(_)));
    }
}

#[tokio::test]
async fn a_slot_that_somebody_uses_stays() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    slot::keep(&address(&server), &cluster, true).await.unwrap();
    let _capture = Capture::open(&server, &cluster, None).await;
    let error = soon(slot::keep(&address(&server), &cluster, false)).await.unwrap_err();
    assert!(error.what.contains("somebody still uses it") && error.hint.is_some(), "{}", error.what);
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let minimal = PostgresOptions::default().set("wal_level", "minimal").set("max_wal_senders", "0");
    let no_slots = PostgresOptions::default().set("max_replication_slots", "0");
    let one_slot = PostgresOptions::default().set("max_replication_slots", "1");
    let doors = ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"];
    let closed = ["host all all 127.0.0.1/32 trust"];
    let sure = PostgresOptions::default();
    let (_folder, cluster) = {
        let server = Postgres::start(PostgresOptions::default()).await.unwrap();
        repository(&server).await
    };
    for (options, kind, hint) in [
        (minimal, FailureKind::Unsupported, "wal_level = replica"),
        (no_slots, FailureKind::Server, "max_replication_slots"),
        (one_slot, FailureKind::Server, "drop replication slots that nobody uses"),
        (sure.clone().hba(&doors), FailureKind::Privilege, "ALTER ROLE name REPLICATION"),
        (sure.hba(&closed), FailureKind::Authentication, "pg_hba.conf"),
    ] {
        let server = Postgres::start(options.clone()).await.unwrap();
        if hint.starts_with("drop") {
            server.sql("select pg_create_physical_replication_slot('other')").await.unwrap();
        }
        let user = if hint.starts_with("ALTER") { "weak" } else { "strong" };
        server.sql("create role weak login; create role strong login replication superuser").await.unwrap();
        let address = Address::parse(&server.uri_of(user)).unwrap();
        let error = soon(slot::keep(&address, &cluster, true)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{}", error.what);
        assert!(error.hint.as_ref().is_some_and(|told| told.contains(hint)), "{}: {:?}", error.what, error.hint);
    }
}

#[tokio::test]
async fn the_role_that_is_shown_can_do_it_all() {
    let server = Postgres::start(PostgresOptions::default().set("max_slot_wal_keep_size", "1GB")).await.unwrap();
    let standby = server.standby(PostgresOptions::default()).await.unwrap();
    let grants = grants::grants();
    let [grant] = grants.as_slice() else { panic!("{grants:?}") };
    assert!(grant.command.starts_with(grant.statement.as_str().unwrap()));
    server.sql(grant.statement.as_str().unwrap()).await.unwrap();
    let (_folder, cluster) = repository(&server).await;
    let address = Address::parse(&server.uri_of(&grant.user)).unwrap();

    let found = cluster::probe(&address).await.unwrap();
    let system = server.sql("select system_identifier from pg_control_system()").await.unwrap();
    assert_eq!((found.engine, found.identity.id.as_str()), ("postgresql", system.as_str()));
    assert_eq!(found.natural_name, format!("pg-{}", &system[system.len() - 8..]));
    assert_eq!((found.streams.as_slice(), found.log_room, found.log_start), (&["wal".to_owned()][..], None, None));
    assert!(server.sql("show server_version").await.unwrap().starts_with(&found.version));
    let role = |member: &hindsight_engine::Member| (member.role.clone(), member.healthy);
    soon(async {
        // The standby may still be about to connect.
        while cluster::probe(&address).await.unwrap().members.len() < 2 {}
    })
    .await;
    let members = cluster::probe(&address).await.unwrap().members;
    assert_eq!(members.iter().map(role).collect::<Vec<_>>(), [("primary".into(), true), ("standby".into(), true)]);
    assert!(members[1].lag_secs.is_some(), "{members:?}");
    let found = cluster::probe(&crate::address(&standby)).await.unwrap();
    assert_eq!((found.members[0].role.as_str(), &found.identity.id), ("standby", &system));

    slot::keep(&address, &cluster, true).await.unwrap();
    let room = cluster::probe(&address).await.unwrap().log_room.unwrap();
    assert!(room.used < 64 << 20 && room.capacity > 900 << 20 && room.kept_secs == 0, "{room:?}");
    let capture = Capture::open(&server, &cluster, None).await;
    // Not among those that would be restored from.
    assert_eq!(cluster::probe(&address).await.unwrap().members.len(), 2);
    drop(capture);
    open(&server, &cluster, None).await.unwrap();
    soon(slot::keep(&address, &cluster, false)).await.unwrap();
    assert_eq!(cluster::probe(&address).await.unwrap().log_room, None);
}

#[tokio::test]
async fn a_server_is_called_what_it_was_called() {
    let server = Postgres::start(PostgresOptions::default().set("cluster_name", "shop")).await.unwrap();
    let found = cluster::probe(&address(&server)).await.unwrap();
    assert_eq!(found.natural_name, "shop");
    let now: i64 = server.sql("select extract(epoch from clock_timestamp())::bigint").await.unwrap().parse().unwrap();
    assert!((now - found.head.time.as_second()).abs() < 60);
    assert!(crate::place(&found.head).0 <= crate::written(&server).await);
}

#[tokio::test]
async fn commits_do_not_wait_for_a_backup() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let of = "select count(*), bool_and(flush_lsn is null), max(sync_priority) from pg_stat_replication \
              where write_lsn is not null";
    for (names, told) in [("*", "1|t|0"), ("", "1|f|0")] {
        server.sql(&format!("alter system set synchronous_standby_names = '{names}'")).await.unwrap();
        server.sql("select pg_reload_conf()").await.unwrap();
        soon(async { while server.sql("show synchronous_standby_names").await.unwrap() != names {} }).await;
        let from = written(&server).await;
        let reserved = Reserved::new(&address(&server)).await.unwrap();
        let (mut reader, at) = soon(reserved.follow(from)).await.unwrap();
        // As soon as what is stored is told at all.
        reader.stored(&at);
        soon(async { while server.sql(of).await.unwrap() != told {} }).await;
        drop(reader);
        soon(async { while server.sql("select count(*) from pg_stat_replication").await.unwrap() != "0" {} }).await;
    }
}
