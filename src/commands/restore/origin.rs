//! What Barman does by itself, and `restore` only where it is asked for: the configuration as it was, Barman's description of the
//! backup, and the original's timeline.

use barmanfs_catalog::recovery::Plan;
use barmanfs_catalog::{Backup, Repository};
use barmanfs_store::Node;

use crate::error::Error;
use crate::export;

/// The files that a copy has changed.
const CHANGED: [&str; 2] = ["postgresql.conf", "postgresql.auto.conf"];

/// Barman's ending.
const ORIGIN: &str = ".origin";

/// Barman's name for the description of the backup.
const RECOVER_INFO: &str = ".barman-recover.info";

/// No configuration is longer.
const MAX_BYTES: u64 = 16 << 20;

/// The configuration as it is in the backup, under other names.
pub(super) fn files(repository: &Repository, backup: &Backup) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let Some(root) = &backup.root else {
        return Ok(Vec::new());
    };
    let trees = repository.trees();
    let mut files = Vec::new();
    for name in CHANGED {
        let Some(entry) = trees.lookup(&root.directory, name.as_bytes())? else {
            continue;
        };
        // On Debian it is elsewhere, or a link to there.
        let Node::File(map) = entry.node else { continue };
        if map.size_bytes > MAX_BYTES {
            return Err(Error::failed(format!(
                "{name} of backup {} is too large to keep",
                backup.id
            )));
        }
        let mut text = vec![0; usize::try_from(map.size_bytes).unwrap_or(0)];
        let count = trees.read_at(&map, 0, &mut text)?;
        text.truncate(count);
        files.push((format!("{name}{ORIGIN}"), text));
    }
    Ok(files)
}

/// The description of the backup that Barman leaves in a restored directory.
pub(super) fn barmans_description(
    repository: &Repository,
    backup: &Backup,
) -> Result<(String, Vec<u8>), Error> {
    let text = export::barmans_description(repository, backup)?;
    Ok((RECOVER_INFO.to_owned(), text.into_bytes()))
}

/// Refuses a way along several timelines, and warns: without a recovery, PostgreSQL never leaves the one of the backup.
pub(super) fn note_timeline(plan: &mut Plan) -> Result<(), Error> {
    let timeline = plan.backup.timeline;
    if timeline != Some(plan.timeline) {
        return Err(Error::failed(format!(
            "The newest WAL is of timeline {}, and backup {} of another one: with --same-timeline PostgreSQL does not get there",
            plan.timeline, plan.backup.id
        ))
        .hint("Add --target-tli with the timeline of the backup, or leave --same-timeline out"));
    }
    plan.notes.push(format!(
        "The copy comes up on timeline {}, as the original does: what both write has the same names and other content. \
         Never let it archive where the original does",
        plan.timeline
    ));
    Ok(())
}
