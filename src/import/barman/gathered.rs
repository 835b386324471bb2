//! What is noticed while the files of a backup are stored, and what is added at its end: Barman leaves out of a copy what a
//! server makes by itself, and puts configuration files from outside the data directory into it.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use barmanfs_catalog::Tablespace;
use barmanfs_foreign::barman::backup_info::BackupInfo;
use barmanfs_store::Attributes;

use crate::backup::files::LABEL;
use crate::error::Error;
use crate::import::{Arrived, ForeignConfiguration, Intake, Manifest};
use crate::output::printable;

/// More than all configuration files together have: they are in memory until the end.
const CONFIGURATION_BYTES: u64 = 16 << 20;

/// Directories without which no server starts, and whose content a copy may lack.
const DIRECTORIES: [&[u8]; 13] = [
    b"pg_commit_ts",
    b"pg_dynshmem",
    b"pg_logical",
    b"pg_notify",
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat",
    b"pg_stat_tmp",
    b"pg_subtrans",
    b"pg_tblspc",
    b"pg_twophase",
    b"pg_wal",
];

/// Permissions of the label, as those of other files in a data directory.
const LABEL_MODE: u32 = 0o600;

/// The files of a backup, while they are stored.
#[derive(Debug)]
pub(super) struct Gathered<'a> {
    info: &'a BackupInfo,
    /// The names in the data directory itself.
    names: BTreeSet<Vec<u8>>,
    configuration: ForeignConfiguration,
    configuration_bytes: u64,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(info: &'a BackupInfo) -> Self {
        Self {
            info,
            names: BTreeSet::new(),
            configuration: ForeignConfiguration {
                data_directory: info.data_directory.clone().unwrap_or_default(),
                ..ForeignConfiguration::default()
            },
            configuration_bytes: 0,
        }
    }

    /// Notes that the backup has something at this path.
    pub(super) fn note(&mut self, path: &[u8]) {
        if !path.contains(&b'/') {
            self.names.insert(path.to_vec());
        }
    }

    /// Where on the server this file was, if it is a configuration file from outside the data directory.
    pub(super) fn outside(&self, path: &[u8]) -> Option<&'a str> {
        // What PostgreSQL sends has only what is in the data directory.
        if self.info.mode.as_deref() == Some("postgres") {
            return None;
        }
        let data = Path::new(self.info.data_directory.as_deref()?);
        let files = [&self.info.config_file, &self.info.hba_file, &self.info.ident_file];
        files.into_iter().flatten().map(String::as_str).find(|file| {
            let file = Path::new(file);
            let is_it = file
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes() == path);
            is_it && file.is_absolute() && file.parent().is_some_and(|parent| !parent.starts_with(data))
        })
    }

    /// Keeps a configuration file that was `outside`.
    pub(super) fn configuration_file(
        &mut self,
        outside: &str,
        attributes: Attributes,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let left = CONFIGURATION_BYTES.saturating_sub(self.configuration_bytes);
        content.take(left + 1).read_to_end(&mut bytes).map_err(|error| {
            Error::failed(format!(
                "{}: it cannot be read: {error}",
                printable(outside.as_bytes())
            ))
        })?;
        self.configuration_bytes += bytes.len() as u64;
        if self.configuration_bytes > CONFIGURATION_BYTES {
            return Err(Error::failed(format!(
                "its configuration files have more than {CONFIGURATION_BYTES} bytes"
            )));
        }
        let kept = &mut self.configuration;
        for (named, slot) in [
            (&self.info.config_file, &mut kept.config_file),
            (&self.info.hba_file, &mut kept.hba_file),
            (&self.info.ident_file, &mut kept.ident_file),
        ] {
            if named.as_deref() == Some(outside) {
                *slot = Some(outside.to_owned());
            }
        }
        kept.files.push((outside.to_owned(), attributes, bytes));
        Ok(())
    }

    /// Adds what the copy lacks.
    pub(super) fn finish(
        self,
        intake: &mut Intake<'_>,
        root: Attributes,
        manifest: Manifest,
    ) -> Result<Arrived, Error> {
        for name in DIRECTORIES {
            if !self.names.contains(name) {
                intake.directory(name, root)?;
            }
        }
        if let (Some(label), false) = (&self.info.backup_label, self.names.contains(LABEL)) {
            let attributes = Attributes {
                mode: LABEL_MODE,
                ..root
            };
            intake.file(LABEL, attributes, label.len() as u64, &mut label.as_bytes())?;
        }
        Ok(self.arrived(root, manifest))
    }

    /// The same of a backup that lacks nothing.
    pub(super) fn arrived(self, root: Attributes, manifest: Manifest) -> Arrived {
        let has_configuration = !self.configuration.files.is_empty();
        Arrived {
            root,
            tablespaces: tablespaces(self.info),
            manifest,
            configuration: has_configuration.then_some(self.configuration),
        }
    }
}

/// The tablespaces, as they are recorded here.
fn tablespaces(info: &BackupInfo) -> Vec<Tablespace> {
    let listed = info.tablespaces.iter();
    let tablespaces = listed.map(|tablespace| Tablespace {
        oid: tablespace.oid,
        name: Some(tablespace.name.clone()),
        location: tablespace.location.clone(),
    });
    tablespaces.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(mode: &str, hba_file: &str) -> BackupInfo {
        let mut text = String::new();
        for key in [
            "begin_time",
            "begin_wal",
            "begin_xlog",
            "end_time",
            "end_wal",
            "end_xlog",
            "tablespaces",
            "timeline",
            "version",
        ] {
            text += &format!("{key}=None\n");
        }
        text += &format!("status=DONE\npgdata=/srv/data\nmode={mode}\nhba_file={hba_file}\n");
        BackupInfo::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn only_files_from_outside_are_kept_apart() {
        let outside = info("rsync-concurrent", "/etc/pg/pg_hba.conf");
        let gathered = Gathered::new(&outside);
        assert_eq!(gathered.outside(b"pg_hba.conf"), Some("/etc/pg/pg_hba.conf"));
        assert_eq!(gathered.outside(b"postgresql.conf"), None);
        assert_eq!(gathered.outside(b"base/pg_hba.conf"), None);
        for (mode, file) in [
            ("postgres", "/etc/pg/pg_hba.conf"),
            ("rsync-concurrent", "/srv/data/pg_hba.conf"),
            ("rsync-concurrent", "/srv/data/conf/pg_hba.conf"),
            ("rsync-concurrent", "pg_hba.conf"),
        ] {
            let info = info(mode, file);
            assert_eq!(
                Gathered::new(&info).outside(b"pg_hba.conf"),
                None,
                "{mode} {file}"
            );
        }
    }

    #[test]
    fn configuration_files_have_a_limit_together() {
        let info = info("rsync-concurrent", "/etc/pg/pg_hba.conf");
        let mut gathered = Gathered::new(&info);
        let attributes = Attributes {
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
        };
        let half = CONFIGURATION_BYTES / 2;
        for is_taken in [true, true, false] {
            let taken = gathered.configuration_file(
                "/etc/pg/pg_hba.conf",
                attributes,
                &mut std::io::repeat(b'#').take(half),
            );
            assert_eq!(taken.is_ok(), is_taken);
        }
        assert_eq!(
            gathered.configuration.hba_file.as_deref(),
            Some("/etc/pg/pg_hba.conf")
        );
    }
}
