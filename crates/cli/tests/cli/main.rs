//! The built program, as users run it, on real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod away;
mod branches;
mod crash;
mod damage;
mod disks;
mod ends;
mod failover;
mod google;
mod housekeeping;
mod in_place;
mod incremental;
mod metrics;
mod postgres;
mod resume;
mod sealed;
mod secrets;
mod support;
mod walk;
