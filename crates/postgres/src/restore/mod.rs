//! Giving a server what it recovers from.

mod segments;

pub use segments::{LogSlice, Piece, Segments, SegmentsError, Wanted};
