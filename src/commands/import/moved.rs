//! `import --move`: what is here and whole is deleted from the source.

use barmanfs_catalog::{BackupStatus, Repository, ServerName, VerifyScope};

use crate::error::Error;
use crate::import::{ForeignBackup, LeftOut, Source};
use crate::progress::Shown;
use crate::report::import::Import;

/// Reads each of these backups here, chunk by chunk, and deletes those from the source that are complete. All of them stay in the
/// source for which that cannot be said.
pub(super) fn delete(
    (repository, server): (&Repository, &ServerName),
    source: &mut dyn Source,
    backups: &[ForeignBackup],
    report: &mut Import,
    is_quiet: bool,
) -> Result<(), Error> {
    for backup in backups {
        let Some(here) = backup.identity().find(repository, server)? else {
            continue;
        };
        let stays = |why: String| LeftOut::problem(&backup.name, format!("it stays in the source: {why}"));
        let kept = if here.status == BackupStatus::Done {
            let scope = VerifyScope::Backup(server.clone(), here.id);
            let verified = repository.verify(&scope, &mut Shown::start("Verify", is_quiet))?;
            match verified.is_clean() {
                true => source.delete(backup).err().map(|error| stays(error.to_string())),
                false => {
                    repository.note_damage(&verified)?;
                    Some(stays(format!("backup {} is damaged here", here.id)))
                }
            }
        } else {
            Some(stays(format!("backup {} is {} here", here.id, here.status)))
        };
        match kept {
            Some(left_out) => report.left_out.push(left_out.into()),
            None => report.deleted(&backup.name),
        }
    }
    Ok(())
}
