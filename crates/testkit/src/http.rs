//! An HTTP server inside the test process, whatever it answers.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hyper::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::{Body, HttpError, HttpResponse};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

/// How long its own port may be taken by others.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server says; an error breaks the connection.
pub(crate) trait Answers: Send + Sync + 'static {
    fn answer(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> impl Future<Output = Result<HttpResponse, HttpError>> + Send + 'static;
}

/// A server on a free loopback port, without TLS. It runs on a thread of its own, so a test may block.
#[derive(Debug)]
pub(crate) struct HttpServer<A> {
    port: u16,
    answers: Arc<A>,
    /// Takes connections, and holds them; none while the server is stopped.
    accepting: Mutex<Option<JoinHandle<()>>>,
    runtime: Option<Runtime>,
}

impl<A: Answers> HttpServer<A> {
    pub(crate) fn start(answers: A) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let mut server = Self { port, answers: Arc::new(answers), accepting: Mutex::default(), runtime: Some(runtime) };
        let accepting = server.accept_on(listener)?;
        server.accepting = Mutex::new(Some(accepting));
        Ok(server)
    }

    pub(crate) fn answers(&self) -> &A {
        &self.answers
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Breaks all connections, and refuses new ones.
    pub(crate) fn stop(&self) {
        if let Some(accepting) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            accepting.abort();
        }
    }

    /// Takes connections again, on the same port.
    pub(crate) fn go_on(&self) -> Result<()> {
        let begun = Instant::now();
        let listener = loop {
            match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)) {
                Ok(listener) => break listener,
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let accepting = self.accept_on(listener)?;
        *self.accepting.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepting);
        Ok(())
    }

    fn accept_on(&self, listener: std::net::TcpListener) -> Result<JoinHandle<()>> {
        let runtime = self.runtime.as_ref().context("the server is gone")?;
        listener.set_nonblocking(true)?;
        let _inside = runtime.enter();
        Ok(runtime.spawn(accept(self.answers.clone(), TcpListener::from_std(listener)?)))
    }
}

impl<A> Drop for HttpServer<A> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept<A: Answers>(answers: Arc<A>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    // The loop ends with the runtime, or when the process is out of file descriptors.
    while let Ok((socket, _)) = listener.accept().await {
        let answers = answers.clone();
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let answer = service_fn(move |request: Request<_>| answers.clone().answer(request.map(Body::from)));
            // An error here is a connection that was cut, by the client or by a fault.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}
