//! The file for a collector that may read it at any moment.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::Error;

/// Other users read it: the collector is one of them.
const MODE: u32 = 0o644;

/// The temporary file's name. Collectors read files whose names end with `.prom`.
const PREFIX: &str = ".barmanfs-metrics-";

/// Replaces the file at `path`: a reader sees the old content, or the new one.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    write(directory, path, text)
        .map_err(|error| Error::failed(format!("Cannot write {}: {error}", path.display())))
}

fn write(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    // The mode above is subject to the umask.
    file.as_file().set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_as_a_whole_and_others_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("barmanfs.prom");
        for text in ["first\n", "second\n"] {
            replace(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let missing = replace(&directory.path().join("none/barmanfs.prom"), "").unwrap_err();
        assert!(missing.to_string().starts_with("Cannot write "), "{missing}");
    }
}
