//! Servers that are scripted: what the servers at hand do not do.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::channel::Channel;
use super::startup::{Credentials, start};
use super::*;
use crate::address::{Address, Host, Seat};
use crate::{Lsn, TimelineId};

/// What a server sends, message by message.
#[derive(Default)]
struct Script(BytesMut);

impl Script {
    fn message(mut self, tag: u8, body: &[u8]) -> Self {
        self.0.put_u8(tag);
        self.0.put_u32(u32::try_from(body.len() + 4).unwrap());
        self.0.put_slice(body);
        self
    }

    fn version(self, version: &str) -> Self {
        self.message(b'S', format!("server_version\0{version}\0").as_bytes())
    }

    fn rows(mut self, columns: &[&str], rows: &[&[Option<&str>]]) -> Self {
        let mut body = BytesMut::new();
        body.put_u16(u16::try_from(columns.len()).unwrap());
        for column in columns {
            body.put_slice(column.as_bytes());
            body.put_slice(&[0; 1 + 4 + 2 + 4 + 2 + 4 + 2]);
        }
        self = self.message(b'T', &body);
        for row in rows {
            let mut body = BytesMut::new();
            body.put_u16(u16::try_from(row.len()).unwrap());
            for value in *row {
                match value {
                    Some(text) => {
                        body.put_u32(u32::try_from(text.len()).unwrap());
                        body.put_slice(text.as_bytes());
                    }
                    None => body.put_i32(-1),
                }
            }
            self = self.message(b'D', &body);
        }
        self.message(b'C', b"SELECT\0")
    }

    fn copy_out(self) -> Self {
        self.message(b'H', b"\0\0\0")
    }

    fn data(self, data: &[u8]) -> Self {
        self.message(b'd', data)
    }

    fn copy_done(self) -> Self {
        self.message(b'c', b"")
    }

    fn ready(self) -> Self {
        self.message(b'Z', b"I")
    }

    fn error(self, severity: &str, code: &str, message: &str) -> Self {
        self.message(b'E', format!("S{severity}\0V{severity}\0C{code}\0M{message}\0\0").as_bytes())
    }
}

fn host() -> Host {
    Host { seat: Seat::Tcp("scripted".to_owned()), port: 5432 }
}

/// A session with a server of that version, which says what the script has, and says no more if it is gone.
async fn session(version: &str, script: Script, gone: bool) -> (Connection, DuplexStream) {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let hello = Script::default().version(version).message(b'I', b"").ready();
    theirs.write_all(&hello.0).await.unwrap();
    theirs.write_all(&script.0).await.unwrap();
    if gone {
        theirs.shutdown().await.unwrap();
    }
    let mut channel = Channel::new(Box::new(ours));
    channel.trust();
    let mut connection = Connection::new(channel, host(), Replication::Physical, false);
    assert!(connection.query("", "greeting").await.unwrap().is_empty());
    (connection, theirs)
}

/// A stream over which these pieces come, each with how far the log of the server goes, and nothing more; and the other end.
pub(crate) async fn streaming(pieces: &[(Lsn, &[u8], Lsn)]) -> (WalStream, DuplexStream) {
    let mut script = Script::default().message(b'W', b"\0\0\0");
    for (start, bytes, end) in pieces {
        script = script.data(&[b"w", &start.0.to_be_bytes()[..], &end.0.to_be_bytes(), &[0; 8], bytes].concat());
    }
    let (connection, server) = session("15.4", script, false).await;
    (connection.start_replication(Some("s"), Lsn(1), 1).await.unwrap(), server)
}

const POSITION: [&str; 2] = ["recptr", "tli"];
const TABLESPACES: [&str; 3] = ["spcoid", "spclocation", "size"];

#[tokio::test]
async fn a_backup_before_15_is_a_copy_for_each_archive() {
    let script = Script::default()
        .rows(&POSITION, &[&[Some("0/2000028"), Some("1")]])
        .rows(&TABLESPACES, &[&[Some("16385"), Some("/fast disk"), Some("7")], &[None, None, Some("31000")]])
        .copy_out()
        .data(b"one")
        .data(b"two")
        .copy_done()
        .copy_out()
        .data(b"base")
        .copy_done()
        .copy_out()
        .data(b"{}")
        .copy_done()
        .rows(&POSITION, &[&[Some("0/2000100"), Some("1")]])
        .message(b'C', b"BASE_BACKUP\0")
        .ready();
    let (connection, mut server) = session("13.11 (Debian 13.11-1)", script, false).await;
    let mut backup = connection.base_backup(&BackupOptions::default()).await.unwrap();
    assert_eq!(backup.start(), BackupPosition { lsn: Lsn(0x2_000_028), timeline: 1 });
    assert_eq!(
        backup.tablespaces(),
        [
            Tablespace { oid: Some(16385), location: Some("/fast disk".to_owned()), kib: Some(7) },
            Tablespace { oid: None, location: None, kib: Some(31000) },
        ]
    );
    let mut events = Vec::new();
    while let Some(event) = backup.next().await.unwrap() {
        events.push(event);
    }
    let archive = |name: &str, tablespace: Option<&str>| BackupEvent::Archive {
        name: name.to_owned(),
        tablespace: tablespace.map(str::to_owned),
    };
    let data = |text: &'static str| BackupEvent::Data(text.into());
    assert_eq!(
        events,
        [
            archive("16385.tar", Some("/fast disk")),
            data("one"),
            data("two"),
            archive("base.tar", None),
            data("base"),
            BackupEvent::Manifest,
            data("{}"),
        ]
    );
    let (end, _) = backup.finish().unwrap();
    assert_eq!(end, BackupPosition { lsn: Lsn(0x2_000_100), timeline: 1 });
    let mut asked = vec![0; 1000];
    let length = server.read(&mut asked).await.unwrap();
    let asked = String::from_utf8_lossy(asked.get(..length).unwrap()).into_owned();
    let command =
        "BASE_BACKUP LABEL 'hindsight' PROGRESS FAST NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'SHA256'";
    assert!(asked.contains(command), "{asked:?}");

    let compression = Some(Compression { method: CompressionMethod::Zstd, level: None, workers: None });
    let (connection, _server) = session("14.8", Script::default(), false).await;
    let error = connection.base_backup(&BackupOptions { compression, ..BackupOptions::default() }).await.unwrap_err();
    assert_eq!(error.to_string(), "a server before PostgreSQL 15 neither compresses backups nor sends changes alone");
}

#[tokio::test]
async fn damage_that_is_told_after_the_last_piece_of_a_backup_is_an_error() {
    let script = Script::default()
        .rows(&POSITION, &[&[Some("0/2000028"), Some("1")]])
        .rows(&TABLESPACES, &[&[None, None, None]])
        .copy_out()
        .data(b"nbase.tar\0\0")
        .data(b"dbase")
        .data(b"p\0\0\0\0\0\0\0\x04")
        .copy_done()
        .rows(&POSITION, &[&[Some("0/2000100"), Some("1")]])
        .error("ERROR", "XX001", "checksum verification failure during base backup")
        .ready();
    let (connection, _server) = session("15.4", script, false).await;
    let mut backup = connection.base_backup(&BackupOptions::default()).await.unwrap();
    assert!(matches!(backup.next().await, Ok(Some(BackupEvent::Archive { tablespace: None, .. }))));
    assert_eq!(backup.next().await.unwrap(), Some(BackupEvent::Data("base".into())));
    assert_eq!(backup.next().await.unwrap(), Some(BackupEvent::Progress(4)));
    let error = backup.next().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("XX001"));
    assert!(backup.next().await.is_err());
    assert!(backup.finish().is_err());
}

#[tokio::test]
async fn a_backup_that_makes_no_sense_is_an_error() {
    for piece in [&b""[..], b"p\0", b"nbase.tar\0", b"nbase.tar", b"?x", b"n\xff\0\0"] {
        let script = Script::default()
            .rows(&POSITION, &[&[Some("0/2000028"), Some("1")]])
            .rows(&TABLESPACES, &[&[None, None, None]])
            .copy_out()
            .data(piece);
        let (connection, _server) = session("16.0", script, false).await;
        let mut backup = connection.base_backup(&BackupOptions::default()).await.unwrap();
        assert!(matches!(backup.next().await, Err(Error::Garbled { .. })), "{piece:?}");
    }
}

fn switch(script: Script, timeline: TimelineId) -> Script {
    let columns = ["next_tli", "next_tli_startpos"];
    script
        .rows(&columns, &[&[Some(&timeline.to_string()), Some("0/5000000")]])
        .message(b'C', b"START_STREAMING\0")
        .ready()
}

#[tokio::test]
async fn a_timeline_that_ends_where_it_is_asked_for_is_no_copy() {
    let (connection, _server) = session("15.4", switch(Script::default(), 4), false).await;
    let mut stream = connection.start_replication(None, Lsn(0x5_000_000), 3).await.unwrap();
    let end = TimelineEnd { next: 4, start: Lsn(0x5_000_000) };
    assert_eq!(stream.next().await.unwrap(), WalEvent::TimelineEnd(end));
    assert_eq!(stream.next().await.unwrap(), WalEvent::TimelineEnd(end));
    stream.finish().await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_timeline_survives_being_given_up_in_between() {
    let script = Script::default().message(b'W', b"\0\0\0").copy_done();
    let (connection, mut server) = session("15.4", script, false).await;
    let mut stream = connection.start_replication(Some("s"), Lsn(0x4_000_000), 3).await.unwrap();
    let patience = std::time::Duration::from_millis(50);
    assert!(tokio::time::timeout(patience, stream.next()).await.is_err());
    let mut rest = switch(Script::default(), 4).0;
    let half = rest.split_to(rest.len() / 2);
    server.write_all(&half).await.unwrap();
    assert!(tokio::time::timeout(patience, stream.next()).await.is_err());
    server.write_all(&rest).await.unwrap();
    assert!(matches!(stream.next().await, Ok(WalEvent::TimelineEnd(TimelineEnd { next: 4, .. }))));
    stream.send_status(StandbyStatus::default()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_a_stream_is_an_error() {
    let streaming = || Script::default().message(b'W', b"\0\0\0").data(b"k\0\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0\x01");
    for (script, told) in [
        (streaming().message(b'C', b"COPY 0\0"), "the server shut down while following the log"),
        (streaming(), "the connection broke while following the log: the server has closed it"),
        (
            streaming().error("FATAL", "57P01", "terminating walsender process"),
            "the server ended the connection while following the log: terminating walsender process",
        ),
        (streaming().data(b"w\0"), "the server's answer is not understood while following the log"),
        (streaming().data(b"k\0"), "the server's answer is not understood while following the log"),
        (streaming().data(b""), "the server's answer is not understood while following the log"),
    ] {
        let (connection, _server) = session("15.4", script, true).await;
        let mut stream = connection.start_replication(Some("s"), Lsn(1), 1).await.unwrap();
        let WalEvent::Keepalive(keepalive) = stream.next().await.unwrap() else { panic!("no sign of life") };
        assert!(keepalive.reply_requested && keepalive.end == Lsn(0x5_000_000));
        assert_eq!(keepalive.sent_at.to_string(), "2000-01-01T00:00:00Z");
        let error = stream.next().await.unwrap_err();
        assert!(error.to_string().starts_with(told), "{error}");
        assert!(error.hint().is_some());
        assert!(stream.finish().await.is_err());
    }
}

#[tokio::test]
async fn a_refusal_ends_a_command_and_not_the_session() {
    let script = Script::default()
        .error("ERROR", "42601", "syntax error")
        .ready()
        .rows(&["a"], &[&[Some("1")], &[None]])
        .ready()
        .error("FATAL", "57P01", "terminating connection");
    let (mut connection, _server) = session("15.4", script, true).await;
    assert_eq!(connection.query("nonsense", "trying").await.unwrap_err().sqlstate(), Some("42601"));
    let rows = connection.query("SELECT", "trying").await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get("a")).collect::<Vec<_>>(), [Some("1"), None]);
    let error = connection.query("SELECT", "trying").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"));
    let error = connection.query("SELECT", "trying").await.unwrap_err();
    assert!(error.to_string().contains("the session was given up"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_gone_has_said_why() {
    let script = Script::default().error("FATAL", "57P05", "terminating connection due to idle-session timeout");
    let (mut connection, server) = session("15.4", script, true).await;
    drop(server);
    let error = connection.query("SELECT", "asking").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P05"));
    assert!(error.hint().is_some());
    let (mut connection, server) = session("15.4", Script::default(), true).await;
    drop(server);
    let error = connection.query("SELECT", "asking").await.unwrap_err();
    assert!(error.to_string().starts_with("the connection broke while asking: "), "{error}");
}

async fn authenticated(script: Script) -> Result<()> {
    let address = Address::parse("postgresql://me:secret@scripted/db?application_name=x").unwrap();
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    theirs.write_all(&script.0).await.unwrap();
    let mut channel = Channel::new(Box::new(ours));
    let password = address.password_for(&host(), "db").await;
    let credentials = Credentials { password, encrypted: false, end_point: None };
    let started = start(&mut channel, &address, Replication::No, &credentials, "connecting");
    tokio::time::timeout(std::time::Duration::from_millis(500), started).await.unwrap()
}

#[tokio::test]
async fn who_does_not_prove_to_know_the_password_is_no_server() {
    let sasl = || Script::default().message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    for (script, told) in [
        (sasl().message(b'R', b"\0\0\0\0").ready(), "SCRAM does not go on"),
        (sasl().message(b'R', b"\0\0\0\x0br=nonce,s=c2FsdA==,i=4096"), "invalid nonce"),
        (sasl().message(b'R', b"\0\0\0\x0br="), "while connecting"),
        (Script::default().message(b'R', b"\0\0\0\x0aOTHER\0\0"), "no mechanism for passwords that is known"),
        (Script::default().message(b'R', b"\0\0\0\x07"), "the server wants Kerberos"),
        (Script::default().message(b'R', b"\0\0\0\x63"), "unknown authentication tag"),
        (Script::default().message(b'D', b"\0\0"), "out of place during authentication"),
        (Script::default().data(b"x"), "data before there is a session"),
    ] {
        let error = authenticated(script).await.unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
    }
    authenticated(Script::default().message(b'R', b"\0\0\0\0").message(b'K', &[0; 8]).ready()).await.unwrap();
}
