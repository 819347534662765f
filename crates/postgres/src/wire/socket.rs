//! A socket that can be left alone for a while.

use std::io;
use std::mem;
use std::net;
use std::os::unix::net as unix;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::channel::Duplex;

/// A socket of tokio's, which the system watches for it.
pub(super) trait Watched: AsyncRead + AsyncWrite + Send + Sized + Unpin {
    /// The same without anybody who watches it.
    type Plain: Send + Unpin;

    fn unwatch(self) -> io::Result<Self::Plain>;
    /// In a runtime.
    fn watch(plain: Self::Plain) -> io::Result<Self>;
}

impl Watched for TcpStream {
    type Plain = net::TcpStream;

    fn unwatch(self) -> io::Result<Self::Plain> {
        self.into_std()
    }

    fn watch(plain: Self::Plain) -> io::Result<Self> {
        Self::from_std(plain)
    }
}

impl Watched for UnixStream {
    type Plain = unix::UnixStream;

    fn unwatch(self) -> io::Result<Self::Plain> {
        self.into_std()
    }

    fn watch(plain: Self::Plain) -> io::Result<Self> {
        Self::from_std(plain)
    }
}

/// The runtime is woken for every packet that comes to a socket that is watched, also while nobody reads: a thousand times a
/// second by a busy server, whose processor time it may be. This one need not be watched all the time.
#[derive(Debug)]
pub(super) enum Socket<S: Watched> {
    Watched(S),
    Paused(S::Plain),
    /// It could not be watched, or not be left alone.
    Lost,
}

impl<S: Watched> Socket<S> {
    fn watch(self: Pin<&mut Self>) -> io::Result<Pin<&mut S>> {
        let this = self.get_mut();
        *this = match mem::replace(this, Self::Lost) {
            Self::Paused(plain) => Self::Watched(S::watch(plain)?),
            other => other,
        };
        match this {
            Self::Watched(socket) => Ok(Pin::new(socket)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl<S: Watched> Duplex for Socket<S> {
    fn pause(&mut self) -> io::Result<()> {
        *self = match mem::replace(self, Self::Lost) {
            Self::Watched(socket) => Self::Paused(socket.unwatch()?),
            other => other,
        };
        Ok(())
    }
}

impl<S: Watched> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.watch()?.poll_read(cx, buffer)
    }
}

impl<S: Watched> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.watch()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch()?.poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Watched(socket) if socket.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_came_meanwhile_is_read_afterwards() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        check(Socket::Watched(ours), listener.accept().await.unwrap().0).await;
        let (ours, theirs) = UnixStream::pair().unwrap();
        check(Socket::Watched(ours), theirs).await;
    }

    async fn check<S: Watched>(mut ours: Socket<S>, mut theirs: S) {
        let mut got = [0; 5];
        for round in 0..3 {
            ours.pause().unwrap();
            // Once more is no harm.
            ours.pause().unwrap();
            assert!(matches!(ours, Socket::Paused(_)));
            if round == 1 {
                // Who writes is told of what comes again.
                ours.write_all(b"hello").await.unwrap();
                theirs.read_exact(&mut got).await.unwrap();
                assert_eq!((&got, matches!(ours, Socket::Watched(_))), (b"hello", true));
            }
            theirs.write_all(b"there").await.unwrap();
            timeout(Duration::from_secs(60), ours.read_exact(&mut got)).await.unwrap().unwrap();
            assert_eq!(&got, b"there");
            // What comes only after that wakes us.
            let late = async {
                tokio::task::yield_now().await;
                theirs.write_all(b"again").await.unwrap();
            };
            let (read, ()) = tokio::join!(timeout(Duration::from_secs(60), ours.read_exact(&mut got)), late);
            read.unwrap().unwrap();
            assert_eq!(&got, b"again");
        }
        ours.pause().unwrap();
        drop(theirs);
        assert_eq!(timeout(Duration::from_secs(60), ours.read(&mut got)).await.unwrap().unwrap(), 0);
    }
}
