//! Children that never outlive the test process.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};
use std::thread;

use anyhow::{Context as _, Result};

type Request = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts `command`, under `setpriv --pdeathsig KILL` where util-linux has it, so that the kernel kills the child even
/// when the test process is killed and no destructor runs.
///
/// The kernel sends that signal when the *thread* that started the child ends, and the threads of tests and of their
/// runtimes come and go: one thread that stays for the life of the process does all the starting.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                // A caller that is gone took its wish with it.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let what = format!("{command:?}");
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).context("the thread that starts processes is gone")?;
    child.recv().context("the thread that starts processes is gone")?.with_context(|| format!("could not start {what}"))
}

/// A command for `program` that dies with its parent, if [`spawn`] starts it.
pub(crate) fn tied(program: &Path) -> Command {
    tied_as(program, None)
}

/// The same as another user, by the numbers of user and group, which takes root and util-linux.
pub(crate) fn tied_as(program: &Path, owner: Option<(u32, u32)>) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let setpriv = *SETPRIV.get_or_init(|| {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "true"])
            .output()
            .is_ok_and(|output| output.status.success())
    });
    if !setpriv && owner.is_none() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    if let Some((user, group)) = owner {
        command.args(["--reuid", &user.to_string(), "--regid", &group.to_string(), "--clear-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
