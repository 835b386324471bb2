//! `barmanfs clone create --from`: a new clone with the content of another one.
//!
//! This process copies, not a mount: it may take a while, and no other process may have the copied clone meanwhile.

use std::time::SystemTime;

use barmanfs_catalog::{CloneDescription, CloneName, CloneOrigin, Repository, ServerName};
use barmanfs_fs::CloneLimits;
use barmanfs_live::copy_files;
use barmanfs_store::RecordId;

use super::create::too_many;
use crate::commands::App;
use crate::error::Error;
use crate::mounts::hold;
use crate::progress::{Counted, Progress};

/// Makes the clone.
pub(super) fn copy(
    app: &App,
    repository: &Repository,
    server: &ServerName,
    from: &CloneName,
    name: &CloneName,
) -> Result<(), Error> {
    let limits = app
        .config
        .server(server.as_str())
        .map_or_else(CloneLimits::default, |server| server.clone_limits);
    let clones = repository.clones(server)?.len();
    if clones >= limits.max_count {
        return Err(too_many(server, name, clones));
    }
    let lock = hold(repository, server, from, &format!("copying it to {name}"))?;
    let source = repository.clone_named(server, from)?;
    let seed = source.seed();
    let description = CloneDescription {
        id: RecordId::random()?,
        seed: Some(seed),
        name: name.clone(),
        origin: CloneOrigin {
            copied_from: Some(from.clone()),
            ..source.origin
        },
        created_at: SystemTime::now().into(),
        max_bytes: None,
        ..source
    };
    let draft = repository.begin_copy(description, &lock)?;
    let shown = format!("Copying clone {from} of server {server}");
    let progress = Progress::start(shown, Counted::Time, app.options.quiet);
    let acting = repository.as_owner()?;
    copy_files(&repository.clone_directory(server, from), draft.directory())?;
    drop((acting, progress));
    draft.finish()?;
    Ok(())
}
