//! Buckets: S3 and what speaks its language, Azure and Google. Endpoint, region and credentials come from the environment
//! under each vendor's own names, or from the files that it names; never from the address, which is logged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

use super::completion::COMPLETION_TIMEOUT;

/// How long the store may be silent, from a request to its answer and within that. What is sent is a part of 8 MiB at most: a
/// line of 1.2 Mbit/s keeps up.
const SILENCE_TIMEOUT: &str = "60s";
/// A credentials file is a few lines.
const FILE_BYTES_MAX: u64 = 64 * 1024;

type Opened = (Arc<dyn ObjectStore>, Path);

pub(super) fn is_bucket(url: &str) -> bool {
    ["s3://", "az://", "gs://"].iter().any(|scheme| url.starts_with(scheme))
}

/// Scheme, bucket and prefix. The reason why not continues "`repository` ...".
pub(super) fn check(url: &str) -> Result<(&str, &str, Path), &'static str> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err("names no bucket");
    }
    if bucket.contains(['@', ':', '?']) || prefix.contains(['?', '#']) {
        return Err("is a bucket and a prefix alone: endpoint and credentials belong in the environment");
    }
    let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|_| "has a prefix that is no path")?;
    Ok((scheme, bucket, prefix))
}

/// Opens what [`is_bucket`] said yes to.
pub(super) fn open(url: &str) -> Result<Opened, String> {
    let (scheme, bucket, prefix) = check(url)?;
    let store: Arc<dyn ObjectStore> = match scheme {
        "s3" => Arc::new(s3(bucket)?),
        "az" => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
            for (key, value) in timeouts("AZURE_TIMEOUT") {
                builder = builder.with_config(AzureConfigKey::Client(key), value);
            }
            let built = builder.with_retry(retry()).build();
            Arc::new(built.map_err(|error| error.to_string())?)
        }
        _ => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            for (key, value) in timeouts("GOOGLE_TIMEOUT") {
                builder = builder.with_config(GoogleConfigKey::Client(key), value);
            }
            let built = builder.with_retry(retry()).build();
            Arc::new(built.map_err(|error| error.to_string())?)
        }
    };
    Ok((store, prefix))
}

fn s3(bucket: &str) -> Result<object_store::aws::AmazonS3, String> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry());
    for (key, value) in timeouts("AWS_TIMEOUT") {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    if is_unset("AWS_ACCESS_KEY_ID")
        && let Some(file) = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE")
    {
        let profile = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
        for (key, value) in credentials(&PathBuf::from(file), &profile)? {
            builder = builder.with_config(key, value);
        }
    }
    builder.build().map_err(|error| error.to_string())
}

/// Bounded, so that a store that is down fails the run within minutes, and the next run tries again.
fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 5,
        retry_timeout: Duration::from_secs(60),
        ..RetryConfig::default()
    }
}

/// One timeout holds for all requests of a client, and the completion of an upload outlasts all others while the store says
/// by spaces that it goes on. So what `variable` limits is the silence; each call has its own limit besides.
fn timeouts(variable: &str) -> [(ClientConfigKey, String); 2] {
    let silence = std::env::var(variable).unwrap_or_else(|_| SILENCE_TIMEOUT.to_owned());
    let whole = format!("{}s", COMPLETION_TIMEOUT.as_secs());
    [
        (ClientConfigKey::ReadTimeout, silence),
        (ClientConfigKey::Timeout, whole),
    ]
}

/// Whether the store took a request, as far as can be told, and never answered it.
pub(super) fn is_unanswered(error: &object_store::Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let mut kinds = causes.filter_map(|cause| Some(cause.downcast_ref::<HttpError>()?.kind()));
    kinds.any(|kind| matches!(kind, HttpErrorKind::Timeout | HttpErrorKind::Interrupted))
}

fn is_unset(name: &str) -> bool {
    std::env::var_os(name).is_none()
}

/// Reads one profile of the file that the other tools of S3 share.
fn credentials(file: &std::path::Path, profile: &str) -> Result<Vec<(AmazonS3ConfigKey, String)>, String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| format!("AWS_SHARED_CREDENTIALS_FILE: {}: {error}", file.display()))?;
    let found = parse(&text, profile);
    if found.is_empty() {
        return Err(format!("{} has no keys for profile {profile:?}", file.display()));
    }
    Ok(found)
}

fn parse(text: &str, profile: &str) -> Vec<(AmazonS3ConfigKey, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = section.trim() == profile;
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| inside) else {
            continue;
        };
        let key = match name.trim() {
            "aws_access_key_id" => AmazonS3ConfigKey::AccessKeyId,
            "aws_secret_access_key" => AmazonS3ConfigKey::SecretAccessKey,
            "aws_session_token" => AmazonS3ConfigKey::Token,
            _ => continue,
        };
        found.push((key, value.trim().to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_credentials_or_without_a_bucket_are_refused() {
        for url in [
            "s3://",
            "s3:///prefix",
            "s3://key:secret@bucket/x",
            "gs://b/x?token=1",
            "s3://bucket/a//b",
        ] {
            assert!(is_bucket(url));
            let reason = open(url).expect_err(url);
            assert!(!reason.contains("secret"), "{reason}");
        }
        assert!(!is_bucket("file:///x"));
        assert!(!is_bucket("ftp://x"));
    }

    #[test]
    fn only_the_profile_asked_for_is_read() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=B=\n# x\n[other]\naws_access_key_id=C\n";
        let values = |profile| {
            parse(text, profile)
                .into_iter()
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
        };
        assert_eq!(values("default"), ["A", "B="]);
        assert_eq!(values("other"), ["C"]);
        assert_eq!(values("none"), [""; 0]);
    }
}
