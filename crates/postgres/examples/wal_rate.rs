//! How fast the log is read: `wal_rate DIRECTORY SYSTEM_IDENTIFIER [MAJOR_VERSION]`, where the directory has segments of
//! one timeline (a `pg_wal` for one), is read into memory first and then fed in pieces as a connection gives them.

use std::time::{Duration, Instant};
use std::{env, fs};

use hindsight_postgres::wal::{Expect, SegmentSize, Version, WalFile, WalReader};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut args = env::args().skip(1);
    let directory = args.next().ok_or("which directory?")?;
    let system_identifier = args.next().ok_or("which system identifier?")?.parse()?;
    let version = args.next().map(|v| v.parse()).transpose()?.unwrap_or(15);
    let version = Version::from_major(version).ok_or("no such version")?;

    // whatever the size is, names are among those that there are of the smallest
    let smallest = SegmentSize::new(1 << 20).ok_or("no such size")?;
    let mut names = Vec::new();
    let mut bytes = 0;
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if matches!(WalFile::parse(&name, smallest), Some(WalFile::Segment(_))) {
            bytes = entry.metadata()?.len();
            names.push(name);
        }
    }
    names.sort();
    let segment_size = SegmentSize::new(bytes.try_into()?).ok_or("no segments")?;
    let first = names.first().and_then(|name| WalFile::parse(name, segment_size));
    let Some(WalFile::Segment(first)) = first else { return Err("no segments".into()) };
    let start = first.start(segment_size).ok_or("no such position")?;
    let mut log = Vec::new();
    for name in &names {
        log.extend_from_slice(&fs::read(format!("{directory}/{name}"))?);
    }

    let expect = Expect { system_identifier, version, timeline: u32::MAX, segment_size, block_size: 8192 };
    let mut best = Duration::MAX;
    let mut read = None;
    for _ in 0..5 {
        let mut reader = WalReader::new(start, expect);
        let mut events = 0_u64;
        let begin = Instant::now();
        // The last segment ends with what is not yet written.
        let end = log.chunks(64 << 10).find_map(|piece| reader.feed(piece, &mut |_| events += 1).err());
        best = best.min(begin.elapsed());
        read = Some((reader, events, end));
    }
    let Some((reader, events, end)) = read else { return Ok(()) };
    let megabytes = reader.position().since(start).unwrap_or_default() as f64 / 1e6;
    let seconds = best.as_secs_f64();
    println!(
        "{megabytes:.0} MB in {seconds:.3} s: {:.0} MB/s, {} records ({:.1} million/s), {events} events; it ended with: {}",
        megabytes / seconds,
        reader.counts().total(),
        reader.counts().total() as f64 / 1e6 / seconds,
        end.map_or("the log's end".to_owned(), |error| error.to_string()),
    );
    Ok(())
}
