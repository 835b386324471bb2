//! SHA-2 of files as they arrive, for a manifest that has it instead of CRC-32C. The store computes CRC-32C only.
//!
//! One sum stands for the files and their hashes, as [`FileSet`] does for names, so memory does not grow with them.

use std::collections::HashMap;
use std::io::{self, Read};

use sha2::digest::DynDigest;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::files::FileSet;

/// Bytes to hash at a time.
const HASHED_BYTES: usize = 256 << 10;

/// A hash that a manifest may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sha2 {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Sha2 {
    /// By the name that a manifest gives it.
    pub(crate) fn of(algorithm: &str) -> Option<Self> {
        Some(match algorithm {
            "SHA224" => Self::Sha224,
            "SHA256" => Self::Sha256,
            "SHA384" => Self::Sha384,
            "SHA512" => Self::Sha512,
            _ => return None,
        })
    }

    fn hasher(self) -> Box<dyn DynDigest> {
        match self {
            Self::Sha224 => Box::<Sha224>::default(),
            Self::Sha256 => Box::<Sha256>::default(),
            Self::Sha384 => Box::<Sha384>::default(),
            Self::Sha512 => Box::<Sha512>::default(),
        }
    }

    /// The hash of all of `content`, in hexadecimal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn hash(self, mut content: impl Read) -> io::Result<String> {
        let mut hasher = self.hasher();
        let mut buffer = vec![0; HASHED_BYTES];
        loop {
            let length = match content.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            match buffer.get(..length).unwrap_or_default() {
                [] => return Ok(barmanfs_pg::hex::encode(&hasher.finalize())),
                bytes => hasher.update(bytes),
            }
        }
    }
}

/// Hashes the files of a backup one by one, while they arrive.
pub(crate) struct Summing {
    algorithm: Sha2,
    hasher: Box<dyn DynDigest>,
    /// Paths whose hashes are kept apart.
    apart: &'static [&'static [u8]],
    sums: Sums,
}

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Sums {
    /// The hash, if any was asked for.
    pub(crate) algorithm: Option<Sha2>,
    /// The paths and hashes of the files that are stored as they arrived.
    pub(crate) as_stored: FileSet,
    /// The hashes of the others and of those that were to be kept apart, by the paths under which they arrived.
    pub(crate) apart: HashMap<Vec<u8>, String>,
}

impl Summing {
    pub(crate) fn new(algorithm: Sha2, apart: &'static [&'static [u8]]) -> Self {
        let sums = Sums {
            algorithm: Some(algorithm),
            ..Sums::default()
        };
        Self {
            algorithm,
            hasher: algorithm.hasher(),
            apart,
            sums,
        }
    }

    /// A file begins.
    pub(super) fn begin(&mut self) {
        self.hasher = self.algorithm.hasher();
    }

    /// The next bytes of the file.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The file at `path` has ended.
    pub(super) fn end(&mut self, path: Vec<u8>, is_altered: bool) {
        let hex = barmanfs_pg::hex::encode(&self.hasher.finalize_reset());
        match is_altered || self.apart.contains(&path.as_slice()) {
            true => drop(self.sums.apart.insert(path, hex)),
            false => self.sums.as_stored.add_with(&path, &hex),
        }
    }

    pub(crate) fn finish(self) -> Sums {
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        for (name, begins) in [
            ("SHA224", "23097d223405d822"),
            ("SHA256", "ba7816bf8f01cfea"),
            ("SHA384", "cb00753f45a35e8b"),
            ("SHA512", "ddaf35a193617aba"),
        ] {
            let hash = Sha2::of(name).unwrap().hash(&b"abc"[..]).unwrap();
            assert!(hash.starts_with(begins), "{name} {hash}");
        }
        assert_eq!(Sha2::of("CRC32C"), None);
    }

    #[test]
    fn a_sum_depends_on_each_path_and_each_hash() {
        let sum = |files: &[(&str, &str)]| {
            let mut summing = Summing::new(Sha2::Sha256, &[]);
            for (path, content) in files {
                summing.begin();
                summing.update(content.as_bytes());
                summing.end(path.as_bytes().to_vec(), false);
            }
            summing.finish().as_stored
        };
        assert_eq!(sum(&[("a", "1"), ("b", "2")]), sum(&[("b", "2"), ("a", "1")]));
        assert_ne!(sum(&[("a", "1"), ("b", "2")]), sum(&[("a", "2"), ("b", "1")]));
        let mut listed = FileSet::default();
        listed.add_with(b"a", &Sha2::Sha256.hash(&b"1"[..]).unwrap());
        assert_eq!(listed, sum(&[("a", "1")]));
    }
}
