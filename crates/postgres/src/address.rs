//! Where a server is, and as whom to go there: connection strings as libpq reads them
//! (<https://www.postgresql.org/docs/current/libpq-connect.html>).

mod parse;
mod passfile;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::SecretString;

use crate::wire::Result;

/// What a connection string says, completed by the environment.
///
/// Shown, also for debugging, without any secret: `postgresql://user@host:5432/database`.
#[derive(Clone)]
pub struct Address {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) password: Option<SecretString>,
    pub(crate) database: String,
    pub(crate) passfile: Option<PathBuf>,
    pub(crate) ssl: Ssl,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) target: TargetSession,
    pub(crate) application_name: String,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) options: Option<String>,
}

/// One of the servers to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Where it is.
    pub seat: Seat,
    /// Its port; for a socket, a part of the name of its file.
    pub port: u16,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// A name or an IP address.
    Tcp(String),
    /// The folder of a unix socket.
    Socket(PathBuf),
}

/// `sslmode`: whether to encrypt, and what to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server does not let us in without.
    Allow,
    /// If the server can.
    Prefer,
    /// Always; the server's certificate is checked only if there are root certificates for it.
    Require,
    /// Always, with a certificate that one of the root certificates vouches for.
    VerifyCa,
    /// The same, and it is for the name that was connected to.
    VerifyFull,
}

/// `sslrootcert`: who vouches for a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// Those in this file (PEM).
    File(PathBuf),
    /// Those that the system trusts.
    System,
}

/// `channel_binding`: whether a password is bound to the certificate that the server has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where both sides can.
    Prefer,
    /// Or there is no connection.
    Require,
}

/// `target_session_attrs`: which of several servers will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    /// The first that answers.
    Any,
    /// One that takes writes.
    ReadWrite,
    /// One that does not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is.
    Standby,
    /// One that is, else any.
    PreferStandby,
}

/// All about TLS.
#[derive(Clone, Debug)]
pub(crate) struct Ssl {
    pub(crate) mode: SslMode,
    pub(crate) root: Option<RootCertificates>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// `~/.postgresql`, where libpq looks for what is not said.
    pub(crate) folder: Option<PathBuf>,
}

impl Address {
    /// Reads a connection string, with what it leaves out from the environment (`PGHOST`, `PGPASSWORD` and so on).
    ///
    /// # Errors
    /// What is wrong with it; never with any part of it that could be a password.
    pub fn parse(text: &str) -> Result<Self> {
        parse::address(text, &|name| std::env::var(name).ok())
    }

    /// A server's socket, whatever the environment says.
    pub(crate) fn at_socket(folder: PathBuf, port: u16) -> Self {
        Self {
            hosts: vec![Host { seat: Seat::Socket(folder), port }],
            user: "postgres".to_owned(),
            password: None,
            database: "postgres".to_owned(),
            passfile: None,
            ssl: Ssl { mode: SslMode::Disable, root: None, certificate: None, key: None, folder: None },
            channel_binding: ChannelBinding::Disable,
            target: TargetSession::Any,
            application_name: "hindsight".to_owned(),
            connect_timeout: Some(Duration::from_secs(60)),
            options: None,
        }
    }

    /// The servers to try, in this order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// As whom.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// To which database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The same for one server alone, whatever its role.
    #[must_use]
    pub fn at(&self, host: Host) -> Self {
        Self { hosts: vec![host], target: TargetSession::Any, ..self.clone() }
    }

    /// The same to another database.
    #[must_use]
    pub fn with_database(&self, database: impl Into<String>) -> Self {
        Self { database: database.into(), ..self.clone() }
    }

    /// The same as another user.
    #[must_use]
    pub(crate) fn with_user(&self, user: &str) -> Self {
        Self { user: user.to_owned(), ..self.clone() }
    }

    /// The same for servers of another role.
    #[must_use]
    pub fn with_target(&self, target: TargetSession) -> Self {
        Self { target, ..self.clone() }
    }

    /// The password for a server: the one that was given, else the one in the password file.
    pub(crate) async fn password_for(&self, host: &Host, database: &str) -> Option<SecretString> {
        match (&self.password, &self.passfile) {
            (Some(password), _) => Some(password.clone()),
            (None, Some(file)) => passfile::look_up(file, host, database, &self.user).await,
            (None, None) => None,
        }
    }
}

impl Host {
    /// Where this server listens on this machine, if it does: `/run/postgresql/.s.PGSQL.5432`.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        match &self.seat {
            Seat::Socket(folder) => Some(folder.join(format!(".s.PGSQL.{}", self.port))),
            Seat::Tcp(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seat {
            Seat::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Seat::Tcp(name) => write!(f, "{name}:{}", self.port),
            Seat::Socket(folder) => write!(f, "{}:{}", folder.display(), self.port),
        }
    }
}

/// What may stand as it is in a connection string.
const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.hosts.iter().map(|host| match &host.seat {
            Seat::Tcp(_) => host.to_string(),
            Seat::Socket(folder) => {
                let folder = folder.to_string_lossy();
                format!("{}:{}", utf8_percent_encode(&folder, &PLAIN), host.port)
            }
        });
        let (user, database) = (utf8_percent_encode(&self.user, &PLAIN), utf8_percent_encode(&self.database, &PLAIN));
        write!(f, "postgresql://{user}@{}/{database}", hosts.collect::<Vec<_>>().join(","))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.to_string()).finish()
    }
}
