//! The fuzz targets: everything that reads stored bytes, fed with any bytes.
//!
//! A target is a function that panics where a promise is broken. `tests/mutations.rs` runs all of
//! them for some seconds, reproducibly and on any toolchain; `fuzz/` at the top of the tree lets
//! cargo-fuzz run them under libFuzzer. Both begin with the inputs in `fuzz/corpus`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod extremes;
pub mod mutate;
mod oracle;
mod targets;

use std::path::PathBuf;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name, also of its folder in the corpus.
    pub name: &'static str,
    /// Runs one input. Panics where a promise is broken.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 12] = [
    Target { name: "names", run: targets::stored::names },
    Target { name: "records", run: targets::stored::records },
    Target { name: "objects", run: targets::stored::objects },
    Target { name: "sealed", run: targets::stored::sealed },
    Target { name: "timeline", run: targets::timeline::timeline },
    Target { name: "entries", run: targets::oplog::entries },
    Target { name: "updates", run: targets::oplog::updates },
    Target { name: "ids", run: targets::oplog::ids },
    Target { name: "fold", run: targets::fold::fold },
    Target { name: "wal", run: targets::postgres::wal },
    Target { name: "tar", run: targets::postgres::tar },
    Target { name: "manifest", run: targets::postgres::manifest },
];

/// Runs the target `name` on one input.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(input);
}

/// The folder with the inputs that `target` begins with.
pub fn corpus(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus")).join(target)
}

/// Between the parts of an input that has several: a document without fields.
pub const SEPARATOR: [u8; 5] = [5, 0, 0, 0, 0];
