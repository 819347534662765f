//! Who gets in, and what is said at closed doors.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use hindsight_engine::FailureKind;
use hindsight_postgres::wire::{Replication, quote_text};
use hindsight_testkit::{Postgres, PostgresOptions};

use crate::{connect, told};

const DOORS: [&str; 9] = [
    "host    all         hashed     127.0.0.1/32 md5",
    "host    all         plain      127.0.0.1/32 password",
    "hostssl all         hindsight  127.0.0.1/32 cert",
    "hostssl all         encrypted  127.0.0.1/32 scram-sha-256",
    "hostnossl all       bare       127.0.0.1/32 scram-sha-256",
    "host    replication scrammed   127.0.0.1/32 scram-sha-256",
    "host    replication weak       127.0.0.1/32 scram-sha-256",
    "host    all         scrammed,unknown 127.0.0.1/32 scram-sha-256",
    "local   all         hindsight  peer",
];

async fn doors() -> Postgres {
    let server = Postgres::start(PostgresOptions { tls: true, ..Default::default() }.hba(&DOORS)).await.unwrap();
    server
        .sql(
            "CREATE ROLE scrammed LOGIN REPLICATION PASSWORD 'geheim';
             CREATE ROLE weak LOGIN PASSWORD 'geheim';
             CREATE ROLE encrypted LOGIN PASSWORD 'geheim';
             CREATE ROLE bare LOGIN PASSWORD 'geheim';
             CREATE ROLE plain LOGIN PASSWORD 'geheim';
             CREATE ROLE stranger LOGIN PASSWORD 'geheim';
             CREATE ROLE hindsight LOGIN;
             SET password_encryption = md5;
             CREATE ROLE hashed LOGIN PASSWORD 'geheim'",
        )
        .await
        .unwrap();
    server
}

#[tokio::test]
async fn who_gets_in() {
    let server = doors().await;
    let certificates = server.certificates().unwrap();
    let authority = format!("sslrootcert={}", certificates.authority().display());
    let identity = certificates.client().display().to_string();
    let identity = format!("sslcert={identity}&sslkey={identity}");
    for (user, parameters, encrypted) in [
        ("scrammed:geheim", "sslmode=disable", false),
        ("scrammed:geheim", "sslmode=prefer", true),
        ("scrammed:geheim", "sslmode=require&channel_binding=disable", true),
        ("scrammed:geheim", "sslmode=require&channel_binding=require", true),
        ("scrammed:geheim", &format!("sslmode=verify-full&{authority}"), true),
        ("hashed:geheim", "sslmode=disable", false),
        ("hashed:geheim", "", true),
        ("plain:geheim", "sslmode=require", true),
        ("bare:geheim", "sslmode=prefer", false),
        ("encrypted:geheim", "sslmode=allow", true),
        ("hindsight", &format!("sslmode=verify-full&{authority}&{identity}"), true),
    ] {
        let uri = format!("{}?{parameters}", server.uri_of(user));
        let mut connection =
            connect(&uri, Replication::No).await.unwrap_or_else(|error| panic!("{user} {parameters}: {error}"));
        assert_eq!(connection.is_encrypted(), encrypted, "{user} {parameters}");
        let rows =
            connection.query("SELECT user AS me, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", "asking").await;
        let rows = rows.unwrap();
        let row = rows.first().unwrap();
        assert_eq!(row.get("me"), user.split(':').next());
        assert_eq!(row.get("ssl"), Some(if encrypted { "t" } else { "f" }));
        assert!(!format!("{connection:?}").contains("geheim"));
        connection.close().await;
    }
    // A file of passwords, and one that others can read.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passwords");
    std::fs::write(&file, format!("127.0.0.1:{}:replication:scrammed:geheim\n", server.port())).unwrap();
    let uri = format!("{}?passfile={}", server.uri_of("scrammed"), file.display());
    for (mode, kind) in [(0o600, None), (0o640, Some(FailureKind::Authentication))] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(connect(&uri, Replication::Physical).await.err().map(|error| told(error).0), kind);
    }
    let mut connection = connect(&server.uri_of("scrammed:geheim"), Replication::Physical).await.unwrap();
    let system = connection.identify_system().await.unwrap();
    let control = server.sql("SELECT system_identifier FROM pg_control_system()").await.unwrap();
    assert_eq!((system.system.to_string(), system.timeline, system.database), (control, 1, None));
    let connection = connect(&server.uri(), Replication::Database).await;
    assert_eq!(connection.unwrap().identify_system().await.unwrap().database.as_deref(), Some("postgres"));
}

#[tokio::test]
async fn what_is_said_at_closed_doors() {
    let server = doors().await;
    let other = hindsight_testkit::Certificates::new().unwrap();
    let stranger = other.client().display().to_string();
    std::fs::set_permissions(&stranger, std::fs::Permissions::from_mode(0o600)).unwrap();
    let readable = other.server().display().to_string();
    let authority = server.certificates().unwrap().authority().display().to_string();
    let wrong_authority = other.authority().display().to_string();
    use FailureKind::*;
    for (user, parameters, kind, expected) in [
        ("scrammed:geheimer", "", Authentication, "the server does not let us in while connecting to 127.0.0.1"),
        ("hashed:geheimer", "", Authentication, "password authentication failed for user \"hashed\""),
        ("plain:geheimer", "", Authentication, "password authentication failed for user \"plain\""),
        ("unknown:geheim", "", Authentication, "password authentication failed for user \"unknown\""),
        ("scrammed", "passfile=/nowhere", Authentication, "the server wants a password for scrammed"),
        ("stranger:geheim", "", Authentication, "no pg_hba.conf entry"),
        ("bare:geheim", "sslmode=require", Authentication, "no pg_hba.conf entry"),
        ("encrypted:geheim", "sslmode=disable", Authentication, "no pg_hba.conf entry"),
        ("hashed:geheim", "channel_binding=require", Authentication, "binds no password to its certificate"),
        ("scrammed:geheim", "sslmode=disable&channel_binding=require", Authentication, "cannot be bound"),
        ("hindsight", "sslmode=require", Authentication, "requires a valid client certificate"),
        (
            "hindsight",
            &format!("sslmode=require&sslcert={stranger}&sslkey={stranger}"),
            Authentication,
            "does not take our certificate",
        ),
        (
            "hindsight",
            &format!("sslmode=require&sslcert={readable}&sslkey={readable}"),
            Address,
            "can be read by others",
        ),
        ("hindsight", "sslmode=require&sslcert=/nowhere&sslkey=/nowhere", Address, "/nowhere cannot be read"),
        (
            "scrammed:geheim",
            &format!("sslmode=verify-ca&sslrootcert={wrong_authority}"),
            Unreachable,
            "is not to be trusted",
        ),
        (
            "scrammed:geheim",
            &format!("sslmode=require&sslrootcert={wrong_authority}"),
            Unreachable,
            "is not to be trusted",
        ),
        (
            "scrammed:geheim",
            "sslmode=verify-full&sslrootcert=/dev/null",
            Address,
            "/dev/null is no file of certificates",
        ),
    ] {
        let uri = format!("{}?{parameters}", server.uri_of(user));
        let error = connect(&uri, Replication::No).await.err().unwrap_or_else(|| panic!("{user} {parameters} got in"));
        let (what_kind, what) = told(error);
        assert!(what.contains(expected), "{user} {parameters}: {what}");
        assert_eq!(what_kind, kind, "{user} {parameters}: {what}");
    }
    // The name counts for verify-full only. The certificate is for localhost and 127.0.0.1.
    let uri = server.uri_of("scrammed:geheim").replace("127.0.0.1", "[::ffff:127.0.0.1]");
    connect(&format!("{uri}?sslmode=verify-ca&sslrootcert={authority}"), Replication::No).await.unwrap();
    let failure =
        connect(&format!("{uri}?sslmode=verify-full&sslrootcert={authority}"), Replication::No).await.unwrap_err();
    assert!(told(failure).1.contains("is not to be trusted"));

    let failure = connect(&server.uri_of("weak:geheim"), Replication::Physical).await.unwrap_err();
    assert_eq!(failure.sqlstate(), Some("42501"));
    assert!(failure.hint().unwrap().contains("ALTER ROLE name REPLICATION"), "{failure}: {:?}", failure.hint());
    assert_eq!(told(failure).0, Privilege);
    let failure = connect(&server.uri_of("hashed:geheim"), Replication::Physical).await.unwrap_err();
    assert!(failure.hint().unwrap().contains("pg_hba.conf"), "{failure}");
    assert_eq!(told(failure).0, Authentication);
    let uri = format!("{}?dbname=nodatabase", server.uri());
    assert_eq!(told(connect(&uri, Replication::No).await.unwrap_err()).0, Address);
    // Whoever runs this is not the system's user hindsight.
    let uri = server.uri().replace("postgres@", "hindsight@");
    assert_eq!(told(connect(&uri, Replication::No).await.unwrap_err()).0, Authentication);
}

#[tokio::test]
async fn no_server_there() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().map(|address| (silent, address.port())).unwrap();
    for (place, expected) in [
        (format!("127.0.0.1:{closed}"), "no server answers while connecting to 127.0.0.1"),
        ("%2Fnowhere:5432".to_owned(), "/nowhere/.s.PGSQL.5432"),
        ("no.such.host.invalid".to_owned(), "no server answers while connecting to no.such.host.invalid:5432"),
        (format!("127.0.0.1:{closed},%2Fnowhere:1"), "none of the 2 servers will do: "),
        (format!("127.0.0.1:{}", silent.1), "no answer within 2 s"),
    ] {
        let begun = Instant::now();
        let uri = format!("postgresql://me:geheim@{place}/db?connect_timeout=1");
        let (kind, what) = told(connect(&uri, Replication::No).await.unwrap_err());
        assert_eq!(kind, FailureKind::Unreachable, "{what}");
        assert!(what.contains(expected), "{what}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
async fn a_server_that_does_not_replicate() {
    let minimal = PostgresOptions::default().set("wal_level", "minimal").set("max_wal_senders", "0");
    let server = Postgres::start(minimal).await.unwrap();
    let failure = connect(&server.uri(), Replication::Physical).await.unwrap_err();
    assert!(failure.hint().unwrap().contains("wal_level = replica"), "{failure}");
    assert_eq!(told(failure).0, FailureKind::Unsupported);
    drop(server);
    let server = Postgres::start(PostgresOptions::default().set("max_replication_slots", "0")).await.unwrap();
    let mut connection = connect(&server.uri(), Replication::Physical).await.unwrap();
    let failure = connection.create_physical_slot("s", true).await.unwrap_err();
    assert!(failure.hint().unwrap().contains("raise max_replication_slots"), "{failure}");
    assert_eq!(told(failure).0, FailureKind::Server);
    // The session goes on.
    assert_eq!(connection.show("max_replication_slots").await.unwrap(), "0");
    assert_eq!(connection.show("nonsense").await.unwrap_err().sqlstate(), Some("42704"));
    assert_eq!(connection.timeline_history(1).await.unwrap(), None);
}

#[tokio::test]
async fn statements_and_what_they_return() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let mut connection = connect(&server.uri(), Replication::No).await.unwrap();
    let text = "it's a \\ \"text\" – µ";
    let rows =
        connection.query(&format!("SELECT {} AS t, NULL AS n; SELECT 1 AS one", quote_text(text)), "asking").await;
    let rows = rows.unwrap();
    let [first, second] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((first.get("t"), first.get("n"), first.get("x")), (Some(text), None, None));
    assert_eq!((second.columns(), second.at(0)), (["one".to_owned()].as_slice(), Some("1")));
    let failure = connection.query("SELECT 1/0", "dividing").await.unwrap_err();
    assert_eq!(failure.to_string(), "the server refused while dividing: division by zero");
    let failure = connection.query("COPY pg_class TO STDOUT", "copying").await.unwrap_err();
    assert!(failure.to_string().contains("is not understood while copying"), "{failure}");

    // An answer that is given up leaves a session of no use, and says so.
    let mut connection = connect(&server.uri(), Replication::No).await.unwrap();
    let asked = connection.query("SELECT pg_sleep(30)", "sleeping");
    assert!(tokio::time::timeout(Duration::from_millis(100), asked).await.is_err());
    let failure = connection.query("SELECT 1", "asking").await.unwrap_err();
    assert!(failure.to_string().contains("given up in the midst of a command"), "{failure}");

    // A long answer is not kept.
    let mut connection = connect(&server.uri(), Replication::No).await.unwrap();
    let failure =
        connection.query("SELECT repeat('x', 1000000) FROM generate_series(1, 100)", "asking").await.unwrap_err();
    assert!(failure.to_string().contains("more than 64 MiB"), "{failure}");
}
