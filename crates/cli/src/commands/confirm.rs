//! The question before something is changed that cannot be undone.

use std::io::{IsTerminal, Write};

use crate::context::Context;
use crate::exit::{Exit, Failure};

/// Asks whether to go on; only a terminal can answer. `plan` is what people were shown, and is shown
/// here where the output is for programs.
pub(crate) async fn confirm(plan: &str, question: String, context: &Context) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to confirm it on; nothing was changed")
            .hint("run it again with --yes, which asks nothing"));
    }
    if context.out.is_json() {
        context.out.note(plan);
    }
    let answer = tokio::task::spawn_blocking(move || {
        let mut prompt = std::io::stderr();
        prompt.write_all(question.as_bytes()).and_then(|()| prompt.flush())?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        Ok::<_, std::io::Error>(line)
    });
    let answer =
        async { answer.await.map_err(|error| Failure::new(Exit::Other, error.to_string()))?.map_err(Failure::from) };
    let answer = context.unless_stopped(answer).await?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Refused, "not confirmed; nothing was changed")),
    }
}
