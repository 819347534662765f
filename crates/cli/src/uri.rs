//! Connection strings: secrets that can be shown without what is secret in them.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use crate::engines;
use crate::exit::Failure;

/// The connection string of a database. Only [`DatabaseUri::expose`] gives the text; shown, it is
/// scheme and hosts.
#[derive(Clone)]
pub(crate) struct DatabaseUri(SecretString);

const ENCODE: &str = "in user and password, write : / ? # [ ] @ % as %3A %2F %3F %23 %5B %5D %40 %25";

impl DatabaseUri {
    /// Checks what could make somebody else's error message repeat a part of the password.
    pub(crate) fn new(text: SecretString) -> Result<Self, Failure> {
        let whole = text.expose_secret().trim();
        let Some((scheme, rest)) = whole.split_once("://") else {
            return Err(Failure::usage("the connection string has no scheme").hint(shape()));
        };
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
            return Err(Failure::usage("the scheme of the connection string has odd characters").hint(shape()));
        }
        let (authority, after) = split_authority(rest);
        let path = after.split('?').next().unwrap_or_default();
        let (userinfo, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        if path.contains('@') || !is_encoded(userinfo) || !hosts.split(',').all(has_sound_port) {
            return Err(
                Failure::usage("user, password or hosts of the connection string cannot be told apart").hint(ENCODE)
            );
        }
        Ok(Self(SecretString::from(whole)))
    }

    /// The whole text.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether there is a password in it.
    pub(crate) fn has_password(&self) -> bool {
        let rest = self.expose().split_once("://").map_or("", |(_, rest)| rest);
        let (authority, options) = split_authority(rest);
        authority.rsplit_once('@').is_some_and(|(userinfo, _)| userinfo.contains(':'))
            || options.to_ascii_lowercase().contains("password=")
    }
}

fn shape() -> String {
    format!("a connection string looks like {}", engines::shapes())
}

/// Scheme and hosts.
impl fmt::Display for DatabaseUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.expose().split_once("://").unwrap_or_default();
        let authority = split_authority(rest).0;
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        write!(f, "{scheme}://{hosts}")
    }
}

impl fmt::Debug for DatabaseUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Splits what follows `://` before the path or query.
fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

/// Whether user and password are written as RFC 3986 asks for, which is what drivers insist on.
fn is_encoded(userinfo: &str) -> bool {
    let hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
    let bytes = userinfo.as_bytes();
    userinfo.matches(':').count() <= 1
        && !userinfo.contains(['@', '[', ']', ' '])
        && userinfo.match_indices('%').all(|(at, _)| hex(bytes.get(at + 1).copied()) && hex(bytes.get(at + 2).copied()))
}

fn has_sound_port(host: &str) -> bool {
    let after_address = host.rsplit(']').next().unwrap_or_default();
    match after_address.rsplit_once(':') {
        Some((_, port)) => port.parse::<u16>().is_ok(),
        None => true,
    }
}

/// Names of options of connection strings, and of what is in them, that secrets follow.
const SECRET_OPTIONS: [&str; 2] = ["password=", "aws_session_token:"];

/// A text without the user, password and other secrets of connection strings in it.
pub(crate) fn scrub(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "'\"`".contains(c)).unwrap_or(after.len());
        let (address, further) = after.split_at(end);
        let shown = match address.rsplit_once('@') {
            Some((_, hosts)) => {
                clean.push_str("***@");
                hosts
            }
            None => address,
        };
        clean.push_str(&without_options(shown));
        rest = further;
    }
    clean.push_str(rest);
    clean
}

/// What follows the names of secret options is left out.
fn without_options(address: &str) -> String {
    let mut clean = String::with_capacity(address.len());
    let mut rest = address;
    let next = |text: &str| {
        let lower = text.to_ascii_lowercase();
        SECRET_OPTIONS.iter().filter_map(|name| Some(lower.find(name)? + name.len())).min()
    };
    while let Some(at) = next(rest) {
        let (before, after) = rest.split_at(at);
        clean.push_str(before);
        clean.push_str("***");
        rest = after.get(after.find(['&', ',']).unwrap_or(after.len())..).unwrap_or_default();
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn uri(text: &str) -> Result<DatabaseUri, Failure> {
        DatabaseUri::new(SecretString::from(text))
    }

    #[test]
    fn what_is_shown_has_no_credentials() {
        for text in [
            "mongodb://me:pa%2Fss@a:1,b:2/db?replicaSet=rs0&authSource=admin",
            "mongodb+srv://me:geheim@cluster.example.com",
            "mongodb://me:geheim@[::1]:27017/?tlsCertificateKeyFilePassword=geheim",
        ] {
            let uri = uri(text).unwrap();
            assert!(uri.has_password() && uri.expose() == text);
            let shown = format!("{uri} {uri:?}");
            for secret in ["me:", "geheim", "pa%2Fss", "?"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
        assert_eq!(uri("mongodb://a:1,b:2/?x=y").unwrap().to_string(), "mongodb://a:1,b:2");
        assert!(!uri("mongodb://me@a:1").unwrap().has_password());
        // Whether it needs a host is the engine's to say.
        let socket = uri("x:///db?host=/run/x&password=geheim").unwrap();
        assert!(socket.has_password() && socket.to_string() == "x://");
    }

    #[test]
    fn passwords_that_are_not_encoded_are_refused_and_not_repeated() {
        for text in [
            "mongodb://me:top/secret@host/",
            "mongodb://me:123/secret@host/",
            "mongodb://me:top@secret@host/",
            "mongodb://me:top:secret@host/",
            "mongodb://me:top%secret@host/",
            "mongodb://me:top?secret@host/",
            "mongodb://me:top#secret@host/",
            "mongodb://me:secret",
            "me:secret@host",
        ] {
            let failure = uri(text).unwrap_err();
            assert!(!format!("{failure:?}").contains("secret"), "{failure:?}");
        }
    }

    #[test]
    fn texts_of_others_are_scrubbed() {
        assert_eq!(
            scrub("no 'mongodb://u:p@h:1/?x=y' here, nor s3://b/p"),
            "no 'mongodb://***@h:1/?x=y' here, nor s3://b/p"
        );
        assert_eq!(scrub("mongodb://u:p@q@h"), "mongodb://***@h");
        assert_eq!(scrub("nothing"), "nothing");
        assert_eq!(
            scrub(
                "mongodb://u:p@h/?tlsCertificateKeyFilePassword=geheim&x=y mongodb://h/?TLSCertificateKeyFilePassword=geheim"
            ),
            "mongodb://***@h/?tlsCertificateKeyFilePassword=***&x=y mongodb://h/?TLSCertificateKeyFilePassword=***"
        );
        assert_eq!(
            scrub("mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:geheim,A:b"),
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:***,A:b"
        );
    }
}
