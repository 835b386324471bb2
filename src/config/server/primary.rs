//! The site that a passive node follows.

use std::path::PathBuf;

/// What runs on the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrimaryKind {
    Barmanfs,
    Barman,
}

impl PrimaryKind {
    /// Its word in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Barmanfs => "barmanfs",
            Self::Barman => "barman",
        }
    }
}

/// Where backups and WAL come from, and what comes along.
#[derive(Debug, Clone, Default)]
pub(crate) struct Primary {
    /// The command that reaches the other host.
    pub(crate) ssh_command: Option<String>,
    /// The directory of another repository.
    pub(crate) repository: Option<PathBuf>,
    /// The home of a Barman.
    pub(crate) home: Option<PathBuf>,
    /// What it is, if that is said.
    pub(crate) kind: Option<PrimaryKind>,
    /// Whether the other host is told the path of the configuration.
    pub(crate) forward_config_path: bool,
    /// Whether what is deleted there is deleted here.
    pub(crate) deletions: bool,
    /// Whether the segment that is being received there comes along.
    pub(crate) partial: bool,
}

impl Primary {
    /// Whether there is one.
    pub(crate) fn is_set(&self) -> bool {
        self.ssh_command.is_some() || self.repository.is_some() || self.home.is_some()
    }

    /// What it is: what the configuration says, or what its other keys mean.
    pub(crate) fn kind(&self) -> PrimaryKind {
        match (self.kind, &self.repository, &self.home) {
            (Some(kind), ..) => kind,
            (None, None, Some(_)) => PrimaryKind::Barman,
            (None, ..) => PrimaryKind::Barmanfs,
        }
    }
}
