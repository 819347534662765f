//! The password file: <https://www.postgresql.org/docs/current/libpq-pgpass.html>.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use secrecy::SecretString;

use super::{Host, Seat};

/// Nobody's list of passwords is longer.
const LONGEST: u64 = 1 << 20;

/// The password for `user` there. A file that is not there, or that others can read, has none: libpq passes over the
/// latter with a warning.
pub(super) async fn look_up(file: &Path, host: &Host, database: &str, user: &str) -> Option<SecretString> {
    let info = tokio::fs::metadata(file).await.ok().filter(|info| info.is_file())?;
    if info.permissions().mode() & 0o077 != 0 || info.len() > LONGEST {
        tracing::warn!("the password file {} is passed over, as others can read it: chmod 600 it", file.display());
        return None;
    }
    find(&tokio::fs::read_to_string(file).await.ok()?, host, database, user)
}

/// The password in the first line that fits.
pub(super) fn find(text: &str, host: &Host, database: &str, user: &str) -> Option<SecretString> {
    let name = match &host.seat {
        Seat::Tcp(name) => name.clone(),
        // As libpq, which takes the folder that it was built with for the machine itself. There are two of them.
        Seat::Socket(folder) if [Path::new("/tmp"), Path::new("/var/run/postgresql")].contains(&folder.as_path()) => {
            "localhost".to_owned()
        }
        Seat::Socket(folder) => folder.display().to_string(),
    };
    let wanted = [name.as_str(), &host.port.to_string(), database, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = split(line);
        let (password, fields) = fields.split_last()?;
        let fits = fields.len() == wanted.len()
            && fields.iter().zip(wanted).all(|(field, wanted)| field.raw == "*" || field.text == wanted);
        fits.then(|| SecretString::from(password.text.as_str())).filter(|_| !password.text.is_empty())
    })
}

#[derive(Default)]
struct Field {
    /// As it stands there: an escaped `\*` is a name, not a wildcard.
    raw: String,
    text: String,
}

/// Splits at colons; a backslash takes its meaning from what follows. The password is the rest of the line.
fn split(line: &str) -> Vec<Field> {
    let mut fields = vec![Field::default()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let count = fields.len();
        let Some(field) = fields.last_mut() else { break };
        match character {
            ':' if count < 5 => fields.push(Field::default()),
            '\\' => {
                field.raw.push('\\');
                if let Some(next) = characters.next() {
                    field.raw.push(next);
                    field.text.push(next);
                }
            }
            _ => {
                field.raw.push(character);
                field.text.push(character);
            }
        }
    }
    fields
}
