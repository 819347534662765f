//! A repository that is a folder: nothing in it leads out of it.
//!
//! Whoever can write to the folder could otherwise make Hindsight read or write elsewhere, by a
//! symbolic link in place of a folder or file. The repository's folder may itself be a link.

use std::ffi::OsStr;
use std::fs::{DirEntry, FileType};
use std::io;
use std::path::{Path, PathBuf};

use object_store::path::PathPart;

use crate::error::{Error, Result};
use crate::store::Entry;

/// Folders within folders that are looked into: keys have eight parts at most.
const DEPTH: usize = 16;

/// The repository's folder.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// Refuses a key on the way to which something leads elsewhere.
    pub(crate) fn check_way(&self, key: &str) -> Result<()> {
        let mut at = self.0.clone();
        for part in key.split('/').filter(|part| !part.is_empty()) {
            at.push(part);
            match std::fs::symlink_metadata(&at) {
                Ok(found) => check(key, &at, found.file_type())?,
                // What is not there leads nowhere; what cannot be looked at fails when it is used.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Files below a folder, in any order.
    pub(crate) fn files(&self, key: &str) -> Result<Vec<Entry>> {
        self.collect(key, false)
    }

    /// Files that were written to under another name, until they would have been whole.
    pub(crate) fn staged(&self, key: &str) -> Result<Vec<Entry>> {
        self.collect(key, true)
    }

    fn collect(&self, key: &str, staged: bool) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        self.walk(key, true, |path, entry| {
            let Ok(Some(name)) = path.strip_prefix(&self.0).map(Path::to_str) else { return Ok(()) };
            if is_staged(path) != staged {
                return Ok(());
            }
            match entry.metadata() {
                Ok(meta) => found.push(Entry { key: name.to_owned(), size: meta.len() }),
                // It was deleted meanwhile.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(Error::local("list", name, error)),
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Deletes them.
    pub(crate) fn delete_staged(&self, entries: &[Entry]) -> Result<()> {
        for Entry { key, .. } in entries {
            self.check_way(key)?;
            match std::fs::remove_file(self.0.join(key)) {
                Err(error) if !is_gone(&error) => return Err(Error::local("delete", key, error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a folder in which something leads elsewhere, or has a name that no key has.
    pub(crate) fn check_folder(&self, key: &str) -> Result<()> {
        self.walk(key, false, |_, _| Ok(()))
    }

    /// Shows each file in a folder, or also those in the folders in it. What leads elsewhere, or has a name that no key has, is
    /// an error.
    fn walk(&self, key: &str, deep: bool, mut show: impl FnMut(&Path, &DirEntry) -> Result<()>) -> Result<()> {
        let failed = |error| Error::local("list", key, error);
        let mut folders = vec![(self.0.join(key), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let (path, kind) = match entry.file_type() {
                    Ok(kind) => (entry.path(), kind),
                    // It was deleted meanwhile.
                    Err(error) if is_gone(&error) => continue,
                    Err(error) => return Err(failed(error)),
                };
                check(key, &path, kind)?;
                if !kind.is_dir() {
                    show(&path, &entry)?;
                } else if deep {
                    if depth >= DEPTH {
                        return Err(refuse(key, &path, "lies deeper than anything that is stored"));
                    }
                    folders.push((path, depth + 1));
                }
            }
        }
        Ok(())
    }
}

/// The library that writes adds a number to the name.
fn is_staged(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).and_then(|name| name.rsplit_once('#'));
    name.is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn check(key: &str, path: &Path, kind: FileType) -> Result<()> {
    if kind.is_symlink() {
        return Err(refuse(
            key,
            path,
            "is a symbolic link, which could lead anywhere; only the repository's own folder may be one",
        ));
    }
    if !kind.is_dir() && !kind.is_file() {
        return Err(refuse(key, path, "is neither a file nor a folder"));
    }
    match path.file_name().map(OsStr::to_str) {
        Some(None) => Err(refuse(key, path, "has a name that is not UTF-8")),
        Some(Some(name)) if PathPart::parse(name).is_err() => Err(refuse(key, path, "has a name that no object has")),
        _ => Ok(()),
    }
}

fn refuse(key: &str, path: &Path, why: &str) -> Error {
    // Escaped: the name may be anything.
    let why = format!("{:?} {why}; remove it", path.to_string_lossy());
    Error::damaged(key, why)
}
