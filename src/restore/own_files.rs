//! The files of a standby that stay when it is caught up: its configuration and its logs. A standby has a port, a slot,
//! addresses and access rules of its own, which are not those of the server that was backed up.
//!
//! They are: `postgresql.conf`, `postgresql.auto.conf`, `pg_hba.conf`, `pg_ident.conf` and `pg_hosts.conf`, what they
//! include or name in the directory (with certificates and keys), and the directory of the logs. None of them is opened for
//! writing. Only `postgresql.auto.conf` is replaced, with one `rename`, when everything else has been written.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use barmanfs_fs::entry::Stat;
use barmanfs_fs::views::{BLOCK_BEGIN, BLOCK_END, RECOVERY_TARGETS};
use barmanfs_pg::conf::{
    AccessReference, ConfLine, access_references, is_taken_by_include_dir, location, quoted,
};

use serde::{Deserialize, Serialize};

use super::place::{Place, dress, failed};
use crate::error::Error;
use crate::instance::AUTO_CONF;
use crate::postgres::Conninfo;

/// The files that PostgreSQL reads by their names.
const SETTINGS: [&str; 2] = ["postgresql.conf", AUTO_CONF];
const ACCESS: [&str; 3] = ["pg_hba.conf", "pg_ident.conf", "pg_hosts.conf"];

/// Files and directories that it uses where no setting names others.
const DEFAULTS: [&str; 3] = ["server.crt", "server.key", "log"];

/// Settings that name a file or a directory, which is not read here.
const NAMING: [&str; 8] = [
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
    "log_directory",
];

/// Settings that name a file with access rules.
const NAMING_ACCESS: [&str; 3] = ["hba_file", "ident_file", "hosts_file"];

/// More is not written by a person.
const MAX_BYTES: u64 = 4 << 20;
const MAX_FILES: usize = 1000;

/// Begins the block in `postgresql.auto.conf`, so that the next run replaces it. That of a restore stays.
const ABOUT: &str = "# Of 'barmanfs catchup'. It counts over the lines above and other files.\n";

/// The name of the new `postgresql.auto.conf` until it is complete.
const NEW_AUTO_CONF: &[u8] = b".barmanfs-postgresql.auto.conf";

/// What the directory's `postgresql.auto.conf` is given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StandbySettings {
    pub(crate) restore_command: String,
    /// May have a password in it.
    pub(crate) primary_conninfo: Option<String>,
    /// Replay makes tablespaces in the data directory.
    pub(crate) in_place_tablespaces: bool,
}

/// The files of one directory that stay, and the `postgresql.auto.conf` it gets.
#[derive(Clone)]
pub(crate) struct OwnFiles {
    /// Paths below the directory; that of a directory covers all that is in it.
    paths: BTreeSet<Vec<u8>>,
    /// The new content of `postgresql.auto.conf`.
    auto_conf: Vec<u8>,
    /// How it connects to its primary, by its files. May have a password in it.
    pub(crate) primary_conninfo: Option<String>,
}

impl std::fmt::Debug for OwnFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnFiles").finish_non_exhaustive()
    }
}

impl OwnFiles {
    /// Finds those of a directory.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub(crate) fn of(data: &Path, settings: &StandbySettings) -> Result<Self, Error> {
        let mut search = Search {
            data,
            paths: BTreeSet::new(),
            waiting: Vec::new(),
            primary_conninfo: None,
        };
        for name in SETTINGS {
            search.find(name.as_bytes(), Kind::Settings)?;
        }
        for name in ACCESS {
            search.find(name.as_bytes(), Kind::Access)?;
        }
        for name in DEFAULTS {
            search.find(name.as_bytes(), Kind::Named)?;
        }
        if let Some(conninfo) = &settings.primary_conninfo {
            search.connection(conninfo)?;
        }
        while let Some((path, kind)) = search.waiting.pop() {
            search.read(&path, kind)?;
        }
        let auto_conf = read(&data.join(AUTO_CONF))?.unwrap_or_default();
        search.paths.insert(AUTO_CONF.into());
        Ok(Self {
            paths: search.paths,
            auto_conf: with_block(&auto_conf, settings),
            primary_conninfo: search.primary_conninfo,
        })
    }

    /// Their paths.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.paths.iter().map(Vec::as_slice)
    }

    /// Whether the entry at this path stays, with all that is in it.
    pub(super) fn covers(&self, path: &[u8]) -> bool {
        let above = |at: usize| {
            path.get(at) == Some(&b'/') && path.get(..at).is_some_and(|path| self.paths.contains(path))
        };
        self.paths.contains(path) || (0..path.len()).any(above)
    }

    /// Whether something below this path stays.
    pub(super) fn is_above_some(&self, path: &[u8]) -> bool {
        let below = [path, b"/"].concat();
        self.paths
            .range(below.clone()..)
            .next()
            .is_some_and(|first| first.starts_with(&below))
    }

    /// Gives `postgresql.auto.conf` its new content.
    pub(super) fn write(&self, root: &Place, like: &Stat) -> Result<(), Error> {
        root.unlink(NEW_AUTO_CONF)?;
        let fail = |error| root.failed("write", NEW_AUTO_CONF, error);
        let mut file = root.make_file(NEW_AUTO_CONF)?;
        file.write_all(&self.auto_conf).map_err(fail)?;
        let stat = Stat { mode: 0o600, ..*like };
        dress(&file, &stat).map_err(|error| fail(error.into()))?;
        file.sync_all().map_err(fail)?;
        root.rename(NEW_AUTO_CONF, AUTO_CONF.as_bytes())?;
        root.sync()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Settings,
    Access,
    /// It is not read.
    Named,
}

struct Search<'a> {
    data: &'a Path,
    paths: BTreeSet<Vec<u8>>,
    waiting: Vec<(Vec<u8>, Kind)>,
    primary_conninfo: Option<String>,
}

impl Search<'_> {
    /// Adds the entry at a path, if there is one. What is behind a symbolic link stays in any case.
    fn find(&mut self, path: &[u8], kind: Kind) -> Result<(), Error> {
        if path.is_empty() || is_of_the_database(path) {
            return Ok(());
        }
        if self.paths.len() >= MAX_FILES {
            return Err(Error::failed(format!(
                "{} has more than {MAX_FILES} configuration files",
                self.data.display()
            )));
        }
        let mut names = path.split(|byte| *byte == b'/');
        let mut own: Vec<u8> = Vec::new();
        for name in names.by_ref() {
            if !own.is_empty() {
                own.push(b'/');
            }
            own.extend_from_slice(name);
            let at = self.at(&own);
            match std::fs::symlink_metadata(&at) {
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(failed("look at", &at, error)),
                Ok(found) if found.is_symlink() => break,
                Ok(_) => {}
            }
        }
        let is_new = self.paths.insert(own);
        if is_new && kind != Kind::Named {
            self.waiting.push((path.to_vec(), kind));
        }
        Ok(())
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        self.data.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Where a path leads that the file `named_in` has; `None` if that is not in the directory.
    fn location(&self, named: &[u8], named_in: &[u8]) -> Option<Vec<u8>> {
        if named.first() != Some(&b'/') {
            return location(named, named_in);
        }
        let below = Path::new(std::ffi::OsStr::from_bytes(named))
            .strip_prefix(self.data)
            .ok()?;
        location(below.as_os_str().as_bytes(), b"")
    }

    fn read(&mut self, path: &[u8], kind: Kind) -> Result<(), Error> {
        let Some(text) = read(&self.at(path))? else {
            return Ok(());
        };
        if kind == Kind::Access {
            for reference in access_references(&text) {
                self.referenced(&reference, path, kind)?;
            }
            return Ok(());
        }
        for line in text.split(|byte| *byte == b'\n') {
            let ConfLine::Setting { name, value } = ConfLine::parse(line) else {
                continue;
            };
            match &*name {
                "include" => self.referenced(&AccessReference::File(value), path, kind)?,
                "include_if_exists" => self.referenced(&AccessReference::FileIfExists(value), path, kind)?,
                "include_dir" => self.referenced(&AccessReference::Directory(value), path, kind)?,
                "primary_conninfo" => {
                    let value = String::from_utf8_lossy(&value).into_owned();
                    self.connection(&value)?;
                    // Which of several files counts, is for PostgreSQL to say: it is a primary in any case.
                    if !value.is_empty() {
                        self.primary_conninfo = Some(value);
                    }
                }
                name => self.setting(name, &value)?,
            }
        }
        Ok(())
    }

    /// Keys, certificates and the password file of a connection.
    fn connection(&mut self, conninfo: &str) -> Result<(), Error> {
        for file in Conninfo::files_of(conninfo) {
            if let Some(place) = self.location(file.as_bytes(), b"") {
                self.find(&place, Kind::Named)?;
            }
        }
        Ok(())
    }

    /// A path in a setting is relative to the data directory.
    fn setting(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        let kind = match name {
            name if NAMING.contains(&name) => Kind::Named,
            name if NAMING_ACCESS.contains(&name) => Kind::Access,
            _ => return Ok(()),
        };
        match self.location(value, b"") {
            Some(place) => self.find(&place, kind),
            None => Ok(()),
        }
    }

    fn referenced(&mut self, reference: &AccessReference, named_in: &[u8], kind: Kind) -> Result<(), Error> {
        match reference {
            AccessReference::File(named) | AccessReference::FileIfExists(named) => {
                if let Some(place) = self.location(named, named_in) {
                    self.find(&place, kind)?;
                }
            }
            AccessReference::Directory(named) => {
                let Some(directory) = self.location(named, named_in) else {
                    return Ok(());
                };
                let at = self.at(&directory);
                let entries = match std::fs::read_dir(&at) {
                    Err(error) if is_absent(&error) => return Ok(()),
                    entries => entries.map_err(|error| failed("list", &at, error))?,
                };
                for entry in entries {
                    let name = entry.map_err(|error| failed("list", &at, error))?.file_name();
                    if is_taken_by_include_dir(name.as_bytes()) {
                        let place = [directory.as_slice(), name.as_bytes()].join(&b'/');
                        self.find(place.strip_prefix(b"/").unwrap_or(&place), kind)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether the path is one that PostgreSQL keeps its data at, whatever a setting says.
fn is_of_the_database(path: &[u8]) -> bool {
    let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
    match first {
        b"base" | b"global" | b"PG_VERSION" | b"backup_label" | b"tablespace_map" | b"backup_manifest" => {
            true
        }
        name if name.ends_with(b".signal") => true,
        name => name.starts_with(b"pg_") && !name.ends_with(b".conf") && name != b"pg_log",
    }
}

/// The content of a file; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path, error)),
        Ok(_) if bytes.len() as u64 > MAX_BYTES => Err(Error::failed(format!(
            "{} is larger than a configuration file can be here ({} MiB)",
            path.display(),
            MAX_BYTES >> 20
        ))),
        Ok(_) => Ok(Some(bytes)),
    }
}

/// The text with the block at its end, and without that of an earlier run.
fn with_block(text: &[u8], settings: &StandbySettings) -> Vec<u8> {
    let begin = [BLOCK_BEGIN.trim_start(), ABOUT].concat();
    let mut text = without(text, begin.as_bytes(), BLOCK_END.as_bytes());
    if text.last().is_some_and(|byte| *byte != b'\n') {
        text.push(b'\n');
    }
    let mut block = begin;
    let mut add = |name: &str, value: &str| block.push_str(&format!("{name} = {}\n", quoted(value)));
    add("restore_command", &settings.restore_command);
    // An earlier recovery may have left a target. A standby has none.
    RECOVERY_TARGETS.iter().for_each(|name| add(name, ""));
    add("recovery_target_timeline", "latest");
    if let Some(conninfo) = &settings.primary_conninfo {
        add("primary_conninfo", conninfo);
    }
    if settings.in_place_tablespaces {
        add("allow_in_place_tablespaces", "on");
    }
    text.extend_from_slice(block.as_bytes());
    text.extend_from_slice(BLOCK_END.as_bytes());
    text
}

/// The text without each part from `begin` to `end`.
fn without(text: &[u8], begin: &[u8], end: &[u8]) -> Vec<u8> {
    let find = |text: &[u8], part: &[u8]| text.windows(part.len()).position(|window| window == part);
    let mut left = text.to_vec();
    while let Some(from) = find(&left, begin) {
        let Some(length) = left.get(from..).and_then(|rest| find(rest, end)) else {
            break;
        };
        left.drain(from..from + length + end.len());
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(primary: Option<&str>) -> StandbySettings {
        StandbySettings {
            restore_command: "get it's %f".to_owned(),
            primary_conninfo: primary.map(str::to_owned),
            in_place_tablespaces: false,
        }
    }

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn what_the_configuration_names_in_the_directory_stays() {
        let directory = directory(&[
            (
                "postgresql.conf",
                "include 'conf.d/../extra'\nprimary_conninfo = 'host=db1 passfile=secret/pass sslkey=/etc/key'\ninclude_dir = 'conf.d'\nssl_ca_file = 'ca/root.crt'\nlog_directory = mylog\n",
            ),
            (
                "extra",
                "hba_file = 'rules/hba'\ninclude_if_exists 'none'\ninclude 'base/1/1'\ninclude '/etc/hostname'\n",
            ),
            (
                "conf.d/a.conf",
                "include '../deep/b'\nprimary_conninfo = 'host=db1'\n",
            ),
            ("conf.d/README", ""),
            ("deep/b", "include 'c'\n"),
            ("deep/c", "include '../postgresql.conf'\n"),
            ("ca/root.crt", ""),
            ("rules/hba", "local all @users trust\n"),
            ("rules/users", ""),
            ("mylog/postgresql.log", ""),
            ("server.key", ""),
            ("base/1/1", ""),
            ("secret/pass", ""),
            ("stranger", ""),
        ]);
        let own = OwnFiles::of(directory.path(), &settings(None)).unwrap();
        let paths: Vec<_> = own
            .paths()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        let expected = [
            "ca/root.crt",
            "conf.d/a.conf",
            "deep/b",
            "deep/c",
            "extra",
            "mylog",
            "postgresql.auto.conf",
            "postgresql.conf",
            "rules/hba",
            "rules/users",
            "secret/pass",
            "server.key",
        ];
        assert_eq!(paths, expected);
        assert!(own.primary_conninfo.is_some());
        assert!(own.covers(b"mylog/postgresql.log") && own.covers(b"extra") && !own.covers(b"extra2"));
        assert!(!own.covers(b"conf.d") && own.is_above_some(b"conf.d") && own.is_above_some(b"deep"));
        assert!(!own.is_above_some(b"dee") && !own.is_above_some(b"base") && !own.covers(b"stranger"));
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_read() {
        let outside = directory(&[("my.conf", "include 'more.conf'\n")]);
        let directory = directory(&[("more.conf", "")]);
        let link = directory.path().join("postgresql.conf");
        std::os::unix::fs::symlink(outside.path().join("my.conf"), link).unwrap();
        let own = OwnFiles::of(directory.path(), &settings(None)).unwrap();
        assert!(own.covers(b"postgresql.conf") && own.covers(b"more.conf"));
    }

    #[test]
    fn the_block_of_an_earlier_run_is_replaced() {
        let own = b"primary_slot_name = 'mine'";
        let first = with_block(own, &settings(Some("host=db1")));
        let text = String::from_utf8(first.clone()).unwrap();
        assert!(
            text.starts_with("primary_slot_name = 'mine'\n# ---- barmanfs: begin ----\n"),
            "{text}"
        );
        assert!(
            text.contains("restore_command = 'get it''s %f'\n") && text.contains("'host=db1'"),
            "{text}"
        );
        assert_eq!(with_block(&first, &settings(Some("host=db1"))), first);
        let second = with_block(&[&first[..], b"work_mem = '1MB'\n"].concat(), &settings(None));
        let text = String::from_utf8(second).unwrap();
        assert!(
            text.starts_with("primary_slot_name = 'mine'\nwork_mem = '1MB'\n#"),
            "{text}"
        );
        assert!(!text.contains("db1"), "{text}");
        // That of a restore is not of a run of this command, and one without an end is left.
        for other in [
            "# ---- barmanfs: begin ----\na = 1\n# ---- barmanfs: end ----\n",
            &format!("# ---- barmanfs: begin ----\n{ABOUT}a = 1\n"),
        ] {
            assert!(with_block(other.as_bytes(), &settings(None)).starts_with(other.as_bytes()));
        }
    }
}
