//! What a key stands for: the layout, read backwards.

use crate::keys::{Keys, check_name};
use crate::position::Point;
use crate::slice::SliceName;

/// What one key of a cluster stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `cluster.json`
    Descriptor,
    /// This version of the settings.
    Config(u64),
    /// A state of a lease.
    Lease {
        /// Name of the lease.
        name: String,
        /// Number of the state.
        number: u64,
    },
    /// The manifest of this snapshot.
    Manifest(String),
    /// Another object in a snapshot's folder. Only the manifest says what belongs there.
    SnapshotObject {
        /// The snapshot.
        snapshot: String,
        /// Name in its folder.
        name: String,
    },
    /// A captured slice.
    Slice {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// Its name.
        name: SliceName,
    },
    /// The record of this epoch.
    Epoch(u64),
    /// The record of a gap.
    Gap {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// Where the log goes on.
        end: Point,
    },
    /// The record of this restore.
    Restore(String),
    /// The record of this verification or drill.
    Proof(String),
    /// Somebody wants the work of this holder to stop.
    Cancel(String),
    /// Lines that a job logged: the name of the batch.
    Journal(String),
}

impl Keys {
    /// What `key` stands for; none when nothing of this cluster is called so.
    pub fn place(&self, key: &str) -> Option<Place> {
        let place = self.read(key)?;
        // Every name has one spelling.
        (self.spell(&place) == key).then_some(place)
    }

    fn read(&self, key: &str) -> Option<Place> {
        let (folder, rest) = match key.strip_prefix(&self.cluster())?.split_once('/') {
            None => return Some(Place::Descriptor),
            Some(parts) => parts,
        };
        let record = |name: &str| name.strip_suffix(".json").map(str::to_owned);
        let named = |name: &str| check_name(name, "name").is_ok().then(|| name.to_owned());
        let number = |name: &str| record(name)?.parse().ok();
        Some(match folder {
            "config" => Place::Config(number(rest)?),
            "epochs" => Place::Epoch(number(rest)?),
            "restores" => Place::Restore(named(&record(rest)?)?),
            "proofs" => Place::Proof(named(&record(rest)?)?),
            "cancel" => Place::Cancel(named(&record(rest)?)?),
            "logs" => Place::Journal(named(&record(rest)?)?),
            "leases" => {
                let (name, rest) = rest.split_once('/')?;
                Place::Lease { name: named(name)?, number: number(rest)? }
            }
            "snapshots" => {
                let (snapshot, name) = rest.split_once('/')?;
                match (named(snapshot)?, name) {
                    (snapshot, "manifest.json") => Place::Manifest(snapshot),
                    (snapshot, name) => Place::SnapshotObject { snapshot, name: name.to_owned() },
                }
            }
            "log" => {
                let (stream, rest) = rest.split_once('/')?;
                let (epoch, name) = rest.split_once('/')?;
                Place::Slice { stream: named(stream)?, epoch: epoch.parse().ok()?, name: name.parse().ok()? }
            }
            "gaps" => {
                let (stream, rest) = rest.split_once('/')?;
                let (epoch, end) = rest.split_once('/')?;
                let end = Point::from_key_text(&record(end)?).ok()?;
                Place::Gap { stream: named(stream)?, epoch: epoch.parse().ok()?, end }
            }
            _ => return None,
        })
    }

    fn spell(&self, place: &Place) -> String {
        match place {
            Place::Descriptor => self.descriptor(),
            Place::Config(number) => self.config(*number),
            Place::Lease { name, number } => self.lease(name, *number),
            Place::Manifest(snapshot) => self.manifest(snapshot),
            Place::SnapshotObject { snapshot, name } => self.snapshot_object(snapshot, name),
            Place::Slice { stream, epoch, name } => self.slice(stream, *epoch, name),
            Place::Epoch(number) => self.epoch(*number),
            Place::Gap { stream, epoch, end } => self.gap(stream, *epoch, end),
            Place::Restore(id) => self.restore(id),
            Place::Proof(id) => self.proof(id),
            Place::Cancel(holder) => self.cancel(holder),
            Place::Journal(name) => format!("{}{name}.json", self.journal()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_and_nothing_else_is() {
        let keys = Keys::new("rs0").unwrap();
        let slice =
            "20210203T080836Z-1612339716.0000000002-7_20210203T080841Z-1612339721.0000000001-7.0000000012.log.zst";
        let name: SliceName = slice.parse().unwrap();
        for place in [
            Place::Descriptor,
            Place::Config(3),
            Place::Lease { name: "capture".into(), number: 12 },
            Place::Manifest("2021-02-03T08:08:36Z".into()),
            Place::SnapshotObject { snapshot: "s".into(), name: "data/000001.bson.zst".into() },
            Place::SnapshotObject { snapshot: "s".into(), name: format!("rs0/{slice}") },
            Place::Slice { stream: "rs0".into(), epoch: 1, name: name.clone() },
            Place::Epoch(2),
            Place::Gap { stream: "rs0".into(), epoch: 1, end: name.end },
            Place::Restore("r".into()),
            Place::Proof("p".into()),
            Place::Cancel("0123".into()),
            Place::Journal("20210203T080836Z-0123".into()),
        ] {
            assert_eq!(keys.place(&keys.spell(&place)), Some(place));
        }
        for foreign in [
            "",
            "clusters/rs1/cluster.json",
            "clusters/rs0/other.json",
            "clusters/rs0/config/3.json",
            "clusters/rs0/config/000003.json.bak",
            "clusters/rs0/leases/0000000001.json",
            "clusters/rs0/log/rs0/000001/notes.txt",
            &format!("clusters/rs0/log/rs0/1/{slice}"),
            "clusters/rs0/snapshots/manifest.json",
            "clusters/rs0/epochs/two.json",
        ] {
            assert_eq!(keys.place(foreign), None, "{foreign}");
        }
    }
}
