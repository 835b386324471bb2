//! The keys about object stores, of the global section.
//!
//! A wrong one stops no backup: it stops what goes to an object store, because the default may be less safe than what was meant.

use std::path::{Path, PathBuf};
use std::time::Duration;

use barmanfs_bucket::{Encryption, Location, Settings};
use barmanfs_store::ChunkId;

use super::Secret;
use super::values::{absolute, boolean, seconds};
use crate::error::Error;

/// Where the caches of repositories in object stores are, if the configuration does not say.
pub(super) const CACHE: &str = "/var/cache/barmanfs";

/// How much of the packs of a repository is kept there, if the configuration does not say.
pub(super) const CACHE_MAX_BYTES: u64 = 10 << 30;

/// Digits of the name of a cache.
const NAME_DIGITS: usize = 16;

/// The cache of the repository at `location`, in the directory of caches.
pub(super) fn home_in(caches: &Path, location: &Location) -> PathBuf {
    let hash = ChunkId::of(location.to_string().as_bytes()).to_string();
    caches.join(hash.get(..NAME_DIGITS).unwrap_or_default())
}

/// What the keys say.
#[derive(Debug, Clone, Default)]
pub(crate) struct BucketKeys {
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    ca_file: Option<PathBuf>,
    proxy: Option<Secret>,
    sse: Option<Encryption>,
    sse_kms_key: Option<String>,
    storage_class: Option<String>,
    profile: Option<String>,
    patience: Option<Duration>,
    /// Why no object store is used.
    wrong: Option<String>,
}

/// Whether the key is one of these.
pub(super) fn is_one(key: &str) -> bool {
    key.starts_with("bucket_")
}

impl BucketKeys {
    /// Sets a key.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let set = self.try_to_set(key, value);
        if let Err(message) = &set {
            self.wrong.get_or_insert_with(|| format!("'{key}' {message}"));
        }
        set
    }

    fn try_to_set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "bucket_endpoint" => self.endpoint = Some(endpoint(value)?),
            "bucket_region" => self.region = Some(word(value)?),
            "bucket_path_style" => self.path_style = Some(boolean(value)?),
            "bucket_ca_file" => self.ca_file = Some(absolute(value)?),
            "bucket_proxy" => self.proxy = Some(Secret::new(value)),
            "bucket_sse" => self.sse = Some(encryption(value)?),
            "bucket_sse_kms_key" => self.sse_kms_key = Some(word(value)?),
            "bucket_storage_class" => self.storage_class = Some(word(value)?),
            "bucket_profile" => self.profile = Some(word(value)?),
            "bucket_timeout" => self.patience = Some(seconds(value)?),
            _ => {}
        }
        Ok(())
    }

    /// How to reach a store, with the environment of this process.
    pub(crate) fn settings(&self) -> Result<Settings, Error> {
        if let Some(wrong) = &self.wrong {
            return Err(Error::usage(format!("No object store is used, because {wrong}")));
        }
        let encryption = match (&self.sse, &self.sse_kms_key) {
            (Some(Encryption::KeyService(_)), key) => Some(Encryption::KeyService(key.clone())),
            (None, Some(key)) => Some(Encryption::KeyService(Some(key.clone()))),
            (Some(Encryption::Store), Some(_)) => {
                return Err(Error::usage(
                    "No object store is used, because 'bucket_sse_kms_key' names a key and 'bucket_sse = AES256' uses none",
                ));
            }
            (sse, None) => sse.clone(),
        };
        Ok(Settings {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style.unwrap_or(true),
            ca_file: self.ca_file.clone(),
            proxy: self.proxy.as_ref().map(|proxy| proxy.expose().to_owned()),
            encryption,
            storage_class: self.storage_class.clone(),
            profile: self.profile.clone(),
            patience: self.patience.unwrap_or(Settings::PATIENCE),
            environment: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        })
    }
}

fn endpoint(value: &str) -> Result<String, String> {
    let host = value
        .strip_prefix("https://")
        .or_else(|| value.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['@', '?', '#']) => {
            Ok(value.trim_end_matches('/').to_owned())
        }
        _ => Err("must be a URL without a name of a user, like https://host:port".to_owned()),
    }
}

fn word(value: &str) -> Result<String, String> {
    match value.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(value.to_owned()),
        false => Err(format!("is '{value}': allowed is one word")),
    }
}

fn encryption(value: &str) -> Result<Encryption, String> {
    match value {
        "AES256" => Ok(Encryption::Store),
        "aws:kms" => Ok(Encryption::KeyService(None)),
        _ => Err(format!("is '{value}': allowed are AES256 and aws:kms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(lines: &[(&str, &str)]) -> BucketKeys {
        let mut keys = BucketKeys::default();
        for (key, value) in lines {
            let _ = keys.set(key, value);
        }
        keys
    }

    #[test]
    fn a_wrong_key_stops_a_copy() {
        for line in [
            ("bucket_sse", "aes"),
            ("bucket_endpoint", "host:9000"),
            ("bucket_endpoint", "https://key:secret@host"),
            ("bucket_path_style", "maybe"),
            ("bucket_ca_file", "ca.pem"),
            ("bucket_timeout", "soon"),
            ("bucket_region", "two words"),
        ] {
            let refused = keys(&[line, ("bucket_profile", "x")]).settings().unwrap_err();
            assert!(refused.to_string().contains(line.0), "{refused}");
        }
    }

    #[test]
    fn a_key_of_the_key_service_asks_for_it() {
        let encryption = |lines: &[(&str, &str)]| keys(lines).settings().map(|settings| settings.encryption);
        let with_key = Some(Encryption::KeyService(Some("k".to_owned())));
        assert_eq!(encryption(&[]).unwrap(), None);
        assert_eq!(
            encryption(&[("bucket_sse", "AES256")]).unwrap(),
            Some(Encryption::Store)
        );
        assert_eq!(encryption(&[("bucket_sse_kms_key", "k")]).unwrap(), with_key);
        assert_eq!(
            encryption(&[("bucket_sse_kms_key", "k"), ("bucket_sse", "aws:kms")]).unwrap(),
            with_key
        );
        assert!(encryption(&[("bucket_sse_kms_key", "k"), ("bucket_sse", "AES256")]).is_err());
    }
}
