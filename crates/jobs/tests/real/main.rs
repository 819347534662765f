//! Jobs on real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod capture;
mod main_job;
mod rights;
mod selection;
