//! Having the next WAL segment in the kernel's page cache before recovery asks for it.
//!
//! Recovery stands still while `restore_command` copies a segment. That it was decoded ahead saves half of this wait; the
//! other half is the way of its bytes from here through the kernel. While PostgreSQL replays the segment before, this
//! costs it nothing. The kernel takes no pages of a file that nobody has looked up, so a thread reads the file as
//! everybody does: through the mount.

use std::fs::File;
use std::io::{ErrorKind, Read};
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
    let mut buffer = vec![0; BUFFER_BYTES];
    for path in asked {
        // Only speed is at stake: what goes wrong goes wrong again where somebody is told.
        if let Ok(file) = File::open(mount_point.join(&path))
            && is_on(&file, device)
            && let Err(error) = read(file.take(MAX_BYTES), &mut buffer)
        {
            tracing::debug!("Cannot read {} ahead: {error}", path.display());
        }
    }
}

fn is_on(file: &File, device: &str) -> bool {
    file.metadata().is_ok_and(|metadata| {
        let of = metadata.dev();
        device == format!("{}:{}", rustix::fs::major(of), rustix::fs::minor(of))
    })
}

fn read(mut file: impl Read, buffer: &mut [u8]) -> std::io::Result<()> {
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
