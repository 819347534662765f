//! How to reach Google Cloud Storage: options, the environment, the file of `gcloud`, the machine's service account.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey as Key};
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use serde::Deserialize;

use crate::error::{Error, Result, one_line};
use crate::spec::Patience;

/// Google lets an object change once a second, and answers with 429 before
/// (<https://cloud.google.com/storage/quotas>): the second repetition has to come later than that.
const FIRST_PAUSE: Duration = Duration::from_millis(600);

/// How to reach Google Cloud Storage. What is not given is taken from `GOOGLE_*`, then from what `gcloud auth
/// application-default login` left, then from the service account of the machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GoogleOptions {
    /// File with the key of a service account, as JSON.
    pub service_account: Option<PathBuf>,
}

impl GoogleOptions {
    pub(crate) fn connect(&self, bucket: &str, patience: Patience) -> Result<Arc<dyn ObjectStore>> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let (builder, source) = self.builder(std::env::vars_os().filter_map(text))?;
        let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, ..BackoffConfig::default() };
        let built = builder
            .with_bucket_name(bucket)
            .with_config(Key::Client(ClientConfigKey::Timeout), patience.request_timeout())
            .with_retry(RetryConfig { backoff, ..patience.retry() })
            .build();
        Ok(Arc::new(built.map_err(|error| refused(&error, &source))?))
    }

    /// What these options and the environment say, and where the credentials come from.
    fn builder(
        &self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(GoogleCloudStorageBuilder, String)> {
        let mut builder = GoogleCloudStorageBuilder::new();
        let mut source = "~/.config/gcloud/application_default_credentials.json".to_owned();
        for (name, value) in variables.filter(|(name, value)| name.starts_with("GOOGLE_") && !value.is_empty()) {
            let Ok(key) = name.to_ascii_lowercase().parse::<Key>() else { continue };
            let file = matches!(key, Key::ServiceAccount | Key::ApplicationCredentials);
            if file || matches!(key, Key::ServiceAccountKey | Key::BearerToken | Key::SkipSignature) {
                // Whoever names an account in the settings wants no other that happens to be there.
                if self.service_account.is_some() {
                    continue;
                }
                source.clone_from(&name);
            }
            // An error would repeat the "path", which holds the private key.
            if file && value.trim_start().starts_with('{') {
                return Err(Error::Settings(format!(
                    "{name} holds a key instead of the path of a file: put the key into a file, or into \
                     GOOGLE_SERVICE_ACCOUNT_KEY"
                )));
            }
            builder = builder.with_config(key, value);
        }
        if let Some(file) = &self.service_account {
            builder = builder.with_service_account_path(file.display().to_string());
            "service_account in hindsight.toml".clone_into(&mut source);
        }
        Ok((builder, source))
    }
}

fn refused(error: &object_store::Error, source: &str) -> Error {
    let text = one_line(&error.to_string());
    // "Generic GCS error: ", and the like: which part of the library it was helps nobody.
    let why = match text.split_once(" error: ") {
        Some((part, why)) if part.starts_with("Generic ") => why,
        _ => &text,
    };
    Error::Settings(format!("{why} (credentials are taken from {source}: correct that)"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
    }

    fn built(options: &GoogleOptions, pairs: &[(&str, &str)]) -> GoogleCloudStorageBuilder {
        options.builder(variables(pairs)).unwrap().0
    }

    #[test]
    fn the_settings_go_before_the_environment_and_empty_variables_say_nothing() {
        let of = |builder: &GoogleCloudStorageBuilder, key| builder.get_config_value(&key);
        let environment = [
            ("GOOGLE_SERVICE_ACCOUNT", ""),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", "{}"),
            ("GOOGLE_BASE_URL", "http://x"),
            ("SERVICE_ACCOUNT", "somebody@example.com"),
        ];
        let plain = built(&GoogleOptions::default(), &environment);
        assert_eq!(of(&plain, Key::ServiceAccountKey).as_deref(), Some("{}"));
        assert_eq!(of(&plain, Key::BaseUrl).as_deref(), Some("http://x"));
        assert_eq!(of(&plain, Key::ServiceAccount), None);
        let named = GoogleOptions { service_account: Some("/k.json".into()) };
        let named = built(&named, &environment);
        assert_eq!(of(&named, Key::ServiceAccount).as_deref(), Some("/k.json"));
        assert_eq!(of(&named, Key::ServiceAccountKey), None);
        assert_eq!(of(&named, Key::BaseUrl).as_deref(), Some("http://x"));
    }

    #[test]
    fn a_key_where_a_path_should_be_is_not_repeated() {
        for name in ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"] {
            let pairs = [(name, " {\"private_key\": \"topsecret\"}")];
            let error = GoogleOptions::default().builder(variables(&pairs)).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(name) && !text.contains("topsecret"), "{text}");
        }
    }

    #[test]
    fn credentials_that_cannot_be_used_are_named_with_where_they_come_from() {
        let folder = std::env::temp_dir().join(format!("hindsight-google-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("key.json");
        let federated = r#"{"type": "external_account", "audience": "topsecret"}"#;
        let unusable =
            r#"{"type": "service_account", "private_key": "topsecret", "private_key_id": "1", "client_email": "e"}"#;
        for (content, words) in [(None, "No such file"), (Some(federated), "external_account"), (Some(unusable), "pem")]
        {
            let _ = std::fs::remove_file(&file);
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let path = file.display().to_string();
            let (builder, source) =
                GoogleOptions::default().builder(variables(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)])).unwrap();
            let error = refused(&builder.with_bucket_name("b").build().unwrap_err(), &source).to_string();
            let named = error.contains(words) && error.contains("GOOGLE_APPLICATION_CREDENTIALS");
            assert!(named && !error.contains("topsecret"), "{error}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
