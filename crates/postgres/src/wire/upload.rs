//! `UPLOAD_MANIFEST`: what an incremental backup builds upon
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>).

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{CopyData, copy_done};

use super::channel::Incoming;
use super::connection::{Answer, Connection};
use super::error::{Error, Result};

const DOING: &str = "sending the manifest of the backup to build upon";

impl Connection {
    /// Begins to upload the manifest of a backup, for incremental ones of this session. From 17 on.
    ///
    /// # Errors
    /// The server does not do it.
    pub async fn begin_upload(&mut self) -> Result<()> {
        self.ask("UPLOAD_MANIFEST", DOING).await?;
        match self.answer(DOING).await? {
            Incoming::Message(Message::CopyInResponse(_)) => Ok(()),
            Incoming::Failed(server) => Err(self.failed(server, DOING).await),
            _ => Err(Error::garbled(DOING, "a message out of place")),
        }
    }

    /// Sends the next piece of it.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn upload(&mut self, piece: &[u8]) -> Result<()> {
        self.channel.queue(DOING, |buffer| {
            CopyData::new(piece)?.write(buffer);
            Ok(())
        })?;
        self.channel.flush(DOING).await
    }

    /// There is no more of it.
    ///
    /// # Errors
    /// It is no manifest, or not one of this cluster.
    pub async fn end_upload(&mut self) -> Result<()> {
        self.channel.queue(DOING, |buffer| {
            copy_done(buffer);
            Ok(())
        })?;
        self.channel.flush(DOING).await?;
        self.rest(&mut Answer::default(), DOING).await
    }
}
