//! `check --json`.

use barmanfs_catalog::ServerName;
use serde::{Serialize, Serializer};

use crate::config::{Misnamed, ServerConfig};
use crate::health::{self, Checked, Figures, Finding, State};
use crate::output::printable;

/// `check --json`.
#[derive(Debug, Serialize)]
pub(crate) struct CheckReport {
    pub(crate) repository: CheckedRepository,
    pub(crate) servers: Vec<CheckedServer>,
}

/// What was found about the repository.
#[derive(Debug, Serialize)]
pub(crate) struct CheckedRepository {
    /// Where it is.
    pub(crate) path: String,
    /// No finding is FAILED.
    ok: bool,
    /// The worst of the findings.
    pub(crate) status: State,
    #[serde(rename = "checks")]
    pub(crate) findings: Vec<Finding>,
}

impl CheckedRepository {
    /// The findings about the repository at `place`.
    pub(crate) fn new(place: &str, checked: Checked) -> Self {
        let status = health::worst(&checked.findings);
        Self {
            path: printable(place.as_bytes()),
            ok: status < State::Failed,
            status,
            findings: checked.findings,
        }
    }
}

impl CheckReport {
    /// What was found. No server is well in a repository that is not.
    pub(crate) fn new(repository: CheckedRepository, mut servers: Vec<CheckedServer>) -> Self {
        servers.iter_mut().for_each(|server| server.ok &= repository.ok);
        Self { repository, servers }
    }

    /// The worst status of the repository and of active servers.
    pub(crate) fn worst(&self) -> State {
        self.repository.status.max(CheckedServer::worst(&self.servers))
    }

    /// The worst status of active servers as Barman has them.
    pub(crate) fn worst_of_barmans(&self) -> State {
        let servers = CheckedServer::worst(&self.servers);
        match self.servers.iter().any(|server| server.active) {
            true => self.repository.status.max(servers),
            false => servers,
        }
    }

    /// The servers as Barman has them: what concerns the repository is said of each.
    pub(crate) fn into_barmans(self) -> Vec<CheckedServer> {
        let Self { repository, servers } = self;
        let with = |server: CheckedServer| {
            let all = repository
                .findings
                .iter()
                .cloned()
                .chain(server.findings)
                .collect();
            let findings = health::merge(all);
            let status = health::worst(&findings);
            CheckedServer {
                ok: status < State::Failed,
                status,
                findings,
                ..server
            }
        };
        servers.into_iter().map(with).collect()
    }
}

/// What was found about one server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CheckedServer {
    pub(crate) server: String,
    pub(crate) active: bool,
    /// No finding is FAILED, of it or of the repository.
    ok: bool,
    /// The worst of the findings.
    pub(crate) status: State,
    #[serde(rename = "checks")]
    pub(crate) findings: Vec<Finding>,
    /// What the checks have counted; programs get it from `metrics`.
    #[serde(skip)]
    pub(crate) figures: Figures,
}

impl CheckedServer {
    /// The findings about `server`.
    pub(crate) fn new(server: &ServerConfig, Checked { findings, figures }: Checked) -> Self {
        let status = health::worst(&findings);
        Self {
            server: server.name.to_string(),
            active: server.active,
            ok: status < State::Failed,
            status,
            findings,
            figures,
        }
    }

    /// A section that cannot be a server.
    pub(crate) fn misnamed(section: &Misnamed) -> Self {
        let findings: Vec<Finding> = health::configuration(std::slice::from_ref(&section.problem))
            .into_iter()
            .collect();
        Self {
            server: printable(section.name.as_bytes()),
            active: true,
            ok: false,
            status: health::worst(&findings),
            findings,
            figures: Figures::default(),
        }
    }

    /// A server without a section, of which something is wrong all the same.
    pub(crate) fn unconfigured(server: &ServerName, finding: Finding) -> Self {
        Self {
            server: server.to_string(),
            active: true,
            ok: false,
            status: finding.state,
            findings: vec![finding],
            figures: Figures::default(),
        }
    }

    /// The worst status among active servers: what is wrong with the others is shown, and nothing depends on it.
    pub(crate) fn worst(servers: &[Self]) -> State {
        let states = servers
            .iter()
            .filter(|server| server.active)
            .map(|server| server.status);
        states.max().unwrap_or(State::Ok)
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// One finding, as JSON has it.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    status: State,
    /// Message and hint.
    hint: Option<String>,
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let check = Check {
            name: self.name,
            ok: self.state < State::Failed,
            status: self.state,
            hint: self.text(),
        };
        check.serialize(serializer)
    }
}
