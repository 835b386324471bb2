//! Makes a client of a store from a URL and settings.
//!
//! Checksums are sent as plain headers of single PUTs: the trailers of newer tools are refused by Ceph, R2 and older stores.
//! The library repeats nothing, as [`Bucket`](crate::Bucket) does that.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};

use crate::credentials::Profile;
use crate::guard::Guarded;
use crate::location::{Location, Scheme};
use crate::own::OwnRequests;
use crate::settings::{Encryption, Settings};

/// How long a connection may take to be made.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);

/// A client of a store.
pub(crate) struct Client {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Requests that the library does not make; of S3 alone.
    pub(crate) own: Option<OwnRequests>,
}

impl Client {
    fn plain(store: impl ObjectStore) -> Self {
        Self {
            store: Arc::new(store),
            own: None,
        }
    }
}

/// A client. The text of an error says what is wrong with the settings.
pub(crate) fn connect(location: &Location, settings: &Settings) -> Result<Client, String> {
    if location.scheme == Scheme::Directory {
        return directory(&location.prefix);
    }
    // Another part of the process may have chosen it already, and the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match location.scheme {
        Scheme::Google => google(location, settings),
        Scheme::Azure => azure(location, settings),
        Scheme::S3 | Scheme::Directory => s3(location, settings),
    }
}

fn directory(path: &str) -> Result<Client, String> {
    std::fs::create_dir_all(path).map_err(|error| format!("Cannot create {path}: {error}"))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|error| error.to_string())?;
    Ok(Client::plain(store.with_fsync(true)))
}

fn s3(location: &Location, settings: &Settings) -> Result<Client, String> {
    let mut builder = AmazonS3Builder::new();
    for (key, value) in variables::<AmazonS3ConfigKey>(settings, "AWS_") {
        builder = builder.with_config(key, value);
    }
    let profile = Profile::read(settings)?;
    let is_set = |names: &[&str]| names.iter().any(|name| settings.variable(name).is_some());
    let of_environment = is_set(&[
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ]);
    let is_profiles_turn = settings.profile.is_some() || !of_environment;
    if let Some(provider) = is_profiles_turn
        .then(|| profile.provider())
        .transpose()?
        .flatten()
    {
        builder = builder.with_credentials(provider);
    }
    let region = settings.region.as_deref();
    let region =
        region.or_else(|| (!is_set(&["AWS_REGION", "AWS_DEFAULT_REGION"])).then(|| profile.get("region"))?);
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    let has_endpoint = is_set(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
    let of_profile = || (!has_endpoint).then(|| profile.get("endpoint_url"))?;
    let endpoint = settings.endpoint.as_deref().or_else(of_profile);
    if let Some(endpoint) = endpoint {
        let endpoint = match settings.path_style {
            true => endpoint.to_owned(),
            false => hosted(endpoint, &location.bucket),
        };
        builder = builder
            .with_config(AmazonS3ConfigKey::S3Endpoint, &endpoint)
            .with_allow_http(endpoint.starts_with("http://"));
    }
    match &settings.encryption {
        None => {}
        Some(Encryption::Store) => builder = with_key(builder, "aws_server_side_encryption", "AES256")?,
        Some(Encryption::KeyService(None)) => {
            builder = with_key(builder, "aws_server_side_encryption", "aws:kms")?;
        }
        Some(Encryption::KeyService(Some(key))) => builder = builder.with_sse_kms_encryption(key),
    }
    let options = client_options(settings, endpoint)?;
    let client = builder
        .with_bucket_name(&location.bucket)
        .with_virtual_hosted_style_request(!settings.path_style)
        .with_checksum_algorithm(Checksum::SHA256)
        // The right to delete one object is enough for this, and every store knows it.
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
        .with_client_options(options.clone())
        .with_http_connector(Guarded::default())
        .with_retry(never_again())
        .build();
    let s3 = Arc::new(client.map_err(|error| error.to_string())?);
    let own = OwnRequests::new(Arc::clone(&s3), &options).map_err(|error| error.to_string())?;
    Ok(Client {
        store: s3,
        own: Some(own),
    })
}

fn with_key(builder: AmazonS3Builder, key: &str, value: &str) -> Result<AmazonS3Builder, String> {
    let key = AmazonS3ConfigKey::from_str(key).map_err(|error| error.to_string())?;
    Ok(builder.with_config(key, value))
}

fn google(location: &Location, settings: &Settings) -> Result<Client, String> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (key, value) in variables::<GoogleConfigKey>(settings, "GOOGLE_") {
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    let client = builder
        .with_bucket_name(&location.bucket)
        .with_client_options(client_options(settings, settings.endpoint.as_deref())?)
        .with_http_connector(Guarded::default())
        .with_retry(never_again())
        .build();
    Ok(Client::plain(client.map_err(|error| error.to_string())?))
}

fn azure(location: &Location, settings: &Settings) -> Result<Client, String> {
    let mut builder = MicrosoftAzureBuilder::new();
    for (key, value) in variables::<AzureConfigKey>(settings, "AZURE_") {
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let client = builder
        .with_container_name(&location.bucket)
        .with_client_options(client_options(settings, settings.endpoint.as_deref())?)
        .with_http_connector(Guarded::default())
        .with_retry(never_again())
        .build();
    Ok(Client::plain(client.map_err(|error| error.to_string())?))
}

/// The variables of the environment that the library knows as keys.
fn variables<K: FromStr>(settings: &Settings, start: &str) -> Vec<(K, String)> {
    let ours = settings
        .environment
        .iter()
        .filter(|(name, value)| name.starts_with(start) && !value.is_empty());
    ours.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone())))
        .collect()
}

/// An endpoint with the bucket in the name of its host.
fn hosted(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
        None => endpoint.to_owned(),
    }
}

/// A whole request has no limit here, as its bytes decide how long it may take.
fn client_options(settings: &Settings, endpoint: Option<&str>) -> Result<ClientOptions, String> {
    let of_environment = ["AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP"];
    let is_allowed = of_environment
        .iter()
        .any(|name| settings.variable(name) == Some("true"));
    let mut options = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECTED_WITHIN)
        .with_allow_http(is_allowed || endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")));
    if let Some(proxy) = &settings.proxy {
        options = options.with_proxy_url(proxy);
    }
    if let Some(file) = &settings.ca_file {
        let failed = |error: String| format!("Cannot use the certificates in {}: {error}", file.display());
        let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))?;
        if certificates.is_empty() {
            return Err(failed("it has none".to_owned()));
        }
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn never_again() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::ZERO,
        ..RetryConfig::default()
    }
}
