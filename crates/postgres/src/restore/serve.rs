//! The log for a server that recovers: it asks for one file after another, over a socket, and gets it by its name.
//!
//! A server runs `restore_command` for each file. That is this program with a hidden verb, whose body is [`ask`]: it asks
//! the process that restores, which has the next segments built ahead, and moves the file to where the server wants it.
//! Whatever goes wrong ends the recovery (an exit code above 125, see `RestoreArchivedFile` in xlogarchive.c): a server that is
//! told that there is no such file would take it for the end of the log.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt as _;
use hindsight_engine::{EngineError, FailureKind, Job, Result};
use hindsight_repository::Error as RepositoryError;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{Notify, RwLock, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::log::StoredLog;
use super::segments::Wanted;
use crate::Lsn;
use crate::base::StoredBase;
use crate::feed::{blocking, feed};
use crate::server::{Folder, PRIVATE, Private, local};
use crate::wal::{Segment, SegmentSize, WalFile};

/// The socket, in the private folder.
const SOCKET: &str = "wal";
/// Bytes of segments that are built ahead, and how many of them at most.
const AHEAD: u64 = 64 << 20;
const MOST_AHEAD: u64 = 4;
/// Segments that are built at the same time: each takes some 40 MiB of memory.
const AT_ONCE: usize = 2;
/// How often the log is looked for again when slices were merged while they were read.
const AGAIN: u32 = 5;
/// How long the answer may take: the segment has to come out of the repository first.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What `restore_command` is to say: that there is no such file.
const NO_SUCH_FILE: u8 = 1;
/// That nothing can be said.
const FAILED: u8 = 255;

/// Asks the process that restores, over its `socket`, for a `file` of the log, and puts it where `to` says. For the
/// hidden verb that a server runs: `restore-wal --socket SOCKET FILE TO`.
///
/// The exit code is for the server: there is the file, there is none, or the recovery has to end.
pub fn ask(socket: &Path, file: &str, to: &Path) -> ExitCode {
    ExitCode::from(code(socket, file, to))
}

/// The exit code of [`ask`], as a number.
#[doc(hidden)]
pub fn code(socket: &Path, file: &str, to: &Path) -> u8 {
    let asked = || -> std::io::Result<u8> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{file}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        match answer.strip_suffix('\n').and_then(|answer| answer.split_once(' ')) {
            // We rename, not who answers: it may have rights that the server has not.
            Some(("file", path)) => fs::rename(path, to).map(|()| 0),
            Some(("none", _)) => Ok(NO_SUCH_FILE),
            _ => Ok(FAILED),
        }
    };
    asked().unwrap_or(FAILED)
}

/// What a server runs to [`ask`], where `program` is this one: `%f` and `%p` are the server's.
pub(crate) fn command(program: &Path) -> String {
    let program = super::place::quoted(program).replace('%', "%%");
    format!("{program} restore-wal --socket {} %f %p", address())
}

/// The socket, for who runs in the data directory.
pub(crate) fn address() -> String {
    format!("{PRIVATE}/{SOCKET}")
}

/// Answers a server for as long as this is kept.
pub(crate) struct Serving {
    shared: Arc<Shared>,
    _answering: AbortOnDropHandle<()>,
}

struct Shared {
    job: Job,
    base: StoredBase,
    log: RwLock<Arc<StoredLog>>,
    folder: Folder,
    size: SegmentSize,
    building: Semaphore,
    /// Segments that are on their way, or there.
    ahead: Mutex<BTreeMap<String, AbortOnDropHandle<Result<()>>>>,
    /// Up to here the log was given to the server.
    given: Mutex<Lsn>,
    failed: Mutex<Option<EngineError>>,
    failing: Notify,
}

impl Serving {
    /// Begins to answer. Bytes of the log are told as progress as they are given.
    pub(crate) fn start(job: &Job, base: &StoredBase, log: Arc<StoredLog>, private: &Private) -> Result<Self> {
        let folder = private.own().make("segments")?;
        let bound = UnixListener::bind(private.sockets().join(SOCKET));
        let listener = bound.map_err(|error| local(&private.own().path().join(SOCKET), &error))?;
        private.own().give_socket(SOCKET)?;
        let shared = Arc::new(Shared {
            job: job.clone(),
            base: base.clone(),
            size: log.segments().expect().segment_size,
            log: RwLock::new(log),
            folder,
            building: Semaphore::new(AT_ONCE),
            ahead: Mutex::default(),
            given: Mutex::new(base.start),
            failed: Mutex::default(),
            failing: Notify::new(),
        });
        let answering = shared.clone();
        let answering = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    // One at a time, as a server asks.
                    Ok((stream, _)) => answering.answer(stream).await,
                    Err(error) => return answering.fail(error.into()),
                }
            }
        });
        Ok(Self { shared, _answering: AbortOnDropHandle::new(answering) })
    }

    /// Waits until something cannot be given, and tells why.
    pub(crate) async fn failure(&self) -> EngineError {
        loop {
            let failing = self.shared.failing.notified();
            if let Some(error) = self.take_failure() {
                return error;
            }
            failing.await;
        }
    }

    /// Why something could not be given, if something could not.
    pub(crate) fn take_failure(&self) -> Option<EngineError> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Shared {
    fn fail(&self, error: EngineError) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.failing.notify_one();
    }

    async fn answer(self: &Arc<Self>, stream: tokio::net::UnixStream) {
        let mut stream = tokio::io::BufReader::new(stream);
        let mut asked = String::new();
        // Who goes away without a question gets no answer.
        if stream.read_line(&mut asked).await.is_err() {
            return;
        }
        let answer = match self.give(asked.trim_end()).await {
            Ok(Some(name)) => format!("file {PRIVATE}/segments/{name}\n"),
            Ok(None) => "none -\n".to_owned(),
            Err(error) => {
                self.fail(error);
                "failed -\n".to_owned()
            }
        };
        // A server that does not wait any more has its reasons.
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    /// Makes a file, and gives its name in the folder.
    async fn give(self: &Arc<Self>, name: &str) -> Result<Option<String>> {
        let log = self.log.read().await.clone();
        match log.segments().wants(name) {
            Wanted::Nothing => Ok(None),
            Wanted::History(text) => {
                let (folder, name_of_it) = (self.folder.clone(), name.to_owned());
                blocking(move || folder.write(&name_of_it, text.as_bytes())).await?;
                Ok(Some(name.to_owned()))
            }
            Wanted::Segment(_) => {
                let Some(WalFile::Segment(segment)) = WalFile::parse(name, self.size) else { return Ok(None) };
                let built = self.take_ahead(name);
                self.build_ahead(&log, segment);
                match built {
                    Some(built) => joined(built.await)?,
                    None => self.build(name).await?,
                }
                self.tell(&log, segment);
                Ok(Some(name.to_owned()))
            }
        }
    }

    fn take_ahead(&self, name: &str) -> Option<AbortOnDropHandle<Result<()>>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// Begins to build what will be asked for next, and forgets what will not.
    fn build_ahead(self: &Arc<Self>, log: &StoredLog, segment: Segment) {
        let count = (AHEAD / u64::from(self.size.bytes())).clamp(1, MOST_AHEAD);
        let numbers = (1..=count).filter_map(|step| segment.number.checked_add(step));
        let next: Vec<String> =
            numbers.filter_map(|number| Some(log.segments().newest(number)?.name(self.size))).collect();
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.retain(|name, _| {
            let stays = next.contains(name);
            if !stays {
                // One that is still written to goes with the folder.
                let _ = self.folder.remove(name);
            }
            stays
        });
        for name in next {
            let shared = self.clone();
            let building = name.clone();
            let build = async move { shared.build(&building).await };
            ahead.entry(name).or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(build)));
        }
    }

    /// Builds a segment, under its name.
    async fn build(&self, name: &str) -> Result<()> {
        let _turn = self.building.acquire().await;
        for _ in 0..AGAIN {
            let log = self.log.read().await.clone();
            match self.build_from(&log, name).await {
                Err(error) if is_missing(&error) => {
                    let mut present = self.log.write().await;
                    // Another one may have looked again meanwhile.
                    if Arc::ptr_eq(&present, &log) {
                        let found = log.again(&self.base).await?;
                        if found.sources() == log.sources() {
                            return Err(error);
                        }
                        *present = Arc::new(found);
                    }
                }
                done => return done,
            }
        }
        Err(EngineError::damaged("the stored log kept changing while it was read").hint("try again"))
    }

    async fn build_from(&self, log: &Arc<StoredLog>, name: &str) -> Result<()> {
        let Wanted::Segment(pieces) = log.segments().wants(name) else {
            return Err(EngineError::damaged(format!("the log has no segment {name} any more")));
        };
        let (folder, name, size) = (self.folder.clone(), name.to_owned(), u64::from(self.size.bytes()));
        let written = format!("{name}.new");
        let pieces = log.pieces(pieces).and_then(async |piece| {
            self.job.check()?;
            Ok(piece)
        });
        feed(Box::pin(pieces), move |pieces| {
            let failed = |error: std::io::Error| local(&folder.path().join(&written), &error);
            let mut file = folder.create(&written)?;
            let mut len = 0;
            for piece in pieces {
                file.write_all(&piece).map_err(failed)?;
                len += piece.len() as u64;
            }
            if len == size {
                folder.rename(&written, &name)
            } else {
                // The source has failed, and that is told.
                Err(EngineError::damaged(format!("a segment has {len} bytes")))
            }
        })
        .await
    }

    fn tell(&self, log: &StoredLog, segment: Segment) {
        let end = segment.start(self.size).and_then(|start| start.checked_add(self.size.bytes().into()));
        let end = end.map_or(log.segments().cut(), |end| end.min(log.segments().cut()));
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = end.since(*given) {
            self.job.progress.add(more);
            *given = end;
        }
    }
}

fn joined(done: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|error| EngineError::new(FailureKind::Local, format!("building a segment ended: {error}")))?
}

fn is_missing(error: &EngineError) -> bool {
    let source = error.source.as_ref().and_then(|source| source.downcast_ref::<RepositoryError>());
    source.is_some_and(RepositoryError::is_missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_anything_in_it_is_one_word_for_the_shell_and_no_wildcard_for_the_server() {
        let command = command(Path::new("/opt/100% 'sure'/hindsight"));
        assert_eq!(command, r"'/opt/100%% '\''sure'\''/hindsight' restore-wal --socket hindsight.restore/wal %f %p");
    }

    #[test]
    fn nobody_to_ask_ends_the_recovery() {
        let folder = tempfile::tempdir().unwrap();
        let code = code(&folder.path().join("log"), "000000010000000000000001", &folder.path().join("to"));
        assert_eq!(code, 255);
    }
}
