//! The repository: where everything is kept, and the only code that talks to an object store.
//!
//! `docs/repository-format.md` describes what is stored, byte by byte. The order of things is
//! always the same: bytes first, then the record that names them; removed the other way round.

mod cluster;
mod error;
mod folder;
mod frames;
#[doc(hidden)]
pub mod fuzzing;
mod google;
mod history;
mod housekeeping;
mod leases;
mod merge;
mod probe;
mod profile;
mod reader;
mod recipients;
mod record;
mod repository;
mod s3;
mod seal;
mod source;
mod spec;
mod store;
mod writer;

pub use cluster::{ClusterRepository, Listed};
pub use error::{Error, Failure, FailureKind, Result};
pub use frames::{EncodedFrame, FRAME_TARGET, MAX_FRAME_RAW, encode_frame};
pub use google::GoogleOptions;
pub use history::SliceListing;
pub use leases::{Acquired, DEFAULT_TTL, Lease, host_name};
pub use merge::merge_slices;
pub use probe::{CheckReport, CheckStep, Outcome};
pub use reader::ObjectReader;
pub use repository::Repository;
pub use s3::S3Options;
pub use seal::{Identity, IdentityError, Recipient};
pub use spec::{RepositorySpec, default_url};
pub use store::Entry;
pub use writer::{ObjectWriter, WrittenObject};
