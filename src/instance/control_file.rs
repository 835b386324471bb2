//! Reads `pg_control` while a server may be writing it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use barmanfs_pg::pg_control::{ControlError, ControlFile};

use crate::error::Error;

/// A server writes the file with one call, but a reader may still see a mix of old and new. PostgreSQL's own programs
/// retry as often (`get_controlfile` of `src/common/controldata_utils.c`).
const TRIES: u32 = 10;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Reads and parses a control file. Returns its bytes, too.
pub(super) fn read(path: &Path) -> Result<(Vec<u8>, ControlFile), Error> {
    read_by(|| bytes(path), path)
}

fn read_by(
    mut bytes: impl FnMut() -> Result<Vec<u8>, Error>,
    path: &Path,
) -> Result<(Vec<u8>, ControlFile), Error> {
    let mut tries = 1;
    loop {
        let bytes = bytes()?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(ControlError::WrongCrc { .. }) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(TRY_AGAIN_AFTER);
            }
            Err(error) => return Err(Error::failed(format!("{}: {error}", path.display()))),
        }
    }
}

/// The raw bytes.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error: io::Error| super::unreadable(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control file of PostgreSQL 13 to 16 with this checkpoint.
    fn control(checkpoint: u64) -> Vec<u8> {
        const CRC_AT: usize = 288;
        let mut bytes = vec![0; 8192];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(8, &1300_u32.to_le_bytes());
        put(16, &6_u32.to_le_bytes());
        put(32, &checkpoint.to_le_bytes());
        put(228, &(16_u32 << 20).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_file_being_written_is_read_again() {
        let torn = [&control(2)[..100], &control(1)[100..]].concat();
        let mut reads = [torn.clone(), torn, control(2)].into_iter();
        let read = read_by(|| Ok(reads.next().unwrap()), Path::new("pg_control"));
        assert_eq!(read.unwrap().0, control(2));
    }

    #[test]
    fn a_file_that_stays_wrong_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pg_control");
        let mut bytes = control(0);
        bytes[40] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
