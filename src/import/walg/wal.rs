//! The archived WAL of a storage: history files first, then by name.

use std::fs;
use std::path::Path;

use barmanfs_foreign::walg::{WalFile, is_temporary};
use barmanfs_pg::wal_name::WalName;

use super::content;
use crate::error::Error;
use crate::import::directory::cannot_read;
use crate::import::gpg::Passphrase;
use crate::import::{ForeignWal, LeftOut};

/// Lists the files. What WAL-G keeps beside them is passed over.
///
/// # Errors
/// When the directory cannot be listed.
pub(super) fn files(
    directory: &Path,
    passphrase: Option<&Passphrase>,
) -> Result<impl Iterator<Item = Result<ForeignWal, LeftOut>> + 'static, Error> {
    let unreadable = |error| cannot_read(directory, &error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let name = entry
            .map_err(unreadable)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let parsed = name.parse::<WalFile>();
        if is_temporary(&name) || parsed == Ok(WalFile::Note) {
            continue;
        }
        let is_history = matches!(
            parsed,
            Ok(WalFile::Archived {
                name: WalName::History(_),
                ..
            })
        );
        names.push((!is_history, name));
    }
    names.sort_unstable();
    let (directory, passphrase) = (directory.to_owned(), passphrase.cloned());
    Ok(names.into_iter().map(move |(_, file)| {
        let place = directory.join(&file);
        let described = place.display().to_string();
        match file.parse() {
            Ok(WalFile::Archived { name, compression }) => {
                let passphrase = passphrase.clone();
                Ok(ForeignWal {
                    name,
                    place: described,
                    arriving: None,
                    open: Box::new(move || content::open(&place, compression, passphrase.as_ref())),
                })
            }
            Ok(WalFile::Note) => Err(LeftOut::expected(described, "it is no WAL")),
            Err(error) => Err(LeftOut::problem(described, error.to_string())),
        }
    }))
}
