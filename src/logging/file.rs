//! The log file. A mount or a receiver outlives it: `logrotate` gives the file another name and removes it in the end, and what
//! is logged after that belongs into a file of the old name.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Written to by its name: before each line it is looked at whether the name is still that of the open file.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    repository: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens or creates it. One that root creates belongs to the owner of `repository`.
    ///
    /// # Errors
    /// When it cannot be opened, or is no regular file.
    pub(crate) fn open(path: &Path, repository: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            repository: repository.to_owned(),
            file: open(path, repository)?,
        })
    }

    /// Takes the file that has the name now. If it cannot be opened, lines still go into the old one.
    fn follow(&mut self) -> io::Result<()> {
        let id = |found: &fs::Metadata| (found.dev(), found.ino());
        let is_the_same = match fs::metadata(&self.path) {
            Ok(found) => id(&found) == id(&self.file.metadata()?),
            Err(_) => false,
        };
        if !is_the_same {
            self.file = open(&self.path, &self.repository)?;
        }
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _old_one_goes_on = self.follow();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens it for appending. One that root creates belongs to the owner of the repository, whose commands write to it, too.
fn open(path: &Path, repository: &Path) -> io::Result<File> {
    const MODE: u32 = 0o640;
    let is_root = rustix::process::geteuid().is_root();
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if is_root {
        // Its directory may belong to a user who could have root write elsewhere.
        flags |= OFlags::NOFOLLOW;
    }
    let is_new = !path.exists();
    let file = File::options()
        .append(true)
        .create(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if is_new {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    if let (true, true, Ok(owner)) = (is_new, is_root, fs::metadata(repository)) {
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_into_the_file_that_has_the_name() {
        let directory = tempfile::tempdir().unwrap();
        let [path, old] = ["log", "log.1"].map(|name| directory.path().join(name));
        let mut log = LogFile::open(&path, directory.path()).unwrap();
        log.write_all(b"first\n").unwrap();
        fs::rename(&path, &old).unwrap();
        log.write_all(b"second\n").unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"first\n");
        assert_eq!(fs::read(&path).unwrap(), b"second\n");

        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        log.write_all(b"third\n").unwrap();
        fs::remove_dir(&path).unwrap();
        log.write_all(b"fourth\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"fourth\n");
    }
}
