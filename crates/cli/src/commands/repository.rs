//! `repository init`, `repository check`, `repository recipients`.

use hindsight_repository::{CheckReport, Error as RepositoryError, Outcome, Recipient, Repository};
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
    /// Make the repository, sealed if wanted; the first backup makes one that is not
    ///
    /// In a sealed repository, all that tells about the data is encrypted with age to public keys.
    /// Backups and agents need no private key; a restore does. Make keys with age-keygen, and keep the
    /// private ones apart from the repository and from the databases: without one, nothing can be
    /// restored.
    #[command(after_help = "Examples:\n  \
        hindsight repository init --repository s3://backups/shop\n  \
        hindsight repository init --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")]
    Init {
        /// Seal everything to this public key; may be given several times, any one opens it
        #[arg(long = "recipient", value_name = "KEY")]
        recipients: Vec<String>,
    },
    /// Show to whom the repository is sealed, or change it for what is stored from now on
    ///
    /// What is stored already stays as it is, readable with the keys that it was sealed to. Agents follow
    /// by themselves.
    #[command(after_help = "Examples:\n  \
        hindsight repository recipients\n  \
        hindsight repository recipients --add age1NEW... --remove age1OLD...")]
    Recipients {
        /// Seal to this public key too
        #[arg(long, value_name = "KEY")]
        add: Vec<String>,
        /// Seal to this one no more
        #[arg(long, value_name = "KEY")]
        remove: Vec<String>,
    },
    /// Try out every kind of request that is needed, on objects that are removed again
    #[command(after_help = "Examples:\n  \
        hindsight repository check\n  \
        hindsight repository check --repository s3://backups/shop")]
    Check,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    match &args.verb {
        Verb::Init { recipients } => init(recipients, context).await,
        Verb::Check => check(context).await,
        Verb::Recipients { add, remove } => change(add, remove, context).await,
    }
}

fn parse(keys: &[String]) -> Result<Vec<Recipient>, Failure> {
    keys.iter().map(|key| key.parse().map_err(|error: RepositoryError| Failure::usage(error.to_string()))).collect()
}

fn texts(recipients: &[Recipient]) -> Vec<String> {
    recipients.iter().map(ToString::to_string).collect()
}

async fn init(recipients: &[String], context: &Context) -> Result<(), Failure> {
    let recipients = parse(recipients)?;
    let repository = Repository::make(context.spec(), &recipients).await.map_err(refused)?;
    let sealed_to = texts(&repository.recipients().await?);
    context.out.print(&Sealed { url: repository.url().to_owned(), made: true, sealed_to })
}

async fn change(add: &[String], remove: &[String], context: &Context) -> Result<(), Failure> {
    let (add, remove) = (parse(add)?, parse(remove)?);
    let Some(repository) = context.repository().await? else {
        return Err(Failure::new(Exit::Unknown, format!("there is no repository at {} yet", context.spec().url))
            .hint("make a sealed one with `repository init --recipient KEY`"));
    };
    let recipients = match add.is_empty() && remove.is_empty() {
        true => repository.recipients().await?,
        false => repository.change_recipients(&add, &remove).await.map_err(refused)?,
    };
    context.out.print(&Sealed { url: repository.url().to_owned(), made: false, sealed_to: texts(&recipients) })
}

/// What cannot be done with this repository is refused, not failed.
fn refused(error: RepositoryError) -> Failure {
    match error {
        RepositoryError::Refused(why) => Failure::new(Exit::Refused, why),
        other => other.into(),
    }
}

/// To whom a repository is sealed.
#[derive(Serialize)]
struct Sealed {
    url: String,
    /// Whether it was made just now.
    made: bool,
    /// Empty: it is not sealed.
    sealed_to: Vec<String>,
}

impl Report for Sealed {
    fn text(&self) -> String {
        let made = if self.made { "The repository is made.\n" } else { "" };
        if self.sealed_to.is_empty() {
            return format!("{}\n{made}It is not sealed: whoever can read it can read the data.\n", self.url);
        }
        let keys: String = self.sealed_to.iter().map(|key| format!("  {key}\n")).collect();
        format!("{}\n{made}New data are sealed to\n{keys}", self.url)
    }
}

async fn check(context: &Context) -> Result<(), Failure> {
    let (report, sealed_to, exists) = match context.repository().await? {
        Some(repository) => (repository.check().await, texts(&repository.recipients().await?), true),
        None => (Repository::try_out(context.spec()).await?, Vec::new(), false),
    };
    let failure = report.failure().map(|step| {
        let failure =
            Failure::new(Exit::Repository, format!("the repository cannot be used: {}: {}", step.name, step.why));
        if step.hint.is_empty() { failure } else { failure.hint(step.hint.clone()) }
    });
    match failure {
        // Programs get one document: the error names the step.
        Some(failure) => {
            context.out.say(&Checked { report, sealed_to, exists }.text())?;
            Err(failure)
        }
        None => context.out.print(&Checked { report, sealed_to, exists }),
    }
}

/// What was tried.
#[derive(Serialize)]
struct Checked {
    #[serde(flatten)]
    report: CheckReport,
    /// Empty: it is not sealed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sealed_to: Vec<String>,
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
        let sealed = match self.sealed_to.as_slice() {
            [] => String::new(),
            some => format!("Sealed to {}.\n", some.join(", ")),
        };
        format!("{}{state}\n{}{sealed}{verdict}", self.report.url, text::table(&rows, &[2]))
    }
}
