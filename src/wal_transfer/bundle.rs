//! The archive that goes from `barman-wal-archive` to `put-wal`: a tar of WAL files, and the checksums of its members.
//!
//! The checksums come last. So the files wait in nameless files, and nothing is believed before all of them are right.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_pg::wal_name::WalName;
use md5::Md5;
use sha2::{Digest, Sha256};

use super::LARGEST_BYTES;
use crate::error::Error;
use crate::postgres::{self, EndBlocks, SinkError, TarEntry, TarKind, TarReader, TarSink};

/// The names of the members with checksums.
const SHA256SUMS: &str = "SHA256SUMS";
const MD5SUMS: &str = "MD5SUMS";

/// The most files in one archive.
const MOST_FILES: usize = 1024;

/// The largest member with checksums: a line for each file.
const MOST_SUMS_BYTES: u64 = 1 << 20;

/// The unit of a tar archive.
const BLOCK_BYTES: u64 = 512;

const COPY_BYTES: usize = 128 * 1024;

/// How a client computes checksums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Hash {
    /// SHA-256, as all but old versions of Barman want it.
    #[default]
    Sha256,
    /// MD5.
    Md5,
}

/// A file that arrived and agrees with its checksum.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its name.
    pub(crate) name: WalName,
    /// Its content, as it was sent, from the start.
    pub(crate) file: File,
}

/// Reads an archive. The files wait in `directory`.
///
/// # Errors
/// When anything about the archive is not as it must be; then none of it may be used.
pub(crate) fn receive(source: &mut dyn Read, directory: &Path) -> Result<Vec<Received>, Error> {
    let mut unpacker = Unpacker {
        directory: directory.to_owned(),
        files: Vec::new(),
        sums: BTreeMap::new(),
        lists: Vec::new(),
        current: Current::None,
    };
    let mut reader = TarReader::new("the archive on standard input", EndBlocks::Required);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => reader
                .feed(buffer.get(..length).unwrap_or_default(), &mut unpacker)
                .map_err(|error| refused(&error))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::failed(format!("Cannot read standard input: {error}"))),
        }
    }
    reader
        .finish()
        .map_err(|error| Error::failed(error.to_string()))?;
    unpacker.end().map_err(Error::failed)
}

fn refused(error: &postgres::Error) -> Error {
    Error::failed(error.to_string())
}

/// The file whose data come next.
#[derive(Debug)]
enum Current {
    None,
    Wal { name: WalName, file: File, hash: Sha256 },
    Sums { hash: Hash, text: Vec<u8> },
}

#[derive(Debug)]
struct Unpacker {
    directory: PathBuf,
    /// With the SHA-256 of each.
    files: Vec<(WalName, File, String)>,
    /// The announced checksums, by name.
    sums: BTreeMap<String, Vec<(Hash, String)>>,
    /// The lists of checksums that have come. There is one of each.
    lists: Vec<Hash>,
    current: Current,
}

impl TarSink for Unpacker {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
        let shown = crate::output::printable(&entry.path);
        if entry.kind != TarKind::File {
            return Err(format!("Unsupported file type for '{shown}': only regular files are taken").into());
        }
        let name = std::str::from_utf8(&entry.path).unwrap_or_default();
        let sums = match name {
            SHA256SUMS => Some(Hash::Sha256),
            MD5SUMS => Some(Hash::Md5),
            _ => None,
        };
        self.current = match sums {
            Some(_) if entry.size_bytes > MOST_SUMS_BYTES => {
                return Err(format!(
                    "{name} has {} bytes, more than any list of checksums",
                    entry.size_bytes
                )
                .into());
            }
            Some(hash) if self.lists.contains(&hash) => {
                return Err(format!("{name} is in the archive twice").into());
            }
            Some(hash) => Current::Sums {
                hash,
                text: Vec::new(),
            },
            None => {
                let name = WalName::from_str(name)
                    .map_err(|error| format!("Unsupported file name '{shown}': {error}"))?;
                self.refuse(&name, entry.size_bytes)?;
                Current::Wal {
                    name,
                    file: tempfile::tempfile_in(&self.directory)?,
                    hash: Sha256::new(),
                }
            }
        };
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        match &mut self.current {
            Current::None => {}
            Current::Wal { file, hash, .. } => {
                file.write_all(bytes)?;
                hash.update(bytes);
            }
            Current::Sums { text, .. } => text.extend_from_slice(bytes),
        }
        Ok(())
    }

    fn end_entry(&mut self) -> Result<(), SinkError> {
        match std::mem::replace(&mut self.current, Current::None) {
            Current::None => {}
            Current::Wal { name, mut file, hash } => {
                file.rewind()?;
                self.files.push((name, file, hexadecimal(&hash.finalize())));
            }
            Current::Sums { hash, text } => {
                self.lists.push(hash);
                let text = String::from_utf8(text)?;
                for line in text.lines() {
                    let (sum, name) = sum_line(line).ok_or_else(|| {
                        format!(
                            "Bad checksum line '{}'",
                            crate::output::printable(line.as_bytes())
                        )
                    })?;
                    let sums = self.sums.entry(name.to_owned()).or_default();
                    sums.push((hash, sum.to_ascii_lowercase()));
                }
            }
        }
        Ok(())
    }
}

impl Unpacker {
    fn refuse(&self, name: &WalName, size_bytes: u64) -> Result<(), String> {
        if self.files.iter().any(|(known, _, _)| known == name) {
            return Err(format!("{name} is in the archive twice"));
        }
        if self.files.len() >= MOST_FILES {
            return Err(format!("There are more than {MOST_FILES} files in one archive"));
        }
        match size_bytes > LARGEST_BYTES {
            true => Err(format!("{name} has {size_bytes} bytes, more than any WAL file")),
            false => Ok(()),
        }
    }

    /// Compares all files with their checksums.
    fn end(mut self) -> Result<Vec<Received>, String> {
        if self.files.is_empty() {
            return Err("The archive on standard input has no WAL file".to_owned());
        }
        let mut received = Vec::new();
        for (name, mut file, sha256) in self.files {
            let sums = self
                .sums
                .remove(&name.to_string())
                .ok_or_else(|| format!("Missing checksum for file '{name}'"))?;
            for (hash, sum) in sums {
                let actual = match hash {
                    Hash::Sha256 => sha256.clone(),
                    Hash::Md5 => {
                        md5_of(&mut file).map_err(|error| format!("Cannot read {name} again: {error}"))?
                    }
                };
                if actual != sum {
                    return Err(format!(
                        "Bad file checksum '{actual}' (should be {sum}) for file '{name}'"
                    ));
                }
            }
            received.push(Received { name, file });
        }
        match self.sums.keys().next() {
            None => Ok(received),
            Some(name) => Err(format!(
                "Checksum without corresponding file '{}'",
                crate::output::printable(name.as_bytes())
            )),
        }
    }
}

/// Checksum and name: `<sum> *name` or `<sum>  name`.
fn sum_line(line: &str) -> Option<(&str, &str)> {
    let (sum, name) = line.trim_end().split_once(' ')?;
    let name = name.strip_prefix(['*', ' '])?;
    let name = name.strip_prefix("./").unwrap_or(name);
    (!sum.is_empty() && sum.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some((sum, name))
}

fn md5_of(file: &mut File) -> io::Result<String> {
    let mut hash = Md5::new();
    file.rewind()?;
    copy(file, |bytes| {
        hash.update(bytes);
        Ok(())
    })?;
    file.rewind()?;
    Ok(hexadecimal(&hash.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn copy(source: &mut dyn Read, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut total = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => {
                take(buffer.get(..length).unwrap_or_default())?;
                total += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes an archive.
#[derive(Debug)]
pub(crate) struct Bundler<W> {
    target: W,
    hash: Hash,
    sums: String,
}

impl<W: Write> Bundler<W> {
    /// Begins an archive.
    pub(crate) fn new(target: W, hash: Hash) -> Self {
        Self {
            target,
            hash,
            sums: String::new(),
        }
    }

    /// Adds a file of this many bytes.
    ///
    /// # Errors
    /// Those of reading and writing, also when the file has another size.
    pub(crate) fn add(&mut self, name: &WalName, size_bytes: u64, source: &mut dyn Read) -> io::Result<()> {
        self.target.write_all(&header(&name.to_string(), size_bytes))?;
        let (mut sha256, mut md5) = (Sha256::new(), Md5::new());
        let target = &mut self.target;
        let hash = self.hash;
        let mut source = source.take(size_bytes);
        let written = copy(&mut source, |bytes| {
            match hash {
                Hash::Sha256 => sha256.update(bytes),
                Hash::Md5 => md5.update(bytes),
            }
            target.write_all(bytes)
        })?;
        if written != size_bytes {
            return Err(io::Error::other(format!(
                "{name} became shorter while it was sent"
            )));
        }
        pad(target, size_bytes)?;
        let sum = match hash {
            Hash::Sha256 => hexadecimal(&sha256.finalize()),
            Hash::Md5 => hexadecimal(&md5.finalize()),
        };
        self.sums += &format!("{sum} *{name}\n");
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn end(mut self) -> io::Result<()> {
        let name = match self.hash {
            Hash::Sha256 => SHA256SUMS,
            Hash::Md5 => MD5SUMS,
        };
        let size_bytes = self.sums.len() as u64;
        self.target.write_all(&header(name, size_bytes))?;
        self.target.write_all(self.sums.as_bytes())?;
        pad(&mut self.target, size_bytes)?;
        self.target.write_all(&[0; 2 * BLOCK_BYTES as usize])?;
        self.target.flush()
    }
}

fn pad(target: &mut impl Write, size_bytes: u64) -> io::Result<()> {
    let padding = size_bytes.next_multiple_of(BLOCK_BYTES) - size_bytes;
    target.write_all(&vec![0; usize::try_from(padding).unwrap_or_default()])
}

/// A ustar header of a regular file. Names are short, and sizes below 8 GiB.
fn header(name: &str, size_bytes: u64) -> [u8; BLOCK_BYTES as usize] {
    let mut block = [0_u8; BLOCK_BYTES as usize];
    let mut set = |offset: usize, bytes: &[u8]| {
        let places = block.iter_mut().skip(offset);
        places.zip(bytes).for_each(|(place, byte)| *place = *byte);
    };
    set(0, name.as_bytes());
    set(100, b"0000600\0");
    set(108, b"0000000\0");
    set(116, b"0000000\0");
    set(124, format!("{size_bytes:011o}\0").as_bytes());
    set(136, b"00000000000\0");
    set(148, b"        ");
    set(156, b"0");
    set(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let mut set = |offset: usize, bytes: &[u8]| {
        let places = block.iter_mut().skip(offset);
        places.zip(bytes).for_each(|(place, byte)| *place = *byte);
    };
    set(148, format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "000000010000000000000001";
    const TWO: &str = "000000010000000000000002";

    fn bundle(files: &[(&str, &str)], hash: Hash) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut bundler = Bundler::new(&mut bytes, hash);
        for (name, content) in files {
            let name = name.parse().unwrap();
            bundler
                .add(&name, content.len() as u64, &mut content.as_bytes())
                .unwrap();
        }
        bundler.end().unwrap();
        bytes
    }

    /// A member that a bundler would not write.
    fn member(name: &str, content: &str) -> Vec<u8> {
        let mut bytes = header(name, content.len() as u64).to_vec();
        bytes.extend(content.as_bytes());
        pad(&mut bytes, content.len() as u64).unwrap();
        bytes
    }

    fn received(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
        let directory = tempfile::tempdir().unwrap();
        let received = receive(&mut &*bytes, directory.path()).map_err(|error| error.to_string())?;
        let content = |mut received: Received| {
            let mut content = String::new();
            received.file.read_to_string(&mut content).unwrap();
            (received.name.to_string(), content)
        };
        Ok(received.into_iter().map(content).collect())
    }

    #[test]
    fn what_is_bundled_is_received() {
        for hash in [Hash::Sha256, Hash::Md5] {
            let files = [
                (ONE, "one"),
                ("00000002.history", ""),
                (TWO, &"2".repeat(5000) as &str),
            ];
            let expected: Vec<_> = files
                .map(|(name, content)| (name.to_owned(), content.to_owned()))
                .into();
            assert_eq!(received(&bundle(&files, hash)).unwrap(), expected);
        }
    }

    #[test]
    fn two_blanks_and_a_leading_dot_are_barmans_other_form() {
        let sum = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        let mut bytes = member(ONE, "one");
        bytes.extend(member(SHA256SUMS, &format!("{sum}  ./{ONE}\n")));
        bytes.extend([0; 1024]);
        assert_eq!(received(&bytes).unwrap(), [(ONE.to_owned(), "one".to_owned())]);
    }

    #[test]
    fn whatever_is_wrong_refuses_all_of_it() {
        let ends = [0; 1024];
        let refused = |parts: &[Vec<u8>], expected: &str| {
            let mut bytes = parts.concat();
            bytes.extend(ends);
            let error = received(&bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let one = || member(ONE, "one");
        let sums = |name: &str| member(SHA256SUMS, &format!("{} *{name}\n", "0".repeat(64)));
        refused(&[], "no WAL file");
        refused(&[one()], "Missing checksum");
        refused(&[one(), sums(ONE)], "Bad file checksum");
        refused(&[one(), one()], "twice");
        refused(&[member("../x", "")], "..");
        refused(&[member("a/b", "")], "Unsupported file name");
        refused(&[member("postgresql.conf", "")], "Unsupported file name");
        refused(&[member(SHA256SUMS, "nonsense\n")], "Bad checksum line");
        let mut other = bundle(&[(ONE, "one")], Hash::Sha256);
        other.truncate(1024);
        other.extend(member(
            SHA256SUMS,
            &format!("7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed *{ONE}\n0 *{TWO}\n"),
        ));
        refused(&[other], "without corresponding file");
        let mut link = one();
        link[156] = b'2';
        refused(&[link], "");
    }

    #[test]
    fn a_bundle_that_is_cut_anywhere_is_refused() {
        let whole = bundle(&[(ONE, "one"), (TWO, "two")], Hash::Sha256);
        for length in (0..whole.len()).step_by(100) {
            assert!(received(&whole[..length]).is_err(), "{length}");
        }
    }
}
