//! Finds PostgreSQL's programs for a data directory. Their major version must be that of the data directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;

/// Directories of PostgreSQL's programs; `{}` is the major version. In this order: Debian and Ubuntu; the PostgreSQL
/// project's packages for Red Hat; SUSE; `make install`.
const USUAL_PLACES: [&str; 4] = [
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/usr/lib/postgresql{}/bin",
    "/usr/local/pgsql/bin",
];

/// A directory with the programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Finds the programs of this major version: only in `bindir` if it is given, otherwise in `path_prefix`, at the
    /// usual places, or on the `PATH`.
    pub(crate) fn find(major: u32, bindir: Option<&Path>, path_prefix: Option<&Path>) -> Result<Self, Error> {
        if let Some(directory) = bindir {
            return match version_in(directory) {
                Some(found) if found == major => Ok(Self::in_directory(directory)),
                Some(found) => Err(Error::usage(format!(
                    "{} holds PostgreSQL {found}, the data directory is of {major}",
                    directory.display()
                ))),
                None => Err(Error::usage(format!(
                    "There is no 'postgres' that runs in {}",
                    directory.display()
                ))),
            };
        }
        let usual = USUAL_PLACES.map(|place| PathBuf::from(place.replace("{}", &major.to_string())));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = path_prefix
            .map(Path::to_path_buf)
            .into_iter()
            .chain(usual)
            .chain(std::env::split_paths(&path));
        for directory in candidates {
            if version_in(&directory) == Some(major) {
                return Ok(Self::in_directory(&directory));
            }
        }
        Err(
            Error::failed(format!("There is no PostgreSQL {major} on this host")).hint(format!(
                "Install it, or say where it is with --bindir or 'path_prefix' in the configuration; looked in {} and on the PATH",
                USUAL_PLACES.map(|place| place.replace("{}", &major.to_string())).join(", ")
            )),
        )
    }

    fn in_directory(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Their version: "18.1".
    pub(crate) fn version(&self) -> Option<String> {
        let said = said_by(&self.path("postgres"))?;
        version_of(&said).map(str::to_owned)
    }

    /// Whether a program exists: not every package has all of them.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The program of this name.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// The major version of the `postgres` in a directory, if it exists and runs.
fn version_in(directory: &Path) -> Option<u32> {
    let program = directory.join("postgres");
    if !program.is_file() || !directory.join("pg_ctl").is_file() {
        return None;
    }
    major_of(&said_by(&program)?)
}

/// The output of a program with `--version`.
fn said_by(program: &Path) -> Option<String> {
    let said = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&said.stdout).into_owned())
}

fn version_of(said: &str) -> Option<&str> {
    said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()
}

/// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "postgres (PostgreSQL) 19beta1".
fn major_of(said: &str) -> Option<u32> {
    let version = version_of(said)?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        assert_eq!(
            major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_of("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(major_of("something else 15.1"), None);
    }

    #[test]
    fn the_requested_programs_must_have_the_version() {
        let empty = tempfile::tempdir().unwrap();
        let error = Programs::find(15, Some(empty.path()), None).unwrap_err();
        assert_eq!(error.code(), 2);
        let error = Programs::find(7, None, None).unwrap_err();
        assert!(error.to_string().contains("no PostgreSQL 7"), "{error}");
    }
}
