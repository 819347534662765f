//! The profile files of the AWS tools: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Read: `aws_access_key_id`, `aws_secret_access_key`, `aws_session_token`, `region`,
//! `endpoint_url`, and `addressing_style` under `s3` (AWS SDKs and Tools Reference Guide, "Shared
//! config and credentials files").

use std::collections::HashMap;
use std::path::PathBuf;

use secrecy::SecretString;

use crate::error::{Error, Result};

/// What a profile says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    pub(crate) keys: Option<(String, SecretString)>,
    pub(crate) session_token: Option<SecretString>,
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) path_style: Option<bool>,
}

/// Loads the profile of this name, or that of `AWS_PROFILE`, or `default`. Only one that was asked
/// for by name has to exist.
pub(crate) fn load(name: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Result<Profile> {
    let given = |name: &str| variable(name).filter(|value| !value.is_empty());
    let asked = name.map(str::to_owned).or_else(|| given("AWS_PROFILE"));
    let file = |own: &str, usual: &str| {
        let path = given(own).map(PathBuf::from).or_else(|| Some(PathBuf::from(given("HOME")?).join(usual)));
        path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
    };
    let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
    let config = file("AWS_CONFIG_FILE", ".aws/config");
    let wanted = asked.as_deref().unwrap_or("default");
    match (read(&credentials, &config, wanted), asked) {
        (Some(profile), _) => Ok(profile),
        (None, None) => Ok(Profile::default()),
        (None, Some(name)) => {
            Err(Error::Settings(format!("there is no AWS profile {name:?} in ~/.aws/credentials or ~/.aws/config")))
        }
    }
}

fn read(credentials: &str, config: &str, name: &str) -> Option<Profile> {
    let from_config = section(config, |title| title == name && name == "default" || title == format!("profile {name}"));
    let from_credentials = section(credentials, |title| title == name);
    if from_config.is_none() && from_credentials.is_none() {
        return None;
    }
    let mut values = from_config.unwrap_or_default();
    values.extend(from_credentials.unwrap_or_default());
    let mut take = |key: &str| values.remove(key).filter(|value| !value.is_empty());
    Some(Profile {
        keys: take("aws_access_key_id").zip(take("aws_secret_access_key").map(SecretString::from)),
        session_token: take("aws_session_token").map(SecretString::from),
        region: take("region"),
        endpoint: take("endpoint_url"),
        path_style: take("addressing_style").and_then(|style| match style.as_str() {
            "path" => Some(true),
            "virtual" => Some(false),
            _ => None,
        }),
    })
}

/// The values of a section; those that are indented below another key come under their own names.
fn section(text: &str, wanted: impl Fn(&str) -> bool) -> Option<HashMap<String, String>> {
    let mut values = None;
    let mut inside = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            inside = wanted(&title.split_whitespace().collect::<Vec<_>>().join(" "));
            if inside {
                values.get_or_insert_with(HashMap::new);
            }
        } else if let (true, Some(values), Some((key, value))) = (inside, &mut values, line.split_once('=')) {
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use secrecy::ExposeSecret;

    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = A\naws_secret_access_key=S=x\n\n; no\n[other]\n\
                               aws_access_key_id=B\naws_secret_access_key = T\naws_session_token = K\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile  other]\nregion=eu-central-1\ns3 =\n  \
                          addressing_style = path\nendpoint_url = https://s3.example.com\n[profile empty]\n";

    #[test]
    fn profiles_are_read_from_both_files() {
        let default = read(CREDENTIALS, CONFIG, "default").unwrap();
        let (id, secret) = default.keys.unwrap();
        assert_eq!((id.as_str(), secret.expose_secret(), default.region.as_deref()), ("A", "S=x", Some("eu-west-1")));
        let other = read(CREDENTIALS, CONFIG, "other").unwrap();
        assert_eq!((other.region.as_deref(), other.path_style), (Some("eu-central-1"), Some(true)));
        assert_eq!(other.endpoint.as_deref(), Some("https://s3.example.com"));
        assert!(other.session_token.is_some() && !format!("{other:?}").contains("\"T\""));
        assert!(read(CREDENTIALS, CONFIG, "empty").unwrap().keys.is_none());
        assert!(read(CREDENTIALS, CONFIG, "nope").is_none());
    }

    #[test]
    fn only_a_profile_that_was_asked_for_has_to_exist() {
        let nowhere = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        assert!(load(None, nowhere).unwrap().keys.is_none());
        assert!(load(Some("p"), nowhere).unwrap_err().to_string().contains("\"p\""));
        assert!(load(None, |name: &str| (name == "AWS_PROFILE").then(|| "q".to_owned())).is_err());
    }
}
