//! A set of at most eight small numbers, in one byte.

/// Sessions, or packs: a pack has the number of the session that writes it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Set(u8);

impl Set {
    pub(crate) const NONE: Set = Set(0);

    pub(crate) const fn one(item: u8) -> Self {
        Set(1 << item)
    }

    pub(crate) const fn has(self, item: u8) -> bool {
        self.0 & (1 << item) != 0
    }

    pub(crate) const fn with(self, item: u8) -> Self {
        Set(self.0 | (1 << item))
    }

    pub(crate) const fn union(self, other: Set) -> Self {
        Set(self.0 | other.0)
    }

    pub(crate) const fn common(self, other: Set) -> Self {
        Set(self.0 & other.0)
    }

    pub(crate) const fn minus(self, other: Set) -> Self {
        Set(self.0 & !other.0)
    }

    pub(crate) const fn starting_at(self, first: u8) -> Self {
        Set(self.0 >> first << first)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn lowest(self) -> Option<u8> {
        (0..8).find(|item| self.has(*item))
    }

    pub(crate) fn highest(self) -> Option<u8> {
        (0..8).rev().find(|item| self.has(*item))
    }
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let items: Vec<String> = (0..8)
            .filter(|item| self.has(*item))
            .map(|item| item.to_string())
            .collect();
        write!(f, "{{{}}}", items.join(", "))
    }
}
