//! How to reach an object store, and as whom.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a store encrypts what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// With keys of the store (SSE-S3).
    Store,
    /// With a key of a key service (SSE-KMS); the bucket's own, if none is named.
    KeyService(Option<String>),
}

/// What a site sets, and what it has in its environment. `Debug` shows nothing of it: some of it is secret.
#[derive(Clone)]
pub struct Settings {
    /// Where the store is, if it is not where its scheme says: `https://host:port`.
    pub endpoint: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    /// Whether the bucket is in the path of requests, not in the name of the host.
    pub path_style: bool,
    /// A file of certificates in PEM to trust beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// A proxy for all requests; it may have a password in it.
    pub proxy: Option<String>,
    /// How the store encrypts; as the bucket says, if there is nothing.
    pub encryption: Option<Encryption>,
    /// The storage class of packs.
    pub storage_class: Option<String>,
    /// The profile of `~/.aws` whose credentials count, before those of the environment.
    pub profile: Option<String>,
    /// For how long a request is repeated.
    pub patience: Duration,
    /// The environment of the process.
    pub environment: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: true,
            ca_file: None,
            proxy: None,
            encryption: None,
            storage_class: None,
            profile: None,
            patience: Self::PATIENCE,
            environment: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// For how long a request is repeated, if nobody says: a store that is restarted, or a network that is mended, is back
    /// within it.
    pub const PATIENCE: Duration = Duration::from_secs(10 * 60);

    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settings")
    }
}
