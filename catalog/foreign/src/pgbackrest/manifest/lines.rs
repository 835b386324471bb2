//! The values of a manifest's lines, as they are written.

use serde::Deserialize;

/// The name of a user or group, or `false`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OwnerLine {
    Named(String),
    Unknown(bool),
}

#[derive(Deserialize)]
pub(super) struct FileLine {
    /// The size of a block in units of 8 KiB.
    #[serde(rename = "bi")]
    pub block_units: Option<u64>,
    #[serde(rename = "bic")]
    pub block_checksum_bytes: Option<u64>,
    #[serde(rename = "bim")]
    pub map_bytes: Option<u64>,
    #[serde(rename = "bni")]
    pub bundle: Option<u64>,
    #[serde(rename = "bno")]
    pub bundle_offset: Option<u64>,
    pub checksum: Option<String>,
    pub group: Option<OwnerLine>,
    pub mode: Option<String>,
    #[serde(rename = "rck")]
    pub stored_checksum: Option<String>,
    pub reference: Option<String>,
    #[serde(rename = "repo-size")]
    pub stored_bytes: Option<u64>,
    pub size: u64,
    pub timestamp: i64,
    pub user: Option<OwnerLine>,
}

#[derive(Deserialize)]
pub(super) struct PathLine {
    pub group: Option<OwnerLine>,
    pub mode: Option<String>,
    pub user: Option<OwnerLine>,
}

#[derive(Deserialize)]
pub(super) struct TargetLine {
    pub path: String,
    #[serde(rename = "tablespace-id")]
    pub tablespace: Option<String>,
    #[serde(rename = "tablespace-name")]
    pub tablespace_name: Option<String>,
}
