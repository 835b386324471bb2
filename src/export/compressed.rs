//! Output that may be compressed: the archive is made in this thread, and compressed in another one. After an error the output
//! has no end, so that no program takes it for whole.

use std::io::{self, BufWriter, PipeReader, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::error::Error;
use crate::unfinished::failed;
use crate::wal_transfer::compression::Compression;
use barmanfs_store::threads;

/// Bytes that are written at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Calls `make` with what it shall write to, which ends up in `target`. `path` is for messages.
pub(super) fn compressed(
    form: Option<Compression>,
    target: &mut (dyn Write + Send),
    path: &Path,
    make: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let fail = |error: io::Error| failed("write", path, &error);
    let Some(form) = form else {
        let mut output = BufWriter::with_capacity(BUFFER_BYTES, target);
        let made = make(&mut output);
        // Also after an error: what shows that the archive is cut may be in the buffer.
        let flushed = output.flush().map_err(fail);
        drop(output.into_parts());
        return made.and(flushed);
    };
    let (reader, writer) = io::pipe().map_err(fail)?;
    let is_whole = AtomicBool::new(false);
    let mut reader = Made {
        reader,
        is_whole: &is_whole,
    };
    thread::scope(|scope| {
        let encode = move || form.encode(None, &mut reader, target);
        let encoder = threads::start_in(scope, "compress", encode)?;
        let mut output = BufWriter::with_capacity(BUFFER_BYTES, writer);
        let made = make(&mut output).and_then(|()| output.flush().map_err(fail));
        is_whole.store(made.is_ok(), Ordering::Release);
        // What is still in the buffer after an error is of no use, and the other end may be closed.
        drop(output.into_parts());
        let encoded = encoder
            .join()
            .map_err(|_| Error::failed(format!("Cannot write {}: the compression ended", path.display())))?;
        let is_not_whole =
            |error: &io::Error| matches!(error.get_ref(), Some(inner) if inner.is::<NotWhole>());
        match encoded {
            Err(error) if is_not_whole(&error) => made,
            // An error of the other thread closes the pipe, so it comes first.
            encoded => encoded.map_err(fail).and(made),
        }
    })
}

/// What is made, on its way to be compressed. Its end is an error unless all was made.
struct Made<'a> {
    reader: PipeReader,
    is_whole: &'a AtomicBool,
}

/// The end came before all was made.
#[derive(Debug, thiserror::Error)]
#[error("it was not made to its end")]
struct NotWhole;

impl Read for Made<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer)? {
            0 if !self.is_whole.load(Ordering::Acquire) => Err(io::Error::other(NotWhole)),
            length => Ok(length),
        }
    }
}

/// The suffix of a file's name.
pub(super) fn suffix(form: Option<Compression>) -> &'static str {
    match form {
        None => "",
        Some(Compression::Gzip) => ".gz",
        Some(Compression::Bzip2) => ".bz2",
        Some(Compression::Xz) => ".xz",
        Some(Compression::Zstd) => ".zst",
        Some(Compression::Lz4) => ".lz4",
        Some(Compression::Snappy) => ".sz",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_written_can_be_read_again() {
        let text: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for form in [
            None,
            Some(Compression::Gzip),
            Some(Compression::Zstd),
            Some(Compression::Lz4),
        ] {
            let mut target = Vec::new();
            compressed(form, &mut target, Path::new("out"), |output| {
                output
                    .write_all(&text)
                    .map_err(|error| Error::failed(error.to_string()))
            })
            .unwrap();
            let mut found = Vec::new();
            let mut reader: Box<dyn Read> = match form {
                None => Box::new(target.as_slice()),
                Some(form) => form.reader(target.as_slice()).unwrap(),
            };
            reader.read_to_end(&mut found).unwrap();
            assert!(found == text, "{form:?}");
        }
    }

    #[test]
    fn an_error_of_either_side_is_reported_and_ends_both() {
        /// A full disk.
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
            .take(4 << 20)
            .collect();
        for form in [None, Some(Compression::Gzip), Some(Compression::Zstd)] {
            let error = compressed(form, &mut Full, Path::new("out"), |output| {
                output
                    .write_all(&noise)
                    .map_err(|error| Error::failed(error.to_string()))
            });
            assert!(error.is_err(), "{form:?}");
            let error = compressed(form, &mut Vec::new(), Path::new("out"), |_| {
                Err(Error::failed("damaged"))
            });
            assert_eq!(error.unwrap_err().to_string(), "damaged");
        }
    }
}
