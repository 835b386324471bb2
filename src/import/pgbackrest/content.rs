//! The content of files of a backup: found, decrypted, decompressed and checked while it is read.
//!
//! The formats are in `barmanfs_foreign::pgbackrest`. Nothing here is larger in memory than a few buffers, and the block map of one
//! file.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_foreign::pgbackrest::{
    self as format, Compression, Decrypted, Header, Manifest, Passphrase, Sha1Sum,
};
use barmanfs_store::open_unlinked;
use sha1::{Digest, Sha1};

use super::blocks::BlockReader;
use crate::wal_transfer::compression;

/// So many files are kept open, of which pieces are read.
const OPEN_MAX: usize = 32;

/// The files of a stanza's backups.
#[derive(Debug)]
pub(super) struct Store<'a> {
    /// `<repository>/backup/<stanza>`.
    root: &'a Path,
    open: RefCell<HashMap<PathBuf, Arc<File>>>,
}

impl<'a> Store<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self {
            root,
            open: RefCell::default(),
        }
    }

    /// Opens a file below the directory of the backup `label`.
    pub(super) fn open(&self, label: &format::Label, inside: &[u8]) -> io::Result<Arc<File>> {
        let path = self
            .root
            .join(label.as_str())
            .join(std::ffi::OsStr::from_bytes(inside));
        let mut open = self.open.borrow_mut();
        if let Some(file) = open.get(&path) {
            return Ok(Arc::clone(file));
        }
        let file = open_unlinked(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let file = Arc::new(file);
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(path, Arc::clone(&file));
        Ok(file)
    }

    /// What a file holds. Reading fails where that has not the SHA-1 of the manifest.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn content<'r>(
        &'r self,
        manifest: &'r Manifest,
        file: &'r format::File,
    ) -> io::Result<Box<dyn Read + 'r>> {
        if file.size_bytes == 0 {
            return Ok(Box::new(io::empty()));
        }
        let plain: Box<dyn Read + 'r> = match file.blocks {
            Some(blocks) => Box::new(BlockReader::open(self, manifest, file, blocks)?),
            None => self.whole(manifest, file)?,
        };
        Ok(Box::new(Summed::new(plain, file.checksum, "what it holds")))
    }

    /// A file that is not stored by blocks.
    fn whole(&self, manifest: &Manifest, file: &format::File) -> io::Result<Box<dyn Read>> {
        let holder = manifest.holder(file);
        let (stored, is_raw): (Box<dyn Read>, bool) = match file.piece {
            Some(piece) => {
                let bundle = self.open(holder, format!("bundle/{}", piece.bundle).as_bytes())?;
                (
                    Box::new(Slice::new(bundle, piece.offset, file.stored_bytes)),
                    manifest.is_bundle_raw,
                )
            }
            None => (
                Box::new(Slice::whole(self.open(holder, &manifest.stored_path(file))?)),
                false,
            ),
        };
        let stored = match file.stored_checksum {
            Some(sum) => Box::new(Summed::new(stored, sum, "what is stored of it")),
            None => stored,
        };
        decoded(stored, manifest.passphrase.as_ref(), manifest.compression, is_raw)
    }
}

/// Decrypts and decompresses. A raw piece has no magic before its salt, and zlib's header instead of gzip's.
///
/// # Errors
/// When no decoder can be made.
pub(super) fn decoded(
    stored: impl Read + 'static,
    passphrase: Option<&Passphrase>,
    form: Compression,
    is_raw: bool,
) -> io::Result<Box<dyn Read>> {
    let header = if is_raw { Header::Salt } else { Header::Magic };
    let compressed: Box<dyn Read> = match passphrase {
        Some(passphrase) => Box::new(Decrypted::new(stored, passphrase, header)),
        None => Box::new(stored),
    };
    let form = match form {
        Compression::None => return Ok(compressed),
        Compression::Gz if is_raw => {
            return Ok(Box::new(flate2::bufread::ZlibDecoder::new(BufReader::new(
                compressed,
            ))));
        }
        Compression::Gz => compression::Compression::Gzip,
        Compression::Bz2 => compression::Compression::Bzip2,
        Compression::Lz4 => compression::Compression::Lz4,
        Compression::Zst => compression::Compression::Zstd,
    };
    form.reader(compressed)
}

/// A part of a file.
#[derive(Debug)]
pub(super) struct Slice {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Slice {
    pub(super) fn new(file: Arc<File>, offset: u64, bytes: u64) -> Self {
        Self {
            file,
            offset,
            left: bytes,
        }
    }

    pub(super) fn whole(file: Arc<File>) -> Self {
        Self::new(file, 0, u64::MAX)
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self
            .file
            .read_at(buffer.get_mut(..length).unwrap_or_default(), self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Passes bytes on, and fails at their end if they have another SHA-1.
#[derive(Debug)]
pub(super) struct Summed<R> {
    source: R,
    sum: Sha1,
    expected: Sha1Sum,
    what: &'static str,
}

impl<R: Read> Summed<R> {
    pub(super) fn new(source: R, expected: Sha1Sum, what: &'static str) -> Self {
        Self {
            source,
            sum: Sha1::new(),
            expected,
            what,
        }
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.source.read(buffer)?;
        self.sum.update(buffer.get(..count).unwrap_or_default());
        if count == 0 {
            let found: Sha1Sum = self.sum.clone().finalize().into();
            if found != self.expected {
                let why = format!(
                    "{} has not the SHA-1 that pgBackRest recorded: it is damaged",
                    self.what
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        Ok(count)
    }
}
