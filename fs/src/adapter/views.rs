//! Requests about views: translates between the kernel and the namespace ([`crate::namespace`]).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEntry, ReplyOpen,
};

use super::counted::Counted;
use super::{Adapter, attributes, ino};
use crate::entry::{Content, Lifetime, Stat};
use crate::namespace::{Found, Handle, Ino, Line, Lines, Opened, Room};
use crate::usage::Caller;

impl Adapter {
    pub(super) fn view_lookup(&self, parent: INodeNo, name: &OsStr, reply: Counted<'_, ReplyEntry>) {
        match self.answer("look up a name", |namespace| {
            namespace.lookup(ino(parent), name.as_bytes())
        }) {
            Ok(Found::Node(node, stat)) => {
                let attributes = attributes(node.ino, &stat, &node.content);
                let ttl = node.lifetime.duration();
                reply.send(|reply| reply.entry(&ttl, &attributes, Generation(0)));
            }
            Ok(Found::Absent(lifetime)) if lifetime == Lifetime::Forever => {
                // Inode 0: the kernel may cache the absence.
                let none = Stat::NONE;
                let attributes = attributes(Ino(0), &none, &Content::File);
                reply.send(|reply| reply.entry(&lifetime.of_absence(), &attributes, Generation(0)));
            }
            Ok(Found::Absent(_)) => reply.error(Errno::ENOENT),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn view_attributes(&self, number: INodeNo, reply: Counted<'_, ReplyAttr>) {
        let found = self.answer("read attributes", |namespace| {
            let node = namespace.node(ino(number))?;
            Ok((namespace.stat(&node)?, node))
        });
        reply.finish(found, |reply, (stat, node)| {
            reply.attr(
                &node.lifetime.duration(),
                &attributes(node.ino, &stat, &node.content),
            );
        });
    }

    /// Where a symbolic link points.
    pub(super) fn view_readlink(&self, number: INodeNo) -> Result<Vec<u8>, Errno> {
        let node = self.answer("read a symbolic link", |namespace| namespace.node(ino(number)))?;
        match &node.content {
            Content::Symlink(target) => Ok(target.to_vec()),
            Content::Directory(_) | Content::File => Err(Errno::EINVAL),
        }
    }

    pub(super) fn view_open(
        &self,
        number: INodeNo,
        flags: OpenFlags,
        caller: Caller,
        reply: Counted<'_, ReplyOpen>,
    ) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let opened = self.answer("open a file", |namespace| namespace.open(ino(number), caller));
        reply.finish(opened, |reply, Opened { handle, keep }| {
            if keep {
                self.hand_over(number, handle);
            }
            // A file that is generated for each reader has no reliable size, so it is read to its end.
            let cache = if keep {
                FopenFlags::FOPEN_KEEP_CACHE
            } else {
                FopenFlags::FOPEN_DIRECT_IO
            };
            reply.opened(FileHandle(handle.0), cache | FopenFlags::FOPEN_NOFLUSH);
        });
    }

    pub(super) fn view_read(
        &self,
        handle: Handle,
        offset: u64,
        length: usize,
        reply: Counted<'_, ReplyData>,
    ) {
        let mut reply = Some(reply);
        let result = self.answer("read", |namespace| {
            namespace.read(handle, offset, length, |bytes| {
                if let Some(reply) = reply.take() {
                    self.context.counters().sends(bytes.len());
                    reply.send(|reply| reply.data(bytes));
                }
            })
        });
        if let (Err(errno), Some(reply)) = (result, reply) {
            reply.error(errno);
        }
    }

    /// Opens a directory. The flags say what the kernel may cache.
    pub(super) fn view_open_directory(
        &self,
        number: INodeNo,
        caller: Caller,
    ) -> Result<(FileHandle, FopenFlags), Errno> {
        let Opened { handle, keep } = self.answer("open a directory", |namespace| {
            namespace.open_directory(ino(number), caller)
        })?;
        let cached = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        let flags = if keep { cached } else { FopenFlags::empty() };
        Ok((FileHandle(handle.0), flags))
    }

    pub(super) fn view_list(
        &self,
        handle: Handle,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), Errno> {
        let mut emit = |line: Line<'_>| {
            let kind = attributes(line.ino, &line.stat, line.content).kind;
            let full = reply.add(INodeNo(line.ino.0), line.next, kind, OsStr::from_bytes(line.name));
            if full { Room::Full } else { Room::Taken }
        };
        self.answer("list", |namespace| {
            namespace.read_directory(handle, offset, Lines::AsNames, &mut emit)
        })
    }

    pub(super) fn view_list_with_attributes(
        &self,
        handle: Handle,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<(), Errno> {
        let mut emit = |line: Line<'_>| {
            let attributes = attributes(line.ino, &line.stat, line.content);
            let name = OsStr::from_bytes(line.name);
            let ttl = line.lifetime.duration();
            let full = reply.add(
                INodeNo(line.ino.0),
                line.next,
                name,
                &ttl,
                &attributes,
                Generation(0),
            );
            if full { Room::Full } else { Room::Taken }
        };
        self.answer("list", |namespace| {
            namespace.read_directory(handle, offset, Lines::AsLookups, &mut emit)
        })
    }
}
