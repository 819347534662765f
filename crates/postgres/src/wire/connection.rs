//! A session, and simple queries over it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, Message, RowDescriptionBody};
use postgres_protocol::message::frontend;

use super::channel::{Channel, Incoming};
use super::error::{Error, Result, ServerError};
use super::{Replication, connect};
use crate::address::{Address, Host};

/// Rows are kept until the last has come; nothing that is asked here has an answer as large.
const LARGEST_ANSWER: usize = 64 << 20;
/// How long the farewell may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A session with a server.
///
/// Dropping it ends it. What waits for an answer may be dropped too; the session is of no use then any more, and says so.
pub struct Connection {
    pub(super) channel: Channel,
    host: Host,
    replication: Replication,
    encrypted: bool,
    /// Whether the last command has been answered to the end.
    ready: bool,
}

impl Connection {
    /// Connects to the first server of `address` that will do.
    ///
    /// # Errors
    /// No server answers, or none of the right role, or it does not let us in.
    pub async fn connect(address: &Address, replication: Replication) -> Result<Self> {
        connect::connect(address, replication).await
    }

    pub(super) fn new(channel: Channel, host: Host, replication: Replication, encrypted: bool) -> Self {
        Self { channel, host, replication, encrypted, ready: true }
    }

    /// Which of the servers it is.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether it goes over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// A setting that servers report by themselves, such as `server_version`, as it is now.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.channel.parameter(name)
    }

    /// The major version of the server; 0 if it does not tell.
    pub fn major_version(&self) -> u32 {
        // "15.4 (Debian 15.4-1)", "18beta1"
        let digits = self.parameter("server_version").map(|text| text.split(|c: char| !c.is_ascii_digit()).next());
        digits.flatten().and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// Whether the server is a standby, or restoring. Before 14 a session for physical replication knows only whether
    /// it could write, which comes to the same.
    ///
    /// # Errors
    /// Those of asking.
    pub async fn in_recovery(&mut self) -> Result<bool> {
        if let Some(standby) = self.parameter("in_hot_standby") {
            return Ok(standby == "on");
        }
        if self.replication == Replication::Physical {
            return Ok(self.show("transaction_read_only").await? == "on");
        }
        let rows = self.query("SELECT pg_catalog.pg_is_in_recovery()", "asking whether it is a standby").await?;
        Ok(rows.first().and_then(|row| row.at(0)) == Some("t"))
    }

    /// Runs statements or a replication command, and returns the rows of all of them. `doing` is what errors say
    /// was being done.
    ///
    /// # Errors
    /// The server's refusal, after which the session goes on; anything else ends it.
    pub async fn query(&mut self, statements: &str, doing: &str) -> Result<Vec<Row>> {
        self.ask(statements, doing).await?;
        let mut answer = Answer::default();
        self.rest(&mut answer, doing).await?;
        Ok(answer.rows)
    }

    /// Sends a command whose answer will be read by the caller, with [`Connection::rest`] at its end.
    pub(super) async fn ask(&mut self, command: &str, doing: &str) -> Result<()> {
        if !self.ready {
            return Err(Error::Unreachable {
                what: format!("the session was given up in the midst of a command before {doing}"),
                hint: "connect again".to_owned(),
                source: None,
            });
        }
        self.channel.queue(doing, |buffer| frontend::query(command, buffer))?;
        self.ready = false;
        self.channel.flush(doing).await
    }

    pub(super) async fn answer(&mut self, doing: &str) -> Result<Incoming> {
        self.channel.receive(doing).await
    }

    /// Reads an answer to its end, or what is left of it after a copy.
    pub(super) async fn rest(&mut self, answer: &mut Answer, doing: &str) -> Result<()> {
        loop {
            match self.answer(doing).await? {
                Incoming::Message(message) => {
                    if answer.take(message, doing)? {
                        self.ready = true;
                        return Ok(());
                    }
                }
                Incoming::Failed(server) => return Err(self.failed(server, doing).await),
                // What was on its way when we ended a stream.
                Incoming::CopyData(_) => {}
                Incoming::CopyBoth => return Err(Error::garbled(doing, "a second copy")),
            }
        }
    }

    /// An error ends a command, but not the session, unless it is a fatal one.
    pub(super) async fn failed(&mut self, server: ServerError, doing: &str) -> Error {
        // A server that ends the session may not even say so to the end.
        if server.severity == "ERROR" {
            let ready = async {
                loop {
                    match self.channel.receive(doing).await {
                        Ok(Incoming::Message(Message::ReadyForQuery(_))) => return true,
                        Ok(_) => {}
                        Err(_) => return false,
                    }
                }
            };
            self.ready = tokio::time::timeout(PATIENCE, ready).await.unwrap_or(false);
        }
        Error::refused(doing, server)
    }

    /// Says goodbye. Nothing depends on it: a dropped session is noticed by the server, if a little later.
    pub async fn close(self) {
        let _ = tokio::time::timeout(PATIENCE, self.channel.close()).await;
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("host", &self.host.to_string())
            .field("replication", &self.replication)
            .field("encrypted", &self.encrypted)
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

/// An answer as it comes in.
#[derive(Debug, Default)]
pub(super) struct Answer {
    columns: Arc<[String]>,
    pub(super) rows: Vec<Row>,
    size: usize,
}

impl Answer {
    /// Takes the next message, and tells whether it was the last.
    pub(super) fn take(&mut self, message: Message, doing: &str) -> Result<bool> {
        match message {
            Message::RowDescription(body) => self.columns = columns(&body).map_err(|e| Error::garbled(doing, e))?,
            Message::DataRow(body) => {
                self.size += body.buffer().len() + size_of::<Row>();
                if self.size > LARGEST_ANSWER {
                    return Err(Error::garbled(doing, "an answer of more than 64 MiB"));
                }
                self.rows.push(Row::read(&self.columns, &body).map_err(|e| Error::garbled(doing, e))?);
            }
            Message::CommandComplete(_) | Message::EmptyQueryResponse | Message::CopyDone => {}
            Message::ReadyForQuery(_) => return Ok(true),
            _ => return Err(Error::garbled(doing, "a message out of place")),
        }
        Ok(false)
    }
}

fn columns(body: &RowDescriptionBody) -> std::io::Result<Arc<[String]>> {
    body.fields().map(|field| Ok(field.name().to_owned())).collect::<Vec<_>>().map(Arc::from)
}

/// A row of text.
#[derive(Clone, Debug)]
pub struct Row {
    columns: Arc<[String]>,
    values: Bytes,
    ranges: Vec<Option<Range<usize>>>,
}

impl Row {
    fn read(columns: &Arc<[String]>, body: &DataRowBody) -> std::io::Result<Self> {
        // A copy, as the buffer it lies in may be large.
        let values = Bytes::copy_from_slice(body.buffer());
        Ok(Self { columns: Arc::clone(columns), values, ranges: body.ranges().collect()? })
    }

    /// The names of its columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What is in the n-th column; none if there is no such, or it is null or not UTF-8.
    pub fn at(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes_at(index)?).ok()
    }

    /// What is in the column of that name.
    pub fn get(&self, column: &str) -> Option<&str> {
        self.at(self.index(column)?)
    }

    /// The same as bytes, for what may be in any encoding.
    pub fn bytes(&self, column: &str) -> Option<&[u8]> {
        self.bytes_at(self.index(column)?)
    }

    fn index(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|name| name == column)
    }

    fn bytes_at(&self, index: usize) -> Option<&[u8]> {
        self.values.get(self.ranges.get(index)?.clone()?)
    }

    /// What is in the column of that name, which has to be there and to be understood.
    pub(super) fn need<T: FromStr>(&self, column: &str, doing: &str) -> Result<T> {
        self.get(column)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::garbled(doing, format!("{column} is not in it as it should be")))
    }

    /// The same of one that may be null.
    pub(super) fn may<T: FromStr>(&self, column: &str, doing: &str) -> Result<Option<T>> {
        match self.get(column) {
            None => Ok(None),
            Some(_) => self.need(column, doing).map(Some),
        }
    }
}

/// A name, such as that of a slot, as SQL takes it whatever is in it.
pub fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL takes it. Replication commands know the same form, and no other.
pub fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
