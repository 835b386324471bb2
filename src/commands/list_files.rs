//! `barmanfs list-files`: paths relative to the server's directory on a mount, or those of the files in a mount.

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use barmanfs_catalog::{Backup, Repository, ServerName};
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::{DirectoryRef, Entry, Node, TreeReader};

use super::App;
use crate::cli::inspect::{FileTarget, ListFilesArgs};
use crate::error::{Error, Outcome};
use crate::output::{self, Output};
use crate::report::ListedFile;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ListFilesArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let backup = app.backup(&repository, &server, &args.which.backup)?;
    if let Some(why) = backup.files_elsewhere() {
        return Err(Error::failed(why));
    }
    let Some(root) = backup.root.as_ref().filter(|_| backup.is_complete()) else {
        return Err(Error::failed(format!(
            "Backup {} of server {server} is {} and has no files",
            backup.id, backup.status
        )));
    };
    let prefix = args
        .mount
        .as_deref()
        .map(|mount| prefix(mount, &server))
        .transpose()?;
    let tree = match prefix {
        Some(_) => format!("raw/{}/", backup.id),
        None => format!("{}/", backup.id),
    };
    let mut lister = Lister {
        out: &mut app.out,
        json: args.json.json,
        trees: repository.trees(),
        prefix: prefix.unwrap_or_default(),
        with_empty_directories: args.list_empty_directories,
    };
    if lister.json {
        lister.out.json_begin("files")?;
    }
    if args.target != FileTarget::Wal {
        lister.directory(&root.directory, tree.as_bytes())?;
    }
    match args.target {
        FileTarget::Data => {}
        FileTarget::Standalone => {
            for segment in backup.needed_wal() {
                lister.wal(&repository, &backup, &WalName::Segment(segment))?;
            }
        }
        FileTarget::Wal | FileTarget::Full => {
            for name in wal_from(&repository, &backup)? {
                lister.wal(&repository, &backup, &name?)?;
            }
        }
    }
    Ok(Outcome::Done)
}

struct Lister<'a> {
    out: &'a mut Output,
    json: bool,
    trees: TreeReader,
    /// What every path begins with.
    prefix: Vec<u8>,
    with_empty_directories: bool,
}

/// The path of the server's directory in a mount, with a slash at its end.
fn prefix(mount: &Path, server: &ServerName) -> Result<Vec<u8>, Error> {
    let directory = std::path::absolute(mount)
        .unwrap_or_else(|_| mount.to_owned())
        .join(server.as_str());
    if !directory.is_dir() {
        return Err(
            Error::usage(format!("{} shows no server {server}", mount.display()))
                .hint("Name the directory of a mount of this repository: 'barmanfs mount DIR' makes one"),
        );
    }
    let mut path = directory.into_os_string().into_vec();
    path.push(b'/');
    Ok(path)
}

impl Lister<'_> {
    /// Returns whether the directory is empty.
    fn directory(&mut self, directory: &DirectoryRef, path: &[u8]) -> Result<bool, Error> {
        let mut is_empty = true;
        for entry in self.trees.entries(directory) {
            is_empty = false;
            let Entry {
                name,
                attributes,
                node,
            } = entry?;
            let mut path = [path, &name].concat();
            let size_bytes = match node {
                Node::Directory(below) => {
                    path.push(b'/');
                    if !self.directory(&below, &path)? || !self.with_empty_directories {
                        continue;
                    }
                    0
                }
                Node::File(map) => map.size_bytes,
                Node::Symlink(target) => target.len() as u64,
            };
            let micros = attributes
                .mtime_s
                .saturating_mul(1_000_000)
                .saturating_add(i64::from(attributes.mtime_ns / 1000));
            self.line(&path, |path| ListedFile {
                path,
                size_bytes,
                mode: Some(format!("{:04o}", attributes.mode)),
                modified_at: Some(TimestampMicros::from_unix_micros(micros)),
                archived_at: None,
            })?;
        }
        Ok(is_empty)
    }

    fn wal(&mut self, repository: &Repository, backup: &Backup, name: &WalName) -> Result<(), Error> {
        // A segment that the backup is waiting for is not a file yet.
        let Some(entry) = repository.wal(backup.archive()).entry(name)? else {
            return Ok(());
        };
        self.line(format!("wal/{name}").as_bytes(), |path| ListedFile {
            path,
            size_bytes: entry.size_bytes,
            mode: None,
            modified_at: None,
            archived_at: Some(entry.archived_at),
        })
    }

    fn line(&mut self, path: &[u8], details: impl FnOnce(String) -> ListedFile) -> Result<(), Error> {
        let path = [&self.prefix, path].concat();
        if self.json {
            self.out
                .json_element(&details(String::from_utf8_lossy(&path).into_owned()))
        } else {
            // Escaped, so that every file is one line.
            self.out.line(output::printable(&path))
        }
    }
}

/// The archived files from the backup's first segment up to the next backup's, and all history files: the WAL
/// for recovering to places that the next backup cannot reach.
fn wal_from<'r>(
    repository: &'r Repository,
    backup: &Backup,
) -> Result<impl Iterator<Item = Result<WalName, Error>> + 'r, Error> {
    let first = first_segment(backup);
    let is_next = |other: &Backup| {
        other.is_complete()
            && other.is_of_server()
            && other.archive() == backup.archive()
            && other.id > backup.id
    };
    let next = repository.backups(&backup.server)?.into_iter().find(is_next);
    let end = next.as_ref().and_then(first_segment);
    let wanted = move |name: &WalName| match name.segment() {
        Some(segment) => {
            let key = segment.to_string();
            first.is_some_and(|first| key >= first.to_string()) && end.is_none_or(|end| key < end.to_string())
        }
        None => true,
    };
    let names = repository
        .wal(backup.archive())
        .entries()
        .map(|entry| Ok(entry?.name));
    Ok(names.filter(move |name: &Result<WalName, Error>| name.as_ref().map_or(true, &wanted)))
}

/// `None` if no archived WAL is replayed on the backup.
fn first_segment(backup: &Backup) -> Option<SegmentName> {
    if !backup.is_of_server() {
        return None;
    }
    Some(SegmentName::from_lsn(
        backup.timeline?,
        backup.start_lsn?,
        backup.segment_size,
    ))
}
