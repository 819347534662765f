//! Private keys, from the files that `age-keygen` writes.

use std::fmt;
use std::io::Read;
use std::path::Path;

use age::secrecy::SecretString;
use age::x25519;
use thiserror::Error;

use super::Recipient;

/// Largest identity file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Private keys that open what was sealed to their public halves. Never shown.
#[derive(Clone)]
pub struct Identity {
    keys: Vec<x25519::Identity>,
}

/// Why an identity file cannot be used. Never repeats what is in it.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the identity file {path} cannot be read: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// It is not one.
    #[error("{path} cannot be used as an identity file: {why}")]
    Unusable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// It is protected, and no passphrase was given.
    #[error("the identity file {path} is protected by a passphrase, and none was given")]
    NoPassphrase {
        /// The file.
        path: String,
    },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.recipients()).finish()
    }
}

impl Identity {
    /// A new pair of keys, for tests.
    pub fn generate() -> Self {
        Self { keys: vec![x25519::Identity::generate()] }
    }

    /// Reads an identity file: lines `AGE-SECRET-KEY-1…`, or an age file of such lines that is
    /// protected by a passphrase, which `passphrase` is asked for.
    pub fn read(path: &Path, passphrase: impl FnOnce() -> Option<SecretString>) -> Result<Self, IdentityError> {
        let shown = path.display().to_string();
        let unreadable = |why: std::io::Error| IdentityError::Unreadable { path: shown.clone(), why: why.to_string() };
        let unusable = |why: String| IdentityError::Unusable { path: shown.clone(), why };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(unusable("it is too large".to_owned()));
        }
        if !bytes.starts_with(b"age-encryption.org/") && !bytes.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----") {
            return Self::parse(&bytes).map_err(unusable);
        }
        let armored = age::armor::ArmoredReader::new(bytes.as_slice());
        let decryptor = age::Decryptor::new_buffered(armored).map_err(|error| unusable(one_line(&error)))?;
        if !decryptor.is_scrypt() {
            return Err(unusable("it is encrypted to a key, not protected by a passphrase".to_owned()));
        }
        let passphrase = passphrase().ok_or_else(|| IdentityError::NoPassphrase { path: shown.clone() })?;
        let unlock = age::scrypt::Identity::new(passphrase);
        let keys = std::iter::once(&unlock as &dyn age::Identity);
        let mut plain = Vec::new();
        let mut reader = decryptor.decrypt(keys).map_err(|error| match error {
            age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed => {
                unusable("the passphrase is wrong".to_owned())
            }
            other => unusable(one_line(&other)),
        })?;
        reader.read_to_end(&mut plain).map_err(|error| unusable(one_line(&error)))?;
        Self::parse(&plain).map_err(unusable)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.parse::<x25519::Identity>();
            keys.push(key.map_err(|why| format!("line {} is no AGE-SECRET-KEY-1…: {why}", number + 1))?);
        }
        if keys.is_empty() { Err("there is no AGE-SECRET-KEY-1… in it".to_owned()) } else { Ok(Self { keys }) }
    }

    /// The same with the keys of another one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        self
    }

    /// The public halves.
    pub fn recipients(&self) -> Vec<Recipient> {
        self.keys.iter().map(|key| Recipient(key.to_public())).collect()
    }

    /// As `age-keygen` writes it: a secret.
    pub fn expose(&self) -> SecretString {
        use age::secrecy::ExposeSecret;
        let lines: Vec<_> = self.keys.iter().map(|key| key.to_string().expose_secret().to_owned()).collect();
        SecretString::from(lines.join("\n") + "\n")
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.keys.iter().map(|key| key as &dyn age::Identity)
    }
}

fn one_line(error: &impl fmt::Display) -> String {
    crate::error::one_line(&error.to_string())
}
