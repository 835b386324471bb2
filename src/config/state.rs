//! What barmanfs itself writes down about the configuration, in the directory `config` of the repository: the file of
//! `config-update`, and the active model of each server. An administrator's files are never edited. FORMAT.md describes
//! these files.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use barmanfs_catalog::ServerName;
use barmanfs_store::open_regular;

use super::ini::Section;

/// The directory in the repository.
const DIRECTORY: &str = "config";

/// The name of the file of `config-update`.
pub(crate) const AUTOMATIC: &str = "auto.conf";

/// No file of a configuration is longer.
const MAX_BYTES: u64 = 16 << 20;

/// The path of a file.
pub(super) fn file(repository: &Path, name: &str) -> PathBuf {
    repository.join(DIRECTORY).join(name)
}

/// The name of the file with a server's active model.
pub(crate) fn model_file(server: &ServerName) -> String {
    format!("model-{server}")
}

/// The first line of the file of `config-update`.
const HEAD: &str = "# Written by 'barmanfs config-update', and read after all other files.";

/// What follows [`HEAD`] and is before the names of the sections. Earlier releases have written neither these nor [`END`].
const SECTIONS: &str = " Sections: ";

/// The last line. Without it, something is missing.
const END: &str = "# End\n";

/// What is missing in the file of `config-update`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Something of each of these sections, or nothing if there are none.
    Of(BTreeSet<String>),
    /// It is not known of which sections.
    All,
}

/// What is missing in these bytes, which have these sections.
pub(super) fn missing(bytes: &[u8], sections: &[Section]) -> Missing {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, _)) = text.split_once('\n') else {
        return Missing::All;
    };
    let names = match head.strip_prefix(HEAD).map(|rest| rest.strip_prefix(SECTIONS)) {
        Some(Some(names)) => names,
        Some(None) => return Missing::Of(BTreeSet::new()),
        None => return Missing::All,
    };
    let is_cut = !text.ends_with(END);
    let is_there = |name: &&str| sections.iter().any(|section| section.name() == Some(name));
    let names = names.split_ascii_whitespace();
    Missing::Of(
        names
            .filter(|name| is_cut || !is_there(name))
            .map(str::to_owned)
            .collect(),
    )
}

/// The text of the file of `config-update`.
pub(super) fn framed<'a>(sections: impl Iterator<Item = &'a String>, text: &str) -> String {
    let names: Vec<&str> = sections.map(String::as_str).collect();
    format!("{HEAD}{SECTIONS}{}\n{text}\n{END}", names.join(" "))
}

/// The name of the active model of a server; `None` if there is none.
pub(super) fn active_model(repository: &Path, server: &ServerName) -> io::Result<Option<String>> {
    let Some(bytes) = read(&file(repository, &model_file(server)))? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes);
    let name = text.strip_suffix('\n').unwrap_or_default().trim();
    match name.is_empty() {
        true => Err(io::Error::other("the file is not as it was written")),
        false => Ok(Some(name.to_owned())),
    }
}

/// Reads a file; `None` if it does not exist, or if this user may not look into the directory: that is reported when the
/// repository is opened.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match open_regular(path) {
        Ok(file) => bytes(file).map(Some),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            io::ErrorKind::PermissionDenied if path.symlink_metadata().is_err() => Ok(None),
            _ => Err(error),
        },
    }
}

/// The bytes of a file of a configuration.
///
/// # Errors
/// When it cannot be read, or is too long to be one.
pub(super) fn bytes(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    match u64::try_from(length).is_ok_and(|length| length <= MAX_BYTES) {
        true => Ok(bytes),
        false => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it has more than 16 MiB",
        )),
    }
}
