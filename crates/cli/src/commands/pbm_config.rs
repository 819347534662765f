//! The `storage:` part of a settings file of `pbm`, and how to say the same here.

use serde_json::Value;

/// Where the storage is named.
pub(crate) const WHERE: &str = "where everything is kept is --repository URL (s3://bucket/prefix, az://, gs://, file:///), \
    or HINDSIGHT_REPOSITORY, or repository = \"...\" in hindsight.toml";

/// What to write instead of a `storage:` part. Secrets in it are not repeated.
pub(crate) fn as_repository(storage: &Value) -> String {
    match told(storage) {
        Some((url, settings)) if settings.is_empty() => {
            format!(
                "remove the storage part, and give --repository {url} (or put repository = \"{url}\" into hindsight.toml)"
            )
        }
        Some((url, settings)) => format!(
            "remove the storage part, and put into hindsight.toml: repository = \"{url}\", [s3] {}",
            settings.join(", ")
        ),
        None => format!("remove the storage part; {WHERE}"),
    }
}

/// URL and further settings.
fn told(storage: &Value) -> Option<(String, Vec<String>)> {
    let kind = storage.get("type")?.as_str()?;
    let part = storage.get(kind)?;
    let text = |name: &str| part.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let with_prefix = |scheme: &str, name: &str| match text("prefix") {
        Some(prefix) => format!("{scheme}://{name}/{}", prefix.trim_matches('/')),
        None => format!("{scheme}://{name}"),
    };
    let mut settings = Vec::new();
    let url = match kind {
        "filesystem" => format!("file://{}", text("path")?),
        "gcs" => with_prefix("gs", text("bucket")?),
        "azure" => with_prefix("az", text("container")?),
        "s3" | "minio" => {
            let endpoint = text("endpointUrl").or_else(|| text("endpoint"));
            settings.extend(endpoint.map(|endpoint| format!("endpoint = {endpoint:?}")));
            settings.extend(text("region").map(|region| format!("region = {region:?}")));
            let switch = |name: &str| part.get(name).and_then(Value::as_bool);
            settings.extend(switch("forcePathStyle").map(|on| format!("path_style = {on}")));
            settings.extend(switch("insecureSkipTLSVerify").filter(|on| *on).map(|_| "verify_tls = false".to_owned()));
            if part.get("credentials").is_some() {
                settings.push("access_key_id = \"...\", secret_access_key = \"...\"".to_owned());
            }
            with_prefix("s3", text("bucket")?)
        }
        _ => return None,
    };
    Some((url, settings))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn storages_of_pbm_become_urls() {
        let s3 = json!({"type": "s3", "s3": {
            "bucket": "b", "prefix": "a/b", "region": "eu-west-1", "endpointUrl": "https://s3.example.com",
            "forcePathStyle": true, "insecureSkipTLSVerify": true,
            "credentials": {"access-key-id": "AKIA", "secret-access-key": "geheim"},
        }});
        let told = as_repository(&s3);
        for word in
            ["s3://b/a/b", "endpoint = \"https://s3.example.com\"", "region = \"eu-west-1\"", "path_style = true"]
        {
            assert!(told.contains(word), "{told}");
        }
        assert!(!told.contains("geheim") && !told.contains("AKIA"));
        let folder = json!({"type": "filesystem", "filesystem": {"path": "/data/backups"}});
        assert!(as_repository(&folder).contains("--repository file:///data/backups"));
        assert!(as_repository(&json!({"type": "gcs", "gcs": {"bucket": "g"}})).contains("gs://g"));
        for odd in [json!(null), json!({"type": "s3"}), json!({"type": "oss", "oss": {}}), json!("x")] {
            assert!(as_repository(&odd).contains("--repository URL"));
        }
    }
}
