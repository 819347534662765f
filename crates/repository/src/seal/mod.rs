//! Sealing: objects encrypted to public keys with age (https://age-encryption.org/v1), so that who
//! stores them cannot read them.
//!
//! A sealed object is one age file whose plaintext is what would be stored without sealing. Writers
//! know public keys only; readers need an [`Identity`].

mod identity;
mod open;
mod writer;

use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;

use age::x25519;

use crate::error::{Error, Result};

pub use identity::{Identity, IdentityError};
pub(crate) use open::{Keyring, SealedObject, open_whole};
pub(crate) use writer::{Sealer, seal_whole};

/// Most recipients that a repository is sealed to: their stanzas stand at the head of each object.
const MAX_RECIPIENTS: usize = 32;

/// A public key to which data are sealed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Recipient(x25519::Recipient);

impl std::str::FromStr for Recipient {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Somebody may have pasted the wrong half of the pair: it is not repeated.
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            let why = "a private key was given as a recipient; give the public key (age1…), and keep the private \
                       key away from here";
            return Err(Error::Refused(why.to_owned()));
        }
        let refused = |why| Error::Refused(format!("{text:?} is no public key of age (age1…): {why}"));
        text.trim().parse().map(Self).map_err(refused)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads the public keys that a record names.
pub(crate) fn recipients(key: &str, texts: &[String]) -> Result<Vec<Recipient>> {
    if texts.is_empty() || texts.len() > MAX_RECIPIENTS {
        return Err(Error::damaged(key, format!("it names {} recipients", texts.len())));
    }
    let parse = |text: &String| text.parse().map_err(|error: Error| Error::damaged(key, error.to_string()));
    texts.iter().map(parse).collect()
}

/// Checks a choice of recipients before it is stored, and leaves out what is there twice.
pub(crate) fn choice(wanted: &[Recipient]) -> Result<Vec<Recipient>> {
    let mut chosen: Vec<Recipient> = Vec::new();
    for recipient in wanted {
        if !chosen.contains(recipient) {
            chosen.push(recipient.clone());
        }
    }
    match chosen.len() {
        0 => Err(Error::Refused("a sealed repository needs at least one recipient".to_owned())),
        1..=MAX_RECIPIENTS => Ok(chosen),
        n => Err(Error::Refused(format!("{n} recipients are too many: at most {MAX_RECIPIENTS}"))),
    }
}

/// What an open repository that is sealed keeps in memory.
pub(crate) struct Sealing {
    /// The newest choice of recipients that was read, with its number.
    newest: Mutex<(u64, Vec<Recipient>)>,
    /// A pair of keys that lives as long as this: what was captured is sealed to it too, so that
    /// small slices can be merged without anybody's private key.
    session: x25519::Identity,
    /// Keys of the objects that are sealed to the session's key.
    own: Mutex<HashSet<String>>,
}

impl fmt::Debug for Sealing {
    /// Without the private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealing").field("newest", &self.newest).finish_non_exhaustive()
    }
}

impl Sealing {
    pub(crate) fn new(first: Vec<Recipient>) -> Self {
        let session = x25519::Identity::generate();
        Self { newest: Mutex::new((1, first)), session, own: Mutex::default() }
    }

    /// The newest choice of recipients that was read, with its number.
    pub(crate) fn newest(&self) -> std::sync::MutexGuard<'_, (u64, Vec<Recipient>)> {
        self.newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The public key of this session.
    pub(crate) fn session_recipient(&self) -> Recipient {
        Recipient(self.session.to_public())
    }

    /// The identity that opens what this session captured.
    pub(crate) fn session(&self) -> &x25519::Identity {
        &self.session
    }

    /// Remembers that this session can open `key`.
    pub(crate) fn remember(&self, key: &str) {
        self.own().insert(key.to_owned());
    }

    /// Forgets an object that is removed.
    pub(crate) fn forget(&self, key: &str) {
        self.own().remove(key);
    }

    /// Whether this session can open `key`.
    pub(crate) fn opens(&self, key: &str) -> bool {
        self.own().contains(key)
    }

    fn own(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.own.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
