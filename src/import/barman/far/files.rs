//! The files of a backup on another host, streamed into the repository: a directory as an archive that `tar` makes over there, an
//! archive as it is.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use super::FarHome;
use super::stream::Stream;
use crate::error::Error;
use crate::import::barman::Files;
use crate::import::barman::archives::{self, store_member};
use crate::import::barman::gathered::Gathered;
use crate::import::barman::listing::{Found, Layout};
use crate::import::barman::tree::given_manifest;
use crate::import::members::Members;
use crate::import::{Arrived, Intake};
use crate::restore::remote::shell::word;
use barmanfs_store::Attributes;

/// Where tablespaces are in a backup here.
const TABLESPACES: &[u8] = b"pg_tblspc/";

/// Stores the files of a backup.
pub(super) fn read(home: &FarHome<'_>, found: &Found, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
    let far = FarFiles { home };
    let (data, tablespaces) = match &found.layout {
        Layout::Archives(files) => return archives::read(found, files, (&home.options.plain, &far), intake),
        Layout::Tree { data, tablespaces } => (data, tablespaces),
    };
    let manifest = given_manifest(&found.info, data, &far, intake)?;
    let mut gathered = Gathered::new(&found.info);
    let mut root = None;
    let is_elsewhere = |path: &[u8]| {
        let name = path.strip_prefix(TABLESPACES).unwrap_or_default();
        let oid = name.split(|byte| *byte == b'/').next().unwrap_or_default();
        found
            .info
            .tablespaces
            .iter()
            .any(|tablespace| tablespace.oid.to_string().as_bytes() == oid)
    };
    far.directory(data, &mut |path, entry, members| {
        if path.is_empty() {
            root = Some(entry.attributes());
            return Ok(());
        }
        match is_elsewhere(path) {
            true => Ok(()),
            false => store_member(path, entry, members, &mut gathered, intake),
        }
    })?;
    for tablespace in &found.info.tablespaces {
        let oid = tablespace.oid.to_string();
        let at = [TABLESPACES, oid.as_bytes()].concat();
        far.directory(&tablespaces.join(&oid), &mut |path, entry, members| {
            let inner: Vec<u8> = match path {
                [] => at.clone(),
                path => [at.as_slice(), b"/", path].concat(),
            };
            store_member(&inner, entry, members, &mut gathered, intake)
        })?;
    }
    let root: Attributes =
        root.ok_or_else(|| Error::failed("the other host has not sent its data directory"))?;
    gathered.finish(intake, root, manifest)
}

/// Takes a member of an archive: its path, empty for the directory itself, and its content.
type Each<'e> = dyn FnMut(&[u8], &crate::postgres::TarEntry, &mut Members<Stream>) -> Result<(), Error> + 'e;

struct FarFiles<'h, 'a> {
    home: &'h FarHome<'a>,
}

impl FarFiles<'_, '_> {
    /// Where a path of the outline is over there.
    fn place(&self, path: &Path) -> Result<String, Error> {
        let base = self
            .home
            .outline
            .as_ref()
            .map(|outline| outline.place().join("base"));
        let inner = base.and_then(|base| path.strip_prefix(base).map(PathBuf::from).ok());
        let inner = inner.and_then(|inner| inner.to_str().map(str::to_owned));
        let inner = inner.ok_or_else(|| Error::failed(format!("{} is of no backup", path.display())))?;
        Ok(word(&format!(
            "{}/{inner}",
            self.home.places().basebackups_directory
        )))
    }

    /// Reads a directory. A link is none.
    fn directory(&self, path: &Path, each: &mut Each<'_>) -> Result<(), Error> {
        let place = self.place(path)?;
        let script = format!(
            "if test -h {place}; then echo 'it is a link, and links are not followed' >&2; exit 1; fi; \
             cd {place} && tar --format=posix --hard-dereference -cf - ."
        );
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut members = Members::new(&name, self.home.stream("read a backup", &script)?);
        while let Some(entry) = members.next_member()? {
            each(&entry.path, &entry, &mut members)?;
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> Result<Stream, Error> {
        let script = format!("cat {}", self.place(path)?);
        self.home.stream("read a backup", &script)
    }
}

impl Files for FarFiles<'_, '_> {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let stream = self
            .file(path)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Box::new(stream))
    }

    fn manifest(&self, path: &Path, spool: &Path) -> io::Result<File> {
        // The outline has its name.
        std::fs::metadata(path)?;
        let mut copy = tempfile::tempfile_in(spool)?;
        io::copy(&mut self.open(path)?, &mut copy)?;
        copy.rewind()?;
        Ok(copy)
    }
}
