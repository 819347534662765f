//! Where the story is told: the repository's folder, the commands, and what is printed.

use std::fs::File;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::sleep;

/// A part of the story.
pub fn narrate(text: &str) -> Result<()> {
    Ok(writeln!(stdout(), "\n# {}", text.replace('\n', "\n# "))?)
}

/// A line as it is.
pub fn say(text: &str) -> Result<()> {
    Ok(writeln!(stdout(), "{text}")?)
}

/// What the commands of the demo share. The folder is removed with it.
pub struct Stage {
    program: PathBuf,
    uri: String,
    folder: TempDir,
}

impl Stage {
    /// Commands for the database at `uri`, with an empty data directory.
    ///
    /// # Errors
    /// There is no `hindsight` beside this program.
    pub fn new(uri: &str) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("hindsight");
        ensure!(program.is_file(), "{} is missing; `make demo` builds it", program.display());
        let folder = tempfile::Builder::new().prefix("hindsight-demo-").tempdir()?;
        Ok(Self { program, uri: uri.to_owned(), folder })
    }

    /// The same with the program copied into a folder, where everybody may run it.
    pub fn installed_in(mut self, folder: &Path) -> Result<Self> {
        let program = folder.join("hindsight");
        std::fs::copy(&self.program, &program)?;
        self.program = program;
        Ok(self)
    }

    /// Shows the environment that all commands get.
    pub fn export(&self) -> Result<()> {
        say(&format!("$ export HINDSIGHT_URI='{}'", self.uri))?;
        say(&format!("$ export XDG_DATA_HOME={}", self.folder.path().display()))
    }

    /// Shows and runs a command, with its output as it comes.
    pub async fn run(&self, arguments: &[&str]) -> Result<()> {
        say(&format!("$ hindsight {}", arguments.join(" ")))?;
        stdout().flush()?;
        let status = Process::start(&mut self.command(arguments))?.ended().await?;
        ensure!(status.success(), "hindsight {} failed: {status}", arguments.join(" "));
        Ok(())
    }

    /// Starts `hindsight agent` in the background.
    pub fn start_agent(&self) -> Result<Agent> {
        say("$ hindsight agent 2>agent.log &")?;
        let log = self.folder.path().join("agent.log");
        let mut command = self.command(&["agent"]);
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        Ok(Agent { process: Process::start(&mut command)?, log })
    }

    /// What a command prints, run unseen.
    pub async fn output(&self, arguments: &[&str]) -> Result<(ExitStatus, String)> {
        let mut out = tempfile::tempfile_in(self.folder.path())?;
        let mut command = self.command(arguments);
        command.stdout(out.try_clone()?).stderr(out.try_clone()?);
        let status = Process::start(&mut command)?.ended().await?;
        let mut text = String::new();
        std::io::Seek::rewind(&mut out)?;
        std::io::Read::read_to_string(&mut out, &mut text)?;
        Ok((status, text))
    }

    /// Runs a command unseen, again and again, until it succeeds and `enough` of what it prints.
    pub async fn wait_for(&self, arguments: &[&str], patience: Duration, enough: impl Fn(&str) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (status, text) = self.output(arguments).await?;
            if status.success() && enough(&text) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                bail!("after {} s still: hindsight {}\n{}", patience.as_secs(), arguments.join(" "), text.trim_end());
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Settings of whoever starts the demo stay out of it.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("HINDSIGHT_") || name.starts_with("PBM_")) {
                command.env_remove(name);
            }
        }
        command.args(arguments).stdin(Stdio::null()).current_dir(self.folder.path());
        command.env("HINDSIGHT_URI", &self.uri).env("XDG_DATA_HOME", self.folder.path());
        command.env("HOME", self.folder.path()).env("XDG_CONFIG_HOME", self.folder.path().join("config"));
        command
    }
}

/// The agent, killed when dropped.
pub struct Agent {
    process: Process,
    log: PathBuf,
}

impl Agent {
    /// Fails if it ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.process.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the agent ended: {status}\n{}", read(&self.log)),
        }
    }

    /// Asks it to end.
    pub async fn stop(mut self) -> Result<()> {
        self.check()?;
        kill_process(Pid::from_child(&self.process.0), Signal::TERM)?;
        let status = self.process.ended().await?;
        ensure!(status.success(), "the agent did not end well: {status}\n{}", read(&self.log));
        Ok(())
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A process that never outlives this value.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        command.spawn().map(Self).with_context(|| format!("starting {}", command.get_program().display()))
    }

    async fn ended(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The only failure of these is a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
