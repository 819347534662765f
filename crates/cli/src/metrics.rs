//! Metrics over HTTP, for whoever may connect: there is nothing secret in them.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hindsight_jobs::Metrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::exit::{Exit, Failure};

/// A client has this long for its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken, as when there are too many open files.
const PAUSE: Duration = Duration::from_secs(1);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics, once there are some: database and repository may be away at first.
pub(crate) type Source = Arc<OnceLock<Arc<Metrics>>>;

/// A port on which nobody is answered yet.
pub(crate) struct Endpoint(TcpListener);

impl Endpoint {
    /// Takes the port.
    pub(crate) async fn bind(address: &str) -> Result<Self, Failure> {
        let is_port = |(_, port): (&str, &str)| port.parse::<u16>().is_ok();
        if !address.rsplit_once(':').is_some_and(is_port) {
            return Err(Failure::usage(format!("{address:?} is no address for metrics"))
                .hint("write HOST:PORT, such as 127.0.0.1:9216 or [::]:9216"));
        }
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self(listener)),
            Err(error) => Err(Failure::new(Exit::Other, format!("metrics cannot be offered at {address}: {error}"))
                .hint("choose another address with --metrics-listen, or see what listens there")),
        }
    }

    /// Answers for as long as the program runs.
    pub(crate) async fn serve(self, source: Source) {
        loop {
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection for metrics could not be taken");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let source = source.clone();
            let service = service_fn(move |request| {
                let answer = answer(&request, &source);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    }
}

fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    // Without anything to tell, the end of it.
    let text = source.get().map_or_else(|| "# EOF\n".to_owned(), |metrics| metrics.text());
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(OPEN_METRICS));
    response
}
