//! `pg_service.conf`: named sets of connection settings.

use std::io;
use std::path::{Path, PathBuf};

use crate::postgres::{Environment, Error};

use super::keys::key;
use super::parse::Settings;

/// Directories of the system-wide file: in Debian, in the PGDG's RPMs, in a build from source.
const SYSTEM_DIRECTORIES: [&str; 3] = [
    "/etc/postgresql-common",
    "/etc/sysconfig/pgsql",
    "/usr/local/pgsql/etc",
];

/// The settings of a service, from the user's file, or otherwise the system's.
///
/// `file` is the setting `servicefile`, which replaces the path of the user's file.
pub(super) fn settings(name: &str, file: Option<&str>, environment: &Environment) -> Result<Settings, Error> {
    for path in candidates(file, environment) {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                if let Some(settings) = parse(name, &text, &path)? {
                    return Ok(settings);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::settings(format!(
                    "Could not read service file {}: {error}",
                    path.display()
                )));
            }
        }
    }
    Err(
        Error::settings(format!("Definition of service {} not found", super::shown(name))).with_hint(
            "Services are defined in ~/.pg_service.conf, PGSERVICEFILE or the system's pg_service.conf",
        ),
    )
}

fn candidates(file: Option<&str>, environment: &Environment) -> Vec<PathBuf> {
    let user_file = file
        .map(PathBuf::from)
        .or_else(|| environment.path("PGSERVICEFILE"))
        .or_else(|| environment.home().map(|home| home.join(".pg_service.conf")));
    let directories = match environment.path("PGSYSCONFDIR") {
        Some(directory) => vec![directory],
        None => SYSTEM_DIRECTORIES.iter().map(PathBuf::from).collect(),
    };
    user_file
        .into_iter()
        .chain(
            directories
                .into_iter()
                .map(|directory| directory.join("pg_service.conf")),
        )
        .collect()
}

/// The settings in the service's section; `None` if the section does not exist.
fn parse(name: &str, text: &str, path: &Path) -> Result<Option<Settings>, Error> {
    let mut found: Option<Settings> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let title = section.split_once(']').map_or(section, |(title, _)| title);
            found = (title == name).then(Settings::new);
            continue;
        }
        let Some(settings) = found.as_mut() else { continue };
        let wrong = |what: &str| Error::settings(format!("{}, line {number}: {what}", path.display()));
        if line.starts_with("ldap") {
            return Err(wrong("settings from LDAP are not supported"));
        }
        let (name, value) = line.split_once('=').ok_or_else(|| wrong("expected key=value"))?;
        if matches!(name, "service" | "servicefile") {
            return Err(wrong("a service cannot refer to another service"));
        }
        let key = key(name).ok_or_else(|| wrong("invalid connection option before \"=\""))?;
        // In a service file the first of several values counts, unlike in a connection string.
        settings.entry(key.name).or_insert_with(|| value.to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\n[other]\nhost=no\n\n[main]\nhost=db.example.com\nport=6432\nport=1\n \
                        dbname=a=b\n[main]\nhost=late\n";

    fn parsed(name: &str, text: &str) -> Result<Option<Settings>, String> {
        parse(name, text, Path::new("f.conf")).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_first_section_of_that_name_counts() {
        let settings = parsed("main", FILE).unwrap().unwrap();
        assert_eq!(settings.get("host").unwrap(), "db.example.com");
        assert_eq!(settings.get("port").unwrap(), "6432");
        assert_eq!(settings.get("dbname").unwrap(), "a=b");
        assert!(parsed("absent", FILE).unwrap().is_none());
    }

    #[test]
    fn errors_name_file_and_line_but_no_value() {
        let error = parsed("main", "[main]\nhost=x\npasword=geheim\n").unwrap_err();
        assert!(error.contains("f.conf, line 3"), "{error}");
        assert!(!error.contains("geheim"), "{error}");
        assert!(
            parsed("main", "[main]\nservice=other\n")
                .unwrap_err()
                .contains("another service")
        );
        assert!(parsed("main", "[main]\nldap://x\n").unwrap_err().contains("LDAP"));
    }

    #[test]
    fn the_named_file_comes_before_the_system_wide_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("pg_service.conf"), "[both]\nport=1\n[system]\nport=2\n").unwrap();
        std::fs::write(path("own.conf"), "[both]\nport=3\n").unwrap();
        let environment = Environment::fixed(
            "me",
            Path::new("/nonexistent"),
            &[
                ("PGSYSCONFDIR", directory.path().to_str().unwrap()),
                ("PGSERVICEFILE", &path("own.conf")),
            ],
        );
        let port = |name| settings(name, None, &environment).map(|found| found["port"].clone());
        assert_eq!(port("both").unwrap(), "3");
        assert_eq!(port("system").unwrap(), "2");
        assert!(
            port("neither")
                .unwrap_err()
                .to_string()
                .contains("\"neither\" not found")
        );
    }
}
