//! The limit of a cache that several processes share.
//!
//! What the files take is added up in a small file, under a lock. Bytes are charged before they are written, so the sum is never too
//! low. It may be too high, when files were removed by somebody else; so it is counted again before anything is evicted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;

use super::file::{TEMPORARY, give_to_owner, make_directory};

/// The file with the sum.
const USED: &str = "used";

/// An eviction leaves this share free, so that the next one does not come at once.
const LEFT_FREE: u64 = 10;

/// The unit of `st_blocks`.
const UNIT_BYTES: u64 = 512;

/// What the head of each file and its place in directories take at most.
const FILE_BYTES: u64 = 16 * 1024;

/// How much the cache may take.
#[derive(Debug)]
pub(super) struct Budget {
    directory: PathBuf,
    max_bytes: u64,
}

/// A file of the cache.
struct Cached {
    used_at: SystemTime,
    bytes: u64,
    path: PathBuf,
}

impl Budget {
    pub(super) fn of(directory: &Path, max_bytes: u64) -> Self {
        Self {
            directory: directory.to_path_buf(),
            max_bytes,
        }
    }

    /// Makes room for so many bytes, which are then written. Returns whether there is room.
    pub(super) fn charge(&self, bytes: u64) -> io::Result<bool> {
        let bytes = bytes.saturating_add(FILE_BYTES);
        if bytes > self.max_bytes {
            return Ok(false);
        }
        let mut file = self.locked()?;
        let used = match read(&mut file)? {
            Some(used) => used,
            None => sum(&self.cached()?),
        };
        let after = used.saturating_add(bytes);
        let after = match after <= self.max_bytes {
            true => after,
            false => self.evict(bytes)?.saturating_add(bytes),
        };
        if after > self.max_bytes {
            return Ok(false);
        }
        write(&mut file, after)?;
        Ok(true)
    }

    fn locked(&self) -> io::Result<File> {
        let path = self.directory.join(USED);
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)
        };
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directory(&self.directory)?;
                open()?
            }
            opened => opened?,
        };
        give_to_owner(&file, Some(&self.directory))?;
        file.lock()?;
        Ok(file)
    }

    /// Removes the files that were not used for the longest time. Returns what is used after that.
    fn evict(&self, needed: u64) -> io::Result<u64> {
        let mut cached = self.cached()?;
        let mut used = sum(&cached);
        let wanted = (self.max_bytes - self.max_bytes / LEFT_FREE).min(self.max_bytes - needed);
        cached.sort_by_key(|file| file.used_at);
        for file in cached {
            if used <= wanted {
                break;
            }
            if is_being_filled(&file.path) {
                continue;
            }
            match fs::remove_file(&file.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!("Cannot remove {}: {error}", file.path.display());
                }
                _ => used = used.saturating_sub(file.bytes),
            }
        }
        Ok(used)
    }

    fn cached(&self) -> io::Result<Vec<Cached>> {
        let mut cached = Vec::new();
        for directory in fs::read_dir(&self.directory)? {
            let directory = directory?;
            if !directory.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(directory.path())? {
                let entry = entry?;
                // It may have been removed meanwhile.
                let Ok(found) = entry.metadata() else { continue };
                cached.push(Cached {
                    used_at: found.modified()?,
                    bytes: found.blocks().saturating_mul(UNIT_BYTES).max(FILE_BYTES),
                    path: entry.path(),
                });
            }
        }
        Ok(cached)
    }
}

/// A file that a living process fills. Those of killed ones are evicted like all others.
fn is_being_filled(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(TEMPORARY))
        && File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

fn sum(cached: &[Cached]) -> u64 {
    cached.iter().map(|file| file.bytes).sum()
}

fn read(file: &mut File) -> io::Result<Option<u64>> {
    let mut text = String::new();
    file.take(64).read_to_string(&mut text)?;
    Ok(text.strip_suffix('\n').and_then(|text| text.parse().ok()))
}

fn write(file: &mut File, used: u64) -> io::Result<()> {
    let text = format!("{used}\n");
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}
