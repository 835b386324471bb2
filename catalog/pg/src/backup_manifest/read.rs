//! Reads a manifest as a stream, and checks its checksum on the way.

use std::fmt;
use std::io::{self, BufReader, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use super::{Checksum, ManifestFile, ManifestSummary, WalRange};
use crate::{Lsn, SystemId, TimelineId};

/// The newest known version of the manifest. Additional content of a later version is skipped.
const NEWEST_VERSION: u32 = 2;

/// PostgreSQL writes one file per line, and a path has at most 1024 bytes. This limit keeps a
/// hostile manifest from filling the memory.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Why a manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError<E> {
    /// The input failed, or has a line longer than any PostgreSQL writes.
    #[error("Cannot read backup_manifest: {0}")]
    Read(io::Error),
    /// It is not as PostgreSQL writes it.
    #[error("backup_manifest is not as PostgreSQL writes it: {0}")]
    Format(serde_json::Error),
    /// The caller refused a file.
    #[error("{0}")]
    Stopped(E),
}

/// Reads a manifest, and passes each of its files to `on_file`. The memory used does not depend on
/// the number of files.
///
/// Whether the manifest's own checksum is right is known only at its end: see
/// [`ManifestSummary::checksum_ok`].
///
/// # Errors
/// Errors of the input and of the format, and those of `on_file`, which end the reading.
pub fn read<E>(
    input: impl Read,
    on_file: &mut dyn FnMut(ManifestFile) -> Result<(), E>,
) -> Result<ManifestSummary, ManifestError<E>> {
    let mut input = HashingReader::new(input);
    let mut stopped = None;
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(&mut input));
    let seed = Manifest {
        on_file,
        stopped: &mut stopped,
    };
    let contents = seed
        .deserialize(&mut json)
        .and_then(|contents| json.end().map(|()| contents));
    drop(json);
    if let Some(error) = stopped {
        return Err(ManifestError::Stopped(error));
    }
    let contents = contents.map_err(|error| {
        if error.is_io() {
            ManifestError::Read(error.into())
        } else {
            ManifestError::Format(error)
        }
    })?;
    Ok(ManifestSummary {
        version: contents.version,
        system_id: contents.system_id,
        wal_ranges: contents.wal_ranges,
        checksum_ok: input
            .digest()
            .is_some_and(|digest| crate::hex::decode(&contents.checksum) == Some(digest)),
    })
}

impl ManifestSummary {
    /// Whether all of it was read, and not only the parts that older versions have too.
    #[must_use]
    pub fn is_of_known_version(&self) -> bool {
        self.version <= NEWEST_VERSION
    }
}

/// The content of a manifest apart from the files.
struct Contents {
    version: u32,
    system_id: Option<SystemId>,
    wal_ranges: Vec<WalRange>,
    checksum: String,
}

/// Reads the outermost object.
struct Manifest<'a, E> {
    on_file: &'a mut dyn FnMut(ManifestFile) -> Result<(), E>,
    stopped: &'a mut Option<E>,
}

impl<'de, E> DeserializeSeed<'de> for Manifest<'_, E> {
    type Value = Contents;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Contents, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, E> Visitor<'de> for Manifest<'_, E> {
    type Value = Contents;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Contents, A::Error> {
        let version: u32 = match map.next_key::<String>()?.as_deref() {
            Some("PostgreSQL-Backup-Manifest-Version") => map.next_value()?,
            _ => return Err(A::Error::custom("the manifest's version does not stand first")),
        };
        if version == 0 {
            return Err(A::Error::custom("there is no manifest version 0"));
        }
        let (mut system_id, mut files, mut ranges, mut checksum) = (None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let first_time = match key.as_str() {
                "System-Identifier" => system_id.replace(SystemId(map.next_value()?)).is_none(),
                "Files" => {
                    let list = Files {
                        on_file: &mut *self.on_file,
                        stopped: &mut *self.stopped,
                    };
                    files.replace(map.next_value_seed(list)?).is_none()
                }
                "WAL-Ranges" => ranges.replace(map.next_value::<Vec<RawRange>>()?).is_none(),
                "Manifest-Checksum" => checksum.replace(map.next_value()?).is_none(),
                _ if version > NEWEST_VERSION => {
                    map.next_value::<IgnoredAny>()?;
                    true
                }
                _ => return Err(A::Error::custom(format!("{key:?} is not known"))),
            };
            if !first_time {
                return Err(A::Error::custom(format!("{key:?} is there twice")));
            }
        }
        files.ok_or_else(|| A::Error::missing_field("Files"))?;
        Ok(Contents {
            version,
            system_id,
            wal_ranges: ranges
                .unwrap_or_default()
                .into_iter()
                .map(WalRange::from)
                .collect(),
            checksum: checksum.ok_or_else(|| A::Error::missing_field("Manifest-Checksum"))?,
        })
    }
}

/// Reads the list of files, one at a time.
struct Files<'a, E> {
    on_file: &'a mut dyn FnMut(ManifestFile) -> Result<(), E>,
    stopped: &'a mut Option<E>,
}

impl<'de, E> DeserializeSeed<'de> for Files<'_, E> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, E> Visitor<'de> for Files<'_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(file) = list.next_element::<RawFile>()? {
            let file = file.into_file().map_err(A::Error::custom)?;
            if let Err(error) = (self.on_file)(file) {
                *self.stopped = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawFile {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified", default)]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    checksum_algorithm: Option<String>,
    checksum: Option<String>,
}

impl RawFile {
    fn into_file(self) -> Result<ManifestFile, String> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(hex)) => {
                crate::hex::decode(&hex).ok_or_else(|| format!("{hex:?} is no hexadecimal path"))?
            }
            _ => return Err("a file has to have either a Path or an Encoded-Path".into()),
        };
        let checksum = match (self.checksum_algorithm, self.checksum) {
            (None, None) => None,
            (Some(algorithm), Some(hex)) => {
                let words = format!("{algorithm} {hex:?}");
                let checksum = Checksum::from_words(algorithm, hex);
                Some(checksum.ok_or_else(|| format!("{words} is no checksum"))?)
            }
            _ => return Err("a file has a checksum without algorithm, or the other way round".into()),
        };
        Ok(ManifestFile {
            path,
            size_bytes: self.size,
            modified: self.last_modified,
            checksum,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: TimelineId,
    #[serde(rename = "Start-LSN")]
    start_lsn: Lsn,
    #[serde(rename = "End-LSN")]
    end_lsn: Lsn,
}

impl From<RawRange> for WalRange {
    fn from(
        RawRange {
            timeline,
            start_lsn,
            end_lsn,
        }: RawRange,
    ) -> Self {
        Self {
            timeline,
            start_lsn,
            end_lsn,
        }
    }
}

/// Hashes everything read through it up to, not including, the last line: the checksum in the last
/// line covers this. Only the end shows which line is the last, so the hash at each line's start is
/// kept until the next line begins.
struct HashingReader<R> {
    input: R,
    hasher: Sha256,
    /// The hash before the line that is being read.
    line_start: Sha256,
    /// The hash before the last complete line.
    last_line_start: Option<Sha256>,
    line_bytes: usize,
}

impl<R> HashingReader<R> {
    fn new(input: R) -> Self {
        let hasher = Sha256::new();
        Self {
            input,
            line_start: hasher.clone(),
            hasher,
            last_line_start: None,
            line_bytes: 0,
        }
    }

    /// The checksum, once everything is read; `None` if the last line has no end.
    fn digest(self) -> Option<Vec<u8>> {
        let ended = self.line_bytes == 0;
        self.last_line_start
            .filter(|_| ended)
            .map(|hasher| hasher.finalize().to_vec())
    }

    fn hash(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.hasher.update(part);
            self.line_bytes += part.len();
            if self.line_bytes > LINE_BYTES_MAX {
                let reason = format!("a line has more than {LINE_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            if part.ends_with(b"\n") {
                self.last_line_start = Some(std::mem::replace(&mut self.line_start, self.hasher.clone()));
                self.line_bytes = 0;
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hash(buffer.get(..count).unwrap_or_default())?;
        Ok(count)
    }
}
