//! Decides who may write into a repository.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Uid, User};

use crate::error::Error;

/// Refuses to write as root into the repository at `path` if it belongs to another user. Root can write everywhere, but
/// leaves files that the archiving user cannot write.
pub(crate) fn refuse_foreign_root(path: &Path) -> Result<(), Error> {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Ok(());
    };
    if !Uid::effective().is_root() || metadata.uid() == 0 {
        return Ok(());
    }
    let owner = Uid::from_raw(metadata.uid());
    let owner = User::from_uid(owner)
        .ok()
        .flatten()
        .map_or_else(|| owner.to_string(), |user| user.name);
    Err(Error::failed(format!(
        "The repository {} belongs to {owner}: root would leave files in it that {owner} cannot write",
        path.display()
    ))
    .hint(format!("Run this as {owner}: sudo -u {owner} barmanfs ...")))
}
