//! Which mongod the tests run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};

struct Found {
    path: PathBuf,
    version: (u32, u32, u32),
}

/// The mongod to run: `HINDSIGHT_MONGOD`, else one in `PATH`, else the cached one, else one fetched now.
///
/// `scripts/get-mongod.sh` decides, once per process.
///
/// # Errors
/// When there is none and none can be fetched; the script's own words are on stderr.
pub fn mongod_binary() -> Result<&'static Path> {
    found().map(|found| found.path.as_path())
}

/// A mongod of exactly this version, as `scripts/get-mongod.sh` gives it: cached, or fetched now.
///
/// # Errors
/// The script does not know the version, or cannot fetch it; its own words are on stderr.
pub fn mongod_of_version(version: &str) -> Result<(PathBuf, (u32, u32, u32))> {
    let mut script = Command::new(script());
    script.arg(version);
    let found = Found::at(PathBuf::from(said(script)?.trim()))?;
    Ok((found.path, found.version))
}

/// The version of [`mongod_binary`]: major, minor, patch.
///
/// # Errors
/// Those of [`mongod_binary`], or the program doesn't say its version.
pub fn mongod_version() -> Result<(u32, u32, u32)> {
    found().map(|found| found.version)
}

fn found() -> Result<&'static Found> {
    static FOUND: OnceLock<Result<Found, String>> = OnceLock::new();
    FOUND
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("no mongod for the tests: {error}"))
}

fn find() -> Result<Found> {
    Found::at(PathBuf::from(said(Command::new(script()))?.trim()))
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/get-mongod.sh")
}

impl Found {
    fn at(path: PathBuf) -> Result<Self> {
        let mut version = Command::new(&path);
        version.arg("--version");
        let version =
            parse_version(&said(version)?).with_context(|| format!("{} --version names no version", path.display()))?;
        Ok(Self { path, version })
    }
}

fn said(mut command: Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Finds `v6.0.5` in the first line, `db version v6.0.5`.
fn parse_version(said: &str) -> Option<(u32, u32, u32)> {
    let words = said.lines().next()?.split_whitespace();
    let mut numbers = words.last()?.strip_prefix('v')?.split(['.', '-']);
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?, number()?))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn reads_the_version() {
        assert_eq!(parse_version("db version v6.0.27\nBuild Info: {"), Some((6, 0, 27)));
        assert_eq!(parse_version("db version v8.0.0-rc1"), Some((8, 0, 0)));
        assert_eq!(parse_version("mongod"), None);
    }
}
