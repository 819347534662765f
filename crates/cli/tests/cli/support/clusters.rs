//! Clusters of PostgreSQL that come back through the program.

use hindsight_testkit::{PgState, Postgres, PostgresOptions};

use super::{Cli, wait_for};

/// Waits until a time or a position can be restored.
#[track_caller]
pub fn captured(cli: &Cli, moment: &str) {
    let place = Postgres::prepare(PostgresOptions::default()).unwrap();
    let line = format!("restore --time {moment} --target-dir {} --dry-run", place.data_dir().display());
    wait_for(&format!("the log through {moment}"), || (cli.run(&line).code == 0).then_some(()));
}

/// Restores into a directory, starts a server there as its owner would, and gives it.
pub async fn restored(cli: &Cli, how: &str) -> Postgres {
    let target = Postgres::prepare(PostgresOptions::default()).unwrap();
    cli.ok(&format!("restore {how} --target-dir {} --no-start -y", target.data_dir().display()));
    target.restart().await.unwrap();
    target
}

/// What is in a cluster.
pub async fn state(server: &Postgres) -> PgState {
    PgState::read(&server.uri()).await.unwrap()
}

/// What is in a cluster that was restored.
pub async fn state_at(cli: &Cli, how: &str) -> PgState {
    state(&restored(cli, how).await).await
}

/// Everything is what it was.
#[track_caller]
pub fn same(expected: &PgState, found: &PgState) {
    let differences = expected.differences(found);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
