//! PostgreSQL: base backups, restores, the capture and the replay of its log, each beside what PostgreSQL's own programs
//! need for the same.

mod base;
mod log;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hindsight_format::ClusterConfig;
use hindsight_testkit::{Postgres, PostgresOptions};
use tempfile::TempDir;

use super::{mib, say};
use crate::child::{self, Ended};
use crate::hindsight::Hindsight;
use crate::machine::said;
use crate::meter::{Meter, Spent};
use crate::table::Table;

/// The database of `pgbench`.
const DATABASE: &str = "bench";
/// MiB that a unit of pgbench's scale takes, with its indexes.
const SCALE: u64 = 15;
/// Bytes of a row of the table of wide rows.
const WIDE: u64 = 8500;

/// What is measured with.
struct Scene {
    server: Postgres,
    hindsight: Hindsight,
    /// For the files of others.
    folder: TempDir,
    rounds: usize,
    /// MiB of all databases.
    size: f64,
    level: i32,
}

/// A base backup of PostgreSQL's own, and the snapshot that was taken beside it.
struct Taken {
    files: PathBuf,
    snapshot: String,
}

/// Measures it all on `size` MiB.
pub async fn measure(
    program: &Path,
    size: u64,
    rounds: usize,
    table: &mut Table,
    about: &mut BTreeMap<&'static str, String>,
) -> Result<()> {
    let scene = Scene::new(program, size, rounds).await?;
    about.insert("postgres", scene.server.sql("SHOW server_version").await?);
    about.insert(
        "postgres data",
        format!("{:.0} MiB: pgbench, and a quarter of it in rows of {WIDE} bytes", scene.size),
    );
    let taken = base::measure(&scene, table).await?;
    log::measure(&scene, &taken, table).await
}

impl Scene {
    async fn new(program: &Path, size: u64, rounds: usize) -> Result<Self> {
        let options = PostgresOptions::default()
            .set("shared_buffers", "256MB")
            .set("max_wal_size", "16GB")
            // Of which PostgreSQL is to replay the same.
            .set("wal_keep_size", "16GB")
            .set("checkpoint_timeout", "1h")
            .set("autovacuum", "off");
        let server = Postgres::start(options).await?;
        // Where everybody may run it, also whom a restored server belongs to.
        let own = server.new_folder("bin")?.join("hindsight");
        std::fs::copy(program, &own)?;
        let (scale, rows) = ((size * 3 / 4 / SCALE).max(1), size * (1 << 20) / 4 / WIDE);
        say(&format!("making {size} MiB of PostgreSQL's data"));
        server.sql(&format!("CREATE DATABASE {DATABASE}")).await?;
        server.pgbench(&["--initialize", "--quiet", "--scale", &scale.to_string(), DATABASE]).await?;
        let wide = format!(
            "CREATE TABLE wide AS SELECT g AS id, (SELECT string_agg(md5(g || '.' || part), ' ') \
             FROM generate_series(1, {WIDE} / 33) AS part) AS body FROM generate_series(1, {rows}) AS g"
        );
        server.sql_in(DATABASE, &wide).await?;
        server.sql_in(DATABASE, "VACUUM ANALYZE").await?;
        let bytes = server.sql("SELECT sum(pg_database_size(oid)) FROM pg_database").await?;
        let level = ClusterConfig::default().backup.compression_level;
        let folder = tempfile::Builder::new().prefix("hindsight-bench-").tempdir()?;
        let size = mib(bytes.parse()?);
        Ok(Self { hindsight: Hindsight::new(&own)?, server, folder, rounds, size, level })
    }

    /// Runs the program to its end.
    async fn hindsight(&self, arguments: &[&str]) -> Result<Ended> {
        self.hindsight.start_at(&self.server.uri(), &[], arguments)?.end().await
    }

    /// Restores with the program into a new directory, and looks whether all is there.
    async fn restore(&self, how: &[&str]) -> Result<Ended> {
        let target = target(&[])?;
        let directory = target.data_dir().display().to_string();
        let arguments: Vec<&str> = ["restore", "--target-dir", &directory, "--no-start", "--yes"]
            .into_iter()
            .chain(how.iter().copied())
            .collect();
        let ended = self.hindsight(&arguments).await?;
        target.restart().await?;
        self.must_have_all(&target, how).await?;
        Ok(ended)
    }

    /// Unpacks what `pg_basebackup` has made, as one would do it by hand, and starts a server on it, which replays what it is
    /// told to. Gives what unpacking took, and all of it.
    async fn unpack(&self, taken: &Taken, settings: &[(&str, String)]) -> Result<(Spent, Spent)> {
        let target = target(settings)?;
        let (all, unpacking) = (Meter::start(&[])?, Meter::start(&[])?);
        let (files, data) = (taken.files.clone(), target.data_dir());
        tokio::task::spawn_blocking(move || untar(&files, &data)).await??;
        let unpacked = unpacking.stop()?;
        if !settings.is_empty() {
            File::create(target.data_dir().join("recovery.signal"))?;
        }
        // It takes connections when it has replayed everything.
        target.restart().await?;
        let state = target.sql("SELECT pg_is_in_recovery()").await?;
        ensure!(state == "f", "the server still recovers");
        target.stop().await?;
        // It does not wait for the disk by itself.
        to_disk(&target.data_dir())?;
        let spent = all.stop()?;
        target.restart().await?;
        self.must_have_all(&target, if settings.is_empty() { &["snapshot"] } else { &["--time"] }).await?;
        Ok((unpacked, spent))
    }

    /// With log, what was written since the base must be there too.
    async fn must_have_all(&self, target: &Postgres, how: &[&str]) -> Result<()> {
        let counts = "SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM wide)";
        let history = "SELECT count(*), sum(delta) FROM pgbench_history";
        let asked = if how.contains(&"--time") { vec![counts, history] } else { vec![counts] };
        for statement in asked {
            let (wanted, found) = (self.server.sql_in(DATABASE, statement), target.sql_in(DATABASE, statement));
            let (wanted, found) = tokio::try_join!(wanted, found)?;
            ensure!(wanted == found, "{found} instead of {wanted} was restored");
        }
        Ok(())
    }
}

/// A place for a cluster, and how a server on it is started.
fn target(settings: &[(&str, String)]) -> Result<Postgres> {
    // As those are that replay for Hindsight.
    let options = PostgresOptions::default().set("shared_buffers", "512MB").set("hot_standby", "off");
    Postgres::prepare(settings.iter().fold(options, |options, (name, value)| options.set(name, value)))
}

/// Unpacks the files of `pg_basebackup --format=tar`, and waits until they are on disk, as Hindsight does.
fn untar(files: &Path, data: &Path) -> Result<()> {
    for (name, into) in [("base", data.to_owned()), ("pg_wal", data.join("pg_wal"))] {
        let plain = files.join(format!("{name}.tar"));
        let (mut packed, mut unpacked);
        let from: &mut dyn std::io::Read = if plain.exists() {
            unpacked = File::open(plain)?;
            &mut unpacked
        } else {
            packed = zstd::Decoder::new(File::open(files.join(format!("{name}.tar.zst")))?)?;
            &mut packed
        };
        let mut tar = Command::new("tar").args(["-x", "-C"]).arg(&into).stdin(Stdio::piped()).spawn()?;
        let mut input = tar.stdin.take().context("tar without an input")?;
        std::io::copy(from, &mut input)?;
        drop(input);
        ensure!(tar.wait()?.success(), "tar could not unpack {name}");
    }
    to_disk(data)
}

/// Waits until all that was written beside `data` is on disk.
fn to_disk(data: &Path) -> Result<()> {
    ensure!(Command::new("sync").arg("-f").arg(data).status()?.success(), "sync failed");
    Ok(())
}
