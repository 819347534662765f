//! A `psql` that is kept open.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result};

/// Options of every session: nobody waits long for anybody, and a superuser says what it thinks of that.
const OPTIONS: &str = "-c client_min_messages=error -c lock_timeout=1500 -c statement_timeout=30000 \
                       -c deadlock_timeout=200 -c idle_in_transaction_session_timeout=0";

/// A `psql` that is kept open. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: File,
    turn: u64,
}

impl Session {
    /// Starts `psql`, a command that finds its server and database by itself.
    pub(crate) fn open(mut psql: Command) -> Result<Self> {
        let errors = tempfile::tempfile()?;
        psql.args(["-X", "-q", "-A", "-t"]).env("PGOPTIONS", OPTIONS);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors.try_clone()?);
        let mut child = psql.spawn()?;
        let input = child.stdin.take().context("psql without an input")?;
        let output = BufReader::new(child.stdout.take().context("psql without an output")?);
        let mut session = Self { child, input, output, errors, turn: 0 };
        // What matters of an error is its code.
        session.run("\\set VERBOSITY sqlstate\n")?;
        Ok(session)
    }

    /// Runs statements; gives the codes of their errors. No transaction is open afterwards.
    ///
    /// # Errors
    /// The connection is lost, or could not be made.
    pub(crate) fn run(&mut self, statements: &str) -> Result<Vec<String>> {
        self.turn += 1;
        let mark = format!("turn {} is over", self.turn);
        let sent = write!(self.input, "{statements}\nROLLBACK;\n\\echo {mark}\n").and_then(|()| self.input.flush());
        let mut line = String::new();
        while line.trim_end() != mark {
            line.clear();
            if sent.is_err() || self.output.read_line(&mut line)? == 0 {
                anyhow::bail!("psql ended: {}", self.said()?.trim());
            }
        }
        // It has written of errors before it went on.
        let code = |line: &str| Some(line.split_once("ERROR:  ")?.1.trim().to_owned());
        Ok(self.said()?.lines().filter_map(code).collect())
    }

    /// What it has said of errors since it was asked last.
    fn said(&mut self) -> Result<String> {
        // The child writes at the same place of the same file: it is emptied by nobody else.
        let mut text = String::new();
        self.errors.seek(SeekFrom::Start(0))?;
        self.errors.read_to_string(&mut text)?;
        self.errors.set_len(0)?;
        self.errors.seek(SeekFrom::Start(0))?;
        Ok(text)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The only failure of these is a child that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
