//! `<server>/live/`: the existing clones, and the source of a new one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use barmanfs_catalog::{Backup, BackupId, CloneDescription, CloneName, ExtraFile, ServerName};
use barmanfs_live::{AddedContent, AddedEntry, leads_out};
use barmanfs_store::{Attributes, Entry, Node};
use rustix::io::Errno;

use super::context::Context;
use super::copy_recovery::Recovery;
use super::snapshot::ServerState;
use super::tree::{BackupTree, Style, TreeDirectory};
use super::{changes, configuration, generated, no_files};
use crate::entry::{Body, Child, Children, CloneRoot, Content, Directory, Lifetime};
use crate::error::{Error, Result};

const MANIFEST: &[u8] = b"backup_manifest";

/// Bytes copied at a time.
const COPIED_BYTES: usize = 1 << 20;

/// Prefix of a clone's source when the source is a backup and not a point in time.
const OF_BACKUP: &str = "backup=";

/// The directory.
#[derive(Debug)]
pub(super) struct Live {
    context: Arc<Context>,
    server: ServerName,
}

impl Live {
    /// The entry `live` of a server. The owner of the server's files may create clones of them.
    pub(super) fn child(context: &Arc<Context>, server: &ServerState) -> Child {
        let live = Self {
            context: Arc::clone(context),
            server: server.name.clone(),
        };
        Child {
            name: b"live".to_vec(),
            identity: 0,
            stat: context.stat(&owner(context, server), 0, 0),
            content: Content::Directory(Arc::new(live)),
            lifetime: Lifetime::Never,
            map: None,
        }
    }

    fn entry(&self, clone: &CloneDescription) -> Result<Child> {
        let epoch = self.context.epoch(clone)?;
        let root = CloneRoot {
            server: clone.server.clone(),
            name: clone.name.clone(),
            id: clone.id,
            epoch,
        };
        Ok(Child {
            name: clone.name.as_str().into(),
            identity: generated::identity(clone.id.to_string().as_bytes()).wrapping_add(epoch),
            stat: self.context.stat(&clone.root.attributes, 0, 0),
            content: Content::Directory(Arc::new(root)),
            lifetime: Lifetime::Never,
            map: None,
        })
    }
}

/// The owner of a server's clones, with the permissions of their directory.
pub(super) fn owner(context: &Context, server: &ServerState) -> Attributes {
    let own = context.own(0o700, context.started);
    server.owner().map_or(own, |owner| Attributes {
        mode: owner.mode & 0o770 | 0o700,
        ..*owner
    })
}

impl Directory for Live {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let name = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.parse::<CloneName>().ok());
        let Some(name) = name else { return Ok(None) };
        let clones = self.context.repository.clones(&self.server)?;
        let clone = clones.iter().find(|clone| clone.name == name);
        clone.map(|clone| self.entry(clone)).transpose()
    }

    fn entries(&self) -> Result<Children> {
        let clones = self.context.repository.clones(&self.server)?;
        let entries: Vec<_> = clones.iter().map(|clone| self.entry(clone)).collect();
        Ok(Box::new(entries.into_iter()))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }

    fn clones_of(&self) -> Option<&ServerName> {
        Some(&self.server)
    }
}

impl Directory for CloneRoot {
    fn lookup(&self, _name: &[u8]) -> Result<Option<Child>> {
        Ok(None)
    }

    fn entries(&self) -> Result<Children> {
        Ok(Box::new(std::iter::empty()))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }

    fn clone_root(&self) -> Option<&CloneRoot> {
        Some(self)
    }
}

/// The files that a clone has in addition to its backup's tree.
#[derive(Debug, Default)]
pub(crate) struct CloneAdditions {
    /// Stored files: WAL.
    pub(crate) grafts: Vec<ExtraFile>,
    /// Files and directories that the view generates.
    pub(crate) made: Vec<AddedEntry>,
}

/// The source of a clone: a view of a backup that can be started.
#[derive(Debug)]
pub(crate) struct CloneSource {
    tree: Arc<BackupTree>,
}

impl CloneSource {
    /// The directories in which a backup may have entries that a clone must not have.
    pub(crate) const LOOKED_AT: &'static [&'static [u8]] = &[b"", b"pg_tblspc"];

    /// The source for the newest backup, for `backup=ID`, or for a target of `pitr/`. `None` if the backup does not
    /// exist or the target cannot be reached.
    pub(crate) fn find(
        context: &Arc<Context>,
        server: &ServerName,
        target: Option<&str>,
    ) -> Result<Option<Self>> {
        let of = |backup: &Arc<Backup>| context.tree(backup, Style::Startable, "live");
        let backup = target.and_then(|target| target.strip_prefix(OF_BACKUP));
        let tree = match (backup, target) {
            (Some(id), _) => {
                let id = id.parse::<BackupId>().map_err(|_| Error::Refused(Errno::INVAL))?;
                let snapshot = context.snapshot()?;
                let state = snapshot.server(server.as_str());
                let found = state.and_then(|state| state.backups.iter().find(|backup| backup.id == id));
                found.map(of)
            }
            (None, Some(target)) => context.targets.tree(context, server, target)?,
            (None, None) => {
                let snapshot = context.snapshot()?;
                let latest = snapshot
                    .server(server.as_str())
                    .and_then(|server| server.latest());
                latest.map(of)
            }
        };
        Ok(tree.map(|tree| Self { tree }))
    }

    pub(crate) fn backup(&self) -> &Backup {
        &self.tree.backup
    }

    /// The target in its canonical form; `None` for the backup's own end.
    pub(crate) fn target(&self) -> Option<String> {
        let recovery: Option<&Recovery> = self.tree.style.recovery();
        recovery.map(|recovery| recovery.plan.spec.to_string())
    }

    pub(crate) fn described(&self) -> String {
        match self.target() {
            Some(target) => format!("backup {}, to be recovered to {target}", self.tree.backup.id),
            None => format!("backup {}", self.tree.backup.id),
        }
    }

    /// The files that the view has and the backup does not have.
    pub(crate) fn additions(&self) -> Result<CloneAdditions> {
        let root = TreeDirectory::root(&self.tree);
        let configuration = configuration::files_of_a_clone(&root)?;
        let mut all = CloneAdditions::default();
        for (path, attributes, body) in changes::additions(&self.tree)? {
            let thing = match body {
                Some(Body::Stored(map)) => {
                    all.grafts.push(ExtraFile {
                        path: String::from_utf8_lossy(&path).into_owned(),
                        attributes,
                        map: (*map).clone(),
                    });
                    continue;
                }
                None => AddedContent::Directory,
                Some(_) if configuration.iter().any(|file| file.path == path) => continue,
                Some(Body::Made(bytes)) => AddedContent::File(bytes.to_vec()),
                Some(Body::Spooled(file, _)) => AddedContent::CopyOf(file),
                Some(edited @ Body::Edited(_)) => AddedContent::CopyOf(self.plain(&edited)?),
            };
            all.made.push(AddedEntry {
                path,
                attributes,
                thing,
            });
        }
        // Those at the top are among the additions already.
        let directories = configuration::added_directories(&root, &configuration)?;
        let below = directories.into_iter().filter(|path| path.contains(&b'/'));
        all.made.extend(below.map(|path| AddedEntry {
            path,
            attributes: self.tree.attributes(true),
            thing: AddedContent::Directory,
        }));
        all.made.extend(configuration.into_iter().map(|file| AddedEntry {
            path: file.path,
            attributes: file.attributes,
            thing: AddedContent::File(file.text),
        }));
        Ok(all)
    }

    /// The same bytes in a plain file.
    fn plain(&self, body: &Body) -> Result<Arc<File>> {
        let context = &self.tree.context;
        let failed = |source| Error::io("write", "(a file without a name)", source);
        let file = generated::nameless_file(context).map_err(failed)?;
        let mut buffer = vec![0; COPIED_BYTES];
        let mut at = 0;
        loop {
            let count = body.read_at(&context.trees, at, &mut buffer)?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return Ok(Arc::new(file));
            };
            file.write_all_at(bytes, at).map_err(failed)?;
            at += count as u64;
        }
    }

    /// Whether a clone lacks this entry of the backup. The manifest is one: a clone is not a backup, and soon differs
    /// from every backup.
    pub(crate) fn hides(path: &[u8], entry: &Entry) -> bool {
        match &entry.node {
            Node::Symlink(target) => path.starts_with(b"pg_tblspc/") || leads_out(target),
            _ => path == MANIFEST || (!path.contains(&b'/') && changes::is_of_the_running_server(path)),
        }
    }
}
