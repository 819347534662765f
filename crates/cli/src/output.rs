//! Printing: one value, as text for people or as JSON for programs.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::exit;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::text::{harmless, line};
use crate::uri::scrub;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON document in one line
    Json,
    /// One JSON document, indented
    JsonPretty,
}

impl Format {
    /// What a command line that cannot be read seems to ask for.
    pub(crate) fn guess(args: impl Iterator<Item = String>) -> Self {
        let args: Vec<_> = args.collect();
        let after = args.windows(2).filter(|pair| ["-o", "--out"].contains(&pair[0].as_str())).map(|pair| &pair[1]);
        let joined = args.iter().filter_map(|arg| arg.strip_prefix("--out=").or_else(|| arg.strip_prefix("-o")));
        let asked: Vec<_> = after.map(String::as_str).chain(joined).collect();
        let found = asked.into_iter().find_map(|format| Self::from_str(format.trim_start_matches('='), false).ok());
        found.unwrap_or(Self::Text)
    }
}

/// A value that is printed: as JSON by its fields, as text by [`Report::text`].
pub(crate) trait Report: Serialize {
    /// For people; whole lines.
    fn text(&self) -> String;
}

/// Where a verb prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output(Format);

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self(format)
    }

    pub(crate) fn is_json(self) -> bool {
        self.0 != Format::Text
    }

    /// Whether text on standard error may be coloured.
    pub(crate) fn has_color(self) -> bool {
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
    }

    /// Prints the result of a verb.
    pub(crate) fn print(self, report: &impl Report) -> Result<(), Failure> {
        if self.is_json() { self.print_json(report) } else { write(&report.text()) }
    }

    /// Prints a result that is JSON whatever the format.
    fn print_json(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = match self.0 {
            Format::JsonPretty => serde_json::to_string_pretty(value),
            _ => serde_json::to_string(value),
        };
        let text = text.map_err(|e| Failure::new(Exit::Other, format!("the result cannot be written as JSON: {e}")))?;
        write(&format!("{text}\n"))
    }

    /// Prints what people want to read before the result is there; programs do not.
    pub(crate) fn say(self, text: &str) -> Result<(), Failure> {
        if self.is_json() { Ok(()) } else { write(text) }
    }

    /// Tells people something beside the result, whatever the format.
    pub(crate) fn note(self, text: &str) {
        // There is nowhere left to complain when standard error is closed.
        let _ = writeln!(std::io::stderr(), "{}", harmless(&scrub(text)));
    }

    /// Says why the verb failed, and ends the program.
    pub(crate) fn fail(self, failure: &Failure) -> ! {
        let told = |text: &str| line(&scrub(text)).into_owned();
        let (what, hint, code) = (told(&failure.what), failure.hint.as_deref().map(told), failure.exit as i32);
        if what.is_empty() {
            exit(code);
        }
        if self.is_json() {
            // The exit code tells it all the same when standard output is closed.
            let _ = self.print_json(&json!({"Error": what, "hint": hint, "code": code}));
        } else {
            self.note(&format!("Error: {what}"));
            if let Some(hint) = hint {
                self.note(&format!("  hint: {hint}"));
            }
        }
        exit(code)
    }

    /// Says what is wrong with the command line, in the parser's words, and ends the program.
    pub(crate) fn fail_with_usage(self, text: &str) -> ! {
        let _ = write!(std::io::stderr(), "{text}");
        exit(Exit::Usage as i32)
    }
}

/// Writes to standard output. A reader that has seen enough, such as `head`, is no failure.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(harmless(text).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Other, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_that_cannot_be_read_still_tells_its_format() {
        let guess = |line: &str| Format::guess(line.split(' ').map(str::to_owned));
        assert_eq!(guess("x --nope"), Format::Text);
        assert_eq!(guess("x -o json --nope"), Format::Json);
        assert_eq!(guess("x --out=json-pretty"), Format::JsonPretty);
        assert_eq!(guess("x -ojson"), Format::Json);
        assert_eq!(guess("x -o nope -o"), Format::Text);
    }
}
