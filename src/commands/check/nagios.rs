//! `check --nagios`: one line, and a plugin's exit codes.

use super::{Checked, Level};
use crate::error::Outcome;

/// A plugin's exit code for a state that somebody should look at.
const WARNING: u8 = 1;
/// A plugin's exit code for a critical state.
const CRITICAL: u8 = 2;

/// The exit code of the worst line.
pub(super) fn outcome(worst: Level) -> Outcome {
    match worst {
        Level::Ok => Outcome::Done,
        Level::Warning => Outcome::Told(WARNING),
        Level::Failed => Outcome::Told(CRITICAL),
    }
}

/// The one line: what is wrong, by server, failures before warnings.
pub(super) fn line(checked: &[Checked]) -> String {
    let worst = checked
        .iter()
        .map(|server| server.status)
        .max()
        .unwrap_or(Level::Ok);
    let word = match worst {
        Level::Ok => {
            let names: Vec<&str> = checked.iter().map(|server| server.server.as_str()).collect();
            return format!("BARMANFS OK - ready to serve: {}", names.join(", "));
        }
        Level::Warning => "WARNING",
        Level::Failed => "CRITICAL",
    };
    let bad: Vec<String> = checked
        .iter()
        .filter(|server| server.status > Level::Ok)
        .map(|server| {
            let parts = [Level::Failed, Level::Warning].map(|level| named(server, level));
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            format!("{} {}", server.server, parts.join(", "))
        })
        .collect();
    format!("BARMANFS {word} - {}", bad.join("; "))
}

/// `FAILED: archive_mode, replication slot`
fn named(server: &Checked, level: Level) -> Option<String> {
    let lines = server.checks.iter().filter(|line| line.level == level);
    let names: Vec<&str> = lines.map(|line| line.name).collect();
    (!names.is_empty()).then(|| format!("{}: {}", level.word(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::{Line, Lines};
    use super::*;

    fn checked(worst: Level) -> Checked {
        let mut lines = Lines::default();
        lines.ok("PostgreSQL", Some("15.18".to_owned()));
        if worst >= Level::Warning {
            lines.extend([Line::warning("archive_command", "cp")]);
        }
        if worst == Level::Failed {
            lines.failed("archive_mode", "off");
        }
        Checked {
            server: "main".to_owned(),
            active: true,
            ok: worst < Level::Failed,
            status: worst,
            checks: lines.0,
        }
    }

    #[test]
    fn nagios_gets_one_line() {
        let [good, warned, failed] = [Level::Ok, Level::Warning, Level::Failed].map(checked);
        assert_eq!(line(&[checked(Level::Ok)]), "BARMANFS OK - ready to serve: main");
        assert_eq!(
            line(&[checked(Level::Ok), warned]),
            "BARMANFS WARNING - main WARNING: archive_command"
        );
        assert_eq!(
            line(&[good, failed]),
            "BARMANFS CRITICAL - main FAILED: archive_mode, WARNING: archive_command"
        );
    }
}
