//! A base backup, from the bytes that a server sends to what is wrong with them. No I/O.
//!
//! [`TarReader`] takes its archives apart.

mod tar;

pub use tar::{BLOCK, TarError, TarEvent, TarHeader, TarKind, TarProblem, TarReader};
