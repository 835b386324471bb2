//! What an answer of a store has: as long as it says it is, and not longer than an object can be.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{Attribute, Error as StoreError, GetResult};

use super::{OBJECT_MAX_BYTES, SLOWEST_BYTES_PER_SECOND};

/// The metadata with the checksum of what was put.
pub(super) const SHA256: &str = "sha256";

/// What was read of an object.
#[derive(Debug, Clone)]
pub struct Found {
    /// The bytes.
    pub bytes: Bytes,
    /// Size of the whole object.
    pub object_bytes: u64,
    /// The checksum that was stored with it, in hex.
    pub sha256: Option<String>,
}

impl Found {
    pub(super) async fn of(result: GetResult, stall: Duration) -> object_store::Result<Self> {
        let sha256 = result.attributes.get(&Attribute::Metadata(SHA256.into()));
        let sha256 = sha256.map(|value| value.as_ref().to_owned());
        let object_bytes = result.meta.size;
        if result.meta.e_tag.is_none() {
            return Err(failed(
                "what answers is no object store, as its answer has no ETag",
            ));
        }
        let expected = result.range.end.saturating_sub(result.range.start);
        if expected > OBJECT_MAX_BYTES {
            let text = format!("it has {expected} bytes, which is more than any object of a repository");
            return Err(StoreError::NotSupported { source: text.into() });
        }
        let until = stall + Duration::from_secs(expected / SLOWEST_BYTES_PER_SECOND);
        let bytes = tokio::time::timeout(until, collect(result, expected, stall)).await;
        Ok(Self {
            bytes: bytes.map_err(|_| stalled())??,
            object_bytes,
            sha256,
        })
    }

    pub(super) fn empty() -> Self {
        Self {
            bytes: Bytes::new(),
            object_bytes: 0,
            sha256: None,
        }
    }

    /// Whether the bytes, if they are the whole object, are those that were put. Without a checksum nobody knows.
    #[must_use]
    pub fn is_as_put(&self) -> bool {
        self.sha256
            .as_ref()
            .is_none_or(|stored| *stored == sha256(&self.bytes))
    }
}

/// The bytes of an answer, which has to be as long as it says.
async fn collect(result: GetResult, expected: u64, stall: Duration) -> object_store::Result<Bytes> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or_default());
    let mut stream = result.into_stream();
    while let Some(part) = tokio::time::timeout(stall, stream.try_next())
        .await
        .map_err(|_| stalled())??
    {
        bytes.extend_from_slice(&part);
        if bytes.len() as u64 > expected {
            break;
        }
    }
    match bytes.len() as u64 == expected {
        true => Ok(bytes.into()),
        false => Err(failed(format!(
            "the answer has {} bytes instead of {expected}",
            bytes.len()
        ))),
    }
}

pub(super) fn stalled() -> StoreError {
    failed("the store stopped answering")
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Generic {
        store: "the store",
        source: source.into(),
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
