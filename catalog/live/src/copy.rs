//! Copies of a clone's own files. The copy shares their blocks where the file system can, and keeps holes.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use barmanfs_store::open_regular;
use rustix::fs::{SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use crate::disk::{FILES, JOURNAL};
use crate::error::{Result, failed};

/// Bytes copied at a time where blocks cannot be shared. The kernel copies; a signal can interrupt it between two
/// calls.
const COPY_BYTES: usize = 64 << 20;

/// Copies the files of a clone that is not open into the empty directory of another one. They are durable afterwards,
/// and belong to the user the thread acts for. The description of the copy must name the same seed.
///
/// # Errors
/// When a file cannot be read or written. The directory does not hold a clone then.
pub fn copy_files(from: &Path, to: &Path) -> Result<()> {
    copy_file(&from.join(JOURNAL), &to.join(JOURNAL))?;
    let (files, copies) = (from.join(FILES), to.join(FILES));
    fs::create_dir(&copies).map_err(|error| failed("create", &copies, error))?;
    for entry in fs::read_dir(&files).map_err(|error| failed("list", &files, error))? {
        let entry = entry.map_err(|error| failed("list", &files, error))?;
        copy_file(&entry.path(), &copies.join(entry.file_name()))?;
    }
    for directory in [copies.as_path(), to] {
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| failed("sync", directory, error))?;
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let source = open_regular(from).map_err(|error| failed("open", from, error))?;
    let metadata = source.metadata().map_err(|error| failed("read", from, error))?;
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .mode(metadata.mode() & 0o7777);
    let copy = options.open(to).map_err(|error| failed("create", to, error))?;
    let write_failed = |errno: Errno| failed("write", to, errno.into());
    if rustix::fs::ioctl_ficlone(&copy, &source).is_err() {
        copy.set_len(metadata.len())
            .map_err(|error| failed("write", to, error))?;
        copy_data(&source, &copy).map_err(write_failed)?;
    }
    // A file that has no part of the backup keeps its time only here.
    let time = |s: i64, ns: i64| Timespec {
        tv_sec: s,
        tv_nsec: ns,
    };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    rustix::fs::futimens(&copy, &times).map_err(write_failed)?;
    copy.sync_all().map_err(|error| failed("sync", to, error))
}

/// Copies everything that is not in holes.
fn copy_data(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut end = 0;
    loop {
        let start = match rustix::fs::seek(&from, SeekFrom::Data(end)) {
            // Only a hole follows.
            Err(Errno::NXIO) => return Ok(()),
            start => start?,
        };
        end = rustix::fs::seek(&from, SeekFrom::Hole(start))?;
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            let wanted = usize::try_from(end - read_at).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
            if rustix::fs::copy_file_range(&from, Some(&mut read_at), &to, Some(&mut write_at), wanted)? == 0
            {
                return Err(Errno::IO);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_copy_keeps_holes_and_times() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        for clone in [&from, &to] {
            fs::create_dir(clone).unwrap();
        }
        fs::create_dir(from.join(FILES)).unwrap();
        fs::write(from.join(JOURNAL), b"journal").unwrap();
        fs::write(from.join("clone.json"), b"{}").unwrap();
        let sparse = File::create(from.join(FILES).join("1")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"in the middle", 32 << 20).unwrap();
        sparse
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000))
            .unwrap();
        copy_files(&from, &to).unwrap();
        assert_eq!(fs::read(to.join(JOURNAL)).unwrap(), b"journal");
        assert!(!to.join("clone.json").exists());
        let copy = fs::metadata(to.join(FILES).join("1")).unwrap();
        assert_eq!((copy.len(), copy.mtime()), (64 << 20, 1000));
        assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
        assert!(fs::read(to.join(FILES).join("1")).unwrap() == fs::read(from.join(FILES).join("1")).unwrap());
        assert!(copy_files(&from, &to).is_err());
    }
}
