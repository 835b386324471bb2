//! WAL that has been received but not archived yet. `.barmanfs/receiving/<server>/<segment>` shows it under the
//! segment's full name, as a copy may [`replay`] it. `wal/<segment>.partial` shows it unchanged.
//!
//! The file has its full length from the start, with zeros in the part that was not received yet. A file that is opened
//! for replay keeps the content of that moment; readers of the other file see it grow. Neither is cached. The owner is
//! that of the archive, since WAL contains the data of tables.

use std::io;
use std::sync::Arc;

use barmanfs_catalog::{PartialSegment, ServerName};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_store::{Attributes, open_regular};

use super::context::{self, Context};
use super::snapshot::ServerState;
use super::{generated, replay, wal};
use crate::entry::{Body, Child, Children, Directory, Lifetime};
use crate::error::{Error, NOT_FOUND, Result};

/// `.barmanfs/receiving/<server>`.
#[derive(Debug)]
pub(super) struct Receiving {
    context: Arc<Context>,
    server: ServerName,
}

impl Receiving {
    /// The entry of a server.
    pub(super) fn child(context: &Arc<Context>, server: &ServerState) -> Child {
        let receiving = Self {
            context: Arc::clone(context),
            server: server.name.clone(),
        };
        let owner = wal::owner(context, Some(server));
        generated::directory(context, server.name.as_str(), &owner, Arc::new(receiving))
    }

    fn file(&self, owner: &Attributes, segment: &PartialSegment) -> Child {
        child(&self.context, owner, segment, segment.name.to_string())
    }
}

impl Directory for Receiving {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Some(name) = segment_name(name) else {
            return Ok(None);
        };
        let segment = find(&self.context, &self.server, name)?;
        let owner = wal::owner_of(&self.context, &self.server)?;
        Ok(segment.map(|segment| self.file(&owner, &segment)))
    }

    fn entries(&self) -> Result<Children> {
        let owner = wal::owner_of(&self.context, &self.server)?;
        let segments = self.context.repository.receiving(&self.server)?;
        let files: Vec<_> = segments
            .iter()
            .map(|segment| Ok(self.file(&owner, segment)))
            .collect();
        Ok(Box::new(files.into_iter()))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        let name = segment_name(name).ok_or(NOT_FOUND)?;
        copied(&self.context, &self.server, name)
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }
}

fn segment_name(name: &[u8]) -> Option<SegmentName> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// The segment of this name, if it is being received and not archived.
pub(super) fn find(
    context: &Context,
    server: &ServerName,
    name: SegmentName,
) -> Result<Option<PartialSegment>> {
    let segments = context.repository.receiving(server)?;
    Ok(segments.into_iter().find(|segment| segment.name == name))
}

/// The entry `name` for this segment.
pub(super) fn child(context: &Context, owner: &Attributes, segment: &PartialSegment, name: String) -> Child {
    let (mtime_s, mtime_ns) = context::seconds(segment.modified);
    let attributes = Attributes {
        mtime_s,
        mtime_ns,
        ..wal::of_a_file(owner)
    };
    generated::file(context, name, &attributes, segment.size_bytes, Lifetime::Never)
}

/// The segment's content, as it grows.
pub(super) fn open(context: &Context, server: &ServerName, name: SegmentName) -> Result<Body> {
    let segment = find(context, server, name)?.ok_or(NOT_FOUND)?;
    match open_regular(&segment.path) {
        Ok(file) => Ok(Body::Spooled(Arc::new(file), segment.size_bytes)),
        // Since the look-up it was archived, or it was completed and renamed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NOT_FOUND),
        Err(source) => Err(Error::io("open", segment.path, source)),
    }
}

/// The segment's present content, for replay. The copy does not grow.
pub(super) fn copied(context: &Context, server: &ServerName, name: SegmentName) -> Result<Body> {
    let Body::Spooled(from, size_bytes) = open(context, server, name)? else {
        return Err(NOT_FOUND);
    };
    let failed = |source| Error::io("copy", format!("(what has been received of {name})"), source);
    let mut copy = generated::nameless_file(context).map_err(failed)?;
    io::copy(&mut &*from, &mut copy).map_err(failed)?;
    replay::confine_received(context, server, name, &copy, size_bytes)?;
    Ok(Body::Spooled(Arc::new(copy), size_bytes))
}
