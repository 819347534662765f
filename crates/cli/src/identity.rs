//! Private keys for a sealed repository: from files, and the passphrase of a protected one.

use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hindsight_repository::Identity;
use secrecy::SecretString;

use crate::exit::Failure;

/// The passphrase of a protected identity file, where there is nobody to ask.
const VARIABLE: &str = "HINDSIGHT_IDENTITY_PASSPHRASE";

/// Reads all files; none when there are none. May ask for a passphrase.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Option<Identity>, Failure> {
    let mut all: Option<Identity> = None;
    for path in paths {
        let identity = Identity::read(path, || passphrase(path)).map_err(|error| {
            Failure::usage(error.to_string())
                .hint(format!("give a file that age-keygen wrote; set {VARIABLE} where there is no terminal to ask on"))
        })?;
        all = Some(match all {
            Some(all) => all.and(identity),
            None => identity,
        });
    }
    Ok(all)
}

fn passphrase(path: &Path) -> Option<SecretString> {
    if let Some(set) = std::env::var(VARIABLE).ok().filter(|set| !set.is_empty()) {
        return Some(set.into());
    }
    if !std::io::stdin().is_terminal() {
        return None;
    }
    let typed = rpassword::prompt_password(format!("Passphrase for {}: ", path.display())).ok();
    typed.filter(|typed| !typed.is_empty()).map(SecretString::from)
}

/// A warning when others can read the file.
pub(crate) fn warning(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let path = path.display();
    (mode & 0o077 != 0)
        .then(|| format!("Warning: {path} holds private keys, and others can read it: run chmod 600 {path}"))
}
