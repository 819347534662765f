//! The programs of PostgreSQL on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hindsight_engine::{EngineError, FailureKind, Result};

use super::environment;

/// Names the folder of the programs to use.
const VARIABLE: &str = "HINDSIGHT_PG_BIN";

/// Programs of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programs {
    folder: PathBuf,
    version: String,
    major: u32,
}

impl Programs {
    /// Those of a major version: where `named` says (one of them, or their folder), else the environment, else where
    /// packages put them, else in `PATH`.
    ///
    /// # Errors
    /// There are none, or those that were named are others.
    pub(crate) fn find(named: Option<&Path>, major: u32) -> Result<Self> {
        let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(named) = named.map(Path::to_owned).or(variable) {
            let folder = if named.is_dir() { named } else { named.parent().map(Path::to_owned).unwrap_or_default() };
            let found = Self::at(folder)?;
            if found.major == major {
                return Ok(found);
            }
            let what = format!(
                "the data are those of PostgreSQL {major}, the programs in {} are those of {}",
                found.folder.display(),
                found.version
            );
            return Err(EngineError::new(FailureKind::Unsupported, what).hint(way_out(major)));
        }
        // Debian and Ubuntu, Red Hat and SUSE, Alpine, built by hand
        let usual = [
            format!("/usr/lib/postgresql/{major}/bin"),
            format!("/usr/pgsql-{major}/bin"),
            format!("/usr/lib/postgresql{major}/bin"),
            format!("/usr/libexec/postgresql{major}"),
            "/usr/local/pgsql/bin".to_owned(),
        ];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = usual.into_iter().map(PathBuf::from).chain(std::env::split_paths(&path));
        let mut others = Vec::new();
        for folder in folders.filter(|folder| folder.join("postgres").is_file()) {
            match Self::at(folder) {
                Ok(found) if found.major == major => return Ok(found),
                Ok(found) => others.push(format!("{} in {}", found.version, found.folder.display())),
                Err(error) => others.push(error.what),
            }
        }
        others.dedup();
        let what = match others.as_slice() {
            [] => format!("there is no PostgreSQL {major} on this machine, which the data are of"),
            others => {
                format!(
                    "there is no PostgreSQL {major} on this machine, which the data are of, only {}",
                    others.join(", ")
                )
            }
        };
        Err(EngineError::new(FailureKind::Unsupported, what).hint(way_out(major)))
    }

    /// Those in a folder.
    fn at(folder: PathBuf) -> Result<Self> {
        let program = folder.join("postgres");
        let failed = |why: String| {
            EngineError::new(FailureKind::Local, format!("{} cannot be run: {why}", program.display()))
                .hint(format!("name the folder of the server's programs with --program or {VARIABLE}"))
        };
        let said = said(&program, "--version").map_err(|error| failed(error.to_string()))?;
        let (version, major) =
            version_in(&String::from_utf8_lossy(&said)).ok_or_else(|| failed("it tells no version".to_owned()))?;
        Ok(Self { folder, version, major })
    }

    /// One of them.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Their version, such as `15.18 (Debian 15.18-0+deb12u1)`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Whether they are of an earlier release of the same major version than `other`.
    pub(crate) fn are_older_than(&self, other: &str) -> bool {
        minor(&self.version) < minor(other)
    }

    /// Where libraries lie that servers load, if that can be told.
    pub(crate) fn libraries(&self) -> Option<PathBuf> {
        let said = said(&self.program("pg_config"), "--pkglibdir").ok()?;
        let folder = PathBuf::from(String::from_utf8(said).ok()?.trim());
        folder.is_dir().then_some(folder)
    }
}

/// What a program says to this, which it is told with little of our environment.
fn said(program: &Path, argument: &str) -> std::io::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.env_clear().envs(environment());
    Ok(command.arg(argument).stdin(Stdio::null()).stderr(Stdio::null()).output()?.stdout)
}

fn way_out(major: u32) -> String {
    format!(
        "install PostgreSQL {major} (Debian: postgresql-{major}), or name the folder of its programs with {VARIABLE}"
    )
}

/// From `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_in(said: &str) -> Option<(String, u32)> {
    let version = said.trim().strip_prefix("postgres (PostgreSQL) ")?;
    Some((version.to_owned(), major(version)?))
}

/// The major version that a version is of.
pub(crate) fn major(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The second number of a version; none of one that is not out yet.
fn minor(version: &str) -> Option<u32> {
    version.split_once('.')?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_tell_them() {
        let said = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(version_in(said), Some(("15.18 (Debian 15.18-0+deb12u1)".to_owned(), 15)));
        assert_eq!(version_in("postgres (PostgreSQL) 18beta1\n"), Some(("18beta1".to_owned(), 18)));
        assert_eq!(version_in("mongod 6.0\n"), None);
        let programs = |version: &str| Programs { folder: PathBuf::new(), version: version.to_owned(), major: 15 };
        assert!(programs("15.4").are_older_than("15.18 (Debian)"));
        assert!(!programs("15.18").are_older_than("15.4") && !programs("15.4").are_older_than("15.4 (x)"));
        assert!(programs("15beta1").are_older_than("15.0"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = Programs::find(Some(Path::new("/nowhere/bin/postgres")), 15).unwrap_err();
        assert!(refused.what.contains("/nowhere/bin/postgres"), "{}", refused.what);
    }
}
