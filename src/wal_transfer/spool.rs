//! Segments that were fetched before PostgreSQL asks for them.
//!
//! One directory for each archive and server, below the spool's, which belongs to the user alone. A file's name has the
//! hash of its content: what does not agree, as after a crash of the host, is not served, and neither is what is old: the
//! same name could mean another segment by then. A segment is served once.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use barmanfs_pg::SegmentSize;
use barmanfs_pg::wal_name::SegmentName;

use super::remote::Remote;

/// How old a file may be that is served.
const OLDEST: Duration = Duration::from_secs(600);

/// The file with the segment that PostgreSQL got last.
const WANTED: &str = "wanted";

/// The lock of the process that fills the spool.
const LOCK: &str = "lock";

/// The ending of a file that is being fetched.
const PART: &str = ".part";

/// Access for nobody else.
const MODE: u32 = 0o700;

/// The spool of one server.
#[derive(Debug, Clone)]
pub(crate) struct WalSpool {
    directory: PathBuf,
}

/// What PostgreSQL got last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The segment.
    pub(crate) segment: SegmentName,
    /// Its size, which is that of the next ones.
    pub(crate) size: SegmentSize,
}

impl WalSpool {
    /// Opens a spool, and makes its directories.
    ///
    /// # Errors
    /// When that is not possible, or others could write into it.
    pub(crate) fn open(parent: &Path, remote: &Remote, replay: bool) -> io::Result<Self> {
        // The same segment has other bytes for a copy.
        let form = if replay { "\nreplay" } else { "" };
        let key = blake3::hash(format!("{}{form}", remote.identity()).as_bytes()).to_hex();
        let directory = parent.join(key.get(..16).unwrap_or_default());
        DirBuilder::new().recursive(true).mode(MODE).create(&directory)?;
        let found = fs::symlink_metadata(&directory)?;
        let is_own = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
        match found.is_dir() && is_own {
            true => Ok(Self { directory }),
            false => Err(io::Error::other(format!(
                "{} belongs to another user, or others may write into it",
                directory.display()
            ))),
        }
    }

    /// Puts a segment at `dest`, if the spool has it.
    ///
    /// # Errors
    /// When it has it, and cannot put it there.
    pub(crate) fn take(&self, name: SegmentName, dest: &Path) -> io::Result<Option<SegmentSize>> {
        for (path, hash) in self.files_of(name)? {
            let metadata = fs::symlink_metadata(&path)?;
            let age = SystemTime::now().duration_since(metadata.modified()?);
            let is_good = age.is_ok_and(|age| age <= OLDEST) && hash_of(&path)? == hash;
            let (true, Ok(size)) = (is_good, SegmentSize::try_from(metadata.len())) else {
                fs::remove_file(&path)?;
                continue;
            };
            match fs::rename(&path, dest) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    let part = super::beside(dest, super::PART);
                    fs::copy(&path, &part)?;
                    fs::rename(&part, dest)?;
                    fs::remove_file(&path)?;
                }
                other => other?,
            }
            return Ok(Some(size));
        }
        Ok(None)
    }

    /// Whether it has the segment.
    pub(crate) fn has(&self, name: SegmentName) -> bool {
        self.files_of(name).is_ok_and(|files| !files.is_empty())
    }

    /// Where a segment is fetched to. The file is there, and empty, as soon as a process is fetching it.
    pub(crate) fn part(&self, name: SegmentName) -> PathBuf {
        self.directory.join(format!("{name}{PART}"))
    }

    /// Adds a segment that was fetched to its part, and has this hash.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(crate) fn add(&self, name: SegmentName, hash: &str) -> io::Result<()> {
        fs::rename(self.part(name), self.directory.join(format!("{name}.{hash}")))
    }

    /// The hash of what is in a part.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn hash_of_part(&self, name: SegmentName) -> io::Result<String> {
        hash_of(&self.part(name))
    }

    /// Whether it is still there: a copy may be removed while its spool is filled.
    pub(crate) fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Removes what a process that was killed has left: nobody fetches that now.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file not be removed.
    pub(crate) fn clear_parts(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.ends_with(PART))
            {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Notes what PostgreSQL got last.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn want(&self, wanted: Wanted) -> io::Result<()> {
        let new = self.directory.join(format!("{WANTED}.new"));
        fs::write(&new, format!("{} {}", wanted.segment, wanted.size.bytes()))?;
        fs::rename(&new, self.directory.join(WANTED))
    }

    /// What PostgreSQL got last.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        let text = fs::read_to_string(self.directory.join(WANTED)).ok()?;
        let (segment, size) = text.split_once(' ')?;
        Some(Wanted {
            segment: segment.parse().ok()?,
            size: SegmentSize::try_from(size.parse::<u64>().ok()?).ok()?,
        })
    }

    /// Takes the place of the process that fills it; `None` if there is one.
    ///
    /// # Errors
    /// When the lock cannot be opened.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.directory.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether a process is fetching this segment now.
    pub(crate) fn is_fetching(&self, name: SegmentName) -> bool {
        self.part(name).exists() && matches!(self.lock(), Ok(None))
    }

    /// Removes all segments but those that `keep` wants.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file not be removed.
    pub(crate) fn clear(&self, keep: impl Fn(SegmentName) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let segment = name.to_str().and_then(|name| name.get(..24)?.parse().ok());
            if segment.is_some_and(|segment| !keep(segment)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The files of a segment, with the hash in their names.
    fn files_of(&self, name: SegmentName) -> io::Result<Vec<(PathBuf, String)>> {
        let prefix = format!("{name}.");
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let file = entry.file_name();
            let hash = file.to_str().and_then(|file| file.strip_prefix(&prefix));
            if let Some(hash) = hash.filter(|hash| !hash.starts_with("part")) {
                files.push((entry.path(), hash.to_owned()));
            }
        }
        Ok(files)
    }
}

fn hash_of(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::remote;

    const SIZE: u64 = 1 << 20;

    fn segment(number: u32) -> SegmentName {
        format!("0000000100000000{number:08X}").parse().unwrap()
    }

    fn filled(directory: &Path, content: u8) -> WalSpool {
        let spool = WalSpool::open(directory, &remote("main"), false).unwrap();
        fs::write(spool.part(segment(1)), vec![content; SIZE as usize]).unwrap();
        let hash = spool.hash_of_part(segment(1)).unwrap();
        spool.add(segment(1), &hash).unwrap();
        spool
    }

    #[test]
    fn a_segment_is_served_once_and_only_for_its_server() {
        let directory = tempfile::tempdir().unwrap();
        let dest = directory.path().join("dest");
        let spool = filled(directory.path(), 7);
        let other = WalSpool::open(directory.path(), &remote("other"), false).unwrap();
        assert_eq!(other.take(segment(1), &dest).unwrap(), None);
        assert_eq!(spool.take(segment(2), &dest).unwrap(), None);
        assert!(spool.has(segment(1)));
        assert_eq!(
            spool.take(segment(1), &dest).unwrap(),
            SegmentSize::try_from(SIZE).ok()
        );
        assert_eq!(fs::read(&dest).unwrap(), vec![7; SIZE as usize]);
        assert_eq!(spool.take(segment(1), &dest).unwrap(), None);
    }

    #[test]
    fn a_damaged_or_old_segment_is_removed_and_not_served() {
        let directory = tempfile::tempdir().unwrap();
        let dest = directory.path().join("dest");
        let spool = filled(directory.path(), 7);
        let (path, _) = spool.files_of(segment(1)).unwrap().remove(0);
        fs::write(&path, vec![0; SIZE as usize]).unwrap();
        assert_eq!(spool.take(segment(1), &dest).unwrap(), None);
        assert!(!path.exists() && !dest.exists());
        let spool = filled(directory.path(), 7);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - 2 * OLDEST).unwrap();
        assert_eq!(spool.take(segment(1), &dest).unwrap(), None);
        assert!(!spool.has(segment(1)));
    }

    #[test]
    fn what_is_wanted_is_remembered_and_the_rest_removed() {
        let directory = tempfile::tempdir().unwrap();
        let spool = filled(directory.path(), 7);
        assert_eq!(spool.wanted(), None);
        let size = SegmentSize::try_from(SIZE).unwrap();
        let wanted = Wanted {
            segment: segment(3),
            size,
        };
        spool.want(wanted).unwrap();
        assert_eq!(spool.wanted(), Some(wanted));
        spool.clear(|segment| segment > wanted.segment).unwrap();
        assert!(!spool.has(segment(1)));
        assert_eq!(spool.wanted(), Some(wanted));
    }

    #[test]
    fn what_a_killed_process_was_fetching_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let spool = filled(directory.path(), 7);
        fs::write(spool.part(segment(2)), b"x").unwrap();
        let held = spool.lock().unwrap();
        assert!(spool.is_fetching(segment(2)));
        drop(held);
        assert!(!spool.is_fetching(segment(2)));
        spool.clear_parts().unwrap();
        assert!(!spool.part(segment(2)).exists() && spool.has(segment(1)) && spool.exists());
    }

    #[test]
    fn one_process_fills_it() {
        let directory = tempfile::tempdir().unwrap();
        let spool = filled(directory.path(), 7);
        let held = spool.lock().unwrap();
        assert!(held.is_some() && spool.lock().unwrap().is_none());
        drop(held);
        assert!(spool.lock().unwrap().is_some());
    }
}
