//! The targets, by what they read.

pub(crate) mod fold;
pub(crate) mod oplog;
pub(crate) mod postgres;
pub(crate) mod stored;
pub(crate) mod timeline;
