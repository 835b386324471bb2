//! The header of a page of a relation, and its checksum.
//!
//! Source: `PageHeaderData` in `src/include/storage/bufpage.h`, the algorithm and its constants in
//! `src/include/storage/checksum_impl.h`.

use crate::Lsn;
use crate::bytes::{u16_at, u32_at};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 8192;

/// Bytes of a page's header.
const HEADER_BYTES: u16 = 24;

/// The size and the version of the layout, as the header has them.
const SIZE_AND_VERSION: u16 = 0x2000 | 4;

/// Where the checksum is.
const CHECKSUM_AT: usize = 8;

/// The sums that run side by side.
const SUMS: usize = 32;

const PRIME: u32 = 16_777_619;

const OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What the header of a page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Behind the last WAL record that changed it.
    pub lsn: Lsn,
    /// Its checksum, where the cluster has them.
    pub checksum: u16,
}

impl PageHeader {
    /// Reads it. `None` for a page that was never used, and for what no server writes.
    #[must_use]
    pub fn read(page: &[u8; PAGE_BYTES]) -> Option<Self> {
        let half = |at| u16_at(page, at);
        let (lower, upper, special) = (half(12)?, half(14)?, half(16)?);
        let is_sane = HEADER_BYTES <= lower
            && lower <= upper
            && upper <= special
            && usize::from(special) <= PAGE_BYTES
            && half(18)? == SIZE_AND_VERSION;
        let lsn = u64::from(u32_at(page, 0)?) << 32 | u64::from(u32_at(page, 4)?);
        is_sane.then_some(Self {
            lsn: Lsn(lsn),
            checksum: half(CHECKSUM_AT)?,
        })
    }
}

/// The checksum that a page with this number in its relation must have.
#[must_use]
pub fn checksum(page: &[u8; PAGE_BYTES], block: u32) -> u16 {
    let mut sums = OFFSETS;
    let mix = |sum: u32, value: u32| {
        let mixed = sum ^ value;
        mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
    };
    for (row, words) in page.chunks_exact(SUMS * 4).enumerate() {
        for (column, (sum, word)) in sums.iter_mut().zip(words.chunks_exact(4)).enumerate() {
            let mut value = word.try_into().map_or(0, u32::from_le_bytes);
            // The checksum itself counts as zero.
            if row == 0 && column == CHECKSUM_AT / 4 {
                value &= 0xFFFF_0000;
            }
            *sum = mix(*sum, value);
        }
    }
    for _ in 0..2 {
        sums = sums.map(|sum| mix(sum, 0));
    }
    let folded = sums.into_iter().fold(0, |all, sum| all ^ sum) ^ block;
    // Never zero: that is a page without a checksum.
    u16::try_from(folded % 65535 + 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lsn: u64) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[0..4].copy_from_slice(&u32::try_from(lsn >> 32).unwrap().to_le_bytes());
        page[4..8].copy_from_slice(&u32::try_from(lsn & 0xFFFF_FFFF).unwrap().to_le_bytes());
        for (at, value) in [(12, 24_u16), (14, 8000), (16, 8192), (18, SIZE_AND_VERSION)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        page
    }

    #[test]
    fn only_what_a_server_writes_has_a_header() {
        let header = PageHeader::read(&page(0x1_0000_0028)).unwrap();
        assert_eq!((header.lsn, header.checksum), (Lsn(0x1_0000_0028), 0));
        assert_eq!(PageHeader::read(&[0; PAGE_BYTES]), None);
        assert_eq!(PageHeader::read(&[0xFF; PAGE_BYTES]), None);
        let mut torn = page(1);
        torn[14] = 0;
        torn[15] = 0;
        assert_eq!(PageHeader::read(&torn), None);
    }

    #[test]
    fn every_byte_but_the_checksum_and_the_place_count() {
        let sum = checksum(&page(1), 7);
        assert_ne!(sum, checksum(&page(1), 8));
        let mut other = page(1);
        other[CHECKSUM_AT] = 1;
        assert_eq!(checksum(&other, 7), sum);
        for at in [0, 11, 200, PAGE_BYTES - 1] {
            let mut other = page(1);
            other[at] ^= 1;
            assert_ne!(checksum(&other, 7), sum, "{at}");
        }
    }
}
