//! The configuration files of a startable view: the server's own, without what leads to the original, or made ones where
//! the data directory that was backed up has none.

use std::sync::Arc;

use barmanfs_pg::control::{ControlFile, RequiredSettings};
use barmanfs_store::{Attributes, Entry, Node};

use super::super::tree::TreeDirectory;
use super::super::{Body, changes};
use super::{append_block, block_of_a_clone, minimal};
use crate::error::{Error, Result};

/// Written by ALTER SYSTEM, read last; `pg_verifybackup` does not look at it.
pub(in crate::views) const AUTO_CONF: &str = "postgresql.auto.conf";

/// The server's configuration.
const CONF: &str = "postgresql.conf";

const HBA: &str = "pg_hba.conf";

/// Larger than this a configuration file is something else.
const MAX_BYTES: u64 = 4 << 20;

/// They name files by paths: the original's own, from wherever the copy is started. `data_directory` has the copy's server
/// work on the original's data, with the original's `postgresql.auto.conf`. No other value would do, paths being
/// relative to where the server is started from. Files that these include are not looked into: what is passed to a
/// server that barmanfs starts holds against them, too.
const WAYS_OUT: [&str; 4] = ["data_directory", "hba_file", "ident_file", "external_pid_file"];

/// Ends the `postgresql.auto.conf` of a clone.
const ALSO_IN_CONF: &[u8] = b"\n# ---- barmanfs: a clone ----\n\
    # Its postgresql.conf ends with such a block, too: remove both.\n";

/// Begins a line that was taken out.
const TAKEN_OUT: &[u8] = b"# Of the original (barmanfs): ";

/// A configuration file the view shows and the backup has not, or not so.
#[derive(Debug)]
pub(in crate::views) struct ConfigurationFile {
    pub(in crate::views) name: &'static str,
    pub(in crate::views) attributes: Attributes,
    pub(in crate::views) text: Vec<u8>,
}

/// All there are in the root of a startable view.
pub(in crate::views) fn files(root: &TreeDirectory) -> Result<Vec<ConfigurationFile>> {
    let tree = &root.tree;
    let made = |name, attributes: Option<Attributes>, text: Vec<u8>| ConfigurationFile {
        name,
        attributes: attributes.unwrap_or_else(|| tree.attributes(false)),
        text,
    };
    let (attributes, text) = stored(root, AUTO_CONF)?.unzip();
    let (mut text, mut taken_out) = confined(&text.unwrap_or_default());
    let mount_point = &tree.context.options.mount_point;
    append_block(&mut text, &tree.backup, tree.style.recovery(), mount_point);
    let mut files = vec![made(AUTO_CONF, attributes, text)];
    match conf(root)? {
        Some((attributes, text)) => {
            let (text, more) = confined(&text);
            if !more.is_empty() {
                files.push(made(CONF, Some(attributes), text));
            }
            taken_out.extend(more);
        }
        None if root.stored(CONF.as_bytes())?.is_none() => {
            let text = minimal::postgresql_conf(required_settings(root)?);
            files.push(made(CONF, None, text.into()));
        }
        None => {}
    }
    // One beside another that counts is initdb's, and may trust everybody.
    if taken_out.contains(&"hba_file") || root.stored(HBA.as_bytes())?.is_none() {
        files.push(made(HBA, None, minimal::PG_HBA_CONF.into()));
    }
    Ok(files)
}

/// All that a clone of the view begins with. What keeps it to itself ends its `postgresql.conf` as well: ALTER SYSTEM RESET
/// ALL empties the other file.
pub(in crate::views) fn files_of_a_clone(root: &TreeDirectory) -> Result<Vec<ConfigurationFile>> {
    let mut files = files(root)?;
    if !files.iter().any(|file| file.name == CONF)
        && let Some((attributes, text)) = conf(root)?
    {
        files.push(ConfigurationFile {
            name: CONF,
            attributes,
            text,
        });
    }
    let block = block_of_a_clone(&root.tree.backup);
    for file in &mut files {
        match file.name {
            AUTO_CONF => file.text.extend_from_slice(ALSO_IN_CONF),
            // A backup of a clone has it.
            CONF if !file.text.ends_with(&block) => file.text.extend_from_slice(&block),
            _ => {}
        }
    }
    Ok(files)
}

/// The stored `postgresql.conf`. None as well where it cannot be read: whoever opens it is told, and all else is shown.
fn conf(root: &TreeDirectory) -> Result<Option<(Attributes, Vec<u8>)>> {
    match stored(root, CONF) {
        Err(Error::Store(_)) => Ok(None),
        read => read,
    }
}

/// What the server ran with. None where `pg_control` cannot be used: PostgreSQL says best what is wrong with it.
fn required_settings(root: &TreeDirectory) -> Result<Option<RequiredSettings>> {
    let trees = &root.tree.context.trees;
    let Some(Node::Directory(global)) = root.stored(b"global")?.map(|entry| entry.node) else {
        return Ok(None);
    };
    let Some(Node::File(map)) = trees.lookup(&global, b"pg_control")?.map(|entry| entry.node) else {
        return Ok(None);
    };
    let bytes = match Body::Stored(Arc::new(map)).read_all(trees, MAX_BYTES) {
        Err(Error::Store(_)) => None,
        read => read?,
    };
    let control = bytes.and_then(|bytes| ControlFile::parse(&bytes).ok());
    Ok(control.map(|control| control.required_settings))
}

fn stored(root: &TreeDirectory, name: &str) -> Result<Option<(Attributes, Vec<u8>)>> {
    let Some(Entry {
        attributes,
        node: Node::File(map),
        ..
    }) = root.stored(name.as_bytes())?
    else {
        return Ok(None);
    };
    let text = Body::Stored(Arc::new(map)).read_all(&root.tree.context.trees, MAX_BYTES)?;
    let text =
        text.ok_or_else(|| changes::not_shown(&root.tree, format!("its {name} is too large to be one")))?;
    Ok(Some((attributes, text)))
}

/// The text with what leads out made comments, and the names of these settings.
fn confined(text: &[u8]) -> (Vec<u8>, Vec<&'static str>) {
    let (mut confined, mut taken_out) = (Vec::with_capacity(text.len()), Vec::new());
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let set = set_in(line);
        let way_out = WAYS_OUT
            .iter()
            .find(|name| set.eq_ignore_ascii_case(name.as_bytes()));
        if let Some(name) = way_out {
            taken_out.push(*name);
            confined.extend_from_slice(TAKEN_OUT);
        }
        confined.extend_from_slice(line);
    }
    (confined, taken_out)
}

/// The name of the setting a line begins with (`ID` of `src/backend/utils/misc/guc-file.l`).
fn set_in(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii_start();
    let end = line
        .iter()
        .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_' && *byte != b'$')
        .unwrap_or(line.len());
    &line[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_known_however_it_is_written() {
        for line in [
            "data_directory='/srv'",
            "\t Data_Directory = '/srv'\n",
            "data_directory '/srv'\r\n",
            "data_directory'/srv'",
            "data_directory",
        ] {
            let (text, taken_out) = confined(line.as_bytes());
            assert_eq!(taken_out, ["data_directory"], "{line}");
            assert_eq!(text, [TAKEN_OUT, line.as_bytes()].concat());
        }
        for line in [
            "#data_directory = '/srv'\n",
            "data_directory_mode = 0700\n",
            "my.data_directory = 1\n",
            "search_path = 'data_directory'\n",
            "\n",
            "",
            "\u{e9}data_directory = 1",
        ] {
            assert_eq!(confined(line.as_bytes()), (line.into(), Vec::new()), "{line}");
        }
    }
}
