//! The records of the journal, to bytes and back.
//!
//! A record is a few changes that take effect together or not at all. Numbers are little endian. A text is its length
//! (u32) and its bytes. This file defines the layout; the journal's first record has the version.

use std::ops::Range;

use crate::blocks::BLOCK_BYTES;
use crate::stat::{Meta, NodeId, Time};

/// One change of a clone. Changes are absolute: applying one twice has the same result as once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The first change of a journal: version and clone.
    Begin { version: u32, clone: String },
    /// The next new node gets this number, counted from 0. Numbers are not used again.
    Made { count: u64 },
    /// The first record of a node. A node with an origin is what the lower layer has at that path.
    Node {
        id: NodeId,
        origin: Option<Vec<u8>>,
        made: Made,
    },
    /// Owner, permissions, times, number of names. A node without a name is gone.
    Attributes { id: NodeId, meta: Meta },
    /// The node under a name. `None` hides the name, even if the lower layer has it.
    Name {
        parent: NodeId,
        name: Vec<u8>,
        node: Option<NodeId>,
    },
    /// The size of a file, the visible length of the lower file, and blocks that are now in the upper file. Blocks
    /// beyond the size are removed.
    Data {
        id: NodeId,
        size_bytes: u64,
        lower_bytes: u64,
        added: Vec<Range<u64>>,
    },
    /// The upper file is the whole file.
    Plain { id: NodeId },
}

/// The kind of a new node. The lower layer decides it for a node with an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    File,
    Directory,
    Symlink(Vec<u8>),
    Socket,
}

const BEGIN: u8 = 1;
const MADE: u8 = 2;
const NODE: u8 = 3;
const ATTRIBUTES: u8 = 4;
const NAME: u8 = 5;
const DATA: u8 = 6;
const PLAIN: u8 = 7;

const FILE: u8 = 1;
const DIRECTORY: u8 = 2;
const SYMLINK: u8 = 3;
const SOCKET: u8 = 4;

/// Appends a change's bytes.
pub(crate) fn encode(change: &Change, out: &mut Vec<u8>) {
    let mut to = Encoder(out);
    match change {
        Change::Begin { version, clone } => to.u8(BEGIN).u32(*version).bytes(clone.as_bytes()),
        Change::Made { count } => to.u8(MADE).u64(*count),
        Change::Node { id, origin, made } => {
            to.u8(NODE)
                .u64(id.0)
                .optional(origin.as_deref(), |to, origin| to.bytes(origin));
            match made {
                Made::File => to.u8(FILE),
                Made::Directory => to.u8(DIRECTORY),
                Made::Symlink(target) => to.u8(SYMLINK).bytes(target),
                Made::Socket => to.u8(SOCKET),
            }
        }
        Change::Attributes { id, meta } => to
            .u8(ATTRIBUTES)
            .u64(id.0)
            .u32(meta.mode)
            .u32(meta.uid)
            .u32(meta.gid)
            .u32(meta.links)
            .time(meta.mtime)
            .time(meta.ctime),
        Change::Name { parent, name, node } => to
            .u8(NAME)
            .u64(parent.0)
            .bytes(name)
            .optional(*node, |to, node| to.u64(node.0)),
        Change::Data {
            id,
            size_bytes,
            lower_bytes,
            added,
        } => {
            to.u8(DATA).u64(id.0).u64(*size_bytes).u64(*lower_bytes);
            to.u32(u32::try_from(added.len()).unwrap_or(u32::MAX));
            for run in added {
                to.u64(run.start).u64(run.end);
            }
            &mut to
        }
        Change::Plain { id } => to.u8(PLAIN).u64(id.0),
    };
}

struct Encoder<'a>(&'a mut Vec<u8>);

impl Encoder<'_> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Names, paths and link targets are far shorter than a u32 can count.
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend(bytes);
        self
    }

    fn time(&mut self, time: Time) -> &mut Self {
        self.0.extend(time.s.to_le_bytes());
        self.u32(time.ns)
    }

    fn optional<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T) -> &mut Self) -> &mut Self {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                put(self, value)
            }
        }
    }
}

/// Decodes the changes of a record. The error says what is wrong with it.
pub(crate) fn decode(record: &[u8]) -> Result<Vec<Change>, String> {
    let mut from = Decoder(record);
    let mut changes = Vec::new();
    while !from.0.is_empty() {
        let left = from.0.len();
        let change = from.change();
        changes.push(change.ok_or_else(|| {
            let tag = record.get(record.len() - left).copied().unwrap_or(0);
            format!("{left} bytes before its end is no change that this version knows (kind {tag})")
        })?);
    }
    Ok(changes)
}

struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn change(&mut self) -> Option<Change> {
        Some(match self.u8()? {
            BEGIN => Change::Begin {
                version: self.u32()?,
                clone: String::from_utf8(self.bytes()?.to_vec()).ok()?,
            },
            MADE => Change::Made { count: self.u64()? },
            NODE => Change::Node {
                id: self.id()?,
                origin: self.optional(|from| Some(from.bytes()?.to_vec()))?,
                made: match self.u8()? {
                    FILE => Made::File,
                    DIRECTORY => Made::Directory,
                    SYMLINK => Made::Symlink(self.bytes()?.to_vec()),
                    SOCKET => Made::Socket,
                    _ => return None,
                },
            },
            ATTRIBUTES => Change::Attributes {
                id: self.id()?,
                meta: Meta {
                    mode: self.u32()?,
                    uid: self.u32()?,
                    gid: self.u32()?,
                    links: self.u32()?,
                    mtime: self.time()?,
                    ctime: self.time()?,
                },
            },
            NAME => Change::Name {
                parent: self.id()?,
                name: self.bytes()?.to_vec(),
                node: self.optional(Self::id)?,
            },
            DATA => Change::Data {
                id: self.id()?,
                size_bytes: self.u64()?,
                lower_bytes: self.u64()?,
                added: self.runs()?,
            },
            PLAIN => Change::Plain { id: self.id()? },
            _ => return None,
        })
    }

    /// Runs of blocks, none of them empty or beyond the largest file.
    fn runs(&mut self) -> Option<Vec<Range<u64>>> {
        const MOST_BLOCKS: u64 = u64::MAX / BLOCK_BYTES;
        let count = self.u32()?;
        let mut runs = Vec::new();
        for _ in 0..count {
            let run = self.u64()?..self.u64()?;
            if run.is_empty() || run.end > MOST_BLOCKS {
                return None;
            }
            runs.push(run);
        }
        Some(runs)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn id(&mut self) -> Option<NodeId> {
        self.u64().map(NodeId)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn time(&mut self) -> Option<Time> {
        let s = i64::from_le_bytes(self.array()?);
        let ns = self.u32().filter(|ns| *ns < 1_000_000_000)?;
        Some(Time { s, ns })
    }

    fn optional<T>(&mut self, get: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => get(self).map(Some),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Change> {
        let time = Time {
            s: -5,
            ns: 999_999_999,
        };
        let meta = Meta {
            mode: 0o1640,
            uid: 1,
            gid: 2,
            links: 3,
            mtime: time,
            ctime: Time { s: 7, ns: 0 },
        };
        let node = |id, origin: Option<&[u8]>, made| Change::Node {
            id: NodeId(id),
            origin: origin.map(Into::into),
            made,
        };
        vec![
            Change::Begin {
                version: 1,
                clone: "id".into(),
            },
            Change::Made { count: 7 },
            node(1, Some(b"base/5"), Made::Directory),
            node(2, None, Made::File),
            node(3, Some(b""), Made::Symlink(b"/x\xff".to_vec())),
            node(4, None, Made::Socket),
            Change::Attributes { id: NodeId(2), meta },
            Change::Name {
                parent: NodeId(1),
                name: b"\x01".to_vec(),
                node: Some(NodeId(2)),
            },
            Change::Name {
                parent: NodeId(1),
                name: b"b".to_vec(),
                node: None,
            },
            Change::Data {
                id: NodeId(2),
                size_bytes: 5,
                lower_bytes: 4,
                added: vec![0..1, 5..9],
            },
            Change::Plain { id: NodeId(u64::MAX) },
        ]
    }

    #[test]
    fn changes_read_back() {
        let mut record = Vec::new();
        all().iter().for_each(|change| encode(change, &mut record));
        assert_eq!(decode(&record).unwrap(), all());
    }

    #[test]
    fn truncated_and_unknown_changes_are_refused() {
        for change in all() {
            let mut record = Vec::new();
            encode(&change, &mut record);
            for length in 1..record.len() {
                assert!(decode(&record[..length]).is_err(), "{change:?} cut to {length}");
            }
        }
        let error = decode(&[99, 1, 2]).unwrap_err();
        assert!(error.contains("kind 99"), "{error}");
        let mut backwards = Vec::new();
        encode(
            &Change::Data {
                id: NodeId(2),
                size_bytes: 5,
                lower_bytes: 4,
                added: vec![Range { start: 9, end: 5 }],
            },
            &mut backwards,
        );
        assert!(decode(&backwards).is_err());
    }
}
