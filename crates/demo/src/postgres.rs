//! The play on PostgreSQL: restored into a new cluster beside the one that was lost, which stays as it is.

mod shop;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hindsight_testkit::{PgState, Postgres, PostgresOptions};
use jiff::Timestamp;

use crate::stage::{Stage, narrate, say};
use crate::{PATIENCE, next_second, time};
use shop::Shop;

/// Plays it.
pub async fn play() -> Result<()> {
    let begun = Instant::now();
    narrate("A PostgreSQL server, with the data of a small shop.")?;
    let server = Postgres::start(PostgresOptions::default()).await.context("starting the server")?;
    // The new cluster's folder is made beforehand, as whoever runs the server would.
    let new = Postgres::prepare(PostgresOptions::default())?;
    let shop = Shop::open(&server).await?;
    // The new server asks the program for its log, as a user of its own.
    let stage = Stage::new(&server.uri_of("postgres"))?.installed_in(&new.new_folder("bin")?)?;
    say(&Shop::counts(&server.uri()).await?)?;

    narrate(
        "It is protected by a base backup, and by the log of everything that happens from then on.\n\
         Both are kept in the default repository, a folder in the user's data directory.",
    )?;
    stage.export()?;
    stage.run(&["backup"]).await?;
    stage.run(&["config", "--set", "pitr.enabled=true"]).await?;
    let mut agent = stage.start_agent()?;

    narrate("Business goes on: orders are placed in transactions, customers move.")?;
    shop.trade(Duration::from_secs(6)).await?;
    say(&Shop::counts(&server.uri()).await?)?;

    narrate("A pause, for the proof: hashes of all that is there now.")?;
    let before = PgState::read(&server.uri()).await?;
    show(&before)?;
    // Nothing happens in the second that will be restored: all that was hashed is older, the disaster is younger.
    let moment = next_second(Timestamp::now().as_second()).await;
    next_second(moment).await;

    let disaster = shop.disaster().await?;
    ensure!(moment < disaster, "the clock was set back meanwhile: start the demo again");
    narrate(&format!(
        "{}: a script meant for the test environment deletes all customers and drops the orders.\n\
         The shop does not notice at once, and writes into the ruins.",
        time(disaster)?
    ))?;
    shop.go_on_in_the_ruins().await?;
    say(&Shop::counts(&server.uri()).await?)?;

    let (moment, directory, port) = (time(moment)?, new.data_dir().display().to_string(), new.port().to_string());
    narrate("What can be restored? The agent stores what it has read every 5 s.")?;
    let restore = ["restore", "--time", &moment, "--target-dir", &directory, "--port", &port];
    let plan = [restore.as_slice(), &["--dry-run"]].concat();
    stage.wait_for(&plan, PATIENCE, |_| true).await?;
    agent.check()?;
    stage.run(&["list"]).await?;
    narrate("The second before the disaster can. First a look at what would be done, which changes nothing:")?;
    stage.run(&plan).await?;
    narrate("Then for real, into a new cluster. The old one goes on, and so does the agent.")?;
    stage.run(&[restore.as_slice(), &["-y"]].concat()).await?;

    narrate(&format!("Is this what the shop held at {moment}, all of it and nothing else?"))?;
    let restored = new.uri_of("postgres");
    say(&Shop::counts(&restored).await?)?;
    let after = PgState::read(&restored).await?;
    show(&after)?;
    let differences = before.differences(&after);
    if !differences.is_empty() {
        bail!("not restored, this differs:\n{}", differences.join("\n"));
    }
    narrate("Proof: the hashes of all rows are equal, and so is every table, index, sequence and role.")?;
    agent.check()?;
    agent.stop().await?;
    new.end_of_others().await?;
    say(&format!("\n# Done in {} s. Servers and files are removed.", begun.elapsed().as_secs()))
}

/// Prints the hashes of the shop.
fn show(state: &PgState) -> Result<()> {
    let shop = state.databases.get(shop::DATABASE).context("the shop is gone")?;
    shop.tables.iter().try_for_each(|(table, rows)| say(&format!("{table}: {rows}")))
}
