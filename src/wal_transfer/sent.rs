//! What another host has acknowledged before PostgreSQL asked for it, so that it is not sent again.
//!
//! One small file beside the segments, `pg_wal/.barmanfs-sent`. A line is believed only for the same archive, the same name
//! and the same content, and not for long: without it, a segment is sent once more, and acknowledged again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use barmanfs_pg::wal_name::WalName;

use super::remote::Remote;

/// The name of the file.
const NAME: &str = ".barmanfs-sent";

/// How long an acknowledgement is believed: much longer than PostgreSQL takes to ask for the next few segments, and too
/// short for anybody to replace the archive meanwhile.
const BELIEVED: Duration = Duration::from_secs(600);

/// The largest file that is read.
const MOST_BYTES: u64 = 1 << 16;

/// The content of a file, as a line has it.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn hash(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether the archive has acknowledged this file.
pub(crate) fn is_acknowledged(remote: &Remote, path: &Path, name: &WalName) -> bool {
    let file = place(path);
    let is_recent = || -> io::Result<bool> {
        let metadata = fs::symlink_metadata(&file)?;
        let age = SystemTime::now().duration_since(metadata.modified()?);
        Ok(metadata.is_file() && metadata.len() <= MOST_BYTES && age.is_ok_and(|age| age <= BELIEVED))
    };
    if !is_recent().unwrap_or(false) {
        return false;
    }
    let Ok(text) = fs::read_to_string(&file) else {
        return false;
    };
    let is_named = |line: &&str| line.split(' ').nth(1) == Some(name.to_string().as_str());
    text.lines()
        .find(is_named)
        .is_some_and(|known| hash(path).is_ok_and(|hash| known == line(remote, name, &hash)))
}

/// Notes what the archive has acknowledged, instead of what was noted before.
///
/// # Errors
/// When it cannot be written; then the files are sent again.
pub(crate) fn note(remote: &Remote, path: &Path, acknowledged: &[(WalName, String)]) -> io::Result<()> {
    let text: String = acknowledged
        .iter()
        .map(|(name, hash)| line(remote, name, hash) + "\n")
        .collect();
    let file = place(path);
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, &file)
}

fn line(remote: &Remote, name: &WalName, hash: &str) -> String {
    let identity = blake3::hash(remote.identity().as_bytes()).to_hex();
    format!("{identity} {name} {hash}")
}

fn place(path: &Path) -> PathBuf {
    path.with_file_name(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::remote;

    #[test]
    fn only_the_same_content_for_the_same_archive_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let name: WalName = "000000010000000000000001".parse().unwrap();
        let path = directory.path().join(name.to_string());
        fs::write(&path, "one").unwrap();
        let is_acknowledged = |server: &str| is_acknowledged(&remote(server), &path, &name);
        assert!(!is_acknowledged("main"));
        note(&remote("main"), &path, &[(name, hash(&path).unwrap())]).unwrap();
        assert!(is_acknowledged("main"));
        assert!(!is_acknowledged("other"));
        let file = fs::File::options().write(true).open(place(&path)).unwrap();
        file.set_modified(SystemTime::now() - 2 * BELIEVED).unwrap();
        assert!(!is_acknowledged("main"), "too old");
        file.set_modified(SystemTime::now()).unwrap();
        assert!(is_acknowledged("main"));
        fs::write(&path, "two").unwrap();
        assert!(!is_acknowledged("main"), "other content");
    }
}
