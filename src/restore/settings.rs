//! Settings of a restored tree that a person should look at before the server takes over: they name files and programs of
//! the original's host, or its archive and its primary. They are reported, and not changed. The block that every copy has
//! at the end of `postgresql.auto.conf` overrides most of them until it is removed.

use std::collections::BTreeSet;

use barmanfs_fs::entry::Content;
use barmanfs_fs::views::{BLOCK_BEGIN, BLOCK_END};
use barmanfs_pg::conf::{self, ConfLine};
use serde::Serialize;

use super::view::ViewTree;
use crate::error::Error;
use crate::output::printable;

const CONF: &str = "postgresql.conf";
const AUTO_CONF: &str = "postgresql.auto.conf";

/// A configuration is written by hand.
const MAX_BYTES: u64 = 4 << 20;

/// PostgreSQL's own limit of nested files (`CONF_FILE_MAX_DEPTH` in `src/include/utils/conffiles.h`).
const MAX_DEPTH: usize = 10;

/// More files are not read: nobody would read the report.
const MAX_FILES: usize = 1000;

/// Settings whose values are paths, and are shown.
const PATHS: [&str; 15] = [
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "unix_socket_directory",
    "unix_socket_directories",
    "archive_library",
    "archive_mode",
    "primary_slot_name",
];

/// Settings whose values may have a password in them.
const COMMANDS: [&str; 6] = [
    "archive_command",
    "archive_cleanup_command",
    "restore_command",
    "recovery_end_command",
    "primary_conninfo",
    "ssl_passphrase_command",
];

const INCLUDES: [&str; 3] = ["include", "include_dir", "include_if_exists"];

/// One line of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NotableSetting {
    /// The file's path below the data directory.
    pub(crate) file: String,
    /// Number of the line, from 1.
    pub(crate) line: usize,
    /// The setting's name in lower case.
    pub(crate) name: String,
    /// Its value, where that is no secret.
    pub(crate) value: Option<String>,
    /// Whether the block of the copy overrides it.
    pub(crate) overridden: bool,
}

/// All such lines, in the order in which PostgreSQL reads them.
pub(crate) fn notable(view: &ViewTree) -> Result<Vec<NotableSetting>, Error> {
    let mut reading = Reading {
        view,
        seen: BTreeSet::new(),
        found: Vec::new(),
        block: BTreeSet::new(),
    };
    reading.file(CONF.as_bytes(), 0)?;
    reading.file(AUTO_CONF.as_bytes(), 0)?;
    let Reading { mut found, block, .. } = reading;
    for setting in &mut found {
        setting.overridden = block.contains(&setting.name);
    }
    Ok(found)
}

struct Reading<'a> {
    view: &'a ViewTree,
    seen: BTreeSet<Vec<u8>>,
    found: Vec<NotableSetting>,
    /// The names that the block sets.
    block: BTreeSet<String>,
}

impl Reading<'_> {
    fn file(&mut self, path: &[u8], depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || self.seen.len() >= MAX_FILES || !self.seen.insert(path.to_vec()) {
            return Ok(());
        }
        let Some(text) = self.view.read_small(path, MAX_BYTES)? else {
            return Ok(());
        };
        let mut is_block = false;
        for (line, number) in text.split(|&byte| byte == b'\n').zip(1..) {
            if line == BLOCK_BEGIN.trim().as_bytes() {
                is_block = true;
            } else if line == BLOCK_END.trim().as_bytes() {
                is_block = false;
            }
            let ConfLine::Setting { name, value } = ConfLine::parse(line) else {
                continue;
            };
            if is_block {
                self.block.insert(name);
                continue;
            }
            self.setting(path, number, &name, &value);
            self.included(path, &name, &value, depth)?;
        }
        Ok(())
    }

    fn setting(&mut self, path: &[u8], line: usize, name: &str, value: &[u8]) {
        let shown = PATHS.contains(&name) || INCLUDES.contains(&name);
        if shown || COMMANDS.contains(&name) {
            self.found.push(NotableSetting {
                file: printable(path),
                line,
                name: name.to_owned(),
                value: shown.then(|| printable(value)),
                overridden: false,
            });
        }
    }

    fn included(&mut self, path: &[u8], name: &str, value: &[u8], depth: usize) -> Result<(), Error> {
        if !INCLUDES.contains(&name) {
            return Ok(());
        }
        // Outside of the data directory nothing was backed up.
        let Some(place) = conf::location(value, path) else {
            return Ok(());
        };
        if name != "include_dir" {
            return self.file(&place, depth + 1);
        }
        for file in self.names_in(&place)? {
            self.file(&[place.as_slice(), b"/", &file].concat(), depth + 1)?;
        }
        Ok(())
    }

    /// The files that `include_dir` takes, in PostgreSQL's order.
    fn names_in(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut place = std::sync::Arc::clone(&self.view.root);
        for name in directory.split(|&byte| byte == b'/') {
            match place.lookup(name)?.map(|child| child.content) {
                Some(Content::Directory(below)) => place = below,
                _ => return Ok(Vec::new()),
            }
        }
        let mut names = Vec::new();
        for child in place.entries()? {
            let child = child?;
            if matches!(child.content, Content::File) && conf::is_taken_by_include_dir(&child.name) {
                names.push(child.name);
            }
            if names.len() > MAX_FILES {
                break;
            }
        }
        names.sort();
        Ok(names)
    }
}
