//! Having the next WAL segment in the kernel's page cache before recovery asks for it.
//!
//! Recovery stands still while `restore_command` copies a segment. That it was decoded ahead saves half of this wait; the
//! other half is the way of its bytes from here through the kernel. While PostgreSQL replays the segment before, this
//! costs it nothing. The kernel takes no pages of a file that nobody has looked up, so a thread reads the file as
//! everybody does: through the mount.
//!
//! That makes this process wait for itself. When it is killed, the kernel ends every thread but one that waits for the answer to
//! a request, and gives that one an answer only when nobody has the connection open any more. So the thread has no part in the
//! process's descriptors, of which the connection is one.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Read at a time: as much as the kernel asks for with one request.
const BUFFER_BYTES: usize = 1 << 20;

/// Of each file at most. Segments are larger only where somebody asked for it, and their copy is led by its own sequence.
const MAX_BYTES: u64 = 64 << 20;

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Warmer {
    paths: Sender<PathBuf>,
}

impl Warmer {
    /// For the mount at this path with this device ("major:minor"): should something else be mounted over it, that is left
    /// alone. `None` where no thread can be had; all goes on without it.
    pub(crate) fn start(mount_point: PathBuf, device: String) -> Option<Self> {
        // One is read, the next may wait; recovery needs no more.
        let (paths, asked) = bounded(1);
        let read_all = move || read_each(&mount_point, &device, &asked);
        let thread = std::thread::Builder::new().name("warm-wal".to_owned());
        thread.spawn(read_all).ok()?;
        Some(Self { paths })
    }

    /// Has a file read, by its path below the mount point; `false` when enough others wait.
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
        // Only speed is at stake: what goes wrong goes wrong again where somebody is told. The log cannot be told from here: it
        // may be one of the descriptors.
        if let Ok(file) = File::open(mount_point.join(&path))
            && is_on(&file, device)
        {
            let _ = read(file.take(MAX_BYTES), &mut buffer);
        }
    }
}

/// From here on this thread has descriptors of its own, and of those there were none. The standard ones are the starter's until
/// the mount answers: who reads them to their end waits for all that have them.
#[allow(unsafe_code)]
fn leave_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = 0;
    // As a system call: C libraries have it since only a few years, and where the kernel has not, it says so.
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
    // So that no file that is read here is taken for one of them.
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
    fn a_thread_leaves_descriptors_to_the_others() {
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
        // The standard ones, and the listing's own.
        let null = left
            .iter()
            .filter(|path| *path == std::path::Path::new("/dev/null"));
        assert_eq!((null.count(), left.len()), (3, 4), "{left:?}");
        assert!(here.metadata().is_ok());
    }
}
