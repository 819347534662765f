//! Harming stored objects in every way, one at a time, in copies of one repository.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hindsight_format::{Keys, Place};
use hindsight_repository::{ClusterRepository, Repository, RepositorySpec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// One bit, at a place that the number decides.
    Flip(u64),
    /// Its second half is gone.
    Cut,
    Empty,
    Delete,
    /// It changes places with another of its kind.
    Swap,
    /// Other bytes of the same length.
    Foreign,
}

impl Harm {
    pub const ALL: [Self; 8] =
        [Self::Flip(1), Self::Flip(2), Self::Flip(3), Self::Cut, Self::Empty, Self::Delete, Self::Swap, Self::Foreign];
}

/// A repository on disk that is copied for each harm.
pub struct Pristine {
    folder: PathBuf,
    cluster: String,
    /// All keys, with the size of the object.
    pub keys: Vec<String>,
}

/// A copy in which something may be harmed; gone when dropped.
pub struct Copy {
    folder: tempfile::TempDir,
    cluster: String,
}

impl Pristine {
    pub fn of(cluster: &ClusterRepository) -> Result<Self> {
        let folder = PathBuf::from(cluster.repository().url().trim_start_matches("file://"));
        let mut keys: Vec<String> = files(&folder)?
            .iter()
            .filter_map(|file| Some(file.strip_prefix(&folder).ok()?.display().to_string()))
            .collect();
        keys.sort();
        Ok(Self { folder, cluster: cluster.name().to_owned(), keys })
    }

    /// What kind of object a key stands for.
    pub fn kind(&self, key: &str) -> String {
        let keys = Keys::new(&self.cluster).unwrap();
        match keys.place(key) {
            None => key.to_owned(),
            Some(Place::Descriptor) => "cluster".to_owned(),
            Some(Place::Config(_)) => "config".to_owned(),
            Some(Place::Lease { name, .. }) => format!("lease {name}"),
            Some(Place::Manifest(_)) => "manifest".to_owned(),
            Some(Place::SnapshotObject { name, .. }) => match name.split_once('/') {
                Some(("data", _)) => "data".to_owned(),
                Some(_) => "own slice".to_owned(),
                None => "catalog".to_owned(),
            },
            Some(Place::Slice { .. }) => "slice".to_owned(),
            Some(Place::Epoch(_)) => "epoch".to_owned(),
            Some(Place::Gap { .. }) => "gap".to_owned(),
            Some(Place::Restore(_)) => "restore".to_owned(),
            Some(Place::Proof(_)) => "proof".to_owned(),
            Some(Place::Cancel(_)) => "cancel".to_owned(),
            Some(Place::Journal(_)) => "journal".to_owned(),
        }
    }

    /// Another object of the same kind.
    pub fn other(&self, key: &str) -> Option<&String> {
        let kind = self.kind(key);
        self.keys.iter().find(|other| *other != key && self.kind(other) == kind)
    }

    pub fn copy(&self) -> Result<Copy> {
        let folder = tempfile::tempdir()?;
        for key in &self.keys {
            let to = folder.path().join(key);
            std::fs::create_dir_all(to.parent().context("no folder")?)?;
            std::fs::copy(self.folder.join(key), to)?;
        }
        Ok(Copy { folder, cluster: self.cluster.clone() })
    }

    /// A copy with `key` harmed; none where that cannot be done to it.
    pub fn harmed(&self, key: &str, harm: Harm) -> Result<Option<Copy>> {
        let copy = self.copy()?;
        let file = copy.file(key);
        let bytes = std::fs::read(&file)?;
        let mut rng = StdRng::seed_from_u64(bytes.len() as u64);
        match harm {
            Harm::Flip(number) => {
                let mut bytes = bytes;
                let mut rng = StdRng::seed_from_u64(number ^ bytes.len() as u64);
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
                std::fs::write(&file, bytes)?;
            }
            Harm::Cut => std::fs::write(&file, &bytes[..bytes.len() / 2])?,
            Harm::Empty => std::fs::write(&file, [])?,
            Harm::Delete => std::fs::remove_file(&file)?,
            Harm::Swap => {
                let Some(other) = self.other(key) else { return Ok(None) };
                let other = copy.file(other);
                std::fs::write(&file, std::fs::read(&other)?)?;
                std::fs::write(&other, bytes)?;
            }
            Harm::Foreign => {
                let noise: Vec<u8> = bytes.iter().map(|_| rng.random()).collect();
                std::fs::write(&file, noise)?;
            }
        }
        Ok(Some(copy))
    }
}

impl Copy {
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    pub async fn open(&self) -> Result<(Repository, ClusterRepository)> {
        let spec = RepositorySpec::new(self.folder.path().display().to_string());
        let repository = Repository::open(&spec).await?.context("no repository")?;
        let cluster = repository.cluster(&self.cluster)?;
        Ok((repository, cluster))
    }
}

/// Every file below a folder.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}
