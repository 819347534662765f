//! How to reach an S3 store: options, the environment, the AWS profile files, the machine's role.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, StaticCredentialProvider};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use crate::error::{Error, Result, one_line};
use crate::profile::{self, Profile};
use crate::spec::Patience;

/// How to reach an S3 store. What is not given is taken from `HINDSIGHT_S3_*`, then from `AWS_*`,
/// then from `~/.aws`, then from the role of the machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Options {
    /// URL of the server, for stores other than Amazon's. `http://` allows unencrypted transfer.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Whether the bucket's name goes into the path instead of the host name.
    pub path_style: Option<bool>,
    /// Whether the server's certificate is checked.
    pub verify_tls: bool,
    /// Profile in `~/.aws`.
    pub profile: Option<String>,
    /// Access key.
    pub access_key_id: Option<String>,
    /// Secret of the access key.
    pub secret_access_key: Option<SecretString>,
    /// Token that goes with temporary access keys.
    pub session_token: Option<SecretString>,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            verify_tls: true,
            profile: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
        }
    }
}

impl S3Options {
    /// The options with what `HINDSIGHT_S3_ENDPOINT`, `_REGION`, `_PATH_STYLE` and `_VERIFY_TLS`
    /// say where they say nothing themselves.
    pub(crate) fn with_variables(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let switch = |name: &str| match given(name).map(|value| value.to_ascii_lowercase()).as_deref() {
            None => Ok(None),
            Some("true" | "1" | "yes" | "on") => Ok(Some(true)),
            Some("false" | "0" | "no" | "off") => Ok(Some(false)),
            Some(_) => Err(Error::Settings(format!("{name} must be true or false"))),
        };
        self.endpoint = self.endpoint.or_else(|| given("HINDSIGHT_S3_ENDPOINT"));
        self.region = self.region.or_else(|| given("HINDSIGHT_S3_REGION"));
        let path_style = switch("HINDSIGHT_S3_PATH_STYLE")?;
        self.path_style = self.path_style.or(path_style);
        self.verify_tls &= switch("HINDSIGHT_S3_VERIFY_TLS")?.unwrap_or(true);
        Ok(self)
    }

    pub(crate) async fn connect(&self, bucket: &str, patience: Patience) -> Result<Arc<dyn ObjectStore>> {
        let variable = |name: &str| std::env::var(name).ok();
        let options = self.clone().with_variables(variable)?;
        // Whoever gives keys wants nothing from a profile that happens to be there.
        let profile = match (&options.access_key_id, &options.profile) {
            (Some(_), None) => Profile::default(),
            (_, name) => profile::load(name.as_deref(), variable)?,
        };
        let mut builder = options.builder(AmazonS3Builder::from_env(), bucket, &profile)?;
        if builder.get_config_value(&AmazonS3ConfigKey::Region).is_none() {
            let region = match endpoint_of(&builder) {
                Some(_) => None,
                None => object_store::aws::resolve_bucket_region(bucket, &ClientOptions::new()).await.ok(),
            };
            builder = builder.with_region(region.as_deref().unwrap_or("us-east-1"));
        }
        let timeout = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
        let built = builder.with_config(timeout, patience.request_timeout()).with_retry(patience.retry()).build();
        Ok(Arc::new(built.map_err(|error| Error::Settings(one_line(&error.to_string())))?))
    }

    /// Puts together `builder` (what the environment says), these options, and the profile.
    fn builder(&self, mut builder: AmazonS3Builder, bucket: &str, profile: &Profile) -> Result<AmazonS3Builder> {
        use AmazonS3ConfigKey as Key;
        builder = builder.with_bucket_name(bucket);
        let in_environment = builder.get_config_value(&Key::AccessKeyId).is_some();
        if let Some(credential) = self.credential(in_environment, profile)? {
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
        }
        let region = self.region.clone().or_else(|| builder.get_config_value(&Key::Region));
        if let Some(region) = region.or_else(|| profile.region.clone()) {
            builder = builder.with_region(region);
        }
        let endpoint = self.endpoint.clone().or_else(|| endpoint_of(&builder)).or_else(|| profile.endpoint.clone());
        let path_style = self.path_style.or_else(|| {
            let hosted = builder.get_config_value(&Key::VirtualHostedStyleRequest)?;
            // The builder writes its unset default, false, as well: only "true" says something.
            (hosted == "true").then_some(false)
        });
        builder = self.with_endpoint(builder, bucket, endpoint, path_style.or(profile.path_style))?;
        if !self.verify_tls {
            builder = builder.with_config(Key::Client(ClientConfigKey::AllowInvalidCertificates), "true");
        }
        Ok(builder)
    }

    /// The keys to use; `None` leaves it to the environment and the machine's role. A profile that
    /// was asked for in the settings goes before keys in the environment.
    fn credential(&self, in_environment: bool, profile: &Profile) -> Result<Option<AwsCredential>> {
        let refuse = |why: &str| Err(Error::Settings(why.to_owned()));
        let (keys, token) = match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) => (Some((id, secret)), &self.session_token),
            (None, None) if self.profile.is_some() || !in_environment => {
                (profile.keys.as_ref().map(|(id, secret)| (id, secret)), &profile.session_token)
            }
            (None, None) => return Ok(None),
            _ => return refuse("an access key needs both access_key_id and secret_access_key"),
        };
        match keys {
            Some((id, secret)) => Ok(Some(AwsCredential {
                key_id: id.clone(),
                secret_key: secret.expose_secret().to_owned(),
                token: token.as_ref().map(|token| token.expose_secret().to_owned()),
            })),
            None if self.profile.is_some() => {
                refuse("the AWS profile has no access key (role_arn, sso and credential_process are not read)")
            }
            None => Ok(None),
        }
    }

    fn with_endpoint(
        &self,
        builder: AmazonS3Builder,
        bucket: &str,
        endpoint: Option<String>,
        path_style: Option<bool>,
    ) -> Result<AmazonS3Builder> {
        use AmazonS3ConfigKey as Key;
        let Some(endpoint) = endpoint else {
            // The wildcard in Amazon's certificate covers no bucket names with dots.
            let hosted = !path_style.unwrap_or_else(|| bucket.contains('.'));
            return Ok(builder.with_virtual_hosted_style_request(hosted));
        };
        let refuse = |why: &str| Err(Error::Settings(format!("the S3 endpoint {why}")));
        let mut url = match Url::parse(&endpoint) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => url,
            _ => return refuse("must begin with http:// or https://"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("contains credentials: remove them");
        }
        let hosted = !path_style.unwrap_or(true);
        if let (true, Some(host)) = (hosted, url.host_str().map(str::to_owned)) {
            // The builder expects the bucket in the host name then.
            if !host.starts_with(&format!("{bucket}.")) && url.set_host(Some(&format!("{bucket}.{host}"))).is_err() {
                return refuse("cannot take the bucket into its host name: use path style");
            }
        }
        let builder = builder
            .with_config(Key::Client(ClientConfigKey::AllowHttp), (url.scheme() == "http").to_string())
            .with_config(Key::S3Endpoint, url.as_str().trim_end_matches('/'))
            .with_virtual_hosted_style_request(hosted);
        // Not every store knows the request that deletes many objects.
        let bulk_unset = std::env::var_os("AWS_DISABLE_BULK_DELETE").is_none();
        Ok(if bulk_unset { builder.with_disable_bulk_delete(true) } else { builder })
    }
}

fn endpoint_of(builder: &AmazonS3Builder) -> Option<String> {
    let specific = builder.get_config_value(&AmazonS3ConfigKey::S3Endpoint);
    specific.or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn value(builder: &AmazonS3Builder, key: AmazonS3ConfigKey) -> Option<String> {
        builder.get_config_value(&key)
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = S3Options {
            access_key_id: Some("AKIA".into()),
            secret_access_key: Some("topsecret".into()),
            session_token: Some("topsecret".into()),
            ..S3Options::default()
        };
        assert!(!format!("{options:?}").contains("topsecret"));
        let spec = crate::RepositorySpec { url: "s3://b".into(), s3: options, ..Default::default() };
        assert!(!format!("{spec:#?}").contains("topsecret"));
    }

    #[test]
    fn variables_fill_in_what_is_not_given() {
        let variable = |name: &str| match name {
            "HINDSIGHT_S3_ENDPOINT" => Some("http://a:9000".to_owned()),
            "HINDSIGHT_S3_REGION" => Some("eu-1".to_owned()),
            "HINDSIGHT_S3_PATH_STYLE" => Some("false".to_owned()),
            "HINDSIGHT_S3_VERIFY_TLS" => Some("0".to_owned()),
            _ => None,
        };
        let given = S3Options { region: Some("mine".into()), ..S3Options::default() };
        let options = given.with_variables(variable).unwrap();
        assert_eq!(options.endpoint.as_deref(), Some("http://a:9000"));
        assert_eq!(
            (options.region.as_deref(), options.path_style, options.verify_tls),
            (Some("mine"), Some(false), false)
        );
        assert!(S3Options::default().with_variables(|_| Some("perhaps".into())).is_err());
    }

    #[test]
    fn endpoints_decide_on_http_and_style() {
        let at = |endpoint: &str, path_style| S3Options {
            endpoint: Some(endpoint.into()),
            path_style,
            ..S3Options::default()
        };
        let build = |options: &S3Options| options.builder(AmazonS3Builder::new(), "b", &Profile::default());
        let plain = build(&at("http://localhost:9000/", None)).unwrap();
        assert_eq!(value(&plain, AmazonS3ConfigKey::S3Endpoint).as_deref(), Some("http://localhost:9000"));
        assert_eq!(value(&plain, AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)).as_deref(), Some("true"));
        assert_eq!(value(&plain, AmazonS3ConfigKey::VirtualHostedStyleRequest).as_deref(), Some("false"));
        let hosted = build(&at("https://s3.example.com", Some(false))).unwrap();
        assert_eq!(value(&hosted, AmazonS3ConfigKey::S3Endpoint).as_deref(), Some("https://b.s3.example.com"));
        let amazon = build(&S3Options::default()).unwrap();
        assert_eq!(value(&amazon, AmazonS3ConfigKey::VirtualHostedStyleRequest).as_deref(), Some("true"));
        let error = build(&at("https://u:topsecret@x", None)).unwrap_err().to_string();
        assert!(error.contains("credentials") && !error.contains("topsecret"));
        assert!(build(&at("localhost:9000", None)).is_err());
    }

    #[test]
    fn keys_come_from_the_settings_then_the_environment_then_the_profile() {
        let from_profile = Profile { keys: Some(("P".into(), "s".into())), ..Profile::default() };
        let id = |options: S3Options, in_environment| {
            options.credential(in_environment, &from_profile).unwrap().map(|credential| credential.key_id)
        };
        let own = S3Options {
            access_key_id: Some("O".into()),
            secret_access_key: Some("s".into()),
            profile: Some("p".into()),
            ..S3Options::default()
        };
        let named = S3Options { profile: Some("p".into()), ..S3Options::default() };
        assert_eq!(id(own, true).as_deref(), Some("O"));
        assert_eq!(id(S3Options::default(), true), None);
        assert_eq!(id(S3Options::default(), false).as_deref(), Some("P"));
        assert_eq!(id(named.clone(), true).as_deref(), Some("P"));
        assert!(named.credential(true, &Profile::default()).is_err());
        let half = S3Options { access_key_id: Some("O".into()), ..S3Options::default() };
        assert!(half.credential(false, &from_profile).is_err());
    }
}
