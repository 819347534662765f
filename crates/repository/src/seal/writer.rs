//! Sealing bytes on their way into the store.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use age::stream::StreamWriter;
use bytes::Bytes;

use super::Recipient;
use crate::error::{Error, Result};

/// What is sealed at once is not worth another thread below this many bytes.
const INLINE: usize = 64 << 10;

/// Where age writes to, and the sealed bytes are taken from.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<u8>>>);

impl Outbox {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Seals one object, piece by piece.
pub(crate) struct Sealer {
    key: String,
    outbox: Outbox,
    /// None while a piece is being sealed, and after one that failed.
    writer: Option<StreamWriter<Outbox>>,
}

impl Sealer {
    /// Begins the object that will be stored under `key`.
    pub(crate) fn begin(key: &str, recipients: &[Recipient]) -> Result<Self> {
        let outbox = Outbox::default();
        let public = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(public).map_err(|error| failed(key, &error))?;
        let writer = encryptor.wrap_output(outbox.clone()).map_err(|error| failed(key, &error))?;
        Ok(Self { key: key.to_owned(), outbox, writer: Some(writer) })
    }

    /// Seals the next piece; what comes back is to be stored, and may be about 64 KiB behind.
    pub(crate) async fn seal(&mut self, piece: Bytes) -> Result<Bytes> {
        let cut_off = || Error::cut_off("write", &self.key);
        let mut writer = self.writer.take().ok_or_else(cut_off)?;
        let written = if piece.len() < INLINE {
            writer.write_all(&piece).map(|()| writer)
        } else {
            let sealing = tokio::task::spawn_blocking(move || writer.write_all(&piece).map(|()| writer));
            sealing.await.map_err(|_| cut_off())?
        };
        self.writer = Some(written.map_err(|error| failed(&self.key, &error))?);
        Ok(self.outbox.take())
    }

    /// Seals the end.
    pub(crate) fn finish(mut self) -> Result<Bytes> {
        let writer = self.writer.take().ok_or_else(|| Error::cut_off("write", &self.key))?;
        writer.finish().map_err(|error| failed(&self.key, &error))?;
        Ok(self.outbox.take())
    }
}

/// Seals a record.
pub(crate) fn seal_whole(key: &str, recipients: &[Recipient], plain: &[u8]) -> Result<Bytes> {
    let mut sealer = Sealer::begin(key, recipients)?;
    if let Some(writer) = &mut sealer.writer {
        writer.write_all(plain).map_err(|error| failed(key, &error))?;
    }
    sealer.finish()
}

fn failed(key: &str, error: &impl std::fmt::Display) -> Error {
    Error::Refused(format!("{key} cannot be sealed: {error}"))
}
