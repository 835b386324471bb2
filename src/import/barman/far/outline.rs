//! The outline of a home on another host: its descriptions of backups, and the names of their files, in a directory here. From
//! that the backups are listed as those of a home of this host. It holds no content of backups.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use barmanfs_foreign::barman::backup_info;
use barmanfs_foreign::barman::names::{BackupId, MetaName};

use crate::error::Error;
use crate::import::members::Members;
use crate::output::printable;
use crate::postgres::TarKind;

/// As much may a description have. The others are smaller.
const FILE_BYTES: u64 = backup_info::LONGEST_BYTES as u64;

/// More than the descriptions, or the names, of all backups that anybody keeps.
const ALL_BYTES: u64 = 1 << 30;

/// The last line of a list of names.
const END: &str = "end";

/// The script that prints the kind, the size and the path of what is in backups: of all, or of `id`. Only the sizes of archives
/// matter.
pub(super) fn names_script(base: &str, id: Option<&str>) -> String {
    let which = id.unwrap_or("*");
    format!(
        "cd {base} || exit; for d in {which}; do test -d \"$d\" && for f in \"$d\"/* \"$d\"/data/*; do s=0; \
         if test -h \"$f\"; then k=l; elif test -d \"$f\"; then k=d; elif test -f \"$f\"; then k=f; \
         case $f in *.tar*) s=$(wc -c <\"$f\") || exit; esac; else continue; fi; \
         printf '%s %s %s\\n' $k $s \"$f\"; done; done; echo {END}"
    )
}

/// The script that sends the descriptions in a directory.
pub(super) fn descriptions_script(place: &str, patterns: &str) -> String {
    format!(
        "cd {place} || exit; set --; for f in {patterns}; do test -f \"$f\" && ! test -h \"$f\" && set -- \"$@\" \"$f\"; done; \
         test $# -gt 0 || set -- -T /dev/null; tar --format=posix -cf - \"$@\""
    )
}

/// The names of a backup's files, each as it was printed.
pub(super) type Names = BTreeMap<String, Vec<String>>;

/// The outline.
#[derive(Debug)]
pub(super) struct Outline {
    place: PathBuf,
}

impl Outline {
    /// Begins an empty one. What a killed process has left of it is removed.
    pub(super) fn begin(place: &Path) -> Result<Self, Error> {
        match fs::remove_dir_all(place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(cannot_write(place, &error));
            }
            _ => {}
        }
        let outline = Self {
            place: place.to_owned(),
        };
        for name in ["meta", "base"] {
            outline.directory(Path::new(name))?;
        }
        Ok(outline)
    }

    /// What is like the server's directory in a home.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    fn directory(&self, path: &Path) -> Result<(), Error> {
        let path = self.place.join(path);
        fs::create_dir_all(&path).map_err(|error| cannot_write(&path, &error))
    }

    /// Takes descriptions: members of an archive whose names are accepted by `is_description`, below `under`.
    pub(super) fn describe(
        &self,
        archive: impl Read,
        under: &str,
        is_description: fn(&[&str]) -> bool,
    ) -> Result<(), Error> {
        let mut members = Members::new("the descriptions of backups", archive);
        let mut all_bytes = 0;
        while let Some(entry) = members.next_member()? {
            let name = String::from_utf8(entry.path).unwrap_or_default();
            let names: Vec<&str> = name.split('/').collect();
            all_bytes += entry.size_bytes;
            if entry.kind != TarKind::File
                || entry.size_bytes > FILE_BYTES
                || all_bytes > ALL_BYTES
                || !is_description(&names)
            {
                return Err(Error::failed(format!(
                    "The other host has sent {}, which is no description of a backup",
                    printable(name.as_bytes())
                )));
            }
            let path = Path::new(under).join(&name);
            self.directory(path.parent().unwrap_or(Path::new("")))?;
            let path = self.place.join(path);
            let written = File::create(&path).and_then(|mut file| std::io::copy(&mut members, &mut file));
            written.map_err(|error| cannot_write(&path, &error))?;
        }
        Ok(())
    }

    /// Makes what a list names: directories, and files that are empty, or as long as the archives are.
    pub(super) fn name(&self, names: &Names) -> Result<(), Error> {
        for (id, lines) in names {
            self.directory(&Path::new("base").join(id))?;
            for line in lines {
                let (kind, size, path) = parsed(line).ok_or_else(|| not_understood(line))?;
                let inner = Path::new("base").join(path);
                match kind {
                    "d" => self.directory(&inner)?,
                    "f" => {
                        let inner = self.place.join(inner);
                        // A description is there already.
                        if !inner.exists() {
                            let made = File::create(&inner).and_then(|file| file.set_len(size));
                            made.map_err(|error| cannot_write(&inner, &error))?;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Drop for Outline {
    fn drop(&mut self) {
        // The next one begins with this.
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// Reads a list of names, by backups. Other directories than those of backups are passed over.
pub(super) fn read_names(list: impl Read) -> Result<Names, Error> {
    let mut lines = BufReader::new(list.take(ALL_BYTES)).split(b'\n');
    let mut names = Names::new();
    let unreadable = |error: std::io::Error| Error::failed(error.to_string());
    loop {
        let Some(line) = lines.next().transpose().map_err(unreadable)? else {
            return Err(Error::failed("The list of files of the other host is cut"));
        };
        if line == END.as_bytes() {
            // What reads to the end sees whether the script has failed.
            return match lines.next().transpose().map_err(unreadable)? {
                None => Ok(names),
                Some(more) => Err(not_understood(&String::from_utf8_lossy(&more))),
            };
        }
        // Barman makes no names that are not UTF-8.
        let Ok(line) = String::from_utf8(line) else {
            continue;
        };
        let (_, _, path) = parsed(&line).ok_or_else(|| not_understood(&line))?;
        let id = path.split('/').next().unwrap_or_default();
        if id.parse::<BackupId>().is_ok() {
            names.entry(id.to_owned()).or_default().push(line);
        }
    }
}

/// Kind, size and path of a line. No path leads out of the directory.
fn parsed(line: &str) -> Option<(&str, u64, &str)> {
    let (kind, rest) = line.split_once(' ')?;
    let (size, path) = rest.trim_start().split_once(' ')?;
    let is_plain = path.split('/').all(|name| !matches!(name, "" | "." | "..")) && path.contains('/');
    (matches!(kind, "d" | "f" | "l") && is_plain).then_some(())?;
    Some((kind, size.parse().ok()?, path))
}

fn not_understood(line: &str) -> Error {
    Error::failed(format!(
        "The other host's list of files is not understood: {}",
        printable(line.as_bytes())
    ))
}

fn cannot_write(place: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!("Cannot write {}: {error}", place.display()))
}

/// In the server's directory.
pub(super) fn is_of_server(names: &[&str]) -> bool {
    match names {
        ["identity.json"] => true,
        ["meta", name] => MetaName::parse(name).is_some(),
        _ => false,
    }
}

/// In `base`, where early releases had them.
pub(super) fn is_of_base(names: &[&str]) -> bool {
    matches!(names, [id, "backup.info"] | [id, "annotations", "keep"] if id.parse::<BackupId>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn shell(script: &str) -> Vec<u8> {
        let run = Command::new("sh").args(["-c", script]).output().unwrap();
        assert!(run.status.success(), "{run:?}");
        run.stdout
    }

    #[test]
    fn an_outline_has_the_names_and_no_content() {
        let home = tempfile::tempdir().unwrap();
        let id = "20261130T010000";
        for (path, content) in [
            ("meta/20261130T010000-backup.info", "status=DONE\n"),
            ("meta/notes", "x"),
            ("identity.json", "{}"),
            ("base/20261130T010000/data/data.tar.gz", "twelve bytes"),
            ("base/20261130T010000/data/a b", "x"),
            ("base/20261130T010000/16384/PG_18_1/5/1", "x"),
            ("base/not a backup/data/x", "x"),
        ] {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let place = home.path().display().to_string();
        let patterns = "identity.json meta/*-backup.info meta/*-keep";
        let descriptions = shell(&descriptions_script(&place, patterns));
        let list = shell(&names_script(&format!("{place}/base"), None));
        let outlines = tempfile::tempdir().unwrap();
        let outline = Outline::begin(&outlines.path().join("main")).unwrap();
        outline
            .describe(descriptions.as_slice(), "", is_of_server)
            .unwrap();
        let names = read_names(list.as_slice()).unwrap();
        assert_eq!(names.keys().collect::<Vec<_>>(), [id]);
        outline.name(&names).unwrap();
        let of =
            |path: &str| fs::metadata(outline.place().join(path)).map(|found| (found.is_dir(), found.len()));
        assert_eq!(of("base/20261130T010000/data/data.tar.gz").unwrap(), (false, 12));
        assert_eq!(of("base/20261130T010000/data/a b").unwrap(), (false, 0));
        assert!(of("base/20261130T010000/16384").unwrap().0);
        assert!(of("base/20261130T010000/16384/PG_18_1").is_err());
        assert_eq!(of("meta/20261130T010000-backup.info").unwrap(), (false, 12));
        let one = shell(&names_script(&format!("{place}/base"), Some(id)));
        assert_eq!(read_names(one.as_slice()).unwrap(), names);
        // Nothing is there, and that is an answer.
        let none = shell(&descriptions_script(&place, "nothing/*"));
        outline.describe(none.as_slice(), "", is_of_server).unwrap();
        // A list that is cut is none, and no name leads elsewhere.
        for end in 0..list.len() - 1 {
            assert!(read_names(&list[..end]).is_err(), "{end}");
        }
        for bad in [
            "d 0 ../x",
            "f 0 20261130T010000/../../x",
            "f 0 /etc/x",
            "f x 20261130T010000/y",
            "p 0 a/b",
        ] {
            assert!(read_names(format!("{bad}\nend\n").as_bytes()).is_err(), "{bad}");
        }
        let notes = shell(&descriptions_script(&place, "meta/notes"));
        assert!(outline.describe(notes.as_slice(), "", is_of_server).is_err());
        let place = outline.place().to_owned();
        drop(outline);
        assert!(!place.exists());
    }
}
