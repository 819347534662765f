//! `roles`.

use clap::builder::PossibleValuesParser;
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
    /// The kind of database [default: that of the connection string; all without one]
    #[arg(long, value_name = "ENGINE", value_parser = PossibleValuesParser::new(engines::names()))]
    engine: Option<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let one = args.engine.as_deref().or_else(|| context.uri().and_then(engines::name_of));
    let (mut grants, mut comments) = (Vec::new(), Vec::new());
    for name in engines::names().filter(|name| one.is_none_or(|one| one == *name)) {
        let engine = engines::offline(name)?;
        let own = engine.grants();
        comments.resize(comments.len() + own.len(), engine.words().comment);
        grants.extend(own);
    }
    context.out.print(&Grants { grants, comments })
}

#[derive(Serialize)]
struct Grants {
    grants: Vec<Grant>,
    /// What begins a comment, for each.
    #[serde(skip)]
    comments: Vec<&'static str>,
}

impl Report for Grants {
    fn text(&self) -> String {
        let told = |(grant, comment): (&Grant, &&str)| format!("{comment} {}\n{}\n", grant.purpose, grant.command);
        self.grants.iter().zip(&self.comments).map(told).collect()
    }
}
