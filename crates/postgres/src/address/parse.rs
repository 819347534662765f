//! From a connection string to an address.
//!
//! A password that is not percent-encoded may end up anywhere in what is parsed. What is echoed in errors is therefore
//! limited to names and values of known parameters that hold no secrets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::{Address, ChannelBinding, Host, RootCertificates, Seat, Ssl, SslMode, TargetSession};
use crate::wire::{Error, Result};

/// The parameters there are, each with the variable that stands in for it.
const PARAMETERS: [(&str, &str); 15] = [
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("dbname", "PGDATABASE"),
    ("passfile", "PGPASSFILE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("application_name", "PGAPPNAME"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("options", "PGOPTIONS"),
];

const PORT: u16 = 5432;
/// libpq waits for ever unless told otherwise; a backup that hangs is worse than one that fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where Debian and Red Hat have the sockets of their servers.
const SOCKETS: &str = "/var/run/postgresql";

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads `text`, with what it leaves out from `environment`.
pub(super) fn address(text: &str, environment: Environment<'_>) -> Result<Address> {
    let mut said = Said::read(text)?;
    said.complete(environment);
    let user = said.take("user").or_else(|| ["USER", "LOGNAME"].into_iter().find_map(environment));
    let user = user.filter(|user| !user.is_empty()).ok_or_else(|| {
        wrong("the connection string names no user", "put one into it: postgresql://user@host:5432/database")
    })?;
    let home = environment("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let passfile = said.take("passfile").map(PathBuf::from);
    Ok(Address {
        hosts: said.hosts()?,
        password: said.take("password").map(SecretString::from),
        database: said.take("dbname").unwrap_or_else(|| user.clone()),
        passfile: passfile.or_else(|| Some(home.as_ref()?.join(".pgpass"))),
        ssl: said.ssl(home.as_deref())?,
        channel_binding: said.choice("channel_binding", CHANNEL_BINDINGS)?.unwrap_or(ChannelBinding::Prefer),
        target: said.choice("target_session_attrs", TARGETS)?.unwrap_or(TargetSession::Any),
        application_name: said.take("application_name").unwrap_or_else(|| "hindsight".to_owned()),
        connect_timeout: said.connect_timeout()?,
        options: said.take("options"),
        user,
    })
}

const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

const CHANNEL_BINDINGS: &[(&str, ChannelBinding)] =
    &[("disable", ChannelBinding::Disable), ("prefer", ChannelBinding::Prefer), ("require", ChannelBinding::Require)];

const TARGETS: &[(&str, TargetSession)] = &[
    ("any", TargetSession::Any),
    ("read-write", TargetSession::ReadWrite),
    ("read-only", TargetSession::ReadOnly),
    ("primary", TargetSession::Primary),
    ("standby", TargetSession::Standby),
    ("prefer-standby", TargetSession::PreferStandby),
];

/// What was said of each parameter.
struct Said([Option<String>; PARAMETERS.len()]);

impl Said {
    fn read(text: &str) -> Result<Self> {
        let rest = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.ok_or_else(|| wrong("the connection string does not begin with postgresql://", LOOKS_LIKE))?;
        let mut said = Self(Default::default());
        // As libpq: what is before an @ is a user, if no slash comes first.
        let authority = rest.split('/').next().unwrap_or_default();
        let rest = match authority.split_once('@').filter(|_| !authority.starts_with('?')) {
            Some((who, _)) => {
                let (user, password) = who.split_once(':').map_or((who, None), |(user, word)| (user, Some(word)));
                said.set("user", decode(user, "the user")?);
                if let Some(password) = password {
                    said.set("password", decode(password, "the password")?);
                }
                rest.get(who.len() + 1..).unwrap_or_default()
            }
            None => rest,
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        if hosts.contains('@') || database.contains(['@', '/']) {
            return Err(wrong("the connection string has an @ or a / where none can be", ENCODE));
        }
        said.read_hosts(hosts)?;
        said.set("dbname", decode(database, "the database")?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            said.read_parameter(pair)?;
        }
        Ok(said)
    }

    /// `h1:p1,h2:p2`, with `[::1]` and percent-encoded folders.
    fn read_hosts(&mut self, hosts: &str) -> Result<()> {
        if hosts.is_empty() {
            return Ok(());
        }
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[') {
                Some(rest) => {
                    let (name, port) = rest.split_once(']').ok_or_else(|| {
                        wrong("an IPv6 address in the connection string lacks its ]", "one looks like [::1]:5432")
                    })?;
                    match port.strip_prefix(':') {
                        None if !port.is_empty() => return Err(bad_port()),
                        port => (name, port.unwrap_or_default()),
                    }
                }
                None => host.split_once(':').unwrap_or((host, "")),
            };
            let name = decode(name, "a host")?;
            if name.contains(',') {
                return Err(wrong("a host in the connection string has a comma in its name", LOOKS_LIKE));
            }
            names.push(name);
            ports.push(decode(port, "a port")?);
        }
        self.set("host", names.join(","));
        if ports.iter().any(|port| !port.is_empty()) {
            self.set("port", ports.join(","));
        }
        Ok(())
    }

    fn read_parameter(&mut self, pair: &str) -> Result<()> {
        let Some((name, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
            return Err(wrong("a parameter of the connection string is not of the form name=value", ENCODE));
        };
        let (name, value) = (decode(name, "a parameter's name")?, decode(value, "a parameter's value")?);
        // As libpq, for strings that were written for JDBC.
        if (name.as_str(), value.as_str()) == ("ssl", "true") {
            self.set("sslmode", "require".to_owned());
            return Ok(());
        }
        // Says what is done anyhow: there is no GSSAPI here.
        if name == "gssencmode" && matches!(value.as_str(), "disable" | "prefer") {
            return Ok(());
        }
        if !PARAMETERS.iter().any(|(known, _)| *known == name) {
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            let name = if plain { format!(" {name}") } else { String::new() };
            let known: Vec<_> = PARAMETERS.iter().map(|(name, _)| *name).collect();
            return Err(wrong(
                format!("the parameter{name} of the connection string is not known"),
                format!("remove it; there are {}", known.join(", ")),
            ));
        }
        self.set(&name, value);
        Ok(())
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<String>> {
        let index = PARAMETERS.iter().position(|(known, _)| *known == name)?;
        self.0.get_mut(index)
    }

    /// What is empty is as good as not said.
    fn set(&mut self, name: &str, value: String) {
        if let Some(slot) = self.slot(name).filter(|_| !value.is_empty()) {
            *slot = Some(value);
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.slot(name)?.take()
    }

    fn complete(&mut self, environment: Environment<'_>) {
        for ((_, variable), said) in PARAMETERS.iter().zip(&mut self.0) {
            if said.is_none() {
                *said = environment(variable).filter(|value| !value.is_empty());
            }
        }
    }

    fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == value) {
            return Ok(Some(*choice));
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let what = format!("{name} cannot be what the connection string or the environment says");
        Err(wrong(what, format!("it is one of {}", words.join(", "))))
    }

    fn hosts(&mut self) -> Result<Vec<Host>> {
        let hosts = self.take("host").unwrap_or_default();
        let ports = self.take("port").unwrap_or_default();
        let (hosts, ports): (Vec<_>, Vec<_>) = (hosts.split(',').collect(), ports.split(',').collect());
        let port = |text: &str| match text {
            "" => Ok(PORT),
            text => text.parse().ok().filter(|port| *port > 0).ok_or_else(bad_port),
        };
        match ports.as_slice() {
            [one] => hosts.iter().map(|host| Ok(Host { seat: seat(host), port: port(one)? })).collect(),
            ports if ports.len() == hosts.len() => {
                hosts.iter().zip(ports).map(|(host, text)| Ok(Host { seat: seat(host), port: port(text)? })).collect()
            }
            _ => Err(wrong(
                format!("the connection string has {} hosts and {} ports", hosts.len(), ports.len()),
                "give one port for all of them, or one for each",
            )),
        }
    }

    fn ssl(&mut self, home: Option<&Path>) -> Result<Ssl> {
        let root = self.take("sslrootcert").map(|root| match root.as_str() {
            "system" => RootCertificates::System,
            _ => RootCertificates::File(PathBuf::from(root)),
        });
        let system = root == Some(RootCertificates::System);
        let mode = self.choice("sslmode", SSL_MODES)?;
        // As libpq 16: who trusts everybody must at least compare names.
        if system && mode.is_some_and(|mode| mode != SslMode::VerifyFull) {
            return Err(wrong(
                "sslrootcert=system needs sslmode=verify-full",
                "leave sslmode out, or name a file of root certificates",
            ));
        }
        Ok(Ssl {
            mode: mode.unwrap_or(if system { SslMode::VerifyFull } else { SslMode::Prefer }),
            root,
            certificate: self.take("sslcert").map(PathBuf::from),
            key: self.take("sslkey").map(PathBuf::from),
            folder: home.map(|home| home.join(".postgresql")),
        })
    }

    fn connect_timeout(&mut self) -> Result<Option<Duration>> {
        let Some(text) = self.take("connect_timeout") else { return Ok(Some(CONNECT_TIMEOUT)) };
        match text.trim().parse::<i32>() {
            Ok(..=0) => Ok(None),
            // As libpq: one second may be over before it has begun.
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds.max(2).unsigned_abs().into()))),
            Err(_) => Err(wrong("connect_timeout is not a number of seconds", "0 is without limit, 10 the default")),
        }
    }
}

fn seat(host: &str) -> Seat {
    match host {
        "" if Path::new(SOCKETS).is_dir() => Seat::Socket(PathBuf::from(SOCKETS)),
        "" => Seat::Tcp("localhost".to_owned()),
        folder if folder.starts_with('/') => Seat::Socket(PathBuf::from(folder)),
        name => Seat::Tcp(name.to_owned()),
    }
}

const LOOKS_LIKE: &str = "a connection string looks like postgresql://user:password@host:5432/database";
const ENCODE: &str =
    "write @ as %40, : as %3A, / as %2F, ? as %3F, = as %3D, & as %26 and % as %25 within a password or name";

fn wrong(what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Address { what: what.into(), hint: hint.into() }
}

fn bad_port() -> Error {
    wrong(
        "a port in the connection string is not a number from 1 to 65535",
        "a : or / within a password is written %3A or %2F",
    )
}

/// `%40` is `@`. `what` it is, is all that an error tells.
fn decode(text: &str, what: &str) -> Result<String> {
    let broken = || wrong(format!("{what} in the connection string is not percent-encoded as it should be"), ENCODE);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = digit().zip(digit()).ok_or_else(broken)?;
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| broken())?);
    }
    // None of the strings of the protocol can hold a zero.
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(broken)
}
