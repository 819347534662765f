//! `completion`.

use clap_complete::Shell;

use crate::args;
use crate::exit::Failure;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight completion bash > /etc/bash_completion.d/hindsight\n  \
    hindsight completion zsh > ~/.zfunc/_hindsight\n  \
    hindsight completion fish > ~/.config/fish/completions/hindsight.fish")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args, program: &'static str) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::grammar(program), program, &mut script);
    crate::output::write(&String::from_utf8_lossy(&script))
}
