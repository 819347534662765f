//! The play on MongoDB: restored in place, in a replica set that goes on.

mod proof;
mod shop;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hindsight_testkit::ReplicaSet;

use crate::stage::{Stage, narrate, say};
use crate::{PATIENCE, next_second, time};
use proof::State;
use shop::Shop;

/// Plays it.
pub async fn play() -> Result<()> {
    let begun = Instant::now();
    narrate("A replica set of three members, with the data of a small shop.")?;
    let set = ReplicaSet::builder().members(3).start().await.context("starting the replica set")?;
    let client = set.client().await?;
    let shop = Shop::open(&client).await?;
    let stage = Stage::new(&set.uri())?;
    say(&shop.counts().await?)?;

    narrate(
        "It is protected by a snapshot, and by the log of everything that happens from then on.\n\
         Both are kept in the default repository, a folder in the user's data directory.",
    )?;
    stage.export()?;
    stage.run(&["backup"]).await?;
    stage.run(&["config", "--set", "pitr.enabled=true"]).await?;
    let mut agent = stage.start_agent()?;

    narrate("Business goes on: orders are placed in transactions, customers move.")?;
    shop.trade(Duration::from_secs(6)).await?;
    say(&shop.counts().await?)?;

    narrate("A pause, for the proof: the server's hash of all that is there now.")?;
    let before = State::read(&client).await?;
    before.show()?;
    // Nothing happens in the second that will be restored: all that was hashed is older, the disaster is younger.
    let moment = next_second(before.last_write).await;
    next_second(moment).await;

    let disaster = shop.disaster().await?;
    ensure!(before.last_write < moment && moment < disaster, "the clock was set back meanwhile: start the demo again");
    narrate(&format!(
        "{}: a script meant for the test environment deletes all customers and drops the orders.\n\
         The shop does not notice at once, and writes into the ruins.",
        time(disaster)?
    ))?;
    shop.go_on_in_the_ruins().await?;
    say(&shop.counts().await?)?;

    let moment = time(moment)?;
    narrate("What can be restored? The agent stores what it has read every 5 s.")?;
    let plan = ["restore", "--time", &moment, "--dry-run"];
    stage.wait_for(&plan, PATIENCE, |_| true).await?;
    agent.check()?;
    stage.run(&["list"]).await?;
    narrate("The second before the disaster can. First a look at what would be done, which changes nothing:")?;
    stage.run(&plan).await?;
    narrate("Then for real. The agent still runs: it steps aside while the data are replaced.")?;
    stage.run(&["restore", "--time", &moment, "-y"]).await?;

    narrate(&format!("Is this what the shop held at {moment}, all of it and nothing else?"))?;
    say(&shop.counts().await?)?;
    let after = State::read(&client).await?;
    after.show()?;
    let differences = before.differences(&after);
    if !differences.is_empty() {
        bail!("not restored, this differs:\n{}", differences.join("\n"));
    }
    narrate("Proof: the hashes are equal, and so is every option, index and user.")?;

    narrate(
        "Business goes on, and so does protection: a new history begins,\n\
         with a snapshot of what was restored that nobody had to ask for.",
    )?;
    shop.trade(Duration::from_secs(2)).await?;
    agent.check()?;
    stage.wait_for(&["list"], PATIENCE, |text| text.contains(", epoch 2)")).await?;
    stage.run(&["list"]).await?;
    agent.stop().await?;
    say(&format!("\n# Done in {} s. Servers and files are removed.", begun.elapsed().as_secs()))
}
