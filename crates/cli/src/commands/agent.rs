//! `agent`.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use hindsight_engine::Engine;
use hindsight_jobs::Agent;
use hindsight_repository::ClusterRepository;

use crate::cluster::{connect, registered};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::metrics::{Endpoint, Source};

/// Pause before the database or the repository is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// Capture the log of the database for as long as it runs
///
/// The agent captures while PITR is on, waits while it is off, suspends itself for a restore and
/// begins anew afterwards, with a fresh snapshot. Several agents may run for one cluster: one works,
/// and another takes over when it is gone. It stores what it has and ends with 0 when it is told to
/// stop (Ctrl-C, SIGTERM).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight agent\n  \
    hindsight agent --cluster shop --log-format json\n  \
    hindsight agent --metrics-listen 127.0.0.1:9216")]
pub(crate) struct Args {
    /// Offer metrics for Prometheus there, at /metrics [env: HINDSIGHT_METRICS_LISTEN; default: not at all]
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let metrics = Source::default();
    let listen = args.metrics_listen.as_deref().or_else(|| context.metrics_listen());
    if let Some(address) = listen {
        tokio::spawn(Endpoint::bind(address).await?.serve(metrics.clone()));
    }
    let (engine, cluster) = loop {
        match set_up(context).await {
            Ok(found) => break found,
            Err(failure) if failure.exit == Exit::Interrupted => return Ok(()),
            // What is away may come back: a service waits for it.
            Err(failure) if matches!(failure.exit, Exit::Unreachable | Exit::Repository) => {
                let hint = failure.hint.unwrap_or_default();
                tracing::warn!(hint, "{}; trying again", failure.what);
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = context.stop.cancelled() => return Ok(()),
                }
            }
            Err(failure) => return Err(failure),
        }
    };
    let agent = Agent::new(engine, cluster.clone());
    if listen.is_some() {
        let (own, stop) = (agent.metrics(), context.stop.clone());
        metrics.set(own.clone()).ok();
        tokio::spawn(async move { own.watch(&cluster, &stop).await });
    }
    // On a thread that hears of the network itself: the first one would have to be woken for each answer.
    let stop = context.stop.clone();
    match tokio::spawn(async move { agent.run(stop).await }).await {
        Ok(ended) => ended?,
        Err(ended) => resume_unwind(ended.into_panic()),
    }
    tracing::info!("the agent ends");
    Ok(())
}

async fn set_up(context: &Context) -> Result<(Arc<dyn Engine>, ClusterRepository), Failure> {
    let connected = connect(context).await?;
    let repository = context.unless_stopped(context.make_repository()).await?;
    let cluster = registered(context, &repository, &connected).await?;
    context.journal.attach(&cluster, "agent");
    let probe = &connected.probe;
    tracing::info!(
        cluster = cluster.name(),
        repository = repository.url(),
        "the agent for {} ({} {}) begins",
        probe.natural_name,
        probe.engine,
        probe.version
    );
    Ok((connected.engine, cluster))
}
