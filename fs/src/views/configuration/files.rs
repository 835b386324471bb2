//! The configuration files of a startable view: the server's own without what leads to the original, or generated ones
//! if the backed-up data directory has none. [`confinement`] decides what has to differ.

use std::collections::BTreeSet;
use std::sync::Arc;

use barmanfs_pg::pg_control::ControlFile;
use barmanfs_store::{Attributes, Node};

use super::super::changes;
use super::super::confinement::{self, Confined, Override, Source, Stored, TAKEN_OUT, TreeSource, Values};
use super::super::tree::TreeDirectory;
use super::{append_block, barman_layout, block_of_a_clone, minimal, of_the_recovery, without_block};
use crate::entry::Body;
use crate::error::{Error, Result};

/// Written by ALTER SYSTEM and read last. `pg_verifybackup` ignores it.
pub(in crate::views) const AUTO_CONF: &str = "postgresql.auto.conf";

/// The server's configuration.
const CONF: &str = "postgresql.conf";

const HBA: &str = "pg_hba.conf";

const IDENT: &str = "pg_ident.conf";

/// `pg_control` is smaller.
const MAX_CONTROL_BYTES: u64 = 1 << 20;

/// Ends the `postgresql.auto.conf` of a clone.
const ALSO_IN_CONF: &[u8] = b"\n# ---- barmanfs: a clone ----\n\
    # Its postgresql.conf ends with such a block, too: remove both.\n";

/// A configuration file of a view that the backup does not have, or has with other content.
#[derive(Debug)]
pub(in crate::views) struct ConfigurationFile {
    /// Its path in the data directory.
    pub(in crate::views) path: Vec<u8>,
    pub(in crate::views) attributes: Attributes,
    pub(in crate::views) text: Vec<u8>,
}

/// The sources of a view's files.
struct Parts {
    confined: Confined,
    /// Whether `postgresql.conf` is generated because the backup has none.
    is_conf_made: bool,
    control: Option<ControlFile>,
}

impl Parts {
    fn overrides(&self, root: &TreeDirectory, values: &Values) -> Result<Vec<Override>> {
        let major = root.tree.backup.server_version.major();
        confinement::overrides(&TreeSource(root), values, self.control.as_ref(), major)
    }
}

/// All configuration files of a startable view.
pub(in crate::views) fn files(root: &TreeDirectory) -> Result<Vec<ConfigurationFile>> {
    let parts = parts(root, false)?;
    let mut files = changed(&parts);
    if root.tree.barman_layout().is_some() {
        mark(&parts, &mut files);
    }
    auto_conf(root, &parts, &mut files)?;
    access(root, &parts.confined, &mut files)?;
    Ok(files)
}

/// Marks lines of `postgresql.conf` as Barman does.
fn mark(parts: &Parts, files: &mut Vec<ConfigurationFile>) {
    let Some(conf) = parts.confined.file(CONF.as_bytes()) else {
        return;
    };
    files.retain(|file| file.path != CONF.as_bytes());
    files.push(ConfigurationFile {
        path: CONF.into(),
        attributes: conf.attributes,
        text: barman_layout::marked(&conf.text),
    });
}

/// All configuration files that a clone starts with. Its confinement is in `postgresql.conf` too, because ALTER SYSTEM
/// RESET ALL empties the other file.
pub(in crate::views) fn files_of_a_clone(root: &TreeDirectory) -> Result<Vec<ConfigurationFile>> {
    let parts = parts(root, true)?;
    let mut files = changed(&parts);
    let values = parts.confined.values(&[CONF.as_bytes()]);
    let overrides = parts.overrides(root, &values)?;
    if let Some(conf) = parts.confined.file(CONF.as_bytes()) {
        files.retain(|file| file.path != CONF.as_bytes());
        files.push(ConfigurationFile {
            path: CONF.into(),
            attributes: conf.attributes,
            text: [&*conf.text, &*block_of_a_clone(&root.tree.backup, &overrides)].concat(),
        });
    }
    auto_conf(root, &parts, &mut files)?;
    if let Some(file) = files.iter_mut().find(|file| file.path == AUTO_CONF.as_bytes()) {
        file.text.extend_from_slice(ALSO_IN_CONF);
    }
    access(root, &parts.confined, &mut files)?;
    Ok(files)
}

/// A backup of a clone has that block already.
fn parts(root: &TreeDirectory, of_a_clone: bool) -> Result<Parts> {
    let tree = &root.tree;
    let source = TreeSource(root);
    let control = control(root)?;
    let (mut conf, mut is_conf_made) = (text(root, CONF)?, false);
    match &mut conf {
        Stored::Text(_, text) if of_a_clone => without_block(text),
        Stored::Absent => {
            let text = minimal::postgresql_conf(control.map(|control| control.required_settings));
            let text = text + &room_for_unknown_settings(root, control.as_ref())?;
            conf = Stored::Text(tree.attributes(false), text.into());
            is_conf_made = true;
        }
        _ => {}
    }
    let auto = match text(root, AUTO_CONF)? {
        Stored::Absent => Stored::Text(tree.attributes(false), Vec::new()),
        Stored::Damaged => return Err(changes::not_shown(tree, format!("its {AUTO_CONF} is damaged"))),
        stored => stored,
    };
    let confined = confinement::confine(&source, [(CONF.as_bytes(), conf), (AUTO_CONF.as_bytes(), auto)])?;
    let confined = confined.ok_or_else(|| {
        changes::not_shown(tree, format!("its {CONF} includes more files than anybody needs"))
    })?;
    Ok(Parts {
        confined,
        is_conf_made,
        control,
    })
}

/// Lines for a generated `postgresql.conf`, where PostgreSQL's defaults are too small. The number of replication
/// origins is always set: the WAL may need as many as the server's setting allowed, which is unknown.
fn room_for_unknown_settings(root: &TreeDirectory, control: Option<&ControlFile>) -> Result<String> {
    let major = root.tree.backup.server_version.major();
    let max_connections = control.map(|control| control.required_settings.max_connections);
    let mut values = Values::from([(confinement::origins_setting(major).to_owned(), b"0".to_vec())]);
    values.extend(max_connections.map(|max| ("max_connections".to_owned(), max.to_string().into_bytes())));
    let room = confinement::room(&TreeSource(root), &values, control, major)?;
    let lines = room
        .iter()
        .map(|Override { name, value, .. }| format!("{name} = {value}\n"));
    Ok(lines.collect())
}

/// A file at the top. PostgreSQL creates no link to another file, and links are not followed.
fn text(root: &TreeDirectory, name: &str) -> Result<Stored> {
    Ok(match TreeSource(root).read(name.as_bytes())? {
        Stored::Unusable(_, why) if !root.is_link(name.as_bytes())? => {
            return Err(changes::not_shown(&root.tree, format!("of its {name}, {why}")));
        }
        Stored::Unusable(..) => Stored::Absent,
        stored => stored,
    })
}

/// The changed files from which PostgreSQL reads its settings, except the last one.
fn changed(parts: &Parts) -> Vec<ConfigurationFile> {
    let is_shown = |(path, is_changed): (&[u8], bool)| {
        path != AUTO_CONF.as_bytes() && (is_changed || parts.is_conf_made && path == CONF.as_bytes())
    };
    let files = parts.confined.files();
    let files = files.filter(|(path, file)| is_shown((path.as_slice(), file.is_changed)));
    files
        .map(|(path, file)| ConfigurationFile {
            path: path.clone(),
            attributes: file.attributes,
            text: file.text.clone(),
        })
        .collect()
}

/// The file that is read last, with the block that overrides the others.
fn auto_conf(root: &TreeDirectory, parts: &Parts, files: &mut Vec<ConfigurationFile>) -> Result<()> {
    let tree = &root.tree;
    let values = parts.confined.values(&[CONF.as_bytes(), AUTO_CONF.as_bytes()]);
    let mut overrides = parts.overrides(root, &values)?;
    let copy = tree.context.options.copy.as_ref();
    overrides.extend(
        copy.and_then(|copy| copy.socket_directory.clone())
            .map(|value| Override {
                name: "unix_socket_directories",
                value,
                why: "Tools of the system look for the socket under its absolute path",
            }),
    );
    let Some(stored) = parts.confined.file(AUTO_CONF.as_bytes()) else {
        return Ok(());
    };
    let mut text = match tree.barman_layout() {
        Some(_) => barman_layout::marked(&stored.text),
        None => stored.text.clone(),
    };
    let options = &tree.context.options;
    let recovery_file = options
        .copy
        .as_ref()
        .and_then(|copy| copy.recovery_file.as_deref());
    append_block(
        &mut text,
        &tree.backup,
        tree.style.recovery(),
        &overrides,
        (&options.mount_point, recovery_file),
    );
    files.extend(recovery_file.map(|name| ConfigurationFile {
        path: name.into(),
        attributes: tree.attributes(false),
        text: of_the_recovery(&tree.backup, tree.style.recovery()).into_bytes(),
    }));
    files.push(ConfigurationFile {
        path: AUTO_CONF.into(),
        attributes: stored.attributes,
        text,
    });
    Ok(())
}

/// The access rules. If another file is in effect, the file here is initdb's and may trust everybody. An incomplete
/// file may lack rules that reject users.
fn access(root: &TreeDirectory, confined: &Confined, files: &mut Vec<ConfigurationFile>) -> Result<()> {
    let source = TreeSource(root);
    for (name, setting, made) in [
        (HBA, "hba_file", minimal::PG_HBA_CONF),
        (IDENT, "ident_file", minimal::PG_IDENT_CONF),
    ] {
        let is_another = confined.taken_out.contains(setting);
        let mut file = ConfigurationFile {
            path: name.into(),
            attributes: root.tree.attributes(false),
            text: made.into(),
        };
        let is_from_outside = source.is_from_outside(name.as_bytes())?;
        if let Stored::Text(attributes, text) = source.read(name.as_bytes())?
            && (is_from_outside || !is_another)
        {
            if let Some(all) = confinement::access_files(&source, name.as_bytes())? {
                add_from_outside(&source, all, files)?;
                continue;
            }
            file.attributes = attributes;
            file.text
                .extend_from_slice(minimal::NAMES_FILES_OUTSIDE.as_bytes());
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                file.text.extend_from_slice(TAKEN_OUT);
                file.text.extend_from_slice(line);
            }
        } else if matches!(source.read(name.as_bytes())?, Stored::Damaged) && !is_another {
            continue;
        }
        files.push(file);
    }
    Ok(())
}

/// Adds those files that the data directory does not have.
fn add_from_outside(
    source: &TreeSource<'_>,
    paths: impl IntoIterator<Item = Vec<u8>>,
    files: &mut Vec<ConfigurationFile>,
) -> Result<()> {
    for path in paths {
        if files.iter().all(|file| file.path != path)
            && source.is_from_outside(&path)?
            && let Stored::Text(attributes, text) = source.read(&path)?
        {
            files.push(ConfigurationFile {
                path,
                attributes,
                text,
            });
        }
    }
    Ok(())
}

/// The directories of these files that the backup does not have, the outer ones first.
pub(in crate::views) fn added_directories(
    root: &TreeDirectory,
    files: &[ConfigurationFile],
) -> Result<BTreeSet<Vec<u8>>> {
    let mut added = BTreeSet::new();
    for file in files {
        for (end, _) in file.path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let Some(directory) = file.path.get(..end) else {
                continue;
            };
            let stored = root.tree.context.trees.find(&root.listing, directory)?;
            if !matches!(stored.map(|entry| entry.node), Some(Node::Directory(_))) {
                added.insert(directory.to_vec());
            }
        }
    }
    Ok(added)
}

/// The server's state. `None` if `pg_control` is unusable: PostgreSQL reports best what is wrong with it.
fn control(root: &TreeDirectory) -> Result<Option<ControlFile>> {
    let trees = &root.tree.context.trees;
    let Some(Node::Directory(global)) = root.stored(b"global")?.map(|entry| entry.node) else {
        return Ok(None);
    };
    let Some(Node::File(map)) = trees.lookup(&global, b"pg_control")?.map(|entry| entry.node) else {
        return Ok(None);
    };
    let bytes = match Body::Stored(Arc::new(map)).read_all(trees, MAX_CONTROL_BYTES) {
        Err(Error::Store(_)) => None,
        read => read?,
    };
    Ok(bytes.and_then(|bytes| ControlFile::parse(&bytes).ok()))
}
