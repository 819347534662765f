//! Backup against its floor: reading the same documents through the driver, and compressing them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use bson::{Document, RawDocumentBuf, doc};
use futures::StreamExt as _;
use hindsight_format::ClusterConfig;
use mongodb::Client;
use tokio::task::JoinHandle;

use super::{Bench, Rounds, mib, say};
use crate::data::{DATABASE, ORDERS, order_id};
use crate::machine::cores;
use crate::meter::{Meter, Spent};

/// Collections that what is in one is dealt out to.
const MANY: usize = 16;

/// The level that sizes are compared at, and the one that most tools compress with.
const REFERENCE: i32 = 3;

/// Measures reading, compressing and backup in turns, and notes the ratio.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let threads = cores();
    let (whole, ranges) = (collections(bench), ranges(bench, 2 * threads as u64));
    let level = ClusterConfig::default().backup.compression_level;
    let [mut one, mut many, mut ranged, mut packing, mut both, mut backup] = [(); 6].map(|()| Rounds::default());
    let (mut packed, mut peak, mut harder) = (0, 0, Rounds::default());
    for round in 0..bench.rounds {
        say(&format!("read, compress, backup: round {} of {}", round + 1, bench.rounds));
        bench.source.settle().await?;
        one.push(read(bench, &whole, 1, None).await?);
        many.push(read(bench, &whole, threads, None).await?);
        ranged.push(read(bench, &ranges, threads, None).await?);
        let (spent, bytes) = compress(bench, level)?;
        packing.push(spent);
        packed = bytes;
        harder.push(compress(bench, REFERENCE)?.0);
        bench.source.settle().await?;
        both.push(read(bench, &ranges, threads, Some(level)).await?);
        if round > 0 {
            bench.hindsight.forget_snapshots().await?;
        }
        let ended = bench.hindsight.run(&bench.source, &["backup"]).await?;
        backup.push(ended.spent);
        peak = peak.max(ended.peak);
    }
    let size = mib(bench.data.bytes());
    let stored = bench.hindsight.stored_bytes("/snapshots/")?;
    let stream = zstd_stream(bench, REFERENCE)?;
    let table = &mut bench.table;
    for (name, rounds) in [
        ("raw read, 1 thread".to_owned(), &one),
        (format!("raw read, {threads} threads"), &many),
        (format!("raw read, {threads} threads, by ranges of _id"), &ranged),
    ] {
        table.add(&name, size / rounds.wall(), "MiB/s", rounds.note());
        table.add(format!("{name}: client"), rounds.client() / size * 1024.0, "core-s/GiB", "");
        table.add(format!("{name}: server"), rounds.server() / size * 1024.0, "core-s/GiB", "");
    }
    let note = format!("frames of 4 MiB, {threads} threads, to {:.1} MiB; {}", mib(packed), packing.note());
    table.add(format!("zstd -{level}"), packing.client() / size * 1024.0, "core-s/GiB", note);

    table.add(format!("zstd -{REFERENCE}"), harder.client() / size * 1024.0, "core-s/GiB", harder.note());

    let read_wall = one.wall().min(many.wall()).min(ranged.wall());
    let reading = one.work().min(many.work()).min(ranged.work());
    let work = reading + packing.client();
    let spread = work / cores() as f64;
    let floor = read_wall.max(spread);
    let reference = read_wall.max((reading + harder.client()) / cores() as f64);
    let note =
        format!("the larger of: best read {read_wall:.2} s, processor work over {} cores {spread:.2} s", cores());
    table.add("backup: floor", floor, "s", note);
    let note = format!("{threads} threads, by ranges of _id, nothing is kept; {}", both.note());
    let name = format!("raw read and zstd -{level} at once");
    table.add(&name, both.wall(), "s", note);
    table.add(format!("{name}: client"), both.client() / size * 1024.0, "core-s/GiB", "");
    table.add(format!("{name}: server"), both.server() / size * 1024.0, "core-s/GiB", "");
    table.add("backup", backup.wall(), "s", backup.note());
    table.add("backup: rate", size / backup.wall(), "MiB/s", "of BSON");
    table.add("backup: client", backup.client() / size * 1024.0, "core-s/GiB", "");
    table.add("backup: server", backup.server() / size * 1024.0, "core-s/GiB", "");
    table.add("backup: peak memory", mib(peak), "MiB", "resident, highest of all rounds");
    table.add("backup: stored", mib(stored), "MiB", "all objects of the snapshot");
    table.add("zstd -3 of the same bytes", mib(stream), "MiB", "as one stream");
    table.add("RATIO backup / floor", backup.wall() / floor, "x", "");
    table.add(format!("RATIO backup / floor with zstd -{REFERENCE}"), backup.wall() / reference, "x", "");
    table.add("RATIO raw read and zstd at once / floor", both.wall() / floor, "x", "what nobody can be faster than");
    table.add("RATIO backup / raw read and zstd at once", backup.wall() / both.wall(), "x", "");
    let note = "core-seconds of client and server against those of the floor: depends less on what else runs";
    table.add("RATIO backup / floor, processor work", backup.work() / work, "x", note);
    table.add("RATIO stored / zstd -3", stored as f64 / stream as f64, "x", "");
    one_or_many(bench).await
}

/// A backup of one collection against one of the same documents in many collections.
async fn one_or_many(bench: &mut Bench) -> Result<()> {
    let orders = bench.data.collections.iter().find(|collection| collection.name == ORDERS);
    let batches: Vec<_> = orders.map(|orders| orders.batches.clone()).unwrap_or_default();
    bench.target.clear().await?;
    bench.target.insert_into("one", &batches, 1).await?;
    bench.target.insert_into("many", &batches, MANY).await?;
    let hindsight = bench.hindsight.another()?;
    let [mut one, mut many] = [(); 2].map(|()| Rounds::default());
    for round in 0..bench.rounds {
        say(&format!("backup of one collection and of {MANY}: round {} of {}", round + 1, bench.rounds));
        for (database, rounds) in [("one.*", &mut one), ("many.*", &mut many)] {
            bench.target.settle().await?;
            rounds.push(hindsight.run(&bench.target, &["backup", "--ns", database]).await?.spent);
        }
    }
    for database in ["one", "many"] {
        bench.target.client.database(database).drop().await?;
    }
    bench.table.add("backup of one collection", one.wall(), "s", one.note());
    bench.table.add(format!("backup of the same in {MANY} collections"), many.wall(), "s", many.note());
    bench.table.add("RATIO rate of one / of many collections", many.wall() / one.wall(), "x", "1 is the same");
    Ok(())
}

/// A command that reads each collection in its natural order.
fn collections(bench: &Bench) -> Vec<Document> {
    bench.data.collections.iter().map(|collection| doc! {"find": collection.name}).collect()
}

/// The same, with the largest collection cut in ranges of `_id`.
fn ranges(bench: &Bench, count: u64) -> Vec<Document> {
    let orders = bench.data.collections.iter().find(|c| c.name == ORDERS).map_or(0, |c| c.documents());
    let mut commands: Vec<Document> = (0..count)
        .map(|part| {
            let mut command = doc! {"find": ORDERS, "hint": {"_id": 1}};
            if part > 0 {
                command.insert("min", doc! {"_id": order_id(orders * part / count)});
            }
            if part + 1 < count {
                command.insert("max", doc! {"_id": order_id(orders * (part + 1) / count)});
            }
            command
        })
        .collect();
    let others = bench.data.collections.iter().filter(|collection| collection.name != ORDERS);
    commands.extend(others.map(|collection| doc! {"find": collection.name}));
    commands
}

/// Reads everything in raw batches, which nobody looks into.
/// With a level, what was read is compressed at the same time.
async fn read(bench: &Bench, commands: &[Document], threads: usize, level: Option<i32>) -> Result<Spent> {
    let queue = Arc::new(Mutex::new(VecDeque::from(commands.to_vec())));
    let meter = Meter::start(&[bench.source.pid()])?;
    let readers: Vec<_> =
        (0..threads).map(|_| tokio::spawn(reader(bench.source.client.clone(), queue.clone(), level))).collect();
    let mut bytes = 0;
    for reader in readers {
        bytes += reader.await??;
    }
    let spent = meter.stop()?;
    anyhow::ensure!(bytes >= bench.data.bytes(), "only {bytes} bytes of {} were read", bench.data.bytes());
    Ok(spent)
}

async fn reader(client: Client, queue: Arc<Mutex<VecDeque<Document>>>, level: Option<i32>) -> Result<u64> {
    let mut bytes = 0;
    let mut compressing: Option<JoinHandle<Result<()>>> = None;
    loop {
        let command = queue.lock().ok().and_then(|mut queue| queue.pop_front());
        let Some(mut command) = command else {
            if let Some(last) = compressing.take() {
                last.await??;
            }
            return Ok(bytes);
        };
        command.insert("batchSize", 1_000_000);
        let command = RawDocumentBuf::try_from(&command)?;
        let mut batches = client.database(DATABASE).run_raw_cursor_command(command).batch().await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            bytes += batch.doc_slices()?.as_bytes().len() as u64;
            let Some(level) = level else { continue };
            if let Some(before) = compressing.take() {
                before.await??;
            }
            compressing = Some(tokio::task::spawn_blocking(move || {
                let mut compressor = compressor(level)?;
                for frame in batch.doc_slices()?.as_bytes().chunks(4 << 20) {
                    compressor.compress(frame)?;
                }
                Ok(())
            }));
        }
    }
}

/// As frames are compressed.
pub(super) fn compressor(level: i32) -> Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.include_checksum(true)?;
    Ok(compressor)
}

/// Compresses all documents in frames, as a snapshot holds them; gives the bytes that remain.
fn compress(bench: &Bench, level: i32) -> Result<(Spent, u64)> {
    let batches = bench.data.batches().map(|(_, batch)| batch.clone()).collect();
    compress_all(batches, level, |compressor, batch| Ok(compressor.compress(&batch.bytes)?.len() as u64))
}

/// Compresses pieces on all cores, and sums what is given for each. Cores that share their parts take longer for the same work
/// when all are busy, as in a backup they are.
pub(super) fn compress_all<T: Send>(
    pieces: Vec<T>,
    level: i32,
    compress: impl Fn(&mut zstd::bulk::Compressor<'static>, T) -> Result<u64> + Sync,
) -> Result<(Spent, u64)> {
    let meter = Meter::start(&[])?;
    let pieces = Mutex::new(pieces);
    let work = || {
        let mut compressor = compressor(level)?;
        let mut bytes = 0;
        while let Some(piece) = pieces.lock().ok().and_then(|mut pieces| pieces.pop()) {
            bytes += compress(&mut compressor, piece)?;
        }
        Ok::<_, anyhow::Error>(bytes)
    };
    let bytes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread ended")));
        ended.sum::<Result<u64>>()
    })?;
    Ok((meter.stop()?, bytes))
}

/// Bytes that remain of all documents in one stream, as `zstd -LEVEL` makes it.
fn zstd_stream(bench: &Bench, level: i32) -> Result<u64> {
    use std::io::Write as _;
    let mut encoder = zstd::Encoder::new(Count(0), level)?;
    for (_, batch) in bench.data.batches() {
        encoder.write_all(&batch.bytes)?;
    }
    Ok(encoder.finish()?.0)
}

/// Counts what is written to it.
struct Count(u64);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
