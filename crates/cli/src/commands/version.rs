//! `version`.

use hindsight_format::FORMAT_VERSION;
use serde::Serialize;

use crate::engines;
use crate::exit::Failure;
use crate::output::{Output, Report};

/// Show the version of this program
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hindsight version\n  hindsight version --short")]
pub(crate) struct Args {
    /// The number alone
    #[arg(short, long)]
    short: bool,
}

pub(crate) fn run(args: &Args, out: &Output) -> Result<(), Failure> {
    out.print(&Version {
        version: env!("CARGO_PKG_VERSION"),
        platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        repository_format: FORMAT_VERSION,
        engines: engines::names().collect(),
        short: args.short,
    })
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    platform: String,
    repository_format: u32,
    engines: Vec<&'static str>,
    #[serde(skip)]
    short: bool,
}

impl Report for Version {
    fn text(&self) -> String {
        let Self { version, platform, repository_format, engines, short } = self;
        if *short {
            return format!("{version}\n");
        }
        format!(
            "Version:            {version}\nPlatform:           {platform}\nRepository format:  {repository_format}\nEngines:            {}\n",
            engines.join(", ")
        )
    }
}
