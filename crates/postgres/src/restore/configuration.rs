//! How the server of a directory is run: its settings, who gets in, the options that it was started with.
//!
//! A restore in place takes the data back, not this: the server goes on as it was run last.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

use hindsight_engine::Result;

use crate::server::{Folder, PRIVATE, Programs, local};

/// Larger files and folders beside those of PostgreSQL are no configuration: they come from the backup, as all data do.
const LARGEST: u64 = 1 << 20;
/// Of these the backup's are better than none.
const FILES: [&str; 4] = ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"];
/// The options that a server was started with last, which `pg_ctl restart` uses again.
pub(super) const OPTIONS: &str = "postmaster.opts";

/// How a server was run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// The options that it was started with, without the one that names its directory.
    pub(crate) options: Vec<String>,
    /// Whether it has a `postgresql.conf` that it reads, be it in its directory or elsewhere.
    pub(crate) has_settings: bool,
}

impl Configuration {
    /// That of a directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn of(data: &Folder) -> Result<Self> {
        let text = data.read(OPTIONS)?.unwrap_or_default();
        let options = options(&String::from_utf8_lossy(&text));
        let elsewhere =
            options.iter().any(|option| option.starts_with("config_file=") || option.starts_with("--config"));
        Ok(Self { has_settings: elsewhere || data.has("postgresql.conf")?, options })
    }

    /// The value that a setting would have if the server was started; none where that cannot be told.
    pub(crate) fn value(&self, programs: &Programs, data: &Folder, name: &str) -> Option<String> {
        let mut command = data.owner().command(&programs.program("postgres"));
        command.current_dir(data.path()).arg("-D").arg(data.path()).args(&self.options).args(["-C", name]);
        let output = command.stderr(Stdio::null()).output().ok()?;
        // What keeps it from reading its configuration keeps it from starting.
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The directory that a server takes which is told this one, if it is another: `data_directory` in its `postgresql.conf` counts
    /// more than what it is told (`SelectConfigFiles` in guc.c). That may come from the source, and name its directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn elsewhere(&self, programs: &Programs, data: &Folder) -> Result<Option<String>> {
        let Some(said) = self.value(programs, data, "data_directory").filter(|said| !said.is_empty()) else {
            return Ok(None);
        };
        let here = data.metadata()?;
        let is_here = fs::metadata(&said).is_ok_and(|found| (found.dev(), found.ino()) == (here.dev(), here.ino()));
        Ok((!is_here).then_some(said))
    }

    /// The options in words of a shell.
    pub(crate) fn words(&self) -> String {
        let quoted = self.options.iter().map(|option| super::place::quoted(Path::new(option)));
        quoted.collect::<Vec<_>>().join(" ")
    }
}

/// What is in the file of options: one line, each in quotes and none of those within is marked (`CreateOptsFile` in postmaster.c).
fn options(text: &str) -> Vec<String> {
    let Some((_, rest)) = text.trim_end().split_once(" \"") else { return Vec::new() };
    let mut options = Vec::new();
    let mut words = rest.strip_suffix('"').unwrap_or(rest).split("\" \"");
    while let Some(word) = words.next() {
        match word {
            "-D" => drop(words.next()),
            word if word.starts_with("-D") || word.starts_with("--data-d") || word.starts_with("--data_d") => {}
            word => options.push(word.to_owned()),
        }
    }
    // Those of a restore are none of a server that people have started.
    let is_ours = options.iter().any(|option| option.starts_with(&format!("config_file={PRIVATE}")));
    if is_ours { Vec::new() } else { options }
}

/// Gives a new directory the configuration that another one has now, instead of that of the backup. What is copied, and how, is
/// for their owner to do, so that nothing comes of it that they may not read. Gives what could not be copied.
///
/// # Errors
/// Those of the file system.
pub(crate) fn take_over(from: &Folder, to: &Folder) -> Result<Option<String>> {
    let has = names_of(from)?;
    for name in names_of(to)?.into_iter().filter(|name| has.contains(name) || !FILES.iter().any(|file| name == file)) {
        let path = to.here().join(&name);
        let removed = if is_folder(&path) { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| local(&to.path().join(&name), &error))?;
    }
    if has.is_empty() {
        return Ok(None);
    }
    let mut copy = from.owner().command(Path::new("cp"));
    copy.current_dir(from.path()).args(["-p", "-P", "-R", "--"]).args(has.iter().map(|name| Path::new(".").join(name)));
    let output = copy.arg(to.path()).stdout(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Ok((!output.status.success()).then_some(said))
}

/// Names of all that lies in a directory and is not PostgreSQL's own, nor larger than configuration is.
fn names_of(data: &Folder) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(data.here()).map_err(|error| local(data.path(), &error))? {
        let name = entry.map_err(|error| local(data.path(), &error))?.file_name();
        // What cannot be read is none either.
        let size = size(&data.here().join(&name)).unwrap_or(u64::MAX);
        if size <= LARGEST && !is_own(&name.to_string_lossy()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether the server makes it, or whoever tells it to recover.
fn is_own(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        PRIVATE,
        "PG_VERSION",
        "base",
        "global",
        "postmaster.pid",
        "backup_manifest",
        "recovery.done",
        "server.log",
        "lost+found",
        "postgresql.auto.conf.tmp",
    ];
    const BEGIN: [&str; 3] = ["backup_label", "tablespace_map", "current_logfiles"];
    let is_data = name.starts_with("pg_") && !FILES.contains(&name);
    is_data || name.ends_with(".signal") || NAMES.contains(&name) || BEGIN.iter().any(|begin| name.starts_with(begin))
}

/// Bytes of a file, or of all files in a folder, counted as far as it matters.
fn size(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut sum = 0;
    for entry in fs::read_dir(path)? {
        sum += size(&entry?.path())?;
        if sum > LARGEST {
            break;
        }
    }
    Ok(sum)
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::server::Owner;

    #[test]
    fn options_are_those_that_the_server_had() {
        let text = "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/srv/my data\" \"-c\" \"config_file=/etc/postgresql/15/main/postgresql.conf\"\n";
        assert_eq!(options(text), ["-c", "config_file=/etc/postgresql/15/main/postgresql.conf"]);
        assert_eq!(options("postgres \"-D/srv\" \"-k\" \"/my sockets\"\n"), ["-k", "/my sockets"]);
        assert_eq!(
            options("postgres \"-D\" \".\" \"-c\" \"config_file=hindsight.restore/postgresql.conf\"\n"),
            [""; 0]
        );
        assert_eq!(options("postgres\n"), [""; 0]);
        let configuration = Configuration { options: options(text), has_settings: true };
        assert_eq!(configuration.words(), "-c 'config_file=/etc/postgresql/15/main/postgresql.conf'");
    }

    #[test]
    fn a_new_directory_is_configured_as_the_other_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)]| {
            for (file, text) in files {
                let path = folder.path().join(name).join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Folder::open(&folder.path().join(name), &Owner::us()).unwrap()
        };
        let big = "x".repeat(LARGEST as usize + 1);
        let from = make(
            "from",
            &[
                ("postgresql.conf", "now"),
                ("pg_hba.conf", "now"),
                ("conf.d/now.conf", "now"),
                ("PG_VERSION", "now"),
                ("pg_wal/0001", "now"),
                ("standby.signal", "now"),
                ("dump", &big),
                ("log/big", &big),
            ],
        );
        symlink("/etc/ssl/key", folder.path().join("from/server.key")).unwrap();
        let to = make(
            "to",
            &[
                ("postgresql.conf", "then"),
                ("pg_ident.conf", "then"),
                ("conf.d/then.conf", "then"),
                ("then.conf", "then"),
                ("PG_VERSION", "then"),
                ("dump", &big),
            ],
        );
        assert_eq!(take_over(&from, &to).unwrap(), None);
        let mut names = to.names().unwrap();
        names.sort();
        let expected =
            ["PG_VERSION", "conf.d", "dump", "pg_hba.conf", "pg_ident.conf", "postgresql.conf", "server.key"];
        assert_eq!(names, expected);
        let read = |name: &str| fs::read_to_string(folder.path().join("to").join(name)).unwrap();
        assert_eq!([read("postgresql.conf"), read("pg_ident.conf"), read("PG_VERSION")], ["now", "then", "then"]);
        assert_eq!(to.folder("conf.d").unwrap().names().unwrap(), ["now.conf"]);
        assert_eq!(fs::read_link(folder.path().join("to/server.key")).unwrap(), Path::new("/etc/ssl/key"));
    }
}
