//! The client, judged by real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod backup;
mod stream;

use std::time::Duration;

use hindsight_engine::{EngineError, FailureKind};
use hindsight_postgres::Address;
use hindsight_postgres::wire::{Connection, Error, Replication};

/// Nothing here takes longer, unless it hangs.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it hangs")
}

async fn connect(uri: &str, replication: Replication) -> Result<Connection, Error> {
    soon(Connection::connect(&Address::parse(uri).unwrap(), replication)).await
}

/// The kind and the text of a failure, which has to have a line on what to do.
fn told(error: Error) -> (FailureKind, String) {
    let error = EngineError::from(error);
    let hint = error.hint.unwrap_or_else(|| panic!("no hint: {}", error.what));
    for line in [&error.what, &hint] {
        assert!(!line.contains('\n') && !line.contains("geheim"), "{line}");
    }
    (error.kind, error.what)
}
