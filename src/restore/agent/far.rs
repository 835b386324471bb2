//! The tree of the other side, as the agent sees it.

use std::io::{self, BufReader, BufWriter};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use barmanfs_fs::entry::{Body, Child, Children, Content, Directory, Lifetime};
use barmanfs_store::ChunkHash;
use barmanfs_store::sync::lock;

use super::wire::{self, Bytes, Entries, FarEntry, FarKind, Frame, Request};
use crate::error::Error;
use crate::restore::source::{EachContent, PartWindows, Wanted};

/// A directory has at most so many entries.
const MAX_ENTRIES: usize = 16 << 20;

/// A connection on which the other side answers.
#[derive(Debug)]
struct Connection {
    from: BufReader<UnixStream>,
    to: BufWriter<UnixStream>,
}

/// The other side's tree.
#[derive(Debug, Default)]
pub(in crate::restore) struct FarTree {
    free: Mutex<Free>,
    changed: Condvar,
    /// How the chunks are named, since the other side has said so.
    pub(super) hash: OnceLock<ChunkHash>,
}

/// The connections that nobody uses at the moment.
#[derive(Debug, Default)]
struct Free {
    connections: Vec<Connection>,
    is_closed: bool,
}

impl FarTree {
    /// Adds a connection.
    pub(super) fn add(&self, stream: UnixStream) -> io::Result<()> {
        let from = BufReader::new(stream.try_clone()?);
        let to = BufWriter::new(stream);
        self.give_back(Connection { from, to });
        Ok(())
    }

    /// From now on, nothing is answered.
    pub(super) fn close(&self) {
        let mut free = lock(&self.free);
        free.is_closed = true;
        free.connections.clear();
        self.changed.notify_all();
    }

    fn give_back(&self, connection: Connection) {
        let mut free = lock(&self.free);
        if !free.is_closed {
            free.connections.push(connection);
        }
        self.changed.notify_one();
    }

    fn take(&self) -> Result<Connection, Error> {
        let mut free = lock(&self.free);
        loop {
            if free.is_closed {
                return Err(Error::failed("The connection to the other side was cut"));
            }
            if let Some(connection) = free.connections.pop() {
                return Ok(connection);
            }
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks, and reads the answer. A connection on which that failed is not used again.
    fn ask<T>(
        &self,
        request: &Request,
        answer: impl FnOnce(&mut BufReader<UnixStream>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut connection = self.take()?;
        let answered = wire::write_json(&mut connection.to, Frame::Message, request)
            .and_then(|()| answer(&mut connection.from));
        if answered.is_ok() {
            self.give_back(connection);
        }
        answered
    }

    fn list(&self, path: &[u8]) -> Result<Vec<FarEntry>, Error> {
        let request = Request::List {
            path: Bytes(path.to_vec()),
        };
        self.ask(&request, |from| {
            let mut all = Vec::new();
            loop {
                let Entries { entries, more } = wire::json(&wire::expect(from, Frame::Entries)?)?;
                let is_right = entries.iter().all(|entry| wire::is_name(&entry.name.0));
                if !is_right || all.len() + entries.len() > MAX_ENTRIES {
                    return Err(wire::garbled("a directory with impossible names"));
                }
                all.extend(entries);
                if !more {
                    return Ok(all);
                }
            }
        })
    }
}

/// A directory of the other side. Its entries are asked for once.
#[derive(Debug)]
pub(super) struct FarDirectory {
    tree: Arc<FarTree>,
    path: Vec<u8>,
    entries: Mutex<Option<Arc<Vec<FarEntry>>>>,
}

impl FarDirectory {
    /// The directory at a path below the root.
    pub(super) fn new(tree: &Arc<FarTree>, path: Vec<u8>) -> Self {
        Self {
            tree: Arc::clone(tree),
            path,
            entries: Mutex::default(),
        }
    }

    fn listed(&self) -> barmanfs_fs::Result<Arc<Vec<FarEntry>>> {
        let mut entries = lock(&self.entries);
        if let Some(entries) = &*entries {
            return Ok(Arc::clone(entries));
        }
        let listed = self
            .tree
            .list(&self.path)
            .map_err(|error| barmanfs_fs::Error::Io {
                action: "list",
                path: String::from_utf8_lossy(&self.path).into_owned().into(),
                source: io::Error::other(error.to_string()),
            })?;
        let mut listed = listed;
        listed.sort_by(|a, b| a.name.0.cmp(&b.name.0));
        let listed = Arc::new(listed);
        *entries = Some(Arc::clone(&listed));
        Ok(listed)
    }

    fn child(&self, entry: &FarEntry) -> Child {
        let name = entry.name.0.clone();
        let content = match &entry.kind {
            FarKind::Directory => {
                let path = match self.path.as_slice() {
                    [] => name.clone(),
                    above => [above, name.as_slice()].join(&b'/'),
                };
                Content::Directory(Arc::new(Self::new(&self.tree, path)))
            }
            FarKind::File => Content::File,
            FarKind::Link(target) => Content::Symlink(target.0.clone().into()),
        };
        Child {
            name,
            identity: 0,
            stat: entry.stat.stat(),
            content,
            lifetime: Lifetime::Never,
            map: None,
        }
    }
}

impl Directory for FarDirectory {
    fn lookup(&self, name: &[u8]) -> barmanfs_fs::Result<Option<Child>> {
        let entries = self.listed()?;
        let found = entries.binary_search_by(|entry| entry.name.0.as_slice().cmp(name));
        Ok(found
            .ok()
            .and_then(|at| entries.get(at))
            .map(|entry| self.child(entry)))
    }

    fn entries(&self) -> barmanfs_fs::Result<Children> {
        let entries = self.listed()?;
        let children: Vec<_> = entries.iter().map(|entry| Ok(self.child(entry))).collect();
        Ok(Box::new(children.into_iter()))
    }

    fn open(&self, name: &[u8]) -> barmanfs_fs::Result<Body> {
        Err(barmanfs_fs::Error::Io {
            action: "open",
            path: String::from_utf8_lossy(name).into_owned().into(),
            source: io::ErrorKind::Unsupported.into(),
        })
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }
}

/// A file of the other side.
#[derive(Debug, Clone)]
pub(in crate::restore) struct FarFile {
    tree: Arc<FarTree>,
    path: Vec<u8>,
    size_bytes: u64,
}

impl FarFile {
    /// The file at a path below the root.
    pub(in crate::restore) fn new(tree: &Arc<FarTree>, path: &[u8], size_bytes: u64) -> Self {
        Self {
            tree: Arc::clone(tree),
            path: path.to_vec(),
            size_bytes,
        }
    }

    /// How its chunks are named.
    pub(in crate::restore) fn chunk_hash(&self) -> ChunkHash {
        self.tree.hash.get().cloned().unwrap_or_default()
    }

    pub(in crate::restore) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(in crate::restore) fn windows(&self, (from, to): (u64, u64)) -> Result<PartWindows, Error> {
        let request = Request::Windows {
            path: Bytes(self.path.clone()),
            from,
            to,
        };
        self.tree.ask(&request, |answer| {
            wire::windows(
                &wire::expect(answer, Frame::Windows)?,
                self.size_bytes,
                (from, to),
            )
        })
    }

    pub(in crate::restore) fn contents(
        &self,
        wanted: &[Wanted],
        each: &mut EachContent<'_>,
    ) -> Result<(), Error> {
        if wanted.is_empty() {
            return Ok(());
        }
        let request = Request::Content {
            path: Bytes(self.path.clone()),
            windows: wanted.iter().map(|window| window.n).collect(),
        };
        let hash = self.chunk_hash();
        self.tree.ask(&request, |answer| {
            wanted.iter().try_for_each(|window| {
                let bytes = wire::unpacked(&wire::expect(answer, Frame::Content)?, window.length)?;
                match hash.id_of(&bytes) == window.chunk {
                    true => each(window, &bytes),
                    false => Err(wire::garbled("the bytes of a window are other ones")),
                }
            })
        })
    }
}
