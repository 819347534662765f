//! The measurements, one a module, and what they share.
//!
//! The machine may do other things meanwhile, which can only add to a time. So what is compared is
//! measured in turns, several rounds of it, and the best round of each counts.

pub mod backup;
pub mod log;
pub mod memory;
pub mod peers;
pub mod postgres;
pub mod restore;
pub mod s3;
pub mod small;
pub mod tail;

use crate::data::Dataset;
use crate::hindsight::Hindsight;
use crate::meter::Spent;
use crate::server::Server;
use crate::table::Table;

/// What a run has.
#[derive(Debug)]
pub struct Bench {
    /// The documents.
    pub data: Dataset,
    /// The server that is backed up.
    pub source: Server,
    /// The server that is restored to.
    pub target: Server,
    /// The product.
    pub hindsight: Hindsight,
    /// Rounds of what is repeated.
    pub rounds: usize,
    /// Updates in the long log.
    pub updates: u64,
    /// What was found.
    pub table: Table,
}

/// Several rounds of one piece of work.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Vec<Spent>);

impl Rounds {
    /// Adds a round.
    pub fn push(&mut self, spent: Spent) {
        self.0.push(spent);
    }

    /// Adds the rounds of another.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Seconds of the best round.
    pub fn wall(&self) -> f64 {
        least(self.0.iter().map(|spent| spent.wall))
    }

    /// Least processor seconds of the client in any round.
    pub fn client(&self) -> f64 {
        least(self.0.iter().map(|spent| spent.client))
    }

    /// Least processor seconds of the servers in any round.
    pub fn server(&self) -> f64 {
        least(self.0.iter().map(|spent| spent.server))
    }

    /// Least processor seconds of client and servers in any round.
    pub fn work(&self) -> f64 {
        least(self.0.iter().map(|spent| spent.client + spent.server))
    }

    /// Seconds of the round in the middle; of an even number between those two.
    pub fn median_wall(&self) -> f64 {
        let mut walls: Vec<f64> = self.0.iter().map(|spent| spent.wall).collect();
        median(&mut walls)
    }

    /// All rounds, and what else the machine did.
    pub fn note(&self) -> String {
        let walls: Vec<String> = self.0.iter().map(|spent| format!("{:.3}", spent.wall)).collect();
        format!("rounds {} s; {}", walls.join(" "), self.others())
    }

    /// What else the machine did.
    pub fn others(&self) -> String {
        let others = self.0.iter().map(|spent| spent.others).sum::<f64>() / self.0.len() as f64;
        format!("others kept {others:.1} cores busy")
    }
}

/// What lies in the middle; of an even number between those two.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
    f64::midpoint(middle(values.len().saturating_sub(1) / 2), middle(values.len() / 2))
}

fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, f64::min)
}

/// MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Says on stderr what is being done.
pub fn say(what: &str) {
    eprintln!("bench: {what}");
}
