//! `barmanfs delete`.

use barmanfs_catalog::{Backup, BackupId};
use serde::Serialize;

use super::App;
use crate::cli::DeleteArgs;
use crate::error::{Error, Outcome};

#[derive(Debug, Serialize)]
struct Deleted {
    server: String,
    deleted: Vec<BackupId>,
}

/// Runs the command. All names are resolved first: a misspelt one deletes nothing.
pub(crate) fn run(app: &mut App, args: &DeleteArgs) -> Result<Outcome, Error> {
    let repository = app.repository_for_writing()?;
    let server = app.known_server(&repository, &args.server)?;
    let mut backups: Vec<Backup> = Vec::new();
    for name in &args.backups {
        let backup = app.backup(&repository, &server, name)?;
        if backups.iter().all(|known| known.id != backup.id) {
            backups.push(backup);
        }
    }
    for backup in &backups {
        repository.delete_backup(backup, args.force)?;
        if !args.json.json && !app.options.quiet {
            app.out
                .line(format_args!("Deleted backup {} of server {server}", backup.id))?;
        }
    }
    if args.json.json {
        let deleted = backups.iter().map(|backup| backup.id).collect();
        app.out.json(&Deleted {
            server: server.to_string(),
            deleted,
        })?;
    } else if !app.options.quiet {
        app.out
            .line("'barmanfs sweep' frees the space that nothing else uses")?;
    }
    Ok(Outcome::Done)
}
