//! Whether a data directory is in use.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hindsight_engine::Result;
use rustix::process::{Pid, test_kill_process};

use super::Folder;

/// What servers call themselves, and the programs that they start.
const NAMES: [&str; 2] = ["postgres", "postmaster"];
/// Segments of shared memory that there are (proc(5)).
const SHARED_MEMORY: &str = "/proc/sysvipc/shm";

/// The process that a directory names as its server's, if there is such a process. Its number may be another's by now.
pub(crate) fn process_in(directory: &Path) -> Option<i32> {
    let text = fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    alive(&text)
}

fn alive(text: &str) -> Option<i32> {
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    (test_kill_process(pid) != Err(rustix::io::Errno::SRCH)).then(|| pid.as_raw_nonzero().get())
}

/// Who uses a data directory, in words: a server, or what is left of one that was killed. A number in its file alone is not
/// enough, as it may be another's by now: servers, and all that they start, have their data directory as their working directory.
///
/// # Errors
/// Those of the file system.
pub(crate) fn user_of(data: &Folder) -> Result<Option<String>> {
    let here = data.metadata()?;
    let works_here = |pid: &str| match fs::metadata(format!("/proc/{pid}/cwd")) {
        Ok(there) => Some((there.dev(), there.ino()) == (here.dev(), here.ino())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        // It has ended.
        Err(_) => Some(false),
    };
    let is_server = |pid: &str| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        NAMES.contains(&name.trim())
    };
    let file = data.read("postmaster.pid")?.unwrap_or_default();
    let file = String::from_utf8_lossy(&file);
    if let Some(pid) = alive(&file) {
        // Where that is hidden from us, the file counts.
        if works_here(&pid.to_string()) != Some(false) {
            return Ok(Some(format!("process {pid}")));
        }
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = numbers.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    for pid in numbers {
        if works_here(&pid) == Some(true) && is_server(&pid) {
            return Ok(Some(format!("process {pid}")));
        }
    }
    let attached = fs::read_to_string(SHARED_MEMORY).ok().and_then(|shared| attached(&file, &shared));
    Ok(attached.map(|id| format!("processes with its shared memory {id}")))
}

/// The shared memory of a server, if somebody is attached to it: its number by `LOCK_FILE_LINE_SHMEM_KEY` in miscadmin.h, who is
/// attached by the table of all.
fn attached(file: &str, shared: &str) -> Option<String> {
    let mut words = file.lines().nth(6)?.split_whitespace();
    let (key, id) = (words.next()?, words.next()?);
    shared.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let used =
            matches!(fields.as_slice(), [k, i, _, _, _, _, attached, ..] if (*k, *i) == (key, id) && *attached != "0");
        used.then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Owner;

    #[test]
    fn a_number_that_is_anothers_by_now_is_no_server() {
        let folder = tempfile::tempdir().unwrap();
        let data = Folder::open(folder.path(), &Owner::us()).unwrap();
        let says = |text: &str| {
            fs::write(folder.path().join("postmaster.pid"), text).unwrap();
            (process_in(folder.path()), user_of(&data).unwrap())
        };
        assert_eq!((process_in(folder.path()), user_of(&data).unwrap()), (None, None));
        // This test works elsewhere.
        let us = i32::try_from(std::process::id()).unwrap();
        assert_eq!(says(&format!("{us}\n")), (Some(us), None));
        assert_eq!(says("999999999\n"), (None, None));
        assert_eq!(says("what is this"), (None, None));
    }

    #[test]
    fn who_is_left_of_a_killed_server_has_its_memory() {
        let file = "26753\n/srv/data\n1795545446\n5432\n/run\nlocalhost\n  10257543   2785294\nready   \n";
        let table = |attached: &str| {
            format!(
                "       key      shmid perms size  cpid  lpid nattch   uid\n  10257543    2785294   600 56 26753 26766      {attached}   101\n"
            )
        };
        assert_eq!(attached(file, &table("2")).as_deref(), Some("2785294"));
        assert_eq!(attached(file, &table("0")), None);
        assert_eq!(attached("26753\n", &table("2")), None);
    }
}
