//! As whom a server runs: it refuses to run as root, and wants to own its directory.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, Gid, Uid, chownat};
use rustix::process::geteuid;

use super::environment;

/// A user who owns a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
    /// Its name, if it has one.
    name: Option<String>,
}

impl Owner {
    /// Who we are.
    pub(crate) fn us() -> Self {
        Self::of(geteuid().as_raw(), rustix::process::getegid().as_raw())
    }

    /// The owner of a file or directory.
    pub(crate) fn of_file(metadata: &std::fs::Metadata) -> Self {
        Self::of(metadata.uid(), metadata.gid())
    }

    fn of(uid: u32, gid: u32) -> Self {
        match passwd(&uid.to_string()) {
            Some((name, _, gid)) => Self { uid, gid, name: Some(name) },
            None => Self { uid, gid, name: None },
        }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether that is who we are.
    pub(crate) fn is_us(&self) -> bool {
        geteuid().as_raw() == self.uid
    }

    /// As people know it.
    pub(crate) fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }

    /// A command that is run as this user, with little of our environment.
    pub(crate) fn command(&self, program: &Path) -> Command {
        self.build(program, false)
    }

    /// The same of one that does not outlive the thread that starts it, where util-linux has the means: the kernel tells
    /// it to end at once.
    pub(crate) fn tied_command(&self, program: &Path) -> Command {
        self.build(program, true)
    }

    fn build(&self, program: &Path, tied: bool) -> Command {
        let setpriv = setpriv();
        let mut arguments = Vec::new();
        if !self.is_us() {
            arguments.extend([format!("--reuid={}", self.uid), format!("--regid={}", self.gid)]);
            // Keys of TLS are often a group's.
            arguments.push(if self.name.is_some() { "--init-groups" } else { "--clear-groups" }.to_owned());
        }
        if tied {
            // An immediate shutdown: unlike SIGKILL it leaves no shared memory behind.
            arguments.push("--pdeathsig=QUIT".to_owned());
        }
        let mut command = match setpriv.filter(|_| !arguments.is_empty()) {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(arguments).arg("--").arg(program);
                command
            }
            None => {
                let mut command = Command::new(program);
                if !self.is_us() {
                    command.uid(self.uid).gid(self.gid);
                }
                command
            }
        };
        command.env_clear().envs(environment());
        command.stdin(Stdio::null());
        command
    }

    /// Whether this user may do with a file what `test` checks by a flag, such as `-x`.
    pub(crate) fn can(&self, path: &Path, flag: &str) -> io::Result<bool> {
        let mut command = self.command(Path::new("/bin/sh"));
        // From a folder that everybody can be in.
        command.current_dir("/").args(["-c", &format!("test {flag} \"$0\"")]).arg(path);
        Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
    }

    /// Gives this user what was made at a path, which is no link.
    pub(crate) fn give(&self, path: &Path) -> io::Result<()> {
        if self.is_us() { Ok(()) } else { lchown(path, Some(self.uid), Some(self.gid)) }
    }

    /// The same of an open file.
    pub(crate) fn give_file(&self, file: &File) -> io::Result<()> {
        if self.is_us() { Ok(()) } else { fchown(file, Some(self.uid), Some(self.gid)) }
    }

    /// The same of what is not open for reading or writing (`O_PATH`).
    pub(crate) fn give_handle(&self, handle: &File) -> io::Result<()> {
        if self.is_us() {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        Ok(chownat(handle, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?)
    }

    /// Takes what belongs to somebody else.
    pub(crate) fn take_file(&self, file: &File) -> io::Result<()> {
        fchown(file, Some(self.uid), Some(self.gid))
    }

    /// Whether something belongs to this user.
    pub(crate) fn owns(&self, metadata: &std::fs::Metadata) -> bool {
        metadata.uid() == self.uid
    }
}

/// The user of a name, if there is one.
pub(crate) fn user_named(name: &str) -> Option<Owner> {
    let (name, uid, gid) = passwd(name)?;
    Some(Owner { uid, gid, name: Some(name) })
}

/// Name and numbers of a user, by either, wherever users are kept.
fn passwd(key: &str) -> Option<(String, u32, u32)> {
    let output = Command::new("getent").args(["passwd", key]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let mut fields = text.lines().next()?.split(':');
    let name = fields.next()?.to_owned();
    Some((name, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// util-linux's program, which knows how to do this in a process that is no thread of ours any more.
fn setpriv() -> Option<&'static Path> {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|folder| folder.join("setpriv")).find(|file| file.is_file())?;
        let mut tried = Command::new(&found);
        tried.args(["--pdeathsig=QUIT", "--", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        tried.status().is_ok_and(|status| status.success()).then_some(found)
    };
    SETPRIV.get_or_init(find).as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_name_and_number() {
        let root = user_named("root").unwrap();
        assert!(root.is_root() && root.name() == "root" && Owner::of(0, 7) == root);
        assert_eq!(user_named("nobody of this name"), None);
        assert_eq!(Owner::of(3_999_999_999, 7).name(), "3999999999");
        assert!(Owner::us().is_us());
    }
}
