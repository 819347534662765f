//! `BASE_BACKUP`: a whole cluster as tar archives, over one connection
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>).
//!
//! What is read is handed on as it comes; who does not ask for more stops the server, by way of the socket.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use bytes::{Buf as _, Bytes};
use postgres_protocol::message::backend::Message;

use super::channel::Incoming;
use super::connection::{Answer, Connection, Row, quote_text};
use super::error::{Error, Result, utf8};
use crate::{Lsn, TimelineId};

const DOING: &str = "taking a base backup";

/// What is asked of the server.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The name of the backup in `backup_label`.
    pub label: String,
    /// Whether to begin with a checkpoint at once, rather than wait for the next.
    pub fast_checkpoint: bool,
    /// Whether to put all log that the backup needs into it.
    pub with_wal: bool,
    /// Whether to wait until the last log that the backup needs is archived, if the server archives.
    pub wait_for_archive: bool,
    /// Whether to tell progress, and the sizes of tablespaces. The server goes through all files once more for it.
    pub progress: bool,
    /// KiB a second at most, from 32 to 1048576.
    pub max_rate: Option<NonZeroU32>,
    /// Whether to put symbolic links of tablespaces into a file `tablespace_map`.
    pub tablespace_map: bool,
    /// Whether to check the checksums of pages, where there are any.
    pub verify_checksums: bool,
    /// The algorithm of the checksums in the manifest; no manifest if none.
    pub manifest: Option<ManifestChecksums>,
    /// Compression on the server, from 15 on.
    pub compression: Option<Compression>,
    /// Whether to send only what changed since the backup whose manifest was uploaded ([`Connection::begin_upload`]), from 17 on.
    pub incremental: bool,
}

/// `MANIFEST_CHECKSUMS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "they are the names of algorithms")]
pub enum ManifestChecksums {
    None,
    Crc32c,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// `COMPRESSION` and `COMPRESSION_DETAIL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// How.
    pub method: CompressionMethod,
    /// How hard; the server's default if none.
    pub level: Option<i32>,
    /// Threads (zstd only).
    pub workers: Option<u32>,
}

/// What servers can compress with. Which of them a server was built with is found out by asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the names of algorithms")]
pub enum CompressionMethod {
    Gzip,
    Lz4,
    Zstd,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            label: "hindsight".to_owned(),
            fast_checkpoint: true,
            with_wal: false,
            wait_for_archive: false,
            progress: true,
            max_rate: None,
            tablespace_map: true,
            verify_checksums: true,
            manifest: Some(ManifestChecksums::Sha256),
            compression: None,
            incremental: false,
        }
    }
}

/// Where a backup begins or ends in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupPosition {
    /// The position.
    pub lsn: Lsn,
    /// The timeline of it.
    pub timeline: TimelineId,
}

/// A tablespace of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID; none for the main data directory.
    pub oid: Option<u32>,
    /// Its folder on the server; none for the main data directory.
    pub location: Option<String>,
    /// How large it is, in KiB, if progress was asked for.
    pub kib: Option<u64>,
}

/// What comes in the course of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    /// From now on data belong to this archive.
    Archive {
        /// Its name, such as `base.tar` or `16385.tar.zst`.
        name: String,
        /// The folder of the tablespace on the server; none for the main data directory.
        tablespace: Option<String>,
    },
    /// From now on data belong to the manifest (JSON, never compressed).
    Manifest,
    /// A piece, as it lies in the buffer that it was read into: who keeps one for long keeps some 256 KiB.
    Data(Bytes),
    /// So many bytes of the present archive are done, before compression.
    Progress(u64),
}

/// A backup that is running.
///
/// Before 15 archives come without the two blocks of zeros that end a tar file.
#[derive(Debug)]
pub struct BaseBackup {
    connection: Connection,
    start: BackupPosition,
    tablespaces: Vec<Tablespace>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// From 15 on: one copy, with messages in it.
    Tagged,
    /// Before: a copy for each archive, and one for the manifest. What has begun is told once.
    Plain { begun: Option<BackupEvent>, to_come: VecDeque<BackupEvent> },
    /// All data have come, and the result is awaited.
    Ending(Answer),
    /// All has come.
    Done(BackupPosition),
    /// It has failed, and nothing more will come.
    Failed,
}

impl Connection {
    /// Begins a base backup. The session has to be one for replication.
    ///
    /// # Errors
    /// The server does not do it, or not with these options.
    pub async fn base_backup(mut self, options: &BackupOptions) -> Result<BaseBackup> {
        let modern = self.major_version() >= 15;
        let command = if modern { options.command() } else { options.command_before_15()? };
        self.ask(&command, DOING).await?;
        // Two results come first: where it begins, and which tablespaces there are. The copy follows at once.
        let mut answer = Answer::default();
        loop {
            match self.answer(DOING).await? {
                Incoming::Message(Message::CopyOutResponse(_)) => break,
                Incoming::Message(message) => {
                    if answer.take(message, DOING)? {
                        return Err(Error::garbled(DOING, "it ends before it begins"));
                    }
                }
                Incoming::Failed(server) => return Err(self.failed(server, DOING).await),
                Incoming::CopyData(_) | Incoming::CopyBoth => return Err(Error::garbled(DOING, "data out of place")),
            }
        }
        let (start, tablespaces) = answer.rows.split_first().ok_or_else(|| Error::garbled(DOING, "no position"))?;
        let start = position(start)?;
        let tablespaces = tablespaces.iter().map(tablespace).collect::<Result<Vec<_>>>()?;
        let stage = if modern { Stage::Tagged } else { plain(&tablespaces, options.manifest.is_some()) };
        Ok(BaseBackup { connection: self, start, tablespaces, stage })
    }
}

impl BaseBackup {
    /// Where it begins: the log from here on is needed.
    pub fn start(&self) -> BackupPosition {
        self.start
    }

    /// The tablespaces there are, the main data directory among them.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// What comes next; none when all has come, and the server has found nothing wrong with it. May be given up at any
    /// moment.
    ///
    /// # Errors
    /// The server fails, also for damaged pages after the last of the data; or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<BackupEvent>> {
        let next = self.try_next().await;
        if next.is_err() {
            self.stage = Stage::Failed;
        }
        next
    }

    async fn try_next(&mut self) -> Result<Option<BackupEvent>> {
        loop {
            match &mut self.stage {
                Stage::Done(_) => return Ok(None),
                Stage::Failed => return Err(Error::garbled(DOING, "it has failed before")),
                Stage::Ending(answer) => {
                    self.connection.rest(answer, DOING).await?;
                    let end = answer.rows.first().ok_or_else(|| Error::garbled(DOING, "no position at its end"))?;
                    self.stage = Stage::Done(position(end)?);
                    continue;
                }
                Stage::Plain { begun, .. } => {
                    if let Some(event) = begun.take() {
                        return Ok(Some(event));
                    }
                }
                Stage::Tagged => {}
            }
            match (self.connection.answer(DOING).await?, &mut self.stage) {
                (Incoming::CopyData(data), Stage::Tagged) => return tagged(data).map(Some),
                (Incoming::CopyData(data), _) => return Ok(Some(BackupEvent::Data(data))),
                (Incoming::Message(Message::CopyDone), Stage::Plain { to_come, .. }) if !to_come.is_empty() => {}
                (Incoming::Message(Message::CopyDone), stage) => *stage = Stage::Ending(Answer::default()),
                (Incoming::Message(Message::CopyOutResponse(_)), Stage::Plain { begun, to_come }) => {
                    *begun = Some(to_come.pop_front().ok_or_else(|| Error::garbled(DOING, "an archive too many"))?);
                }
                (Incoming::Failed(server), _) => return Err(self.connection.failed(server, DOING).await),
                (Incoming::Message(_) | Incoming::CopyBoth, _) => {
                    return Err(Error::garbled(DOING, "a message out of place"));
                }
            }
        }
    }

    /// Where it ends: the log up to here is needed. Only when all has come; gives the session back.
    ///
    /// # Errors
    /// It is not over yet.
    pub fn finish(self) -> Result<(BackupPosition, Connection)> {
        match self.stage {
            Stage::Done(end) => Ok((end, self.connection)),
            _ => Err(Error::garbled(DOING, "it is not over yet")),
        }
    }
}

impl BackupOptions {
    /// The command as 15 and later take it.
    fn command(&self) -> String {
        let mut options = vec![
            format!("LABEL {}", quote_text(&self.label)),
            format!("CHECKPOINT '{}'", if self.fast_checkpoint { "fast" } else { "spread" }),
            format!("WAL {}", self.with_wal),
            format!("WAIT {}", self.wait_for_archive),
            format!("PROGRESS {}", self.progress),
            format!("TABLESPACE_MAP {}", self.tablespace_map),
            format!("VERIFY_CHECKSUMS {}", self.verify_checksums),
        ];
        if let Some(rate) = self.max_rate {
            options.push(format!("MAX_RATE {rate}"));
        }
        match self.manifest {
            Some(checksums) => {
                options.push(format!("MANIFEST 'yes', MANIFEST_CHECKSUMS '{}'", checksums.name()));
            }
            None => options.push("MANIFEST 'no'".to_owned()),
        }
        if let Some(compression) = self.compression {
            options.push(format!("COMPRESSION '{}'", compression.method.name()));
            let level = compression.level.map(|level| format!("level={level}"));
            let workers = compression.workers.map(|workers| format!("workers={workers}"));
            let detail: Vec<_> = level.into_iter().chain(workers).collect();
            if !detail.is_empty() {
                options.push(format!("COMPRESSION_DETAIL '{}'", detail.join(",")));
            }
        }
        if self.incremental {
            options.push("INCREMENTAL true".to_owned());
        }
        format!("BASE_BACKUP ({})", options.join(", "))
    }

    /// The same before 15.
    fn command_before_15(&self) -> Result<String> {
        if self.compression.is_some() || self.incremental {
            return Err(Error::Unsupported {
                what: "a server before PostgreSQL 15 neither compresses backups nor sends changes alone".to_owned(),
                hint: "take a whole one, without compression on the server".to_owned(),
            });
        }
        let mut command = format!("BASE_BACKUP LABEL {}", quote_text(&self.label));
        for (wanted, word) in [
            (self.progress, " PROGRESS"),
            (self.fast_checkpoint, " FAST"),
            (self.with_wal, " WAL"),
            (!self.wait_for_archive, " NOWAIT"),
            (self.tablespace_map, " TABLESPACE_MAP"),
            (!self.verify_checksums, " NOVERIFY_CHECKSUMS"),
        ] {
            if wanted {
                command.push_str(word);
            }
        }
        if let Some(rate) = self.max_rate {
            command.push_str(&format!(" MAX_RATE {rate}"));
        }
        if let Some(checksums) = self.manifest {
            command.push_str(&format!(" MANIFEST 'yes' MANIFEST_CHECKSUMS '{}'", checksums.name()));
        }
        Ok(command)
    }
}

impl ManifestChecksums {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }
}

impl CompressionMethod {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

fn position(row: &Row) -> Result<BackupPosition> {
    Ok(BackupPosition { lsn: row.need("recptr", DOING)?, timeline: row.need("tli", DOING)? })
}

fn tablespace(row: &Row) -> Result<Tablespace> {
    let location = row.get("spclocation").map(str::to_owned);
    Ok(Tablespace { oid: row.may("spcoid", DOING)?, location, kib: row.may("size", DOING)? })
}

/// The copies of a server before 15, in its order: that of the tablespaces it has named, the main one last.
fn plain(tablespaces: &[Tablespace], manifest: bool) -> Stage {
    let archives = tablespaces.iter().map(|tablespace| BackupEvent::Archive {
        name: tablespace.oid.map_or_else(|| "base.tar".to_owned(), |oid| format!("{oid}.tar")),
        tablespace: tablespace.location.clone(),
    });
    let mut to_come: VecDeque<_> = archives.chain(manifest.then_some(BackupEvent::Manifest)).collect();
    Stage::Plain { begun: to_come.pop_front(), to_come }
}

/// A message within the copy, as 15 and later send them.
fn tagged(mut message: Bytes) -> Result<BackupEvent> {
    let short = || Error::garbled(DOING, "a message shorter than it has to be");
    let kind = message.try_get_u8().map_err(|_| short())?;
    match kind {
        b'd' => Ok(BackupEvent::Data(message)),
        b'p' => {
            let done = message.try_get_i64().map_err(|_| short())?;
            Ok(BackupEvent::Progress(u64::try_from(done).unwrap_or(0)))
        }
        b'm' => Ok(BackupEvent::Manifest),
        b'n' => {
            let mut text = || {
                let end = message.iter().position(|byte| *byte == 0).ok_or_else(short)?;
                let text = message.split_to(end);
                message.advance(1);
                utf8(DOING, "the name of an archive", &text).map(str::to_owned)
            };
            let (name, tablespace) = (text()?, text()?);
            Ok(BackupEvent::Archive { name, tablespace: Some(tablespace).filter(|folder| !folder.is_empty()) })
        }
        _ => Err(Error::garbled(DOING, format!("a piece of an unknown kind {kind}"))),
    }
}
