//! WAL as a copy may replay it: what it creates stays in the copy. The views decide what that is, so this reads the files
//! of `.barmanfs/replay` and `.barmanfs/receiving` as a mount would show them.

use std::io::{self, Read};

use barmanfs_fs::entry::{Body, Content};
use barmanfs_fs::views::{Context, ViewOptions, root};
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::TreeReader;

use super::Source;
use crate::error::Error;

/// A file's content from front to back.
#[derive(Debug)]
struct Replayed {
    trees: TreeReader,
    body: Body,
    offset: u64,
}

/// The content of a file: archived, or received so far where that counts. `None` if it is neither.
pub(super) fn open(source: &Source<'_>, name: &WalName) -> Result<Option<Box<dyn Read>>, Error> {
    if let Some(archived) = archived(source, name)? {
        return Ok(Some(archived));
    }
    let received = match is_received(source, name)? {
        true => shown(source, "receiving", name)?,
        false => None,
    };
    match received {
        Some(received) => Ok(Some(Box::new(received))),
        // It may have been archived since the first look.
        None => archived(source, name),
    }
}

fn archived(source: &Source<'_>, name: &WalName) -> Result<Option<Box<dyn Read>>, Error> {
    if source.archive.find(name)?.is_none() {
        return Ok(None);
    }
    match shown(source, "replay", name)? {
        Some(content) => Ok(Some(Box::new(content))),
        // Its bytes as they were archived could lead replay out of the copy.
        None => Err(Error::failed(format!(
            "The archive of server {} shows no {name} to a copy",
            source.server
        ))),
    }
}

fn is_received(source: &Source<'_>, name: &WalName) -> Result<bool, Error> {
    let WalName::Segment(segment) = name else {
        return Ok(false);
    };
    let spool = source.repository.receiving(source.server)?;
    let wanted = |complete: bool| complete || source.partial;
    Ok(spool
        .iter()
        .any(|found| found.name == *segment && wanted(found.complete)))
}

/// A file in one of the directories of a mount for programs.
fn shown(source: &Source<'_>, directory: &str, name: &WalName) -> Result<Option<Replayed>, Error> {
    let options = ViewOptions {
        servers: Some(vec![source.server.clone()]),
        ..ViewOptions::default()
    };
    let context = Context::new(source.repository.clone(), options);
    let mut content = root(&context).content;
    for name in [".barmanfs", directory, source.server.as_str()] {
        let Content::Directory(directory) = &content else {
            return Ok(None);
        };
        match directory.lookup(name.as_bytes())? {
            Some(child) => content = child.content,
            None => return Ok(None),
        }
    }
    let Content::Directory(files) = content else {
        return Ok(None);
    };
    let name = name.to_string();
    if files.lookup(name.as_bytes())?.is_none() {
        return Ok(None);
    }
    Ok(Some(Replayed {
        trees: context.trees().clone(),
        body: files.open(name.as_bytes())?,
        offset: 0,
    }))
}

impl Read for Replayed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.body.read_at(&self.trees, self.offset, buffer);
        let count = read.map_err(io::Error::other)?;
        self.offset += count as u64;
        Ok(count)
    }
}
