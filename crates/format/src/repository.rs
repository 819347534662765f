//! `repository.json`: what makes a folder or bucket a repository.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The stored description of a repository, written once when it is first used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryDescriptor {
    /// Version of the format of everything in it.
    pub format: u32,
    /// Random identity, so that two repositories can be told apart.
    pub id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Program version that made it.
    pub created_by: String,
    /// What was found out about the store when it was made.
    pub put_if_absent: PutIfAbsent,
    /// Sealed: the public keys to which everything was sealed at first. Empty where nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sealed_to: Vec<String>,
}

/// `recipients/<number>.json`: a later choice of the public keys to which new data are sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientsRecord {
    /// That of the key; the descriptor's choice is number 1.
    pub number: u64,
    /// The public keys.
    pub sealed_to: Vec<String>,
    /// When they were chosen.
    pub changed_at: Timestamp,
    /// Program version that stored it.
    pub changed_by: String,
}

/// What stands in a record of a sealed repository for what only a private key may show.
pub const WITHHELD: &str = "(sealed)";
/// Ending of the keys of sealed objects: an age file of what would be under the key without it.
pub const SEALED_SUFFIX: &str = ".age";

/// Whether the store refuses to create an object that exists, also when several try at once.
/// Leases stand on this ability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PutIfAbsent {
    /// Of several writers exactly one wins.
    Atomic,
    /// A second writer is refused, but writers at the same moment may all be told that they won.
    Racy,
    /// An existing object is silently replaced, or the store knows no such request.
    Absent,
}
