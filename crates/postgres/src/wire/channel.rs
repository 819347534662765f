//! Messages over a socket (<https://www.postgresql.org/docs/current/protocol-message-formats.html>).

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::message::backend::{COPY_DATA_TAG, Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::client::TlsStream;

use super::error::{Error, Result, ServerError};

/// What messages go over.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    /// Wakes nobody for what comes, until it is read from or written to again.
    fn pause(&mut self) -> io::Result<()>;
}

impl<S: Duplex> Duplex for TlsStream<S> {
    fn pause(&mut self) -> io::Result<()> {
        self.get_mut().0.pause()
    }
}

#[cfg(test)]
impl Duplex for tokio::io::DuplexStream {
    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The longest message that is taken. Servers send log and backups in pieces of at most 1 MiB (`MAX_SEND_SIZE` in
/// src/backend/replication/walsender.c, 16 pages of the log); rows of results may be longer.
const LONGEST: usize = 64 << 20;
/// The same of one who has not shown yet to be a server; libpq draws the line at 30,000 bytes.
const LONGEST_OF_STRANGERS: usize = 64 << 10;
/// Room for what is read at once.
const READ: usize = 256 << 10;
/// How long the reason of a connection that broke is looked for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Servers report some dozen parameters; who sends many more means harm.
const MOST_PARAMETERS: usize = 1000;

/// 'W', which `postgres-protocol` does not know: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// A connection as messages.
pub(super) struct Channel {
    socket: Box<dyn Duplex>,
    input: BytesMut,
    output: BytesMut,
    longest: usize,
    parameters: BTreeMap<String, String>,
}

/// What a server sends.
pub(super) enum Incoming {
    /// A piece of what is copied, as it lies in the buffer that it was read into.
    CopyData(Bytes),
    /// Both sides may copy now.
    CopyBoth,
    /// It failed.
    Failed(ServerError),
    /// Anything else, but for what can come at any time.
    Message(Message),
}

impl Channel {
    pub(super) fn new(socket: Box<dyn Duplex>) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { socket, input, output, longest: LONGEST_OF_STRANGERS, parameters: BTreeMap::new() }
    }

    /// From now on messages may be long.
    pub(super) fn trust(&mut self) {
        self.longest = LONGEST;
    }

    /// What the server has reported of a setting, such as `server_version`.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Does without being woken for what comes, until something is received or sent again.
    pub(super) fn pause(&mut self, doing: &str) -> Result<()> {
        self.socket.pause().map_err(|error| Error::broken(doing, error))
    }

    /// Appends a message to what will be sent.
    pub(super) fn queue(&mut self, doing: &str, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        write(&mut self.output).map_err(|error| Error::garbled(doing, error))
    }

    /// Sends what is queued. May be given up at any moment, and gone on with later.
    pub(super) async fn flush(&mut self, doing: &str) -> Result<()> {
        match self.write().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.last_words(doing, error).await),
        }
    }

    async fn write(&mut self) -> io::Result<()> {
        while self.output.has_remaining() {
            if self.socket.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.socket.flush().await
    }

    /// A server that ended the session has said why before it closed its side.
    async fn last_words(&mut self, doing: &str, error: io::Error) -> Error {
        let words = async {
            loop {
                match self.receive(doing).await {
                    Ok(Incoming::Failed(server)) => return Some(server),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, words).await {
            Ok(Some(server)) => Error::refused(doing, server),
            _ => Error::broken(doing, error),
        }
    }

    /// The next message. May be given up at any moment: nothing is lost then.
    pub(super) async fn receive(&mut self, doing: &str) -> Result<Incoming> {
        loop {
            if let Some(incoming) = self.next(doing)? {
                return Ok(incoming);
            }
            match self.socket.read_buf(&mut self.input).await {
                Ok(0) => return Err(Error::broken(doing, io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(Error::broken(doing, error)),
            }
        }
    }

    /// The next message that is whole, after making room for one that is not.
    fn next(&mut self, doing: &str) -> Result<Option<Incoming>> {
        let garbled = |error: io::Error| Error::garbled(doing, error);
        loop {
            let Some(header) = Header::parse(&self.input).map_err(garbled)? else {
                self.make_room(5);
                return Ok(None);
            };
            let body = usize::try_from(header.len()).unwrap_or(usize::MAX);
            if body > self.longest {
                return Err(Error::garbled(doing, format!("a message of {body} bytes, which no server sends here")));
            }
            let whole = body + 1;
            if self.input.len() < whole {
                self.make_room(whole);
                return Ok(None);
            }
            match header.tag() {
                COPY_DATA_TAG => {
                    let mut frame = self.input.split_to(whole).freeze();
                    frame.advance(5);
                    return Ok(Some(Incoming::CopyData(frame)));
                }
                COPY_BOTH_RESPONSE_TAG => {
                    self.input.advance(whole);
                    return Ok(Some(Incoming::CopyBoth));
                }
                _ => {}
            }
            let mut frame = self.input.split_to(whole);
            let Some(message) = Message::parse(&mut frame).map_err(garbled)? else {
                return Err(Error::garbled(doing, "a message shorter than it says"));
            };
            match message {
                Message::ErrorResponse(body) => {
                    return Ok(Some(Incoming::Failed(ServerError::read(body.fields()).map_err(garbled)?)));
                }
                // These three may come at any time (protocol-flow, "Asynchronous Operations").
                Message::NoticeResponse(body) => {
                    let notice = ServerError::read(body.fields()).map_err(garbled)?;
                    tracing::debug!(severity = notice.severity, "the server remarks: {notice}");
                }
                Message::ParameterStatus(body) => {
                    let (name, value) = (body.name().map_err(garbled)?, body.value().map_err(garbled)?);
                    if self.parameters.len() < MOST_PARAMETERS {
                        self.parameters.insert(name.to_owned(), value.to_owned());
                    }
                }
                Message::NotificationResponse(_) => {}
                message => return Ok(Some(Incoming::Message(message))),
            }
        }
    }

    /// Makes room for a message of `whole` bytes, and for more if room is short.
    fn make_room(&mut self, whole: usize) {
        let missing = whole.saturating_sub(self.input.len());
        if self.input.capacity() - self.input.len() < missing.max(READ / 8) {
            self.input.reserve(missing.max(READ));
        }
    }

    /// Tells the server to end, and ends.
    pub(super) async fn close(mut self) {
        let doing = "closing the connection";
        let told = self.queue(doing, |buffer| {
            postgres_protocol::message::frontend::terminate(buffer);
            Ok(())
        });
        // Nothing depends on it: a server notices by itself that we are gone.
        if told.is_ok() && self.flush(doing).await.is_ok() {
            let _ = self.socket.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn channel() -> (Channel, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (Channel::new(Box::new(ours)), theirs)
    }

    #[tokio::test]
    async fn pieces_are_put_together() {
        let (mut channel, mut server) = channel();
        channel.trust();
        let piece = vec![7; 300_000];
        let mut sent = BytesMut::new();
        for _ in 0..5 {
            postgres_protocol::message::frontend::CopyData::new(&*piece).unwrap().write(&mut sent);
        }
        let sending = tokio::spawn(async move {
            for part in sent.chunks(70_001) {
                server.write_all(part).await.unwrap();
            }
        });
        for _ in 0..5 {
            match channel.receive("testing").await.unwrap() {
                Incoming::CopyData(data) => assert!(data == piece),
                _ => panic!("something else"),
            }
        }
        sending.await.unwrap();
        let error = channel.receive("testing").await.err().unwrap();
        assert_eq!(error.to_string(), "the connection broke while testing: the server has closed it");
    }

    #[tokio::test]
    async fn a_length_that_cannot_be_is_refused_before_there_is_room_for_it() {
        for (bytes, told) in [
            (&b"d\x7f\xff\xff\xff"[..], "a message of 2147483647 bytes"),
            (b"D\x00\x01\x00\x01", "a message of 65537 bytes"),
            (b"Z\x00\x00\x00\x03", "invalid message length"),
            (b"Z\xff\xff\xff\xff", "invalid message length"),
            (b"~\x00\x00\x00\x04", "unknown message tag"),
            (b"E\x00\x00\x00\x05M", "unexpected EOF"),
        ] {
            let (mut channel, mut server) = channel();
            server.write_all(bytes).await.unwrap();
            drop(server);
            let Err(error) = channel.receive("testing").await else { panic!("{bytes:?} was taken") };
            assert!(error.to_string().contains(told), "{error}");
            assert!(channel.input.capacity() < 1 << 20);
        }
    }
}
