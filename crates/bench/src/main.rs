//! Benchmarks of Hindsight: every figure beside the limit that the server or the processor sets,
//! measured in one run on the same documents.
//!
//! See docs/benchmarks.md.

mod child;
mod data;
mod hindsight;
mod machine;
mod measure;
mod meter;
mod server;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use data::Dataset;
use hindsight::Hindsight;
use measure::{Bench, backup, log, memory, mib, peers, postgres, restore, s3, say, small};
use server::Server;
use table::Table;
use tokio::signal::unix::{SignalKind, signal};

/// Measures Hindsight against the limits of the server that it works with.
#[derive(Debug, Parser)]
struct Options {
    /// MiB of documents, and of PostgreSQL's data.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    size: u64,
    /// The long form: 2 GiB.
    #[arg(long, conflicts_with = "size")]
    full: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Rounds of what is compared; the best of each counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Updates in the long log.
    #[arg(long, default_value_t = 1_000_000)]
    updates: u64,
    /// MiB of cache of each server.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    cache: u32,
    /// The binary to measure; built from this workspace by default.
    #[arg(long, value_name = "FILE")]
    hindsight: Option<PathBuf>,
    /// Where the results go.
    #[arg(long, value_name = "FOLDER", default_value = "bench/results")]
    out: PathBuf,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Backup,
    Restore,
    Log,
    Small,
    S3,
    Peers,
    Memory,
    Postgres,
}

/// What takes servers of MongoDB.
const MONGODB: [Part; 7] = [Part::Backup, Part::Restore, Part::Log, Part::Small, Part::S3, Part::Peers, Part::Memory];

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// MiB of data.
    fn mib(&self) -> u64 {
        if self.full { 2048 } else { self.size }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    // Whoever stops it finds no servers and no folders left behind.
    tokio::select! {
        done = run(Options::parse()) => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("told to stop"),
    }
}

async fn run(options: Options) -> Result<()> {
    let began = Instant::now();
    let mut about = machine::describe();
    let program = match &options.hindsight {
        Some(program) => program.clone(),
        None => Hindsight::build()?,
    };
    about.insert("hindsight", machine::said(&program.display().to_string(), &["--version"]));

    let mut table = Table::default();
    if MONGODB.into_iter().any(|part| options.wants(part)) {
        table = of_mongodb(&options, &program, &mut about).await?;
    }
    if options.wants(Part::Postgres) {
        let rounds = options.rounds.max(1);
        postgres::measure(&program, options.mib(), rounds, &mut table, &mut about).await?;
    }

    about.insert("run", format!("{:.0} s", began.elapsed().as_secs_f64()));
    for (what, how) in &about {
        println!("{what}: {how}");
    }
    println!("\n{table}");
    std::fs::create_dir_all(&options.out)?;
    let name = about.get("date").map(|date| date.replace(':', "")).unwrap_or_default();
    let file = options.out.join(format!("{name}.json"));
    let results = serde_json::json!({"about": about, "table": table});
    std::fs::write(&file, serde_json::to_string_pretty(&results)?)?;
    println!("written to {}", file.display());
    Ok(())
}

/// Everything that is measured with MongoDB, on servers that end with it.
async fn of_mongodb(options: &Options, program: &Path, about: &mut BTreeMap<&'static str, String>) -> Result<Table> {
    let size = options.mib();
    say(&format!("making {size} MiB of documents"));
    let data = Dataset::generate(size << 20)?;
    let (source, target) = tokio::try_join!(Server::start(options.cache), Server::start(options.cache))?;
    about.insert("mongod", source.version().await?);
    about.insert("mongod cache", format!("{} MiB", options.cache));
    about.insert(
        "data",
        format!(
            "{:.0} MiB of BSON, {} documents in {} collections, {} secondary indexes",
            mib(data.bytes()),
            data.documents(),
            data.collections.len(),
            data.indexes()
        ),
    );
    say("loading the source");
    source.insert(&data, machine::cores()).await?;
    source.build_indexes(&data).await?;
    let mut bench = Bench {
        data,
        source,
        target,
        hindsight: Hindsight::new(program)?,
        rounds: options.rounds.max(1),
        updates: options.updates,
        table: Table::default(),
    };

    let wanted = |part| options.wants(part);
    let free = match wanted(Part::Log) {
        true => Some(log::write_freely(&bench).await?),
        false => None,
    };
    if wanted(Part::Backup) {
        backup::measure(&mut bench).await?;
    } else if wanted(Part::Restore) || wanted(Part::Log) {
        bench.hindsight.run(&bench.source, &["backup"]).await?;
    }
    if wanted(Part::Restore) {
        restore::measure(&mut bench).await?;
    }
    if wanted(Part::S3) {
        s3::measure(&mut bench).await?;
    }
    if wanted(Part::Peers) {
        peers::measure(&mut bench).await?;
    }
    if wanted(Part::Memory) {
        memory::measure(&mut bench).await?;
    }
    if let Some(free) = free {
        log::measure(&mut bench, free).await?;
    }
    if wanted(Part::Small) {
        small::measure(&mut bench, &Hindsight::new(program)?).await?;
    }
    Ok(bench.table)
}
