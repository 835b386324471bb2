//! Standard output for data: WAL, an archive. What a program has not delivered, it must not call delivered.
//!
//! The library of the language opens `/dev/null` in place of a descriptor that is closed when the program starts, and calls
//! a write done that the kernel refuses since the descriptor cannot be written to. So whether standard output is open is
//! looked up before that, and data is written past the library.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Notes whether standard output is closed.
extern "C" fn look() {
    let is_open = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_ok();
    WAS_CLOSED.store(!is_open, Ordering::Relaxed);
}

/// The C library calls this before `main`.
// SAFETY: a place for pointers to functions with this signature. The function makes one system call and stores its result.
#[allow(unsafe_code, reason = "nothing else runs before the library opens /dev/null")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Standard output, if it can be written to.
///
/// # Errors
/// When it is closed.
pub(crate) fn stdout() -> Result<File, Error> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(Error::failed(
            "Standard output is closed, and nothing can be delivered there",
        ));
    }
    let copy = rustix::stdio::stdout().try_clone_to_owned();
    copy.map(File::from).map_err(|error| Error::output(&error))
}
