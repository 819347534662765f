//! What can be restored, and from what: slices and snapshots in, timelines, gaps, restore plans,
//! merge groups and removal plans out. Pure functions, no I/O, no knowledge of any database.
//!
//! Four facts carry everything here:
//!
//! * **Positions are the truth.** One slice follows another only where `next.start` and `prev.end`
//!   are the same position, tag included; never because of a clock, a name's order or a file time.
//! * **Every stored slice is true.** Only what can never be rolled back is captured, so slices that
//!   overlap (parts beside what they were merged into, a paused writer beside its successor) tell
//!   the same story, and any path of meeting slices is valid.
//! * **Time never runs backwards along a stream.** An engine whose log has steps of the clock gives
//!   its points the latest time seen so far. Times then tell which slices can hold what lies before
//!   a given second.
//! * **An epoch that branches off another has its past.** Snapshots and slices of that which end where it branched off or before
//!   count for both, as if they were stored under both.

mod chains;
mod clamp;
mod footing;
mod history;
mod log;
mod losses;
mod merge;
mod parents;
mod plan;
mod refusal;
mod refuse;
mod removal;
mod shared;
mod stretch;
mod time;
mod timeline;
mod trail;

pub use chains::{Chain, chains};
pub use clamp::{Clamped, clamp};
pub use history::History;
pub use losses::{Loss, losses};
pub use merge::{redundant, slices_to_merge};
pub use parents::{children, parents, to_build_upon};
pub use plan::{Cut, RestorePlan, StreamPlan, Target, plan};
pub use refusal::{Nearest, Refusal};
pub use removal::{Holder, KeptLog, Need, Removal, SnapshotSort, Wish, removal, without};
pub use stretch::{Stretch, stretch};
pub use time::{ParsedTime, TimeError, parse_time};
pub use timeline::{Gap, Range, StreamRange, Timeline, Unbacked, timeline};
pub use trail::trails;
