//! Records that are there and cannot be read.

use std::fmt;

use serde::Serialize;

use crate::place::Place;

/// A record that is there and cannot be read. It stands in the way of nothing but what needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedRecord {
    /// Its key.
    pub key: String,
    /// What is wrong with it, with its key.
    pub why: String,
    /// What it stands for.
    #[serde(skip)]
    pub place: Place,
}

impl DamagedRecord {
    /// The snapshot, if it is the manifest of one.
    pub fn snapshot(&self) -> Option<&str> {
        match &self.place {
            Place::Manifest(id) => Some(id),
            _ => None,
        }
    }

    /// The epoch, if it is the record of one.
    pub fn epoch(&self) -> Option<u64> {
        match self.place {
            Place::Epoch(number) => Some(number),
            _ => None,
        }
    }
}

impl fmt::Display for DamagedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Manifest(id) => write!(f, "snapshot {id} cannot be read: ")?,
            Place::Epoch(number) => write!(f, "why epoch {number} began cannot be read: ")?,
            Place::Restore(id) => write!(f, "what restore {id} did cannot be read: ")?,
            _ => {}
        }
        f.write_str(&self.why)
    }
}
