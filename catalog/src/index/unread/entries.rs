//! What a survey says of packs that it could not read.

use std::borrow::Cow;
use std::fmt::Display;

use barmanfs_store::Part;
use serde::Serialize;

/// Packs that are named in a part. Of others only the number is known: without its disk, a repository of two million
/// segments misses as many packs.
const NAMED_IN_A_PART: usize = 8;

/// A pack that was not read, and so may hold anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadPack {
    /// The pack, or the path of a pack with another name, of a missing directory, or of one with more such packs.
    pub pack: String,
    /// How many packs this is: more than one for a directory with more of them.
    pub packs: u64,
    /// Why it was not read, and what to do.
    pub reason: Cow<'static, str>,
}

impl UnreadPack {
    pub(super) fn new(pack: impl Display, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            pack: pack.to_string(),
            packs: 1,
            reason: reason.into(),
        }
    }
}

/// The number of packs that were not read.
pub fn count_unread(unread: &[UnreadPack]) -> u64 {
    unread.iter().map(|unread| unread.packs).sum()
}

/// The packs of a part that were not read.
#[derive(Debug, Default)]
pub(super) struct UnreadInPart {
    named: Vec<UnreadPack>,
    others: u64,
}

impl UnreadInPart {
    pub(super) fn add(&mut self, pack: impl Display, reason: impl Into<Cow<'static, str>>) {
        match self.is_full() {
            true => self.others += 1,
            false => self.named.push(UnreadPack::new(pack, reason)),
        }
    }

    /// No more are named.
    pub(super) fn is_full(&self) -> bool {
        self.named.len() >= NAMED_IN_A_PART
    }

    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// All of them, with one entry for those without a name.
    pub(super) fn into_entries(self, part: Part) -> Vec<UnreadPack> {
        let mut entries = self.named;
        if self.others > 0 {
            let directory = match part {
                Part::Root => "packs".to_owned(),
                Part::First(first) => format!("packs/{first:02x}"),
            };
            entries.push(UnreadPack {
                pack: directory,
                packs: self.others,
                reason: format!("{} more packs of this directory are not read either", self.others).into(),
            });
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_packs_are_named_and_all_are_counted() {
        let none = UnreadInPart::default();
        assert!(none.is_empty() && none.into_entries(Part::Root).is_empty());
        let mut unread = UnreadInPart::default();
        for pack in 0..8000 {
            unread.add(pack, "lost");
        }
        let entries = unread.into_entries(Part::First(0xab));
        assert_eq!(
            (entries.len(), count_unread(&entries)),
            (NAMED_IN_A_PART + 1, 8000)
        );
        let last = entries.last().unwrap();
        assert_eq!(
            (last.pack.as_str(), last.packs),
            ("packs/ab", 8000 - NAMED_IN_A_PART as u64)
        );
    }
}
