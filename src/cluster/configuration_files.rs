//! Where the server keeps its configuration files. On Debian that is outside its data directory.

use std::path::Path;

use barmanfs_pg::conf::{AccessReference, ConfLine, location};

use crate::error::Error;
use crate::postgres::Connection;

/// What a role needs to read such files through SQL.
pub(crate) const GRANTS: &str = "GRANT pg_read_server_files to the role, and EXECUTE ON FUNCTION \
    pg_read_binary_file(text, bigint, bigint, boolean), pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean)";

/// SQLSTATE `insufficient_privilege`.
const NOT_PERMITTED: &str = "42501";

/// The absolute paths of a server's configuration files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigurationPaths {
    pub(crate) data_directory: String,
    /// `postgresql.conf`.
    pub(crate) config_file: String,
    /// `pg_hba.conf`.
    pub(crate) hba_file: String,
    /// `pg_ident.conf`.
    pub(crate) ident_file: String,
}

impl ConfigurationPaths {
    /// Asks the server; `None` if the role may not see them. That takes `pg_read_all_settings`.
    ///
    /// Call this before creating a temporary slot: PostgreSQL drops the slot when a command fails.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) fn ask(connection: &mut Connection) -> Result<Option<Self>, Error> {
        let mut values = Vec::new();
        for setting in ["data_directory", "config_file", "hba_file", "ident_file"] {
            match connection.show(setting) {
                Ok(value) => values.push(value),
                Err(error) if error.sqlstate() == Some(NOT_PERMITTED) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        let [data_directory, config_file, hba_file, ident_file] = values
            .try_into()
            .map_err(|_| Error::failed("The server did not tell where its configuration files are"))?;
        Ok(Some(Self {
            data_directory,
            config_file,
            hba_file,
            ident_file,
        }))
    }

    /// The files, each with whether it has settings and not rules of access.
    pub(crate) fn files(&self) -> [(&str, bool); 3] {
        [
            (&self.config_file, true),
            (&self.hba_file, false),
            (&self.ident_file, false),
        ]
    }

    /// The path of a file relative to the data directory; `None` if it is outside.
    pub(crate) fn in_data_directory<'a>(&self, path: &'a str) -> Option<&'a str> {
        Path::new(path).strip_prefix(&self.data_directory).ok()?.to_str()
    }

    /// Those outside the data directory.
    pub(crate) fn outside(&self) -> Vec<&str> {
        let files = self.files().into_iter().map(|(path, _)| path);
        files
            .filter(|path| self.in_data_directory(path).is_none())
            .collect()
    }
}

/// The files that `postgresql.conf` or a file it includes names.
pub(crate) fn settings_references(text: &[u8]) -> Vec<AccessReference> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let references = lines.filter_map(|line| match ConfLine::parse(line) {
        ConfLine::Setting { name, value } => match &*name {
            "include" => Some(AccessReference::File(value)),
            "include_if_exists" => Some(AccessReference::FileIfExists(value)),
            "include_dir" => Some(AccessReference::Directory(value)),
            _ => None,
        },
        ConfLine::Blank | ConfLine::Malformed => None,
    });
    references.collect()
}

/// The absolute form of a path that is written in the file `named_in`.
pub(crate) fn absolute(named: &[u8], named_in: &str) -> Option<String> {
    let (named, parent) = match named.strip_prefix(b"/") {
        Some(named) => (named, ""),
        None => (named, named_in.strip_prefix('/')?),
    };
    let path = location(named, parent.as_bytes())?;
    Some(format!("/{}", String::from_utf8(path).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_relative_to_the_file_that_names_it() {
        let main = "/etc/postgresql/15/main/postgresql.conf";
        let of = |named: &str| absolute(named.as_bytes(), main);
        assert_eq!(of("conf.d").as_deref(), Some("/etc/postgresql/15/main/conf.d"));
        assert_eq!(
            of("../common.conf").as_deref(),
            Some("/etc/postgresql/15/common.conf")
        );
        assert_eq!(of("/srv//a/../b.conf").as_deref(), Some("/srv/b.conf"));
    }

    #[test]
    fn all_directives_are_followed() {
        let text = b"include 'a'\nInclude_Dir='d' # x\n#include 'no'\nport = 1\ninclude_if_exists = b\n";
        assert_eq!(
            settings_references(text),
            [
                AccessReference::File(b"a".to_vec()),
                AccessReference::Directory(b"d".to_vec()),
                AccessReference::FileIfExists(b"b".to_vec()),
            ]
        );
    }
}
