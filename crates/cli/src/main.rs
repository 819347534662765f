//! `hindsight`: the command line, and the agent that captures.
//!
//! A verb is a thin file in [`commands`]: it reads its flags, calls the jobs, and prints a
//! [`report`]. Everything that verbs share (which database, which repository, which cluster) is in
//! [`context`] and [`cluster`]. Started under the name `pbm` (a link) it is the same program, and
//! its help speaks of `pbm`.

mod args;
mod cluster;
mod commands;
mod context;
mod engines;
mod exit;
mod identity;
mod logging;
mod metrics;
mod output;
mod progress;
mod report;
mod settings;
mod stop;
mod text;
mod uri;

use std::process::{ExitCode, exit};

use hindsight_jobs::Journal;
use rustix::fs::Mode;
use rustix::process::umask;
use rustix::thread::disable_transparent_huge_pages;
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Verb};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Frames of all sizes come and go on all threads. The system's allocator keeps of them up to twice what is in use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let started: Vec<_> = std::env::args_os().collect();
    if let Some(code) = engines::help(&started) {
        return code;
    }
    // What is written holds what the databases hold: nobody else reads it.
    let private = Mode::RWXG | Mode::RWXO;
    umask(umask(private) | private);
    // The allocator asks for them (see .cargo/config.toml). Where there is no such switch there are none.
    let _ = disable_transparent_huge_pages(true);
    let program = args::program(std::env::args_os().next());
    let args = args::parse(program);
    let journal = Journal::new(uri::scrub);
    logging::start(args.globals.log_level, args.globals.log_format, args.verb.is_service(), &journal);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => Output::new(args.globals.out).fail(&Failure::from(error)),
    };
    let output = Output::new(args.globals.out);
    let done = runtime.block_on(async {
        let done = run(program, args, journal.clone()).await;
        journal.finish().await;
        done
    });
    // The runtime is not shut down. A thread that waits for a line of input would be waited for, and the
    // database's driver panics where a task of its own still asks for a connection after another was dropped.
    match done {
        Ok(()) => exit(0),
        Err(failure) => output.fail(&failure),
    }
}

async fn run(program: &'static str, args: Args, journal: Journal) -> Result<(), Failure> {
    let Args { globals, verb } = args;
    let stop = CancellationToken::new();
    stop::on_signals(stop.clone(), verb.stops_by_itself())?;
    // These need neither settings nor a repository, and must not fail for want of them.
    match &verb {
        Verb::Version(args) => return commands::version::run(args, &Output::new(globals.out)),
        Verb::Completion(args) => return commands::completion::run(args, program),
        _ => {}
    }
    let context = Context::new(program, globals, stop.clone(), journal)?;
    let repository = context.spec().shown();
    let work = async {
        let named = |failure: Failure| match &repository {
            Some(url) => failure.in_repository(url),
            None => failure,
        };
        commands::run(&verb, &context).await.map_err(named)
    };
    if verb.stops_by_itself() {
        return work.await;
    }
    tokio::select! {
        done = work => done,
        () = stop.cancelled() => Err(Failure::new(Exit::Interrupted, "interrupted")),
    }
}
