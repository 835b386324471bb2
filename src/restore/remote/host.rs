//! What there is to know about the other host before anything is written to it. One script of `sh` finds it out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use barmanfs_catalog::Backup;

use super::shell::{RemoteShell, word};
use crate::error::Error;
use crate::output;
use crate::restore::destination::{HELD, dangling, not_empty};
use crate::restore::marker;
use crate::restore::part::Part;
use crate::restore::space::TreeSize;
use crate::restore::tablespaces::Relocations;

/// The facts begin after this line: a login shell may print something before it.
const FIRST_LINE: &str = "barmanfs looks";
const LAST_LINE: &str = "barmanfs looked";

/// Processors on which no data directory of a little-endian host of 64 bits can be used.
const OTHER_PROCESSORS: [&str; 12] = [
    "s390", "s390x", "ppc", "ppc64", "sparc", "sparc64", "mips", "mips64", "hppa", "m68k", "i386", "i686",
];

/// Defines `look NUMBER PATH`, which prints what there is.
const LOOK: &str = r#"look() {
d=$2; while [ ! -e "$d" ]; do [ ! -h "$d" ] || { echo "dangling $1 $d"; return; }
d=${d%/*}; [ -n "$d" ] || d=/; done
[ -d "$d" ] || { echo "other $1"; return; }
echo "existing $1 ${#d}"; r=$(cd "$d" && pwd -P) && echo "real $1 $r"
p=$r; while [ -n "$p" ]; do if [ -f "$p/repository.json" ] && [ -d "$p/packs" ]; then echo "repository $1 $p"; fi
p=${p%/*}; done
echo "space $1 $(df -Pk "$d" | tail -n 1)"
[ "$d" = "$2" ] || return 0
[ -r "$d" ] && [ -w "$d" ] && [ -x "$d" ] || echo "closed $1"
for e in "$d"/* "$d"/.[!.]* "$d"/..?*; do
[ -e "$e" ] || [ -h "$e" ] || continue; [ "${e##*/}" != lost+found ] || continue; echo "full $1"; break; done
if [ -f "$d/postmaster.pid" ] && read p < "$d/postmaster.pid"; then
if kill -0 "$p" 2>/dev/null || [ -d "/proc/$p" ]; then echo "running $1 $p"; fi; fi
}"#;

/// Where PostgreSQL's server program may be.
const PROGRAMS: &str =
    "postgres /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/local/pgsql/bin/postgres";

/// The other host, as it was found.
#[derive(Debug, Default)]
pub(super) struct Facts {
    machine: String,
    has_tar: bool,
    /// The version lines of the servers that are installed.
    versions: Vec<String>,
    /// Where barmanfs is there.
    pub(super) barmanfs: Option<String>,
    /// The directory, and the places of tablespaces after it.
    places: BTreeMap<usize, Found>,
}

/// A directory there, or the nearest one above it that exists.
#[derive(Debug, Default, Clone)]
struct Found {
    /// Without links.
    real: Option<PathBuf>,
    /// How many bytes of its path exist.
    existing_bytes: usize,
    free_bytes: Option<u64>,
    mount_point: String,
    is_other: bool,
    /// The repository of barmanfs that it is in.
    repository: Option<String>,
    /// A link that leads to nothing.
    dangling: Option<PathBuf>,
    is_closed: bool,
    has_entries: bool,
    is_incomplete: bool,
    running: Option<String>,
}

/// Refuses a path that cannot be one of the other host.
pub(super) fn checked(path: &Path) -> Result<&str, Error> {
    let refuse = |why: &str| Err(Error::usage(format!("{} {why}", path.display())));
    let Some(text) = path.to_str() else {
        return refuse("is no path that can be passed to the other host");
    };
    if !text.starts_with('/') {
        return refuse("is relative: name an absolute path of the other host");
    }
    if text.contains(char::is_control) {
        return refuse("has a control character");
    }
    let names = path.components().skip(1);
    match names.clone().count() {
        0 => refuse("is the root of the file system"),
        _ if path.components().any(|part| part.as_os_str() == "..") => refuse("has '..' in it"),
        _ => Ok(text.trim_end_matches('/')),
    }
}

impl Facts {
    /// Finds them out.
    pub(super) fn of(
        shell: &RemoteShell,
        directory: &Path,
        relocations: &Relocations,
    ) -> Result<Self, Error> {
        let mut script = format!(
            "{LOOK}\necho; echo '{FIRST_LINE}'; echo \"machine $(uname -m)\"\n\
             command -v tar >/dev/null && echo tar; b=$(command -v barmanfs) && echo \"barmanfs $b\"\n\
             for p in {PROGRAMS}; do v=$(\"$p\" -V 2>/dev/null) && echo \"postgres $v\"; done\n"
        );
        let paths = std::iter::once(directory).chain(relocations.iter().map(|(_, location)| location));
        let [_, (_, _, held)] = HELD;
        for (number, path) in paths.enumerate() {
            let path = word(checked(path)?);
            script.push_str(&format!("look {number} {path}\n"));
            if number == 0 {
                script.push_str(&format!(
                    "if [ -e {path}/{} ] || [ -e {path}/global/{} ]; then echo 'incomplete 0'; fi\n",
                    marker::NAME,
                    String::from_utf8_lossy(held)
                ));
            }
        }
        script.push_str(&format!("echo '{LAST_LINE}'"));
        let answer = shell.run("look", &script, b"")?;
        Self::parse(&String::from_utf8_lossy(&answer))
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let lines = text.lines().skip_while(|line| *line != FIRST_LINE).skip(1);
        let mut facts = Self::default();
        for line in lines {
            if line == LAST_LINE {
                return Ok(facts);
            }
            facts.take(line);
        }
        Err(Error::failed("The other host does not answer as sh does").hint(
            "--remote-ssh-command must run the command that is added to it, as 'ssh postgres@db2' does",
        ))
    }

    fn take(&mut self, line: &str) {
        let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (number, value) = rest.split_once(' ').unwrap_or((rest, ""));
        match key {
            "machine" => rest.clone_into(&mut self.machine),
            "tar" => self.has_tar = true,
            "barmanfs" => self.barmanfs = Some(rest.to_owned()),
            "postgres" => self.versions.push(rest.to_owned()),
            _ => {
                let Ok(number) = number.parse() else { return };
                let found = self.places.entry(number).or_default();
                match key {
                    "real" => found.real = Some(value.into()),
                    "existing" => found.existing_bytes = value.parse().unwrap_or(0),
                    "space" => found.take_space(value),
                    "other" => found.is_other = true,
                    "repository" => found.repository = Some(output::printable(value.as_bytes())),
                    "dangling" => found.dangling = Some(value.into()),
                    "closed" => found.is_closed = true,
                    "full" => found.has_entries = true,
                    "incomplete" => found.is_incomplete = true,
                    "running" => found.running = Some(output::printable(value.as_bytes())),
                    _ => {}
                }
            }
        }
    }

    /// Refuses a host on which the restored server could not run, or to which nothing can be written.
    pub(super) fn refuse_host(&self) -> Result<(), Error> {
        if !self.has_tar {
            return Err(Error::failed("The other host has no tar"));
        }
        match OTHER_PROCESSORS.contains(&self.machine.as_str()) {
            true => Err(Error::failed(format!(
                "The other host has a processor of another kind ({}): PostgreSQL cannot use this data there",
                output::printable(self.machine.as_bytes())
            ))),
            false => Ok(()),
        }
    }

    /// Whether a restore that did not end is there.
    pub(super) fn is_incomplete(&self) -> bool {
        self.places.get(&0).is_some_and(|found| found.is_incomplete)
    }

    /// Whether there is anything.
    pub(super) fn has_entries(&self) -> bool {
        self.places.get(&0).is_some_and(|found| found.has_entries)
    }

    /// The paths without links, in the order in which they were asked for.
    pub(super) fn refuse_places(&self, asked: &[&Path]) -> Result<Vec<PathBuf>, Error> {
        asked
            .iter()
            .enumerate()
            .map(|(number, path)| self.refuse_place(number, path))
            .collect()
    }

    fn refuse_place(&self, number: usize, path: &Path) -> Result<PathBuf, Error> {
        let shown = path.display();
        let found = self.places.get(&number).cloned().unwrap_or_default();
        if found.is_other {
            return Err(Error::failed(format!(
                "{shown} on the other host, or something above it, is no directory"
            )));
        }
        if let Some(repository) = &found.repository {
            return Err(Error::usage(format!(
                "{shown} on the other host is in the repository {repository}"
            )));
        }
        if let Some(link) = &found.dangling {
            return Err(dangling(link, None).context("On the other host"));
        }
        if let Some(pid) = &found.running {
            return Err(Error::failed(format!(
                "A server is running in {shown} on the other host (process {pid})"
            ))
            .hint("Stop it first, or name another directory"));
        }
        if found.is_closed {
            return Err(Error::failed(format!(
                "The user of the other host cannot write to {shown}"
            )));
        }
        if found.has_entries && number > 0 {
            return Err(not_empty(path));
        }
        let text = checked(path)?;
        let rest = text
            .get(found.existing_bytes..)
            .unwrap_or_default()
            .trim_start_matches('/');
        match found.real {
            Some(real) if real.is_absolute() => Ok(match rest.is_empty() {
                true => real,
                false => real.join(rest),
            }),
            _ => Err(Error::failed(format!(
                "Cannot look into {shown} on the other host"
            ))),
        }
    }

    /// Refuses file systems that have not enough space.
    pub(super) fn refuse_space(&self, relocations: &Relocations, size: &TreeSize) -> Result<(), Error> {
        let mut needed: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let outside: Vec<Part> = relocations.iter().map(|(part, _)| part).collect();
        let own = size.disk_bytes_but(&outside);
        let bytes = outside.iter().map(|part| size.disk_bytes_of(*part));
        for (number, bytes) in std::iter::once(own).chain(bytes).enumerate() {
            let found = self.places.get(&number);
            if let Some((found, free)) = found.and_then(|found| Some((found, found.free_bytes?))) {
                needed.entry(&found.mount_point).or_insert((0, free)).0 += bytes;
            }
        }
        for (mount_point, (needed, free)) in needed {
            if needed > free {
                return Err(Error::failed(format!(
                    "The file system {} on the other host has {} free, and {} are needed",
                    output::printable(mount_point.as_bytes()),
                    output::bytes(free),
                    output::bytes(needed)
                ))
                .hint("Make room, or name another directory"));
            }
        }
        Ok(())
    }

    /// What may surprise a person who starts the server there.
    pub(super) fn notes(&self, backup: &Backup, fetches_wal: bool) -> Vec<String> {
        let mut notes = Vec::new();
        let major = backup.server_version.major();
        if !self.versions.iter().any(|line| major_of(line) == Some(major)) {
            notes.push(format!("PostgreSQL {major} was not found on the other host"));
        }
        if fetches_wal && self.barmanfs.is_none() {
            notes.push(
                "The copy fetches WAL with barmanfs, which the other host does not have in its PATH: install it there, \
                 or add --no-get-wal"
                    .to_owned(),
            );
        }
        notes
    }
}

impl Found {
    /// The last line of `df -Pk`. A name of a file system may have spaces in it.
    fn take_space(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let percent = words.iter().rposition(|word| word.ends_with('%'));
        let Some(percent) = percent.filter(|at| *at > 0) else {
            return;
        };
        let free = words.get(percent - 1).and_then(|word| word.parse::<u64>().ok());
        self.free_bytes = free.and_then(|kilobytes| kilobytes.checked_mul(1024));
        self.mount_point = words.get(percent + 1..).unwrap_or_default().join(" ");
    }
}

/// The major version in `postgres (PostgreSQL) 19.1 (Debian 19.1-1)`.
fn major_of(line: &str) -> Option<u32> {
    let version = line.split(' ').nth(2)?;
    let digits = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_behind_what_a_login_shell_prints() {
        let facts = Facts::parse(
            "Welcome\nuser 0\n\nbarmanfs looks\nuser 26\nmachine x86_64\ntar\npostgres postgres (PostgreSQL) 19beta1\n\
             existing 0 4\nreal 0 /data/srv\nspace 0 my disk 100 40 60 40% /data/my disk\nfull 0\nincomplete 0\n\
             running 0 77\nbarmanfs looked\n",
        )
        .unwrap();
        assert!(facts.has_tar && facts.is_incomplete() && facts.has_entries());
        assert_eq!(major_of(&facts.versions[0]), Some(19));
        let found = &facts.places[&0];
        assert_eq!(
            (found.free_bytes, found.mount_point.as_str()),
            (Some(60 << 10), "/data/my disk")
        );
        let refused = facts
            .refuse_places(&[Path::new("/srv/a/b")])
            .unwrap_err()
            .to_string();
        assert!(refused.contains("running in /srv/a/b"), "{refused}");
        for cut in ["", "barmanfs looks\nuser 0\n", "This account is not available.\n"] {
            assert!(Facts::parse(cut).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_path_is_one_of_the_other_host() {
        assert_eq!(checked(Path::new("/srv/a/")).unwrap(), "/srv/a");
        for wrong in ["a", "/", "/a/../b", "/a\nb", "./a", ""] {
            assert!(checked(Path::new(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_script_finds_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(directory.path()).unwrap();
        std::os::unix::fs::symlink(&base, base.join("li'nk")).unwrap();
        std::fs::create_dir(base.join("empty")).unwrap();
        std::fs::create_dir(base.join("hidden")).unwrap();
        std::fs::write(base.join("hidden/.x"), "").unwrap();
        std::fs::write(base.join("file"), "").unwrap();
        let shell = RemoteShell::new("sh -c").unwrap();
        let facts = |name: &str| Facts::of(&shell, &base.join(name), &Relocations::default()).unwrap();
        let places = |name: &str| facts(name).refuse_places(&[&base.join(name)]);
        assert_eq!(places("li'nk/new/a b").unwrap(), [base.join("new/a b")]);
        assert_eq!(places("empty").unwrap(), [base.join("empty")]);
        assert!(!facts("empty").has_entries() && facts("hidden").has_entries());
        assert!(places("file/below").is_err() && places("file").is_err());
        assert!(facts("empty").places[&0].free_bytes.is_some());
        std::fs::write(
            base.join("hidden/postmaster.pid"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        assert!(places("hidden").is_err());
        facts("hidden").refuse_host().unwrap();
    }
}
