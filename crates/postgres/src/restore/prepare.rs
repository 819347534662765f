//! Everything that is checked and told before a restore touches anything.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hindsight_catalog::{Cut, RestorePlan};
use hindsight_engine::{Destination, Directory, EngineError, FailureKind, Preview, Result, Selection};
use hindsight_format::{ClusterIdentity, format_time};
use hindsight_repository::{ClusterRepository, host_name};

use super::configuration::Configuration;
use super::log::{StoredLog, unknown_version};
use super::place::Place;
use super::present::Present;
use super::reach::{Found, resolve};
use super::unpack::{self, Link};
use crate::base::{PageSizes, StoredBase};
use crate::feed::blocking;
use crate::server::Programs;
use crate::{Lsn, NAME};

/// Bytes of a base that are unpacked in a second, and bytes of log that a server replays, for an estimate.
const UNPACKED: u64 = 150 << 20;
const REPLAYED: u64 = 50 << 20;
/// Log that lies beside the data while it is replayed: what is kept from one checkpoint to the next (`max_wal_size`), and
/// what is built ahead.
const LOG_ROOM: u64 = 2 << 30;
/// Room for what servers write besides.
const SPARE: u64 = 64 << 20;

/// Refuses to restore into a server that runs.
///
/// # Errors
/// It is none that a base can be unpacked into.
pub fn accept(destination: &Destination) -> Result<()> {
    directory(destination).map(drop)
}

pub(super) fn directory(destination: &Destination) -> Result<&Directory> {
    match destination {
        Destination::Directory(directory) => Ok(directory),
        Destination::Connected => Err(EngineError::new(
            FailureKind::Unsupported,
            "PostgreSQL is restored into a new directory, not into a server that runs",
        )
        .hint(
            "name a directory on this machine with --target-dir, and leave --uri out; --in-place takes that of the stopped server",
        )),
    }
}

/// What a restore needs on this machine.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) base: StoredBase,
    pub(super) programs: Programs,
    pub(super) place: Place,
    /// The base, and those that it builds upon, the newest first.
    pub(super) chain: Vec<Link>,
    /// How they keep relations.
    pub(super) sizes: PageSizes,
}

impl Ready {
    /// Looks for it, and refuses what will not do.
    pub(super) async fn of(
        source: &ClusterRepository,
        plan: &RestorePlan,
        selection: &Selection,
        destination: &Destination,
        kept: Option<&Path>,
    ) -> Result<Self> {
        let kept = kept.map(Path::to_owned);
        let directory = directory(destination)?.clone();
        if !selection.is_all() {
            return Err(EngineError::new(
                FailureKind::Unsupported,
                format!("PostgreSQL is restored as a whole: {} alone cannot be", selection.patterns().join(", ")),
            )
            .hint("restore all of it into a directory, and take what you need out of that server with pg_dump -t"));
        }
        let base = StoredBase::load(source, &plan.base).await?;
        if base.expect(1).is_none() {
            return Err(unknown_version(&base));
        }
        let sizes = base.pages().ok_or_else(|| EngineError::damaged("the base is in blocks of a size that is none"))?;
        require_chain(source, plan, &base).await?;
        let chain = [&plan.base].into_iter().chain(&plan.parents).map(Link::of).collect::<Result<_>>()?;
        let stored = base.clone();
        let (programs, place) = blocking(move || {
            let programs = Programs::find(directory.program.as_deref(), stored.major)?;
            require_libraries(&programs, &stored)?;
            let place = Place::of(&directory, &stored, kept.as_deref())?;
            place.replaces().map_or(Ok(()), |present| require_here(&programs, present))?;
            require_port(directory.port)?;
            require_us(&place)?;
            Ok((programs, place))
        })
        .await?;
        Ok(Self { base, programs, place, chain, sizes })
    }

    /// Makes sure that the data, and the log beside them, fit where they go.
    pub(super) async fn require_room(&self, cut: Lsn) -> Result<()> {
        let mut others: BTreeMap<u32, u64> = BTreeMap::new();
        let mut main = cut.since(self.base.start).unwrap_or(0).min(LOG_ROOM).saturating_add(SPARE);
        match &self.base.increment {
            Some(increment) => {
                main = main.saturating_add(increment.main);
                others.clone_from(&increment.tablespaces);
            }
            None => {
                for part in self.chain.iter().flat_map(|link| &link.parts) {
                    let sum = part.tablespace.map_or(&mut main, |oid| others.entry(oid).or_default());
                    *sum = sum.saturating_add(part.raw_bytes());
                }
            }
        }
        let place = self.place.clone();
        blocking(move || place.require_room(main, &others)).await
    }
}

/// Makes sure that each base of a chain builds upon the next one.
async fn require_chain(source: &ClusterRepository, plan: &RestorePlan, base: &StoredBase) -> Result<()> {
    let mut child = (&plan.base, base.clone());
    for manifest in &plan.parents {
        let parent = StoredBase::load(source, manifest).await?;
        let since = child.1.increment.as_ref().map(|increment| increment.since);
        let alike = |base: &StoredBase| (base.system_identifier, base.major, base.block_size, base.relation_blocks);
        if since != Some(parent.start) || alike(&parent) != alike(&child.1) {
            let what = format!("snapshot {} does not build upon what {} is", child.0.id, manifest.id);
            return Err(EngineError::damaged(what).hint("restore from another snapshot, see `list`"));
        }
        child = (manifest, parent);
    }
    match child.1.increment {
        None => Ok(()),
        Some(_) => Err(EngineError::damaged(format!("snapshot {} holds only what changed since another", child.0.id))
            .hint("restore from another snapshot, see `list`")),
    }
}

/// Looks at plan and destination, changing nothing.
///
/// # Errors
/// What stands in the way.
pub async fn prepare(
    source: &ClusterRepository,
    plan: &RestorePlan,
    selection: &Selection,
    destination: &Destination,
) -> Result<Preview> {
    let ready = Ready::of(source, plan, selection, destination, None).await?;
    let Ready { base, programs, place, chain, .. } = &ready;
    // Every footer is read: what is missing or cut short is found before, not after.
    for link in chain {
        unpack::open(source, link).await?;
    }
    let log = Arc::new(StoredLog::of(source, plan, base, None).await?);
    let found = resolve(&log, plan, base).await?;
    ready.require_room(found.cut).await?;
    let (system, home) = (base.system_identifier, format!("{}:{}", host_name(), place.home().display()));
    let log_bytes = found.cut.since(base.start).unwrap_or(0);
    Ok(Preview {
        into: ClusterIdentity {
            engine: NAME.to_owned(),
            // A new cluster is nobody's that the repository knows.
            id: place.replaces().map_or_else(|| format!("{system}@{home}"), |_| system.to_string()),
        },
        into_hosts: home,
        into_version: programs.version().to_owned(),
        in_place: place.replaces().is_some(),
        kept: place.replaces().map(Present::kept),
        existing: Vec::new(),
        notes: notes(plan, &ready, &found),
        reaches: Some(found.reached),
        estimated_secs: Some(1 + unpack::raw_bytes(chain) / UNPACKED + log_bytes / REPLAYED),
    })
}

/// What must be known beforehand.
fn notes(plan: &RestorePlan, ready: &Ready, found: &Found) -> Vec<String> {
    let Ready { base, programs, place, .. } = ready;
    let mut notes = vec![format!("the server will run as {}", place.owner().name())];
    match place.replaces() {
        Some(present) => notes.extend(present.notes()),
        None => notes.push(
            "it becomes a copy that does not meddle with its source: archiving, replication and synchronous standbys are \
             switched off in its postgresql.auto.conf"
                .to_owned(),
        ),
    }
    if let (Cut::Before(time), overtaken @ 1..) = (&plan.cut, found.overtaken) {
        let what = if overtaken == 1 { "1 transaction is".to_owned() } else { format!("{overtaken} transactions are") };
        notes.push(format!(
            "{what} left out although committed before {}: in the log they come after one that was committed later",
            format_time(*time)
        ));
    }
    for space in place.tablespaces() {
        notes.push(format!("the tablespace {} goes to {}", space.name, space.folder.display()));
    }
    if let Some(present) = place.replaces() {
        notes.push(format!(
            "the server is run as it was last: its configuration is what {} has now (postgresql.conf, pg_hba.conf and what else \
             lies there), with the options that it was started with; that of the backup is used for what is missing",
            present.directory().display()
        ));
    } else if base.configured_outside {
        notes.push(
            "the configuration of the source lies outside of its data directory and was not stored: the new server gets a \
             minimal one, that lets in local users alone"
                .to_owned(),
        );
    }
    notes.extend(of_libraries(base));
    if programs.are_older_than(&base.server_version) {
        notes.push(format!(
            "the programs are of {}, older than the {} of the source: what was fixed since is not",
            programs.version(),
            base.server_version
        ));
    }
    notes.push("replication slots are not in a base, and unlogged tables come back empty".to_owned());
    notes
}

/// A server that is started in a directory has to take that one: what is restored would not be what is run otherwise.
fn require_here(programs: &Programs, present: &Present) -> Result<()> {
    let data = present.open()?;
    let Some(other) = Configuration::of(&data)?.elsewhere(programs, &data)? else { return Ok(()) };
    let shown = present.directory().display();
    Err(EngineError::new(
        FailureKind::Unsupported,
        format!("a server that is started in {shown} runs in {other}: data_directory in its configuration says so"),
    )
    .hint(format!("name {other} with --target-dir, or remove that line")))
}

/// What extensions do by themselves they do in a copy, too.
fn of_libraries(base: &StoredBase) -> Option<String> {
    let names = libraries(base.settings.get("shared_preload_libraries")?);
    (!names.is_empty()).then(|| {
        format!(
            "it loads what its source does ({}): jobs of extensions, such as pg_cron's, run in it as soon as it is started; \
             --no-start leaves it stopped",
            names.join(", ")
        )
    })
}

/// Libraries that the source loads must be here too: records of extensions cannot be replayed without them.
fn require_libraries(programs: &Programs, base: &StoredBase) -> Result<()> {
    let Some(wanted) = base.settings.get("shared_preload_libraries") else { return Ok(()) };
    let Some(folder) = programs.libraries() else { return Ok(()) };
    let missing = libraries(wanted).into_iter().find(|library| !is_there(&folder, library));
    match missing {
        None => Ok(()),
        Some(library) => Err(EngineError::new(
            FailureKind::Unsupported,
            format!("the source loads {library:?} (shared_preload_libraries), which is not in {}", folder.display()),
        )
        .hint("install that extension for this version of PostgreSQL")),
    }
}

fn is_there(folder: &Path, library: &str) -> bool {
    let path = match library.strip_prefix("$libdir/") {
        Some(rest) => folder.join(rest),
        None => folder.join(library),
    };
    // An absolute path stays one.
    let mut with_ending = path.clone().into_os_string();
    with_ending.push(".so");
    path.is_file() || PathBuf::from(with_ending).is_file()
}

/// The names in a list such as `pg_stat_statements, "my lib"`.
fn libraries(list: &str) -> Vec<String> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    for c in list.chars().chain([',']) {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                let whole = std::mem::take(&mut name);
                names.extend(Some(whole.trim().to_owned()).filter(|name| !name.is_empty()));
            }
            c => name.push(c),
        }
    }
    names
}

/// A port that was asked for has to be free.
fn require_port(port: Option<u16>) -> Result<()> {
    let Some(port) = port else { return Ok(()) };
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(EngineError::new(FailureKind::Unsupported, format!("the port {port} cannot be used: {error}"))
                .hint("name another one with --port"))
        }
    }
}

/// The server runs this program to ask for its log.
fn require_us(place: &Place) -> Result<()> {
    let owner = place.owner();
    let program = std::env::current_exe()?;
    if owner.is_us() || owner.can(&program, "-x")? {
        return Ok(());
    }
    let what = format!("{} cannot run {}, which its server asks for the log", owner.name(), program.display());
    Err(EngineError::new(FailureKind::Unsupported, what)
        .hint("put the program where everybody can run it, such as /usr/local/bin"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::settings::tests::base;

    #[test]
    fn lists_of_libraries_are_read_as_servers_read_them() {
        let names = libraries("pg_stat_statements, \"my, lib\" ,, $libdir/auto_explain");
        assert_eq!(names, ["pg_stat_statements", "my, lib", "$libdir/auto_explain"]);
        assert!(libraries("").is_empty());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.so"), "").unwrap();
        let absolute = folder.path().join("a").display().to_string();
        for (library, there) in
            [("a", true), ("a.so", true), ("$libdir/a", true), (absolute.as_str(), true), ("b", false)]
        {
            assert_eq!(is_there(folder.path(), library), there, "{library}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_say_instead() {
        let refused = accept(&Destination::Connected).unwrap_err();
        assert!(refused.hint.unwrap().contains("--target-dir"));
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let refused = require_port(Some(taken.local_addr().unwrap().port())).unwrap_err();
        assert!(refused.hint.unwrap().contains("--port"));
        let mut base = base();
        assert_eq!(of_libraries(&base), None);
        base.settings.insert("shared_preload_libraries".to_owned(), "no_such_library".to_owned());
        assert!(
            of_libraries(&base).is_some_and(|note| note.contains("(no_such_library)") && note.contains("--no-start"))
        );
        let programs = Programs::find(None, 15);
        // Where there is no such version, that is refused first.
        if let Ok(programs) = programs {
            assert!(require_libraries(&programs, &base).unwrap_err().what.contains("no_such_library"));
        }
    }
}
