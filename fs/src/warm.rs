//! Reads the next WAL segment into the kernel's page cache before recovery asks for it.
//!
//! Recovery waits while `restore_command` copies a segment. Decoding it ahead saves half of that wait. The other half
//! is the transfer through the kernel, which costs nothing while PostgreSQL replays the segment before. The kernel
//! does not accept pages of a file that was never looked up, so a thread reads the file through the mount like any
//! other reader.
//!
//! So this process waits for itself. When it is killed, the kernel ends every thread except one that waits for a reply
//! to a request, and that one gets an error only when no process has the connection open any more. Therefore the
//! thread does not share the descriptors of the process, one of which is the connection.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use barmanfs_store::threads;
use crossbeam_channel::{Receiver, Sender, bounded};

/// Bytes per read: what the kernel asks for with one request.
const BUFFER_BYTES: usize = 1 << 20;

/// Maximum bytes per file. Larger segments exist only where they were configured, and their copy is a sequential read
/// with its own read-ahead.
const MAX_BYTES: u64 = 64 << 20;

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Warmer {
    paths: Sender<PathBuf>,
}

impl Warmer {
    /// For the mount at this path with this device ("major:minor"), so that another file system mounted over it is
    /// left alone. `None` if no thread can be started; reads are only slower then.
    pub(crate) fn start(mount_point: PathBuf, device: String) -> Option<Self> {
        // One file is being read and one may wait. Recovery needs no more.
        let (paths, asked) = bounded(1);
        let read_all = move || read_each(&mount_point, &device, &asked);
        threads::start("warm-wal", read_all).ok()?;
        Some(Self { paths })
    }

    /// Queues a file by its path below the mount point; `false` if the queue is full.
    pub(crate) fn warm(&self, path: PathBuf) -> bool {
        self.paths.try_send(path).is_ok()
    }
}

fn read_each(mount_point: &std::path::Path, device: &str, asked: &Receiver<PathBuf>) {
    if let Err(error) = leave_descriptors() {
        tracing::debug!(
            "Cannot have a thread without the process's descriptors: {error}; no WAL is read ahead"
        );
        return;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    for path in asked {
        // Errors are ignored: this only improves speed, and the real read reports them. Nothing is logged here,
        // because the log may be one of the descriptors.
        if let Ok(file) = File::open(mount_point.join(&path))
            && is_on(&file, device)
        {
            let _ = read(file.take(MAX_BYTES), &mut buffer);
        }
    }
}

/// Gives this thread its own, empty set of descriptors. Otherwise it would keep the standard descriptors of the
/// starter open, and a program that reads them to their end waits for every holder.
#[allow(unsafe_code)]
fn leave_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = 0;
    // A system call, because C libraries have a wrapper only since a few years. An older kernel returns an error.
    // SAFETY: no memory is involved. Other threads keep their descriptors; this one owns none and is given none.
    let closed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    // So that a file opened here does not get the number of a standard descriptor.
    for _standard in 0..3 {
        let _ = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?
            .into_raw_fd();
    }
    Ok(())
}

fn is_on(file: &File, device: &str) -> bool {
    file.metadata().is_ok_and(|metadata| {
        let of = metadata.dev();
        device == format!("{}:{}", rustix::fs::major(of), rustix::fs::minor(of))
    })
}

fn read(mut file: impl Read, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warming_thread_holds_no_descriptors() {
        let here = tempfile::tempfile().unwrap();
        let list = || {
            let open = std::fs::read_dir("/proc/thread-self/fd").unwrap().flatten();
            open.filter_map(|entry| std::fs::read_link(entry.path()).ok())
                .collect::<Vec<_>>()
        };
        let left = std::thread::spawn(move || {
            leave_descriptors().unwrap();
            list()
        });
        let left = left.join().unwrap();
        // The standard descriptors, and the one of the listing itself.
        let null = left
            .iter()
            .filter(|path| *path == std::path::Path::new("/dev/null"));
        assert_eq!((null.count(), left.len()), (3, 4), "{left:?}");
        assert!(here.metadata().is_ok());
    }
}
