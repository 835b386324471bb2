//! A file of another user in a data directory. PostgreSQL says that it cannot open it, and not why.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Entries to look at. More would take longer than a person waits for a hint.
const MOST: usize = 20_000;

/// The first file in a directory, or below it, that does not belong to this user.
pub(super) fn first_file(directory: &Path, owner: u32) -> Option<PathBuf> {
    look(directory, owner, &mut { MOST })
}

fn look(directory: &Path, owner: u32, left: &mut usize) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        *left = left.checked_sub(1)?;
        let metadata = entry.metadata().ok()?;
        if metadata.uid() != owner {
            return Some(entry.path());
        }
        if metadata.is_dir()
            && let Some(found) = look(&entry.path(), owner, left)
        {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_user_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let own = fs::metadata(directory.path()).unwrap().uid();
        fs::create_dir(directory.path().join("base")).unwrap();
        let file = directory.path().join("base/1259");
        fs::write(&file, "").unwrap();
        assert_eq!(first_file(directory.path(), own), None);
        let base = directory.path().join("base");
        assert_eq!(first_file(directory.path(), own + 1), Some(base.clone()));
        assert_eq!(first_file(&base, own + 1), Some(file));
    }
}
