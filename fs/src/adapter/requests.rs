//! The kernel's requests, in the order of the trait. The engine of clones answers those below a clone (`live`), the
//! views answer all others (`views`).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::{Adapter, MAX_BACKGROUND, NAME_BYTES, attributes, ino, live};
use crate::namespace::{Handle, Seek};
use crate::usage::Caller;

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Content never changes under an inode, so the kernel may trust its cache without comparing attributes.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for capability in wanted {
            // An older kernel works without these.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        // Only root may register files with the kernel.
        self.passthrough = rustix::process::geteuid().is_root()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        Ok(())
    }

    fn destroy(&mut self) {
        self.clones.flush();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.live(parent) {
            Ok(Some((served, node))) => self.live_lookup(&served, node, name, reply),
            Ok(None) => self.view_lookup(parent, name, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        if !self.clones.forget(ino(number), lookups) {
            self.namespace.forget(ino(number), lookups);
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.live(number) {
            Ok(Some((served, node))) => {
                match self.ask("read attributes", &served, |clone| clone.attributes(node)) {
                    Ok(of) => reply.attr(&live::ATTRIBUTES_TTL, &self.shown(&served, &of)),
                    Err(errno) => reply.error(errno),
                }
            }
            Ok(None) => self.view_attributes(number, reply),
            // Another process has the clone. Its root can be shown all the same.
            Err(errno) if errno.code() == libc::EBUSY && self.namespace.node(ino(number)).is_ok() => {
                self.view_attributes(number, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = live::changes(mode, uid, gid, size, mtime);
        let changed = self.writable(number).and_then(|(served, node)| {
            let of = self.ask("change attributes", &served, |clone| {
                clone.set_attributes(node, changes)
            })?;
            Ok(self.shown(&served, &of))
        });
        match changed {
            Ok(attributes) => reply.attr(&live::ATTRIBUTES_TTL, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.either(
            number,
            |served, node| self.ask("read a symbolic link", served, |clone| clone.readlink(node)),
            || self.view_readlink(number),
        ) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let (served, parent) = match self.writable(parent) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let new = live::new_node(request, mode, umask);
        let made = match mode & libc::S_IFMT {
            libc::S_IFREG => self.ask("make a file", &served, |clone| {
                clone.create(parent, name.as_bytes(), new)
            }),
            // A clone's server listens in its own directory.
            libc::S_IFSOCK => self.ask("make a socket", &served, |clone| {
                clone.socket(parent, name.as_bytes(), new)
            }),
            // Pipes and devices are not supported.
            _ => Err(Errno::EPERM),
        };
        self.found(&served, made, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        match self.live(parent) {
            Ok(Some((served, parent))) => {
                let new = live::new_node(request, mode, umask);
                let made = self.ask("make a directory", &served, |clone| {
                    clone.mkdir(parent, name.as_bytes(), new)
                });
                self.found(&served, made, reply);
            }
            Ok(None) => match self.make_clone(parent, name) {
                Ok((node, stat)) => {
                    let attributes = attributes(node.ino, &stat, &node.content);
                    reply.entry(&Duration::ZERO, &attributes, Generation(0));
                }
                Err(errno) => reply.error(errno),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.writable(parent).and_then(|(served, parent)| {
            self.ask("remove a file", &served, |clone| {
                clone.unlink(parent, name.as_bytes())
            })
        });
        self.done(outcome, reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.either(
            parent,
            |served, parent| {
                self.ask("remove a directory", served, |clone| {
                    clone.rmdir(parent, name.as_bytes())
                })
            },
            || self.remove_clone(parent, name),
        );
        self.done(outcome, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (served, parent) = match self.writable(parent) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let new = live::new_node(request, 0o777, 0);
        let target = target.as_os_str().as_bytes();
        let made = self.ask("make a symbolic link", &served, |clone| {
            clone.symlink(parent, name.as_bytes(), target, new)
        });
        self.found(&served, made, reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let outcome = self.writable(parent).and_then(|(served, parent)| {
            let (other, new_parent) = self.writable(new_parent)?;
            if !Arc::ptr_eq(&served, &other) {
                return Err(Errno::EXDEV);
            }
            let (from, to) = ((parent, name.as_bytes()), (new_parent, new_name.as_bytes()));
            self.ask("rename a file", &served, |clone| {
                clone.rename(from, to, live::rename_mode(flags)?)
            })
        });
        self.done(outcome, reply);
    }

    fn link(&self, _request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let both = self
            .writable(number)
            .and_then(|node| Ok((node, self.writable(parent)?)));
        match both {
            Ok(((served, node), (other, parent))) if Arc::ptr_eq(&served, &other) => {
                let linked = self.ask("link a file", &served, |clone| {
                    clone.link(node, parent, name.as_bytes())
                });
                self.found(&served, linked, reply);
            }
            Ok(_) => reply.error(Errno::EXDEV),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let (served, parent) = match self.writable(parent) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let new = live::new_node(request, mode, umask);
        let made = self.ask("make a file", &served, |clone| {
            served.before_making(parent, name.as_bytes())?;
            clone.create(parent, name.as_bytes(), new)
        });
        match made {
            Ok(of) => {
                self.clones.looked_up(&served, of.node);
                let attributes = self.shown(&served, &of);
                self.open
                    .create(&served, of.node, self.passthrough, &attributes, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.live(number) {
            Ok(Some((served, node))) => self.open.open(&served, node, self.passthrough, reply),
            Ok(None) => self.view_open(number, flags, Caller(request.pid()), reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.live(number) {
            Ok(Some((served, node))) => {
                let read = self.ask("read", &served, |clone| {
                    let mut buffer = vec![0; size as usize];
                    let count = clone.read(node, offset, &mut buffer)?;
                    buffer.truncate(count);
                    Ok(buffer)
                });
                match read {
                    Ok(bytes) => reply.data(&bytes),
                    Err(errno) => reply.error(errno),
                }
            }
            Ok(None) => self.view_read(Handle(handle.0), offset, size as usize, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let append = flags.0 & libc::O_APPEND != 0;
        let written = self.writable(number).and_then(|(served, node)| {
            self.ask("write", &served, |clone| clone.write(node, offset, data, append))
        });
        match written {
            // The count is at most what one request can hold.
            Ok(count) => reply.written(count as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let outcome = self.either(
            number,
            |served, node| self.ask("sync", served, |_| served.sync(node, datasync)),
            // A read-only view is always durable.
            || Ok(()),
        );
        self.done(outcome, reply);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let outcome = self.either(
            number,
            |served, node| self.ask("sync a directory", served, |clone| clone.sync_directory(node)),
            || Ok(()),
        );
        self.done(outcome, reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let outcome = self.writable(number).and_then(|(served, node)| {
            self.ask("allocate", &served, |clone| {
                let (what, keep_size) = live::allocation(mode)?;
                clone.allocate(node, what, keep_size, offset, length)
            })
        });
        self.done(outcome, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        match self.either(
            number,
            |served, node| {
                let data = seek == Seek::Data;
                self.ask("seek", served, |clone| clone.seek(node, offset, data))
            },
            || self.answer("seek", |namespace| namespace.seek(Handle(handle.0), offset, seek)),
        ) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(Some((served, node))) = self.live(number) {
            self.open.close(&served, node);
            return reply.ok();
        }
        self.namespace.close(Handle(handle.0));
        reply.ok();
    }

    fn opendir(&self, request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.either(
            number,
            |served, node| {
                let handle = self.answer("open a directory", |_| self.open.open_directory(served, node))?;
                Ok((handle, FopenFlags::empty()))
            },
            || self.view_open_directory(number, Caller(request.pid())),
        );
        match opened {
            Ok((handle, flags)) => reply.opened(handle, flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = match self.live(number) {
            Ok(Some((served, node))) => self.answer("list", |_| {
                self.open.list(&served, node, handle, offset, |next, name| {
                    Ok(live::add_name(&served, next, name, &mut reply))
                })
            }),
            Ok(None) => self.view_list(Handle(handle.0), offset, &mut reply),
            Err(errno) => Err(errno),
        };
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = match self.live(number) {
            Ok(Some((served, node))) => self.answer("list", |_| {
                self.open.list(&served, node, handle, offset, |next, name| {
                    self.add_live_entry(&served, node, next, name, &mut reply)
                })
            }),
            Ok(None) => self.view_list_with_attributes(Handle(handle.0), offset, &mut reply),
            Err(errno) => Err(errno),
        };
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        if let Ok(Some((served, node))) = self.live(number) {
            self.open.close_directory(&served, node, handle);
            return reply.ok();
        }
        self.namespace.close_directory(Handle(handle.0));
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        match self.answer("inspect the repository's file system", |_| self.context.space()) {
            Ok(space) => {
                let block = space.block_bytes;
                reply.statfs(
                    space.blocks,
                    space.free,
                    space.available,
                    0,
                    0,
                    block,
                    NAME_BYTES,
                    block,
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    // ENOSYS without a log line: the kernel does not ask again while the mount lives.

    fn getxattr(&self, _request: &Request, _number: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _number: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
