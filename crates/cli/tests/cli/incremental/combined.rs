//! What a restore puts together from a chain, beside what PostgreSQL's own program makes of the same archives, byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hindsight_testkit::{Postgres, PostgresOptions, postgres_programs};

use crate::support::Cli;

/// What is there once and differs by intent: the log, what only one of the two makes, and what is put aside.
const APART: [&str; 8] = [
    "backup_manifest",
    "hindsight.restore",
    "pg_wal",
    "postgresql.auto.conf",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "postmaster.pid",
];

/// The last of a chain, the oldest first, is put together by a restore as it is by `pg_combinebackup`.
pub fn as_by_hand(cli: &Cli, chain: &[String]) {
    let work = tempfile::tempdir().unwrap();
    let unpacked: Vec<Unpacked> = chain.iter().map(|name| Unpacked::of(cli, name, work.path())).collect();
    let expected = by_hand(&unpacked, work.path());
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    let data = target.data_dir();
    let programs = programs_without_server(&target);
    let line = format!(
        "restore {} --target-dir {} --program {} -y",
        chain.last().unwrap(),
        data.display(),
        programs.display()
    );
    let ran = cli.run(&line);
    assert!(ran.code != 0 && data.join("hindsight.restore").exists(), "{ran}");

    let (expected, found) = (files(&expected), files(&data));
    assert!(expected.keys().any(|path| path.starts_with("base/5/")), "{:?}", expected.keys());
    let (by_hand, ours): (BTreeSet<_>, BTreeSet<_>) = (expected.keys().collect(), found.keys().collect());
    let apart: Vec<_> = by_hand.symmetric_difference(&ours).collect();
    assert!(apart.is_empty(), "{chain:?}: only one of the two has {apart:?}");
    let differing = expected.iter().filter_map(|(name, path)| {
        let (by_hand, ours) = (fs::read(path).unwrap(), fs::read(&found[name]).unwrap());
        let blocks = by_hand.chunks(8192).zip(ours.chunks(8192)).position(|(a, b)| a != b);
        let lengths = (by_hand.len(), ours.len());
        (by_hand != ours).then(|| format!("{name}: {lengths:?} bytes, from block {blocks:?} on"))
    });
    let differing: Vec<_> = differing.collect();
    assert!(differing.is_empty(), "{chain:?}: {differing:#?}");
}

/// The archives of a snapshot, unpacked as they are.
struct Unpacked {
    data: PathBuf,
    /// Folders of tablespaces.
    spaces: Vec<PathBuf>,
}

impl Unpacked {
    fn of(cli: &Cli, name: &str, work: &Path) -> Self {
        let found = cli.json(&format!("describe-backup {name}"));
        let stored = PathBuf::from(found["path"].as_str().unwrap().trim_start_matches("file://"));
        let own = work.join(name.replace(':', "-"));
        let data = own.join("base");
        let mut spaces = Vec::new();
        for folder in fs::read_dir(stored.join("data")).unwrap() {
            let folder = folder.unwrap().path();
            let into = own.join(folder.file_name().unwrap());
            fs::create_dir_all(&into).unwrap();
            untar(&folder, &into);
            if into != data {
                spaces.push(into);
            }
        }
        for space in &spaces {
            let link = data.join("pg_tblspc").join(space.file_name().unwrap());
            fs::remove_file(&link).ok();
            symlink(space, &link).unwrap();
        }
        fs::remove_file(data.join("tablespace_map")).ok();
        decode(&stored.join("backup_manifest.zst"), File::create(data.join("backup_manifest")).unwrap());
        Self { data, spaces }
    }
}

/// As `zstd -dc FOLDER/* | tar x` does it.
fn untar(folder: &Path, into: &Path) {
    let mut objects: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    objects.sort();
    let archive = into.with_extension("tar");
    let file = File::create(&archive).unwrap();
    objects.iter().for_each(|object| decode(object, &file));
    let done = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(into).status().unwrap();
    assert!(done.success());
    fs::remove_file(archive).unwrap();
}

fn decode(object: &Path, to: impl std::io::Write) {
    zstd::stream::copy_decode(File::open(object).unwrap(), to).unwrap();
}

/// What PostgreSQL's own program makes of a chain.
fn by_hand(chain: &[Unpacked], work: &Path) -> PathBuf {
    let into = work.join("combined");
    let mut command = Command::new(postgres_programs().unwrap().join("pg_combinebackup"));
    command.args(["--no-sync", "--no-manifest"]).arg("-o").arg(&into);
    for space in &chain.last().unwrap().spaces {
        let to = work.join("combined-spaces").join(space.file_name().unwrap());
        command.arg(format!("--tablespace-mapping={}={}", space.display(), to.display()));
    }
    let done = command.args(chain.iter().map(|each| &each.data)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    into
}

/// Programs of which none is a server: a restore comes to where all is unpacked, and no further.
fn programs_without_server(target: &Postgres) -> PathBuf {
    let (folder, real) = (target.new_folder("programs").unwrap(), postgres_programs().unwrap());
    symlink(real.join("pg_config"), folder.join("pg_config")).unwrap();
    let (program, real) = (folder.join("postgres"), real.join("postgres"));
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exec \"{}\" --version\nexit 1\n", real.display());
    // By another process: what this one has open for writing, children that are being started keep open for a moment.
    let make = format!("cat > '{0}' <<'END'\n{script}END\nchmod 755 '{0}'", program.display());
    assert!(Command::new("sh").args(["-c", &make]).status().unwrap().success());
    folder
}

/// The files of a data directory, by their paths in it.
fn files(data: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(data).unwrap().to_str().unwrap().to_owned();
            if APART.contains(&name.as_str()) {
                continue;
            }
            // Through the links of tablespaces.
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(name, path);
            }
        }
    }
    found
}
