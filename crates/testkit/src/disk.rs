//! A small disk that can be full.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// Beginning of the names of the folders; the process number follows.
const PREFIX: &str = "hindsight-disk-";

/// A file system in memory with a size of its own, in a temporary folder. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one; none when this process may not.
    ///
    /// # Errors
    /// When no folder can be had.
    pub fn mount(mib: u64) -> Result<Option<Self>> {
        unmount_what_killed_tests_left();
        let name = format!("{PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&name).tempdir()?;
        let options = format!("size={mib}m,mode=700");
        let mounted = run("mount", &["-t", "tmpfs", "-o", &options, "hindsight"], folder.path());
        Ok(mounted.then(|| Self { folder }))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all the room that there is.
    ///
    /// # Errors
    /// Those of the file system, but for the one that is wanted.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::options().create(true).append(true).open(self.ballast())?;
        let mut piece = vec![1_u8; 1 << 20];
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => piece.truncate(piece.len() / 2),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// It took nothing.
    pub fn make_room(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("the disk was not filled")
    }

    /// Gives it another size, with what is on it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn resize(&self, mib: u64) -> Result<()> {
        let options = format!("remount,size={mib}m");
        ensure!(run("mount", &["-o", &options], self.path()), "the disk could not be given another size");
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.folder.path());
    }
}

/// At once, even where something still uses it.
fn unmount(path: &Path) -> bool {
    run("umount", &["-l"], path)
}

fn run(program: &str, args: &[&str], path: &Path) -> bool {
    Command::new(program).args(args).arg(path).output().is_ok_and(|output| output.status.success())
}

/// A test that was killed could not do it itself.
fn unmount_what_killed_tests_left() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let ours = std::env::temp_dir().join(PREFIX).display().to_string();
    for path in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let process = path.strip_prefix(&ours).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            unmount(Path::new(path));
            let _ = fs::remove_dir(path);
        }
    }
}
