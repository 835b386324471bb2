use proptest::prelude::*;

use super::*;
use crate::layout::DATA_WINDOW_BYTES;

const ATTRIBUTES: Attributes = Attributes {
    mode: 0o640,
    uid: 26,
    gid: 27,
    mtime_s: -5,
    mtime_ns: 999_999_999,
};

fn id(number: u8) -> ChunkId {
    ChunkId([number; 32])
}

fn samples() -> Vec<Entry> {
    let windows = vec![
        Window {
            chunk: Some(id(1)),
            crc32c: 7,
        },
        Window {
            chunk: None,
            crc32c: 8,
        },
    ];
    let small = FileMap::inline(u64::from(DATA_WINDOW_BYTES) + 1, DATA_WINDOW_BYTES, windows).unwrap();
    let large = FileMap {
        size_bytes: 1 << 30,
        window_bytes: DATA_WINDOW_BYTES,
        crc32c: 9,
        windows: Windows::Pieces((1..5).map(id).collect()),
    };
    let directory = DirectoryRef {
        pages: vec![PageRef {
            first: b"x".to_vec(),
            chunk: id(6),
        }],
        entries: 3,
    };
    let nodes: [(&[u8], Node); 4] = [
        (b"dir", Node::Directory(directory)),
        (b"large", Node::File(large)),
        (b"link\xff", Node::Symlink(b"../target".to_vec())),
        (b"small", Node::File(small)),
    ];
    nodes
        .into_iter()
        .map(|(name, node)| Entry {
            name: name.to_vec(),
            attributes: ATTRIBUTES,
            node,
        })
        .collect()
}

fn page_bytes(entries: &[Entry], count: u32) -> Vec<u8> {
    let mut bytes = encode_page_header(count).to_vec();
    for Entry {
        name,
        attributes,
        node,
    } in entries
    {
        bytes.extend(encode_entry(name, attributes, node).unwrap());
    }
    bytes
}

fn read(first: &[u8], bytes: &[u8]) -> Result<Vec<Entry>> {
    let page = PageRef {
        first: first.to_vec(),
        chunk: ChunkId::of(bytes),
    };
    let mut page = Page::open(&page, bytes.into())?;
    let mut entries = Vec::new();
    let what = page.what();
    while let Some(view) = page.next()? {
        entries.push(view.to_entry().map_err(|reason| Error::damaged(what(), reason))?);
    }
    Ok(entries)
}

fn reason(first: &[u8], bytes: &[u8]) -> String {
    let error = read(first, bytes).unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(
        error
            .to_string()
            .starts_with(&format!("Listing page {} is damaged: ", ChunkId::of(bytes))),
        "{error}"
    );
    error.to_string()
}

#[test]
fn entries_read_back() {
    assert_eq!(read(b"dir", &page_bytes(&samples(), 4)).unwrap(), samples());
}

#[test]
fn bytes_are_as_the_format_says() {
    let link = Entry {
        name: b"ab".to_vec(),
        attributes: ATTRIBUTES,
        node: Node::Symlink(b"c".to_vec()),
    };
    let expected = [
        b"bmfslist\x01\0\0\0\x01\0\0\0".as_slice(),
        b"\x04\x02\0ab",
        b"\xa0\x01\0\0\x1a\0\0\0\x1b\0\0\0\xfb\xff\xff\xff\xff\xff\xff\xff\xff\xc9\x9a\x3b",
        b"\x01\0c",
    ];
    assert_eq!(page_bytes(&[link], 1), expected.concat());
}

#[test]
fn invalid_pages_are_refused() {
    let good = page_bytes(&samples(), 4);
    assert!(reason(b"other", &good).contains("begins with \"dir\" instead of \"other\""));
    assert!(reason(b"dir", &good[..good.len() - 1]).contains("ends within an entry"));
    assert!(reason(b"dir", &[&good[..], b"x"].concat()).contains("1 bytes follow its last entry"));
    assert!(reason(b"dir", &page_bytes(&samples(), 5)).contains("ends within an entry"));
    assert!(reason(b"", &encode_page_header(0)).contains("does not begin like one"));
    assert!(reason(b"", b"bmfs").contains("ends within an entry"));

    let mut unsorted = samples();
    unsorted.swap(1, 2);
    assert!(reason(b"dir", &page_bytes(&unsorted, 4)).contains("\"large\" does not stand where it belongs"));
    let twice = [samples().remove(0), samples().remove(0)];
    assert!(reason(b"dir", &page_bytes(&twice, 2)).contains("\"dir\" does not stand where it belongs"));

    let mut newer = good.clone();
    newer[8] = 2;
    assert!(matches!(
        read(b"dir", &newer),
        Err(Error::NewerFormat {
            found: 2,
            newest: 1,
            ..
        })
    ));
    let mut other_kind = good;
    other_kind[HEADER_BYTES] = 9;
    assert!(reason(b"dir", &other_kind).contains("unknown kind 9"));
}

#[test]
fn names_that_lead_elsewhere_are_refused_from_disk_too() {
    for bad in ["..", ".", "a/b", "a\0b"] {
        let mut bytes = page_bytes(
            &[Entry {
                name: vec![b'x'; bad.len()],
                attributes: ATTRIBUTES,
                node: Node::Symlink(b"t".to_vec()),
            }],
            1,
        );
        bytes[HEADER_BYTES + 3..][..bad.len()].copy_from_slice(bad.as_bytes());
        assert!(reason(bad.as_bytes(), &bytes).contains("The name"));
    }
}

#[test]
fn maps_that_do_not_fit_their_size_are_refused() {
    let good = page_bytes(&samples()[3..], 1);
    // After kind, length, the name of five bytes and 24 bytes of attributes.
    let size_at = HEADER_BYTES + 3 + 5 + 24;
    for (at, value) in [(size_at + 8, 5000_u32), (size_at + 8, 0), (size_at + 4, u32::MAX)] {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        reason(b"small", &bytes);
    }
}

#[test]
fn entries_that_readers_refuse_are_not_written() {
    let link = Node::Symlink(b"t".to_vec());
    assert!(encode_entry(b"..", &ATTRIBUTES, &link).is_err());
    assert!(
        encode_entry(
            b"x",
            &Attributes {
                mode: 0o10000,
                ..ATTRIBUTES
            },
            &link
        )
        .is_err()
    );
    assert!(encode_entry(b"x", &ATTRIBUTES, &Node::Symlink(vec![b'x'; 4096])).is_err());
    let pages = vec![
        PageRef {
            first: vec![b'x'; 200],
            chunk: id(1)
        };
        20_000
    ];
    let huge = Node::Directory(DirectoryRef { pages, entries: 1 });
    assert!(
        encode_entry(b"x", &ATTRIBUTES, &huge)
            .unwrap_err()
            .to_string()
            .contains("too large")
    );
}

#[test]
fn a_page_ends_at_its_largest_size_whatever_the_names() {
    let name = (0..)
        .map(|n| format!("{n}").into_bytes())
        .find(|name| !crc32c::crc32c(name).is_multiple_of(256))
        .unwrap();
    assert!(!ends_page(PAGE_TARGET_BYTES - 100, &name, 100));
    assert!(ends_page(PAGE_TARGET_BYTES - 100, &name, 101));
    assert!(
        !ends_page(HEADER_BYTES, &name, PAGE_TARGET_BYTES),
        "a page has one entry at least"
    );
}

proptest! {
    /// Damage gives an error or other entries, never a panic, an endless loop or an allocation of a
    /// size that the page claims.
    #[test]
    fn damaged_pages_are_survived(flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6), cut: proptest::sample::Index) {
        let mut bytes = page_bytes(&samples(), 4);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 4));
        let _either = read(b"dir", &bytes);
    }
}
