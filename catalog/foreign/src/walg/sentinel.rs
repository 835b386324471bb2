//! The sentinel of a backup and its `metadata.json`.
//!
//! A sentinel of version 2 has what `metadata.json` has, as it was when the backup ended. What is marked later is in
//! `metadata.json` only.

use barmanfs_pg::{Lsn, ServerVersion, SystemId, TimestampMicros};
use serde::Deserialize;
use serde_json::Value;

use super::BackupName;

/// The sentinel of a backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentinel {
    /// Where it begins.
    pub start_lsn: Option<Lsn>,
    /// What its recovery must reach.
    pub stop_lsn: Option<Lsn>,
    /// The backup before, and where that begins, if this is a delta.
    pub parent: Option<(BackupName, Lsn)>,
    /// The release of the server.
    pub server_version: Option<ServerVersion>,
    /// The cluster.
    pub system_id: Option<SystemId>,
    /// Bytes of files in its archives; those of copied archives are not counted.
    pub uncompressed_bytes: u64,
    /// Bytes of all files of the server, as far as they are backed up.
    pub catalog_bytes: u64,
    /// Tablespaces of the server.
    pub tablespaces: Vec<Tablespace>,
    /// Whether there is no list of files.
    pub is_without_files: bool,
    /// What `metadata.json` said when the backup ended.
    pub metadata: Metadata,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its object id.
    pub oid: u32,
    /// Where it was.
    pub location: String,
}

/// What a user may ask for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    /// When the backup began.
    pub start_time: Option<TimestampMicros>,
    /// When it ended.
    pub finish_time: Option<TimestampMicros>,
    /// Whether no rule deletes it.
    pub is_permanent: bool,
    /// What the user noted with it: any JSON.
    pub user_data: Option<Value>,
}

/// The keys of a sentinel.
#[derive(Deserialize)]
struct Keys {
    #[serde(rename = "LSN")]
    lsn: Option<u64>,
    #[serde(rename = "FinishLSN")]
    finish_lsn: Option<u64>,
    #[serde(rename = "DeltaLSN")]
    delta_lsn: Option<u64>,
    /// Early releases.
    #[serde(rename = "DeltaFromLSN")]
    delta_from_lsn: Option<u64>,
    #[serde(rename = "DeltaFrom")]
    delta_from: Option<String>,
    #[serde(rename = "PgVersion")]
    pg_version: Option<u32>,
    #[serde(rename = "SystemIdentifier")]
    system_identifier: Option<u64>,
    #[serde(rename = "UncompressedSize", default)]
    uncompressed_size: i64,
    #[serde(rename = "DataCatalogSize", default)]
    data_catalog_size: i64,
    #[serde(rename = "Spec")]
    spec: Option<serde_json::Map<String, Value>>,
    #[serde(rename = "FilesMetadataDisabled", default)]
    files_metadata_disabled: bool,
    #[serde(rename = "StartTime")]
    start_time: Option<TimestampMicros>,
    #[serde(rename = "FinishTime")]
    finish_time: Option<TimestampMicros>,
    #[serde(rename = "IsPermanent", default)]
    is_permanent: bool,
    #[serde(rename = "UserData")]
    user_data: Option<Value>,
}

impl Sentinel {
    /// Parses it.
    ///
    /// # Errors
    /// When it is not as WAL-G writes it. The reason names what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let keys: Keys = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let parent = match (&keys.delta_from, keys.delta_lsn.or(keys.delta_from_lsn)) {
            (None, _) => None,
            (Some(name), Some(lsn)) => {
                let name = name.parse().map_err(|error| format!("DeltaFrom: {error}"))?;
                Some((name, Lsn(lsn)))
            }
            (Some(_), None) => return Err("it has DeltaFrom, and no DeltaLSN".to_owned()),
        };
        let not_negative = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
        Ok(Self {
            start_lsn: keys.lsn.map(Lsn),
            stop_lsn: keys.finish_lsn.map(Lsn),
            parent,
            server_version: keys.pg_version.filter(|version| *version > 0).map(ServerVersion),
            system_id: keys.system_identifier.map(SystemId),
            uncompressed_bytes: not_negative(keys.uncompressed_size),
            catalog_bytes: not_negative(keys.data_catalog_size),
            tablespaces: keys.spec.as_ref().map_or(Ok(Vec::new()), tablespaces)?,
            is_without_files: keys.files_metadata_disabled,
            metadata: Metadata {
                start_time: keys.start_time,
                finish_time: keys.finish_time,
                is_permanent: keys.is_permanent,
                user_data: keys.user_data,
            },
        })
    }
}

/// `Spec`: the keys in `tablespaces` are object ids, and the names of more keys, which say where each is.
fn tablespaces(spec: &serde_json::Map<String, Value>) -> Result<Vec<Tablespace>, String> {
    let names = match spec.get("tablespaces") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(names)) => names,
        Some(_) => return Err("Spec: tablespaces is no list".to_owned()),
    };
    let mut tablespaces: Vec<Tablespace> = Vec::new();
    for name in names {
        let oid = name.as_str().and_then(|name| name.parse().ok());
        let location = || spec.get(name.as_str()?)?.get("loc")?.as_str();
        let (Some(oid), Some(location)) = (oid, location()) else {
            return Err(format!("Spec: {name} is no tablespace with a place"));
        };
        if tablespaces.iter().any(|known| known.oid == oid) {
            return Err(format!("Spec: the tablespace {oid} is there twice"));
        }
        tablespaces.push(Tablespace {
            oid,
            location: location.to_owned(),
        });
    }
    Ok(tablespaces)
}

/// The keys of `metadata.json`.
#[derive(Deserialize)]
struct MetadataKeys {
    start_time: Option<TimestampMicros>,
    finish_time: Option<TimestampMicros>,
    #[serde(default)]
    is_permanent: bool,
    user_data: Option<Value>,
}

impl Metadata {
    /// Parses `metadata.json`.
    ///
    /// # Errors
    /// When it is not as WAL-G writes it. The reason names what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let keys: MetadataKeys = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Ok(Self {
            start_time: keys.start_time,
            finish_time: keys.finish_time,
            is_permanent: keys.is_permanent,
            user_data: keys.user_data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DELTA: &str = r#"{"LSN":100663336,"DeltaLSN":33554472,"DeltaFrom":"base_000000010000000000000002",
        "DeltaFullName":"base_000000010000000000000002","DeltaCount":1,"PgVersion":180001,"FinishLSN":100663600,
        "SystemIdentifier":17573141619964567890,"UncompressedSize":4711,"CompressedSize":815,"DataCatalogSize":99,
        "Spec":{"base_prefix":"/pg","tablespaces":["16384"],"16384":{"loc":"/srv/fast","link":"pg_tblspc/16384"}},
        "UserData":{"release":"4.2"},"ChkpNum":null,"Version":2,"StartTime":"2026-11-20T10:15:00.123456789Z",
        "FinishTime":"2026-11-20T10:16:00+01:00","DateFmt":"%Y-%m-%dT%H:%M:%S.%fZ","Hostname":"db1","DataDir":"/pg","IsPermanent":true}"#;

    #[test]
    fn a_delta_names_the_backup_before() {
        let sentinel = Sentinel::parse(DELTA.as_bytes()).unwrap();
        let (parent, lsn) = sentinel.parent.unwrap();
        assert_eq!(
            (parent.as_str(), lsn),
            ("base_000000010000000000000002", Lsn(33_554_472))
        );
        assert_eq!(sentinel.start_lsn, Some(Lsn(100_663_336)));
        assert_eq!(sentinel.system_id, Some(SystemId(17_573_141_619_964_567_890)));
        assert_eq!(sentinel.server_version, Some(ServerVersion(180_001)));
        let tablespace = Tablespace {
            oid: 16384,
            location: "/srv/fast".to_owned(),
        };
        assert_eq!(sentinel.tablespaces, [tablespace]);
        assert!(sentinel.metadata.is_permanent && !sentinel.is_without_files);
        let times = [sentinel.metadata.start_time, sentinel.metadata.finish_time];
        assert_eq!(
            times.map(|time| time.unwrap().to_string()),
            ["2026-11-20 10:15:00.123456+00", "2026-11-20 09:16:00.000000+00"]
        );
    }

    #[test]
    fn what_early_releases_wrote_is_read() {
        let text = r#"{"LSN":100663336,"DeltaFromLSN":33554472,"DeltaFrom":"base_000000010000000000000002","Files":{},"PgVersion":90600}"#;
        let sentinel = Sentinel::parse(text.as_bytes()).unwrap();
        assert_eq!(sentinel.parent.map(|(_, lsn)| lsn), Some(Lsn(33_554_472)));
        assert_eq!((sentinel.stop_lsn, sentinel.system_id), (None, None));
        assert_eq!(Sentinel::parse(b"{}").unwrap().start_lsn, None);
    }

    #[test]
    fn metadata_say_what_was_marked_later() {
        let text = r#"{"start_time":"2026-11-20T10:15:00Z","finish_time":"2026-11-20T10:16:00Z","is_permanent":true,"user_data":"why"}"#;
        let metadata = Metadata::parse(text.as_bytes()).unwrap();
        assert!(metadata.is_permanent);
        assert_eq!(metadata.user_data, Some(Value::from("why")));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            "",
            "[]",
            r#"{"LSN":-1}"#,
            r#"{"LSN":"0/1"}"#,
            r#"{"DeltaFrom":"base_000000010000000000000002"}"#,
            r#"{"DeltaFrom":"../../etc","DeltaLSN":1}"#,
            r#"{"Spec":{"tablespaces":["16384"]}}"#,
            r#"{"Spec":{"tablespaces":["../x"],"../x":{"loc":"/a"}}}"#,
            r#"{"Spec":{"tablespaces":["1","1"],"1":{"loc":"/a"}}}"#,
            r#"{"StartTime":"yesterday"}"#,
        ] {
            assert!(Sentinel::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for end in 0..DELTA.len() {
            assert!(Sentinel::parse(&DELTA.as_bytes()[..end]).is_err(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100), at in 0..DELTA.len(), byte in any::<u8>()) {
            let _ = (Sentinel::parse(&bytes), Metadata::parse(&bytes));
            let mut text = DELTA.as_bytes().to_vec();
            text[at] = byte;
            let _ = (Sentinel::parse(&text), Metadata::parse(&text));
        }
    }
}
