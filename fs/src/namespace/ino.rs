//! Inode numbers. They are made from the path, so a file has the same number after a remount. Backup tools and
//! PostgreSQL's shared memory key rely on that.

use std::fmt;

/// An inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// FUSE's number for the root.
    pub const ROOT: Self = Self(1);

    /// Smaller numbers are never made from paths.
    const FIRST: u64 = 16;

    /// Keeps numbers positive in programs that store them in a signed 64-bit integer.
    const MASK: u64 = (1 << 63) - 1;

    /// The number for a name in a directory. `identity` distinguishes entries that have one name at different times.
    pub fn of(parent: Self, identity: u64, name: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&parent.0.to_le_bytes());
        hasher.update(&identity.to_le_bytes());
        hasher.update(name);
        let mut number = [0; 8];
        hasher.finalize_xof().fill(&mut number);
        Self(u64::from_le_bytes(number) & Self::MASK).valid()
    }

    /// The number to try when this one belongs to another path.
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1) & Self::MASK).valid()
    }

    fn valid(self) -> Self {
        Self(self.0.max(Self::FIRST))
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_depend_on_nothing_but_the_path() {
        let base = Ino::of(Ino::ROOT, 0, b"base");
        assert_eq!(base, Ino::of(Ino::ROOT, 0, b"base"));
        // Written down: a release that numbers otherwise breaks what remembers inodes across a remount.
        assert_eq!(base, Ino(BASE), "{base}");
        assert_ne!(base, Ino::of(Ino::ROOT, 1, b"base"));
        assert_ne!(base, Ino::of(base, 0, b"base"));
        assert_ne!(base, Ino::of(Ino::ROOT, 0, b"bas"));
    }

    const BASE: u64 = 2_251_225_641_421_332_445;

    #[test]
    fn the_last_number_is_followed_by_a_valid_one() {
        assert_eq!(Ino(Ino::MASK).next(), Ino(Ino::FIRST));
        assert_eq!(Ino(77).next(), Ino(78));
    }
}
