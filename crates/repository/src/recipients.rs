//! To whom a repository is sealed: asking, changing, and what follows for keys and records.

use hindsight_format::{Keys, RecipientsRecord, SEALED_SUFFIX};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::record;
use crate::repository::Repository;
use crate::seal::{self, Keyring, Recipient};

/// How often a change is tried again when others change the recipients at the same time.
const ATTEMPTS: u32 = 10;

impl Repository {
    /// Whether everything is sealed that tells about the data.
    pub fn is_sealed(&self) -> bool {
        self.sealing().is_some()
    }

    /// Whether private keys are at hand.
    pub fn has_identity(&self) -> bool {
        self.identity().is_some()
    }

    /// What kind of repository it is, for people.
    pub fn nature(&self) -> String {
        match self.known_recipients().as_slice() {
            [] => "not sealed".to_owned(),
            some => format!("sealed to {}", texts(some).join(", ")),
        }
    }

    /// The public keys to which new data are sealed, read anew; none in a repository that is not sealed.
    pub async fn recipients(&self) -> Result<Vec<Recipient>> {
        Ok(self.numbered_recipients().await?.1)
    }

    async fn numbered_recipients(&self) -> Result<(u64, Vec<Recipient>)> {
        let Some(sealing) = self.sealing() else { return Ok((0, Vec::new())) };
        let entries = self.store().list(Keys::RECIPIENTS).await?;
        let number = |key: &str| {
            let number = key.strip_prefix(Keys::RECIPIENTS)?.strip_suffix(".json")?.parse().ok()?;
            (number < u64::MAX / 2 && Keys::recipients(number) == key).then_some(number)
        };
        let newest = entries.iter().filter_map(|entry| number(&entry.key)).max().unwrap_or(1);
        let known = sealing.newest().clone();
        if newest <= known.0 {
            return Ok(known);
        }
        let key = Keys::recipients(newest);
        let record: RecipientsRecord = self.read(&key).await?.ok_or_else(|| Error::Missing { key: key.clone() })?;
        if record.number != newest {
            return Err(Error::damaged(&key, format!("it is choice {} of the recipients", record.number)));
        }
        let fresh = (newest, seal::recipients(&key, &record.sealed_to)?);
        tracing::info!("new data are sealed to {}", record.sealed_to.join(", "));
        sealing.newest().clone_from(&fresh);
        Ok(fresh)
    }

    /// Changes to whom new data are sealed; what is stored stays as it is. Gives the new choice.
    pub async fn change_recipients(&self, add: &[Recipient], remove: &[Recipient]) -> Result<Vec<Recipient>> {
        if !self.is_sealed() {
            let why = "the repository is not sealed, and what is in it stays so: make a new one with \
                       `repository init --recipient`";
            return Err(Error::Refused(why.to_owned()));
        }
        for _ in 0..ATTEMPTS {
            let (number, present) = self.numbered_recipients().await?;
            if let Some(unknown) = remove.iter().find(|recipient| !present.contains(recipient)) {
                return Err(Error::Refused(format!(
                    "{unknown} is not among the recipients, which are {}",
                    texts(&present).join(", ")
                )));
            }
            let kept = present.iter().filter(|recipient| !remove.contains(recipient));
            let wanted: Vec<_> = kept.chain(add).cloned().collect();
            if wanted.is_empty() {
                return Err(Error::Refused("the last recipient cannot be removed: add another one with it".to_owned()));
            }
            let wanted = seal::choice(&wanted)?;
            if wanted == present {
                return Ok(present);
            }
            let record = RecipientsRecord {
                number: number + 1,
                sealed_to: texts(&wanted),
                changed_at: Timestamp::now(),
                changed_by: env!("CARGO_PKG_VERSION").to_owned(),
            };
            if self.create_record(&Keys::recipients(record.number), &record).await? {
                return Ok(self.numbered_recipients().await?.1);
            }
        }
        Err(Error::Refused("others keep changing the recipients: try again".to_owned()))
    }

    /// That something is sealed to others than whose identity is at hand.
    pub(crate) fn sealed(&self, what: &str, sealed_to: &[String]) -> Error {
        let given = self.identity().map(|identity| texts(&identity.recipients()));
        Error::Sealed { what: what.to_owned(), sealed_to: sealed_to.to_vec(), given }
    }

    /// Refuses a sealed repository when no identity is at hand that could open anything in it.
    pub fn require_identity(&self) -> Result<()> {
        match self.is_sealed() && !self.has_identity() {
            true => Err(self.sealed("the repository", &texts(&self.known_recipients()))),
            false => Ok(()),
        }
    }

    /// The recipients as they were read last.
    fn known_recipients(&self) -> Vec<Recipient> {
        self.sealing().map(|sealing| sealing.newest().1.clone()).unwrap_or_default()
    }

    /// What may open sealed objects; none in a repository that is not sealed.
    pub(crate) fn keyring(&self) -> Option<Keyring> {
        self.sealing().map(|sealing| Keyring {
            identity: self.identity().cloned(),
            session: sealing.session().clone(),
            sealed_to: texts(&self.known_recipients()),
        })
    }

    pub(crate) fn session_recipient(&self) -> Option<Recipient> {
        self.sealing().map(seal::Sealing::session_recipient)
    }

    pub(crate) fn remember(&self, stored_key: &str) {
        if let Some(sealing) = self.sealing() {
            sealing.remember(stored_key);
        }
    }

    pub(crate) fn forget(&self, stored_key: &str) {
        if let Some(sealing) = self.sealing() {
            sealing.forget(stored_key);
        }
    }

    pub(crate) fn can_open(&self, stored_key: &str) -> bool {
        self.has_identity() || self.sealing().is_none_or(|sealing| sealing.opens(stored_key))
    }

    /// The key under which the store has an object.
    pub(crate) fn stored_key(&self, key: &str) -> String {
        if self.is_sealed() { format!("{key}{SEALED_SUFFIX}") } else { key.to_owned() }
    }

    /// The reverse; none for what has not the ending that it should have.
    pub(crate) fn unsealed_key<'k>(&self, stored_key: &'k str) -> Option<&'k str> {
        if self.is_sealed() { stored_key.strip_suffix(SEALED_SUFFIX) } else { Some(stored_key) }
    }

    /// Reads a record that is sealed; none when it is not there.
    pub(crate) async fn read_sealed<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let stored_key = self.stored_key(key);
        let Some(keys) = self.keyring() else { return Ok(None) };
        let Some(sealed) = self.store().get(&stored_key).await? else { return Ok(None) };
        let plain = seal::open_whole(&stored_key, sealed, keys).await?;
        record::decode(&stored_key, &plain).map(Some)
    }

    /// Seals a record and stores it, over one that may be there.
    pub(crate) async fn write_sealed<T: Serialize>(&self, key: &str, value: &T, to: &[Recipient]) -> Result<()> {
        let stored_key = self.stored_key(key);
        let sealed = seal::seal_whole(&stored_key, to, &record::encode(key, value)?)?;
        self.store().put(&stored_key, sealed.into()).await
    }
}

pub(crate) fn texts(recipients: &[Recipient]) -> Vec<String> {
    recipients.iter().map(ToString::to_string).collect()
}
