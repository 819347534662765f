//! Running the built program as a user would.

mod clusters;

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use tempfile::TempDir;

pub use clusters::{captured, restored, same, state, state_at};

/// The program with a repository and a home of its own, and a database.
pub struct Cli {
    folder: TempDir,
    program: PathBuf,
    variables: Vec<(&'static str, String)>,
}

/// How a run ended.
pub struct Ran {
    pub line: String,
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Cli {
    /// Under its own name, and for the database `uri`.
    pub fn new(uri: &str) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_hindsight"));
        Self { folder: tempfile::tempdir().unwrap(), program, variables: vec![("HINDSIGHT_URI", uri.to_owned())] }
    }

    /// Through a link called `pbm`, with the variable that `pbm` reads.
    pub fn as_pbm(uri: &str) -> Self {
        let mut cli = Self::new(uri);
        let link = cli.folder.path().join("pbm");
        std::os::unix::fs::symlink(&cli.program, &link).unwrap();
        cli.program = link;
        cli.variables = vec![("PBM_MONGODB_URI", uri.to_owned())];
        cli
    }

    /// The same with the program copied into a folder: where everybody may run it, also whom a database's server belongs to.
    pub fn installed_in(mut self, folder: &Path) -> Self {
        let program = folder.join("hindsight");
        // By another process: what this one has open for writing, children that are being started keep open for a moment.
        assert!(Command::new("cp").arg(&self.program).arg(&program).status().unwrap().success());
        self.program = program;
        self
    }

    /// The same with more variables.
    pub fn with(mut self, variables: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// The folder that is the repository.
    pub fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// A folder for what else a test needs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder with the repository where it is, to be looked at; says where.
    pub fn keep(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        let own = ["HINDSIGHT_", "PBM_", "AWS_", "GOOGLE_", "GCE_", "XDG_"];
        // But for where the programs are that a restore starts: those of the tests' servers.
        let ours = |name: &str| name != "HINDSIGHT_PG_BIN" && own.iter().any(|start| name.starts_with(start));
        for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command.args(line.split_whitespace()).stdin(Stdio::null()).current_dir(self.folder.path());
        command.env("HOME", self.folder.path()).env("HINDSIGHT_REPOSITORY", self.repository());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command line to its end; words are what stands between spaces.
    pub fn run(&self, line: &str) -> Ran {
        let output = self.command(line).output().unwrap();
        Ran::of(line, &output)
    }

    /// The same for one that must succeed.
    pub fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{ran}");
        ran.out
    }

    /// The JSON that one that must succeed prints.
    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} -o json"))).unwrap()
    }

    /// Starts a command line.
    pub fn start(&self, line: &str) -> Started {
        let child = self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Started { line: line.to_owned(), child: Some(child), lines: None }
    }
}

impl Cli {
    /// Starts a command line that may say much: both outputs go to the end of a file.
    pub fn start_logged(&self, line: &str, file: &Path) -> Started {
        let log = std::fs::File::options().create(true).append(true).open(file).unwrap();
        let child = self.command(line).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Started { line: line.to_owned(), child: Some(child), lines: None }
    }
}

/// A program that runs; killed when dropped.
pub struct Started {
    line: String,
    child: Option<Child>,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Started {
    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ran {
        Ran::of(&self.line, &self.child.take().unwrap().wait_with_output().unwrap())
    }

    /// Reads what it prints until there is a line with `words`.
    pub fn reads(&mut self, words: &str) {
        let mut lines = self.lines.take().unwrap_or_else(|| {
            let out = self.child.as_mut().unwrap().stdout.take().unwrap();
            BufReader::new(out).lines()
        });
        assert!(lines.any(|line| line.unwrap().contains(words)), "`{}` ended without {words:?}", self.line);
        self.lines = Some(lines);
    }

    /// Sends it a signal, and waits for its end.
    pub fn end(mut self, signal: &str) -> Ran {
        self.signal(signal);
        Ran::of(&self.line, &self.child.take().unwrap().wait_with_output().unwrap())
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ran {
    fn of(line: &str, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let ran = Self { line: line.to_owned(), code: output.status.code().unwrap_or(-1), out, err };
        assert!(!ran.err.contains("panicked"), "{ran}");
        ran
    }

    /// The same without its line, which is the user's own.
    pub fn unsaid(self) -> Self {
        Self { line: String::new(), ..self }
    }

    /// It must have ended with `code`, and have said `words`.
    #[track_caller]
    pub fn ends(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, code, "{self}");
        assert!(self.out.contains(words) || self.err.contains(words), "no {words:?} in {self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}:\n{}{}", self.line, self.code, self.out, self.err)
    }
}

/// A number that the environment may say otherwise.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The seeds that the environment names, or the first one.
pub fn seeds(name: &str) -> anyhow::Result<Vec<u64>> {
    let seeds = std::env::var(name).unwrap_or_else(|_| "1".to_owned());
    seeds.split(',').map(|seed| seed.trim().parse().with_context(|| name.to_owned())).collect()
}

/// Tries until it gives something, for a minute.
#[track_caller]
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(200));
    }
}
