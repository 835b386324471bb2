//! The environment of a connection string: `PG*` variables, home directory, user.
//!
//! It is passed in, so that the same string always means the same in a test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// The parts of the process's environment that libpq uses.
#[derive(Clone, Default)]
pub(crate) struct Environment {
    variables: BTreeMap<String, OsString>,
    user: Option<String>,
    home: Option<PathBuf>,
}

impl Environment {
    /// The environment of a process with these variables, run by the user of this process.
    /// Only `PG*` and `HOME` are kept.
    pub(crate) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let account = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let mut environment = Self {
            variables: BTreeMap::new(),
            user: account.as_ref().map(|account| account.name.clone()),
            home: account.map(|account| account.dir),
        };
        for (name, value) in variables {
            match name.to_str() {
                Some("HOME") if !value.is_empty() => environment.home = Some(PathBuf::from(value)),
                Some(name) if name.starts_with("PG") => {
                    environment.variables.insert(name.to_owned(), value);
                }
                _ => {}
            }
        }
        environment
    }

    /// The variable's value. An empty one counts as absent, because no useful value is empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .and_then(|value| value.to_str())
            .filter(|value| !value.is_empty())
    }

    /// The variable's value as a path, which need not be UTF-8.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.variables
            .get(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    /// The name of the user that runs this process, if the system can resolve it.
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The user's home directory.
    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }
}

/// Shows only names: `PGPASSWORD` may be among the variables.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("variables", &self.variables.keys())
            .field("user", &self.user)
            .field("home", &self.home)
            .finish()
    }
}

#[cfg(test)]
impl Environment {
    /// An environment for tests, with exactly these values.
    pub(super) fn fixed(user: &str, home: &Path, variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.into()))
                .collect(),
            user: Some(user.to_owned()),
            home: Some(home.to_owned()),
        }
    }
}
