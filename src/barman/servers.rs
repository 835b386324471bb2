//! `list-servers`, `check` and `status`.

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::health::{Finding, State};
use crate::output::{Format, Output, Style};
use crate::report::{CheckedServer, ListedServer, ServerStatus};

/// Checks of Barman that have other names here, and the checks that answer the same question.
const OTHER_NAMES: &[(&str, &[&str])] = &[
    (
        "superuser or standard user with backup privileges",
        &["temporary replication slot", "PostgreSQL streaming"],
    ),
    ("systemid coherence", &["system identifier"]),
    (
        "directories",
        &["repository", "repository writable", "file system"],
    ),
    ("compression settings", &["repository"]),
    ("archiver errors", &["archiver errors", "quarantined WAL"]),
];

/// Checks that have another name in Barman when they fail.
const NAMES_OF_FAILURE: &[(&str, &str)] = &[
    (
        "superuser or standard user with backup privileges",
        "no access to backup functions",
    ),
    (
        "has monitoring privileges (WAL streaming)",
        "no access to monitoring functions",
    ),
];

/// `list-servers`: those of the configuration.
pub(crate) fn list(
    out: &mut Output,
    format: Format,
    servers: &[ListedServer],
    minimal: bool,
) -> Result<(), Error> {
    for server in servers.iter().filter(|server| server.configured) {
        let mut description = server.description.clone().unwrap_or_default();
        if !server.active {
            description += " (inactive)";
        } else if server.disabled {
            description += " (WARNING: disabled)";
        }
        if server.passive {
            description += " (Passive)";
        }
        match format {
            Format::Json => out.barman_result(server.name.as_str(), json!({"description": description}))?,
            Format::Console if minimal => out.line(&server.name)?,
            Format::Console if description.is_empty() => out.line(&server.name)?,
            Format::Console => out.line(format_args!("{} - {description}", server.name))?,
        }
    }
    Ok(())
}

/// A check as Barman has it: there are no warnings.
#[derive(Debug)]
struct Check {
    name: &'static str,
    failed: bool,
    hint: String,
}

/// `check`
pub(crate) fn check(out: &mut Output, format: Format, servers: &[CheckedServer]) -> Result<(), Error> {
    for server in servers {
        let checks = checks(&server.findings);
        if format == Format::Json {
            let fields: Map<String, Value> = checks.iter().map(keyed).collect();
            out.barman_result(&server.server, Value::Object(fields))?;
            continue;
        }
        let inactive = if server.active { "" } else { " (inactive)" };
        out.line(format_args!("Server {}{inactive}:", server.server))?;
        for check in &checks {
            let style = if check.failed { Style::Red } else { Style::Green };
            let word = out.paint(check.word(), style);
            let hint = match check.hint.as_str() {
                "" => String::new(),
                hint => format!(" ({hint})"),
            };
            out.line(format_args!("\t{}: {word}{hint}", check.name))?;
        }
    }
    Ok(())
}

impl Check {
    fn of(name: &'static str, finding: &Finding) -> Self {
        let text = finding.text().unwrap_or_default();
        let failed = finding.state == State::Failed;
        let renamed = NAMES_OF_FAILURE
            .iter()
            .find(|(known, _)| failed && *known == name);
        Self {
            name: renamed.map_or(name, |(_, name)| name),
            failed,
            hint: match finding.state {
                State::Warning => format!("WARNING: {text}"),
                State::Ok | State::Failed => text,
            },
        }
    }

    fn word(&self) -> &'static str {
        if self.failed { "FAILED" } else { "OK" }
    }
}

/// Our findings by their names, and what Barman has besides.
fn checks(findings: &[Finding]) -> Vec<Check> {
    let worst = |names: &[&str]| {
        let named = findings.iter().filter(|finding| names.contains(&finding.name));
        named.max_by_key(|finding| finding.state)
    };
    let mut checks: Vec<Check> = findings
        .iter()
        .filter(|finding| OTHER_NAMES.iter().all(|(name, _)| *name != finding.name))
        .map(|finding| Check::of(finding.name, finding))
        .collect();
    let others = OTHER_NAMES
        .iter()
        .filter_map(|(name, ours)| Some(Check::of(name, worst(ours)?)));
    checks.extend(others);
    checks
}

fn keyed(check: &Check) -> (String, Value) {
    let key = check
        .name
        .to_lowercase()
        .replace([' ', '-'], "_")
        .replace('.', "");
    (key, json!({"status": check.word(), "hint": check.hint}))
}

/// `status` as JSON. Its text has Barman's lines anyway.
pub(crate) fn status(out: &mut Output, servers: &[ServerStatus]) -> Result<(), Error> {
    for server in servers {
        let fact = |description: &str, message: &str| json!({"description": description, "message": message});
        let passive = if server.is_passive() { "True" } else { "False" };
        let mut facts = Map::new();
        facts.insert("passive_node".to_owned(), fact("Passive node", passive));
        for line in server.lines() {
            facts.insert(line.key.to_owned(), fact(line.description, &line.message));
        }
        out.barman_result(server.server().as_str(), Value::Object(facts))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(name: &'static str, state: State) -> Finding {
        Finding {
            name,
            state,
            message: Some(format!("about {name}")),
            hint: None,
        }
    }

    #[test]
    fn barmans_names_are_answered_by_the_worst_of_ours() {
        let found = checks(&[
            finding("archive_mode", State::Ok),
            finding("archiver errors", State::Ok),
            finding("quarantined WAL", State::Failed),
            finding("system identifier", State::Warning),
        ]);
        let found: Map<String, Value> = found.iter().map(keyed).collect();
        assert_eq!(
            Value::Object(found),
            json!({
                "archive_mode": {"status": "OK", "hint": "about archive_mode"},
                "archiver_errors": {"status": "FAILED", "hint": "about quarantined WAL"},
                "quarantined_wal": {"status": "FAILED", "hint": "about quarantined WAL"},
                "system_identifier": {"status": "OK", "hint": "WARNING: about system identifier"},
                "systemid_coherence": {"status": "OK", "hint": "WARNING: about system identifier"},
            })
        );
    }
}
