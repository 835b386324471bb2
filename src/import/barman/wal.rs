//! The WAL in a home: what is archived in `wals/`, and what waits in `incoming/` and `streaming/`.
//!
//! A file in `incoming/` may still be copied: its content decides, as for a directory of this program.
//!
//! `wals/` is read directory by directory, so its names never fill the memory. Barman's list of it, `xlog.db`, decides
//! nothing: it may be behind the directory or ahead of it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use barmanfs_foreign::barman::names;
use barmanfs_foreign::barman::xlog_db::{LONGEST_LINE_BYTES, XlogLine};
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::open_unlinked;

use super::Options;
use super::listing::names_in;
use crate::error::Error;
use crate::import::plain::Plain;
use crate::import::{ForeignWal, LeftOut};

/// What an item is: a file, or why it is none.
type Item = Result<ForeignWal, LeftOut>;

/// What is where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// `wals/` and the directories in it
    Archive,
    Incoming,
    Streaming,
}

/// The files of a server.
pub(super) fn list<'a>(
    place: &Path,
    options: &'a Options,
) -> Result<Box<dyn Iterator<Item = Item> + 'a>, Error> {
    let wals = place.join("wals");
    let mut directories = VecDeque::from([(Room::Archive, wals.clone())]);
    for name in names_in(&wals)?.unwrap_or_default() {
        if is_directory_name(&name) {
            directories.push_back((Room::Archive, wals.join(name)));
        }
    }
    directories.push_back((Room::Incoming, place.join("incoming")));
    directories.push_back((Room::Streaming, place.join("streaming")));
    Ok(Box::new(Files {
        options,
        directories,
        files: VecDeque::new(),
        missing: Missing::of(&wals),
    }))
}

/// Whether anything is archived.
pub(super) fn has_any(place: &Path) -> Result<bool, Error> {
    let names = names_in(&place.join("wals"))?.unwrap_or_default();
    let is_wal = |name: &String| is_directory_name(name) || names::wal_name(name).is_some();
    Ok(names.iter().any(is_wal))
}

/// The first sixteen digits of a segment's name: its timeline and the high half of its position.
fn is_directory_name(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

struct Files<'a> {
    options: &'a Options,
    directories: VecDeque<(Room, PathBuf)>,
    /// Those of the present directory.
    files: VecDeque<Item>,
    missing: Missing,
}

impl Iterator for Files<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.files.pop_front() {
                return Some(item);
            }
            match self.directories.pop_front() {
                Some((room, place)) => self.files = self.directory(room, &place),
                None => return self.missing.next().map(Err),
            }
        }
    }
}

impl Files<'_> {
    fn directory(&self, room: Room, place: &Path) -> VecDeque<Item> {
        let names = match names_in(place) {
            Ok(names) => names.unwrap_or_default(),
            Err(error) => {
                return VecDeque::from([Err(LeftOut::problem(
                    place.display().to_string(),
                    error.to_string(),
                ))]);
            }
        };
        let items = names
            .iter()
            .filter_map(|name| self.item(room, name, place.join(name)));
        items.collect()
    }

    /// `None` for what is no WAL and should not be.
    fn item(&self, room: Room, name: &str, path: PathBuf) -> Option<Item> {
        let left_out = |why: &str| Some(Err(LeftOut::problem(path.display().to_string(), why)));
        if is_barmans_own(room, name) {
            return None;
        }
        let Some(wal_name) = names::wal_name(name) else {
            return left_out("it does not have the name of a WAL file");
        };
        let found = match fs::symlink_metadata(&path) {
            // Barman has archived or deleted it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return left_out(&format!("it cannot be read: {error}")),
            Ok(found) => found,
        };
        if !found.is_file() {
            return left_out("it is no regular file");
        }
        if room == Room::Streaming && matches!(wal_name, WalName::Partial(_)) && !self.options.with_partial {
            let why = "it is not complete: --with-partial takes it, once Barman's receive-wal is stopped";
            return Some(Err(LeftOut::expected(path.display().to_string(), why)));
        }
        let is_arriving = room == Room::Incoming;
        Some(Ok(foreign(
            wal_name,
            path,
            is_arriving,
            self.options.plain.clone(),
        )))
    }
}

/// Whether it is a file of Barman's own, or a directory that is read by itself.
fn is_barmans_own(room: Room, name: &str) -> bool {
    let is_list = name == "xlog.db" || name.ends_with("-xlog.db") || name == "sync-wals.info";
    name.starts_with('.')
        || name.ends_with(".tmp")
        || (room == Room::Archive && (is_list || is_directory_name(name)))
}

fn foreign(name: WalName, path: PathBuf, is_arriving: bool, plain: Plain) -> ForeignWal {
    ForeignWal {
        name,
        place: path.display().to_string(),
        arriving: is_arriving.then(|| path.clone()),
        open: Box::new(move || plain.wal(&name, open_unlinked(&path)?)),
    }
}

/// The files that `xlog.db` lists and that are not there.
struct Missing {
    wals: PathBuf,
    list: Option<BufReader<File>>,
}

impl Missing {
    fn of(wals: &Path) -> Self {
        let names = names_in(wals).ok().flatten().unwrap_or_default();
        // Since 3.13 it has the server's name; the old one may be left beside it.
        let name = names
            .iter()
            .find(|name| name.ends_with("-xlog.db"))
            .or_else(|| names.iter().find(|name| *name == "xlog.db"));
        Self {
            wals: wals.to_owned(),
            list: name
                .and_then(|name| open_unlinked(&wals.join(name)).ok())
                .map(BufReader::new),
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let list = self.list.as_mut()?;
        list.take(LONGEST_LINE_BYTES as u64)
            .read_until(b'\n', &mut line)
            .ok()?;
        (!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned())
    }

    fn is_there(&self, name: &WalName) -> bool {
        let text = name.to_string();
        let place = match name {
            WalName::History(_) => self.wals.clone(),
            WalName::Segment(_) | WalName::Partial(_) | WalName::BackupHistory { .. } => {
                self.wals.join(text.get(..16).unwrap_or_default())
            }
        };
        fs::symlink_metadata(place.join(text)).is_ok()
    }
}

impl Iterator for Missing {
    type Item = LeftOut;

    fn next(&mut self) -> Option<LeftOut> {
        loop {
            let line = self.line()?;
            let Ok(line) = XlogLine::parse(&line) else {
                continue;
            };
            if !self.is_there(&line.name) {
                return Some(LeftOut::expected(
                    line.name.to_string(),
                    "Barman's xlog.db lists it, and it is not in wals",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    fn options(with_partial: bool) -> Options {
        Options {
            plain: Plain::default(),
            zone: TimeZone::UTC,
            with_partial,
            waiting: crate::import::barman::Waiting::Named,
        }
    }

    fn file(place: &Path, path: &str) {
        let path = place.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn the_files_of_all_directories_come_in_order_and_what_is_none_is_named() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path();
        for path in [
            "wals/00000002.history",
            "wals/main-xlog.db",
            "wals/sync-wals.info",
            "wals/0000000100000000/000000010000000000000002",
            "wals/0000000100000000/000000010000000000000002.00000028.backup",
            "wals/0000000100000000/000000010000000000000001.gz",
            "wals/0000000100000000/.000000010000000000000003.tmp",
            "wals/0000000100000000/notes",
            "incoming/000000010000000000000004",
            "streaming/000000010000000000000005",
            "streaming/000000010000000000000006.partial",
        ] {
            file(place, path);
        }
        let pipe = place.join("wals/0000000100000000/000000010000000000000007");
        std::os::unix::fs::symlink("/etc/passwd", pipe).unwrap();
        let list_file =
            "000000010000000000000002\t1\t1\tNone\tNone\n000000010000000000000009\t1\t1\tNone\tNone\nx\n";
        fs::write(place.join("wals/main-xlog.db"), list_file).unwrap();
        let seen = |options: &Options| {
            let items = list(place, options).unwrap();
            let shown = items.map(|item| match item {
                Ok(ForeignWal {
                    name,
                    arriving: Some(_),
                    ..
                }) => format!("{name} arriving"),
                Ok(file) => format!("{}", file.name),
                Err(left_out) => format!(
                    "{} {}",
                    if left_out.is_problem {
                        "problem"
                    } else {
                        "expected"
                    },
                    left_out.what.rsplit('/').next().unwrap()
                ),
            });
            shown.collect::<Vec<_>>()
        };
        assert_eq!(
            seen(&options(false)),
            [
                "00000002.history",
                "000000010000000000000001",
                "000000010000000000000002",
                "000000010000000000000002.00000028.backup",
                "problem 000000010000000000000007",
                "problem notes",
                "000000010000000000000004 arriving",
                "000000010000000000000005",
                "expected 000000010000000000000006.partial",
                "expected 000000010000000000000009",
            ]
        );
        assert!(has_any(place).unwrap());
        let with_partial = seen(&options(true));
        assert!(with_partial.contains(&"000000010000000000000006.partial".to_owned()));
    }
}
