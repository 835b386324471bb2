//! What barmanfs itself writes down about the configuration, in the directory `config` of the repository: the file of
//! `config-update`, and the active model of each server. An administrator's files are never edited. FORMAT.md describes
//! these files.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use barmanfs_catalog::ServerName;
use barmanfs_store::open_regular;

/// The directory in the repository.
const DIRECTORY: &str = "config";

/// The name of the file of `config-update`.
pub(crate) const AUTOMATIC: &str = "auto.conf";

/// No such file is longer: it would not have been written by barmanfs.
const MAX_BYTES: u64 = 16 << 20;

/// The path of a file.
pub(super) fn file(repository: &Path, name: &str) -> PathBuf {
    repository.join(DIRECTORY).join(name)
}

/// The name of the file with a server's active model.
pub(crate) fn model_file(server: &ServerName) -> String {
    format!("model-{server}")
}

/// The name of the active model of a server; `None` if there is none.
pub(super) fn active_model(repository: &Path, server: &ServerName) -> io::Result<Option<String>> {
    let bytes = read(&file(repository, &model_file(server)))?;
    let name = bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    Ok(name.filter(|name| !name.is_empty()))
}

/// Reads a file; `None` if it does not exist, or if this user may not read the repository: that is reported when the
/// repository is opened.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match open_regular(path) {
        Ok(file) => {
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}
