//! The flags that all verbs share, and the verbs.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use secrecy::SecretString;

use crate::commands;
use crate::exit::{Exit, Failure};
use crate::output::{Format, Output};
use crate::uri::scrub;

/// Its own name, and the one whose users it welcomes.
pub(crate) const NAMES: [&str; 2] = ["hindsight", "pbm"];

/// Hindsight takes a database back to any second of its past.
#[derive(Debug, Parser)]
#[command(
    name = "hindsight",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes:\n  \
        0 ok, 1 other failure, 2 wrong usage, 3 refused, 4 another operation in progress,\n  \
        5 database unreachable, 6 authentication or privilege, 7 repository unreachable or not permitted,\n  \
        8 stored data damaged or missing, 9 unknown snapshot, restore, cluster or setting, 130 interrupted"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The flags that all verbs share.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Connection string of the database [env: HINDSIGHT_URI, then PBM_MONGODB_URI; then
    /// hindsight.toml]
    #[arg(long, alias = "mongodb-uri", global = true, value_name = "URI", value_parser = secret)]
    pub(crate) uri: Option<SecretString>,
    /// Where everything is kept: a path, file:///, s3://, az:// or gs:// [env: HINDSIGHT_REPOSITORY;
    /// default: a folder in the user's data directory]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) repository: Option<String>,
    /// Private keys that open a sealed repository, as age-keygen writes them; may be given several times
    /// [env: HINDSIGHT_IDENTITY; then hindsight.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) identity: Vec<PathBuf>,
    /// Name of the cluster, in the repository and in hindsight.toml [env: HINDSIGHT_CLUSTER]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// The settings file [env: HINDSIGHT_SETTINGS; default: ./hindsight.toml, then
    /// ~/.config/hindsight/hindsight.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) out: Format,
    /// What to log to standard error [default: warn; for the agent: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// How to log
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

fn secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(SecretString::from(text))
}

/// What is logged: this and everything worse.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How it is logged.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line with UTC time
    Text,
    /// A JSON document in a line
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Backup(commands::backup::Args),
    List(commands::list::Args),
    #[command(visible_alias = "s")]
    Status(commands::status::Args),
    Config(commands::config::Args),
    DescribeBackup(commands::describe_backup::Args),
    Restore(commands::restore::Args),
    DescribeRestore(commands::describe_restore::Args),
    OplogReplay(commands::oplog_replay::Args),
    Verify(commands::verify::Args),
    DeleteBackup(commands::delete_backup::Args),
    DeletePitr(commands::delete_pitr::Args),
    Cleanup(commands::cleanup::Args),
    CancelBackup(commands::cancel_backup::Args),
    Logs(commands::logs::Args),
    Agent(commands::agent::Args),
    Repository(commands::repository::Args),
    Roles(commands::roles::Args),
    Version(commands::version::Args),
    Completion(commands::completion::Args),
}

impl Verb {
    /// Whether it runs until it is told to stop.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Agent(_))
    }

    /// Whether it ends its work by itself when it is told to stop.
    pub(crate) fn stops_by_itself(&self) -> bool {
        matches!(
            self,
            Self::Agent(_)
                | Self::Backup(_)
                | Self::Restore(_)
                | Self::OplogReplay(_)
                | Self::Verify(_)
                | Self::DeleteBackup(_)
                | Self::DeletePitr(_)
                | Self::Cleanup(_)
                | Self::Logs(_)
        )
    }
}

/// The name that the program was started under.
pub(crate) fn program(started_as: Option<OsString>) -> &'static str {
    let name = started_as.as_deref().and_then(|path| Path::new(path).file_stem()?.to_str());
    let [own, other] = NAMES;
    if name == Some(other) { other } else { own }
}

/// The grammar, with `program` in its examples.
pub(crate) fn grammar(program: &'static str) -> clap::Command {
    let [own, _] = NAMES;
    let mut grammar = Args::command().name(program).bin_name(program);
    let verbs: Vec<_> = grammar.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for verb in verbs {
        grammar = grammar.mut_subcommand(verb, |verb| {
            let examples = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            verb.after_help(examples.replace(&format!("  {own} "), &format!("  {program} ")))
        });
    }
    grammar
}

/// Reads the command line; says what is wrong with it, and ends the program.
pub(crate) fn parse(program: &'static str) -> Args {
    let parsed = grammar(program).try_get_matches().and_then(|matches| Args::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        // Help and version were asked for.
        if !error.use_stderr() {
            error.exit();
        }
        let output = Output::new(Format::guess(std::env::args()));
        if output.is_json() {
            output.fail(&usage(&error));
        }
        // What was typed may hold a password.
        let plain = error.render().to_string();
        let colored = output.has_color() && !plain.contains("://");
        output.fail_with_usage(&if colored { error.render().ansi().to_string() } else { scrub(&plain) })
    })
}

fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no verb was given",
        _ => text.lines().next().unwrap_or_default().trim_start_matches("error: "),
    };
    Failure::new(Exit::Usage, scrub(what)).hint("see --help")
}
