//! `roles`.

use hindsight_engine::Grant;
use serde::Serialize;

use crate::context::Context;
use crate::engines;
use crate::exit::Failure;
use crate::output::Report;

/// Show the commands that create users with the least rights that suffice
///
/// Nothing is created: the commands are for the database's own shell, run by somebody who may
/// create users. Needs no connection.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight roles\n  \
    hindsight roles -o json")]
pub(crate) struct Args {
    /// The kind of database
    #[arg(long, value_name = "ENGINE", default_value = engines::ALL[0], value_parser = engines::ALL)]
    engine: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    context.out.print(&Grants { grants: engines::offline(&args.engine)?.grants() })
}

#[derive(Serialize)]
struct Grants {
    grants: Vec<Grant>,
}

impl Report for Grants {
    fn text(&self) -> String {
        self.grants.iter().map(|grant| format!("// {}\n{}\n", grant.purpose, grant.command)).collect()
    }
}
