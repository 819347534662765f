//! `config/<number>.json`: the settings of a cluster, under the names that `pbm` gave them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The settings of a cluster. Each version is a new object; the highest number is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Continuous capture.
    pub pitr: PitrConfig,
    /// Snapshots.
    pub backup: BackupConfig,
    /// Restores.
    pub restore: RestoreConfig,
    /// What is kept, and for how long.
    pub retention: RetentionConfig,
}

/// On documents and on entries of the log it takes a third less work than 3, for 2 % more bytes (docs/benchmarks.md).
const DEFAULT_LEVEL: i32 = 2;

/// `pitr.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct PitrConfig {
    /// Whether the agent captures the log.
    pub enabled: bool,
    /// Seconds after which what was captured is stored: the recovery point.
    pub upload_interval_sec: u32,
    /// Minutes that a merged slice spans.
    pub oplog_span_min: u32,
    /// zstd level of slices.
    pub compression_level: i32,
    /// Whether commits may wait for the capture: what comes is stored at once, and acknowledged once it is.
    pub synchronous: bool,
}

impl Default for PitrConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            upload_interval_sec: 5,
            oplog_span_min: 10,
            compression_level: DEFAULT_LEVEL,
            synchronous: false,
        }
    }
}

/// `backup.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct BackupConfig {
    /// zstd level of snapshots.
    pub compression_level: i32,
    /// Readers at the same time; 0 chooses by the number of cores.
    pub num_parallel_collections: u32,
    /// MiB (before compression) that are read per second at most; 0 for no limit.
    pub rate_limit_mib: u32,
    /// Whether hashes of the data are kept, where the moment allows it.
    pub hash: bool,
    /// MiB (before compression) after which each reader notes how far it came, for `--resume`.
    pub checkpoint_mib: u32,
}

impl Default for BackupConfig {
    fn default() -> Self {
        Self {
            compression_level: DEFAULT_LEVEL,
            num_parallel_collections: 0,
            rate_limit_mib: 0,
            hash: false,
            checkpoint_mib: 2048,
        }
    }
}

/// `restore.*`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RestoreConfig {
    /// Connections that insert at the same time; 0 chooses by the number of cores.
    pub num_insertion_workers: u32,
    /// MiB that are inserted per second at most; 0 for no limit.
    pub rate_limit_mib: u32,
    /// MiB of memory for the folded log, before it spills to local disk; 0 for the default.
    pub fold_memory_mib: u32,
}

/// `retention.*`: applied by the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RetentionConfig {
    /// The newest full snapshots that are kept with all log after them; 0: no rule.
    pub count: u32,
    /// Days back that can be restored; 0: no rule. With a count as well, what either rule keeps is
    /// kept.
    pub days: u32,
    /// Days after which the logs of jobs are removed; 0: never.
    pub log_days: u32,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self { count: 0, days: 0, log_days: 30 }
    }
}

/// Why a setting was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No such key.
    #[error("unknown setting {key:?}; known are {known}")]
    UnknownKey {
        /// The key given.
        key: String,
        /// All keys there are.
        known: String,
    },
    /// The value does not fit.
    #[error("{key} cannot be {value:?}: {why}")]
    BadValue {
        /// The key.
        key: String,
        /// The value given.
        value: String,
        /// What is expected.
        why: String,
    },
    /// A settings file that cannot be used.
    #[error("the settings cannot be read: {0}")]
    Malformed(String),
}

impl ClusterConfig {
    /// All settings as `key, value`, in a stable order.
    pub fn entries(&self) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        if let Ok(Value::Object(groups)) = serde_json::to_value(self) {
            for (group, settings) in &groups {
                for (name, value) in settings.as_object().into_iter().flatten() {
                    entries.push((format!("{group}.{name}"), value.to_string()));
                }
            }
        }
        entries
    }

    /// The value of one setting, such as `pitr.enabled`.
    pub fn get(&self, key: &str) -> Result<String, ConfigError> {
        let found = self.entries().into_iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value).ok_or_else(|| self.unknown(key))
    }

    /// The settings with one of them changed.
    pub fn with(&self, key: &str, value: &str) -> Result<Self, ConfigError> {
        let present = self.get(key)?;
        let bad = |why: String| ConfigError::BadValue { key: key.to_owned(), value: value.to_owned(), why };
        let new: Value = serde_json::from_str(value).map_err(|_| bad(expected(&present).to_owned()))?;
        let mut all = serde_json::to_value(self).map_err(|e| bad(e.to_string()))?;
        let (group, name) = key.split_once('.').ok_or_else(|| self.unknown(key))?;
        all[group][name] = new;
        let changed: Self = serde_json::from_value(all).map_err(|_| bad(expected(&present).to_owned()))?;
        changed.check()?;
        Ok(changed)
    }

    /// Settings from a parsed file; what it does not name keeps its default.
    pub fn from_value(value: Value) -> Result<Self, ConfigError> {
        let known = Self::default();
        for (group, settings) in value.as_object().into_iter().flatten() {
            for name in settings.as_object().into_iter().flatten().map(|(name, _)| name) {
                known.get(&format!("{group}.{name}"))?;
            }
        }
        let config: Self = serde_json::from_value(value).map_err(|e| ConfigError::Malformed(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let limits: [(&str, i64, i64, i64); 12] = [
            ("pitr.uploadIntervalSec", self.pitr.upload_interval_sec.into(), 1, 3600),
            ("pitr.oplogSpanMin", self.pitr.oplog_span_min.into(), 1, 1440),
            ("pitr.compressionLevel", self.pitr.compression_level.into(), 1, 19),
            ("backup.compressionLevel", self.backup.compression_level.into(), 1, 19),
            ("backup.numParallelCollections", self.backup.num_parallel_collections.into(), 0, 64),
            ("backup.rateLimitMib", self.backup.rate_limit_mib.into(), 0, 1 << 20),
            ("backup.checkpointMib", self.backup.checkpoint_mib.into(), 1, 1 << 20),
            ("restore.numInsertionWorkers", self.restore.num_insertion_workers.into(), 0, 64),
            ("restore.rateLimitMib", self.restore.rate_limit_mib.into(), 0, 1 << 20),
            ("retention.count", self.retention.count.into(), 0, 100_000),
            ("retention.days", self.retention.days.into(), 0, 36_500),
            ("retention.logDays", self.retention.log_days.into(), 0, 36_500),
        ];
        for (key, value, low, high) in limits {
            if !(low..=high).contains(&value) {
                return Err(ConfigError::BadValue {
                    key: key.to_owned(),
                    value: value.to_string(),
                    why: format!("it must be a number from {low} to {high}"),
                });
            }
        }
        Ok(())
    }

    fn unknown(&self, key: &str) -> ConfigError {
        let known: Vec<_> = self.entries().into_iter().map(|(name, _)| name).collect();
        ConfigError::UnknownKey { key: key.to_owned(), known: known.join(", ") }
    }
}

fn expected(present: &str) -> &'static str {
    if matches!(present, "true" | "false") { "it must be true or false" } else { "it must be a whole number" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_written_by_key() {
        let config = ClusterConfig::default().with("pitr.enabled", "true").unwrap();
        assert_eq!(config.get("pitr.enabled").unwrap(), "true");
        assert_eq!(config.get("pitr.uploadIntervalSec").unwrap(), "5");
        assert!(config.pitr.enabled);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_way_out() {
        let config = ClusterConfig::default();
        assert!(config.with("pitr.enable", "true").unwrap_err().to_string().contains("pitr.enabled"));
        assert!(config.with("pitr", "true").is_err());
        for (key, value) in [
            ("pitr.enabled", "maybe"),
            ("pitr.uploadIntervalSec", "0"),
            ("pitr.oplogSpanMin", "-1"),
            ("pitr.oplogSpanMin", "true"),
        ] {
            assert!(config.with(key, value).unwrap_err().to_string().contains("it must be"), "{key}={value}");
        }
    }

    #[test]
    fn a_file_may_name_some_settings() {
        let config = ClusterConfig::from_value(serde_json::json!({"pitr": {"oplogSpanMin": 2}})).unwrap();
        assert_eq!((config.pitr.oplog_span_min, config.pitr.upload_interval_sec), (2, 5));
        assert!(ClusterConfig::from_value(serde_json::json!({"pitr": {"nope": 2}})).is_err());
        assert!(ClusterConfig::from_value(serde_json::json!({"storage": {"type": "s3"}})).is_err());
    }
}
