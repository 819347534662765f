//! What a base holds, by database.

use std::collections::{BTreeMap, HashMap};

use hindsight_engine::{Content, Result};
use hindsight_format::SnapshotManifest;
use hindsight_repository::ClusterRepository;

use super::manifest::BackupManifest;
use super::stored::{StoredBase, StoredDatabase, StoredIncrement, load_backup_manifest};
use crate::Lsn;

/// Files, and bytes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    files: u64,
    bytes: u64,
}

/// What snapshot `manifest` holds of each database, as it was when it was copied. Files of the whole cluster are not counted, nor
/// is what a backup leaves out, such as the rows of unlogged tables.
///
/// # Errors
/// Its catalog cannot be read.
pub async fn describe(cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Vec<Content>> {
    let base = StoredBase::load(cluster, manifest).await?;
    let held = by_database(&load_backup_manifest(cluster, manifest).await?, &HashMap::new());
    let content = |database: StoredDatabase| {
        let items = held.get(&database.oid).map_or(0, |held| held.files);
        Content { name: database.name, items, bytes: database.bytes, indexes: 0 }
    };
    let mut contents: Vec<_> = base.databases.into_iter().map(content).collect();
    contents.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(contents)
}

/// Databases by their names, with the bytes that a base has of them. `restored` are those of files of which it holds only what
/// changed.
pub(super) fn databases(
    names: &BTreeMap<u32, String>,
    manifest: &BackupManifest,
    restored: &HashMap<Box<[u8]>, u64>,
) -> Vec<StoredDatabase> {
    let held = by_database(manifest, restored);
    let bytes = |oid| held.get(oid).map_or(0, |held| held.bytes);
    names.iter().map(|(oid, name)| StoredDatabase { oid: *oid, name: name.clone(), bytes: bytes(oid) }).collect()
}

fn by_database(manifest: &BackupManifest, restored: &HashMap<Box<[u8]>, u64>) -> BTreeMap<u32, Held> {
    let mut all = BTreeMap::<u32, Held>::new();
    for (path, expected) in manifest.files() {
        if let Some(oid) = database_of(path) {
            let held = all.entry(oid).or_default();
            held.files += 1;
            held.bytes = held.bytes.saturating_add(restored.get(path).copied().unwrap_or(expected.size));
        }
    }
    all
}

/// What an incremental base holds in all, once restored.
pub(super) fn increment(since: Lsn, manifest: &BackupManifest, restored: &HashMap<Box<[u8]>, u64>) -> StoredIncrement {
    let mut all = StoredIncrement { since, main: 0, tablespaces: BTreeMap::new() };
    for (path, expected) in manifest.files() {
        let sum = tablespace_of(path).map_or(&mut all.main, |oid| all.tablespaces.entry(oid).or_default());
        *sum = sum.saturating_add(restored.get(path).copied().unwrap_or(expected.size));
    }
    all
}

/// The tablespace that a file is in; none for the main data directory.
fn tablespace_of(path: &[u8]) -> Option<u32> {
    let oid = path.strip_prefix(b"pg_tblspc/")?.split(|byte| *byte == b'/').next()?;
    std::str::from_utf8(oid).ok()?.parse().ok()
}

/// The database that a file is of (`GetDatabasePath` in relpath.c): `base/5/..`, `pg_tblspc/16385/PG_15_202209061/5/..`
fn database_of(path: &[u8]) -> Option<u32> {
    let mut parts = path.split(|byte| *byte == b'/');
    let oid = match parts.next()? {
        b"base" => parts.next()?,
        b"pg_tblspc" => parts.nth(2)?,
        _ => return None,
    };
    // A file has a name within it.
    parts.next()?;
    std::str::from_utf8(oid).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::{entry, manifest};
    use super::*;

    #[test]
    fn files_are_counted_for_their_databases() {
        let entries = [
            entry("base/5/16384", 8192, "00000000"),
            entry("base/5/PG_VERSION", 3, "00000000"),
            entry("pg_tblspc/16385/PG_15_202209061/5/16390", 8192, "00000000"),
            entry("base/1/112", 7, "00000000"),
            entry("base/pgsql_tmp/x", 1, "00000000"),
            entry("base/5", 1, "00000000"),
            entry("global/pg_control", 8192, "00000000"),
            entry("pg_tblspc/16385/5/16390", 1, "00000000"),
        ];
        let manifest = BackupManifest::parse(manifest(&entries).as_bytes()).unwrap();
        let none = HashMap::new();
        let held = by_database(&manifest, &none);
        assert_eq!(held.get(&5), Some(&Held { files: 3, bytes: 2 * 8192 + 3 }));
        assert_eq!((held.get(&1), held.len()), (Some(&Held { files: 1, bytes: 7 }), 2));
        let names = BTreeMap::from([(1, "template1".to_owned()), (9, "new".to_owned())]);
        let sizes: Vec<_> = databases(&names, &manifest, &none).into_iter().map(|database| database.bytes).collect();
        assert_eq!(sizes, [7, 0]);
        // Of one file there are only the changes.
        let restored = HashMap::from([(Box::from(&b"base/5/16384"[..]), 100_000)]);
        assert_eq!(by_database(&manifest, &restored)[&5].bytes, 100_000 + 8192 + 3);
        let all = increment(Lsn(7), &manifest, &restored);
        assert_eq!((all.since, all.main), (Lsn(7), 100_000 + 3 + 7 + 1 + 1 + 8192));
        assert_eq!(all.tablespaces, BTreeMap::from([(16385, 8192 + 1)]));
    }
}
