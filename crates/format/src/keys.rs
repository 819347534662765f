//! The layout: where everything is in a repository.

use jiff::Timestamp;
use thiserror::Error;

use crate::slice::SliceName;

/// A name that must not become part of a key.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no usable {1}: use letters, digits, '.', ':', '_' and '-', at most 100 characters, not starting with '.'"
)]
pub struct NameError(String, &'static str);

/// Checks a name given by a user before it becomes part of a key.
pub fn check_name(name: &str, what: &'static str) -> Result<(), NameError> {
    let fits = !name.is_empty()
        && name.len() <= 100
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".:_-".contains(&b));
    if fits { Ok(()) } else { Err(NameError(name.to_owned(), what)) }
}

/// Folder, among the objects of a snapshot that is not complete, of those that say how far it came. The one with the
/// highest name counts.
pub const CHECKPOINTS: &str = "checkpoint/";

/// Keys of one cluster. No key is put together anywhere else.
#[derive(Clone, Debug)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// The repository's own descriptor.
    pub const REPOSITORY: &'static str = "repository.json";
    /// Folder of the later choices of recipients of a sealed repository.
    pub const RECIPIENTS: &'static str = "recipients/";
    /// Where the clusters are; the next part of a key is a cluster's name.
    pub const CLUSTERS: &'static str = "clusters/";
    /// Where a repository's abilities are tried; always emptied again.
    pub const PROBE: &'static str = "probe/";

    /// Keys of the cluster `name`.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check_name(name, "cluster name")?;
        Ok(Self { root: format!("{}{name}", Self::CLUSTERS) })
    }

    /// Choice `number` of the recipients of a sealed repository.
    pub fn recipients(number: u64) -> String {
        format!("{}{number:06}.json", Self::RECIPIENTS)
    }

    /// Folder of everything there is of the cluster.
    pub fn cluster(&self) -> String {
        format!("{}/", self.root)
    }

    /// Which cluster this is.
    pub fn descriptor(&self) -> String {
        format!("{}/cluster.json", self.root)
    }

    /// Folder of the numbered versions of the settings.
    pub fn configs(&self) -> String {
        format!("{}/config/", self.root)
    }

    /// Version `number` of the settings.
    pub fn config(&self, number: u64) -> String {
        format!("{}{number:06}.json", self.configs())
    }

    /// Folder of all leases.
    pub fn lease_folder(&self) -> String {
        format!("{}/leases/", self.root)
    }

    /// Folder of the numbered states of the lease `name`.
    pub fn leases(&self, name: &str) -> String {
        format!("{}{name}/", self.lease_folder())
    }

    /// State `number` of the lease `name`.
    pub fn lease(&self, name: &str, number: u64) -> String {
        format!("{}{number:010}.json", self.leases(name))
    }

    /// Folder of all snapshots.
    pub fn snapshots(&self) -> String {
        format!("{}/snapshots/", self.root)
    }

    /// Folder of the snapshot `id`.
    pub fn snapshot(&self, id: &str) -> String {
        format!("{}{id}/", self.snapshots())
    }

    /// The manifest of the snapshot `id`: written last, its presence means complete.
    pub fn manifest(&self, id: &str) -> String {
        format!("{}manifest.json", self.snapshot(id))
    }

    /// An object of the snapshot `id`, by its name in the manifest.
    pub fn snapshot_object(&self, id: &str, name: &str) -> String {
        format!("{}{name}", self.snapshot(id))
    }

    /// Folder of all captured logs; below it a folder a stream, below that a folder an epoch.
    pub fn log(&self) -> String {
        format!("{}/log/", self.root)
    }

    /// Folder of one stream's slices in one epoch.
    pub fn slices(&self, stream: &str, epoch: u64) -> String {
        format!("{}{stream}/{epoch:06}/", self.log())
    }

    /// One captured slice.
    pub fn slice(&self, stream: &str, epoch: u64, name: &SliceName) -> String {
        format!("{}{name}", self.slices(stream, epoch))
    }

    /// Folder of the epochs that restores began.
    pub fn epochs(&self) -> String {
        format!("{}/epochs/", self.root)
    }

    /// The record of epoch `number`.
    pub fn epoch(&self, number: u64) -> String {
        format!("{}{number:06}.json", self.epochs())
    }

    /// Folder of the recorded gaps.
    pub fn gaps(&self) -> String {
        format!("{}/gaps/", self.root)
    }

    /// The record of a gap in `stream` that the slice starting at `end` follows.
    pub fn gap(&self, stream: &str, epoch: u64, end: &crate::Point) -> String {
        format!("{}{stream}/{epoch:06}/{}.json", self.gaps(), end.key_text())
    }

    /// Somebody's wish that the holder `holder` of a lease stops its work.
    pub fn cancel(&self, holder: &str) -> String {
        format!("{}{holder}.json", self.cancels())
    }

    /// Folder of such wishes.
    pub fn cancels(&self) -> String {
        format!("{}/cancel/", self.root)
    }

    /// Folder of the logs of jobs.
    pub fn journal(&self) -> String {
        format!("{}/logs/", self.root)
    }

    /// A batch of lines of the logs of jobs; batches sort by `stored_at`. `writer` tells apart what
    /// several processes store at once.
    pub fn journal_batch(&self, stored_at: Timestamp, writer: u32) -> String {
        format!("{}{}-{writer:08x}.json", self.journal(), stored_at.strftime("%Y%m%dT%H%M%S.%6fZ"))
    }

    /// Sorts behind all batches stored before `time`, and before all later ones.
    pub fn journal_at(&self, time: Timestamp) -> String {
        format!("{}{}", self.journal(), time.strftime("%Y%m%dT%H%M%S.%6fZ"))
    }

    /// Folder of the restores' records.
    pub fn restores(&self) -> String {
        format!("{}/restores/", self.root)
    }

    /// The record of the restore `id`.
    pub fn restore(&self, id: &str) -> String {
        format!("{}{id}.json", self.restores())
    }

    /// Folder of the records of verifications and drills.
    pub fn proofs(&self) -> String {
        format!("{}/proofs/", self.root)
    }

    /// The record of the verification or drill `id`.
    pub fn proof(&self, id: &str) -> String {
        format!("{}{id}.json", self.proofs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\n", &"x".repeat(101)] {
            assert!(Keys::new(name).is_err(), "{name:?}");
        }
        assert_eq!(Keys::new("rs0").unwrap().lease("capture", 3), "clusters/rs0/leases/capture/0000000003.json");
    }
}
