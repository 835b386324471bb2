//! Entries that a view generates.

use std::fs::File;
use std::io;
use std::sync::Arc;

use barmanfs_store::Attributes;

use super::context::Context;
use crate::entry::{Body, Child, Content, Directory, Lifetime};
use crate::error::{NOT_FOUND, Result};

/// A directory `name` of a view.
pub(super) fn directory(
    context: &Context,
    name: impl Into<Vec<u8>>,
    attributes: &Attributes,
    directory: Arc<dyn Directory>,
) -> Child {
    Child {
        name: name.into(),
        identity: 0,
        stat: context.stat(attributes, 0, 0),
        content: Content::Directory(directory),
        lifetime: Lifetime::UntilNotified,
        map: None,
    }
}

/// A regular file `name` of this size, without holes.
pub(super) fn file(
    context: &Context,
    name: impl Into<Vec<u8>>,
    attributes: &Attributes,
    size_bytes: u64,
    lifetime: Lifetime,
) -> Child {
    Child {
        name: name.into(),
        identity: 0,
        stat: context.stat(attributes, size_bytes, size_bytes),
        content: Content::File,
        lifetime,
        map: None,
    }
}

/// The content of a file in a directory that generates files from their names.
pub(super) fn body(name: &[u8], content: impl FnOnce(&str) -> Result<Option<Vec<u8>>>) -> Result<Body> {
    let name = std::str::from_utf8(name).map_err(|_| NOT_FOUND)?;
    content(name)?
        .map(|content| Body::Made(content.into()))
        .ok_or(NOT_FOUND)
}

/// A nameless file, in the repository's file system if possible.
pub(super) fn nameless_file(context: &Context) -> io::Result<File> {
    tempfile::tempfile_in(context.repository.path()).or_else(|_| tempfile::tempfile())
}

/// A number for [`Child::identity`], from what distinguishes two entries of one name.
pub(super) fn identity(of: &[u8]) -> u64 {
    let mut number = [0; 8];
    blake3::Hasher::new().update(of).finalize_xof().fill(&mut number);
    u64::from_le_bytes(number)
}
