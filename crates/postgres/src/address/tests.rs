#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::parse::address;
use super::{Address, ChannelBinding, Host, RootCertificates, Seat, SslMode, TargetSession, passfile};
use crate::wire::Error;

fn parse_in(text: &str, environment: &[(&str, &str)]) -> Result<Address, Error> {
    address(text, &|name| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
}

fn parse(text: &str) -> Address {
    parse_in(text, &[("HOME", "/home/me"), ("USER", "me")]).unwrap()
}

fn tcp(name: &str, port: u16) -> Host {
    Host { seat: Seat::Tcp(name.to_owned()), port }
}

fn socket(folder: &str, port: u16) -> Host {
    Host { seat: Seat::Socket(PathBuf::from(folder)), port }
}

fn password(address: &Address) -> Option<&str> {
    address.password.as_ref().map(|password| password.expose_secret())
}

#[test]
fn a_whole_connection_string() {
    let address = parse(
        "postgres://us%65r:p%40ss%2Fword@h1:1,[::1]:2/d%20b?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c.pem\
         &sslkey=/k.pem&target_session_attrs=standby&application_name=me%26you&connect_timeout=7&channel_binding=require\
         &options=-c%20work_mem%3D4MB",
    );
    assert_eq!(address.hosts, [tcp("h1", 1), tcp("::1", 2)]);
    assert_eq!((address.user.as_str(), password(&address)), ("user", Some("p@ss/word")));
    assert_eq!(address.database, "d b");
    assert_eq!(address.ssl.mode, SslMode::VerifyFull);
    assert_eq!(address.ssl.root, Some(RootCertificates::File("/ca.pem".into())));
    assert_eq!(address.ssl.certificate, Some("/c.pem".into()));
    assert_eq!(address.ssl.key, Some("/k.pem".into()));
    assert_eq!(address.target, TargetSession::Standby);
    assert_eq!(address.application_name, "me&you");
    assert_eq!(address.connect_timeout, Some(Duration::from_secs(7)));
    assert_eq!(address.channel_binding, ChannelBinding::Require);
    assert_eq!(address.options.as_deref(), Some("-c work_mem=4MB"));
}

#[test]
fn what_is_left_out_has_a_default() {
    let address = parse("postgresql://host");
    assert_eq!(address.hosts, [tcp("host", 5432)]);
    assert_eq!((address.user.as_str(), address.database.as_str()), ("me", "me"));
    assert_eq!(address.ssl.mode, SslMode::Prefer);
    assert_eq!(address.target, TargetSession::Any);
    assert_eq!(address.application_name, "hindsight");
    assert_eq!(address.connect_timeout, Some(Duration::from_secs(10)));
    assert_eq!(address.passfile, Some("/home/me/.pgpass".into()));
    assert_eq!(parse("postgresql://other@host").database, "other");
}

#[test]
fn what_is_left_out_comes_from_the_environment() {
    let environment = [
        ("PGHOST", "a,b"),
        ("PGPORT", "6000"),
        ("PGUSER", "u"),
        ("PGPASSWORD", "secret"),
        ("PGDATABASE", "d"),
        ("PGSSLMODE", "require"),
        ("PGTARGETSESSIONATTRS", "primary"),
        ("PGCONNECT_TIMEOUT", "0"),
        ("USER", "me"),
    ];
    let address = parse_in("postgresql://", &environment).unwrap();
    assert_eq!(address.hosts, [tcp("a", 6000), tcp("b", 6000)]);
    assert_eq!((address.user.as_str(), password(&address), address.database.as_str()), ("u", Some("secret"), "d"));
    assert_eq!((address.ssl.mode, address.target), (SslMode::Require, TargetSession::Primary));
    assert_eq!(address.connect_timeout, None);
    let address = parse_in("postgresql://x:y@z:1/w?sslmode=disable", &environment).unwrap();
    assert_eq!(address.hosts, [tcp("z", 1)]);
    assert_eq!((address.user.as_str(), password(&address), address.database.as_str()), ("x", Some("y"), "w"));
}

#[test]
fn hosts_are_names_addresses_and_folders() {
    assert_eq!(parse("postgres://%2Fvar%2Frun:99/db").hosts, [socket("/var/run", 99)]);
    assert_eq!(parse("postgres:///db?host=/a,b&port=1,2").hosts, [socket("/a", 1), tcp("b", 2)]);
    assert_eq!(parse("postgres:///db?host=/a,b&port=3").hosts, [socket("/a", 3), tcp("b", 3)]);
    assert_eq!(parse("postgres://h1,h2:2").hosts, [tcp("h1", 5432), tcp("h2", 2)]);
    assert_eq!(parse("postgres://?host=h&user=a").user, "a");
    assert_eq!(password(&parse("postgres://u:what?@h")), Some("what?"));
    assert_eq!(parse("postgres://[fe80::1]/").hosts, [tcp("fe80::1", 5432)]);
}

#[test]
fn shown_without_secrets_and_in_a_form_that_can_be_read() {
    let address = parse("postgres://me:geheim@h1:1,%2Fvar%2Frun:2/a%20b?sslmode=require");
    assert_eq!(address.to_string(), "postgresql://me@h1:1,%2Fvar%2Frun:2/a%20b");
    assert_eq!(format!("{address:?}"), r#"Address("postgresql://me@h1:1,%2Fvar%2Frun:2/a%20b")"#);
    let again = parse(&address.to_string());
    assert_eq!((again.hosts, again.database), (address.hosts, address.database));
}

#[test]
fn what_cannot_be_is_refused_and_no_password_is_told() {
    for (text, told) in [
        ("mongodb://h", "does not begin with postgresql://"),
        ("postgres://u:ge%zzheim@h", "the password in the connection string is not percent-encoded"),
        ("postgres://u:ge%00heim@h", "the password in the connection string is not percent-encoded"),
        ("postgres://u:%ffgeheim@h", "the password in the connection string is not percent-encoded"),
        ("postgres://u:geheim/x@h/db", "has an @ or a / where none can be"),
        ("postgres://u:geheim/x@h", "has an @ or a / where none can be"),
        ("postgres://u:gehe@im@h", "has an @ or a / where none can be"),
        ("postgres://u:geheim", "a port in the connection string is not a number"),
        ("postgres://h:0", "a port"),
        ("postgres://h:70000", "a port"),
        ("postgres://[::1", "lacks its ]"),
        ("postgres://[::1]x", "a port"),
        ("postgres://h?ge-heim=1", "the parameter of the connection string is not known"),
        ("postgres://h/?ge@heim=1", "the parameter of the connection string is not known"),
        ("postgres://h?geheim", "not of the form name=value"),
        ("postgres://h?password=a=geheim", "not of the form name=value"),
        ("postgres://h?hostaddr=1.2.3.4", "the parameter hostaddr of the connection string is not known"),
        ("postgres://h?replication=true", "the parameter replication of the connection string is not known"),
        ("postgres://h?gssencmode=require", "the parameter gssencmode"),
        ("postgres://h?sslmode=geheim", "sslmode cannot be what"),
        ("postgres://h?connect_timeout=soon", "connect_timeout is not a number of seconds"),
        ("postgres:///?host=a,b,c&port=1,2", "has 3 hosts and 2 ports"),
        ("postgres://h?sslrootcert=system&sslmode=require", "needs sslmode=verify-full"),
    ] {
        match parse_in(text, &[("USER", "me")]) {
            Err(Error::Address { what, hint }) => {
                assert!(what.contains(told), "{text}: {what}");
                assert!(!format!("{what} {hint}").contains("geheim"), "{text}: {what}: {hint}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let Err(Error::Address { what, .. }) = parse_in("postgres://h", &[]) else { panic!("a user from nowhere") };
    assert_eq!(what, "the connection string names no user");
}

#[test]
fn what_means_nothing_here_is_taken() {
    assert_eq!(parse("postgres://h?ssl=true").ssl.mode, SslMode::Require);
    assert_eq!(parse("postgres://h?gssencmode=disable").ssl.mode, SslMode::Prefer);
    assert_eq!(parse("postgres://h?sslrootcert=system").ssl.mode, SslMode::VerifyFull);
    assert_eq!(parse("postgres://h?connect_timeout=1").connect_timeout, Some(Duration::from_secs(2)));
}

#[test]
fn the_password_file() {
    let text = "# mine\nh:1:d:u:first\n*:*:replication:u:wal:\\:with\\\\colons\nlocalhost:*:*:*:here\n\\*:*:*:*:star\n\
                short:1:d\n[::1]:*:*:*:no\n\\:\\:1:*:*:u:six\n";
    let find = |host: &Host, database: &str| {
        passfile::find(text, host, database, "u").map(|password| password.expose_secret().to_owned())
    };
    assert_eq!(find(&tcp("h", 1), "d").as_deref(), Some("first"));
    assert_eq!(find(&tcp("h", 2), "d"), None);
    assert_eq!(find(&tcp("h", 2), "replication").as_deref(), Some("wal::with\\colons"));
    assert_eq!(find(&socket("/tmp", 7), "x").as_deref(), Some("here"));
    assert_eq!(find(&socket("/elsewhere", 7), "x"), None);
    assert_eq!(find(&tcp("*", 7), "x").as_deref(), Some("star"));
    assert_eq!(find(&tcp("::1", 7), "x").as_deref(), Some("six"));
}
