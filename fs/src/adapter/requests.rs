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
use crate::counters::RequestKind;
use crate::namespace::{Handle, Seek};
use crate::usage::Caller;

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            // For every part of a listing. The kernel's own choice gets the attributes of the first part, and then asks for
            // those of each file: `cp`, `tar` and `rsync` look at them only when they have the whole listing.
            InitFlags::FUSE_DO_READDIRPLUS,
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
        let reply = self.begin(RequestKind::Lookup, reply);
        match self.live(parent) {
            Ok(Some((served, node))) => self.live_lookup(&served, node, name, reply),
            Ok(None) => self.view_lookup(parent, name, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        self.begin(RequestKind::Forget, ()).send(|()| {
            if !self.clones.forget(ino(number), lookups) {
                self.namespace.forget(ino(number), lookups);
            }
        });
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let reply = self.begin(RequestKind::Getattr, reply);
        match self.live(number) {
            Ok(Some((served, node))) => {
                let found = self.ask("read attributes", &served, |clone| clone.attributes(node));
                reply.finish(found, |reply, of| {
                    reply.attr(&live::ATTRIBUTES_TTL, &self.shown(&served, &of));
                });
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
        let reply = self.begin(RequestKind::Setattr, reply);
        let changes = live::changes(mode, uid, gid, size, mtime);
        let changed = self.writable(number).and_then(|(served, node)| {
            let of = self.ask("change attributes", &served, |clone| {
                clone.set_attributes(node, changes)
            })?;
            Ok(self.shown(&served, &of))
        });
        reply.finish(changed, |reply, attributes| {
            reply.attr(&live::ATTRIBUTES_TTL, &attributes);
        });
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        let reply = self.begin(RequestKind::Readlink, reply);
        let target = self.either(
            number,
            |served, node| self.ask("read a symbolic link", served, |clone| clone.readlink(node)),
            || self.view_readlink(number),
        );
        reply.finish(target, |reply, target| reply.data(&target));
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
        let reply = self.begin(RequestKind::Mknod, reply);
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
        let reply = self.begin(RequestKind::Mkdir, reply);
        match self.live(parent) {
            Ok(Some((served, parent))) => {
                let new = live::new_node(request, mode, umask);
                let made = self.ask("make a directory", &served, |clone| {
                    clone.mkdir(parent, name.as_bytes(), new)
                });
                self.found(&served, made, reply);
            }
            Ok(None) => reply.finish(self.make_clone(parent, name), |reply, (node, stat)| {
                let attributes = attributes(node.ino, &stat, &node.content);
                reply.entry(&Duration::ZERO, &attributes, Generation(0));
            }),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.begin(RequestKind::Unlink, reply);
        let outcome = self.writable(parent).and_then(|(served, parent)| {
            self.ask("remove a file", &served, |clone| {
                clone.unlink(parent, name.as_bytes())
            })
        });
        reply.finish(outcome, |reply, ()| reply.ok());
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.begin(RequestKind::Rmdir, reply);
        let outcome = self.either(
            parent,
            |served, parent| {
                self.ask("remove a directory", served, |clone| {
                    clone.rmdir(parent, name.as_bytes())
                })
            },
            || self.remove_clone(parent, name),
        );
        reply.finish(outcome, |reply, ()| reply.ok());
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let reply = self.begin(RequestKind::Symlink, reply);
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
        let reply = self.begin(RequestKind::Rename, reply);
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
        reply.finish(outcome, |reply, ()| reply.ok());
    }

    fn link(&self, _request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let reply = self.begin(RequestKind::Link, reply);
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
        let reply = self.begin(RequestKind::Create, reply);
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
        let reply = self.begin(RequestKind::Open, reply);
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
        let reply = self.begin(RequestKind::Read, reply);
        match self.live(number) {
            Ok(Some((served, node))) => {
                let read = self.ask("read", &served, |clone| {
                    let mut buffer = vec![0; size as usize];
                    let count = clone.read(node, offset, &mut buffer)?;
                    buffer.truncate(count);
                    Ok(buffer)
                });
                reply.finish(read, |reply, bytes| {
                    self.context.counters().sends(bytes.len());
                    reply.data(&bytes);
                });
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
        let reply = self.begin(RequestKind::Write, reply);
        let append = flags.0 & libc::O_APPEND != 0;
        let written = self.writable(number).and_then(|(served, node)| {
            self.ask("write", &served, |clone| clone.write(node, offset, data, append))
        });
        // The count is at most what one request can hold.
        reply.finish(written, |reply, count| reply.written(count as u32));
    }

    fn fsync(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let reply = self.begin(RequestKind::Fsync, reply);
        let outcome = self.either(
            number,
            |served, node| self.ask("sync", served, |_| served.sync(node, datasync)),
            // A read-only view is always durable.
            || Ok(()),
        );
        reply.finish(outcome, |reply, ()| reply.ok());
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let reply = self.begin(RequestKind::Fsyncdir, reply);
        let outcome = self.either(
            number,
            |served, node| self.ask("sync a directory", served, |clone| clone.sync_directory(node)),
            || Ok(()),
        );
        reply.finish(outcome, |reply, ()| reply.ok());
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
        let reply = self.begin(RequestKind::Fallocate, reply);
        let outcome = self.writable(number).and_then(|(served, node)| {
            self.ask("allocate", &served, |clone| {
                let (what, keep_size) = live::allocation(mode)?;
                clone.allocate(node, what, keep_size, offset, length)
            })
        });
        reply.finish(outcome, |reply, ()| reply.ok());
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
        let reply = self.begin(RequestKind::Lseek, reply);
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let found = self.either(
            number,
            |served, node| {
                let data = seek == Seek::Data;
                self.ask("seek", served, |clone| clone.seek(node, offset, data))
            },
            || self.answer("seek", |namespace| namespace.seek(Handle(handle.0), offset, seek)),
        );
        reply.finish(found, |reply, found| reply.offset(found.cast_signed()));
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
        let reply = self.begin(RequestKind::Release, reply);
        if let Ok(Some((served, node))) = self.live(number) {
            self.open.close(&served, node);
            return reply.send(ReplyEmpty::ok);
        }
        self.namespace.close(Handle(handle.0));
        reply.send(ReplyEmpty::ok);
    }

    fn opendir(&self, request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let reply = self.begin(RequestKind::Opendir, reply);
        let opened = self.either(
            number,
            |served, node| {
                let handle = self.answer("open a directory", |_| self.open.open_directory(served, node))?;
                Ok((handle, FopenFlags::empty()))
            },
            || self.view_open_directory(number, Caller(request.pid())),
        );
        reply.finish(opened, |reply, (handle, flags)| reply.opened(handle, flags));
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let mut reply = self.begin(RequestKind::Readdir, reply);
        let listed = match self.live(number) {
            Ok(Some((served, node))) => self.answer("list", |_| {
                self.open.list(&served, node, handle, offset, |next, name| {
                    Ok(live::add_name(&served, next, name, &mut reply))
                })
            }),
            Ok(None) => self.view_list(Handle(handle.0), offset, &mut reply),
            Err(errno) => Err(errno),
        };
        reply.finish(listed, |reply, ()| reply.ok());
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let mut reply = self.begin(RequestKind::Readdirplus, reply);
        let listed = match self.live(number) {
            Ok(Some((served, node))) => self.answer("list", |_| {
                self.open.list(&served, node, handle, offset, |next, name| {
                    self.add_live_entry(&served, node, next, name, &mut reply)
                })
            }),
            Ok(None) => self.view_list_with_attributes(Handle(handle.0), offset, &mut reply),
            Err(errno) => Err(errno),
        };
        reply.finish(listed, |reply, ()| reply.ok());
    }

    fn releasedir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let reply = self.begin(RequestKind::Releasedir, reply);
        if let Ok(Some((served, node))) = self.live(number) {
            self.open.close_directory(&served, node, handle);
            return reply.send(ReplyEmpty::ok);
        }
        self.namespace.close_directory(Handle(handle.0));
        reply.send(ReplyEmpty::ok);
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let reply = self.begin(RequestKind::Statfs, reply);
        let space = self.answer("inspect the repository's file system", |_| self.context.space());
        reply.finish(space, |reply, space| {
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
        });
    }

    // ENOSYS without a log line: the kernel does not ask again while the mount lives.

    fn getxattr(&self, _request: &Request, _number: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        let reply = self.begin(RequestKind::Getxattr, reply);
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _number: INodeNo, _size: u32, reply: ReplyXattr) {
        let reply = self.begin(RequestKind::Listxattr, reply);
        reply.error(Errno::ENOSYS);
    }
}
