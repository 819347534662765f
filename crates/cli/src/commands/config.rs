//! `config`.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use hindsight_engine::{Engine, FailureKind, Kept, Wait};
use hindsight_format::{ClusterConfig, ConfigError, PitrConfig};
use hindsight_jobs::CAPTURE_LEASE;
use hindsight_repository::ClusterRepository;
use serde::Serialize;
use serde_json::Value;

use super::pbm_config;
use crate::cluster::{connect, engine_of, registered, to_read};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::Report;
use crate::report::yaml;

/// An agent that runs takes up its work within this time.
const TAKES_UP: Duration = Duration::from_secs(3);
/// An agent that is asked to stop reads the log to its end, stores it, and lets go.
const LETS_GO: Duration = Duration::from_secs(10);

/// Show or change the settings of the cluster
///
/// They are kept in the repository, and the agent follows a change within a second or two. Which
/// database and which repository are no settings of the cluster: see --uri and --repository.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    hindsight config\n  \
    hindsight config pitr.enabled\n  \
    hindsight config --set pitr.enabled=true\n  \
    hindsight config --set pitr.uploadIntervalSec=10 --set backup.compressionLevel=6\n  \
    hindsight config --file settings.yaml\n\n\
    Settings:\n  \
    pitr.enabled                   whether the agent captures the log (false)\n  \
    pitr.uploadIntervalSec         seconds after which what was captured is stored (5)\n  \
    pitr.oplogSpanMin              minutes that a merged slice of log spans (10)\n  \
    pitr.compressionLevel          zstd level of the log, 1 to 19 (2)\n  \
    pitr.synchronous               whether commits may wait until they are stored (false)\n  \
    backup.compressionLevel        zstd level of snapshots, 1 to 19 (2)\n  \
    backup.numParallelCollections  readers at the same time, 0 chooses (0)\n  \
    backup.rateLimitMib            MiB that are read per second at most, 0 for any number (0)\n  \
    backup.hash                    whether hashes of the data are kept (false)\n  \
    backup.checkpointMib           MiB after which a reader notes how far it came (2048)\n  \
    restore.numInsertionWorkers    connections that insert at the same time, 0 chooses (0)\n  \
    restore.rateLimitMib           MiB that are inserted per second at most, 0 for any number (0)\n  \
    restore.foldMemoryMib          memory for the log of a restore in MiB, 0 for the default (0)\n  \
    retention.count                full snapshots that the agent keeps, 0 for all (0)\n  \
    retention.days                 days back that stay restorable, 0 for all (0)\n  \
    retention.logDays              days that the logs of jobs are kept, 0 for ever (30)")]
pub(crate) struct Args {
    /// Show this setting alone
    #[arg(value_name = "KEY", conflicts_with_all = ["list", "file", "set"])]
    key: Option<String>,
    /// Show all settings, which is what happens without any flag
    #[arg(long, conflicts_with_all = ["file", "set"])]
    list: bool,
    /// Take all settings from a YAML or JSON file, or from - for standard input; those that it does
    /// not name get their defaults
    #[arg(long, value_name = "FILE", conflicts_with = "set")]
    file: Option<String>,
    /// Change these settings
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// Accepted for the sake of scripts: a change is always waited for
    #[arg(short, long, hide = true)]
    wait: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    if !args.set.is_empty() {
        return set(&args.set, context).await;
    }
    if let Some(file) = &args.file {
        let wanted = read_file(file)?;
        let changing = to_change(context).await?;
        let config = changing.change(|_| Ok(wanted.clone()), context).await?;
        record(&changing.cluster, &config.entries(), context);
        return context.out.print(&All(config));
    }
    let config = match context.repository().await? {
        None => ClusterConfig::default(),
        Some(repository) => match to_read(context, &repository).await? {
            None => ClusterConfig::default(),
            Some(cluster) => cluster.config().await?.1,
        },
    };
    match &args.key {
        Some(key) => context.out.print(&One { key: key.clone(), value: config.get(key)? }),
        None => context.out.print(&All(config)),
    }
}

async fn set(pairs: &[String], context: &Context) -> Result<(), Failure> {
    let pairs = pairs.iter().map(|pair| split(pair)).collect::<Result<Vec<_>, _>>()?;
    let change = |config: ClusterConfig| pairs.iter().try_fold(config, |config, (key, value)| config.with(key, value));
    // What does not fit is refused before anything is connected or made.
    change(ClusterConfig::default())?;
    let changing = to_change(context).await?;
    let config = changing.change(change, context).await?;
    let shown = pairs.iter().map(|(key, _)| Ok((key.clone(), config.get(key)?)));
    let shown = shown.collect::<Result<Vec<_>, ConfigError>>()?;
    record(&changing.cluster, &shown, context);
    context.out.print(&Changed(shown))
}

/// Writes a change down in the logs of jobs.
fn record(cluster: &ClusterRepository, settings: &[(String, String)], context: &Context) {
    context.journal.attach(cluster, "config");
    let settings: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    tracing::info!("set: {}", settings.join(", "));
}

/// Waits for the agent to follow a switch of the capture, and says so when none does: who switches
/// it off and restores at once wants what the agent still holds to be stored.
async fn follow(cluster: &ClusterRepository, on: bool, context: &Context) {
    let patience = if on { TAKES_UP } else { LETS_GO };
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < patience {
        match cluster.lease_state(CAPTURE_LEASE).await {
            Ok(lease) if lease.as_ref().is_some_and(|lease| cluster.lease_is_live(CAPTURE_LEASE, lease)) == on => {
                return;
            }
            // The setting is stored; that was what was asked for.
            Err(_) => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    let program = context.program;
    context.out.note(&match on {
        true => format!("Note: no agent is capturing yet: start `{program} agent`"),
        false => "Note: the agent has not let go yet".to_owned(),
    });
}

fn split(pair: &str) -> Result<(String, String), Failure> {
    let Some((key, value)) = pair.split_once('=') else {
        return Err(Failure::usage(format!("{pair:?} is no KEY=VALUE")).hint("such as --set pitr.enabled=true"));
    };
    let key = key.trim();
    if key.starts_with("storage") {
        return Err(Failure::new(Exit::Unknown, format!("{key} is no setting of a cluster")).hint(pbm_config::WHERE));
    }
    Ok((key.to_owned(), value.trim().to_owned()))
}

/// The cluster whose settings change.
struct Changing {
    cluster: ClusterRepository,
    /// Connected, or not.
    engine: Arc<dyn Engine>,
    connected: bool,
}

impl Changing {
    /// Changes them, and sees to it that server and agent follow.
    async fn change(
        &self,
        change: impl Fn(ClusterConfig) -> Result<ClusterConfig, ConfigError>,
        context: &Context,
    ) -> Result<ClusterConfig, Failure> {
        let before = self.cluster.config().await?.1;
        let was = before.pitr.clone();
        let wanted = change(before)?.pitr;
        self.may_wait(&was, &wanted).await?;
        let was_on = was.enabled;
        if !was_on && wanted.enabled {
            self.keep_log(true, context).await?;
        }
        let config = self.cluster.update_config(change).await?;
        if config.pitr.synchronous && !was.synchronous {
            self.tell_who_waits(context).await;
        }
        if config.pitr.enabled != was_on {
            follow(&self.cluster, config.pitr.enabled, context).await;
        }
        if was_on && !config.pitr.enabled {
            self.keep_log(false, context).await?;
        }
        Ok(config)
    }

    /// Refuses that commits are to wait where they never can, and that they are to wait no longer while the server makes them.
    async fn may_wait(&self, was: &PitrConfig, wanted: &PitrConfig) -> Result<(), Failure> {
        let acknowledges = |pitr: &PitrConfig| pitr.enabled && pitr.synchronous;
        let (on, off) = (wanted.synchronous && !was.synchronous, acknowledges(was) && !acknowledges(wanted));
        if !on && !off {
            return Ok(());
        }
        match self.engine.synchronous(&self.cluster).await {
            Ok(now) if off && now.wait == Wait::Always => {
                Err(Failure::new(Exit::Refused, "the server's commits wait for the capture, and would wait for ever")
                    .hint(format!("{}, and then this once more", now.release)))
            }
            Ok(_) => Ok(()),
            Err(error) if on && (self.connected || error.kind == FailureKind::Unsupported) => Err(error.into()),
            // A server that is away has no commits that could wait.
            Err(_) => Ok(()),
        }
    }

    async fn tell_who_waits(&self, context: &Context) {
        match self.engine.synchronous(&self.cluster).await {
            Ok(now) => context.out.note(&format!("Note: {}", now.told)),
            Err(error) => context.out.note(&format!("Note: {error}; `{} status` tells it later", context.program)),
        }
    }

    /// Asks the server to keep its log for the capture, or no longer to. While it is away that is left to the agent.
    async fn keep_log(&self, keep: bool, context: &Context) -> Result<(), Failure> {
        match self.engine.keep_log(&self.cluster, keep).await {
            Ok(Kept::Made(what) | Kept::Released(what)) => context.out.note(&format!("Note: {what}")),
            Ok(Kept::Already(_) | Kept::ByItself) => {}
            Err(error) if self.connected => return Err(error.into()),
            Err(error) => context.out.note(&format!("Note: {error}; the agent will see to it")),
        }
        Ok(())
    }
}

/// The cluster whose settings change. A connected one is registered when it is new; without a
/// database it must be known.
async fn to_change(context: &Context) -> Result<Changing, Failure> {
    let away = match connect(context).await {
        Ok(connected) => {
            let repository = context.unless_stopped(context.make_repository()).await?;
            let cluster = registered(context, &repository, &connected).await?;
            return Ok(Changing { cluster, engine: connected.engine, connected: true });
        }
        // Without a database, or while it is away.
        Err(failure) if context.uri().is_none() || failure.exit == Exit::Unreachable => failure,
        Err(failure) => return Err(failure),
    };
    let known = match context.repository().await? {
        Some(repository) => hindsight_jobs::find_cluster(&repository, context.cluster(), None).await?,
        None => None,
    };
    match known {
        Some(cluster) => {
            if context.uri().is_some() {
                context.out.note(&format!(
                    "Note: {}; the settings of {} change all the same",
                    away.what,
                    cluster.name()
                ));
            }
            let engine = engine_of(&cluster).await?;
            Ok(Changing { cluster, engine, connected: false })
        }
        None => Err(away),
    }
}

fn read_file(file: &str) -> Result<ClusterConfig, Failure> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        path => std::fs::read_to_string(path).map(|found| text = found),
    };
    read.map_err(|error| Failure::usage(format!("{file} cannot be read: {error}")))?;
    parse_file(file, &text)
}

/// The settings in a file. Its errors never repeat a line, for files of `pbm` hold keys.
fn parse_file(file: &str, text: &str) -> Result<ClusterConfig, Failure> {
    // JSON is YAML.
    let value: Value = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map(|place| format!(" (line {})", place.line())).unwrap_or_default();
        Failure::usage(format!("{file} is neither YAML nor JSON{place}"))
    })?;
    if let Some(storage) = value.get("storage") {
        return Err(Failure::usage(format!("{file} names a storage, which is no setting of a cluster"))
            .hint(pbm_config::as_repository(storage)));
    }
    match value {
        Value::Null => Ok(ClusterConfig::default()),
        Value::Object(_) => Ok(ClusterConfig::from_value(value)?),
        _ => Err(Failure::usage(format!("{file} holds no settings such as pitr: {{enabled: true}}"))),
    }
}

/// All settings.
#[derive(Serialize)]
#[serde(transparent)]
struct All(ClusterConfig);

impl Report for All {
    fn text(&self) -> String {
        yaml(&self.0)
    }
}

/// One setting.
#[derive(Serialize)]
struct One {
    key: String,
    value: String,
}

impl Report for One {
    fn text(&self) -> String {
        format!("{}\n", self.value)
    }
}

/// What was changed.
struct Changed(Vec<(String, String)>);

impl Serialize for Changed {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl Report for Changed {
    fn text(&self) -> String {
        self.0.iter().map(|(key, value)| format!("[{key}={value}]\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_yaml_or_json() {
        for text in
            ["pitr:\n  enabled: true\n  oplogSpanMin: 2\n", "{\"pitr\": {\"enabled\": true, \"oplogSpanMin\": 2}}"]
        {
            let config = parse_file("f", text).unwrap();
            assert!(config.pitr.enabled && config.pitr.oplog_span_min == 2);
        }
        assert_eq!(parse_file("f", "").unwrap(), ClusterConfig::default());
    }

    #[test]
    fn what_a_file_may_not_say_is_refused_without_repeating_secrets() {
        for (text, exit, word) in [
            ("pitr:\n  compression: s2\n", Exit::Unknown, "pitr.compression"),
            ("pitr:\n  enabled: maybe\n", Exit::Usage, "cannot be read"),
            ("secret\n", Exit::Usage, "no settings"),
            ("a: [secret\n", Exit::Usage, "neither YAML nor JSON"),
            (
                "storage: {type: s3, s3: {bucket: b, credentials: {secret-access-key: secret}}}\n",
                Exit::Usage,
                "storage",
            ),
        ] {
            let failure = parse_file("f", text).unwrap_err();
            assert!(failure.exit == exit && failure.what.contains(word), "{failure:?}");
            assert!(!format!("{failure:?}").contains("secret\""), "{failure:?}");
        }
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        assert_eq!(split("pitr.enabled = true").unwrap(), ("pitr.enabled".to_owned(), "true".to_owned()));
        assert_eq!(split("pitr.enabled").unwrap_err().exit, Exit::Usage);
        assert_eq!(split("storage.type=s3").unwrap_err().exit, Exit::Unknown);
    }
}
