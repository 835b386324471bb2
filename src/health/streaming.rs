//! Whether the server's WAL is being received as a stream.

use barmanfs_catalog::Repository;

use super::Subject;
use super::finding::{Finding, Findings};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output;
use crate::postgres::Connection;

/// The slot's state on the server.
const SLOT: &str = "SELECT slot_type, active::text AS active, restart_lsn::text AS restart_lsn, \
                    coalesce(wal_status, '') AS wal_status \
                    FROM pg_catalog.pg_replication_slots WHERE slot_name = '";

/// The name of the check.
const NAME: &str = "replication slot";

/// Checks the receiver, the server's setting and the slot.
pub(super) fn check(
    subject: Subject<'_>,
    repository: Option<&Repository>,
    streaming: &mut Connection,
    sql: Option<&mut Connection>,
    findings: &mut Findings,
) {
    let server = subject.server;
    let receive = subject.invocation.with(&format!("receive-wal {}", server.name));
    let is_running = repository.is_some_and(|repository| receiver(repository, server, &receive, findings));
    wal_level(streaming, findings);
    let Some(name) = server.slot_name.as_deref() else {
        findings.failed(
            NAME,
            "there is no slot_name: WAL the server removes while receive-wal is not running is lost",
        );
        return;
    };
    if let Some(sql) = sql {
        findings.push(match ask(sql, name) {
            Ok(slot) => judge(slot.as_ref(), name, &receive, is_running),
            Err(error) => Finding::failed(NAME, error.to_string()),
        });
    }
}

fn receiver(repository: &Repository, server: &ServerConfig, receive: &str, findings: &mut Findings) -> bool {
    const NAME: &str = "receive-wal running";
    match repository.receiver(&server.name) {
        Ok(Some(receiver)) => {
            findings.ok(NAME, receiver.description);
            return true;
        }
        Ok(None) => findings.failed(NAME, format!("start '{receive}'")),
        Err(error) => findings.failed(NAME, Error::from(error).to_string()),
    }
    false
}

fn wal_level(streaming: &mut Connection, findings: &mut Findings) {
    const NAME: &str = "wal_level";
    match streaming.show("wal_level") {
        Ok(level) if level == "minimal" => findings.failed(
            NAME,
            "it is minimal: set wal_level = replica and restart the server",
        ),
        Ok(level) => findings.ok(NAME, output::printable(level.as_bytes())),
        Err(error) => findings.failed(NAME, Error::from(error).to_string()),
    }
}

/// The state of a slot on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    is_physical: bool,
    is_active: bool,
    restart_lsn: String,
    wal_status: String,
}

/// `None` if the slot does not exist.
fn ask(sql: &mut Connection, name: &str) -> Result<Option<Slot>, Error> {
    // The configuration has checked that the slot's name has no quote.
    let rows = sql.simple_query(&format!("{SLOT}{name}'"))?;
    let rows = rows.last().filter(|rows| rows.len() > 0);
    Ok(rows.map(|rows| {
        let is = |column, value: &str| rows.text(0, column) == Some(value);
        let text = |column| output::printable(rows.bytes(0, column).unwrap_or_default());
        Slot {
            is_physical: is("slot_type", "physical"),
            is_active: is("active", "true"),
            restart_lsn: text("restart_lsn"),
            wal_status: text("wal_status"),
        }
    }))
}

/// `receive` is the command that streams from the slot; `is_running` is whether one does.
fn judge(slot: Option<&Slot>, name: &str, receive: &str, is_running: bool) -> Finding {
    let Some(slot) = slot else {
        return Finding::failed(
            NAME,
            format!(
                "there is no slot {name}: create it with '{receive} --create-slot', or set create_slot = auto"
            ),
        );
    };
    let inactive = match is_running {
        true => "receive-wal does not use it: see what it logs",
        false => "the server keeps all WAL until receive-wal runs again",
    };
    match &*slot.wal_status {
        _ if !slot.is_physical => Finding::failed(
            NAME,
            format!("slot {name} is not physical: choose another slot_name"),
        ),
        "lost" => Finding::failed(
            NAME,
            format!(
                "the server has given up slot {name} and removed WAL it kept (max_slot_wal_keep_size): run '{receive}' with \
                 --drop-slot, --create-slot and --reset, and take a backup"
            ),
        ),
        // The WAL still exists until the server's next checkpoint.
        "unreserved" => Finding::failed(
            NAME,
            format!(
                "the server is about to give up slot {name}: more WAL waits for receive-wal than max_slot_wal_keep_size \
                 allows, and the next checkpoint removes it. See that '{receive}' runs and keeps up, or raise the limit"
            ),
        ),
        _ if !slot.is_active => Finding::failed(NAME, format!("slot {name} is not active: {inactive}")),
        _ => Finding::ok(NAME, format!("{name}, at {}", slot.restart_lsn)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::finding::State;

    #[test]
    fn a_slot_is_well_only_while_the_server_keeps_its_wal_and_somebody_reads_it() {
        let well = Slot {
            is_physical: true,
            is_active: true,
            restart_lsn: "0/1000000".to_owned(),
            wal_status: "reserved".to_owned(),
        };
        let status = |wal_status: &str| Slot {
            wal_status: wal_status.to_owned(),
            ..well.clone()
        };
        let idle = Slot {
            is_active: false,
            ..well.clone()
        };
        let logical = Slot {
            is_physical: false,
            ..well.clone()
        };
        for (slot, state, words) in [
            (Some(status("reserved")), State::Ok, "at 0/1000000"),
            (Some(status("extended")), State::Ok, "at 0/1000000"),
            (
                Some(status("unreserved")),
                State::Failed,
                "about to give up slot s",
            ),
            (Some(status("lost")), State::Failed, "--drop-slot"),
            (Some(idle), State::Failed, "does not use it"),
            (Some(logical), State::Failed, "not physical"),
            (None, State::Failed, "'/b receive-wal main --create-slot'"),
        ] {
            let finding = judge(slot.as_ref(), "s", "/b receive-wal main", true);
            let text = finding.text().unwrap_or_default();
            assert!(finding.state == state && text.contains(words), "{slot:?}: {text}");
        }
    }
}
