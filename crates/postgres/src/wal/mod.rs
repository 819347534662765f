//! The write-ahead log, from bytes to records, and what can be restored from it. No I/O.
//!
//! A [`WalReader`] takes the log in pieces of any size, verifies all of it and tells the few things that matter to a
//! recovery: which transactions ended when, which restore points there are, where timelines branch off. A [`Resolver`]
//! finds the position that a recovery has to stop at. [`WalFile`] and [`History`] know the names and the text files that
//! servers keep beside it.
//!
//! The format is that of PostgreSQL's own headers, which are named where they say something; it changes between major
//! versions, and every page says which one wrote it.

mod decode;
mod error;
mod event;
mod file;
#[cfg(test)]
mod handmade;
mod history;
mod layout;
mod reader;
mod resolve;
#[cfg(test)]
mod tests;

pub use error::{Problem, WalError};
pub use event::{Checkpoint, Counts, Event, ResourceManager, Span, WalLevel, What, Xid};
pub use file::{Segment, WalFile};
pub use history::{Branch, History, HistoryError};
pub use layout::{Expect, SegmentSize, Version};
pub use reader::{Extent, WalReader};
pub use resolve::{Resolution, Resolver, Stop, Target, Unreachable, resolve};
