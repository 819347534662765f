//! All targets on their corpus, on inputs at the limits, and on seeded changes of the corpus: within some seconds,
//! the same ones each time.
//!
//! Longer, or from another seed: `FUZZ_EXECUTIONS=1000000 FUZZ_SEED=7 cargo test --release -p hindsight-fuzz`. An input
//! that fails is left in `fuzz/artifacts/<target>`; with its path in `FUZZ_INPUT` it runs alone.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hindsight_fuzz::mutate::Mutator;
use hindsight_fuzz::{TARGETS, Target, corpus, extremes};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory is counted for the whole process: one target at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What one input may take: some frames or documents of the largest size, and a multiple of its own.
const MEMORY_BASE: usize = 320 << 20;
const MEMORY_FACTOR: usize = 400;
/// Far above what any takes, also on a slow machine that is busy.
const SLOW: Duration = Duration::from_secs(20);
/// Changed inputs for each target, unless said otherwise.
const EXECUTIONS: usize = 3_000;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn seeds(target: Target) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(corpus(target.name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

/// Runs one input. What is wrong with it is an error.
fn run(target: Target, input: &[u8]) -> Result<(), String> {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let begun = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (took, peak) = (begun.elapsed(), MEMORY.peak_usage().saturating_sub(before));
    if let Err(panic) = done {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        return Err(format!("it panicked: {}", text.unwrap_or("?")));
    }
    if peak > MEMORY_BASE + MEMORY_FACTOR * input.len() {
        return Err(format!("{} bytes took {peak} bytes of memory", input.len()));
    }
    if took > SLOW {
        return Err(format!("{} bytes took {took:?}", input.len()));
    }
    Ok(())
}

/// Runs one input; where it fails it is kept.
fn must_pass(target: Target, input: &[u8], what: &str) {
    if let Err(why) = run(target, input) {
        let folder = corpus(target.name).join("../../artifacts").join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(what.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        std::fs::write(&path, input).unwrap();
        panic!("{}, {what}: {why}\nthe input is in {}", target.name, path.display());
    }
}

fn try_target(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let target = *TARGETS.iter().find(|target| target.name == name).unwrap();
    if let Some(path) = std::env::var_os("FUZZ_INPUT") {
        if Path::new(&path).components().any(|part| part.as_os_str() == name) {
            must_pass(target, &std::fs::read(&path).unwrap(), "the input");
        }
        return;
    }
    let begun = Instant::now();
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{name} has no corpus");
    for (path, seed) in &seeds {
        must_pass(target, seed, &format!("seed {}", path.file_name().unwrap().display()));
    }
    for (what, input) in extremes::inputs(name) {
        must_pass(target, &input, what);
    }
    let (executions, seed) = (setting("FUZZ_EXECUTIONS", EXECUTIONS), setting("FUZZ_SEED", 1_u64));
    let mut mutator = Mutator::new(seed);
    // What was changed once is changed again, now and then.
    let mut pool: Vec<Vec<u8>> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let kept = pool.len();
    for execution in 0..executions {
        let (one, other) = (mutator.below(pool.len()), mutator.below(kept));
        let input = mutator.mutate(&pool[one], &pool[other]);
        must_pass(target, &input, &format!("changed {seed}.{execution}"));
        if mutator.below(8) == 0 {
            match pool.len() < kept + 64 {
                true => pool.push(input),
                false => {
                    let at = kept + mutator.below(64);
                    pool[at] = input;
                }
            }
        }
    }
    println!("{name}: {executions} changed inputs in {:.1} s", begun.elapsed().as_secs_f32());
}

#[test]
fn names() {
    try_target("names");
}

#[test]
fn records() {
    try_target("records");
}

#[test]
fn objects() {
    try_target("objects");
}

#[test]
fn sealed() {
    try_target("sealed");
}

#[test]
fn timelines() {
    try_target("timeline");
}

#[test]
fn entries() {
    try_target("entries");
}

#[test]
fn updates() {
    try_target("updates");
}

#[test]
fn ids() {
    try_target("ids");
}

#[test]
fn folds() {
    try_target("fold");
}

#[test]
fn logs() {
    try_target("wal");
}

#[test]
fn archives() {
    try_target("tar");
}

#[test]
fn manifests() {
    try_target("manifest");
}
