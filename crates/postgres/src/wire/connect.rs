//! The right one of several servers, and the right way to it.

use std::io;
use std::time::Duration;

use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::channel::{Channel, Duplex};
use super::connection::Connection;
use super::error::{Error, Result};
use super::refusal::code;
use super::socket::Socket;
use super::startup::{Credentials, Replication, start};
use super::tls::{self, Tls};
use super::verifier::end_point;
use crate::address::{Address, ChannelBinding, Host, Seat, SslMode, TargetSession};

/// A peer that is gone without a word is noticed within a minute: streams of WAL may be silent for hours.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;
/// The same for what was sent and is not acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Connects to the first server of an address that will do.
pub(super) async fn connect(address: &Address, replication: Replication) -> Result<Connection> {
    let tls = match address.ssl.mode {
        SslMode::Disable => None,
        _ if address.hosts.iter().all(|host| host.socket().is_some()) => None,
        _ => Some(Tls::new(address).await?),
    };
    let rounds = match address.target {
        TargetSession::PreferStandby => [Some(TargetSession::Standby), Some(TargetSession::Any)],
        target => [Some(target), None],
    };
    let mut failures = Vec::new();
    for target in rounds.into_iter().flatten() {
        failures.clear();
        for host in &address.hosts {
            match try_host(address, host, tls.as_ref(), replication, target).await {
                Ok(connection) => return Ok(connection),
                // As libpq: who is not let in by one server need not try the next.
                Err(error) if !another_may_do(&error) => return Err(error),
                Err(error) => failures.push(error),
            }
        }
    }
    let several = failures.len() > 1;
    match failures.pop() {
        Some(error) if !several => Err(error),
        last => {
            let all = failures.iter().chain(&last).map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(Error::Unreachable {
                what: format!("none of the {} servers will do: {all}", address.hosts.len()),
                hint: "check the hosts and target_session_attrs in the connection string, and that the servers run"
                    .to_owned(),
                source: None,
            })
        }
    }
}

fn another_may_do(error: &Error) -> bool {
    matches!(error, Error::Unreachable { .. }) || error.sqlstate() == Some(code::CANNOT_CONNECT_NOW)
}

async fn try_host(
    address: &Address,
    host: &Host,
    tls: Option<&Tls>,
    replication: Replication,
    target: TargetSession,
) -> Result<Connection> {
    let doing = format!("connecting to {host}");
    let connection = async {
        let mut connection = enter(address, host, tls, replication, &doing).await?;
        match suits(&mut connection, target).await? {
            true => Ok(connection),
            false => {
                connection.close().await;
                Err(Error::Unreachable {
                    what: format!("the server {host} is not of the role that target_session_attrs asks for"),
                    hint: "name the other servers too, or leave target_session_attrs out".to_owned(),
                    source: None,
                })
            }
        }
    };
    let Some(limit) = address.connect_timeout else { return connection.await };
    tokio::time::timeout(limit, connection).await.unwrap_or_else(|_| {
        Err(Error::Unreachable {
            what: format!("no answer within {} s while {doing}", limit.as_secs()),
            hint: "check host and port, the network, and that the server is not overloaded (connect_timeout)"
                .to_owned(),
            source: Some(io::ErrorKind::TimedOut.into()),
        })
    })
}

/// One attempt with TLS or without, or both, as `sslmode` says.
async fn enter(
    address: &Address,
    host: &Host,
    tls: Option<&Tls>,
    replication: Replication,
    doing: &str,
) -> Result<Connection> {
    // As libpq: there is no TLS on unix sockets, whatever sslmode says.
    let tls = tls.filter(|_| host.socket().is_none());
    let attempts = match (tls, address.ssl.mode) {
        (None, _) => [Some(None), None],
        (Some(tls), SslMode::Allow) => [Some(None), Some(Some(tls))],
        (Some(tls), SslMode::Prefer) => [Some(Some(tls)), Some(None)],
        (Some(tls), _) => [Some(Some(tls)), None],
    };
    let mut first_failure = None;
    for tls in attempts.into_iter().flatten() {
        match attempt(address, host, tls, replication, doing).await {
            Ok(connection) => return Ok(connection),
            Err(failure) => match first_failure {
                // The way that was preferred tells why.
                Some(first) if !is_about_encryption(&failure) => return Err(prefer_told(first, failure)),
                Some(first) => return Err(first),
                None if is_about_encryption(&failure) => first_failure = Some(failure),
                None => return Err(failure),
            },
        }
    }
    Err(first_failure.unwrap_or_else(|| Error::garbled(doing, "no attempt was made")))
}

/// Of two failures the one that got further: a refusal of the server rather than a handshake that failed.
fn prefer_told(first: Error, second: Error) -> Error {
    if first.sqlstate().is_some() && second.sqlstate().is_none() { first } else { second }
}

/// Whether the other of TLS and no TLS may do better: a handshake that failed, or no line in `pg_hba.conf` for it.
fn is_about_encryption(error: &Error) -> bool {
    match error {
        Error::Unreachable { source: Some(source), .. } => {
            source.get_ref().is_some_and(|source| source.is::<rustls::Error>())
        }
        _ => error.sqlstate() == Some(code::INVALID_AUTHORIZATION),
    }
}

async fn attempt(
    address: &Address,
    host: &Host,
    tls: Option<&Tls>,
    replication: Replication,
    doing: &str,
) -> Result<Connection> {
    // pg_basebackup and pg_receivewal look up their passwords so; the documentation of the file says it.
    let database = match replication {
        Replication::Physical => "replication",
        Replication::No | Replication::Database => &address.database,
    };
    let password = address.password_for(host, database).await;
    let mut credentials = Credentials { password, encrypted: false, end_point: None };
    let socket: Box<dyn Duplex> = match (&host.seat, tls) {
        (Seat::Socket(_), _) => Box::new(unix(host, doing).await?),
        (Seat::Tcp(name), None) => Box::new(tcp(name, host.port, doing).await?),
        (Seat::Tcp(name), Some(tls)) => {
            let mut socket = tcp(name, host.port, doing).await?;
            if accepts_tls(&mut socket, doing).await? {
                let socket = tls.connect(socket, name, doing).await?;
                credentials.encrypted = true;
                if address.channel_binding != ChannelBinding::Disable {
                    let chain = socket.get_ref().1.peer_certificates();
                    credentials.end_point = chain.and_then(|chain| end_point(chain.first()?));
                }
                Box::new(socket)
            } else if address.ssl.mode == SslMode::Prefer {
                Box::new(socket)
            } else {
                return Err(Error::Unreachable {
                    what: format!("the server {host} does not speak TLS, and sslmode asks for it"),
                    hint: "set ssl = on with a certificate on the server, or use sslmode=prefer within a network that \
                           you trust"
                        .to_owned(),
                    source: None,
                });
            }
        }
    };
    let mut channel = Channel::new(socket);
    match start(&mut channel, address, replication, &credentials, doing).await {
        Ok(()) => Ok(Connection::new(channel, host.clone(), replication, credentials.encrypted)),
        // With TLS 1.3 a server looks at our certificate after we have taken the handshake for done.
        Err(Error::Unreachable { source: Some(source), .. }) if credentials.encrypted => {
            Err(tls::failed(doing, source))
        }
        Err(error) => Err(error),
    }
}

async fn unix(host: &Host, doing: &str) -> Result<Socket<UnixStream>> {
    let file = host.socket().unwrap_or_default();
    UnixStream::connect(&file).await.map(Socket::Watched).map_err(|error| Error::Unreachable {
        what: format!("no server answers while {doing}: {}: {error}", file.display()),
        hint: "check the folder and the port, and that the server runs on this machine (unix_socket_directories)"
            .to_owned(),
        source: Some(error),
    })
}

async fn tcp(name: &str, port: u16, doing: &str) -> Result<Socket<TcpStream>> {
    let unreachable = |error: io::Error, hint: &str| Error::Unreachable {
        what: format!("no server answers while {doing}: {error}"),
        hint: hint.to_owned(),
        source: Some(error),
    };
    let places = tokio::net::lookup_host((name, port)).await;
    let places = places.map_err(|error| unreachable(error, "check the host's name in the connection string"))?;
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for place in places {
        match TcpStream::connect(place).await {
            Ok(socket) => {
                let broken = |error| Error::broken(doing, error);
                socket.set_nodelay(true).map_err(broken)?;
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
                let options = SockRef::from(&socket);
                options.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_TRIES)).map_err(broken)?;
                #[cfg(target_os = "linux")]
                options.set_tcp_user_timeout(Some(UNACKNOWLEDGED)).map_err(broken)?;
                return Ok(Socket::Watched(socket));
            }
            Err(error) => failure = error,
        }
    }
    Err(unreachable(
        failure,
        "check host and port, the network, listen_addresses on the server, and that it runs there",
    ))
}

/// Asks for TLS ("SSL Session Encryption" in protocol-flow). Exactly one byte is read: what came with it would
/// have been sent by somebody in between (CVE-2021-23222), and makes the handshake fail.
async fn accepts_tls(socket: &mut Socket<TcpStream>, doing: &str) -> Result<bool> {
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    let broken = |error| Error::broken(doing, error);
    socket.write_all(&request).await.map_err(broken)?;
    match socket.read_u8().await.map_err(broken)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(Error::garbled(doing, "it does not know whether it speaks TLS")),
    }
}

/// Whether the server has the role that is asked for.
async fn suits(connection: &mut Connection, target: TargetSession) -> Result<bool> {
    Ok(match target {
        TargetSession::Any => true,
        TargetSession::ReadWrite => !read_only(connection).await?,
        TargetSession::ReadOnly => read_only(connection).await?,
        TargetSession::Primary => !connection.in_recovery().await?,
        TargetSession::Standby | TargetSession::PreferStandby => connection.in_recovery().await?,
    })
}

/// As libpq: from 14 on servers report both that make a session read-only.
async fn read_only(connection: &mut Connection) -> Result<bool> {
    match (connection.parameter("default_transaction_read_only"), connection.parameter("in_hot_standby")) {
        (Some(default), Some(standby)) => Ok(default == "on" || standby == "on"),
        _ => Ok(connection.show("transaction_read_only").await? == "on"),
    }
}
