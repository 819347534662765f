//! Jobs on real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod bucket;
mod capped;
mod capture;
mod damage;
mod drill;
mod faults;
mod full;
mod housekeeping;
mod integrity;
mod main_job;
mod names;
mod ranges;
mod replay;
mod rights;
mod rollback;
mod sealed;
mod selection;
mod sparing;
mod tls;
mod torture;
mod verify;
mod versions;
