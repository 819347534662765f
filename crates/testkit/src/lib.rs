//! What the tests of Hindsight judge it by: real servers of MongoDB and PostgreSQL, servers that speak as S3 and Google
//! Cloud Storage do, and for each database an oracle that compares the contents of two clusters, and a random workload.
//!
//! For tests only: errors are [`anyhow::Error`]s meant to be unwrapped, and everything started here (processes, ports,
//! folders) is gone when its value is dropped.

mod binary;
mod disk;
mod faults;
mod faulty;
mod google;
mod http;
mod mongod;
mod objects;
mod postgres;
mod replica_set;
mod s3;
mod spawner;
mod state;
mod tls;
pub mod workload;

pub use binary::{mongod_binary, mongod_version};
pub use disk::SmallDisk;
pub use faults::{Fault, Faults, S3Op};
pub use faulty::{CallFault, FaultyStore};
pub use google::GoogleServer;
pub use mongod::{Mongod, MongodOptions};
pub use postgres::{
    PgCounts, PgDatabase, PgPaused, PgState, PgWorkload, PgWorkloadOptions, Postgres, PostgresOptions,
    postgres_programs, postgres_version,
};
pub use replica_set::{ROOT_PASSWORD, ROOT_USER, ReplicaSet, ReplicaSetBuilder};
pub use s3::{S3_ACCESS_KEY, S3_REGION, S3_SECRET_KEY, S3Server};
pub use state::{ClusterState, CollectionState, Contents, last_optime};
pub use tls::{CLIENT_SUBJECT, Certificates};
