//! How much the archives of a backup may hold. A compressed one of a few kilobytes can become more than any disk has room for.
//!
//! The manifest beside the archives lists every file with its size, except WAL. So what the headers of the archives announce is
//! refused as soon as it is more, before any of it is read.

use std::fmt;

use barmanfs_pg::SegmentSize;

use super::manifest::CHANGED;
use crate::backup::files::WAL_DIRECTORY;
use crate::output;
use crate::postgres::SinkError;

/// The most that `pg_basebackup -R` makes of a file that the manifest has with another size.
const CHANGED_BYTES: u64 = 1 << 20;

/// What the archives of one backup may still hold.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    /// Bytes of files; `None` where no manifest says that.
    left_bytes: Option<u64>,
}

impl Allowance {
    /// That of a backup whose manifest lists files of this size together.
    pub(super) fn of(listed_bytes: u64) -> Self {
        Self {
            left_bytes: Some(listed_bytes),
        }
    }

    /// Takes a file that is announced.
    pub(super) fn take(&mut self, path: &[u8], size_bytes: u64) -> Result<(), SinkError> {
        let most = match path {
            path if path.starts_with(WAL_DIRECTORY) => SegmentSize::MAX.bytes(),
            path if CHANGED.contains(&path) => CHANGED_BYTES,
            _ => {
                let Some(left) = &mut self.left_bytes else {
                    return Ok(());
                };
                return match left.checked_sub(size_bytes) {
                    Some(rest) => {
                        *left = rest;
                        Ok(())
                    }
                    None => Err(TooMuch { size_bytes }.into()),
                };
            }
        };
        match size_bytes <= most {
            true => Ok(()),
            false => Err(TooMuch { size_bytes }.into()),
        }
    }
}

/// An archive announces more than there can be.
#[derive(Debug)]
struct TooMuch {
    size_bytes: u64,
}

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = output::bytes(self.size_bytes);
        write!(
            f,
            "the archive announces a file of {size}, and that is more than backup_manifest lists"
        )
    }
}

impl std::error::Error for TooMuch {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{EndBlocks, TarEntry, TarReader, TarSink};
    use crate::wal_transfer::compression::{self, Compression};
    use std::io::{self, Read};

    /// Zeros that are compressed at a time, and how often they follow each other: 4 GiB.
    const PIECE_BYTES: u64 = 4 << 20;
    const PIECES: usize = 1024;

    /// What takes an archive like an import: nothing is stored here, so what arrives is counted.
    #[derive(Default)]
    struct Sink {
        allowance: Allowance,
        bytes: u64,
    }

    impl TarSink for Sink {
        fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
            self.allowance.take(&entry.path, entry.size_bytes)
        }

        fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
            self.bytes += bytes.len() as u64;
            Ok(())
        }

        fn end_entry(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    /// A member of this size, and zeros for ever after its header.
    fn bomb(form: Compression, path: &str, size_bytes: u64) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_size(size_bytes);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        let compressed = |bytes: &[u8], zeros: u64| {
            let mut into = Vec::new();
            let mut content = bytes.chain(io::repeat(0).take(zeros));
            form.encode(None, &mut content, &mut into).unwrap();
            into
        };
        let mut all = compressed(header.as_bytes(), 0);
        let piece = compressed(&[], PIECE_BYTES);
        (0..PIECES).for_each(|_| all.extend_from_slice(&piece));
        all
    }

    /// Reads an archive until it is refused. Returns why, and the bytes that were decompressed.
    fn refused(archive: &[u8], sink: &mut Sink) -> (String, u64) {
        let mut content = compression::decoded(archive).unwrap();
        let mut tar = TarReader::new("base.tar", EndBlocks::Required);
        let (mut buffer, mut read_bytes) = (vec![0; 256 << 10], 0);
        loop {
            let length = content.read(&mut buffer).unwrap();
            assert!(length > 0, "all of it was read");
            read_bytes += length as u64;
            if let Err(error) = tar.feed(&buffer[..length], sink) {
                return (error.to_string(), read_bytes);
            }
        }
    }

    #[test]
    fn gigabytes_of_zeros_are_refused_before_they_are_read() {
        for form in [Compression::Gzip, Compression::Zstd, Compression::Lz4] {
            let listed = || Sink {
                allowance: Allowance::of(8192),
                bytes: 0,
            };
            let (mut large, mut wal, mut endless) = (listed(), listed(), listed());
            let (why, read_bytes) = refused(&bomb(form, "base/1/1259", 4 << 30), &mut large);
            assert!(
                why.contains("4.00 GiB") && why.contains("backup_manifest"),
                "{why}"
            );
            assert!(
                read_bytes <= 1 << 20 && large.bytes == 0,
                "{form:?}: {read_bytes}"
            );
            let name = "pg_wal/000000010000000000000001";
            let (_, read_bytes) = refused(&bomb(form, name, 2 << 30), &mut wal);
            assert!(read_bytes <= 1 << 20 && wal.bytes == 0, "{form:?}: {read_bytes}");
            // The member is as large as it may be, and the archive does not end.
            let (why, read_bytes) = refused(&bomb(form, "base/1/1259", 8192), &mut endless);
            assert!(why.contains("does not end"), "{why}");
            assert!(
                read_bytes <= 32 << 20 && endless.bytes == 8192,
                "{form:?}: {read_bytes}"
            );
        }
    }

    #[test]
    fn what_the_manifest_lists_is_taken() {
        let mut allowance = Allowance::of(8192 + 100);
        for (path, size_bytes, is_taken) in [
            ("base/1/1259", 8192, true),
            ("base/1/1260", 101, false),
            ("base/1/1261", 100, true),
            ("base/1/1262", 0, true),
            ("base/1/1263", 1, false),
            ("pg_wal/000000010000000000000001", 16 << 20, true),
            ("postgresql.auto.conf", 4000, true),
            ("postgresql.auto.conf", 2 << 20, false),
        ] {
            assert_eq!(
                allowance.take(path.as_bytes(), size_bytes).is_ok(),
                is_taken,
                "{path}"
            );
        }
        assert!(Allowance::default().take(b"base/1/1259", 1 << 40).is_ok());
    }
}
