//! From a socket to a session: <https://www.postgresql.org/docs/current/protocol-flow.html>, "Start-up".

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret as _, SecretString};

use super::channel::{Channel, Incoming};
use super::error::{Error, Result, one_line};
use crate::address::{Address, ChannelBinding};

/// What a session is for: the start-up parameter `replication`
/// (<https://www.postgresql.org/docs/current/protocol-replication.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// Statements only.
    No,
    /// `true`: commands for physical replication, and no SQL but `SHOW`. Belongs to no database; the line in
    /// `pg_hba.conf` that lets it in has `replication` as its database.
    Physical,
    /// `database`: commands for replication, and SQL too.
    Database,
}

/// What the connection has to offer for authentication.
pub(super) struct Credentials {
    pub(super) password: Option<SecretString>,
    /// Whether the socket is encrypted.
    pub(super) encrypted: bool,
    /// What a password can be bound to (`tls-server-end-point`).
    pub(super) end_point: Option<Vec<u8>>,
}

/// Tells who we are, and returns when the server is ready for the first command.
pub(super) async fn start(
    channel: &mut Channel,
    address: &Address,
    replication: Replication,
    credentials: &Credentials,
    doing: &str,
) -> Result<()> {
    let mut parameters = vec![
        ("user", address.user.as_str()),
        ("application_name", &address.application_name),
        ("client_encoding", "UTF8"),
    ];
    match replication {
        Replication::No => parameters.push(("database", &address.database)),
        Replication::Physical => parameters.push(("replication", "true")),
        Replication::Database => {
            parameters.extend([("database", address.database.as_str()), ("replication", "database")])
        }
    }
    if let Some(options) = &address.options {
        parameters.push(("options", options));
    }
    channel.queue(doing, |buffer| frontend::startup_message(parameters.iter().copied(), buffer))?;
    channel.flush(doing).await?;
    authenticate(channel, address, credentials, doing).await?;
    channel.trust();
    loop {
        match next(channel, doing).await? {
            // Nothing is ever cancelled by it: who has enough of a connection drops it.
            Message::BackendKeyData(_) => {}
            Message::ReadyForQuery(_) => return Ok(()),
            _ => return Err(Error::garbled(doing, "a message out of place after authentication")),
        }
    }
}

async fn next(channel: &mut Channel, doing: &str) -> Result<Message> {
    match channel.receive(doing).await? {
        Incoming::Message(message) => Ok(message),
        Incoming::Failed(server) => Err(Error::refused(doing, server)),
        Incoming::CopyData(_) | Incoming::CopyBoth => Err(Error::garbled(doing, "data before there is a session")),
    }
}

async fn authenticate(channel: &mut Channel, address: &Address, credentials: &Credentials, doing: &str) -> Result<()> {
    let password = || {
        let password = credentials.password.as_ref().map(|password| password.expose_secret().as_bytes());
        password.ok_or_else(|| Error::Authentication {
            what: format!("the server wants a password for {} ({doing})", address.user),
            hint: "put it into the connection string, into PGPASSWORD, or into ~/.pgpass (chmod 600)".to_owned(),
        })
    };
    let must_bind = address.channel_binding == ChannelBinding::Require;
    let unbound = |how: &str| match must_bind {
        true => Err(Error::Authentication {
            what: format!("the server asks for {how}, which binds no password to its certificate ({doing})"),
            hint: "channel_binding=require needs TLS and password_encryption = scram-sha-256 on the server".to_owned(),
        }),
        false => Ok(()),
    };
    loop {
        match next(channel, doing).await? {
            Message::AuthenticationOk => return unbound("no password").map(drop),
            Message::AuthenticationCleartextPassword => {
                unbound("the plain password")?;
                let password = password()?;
                channel.queue(doing, |buffer| frontend::password_message(password, buffer))?;
            }
            Message::AuthenticationMd5Password(body) => {
                unbound("a password by MD5")?;
                let hash = md5_hash(address.user.as_bytes(), password()?, body.salt());
                channel.queue(doing, |buffer| frontend::password_message(hash.as_bytes(), buffer))?;
            }
            Message::AuthenticationSasl(body) => {
                let (mechanism, binding) = mechanism(&body, address.channel_binding, credentials, doing)?;
                scram(channel, password()?, mechanism, binding, doing).await?;
                // A server that has proven to know the password has nothing more to ask.
                return match next(channel, doing).await? {
                    Message::AuthenticationOk => Ok(()),
                    _ => Err(Error::garbled(doing, "another request for authentication after SCRAM")),
                };
            }
            Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
                return Err(Error::Unsupported {
                    what: format!("the server wants Kerberos for {} ({doing})", address.user),
                    hint: "let this user in by scram-sha-256 or a certificate: see pg_hba.conf on the server"
                        .to_owned(),
                });
            }
            _ => return Err(Error::garbled(doing, "a message out of place during authentication")),
        }
        channel.flush(doing).await?;
    }
}

/// Which of the mechanisms that the server offers, and with which binding (RFC 5802, section 6: who could bind, and was not
/// offered it, says so, so that nobody in between can take the offer away).
fn mechanism(
    offered: &AuthenticationSaslBody,
    wanted: ChannelBinding,
    credentials: &Credentials,
    doing: &str,
) -> Result<(&'static str, sasl::ChannelBinding)> {
    let garbled = |error| Error::garbled(doing, error);
    let (mut plain, mut plus) = (false, false);
    let mut offers = offered.mechanisms();
    while let Some(offer) = offers.next().map_err(garbled)? {
        plain |= offer == SCRAM_SHA_256;
        plus |= offer == SCRAM_SHA_256_PLUS;
    }
    let end_point = credentials.end_point.as_ref().filter(|_| wanted != ChannelBinding::Disable);
    match end_point {
        Some(hash) if plus => Ok((SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone()))),
        _ if wanted == ChannelBinding::Require => Err(Error::Authentication {
            what: format!("the password cannot be bound to the server's certificate ({doing})"),
            hint: match credentials.encrypted {
                true => {
                    "the server is older than 11, or its certificate implies no hash, as those of Ed25519".to_owned()
                }
                false => "channel_binding=require needs sslmode=require or stricter".to_owned(),
            },
        }),
        Some(_) if plain => Ok((SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None if plain => Ok((SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
        _ => Err(Error::Unsupported {
            what: format!("the server offers no mechanism for passwords that is known here ({doing})"),
            hint: "let this user in by scram-sha-256: see pg_hba.conf on the server".to_owned(),
        }),
    }
}

/// <https://www.postgresql.org/docs/current/sasl-authentication.html>
async fn scram(
    channel: &mut Channel,
    password: &[u8],
    mechanism: &str,
    binding: sasl::ChannelBinding,
    doing: &str,
) -> Result<()> {
    let mut scram = ScramSha256::new(password, binding);
    channel.queue(doing, |buffer| frontend::sasl_initial_response(mechanism, scram.message(), buffer))?;
    channel.flush(doing).await?;
    let Message::AuthenticationSaslContinue(body) = next(channel, doing).await? else {
        return Err(Error::garbled(doing, "SCRAM does not go on"));
    };
    scram.update(body.data()).map_err(|error| Error::garbled(doing, error))?;
    channel.queue(doing, |buffer| frontend::sasl_response(scram.message(), buffer))?;
    channel.flush(doing).await?;
    let Message::AuthenticationSaslFinal(body) = next(channel, doing).await? else {
        return Err(Error::garbled(doing, "SCRAM does not end"));
    };
    scram.finish(body.data()).map_err(|error| Error::Authentication {
        what: format!("the server does not know the password itself while {doing}: {}", one_line(&error.to_string())),
        hint: "somebody else may answer there: use sslmode=verify-full".to_owned(),
    })
}
