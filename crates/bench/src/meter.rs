//! What work costs: time, processor seconds of those who do it, and how busy the machine was with
//! other things meanwhile.
//!
//! Figures come from `/proc` (proc(5)); processor times there count in ticks of 10 ms.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What one piece of work cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spent {
    /// Seconds on the clock.
    pub wall: f64,
    /// Processor seconds of the client: this process, or the child that did the work.
    pub client: f64,
    /// Processor seconds of the servers.
    pub server: f64,
    /// Cores that others on this machine kept busy meanwhile, on average.
    pub others: f64,
}

/// Measures from its start to [`Meter::stop`].
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    busy: f64,
    own: f64,
    servers: Vec<(u32, f64)>,
}

impl Meter {
    /// Begins to measure, with the servers of these process ids.
    pub fn start(servers: &[u32]) -> Result<Self> {
        let cpu = |&pid: &u32| Ok((pid, cpu_seconds(pid)?));
        Ok(Self {
            busy: busy_seconds()?,
            own: cpu_seconds(std::process::id())?,
            servers: servers.iter().map(cpu).collect::<Result<_>>()?,
            began: Instant::now(),
        })
    }

    /// What was spent by this process and the servers.
    pub fn stop(self) -> Result<Spent> {
        self.stop_with(None)
    }

    /// The same, where a child that used `child` processor seconds is the client.
    pub fn stop_with(self, child: Option<f64>) -> Result<Spent> {
        let wall = self.began.elapsed().as_secs_f64();
        let own = cpu_seconds(std::process::id())? - self.own;
        let mut server = 0.0;
        for (pid, before) in &self.servers {
            server += cpu_seconds(*pid)? - before;
        }
        let known = own + child.unwrap_or_default() + server;
        let others = ((busy_seconds()? - self.busy - known) / wall).max(0.0);
        Ok(Spent { wall, client: child.unwrap_or(own), server, others })
    }
}

/// Processor seconds that a process has used; one that has ended and was not waited for included.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything. After it, fields 14 and 15 are user and system.
    let (_, after) = stat.rsplit_once(')').context("a process without a name")?;
    Ok(sum_of_ticks(after.split_whitespace().skip(11).take(2)))
}

/// Most memory that a running process has ever had resident, in bytes.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes << 10)
}

/// Processor seconds that the machine has worked: everything but idle, waiting, and what is counted
/// twice.
fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal guest guest_nice
    let busy = fields.enumerate().filter(|(at, _)| ![3, 4, 8, 9].contains(at));
    Ok(sum_of_ticks(busy.map(|(_, ticks)| ticks)))
}

fn sum_of_ticks<'a>(fields: impl Iterator<Item = &'a str>) -> f64 {
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}
