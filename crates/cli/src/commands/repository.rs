//! `repository check`.

use hindsight_repository::{CheckReport, Outcome, Repository};
use serde::Serialize;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::Report;
use crate::text;

/// Look after the repository
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Try out every kind of request that is needed, on objects that are removed again
    #[command(after_help = "Examples:\n  \
        hindsight repository check\n  \
        hindsight repository check --repository s3://backups/shop")]
    Check,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let Verb::Check = args.verb;
    let (report, exists) = match context.repository().await? {
        Some(repository) => (repository.check().await, true),
        None => (Repository::try_out(context.spec()).await?, false),
    };
    let failure = report.failure().map(|step| {
        let failure =
            Failure::new(Exit::Repository, format!("the repository cannot be used: {}: {}", step.name, step.why));
        if step.hint.is_empty() { failure } else { failure.hint(step.hint.clone()) }
    });
    match failure {
        // Programs get one document: the error names the step.
        Some(failure) => {
            context.out.say(&Checked { report, exists }.text())?;
            Err(failure)
        }
        None => context.out.print(&Checked { report, exists }),
    }
}

/// What was tried.
#[derive(Serialize)]
struct Checked {
    #[serde(flatten)]
    report: CheckReport,
    /// Whether there is a repository already.
    exists: bool,
}

impl Report for Checked {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .report
            .steps
            .iter()
            .map(|step| {
                let outcome = match step.outcome {
                    Outcome::Ok => "ok",
                    Outcome::Warning => "WARNING",
                    Outcome::Failed => "FAILED",
                };
                let hint = if step.hint.is_empty() { String::new() } else { format!(" ({})", step.hint) };
                vec![
                    step.name.to_owned(),
                    outcome.to_owned(),
                    format!("{} ms", step.millis),
                    format!("{}{hint}", step.why),
                ]
            })
            .collect();
        let state = if self.exists { "" } else { " (no repository yet; the first backup makes it)" };
        let verdict = if self.report.is_ok() { "The repository can be used.\n" } else { "" };
        format!("{}{state}\n{}{verdict}", self.report.url, text::table(&rows, &[2]))
    }
}
