//! The archived WAL of a Barman on another host: the files that are not here come in a few streams.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Seek};
use std::path::PathBuf;

use barmanfs_pg::wal_name::WalName;

use super::FarHome;
use super::stream::Stream;
use crate::error::Error;
use crate::import::members::Members;
use crate::import::{ForeignWal, LeftOut};
use crate::postgres::{TarEntry, TarKind};
use crate::restore::remote::shell::word;
use crate::wal_transfer::LARGEST_BYTES;

/// Files of one stream: their names are in its command line.
const AT_ONCE: usize = 256;

/// Files as they come.
pub(super) struct FarWal<'a> {
    pub(super) home: &'a FarHome<'a>,
    /// Where copies are, until they are archived: a few at a time, since each is asked for when another one is archived.
    pub(super) spool: PathBuf,
    pub(super) wanted: VecDeque<WalName>,
    pub(super) stream: Option<Members<Stream>>,
    /// What was asked for and has not come, by its path there.
    pub(super) asked: BTreeMap<String, WalName>,
    pub(super) missing: Vec<WalName>,
}

/// Where a file is in `wals`.
pub(super) fn path_of(name: &WalName) -> String {
    let text = name.to_string();
    match name {
        WalName::History(_) => text,
        _ => format!("{}/{text}", text.get(..16).unwrap_or_default()),
    }
}

impl FarWal<'_> {
    fn begin(&mut self) -> Result<(), Error> {
        let some = self.wanted.len().min(AT_ONCE);
        self.asked = self
            .wanted
            .drain(..some)
            .map(|name| (path_of(&name), name))
            .collect();
        let paths: Vec<&str> = self.asked.keys().map(String::as_str).collect();
        let script = format!(
            "cd {} || exit; set --; for f in {}; do test -f $f && ! test -h $f && set -- \"$@\" $f; done; \
             test $# -gt 0 || set -- -T /dev/null; tar --format=posix -cf - \"$@\"",
            word(&self.home.places().wals_directory),
            paths.join(" ")
        );
        let stream = self.home.stream("read WAL", &script)?;
        self.stream = Some(Members::new("the WAL of the primary", stream));
        Ok(())
    }

    fn file(&mut self, entry: &TarEntry) -> Result<ForeignWal, Error> {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let name = self.asked.remove(&path).filter(|_| entry.kind == TarKind::File);
        let (Some(name), Some(stream)) = (name, &mut self.stream) else {
            return Err(Error::failed(
                "The other host has sent a file that was not asked for",
            ));
        };
        if entry.size_bytes > LARGEST_BYTES {
            return Err(Error::failed(format!("{name} holds more than any WAL file")));
        }
        let copied = tempfile::tempfile_in(&self.spool).and_then(|mut file| {
            io::copy(stream, &mut file)?;
            file.rewind()?;
            Ok(file)
        });
        let copy = copied.map_err(|error| Error::failed(format!("Cannot copy {name}: {error}")))?;
        let length = copy.metadata().map(|found| found.len());
        if length.is_ok_and(|length| length != entry.size_bytes) {
            return Err(Error::failed(format!("{name} is cut")));
        }
        let plain = self.home.options.plain.clone();
        Ok(ForeignWal {
            name,
            place: format!("{}/{path}", self.home.places().wals_directory),
            arriving: None,
            open: Box::new(move || plain.wal(&name, copy)),
        })
    }

    fn next_file(&mut self) -> Result<Option<ForeignWal>, Error> {
        loop {
            let entry = match &mut self.stream {
                Some(stream) => stream.next_member()?,
                None if self.wanted.is_empty() => return Ok(None),
                None => {
                    self.begin()?;
                    continue;
                }
            };
            match entry {
                Some(entry) => return self.file(&entry).map(Some),
                None => {
                    self.stream = None;
                    self.missing.extend(std::mem::take(&mut self.asked).into_values());
                }
            }
        }
    }
}

impl Iterator for FarWal<'_> {
    type Item = Result<ForeignWal, LeftOut>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_file() {
            Ok(Some(file)) => Some(Ok(file)),
            Ok(None) => self.missing.pop().map(|name| {
                Err(LeftOut::expected(
                    name.to_string(),
                    "Barman lists it, and it is not in its wals",
                ))
            }),
            Err(error) => {
                self.wanted.clear();
                (self.stream, self.asked) = (None, BTreeMap::new());
                self.home.fail(error);
                None
            }
        }
    }
}
