//! Whether the server's WAL is being received as a stream, and how far behind that is.

use barmanfs_catalog::Repository;
use barmanfs_pg::{Lsn, TimestampMicros};

use super::Subject;
use super::figures::Lag;
use super::finding::{Finding, Findings};
use super::standing::{OwnStream, StreamClient, ask_for_clients};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::moment;
use crate::output;
use crate::postgres::Connection;

/// The slot's state on the server.
const SLOT: &str = "SELECT slot_type, active::text AS active, restart_lsn::text AS restart_lsn, \
                    coalesce(wal_status, '') AS wal_status \
                    FROM pg_catalog.pg_replication_slots WHERE slot_name = '";

/// The end of the WAL that the server sends. A standby sends what it has received.
const FLUSHED: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() \
                       ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text AS flushed";

/// The name of the check.
const NAME: &str = "replication slot";
/// The same at a host of its own for WAL.
const NAME_AT_WAL_HOST: &str = "replication slot (WAL streaming)";
const LAG: &str = "receive-wal lag";

/// A receiver reports every ten seconds, and whenever it has made something durable. One that has not done so for this
/// long, while there is something to report, hangs.
const SILENT_SECONDS: u64 = 60;

/// Checks the slot and the receiver's reports at the host that WAL is received from.
pub(super) fn check(
    subject: Subject<'_>,
    repository: Option<&Repository>,
    mut sql: Option<&mut Connection>,
    findings: &mut Findings,
) {
    let server = subject.server;
    let name_here = match server.has_wal_host() {
        true => NAME_AT_WAL_HOST,
        false => NAME,
    };
    let at_host = |finding: Finding| Finding {
        name: name_here,
        ..finding
    };
    let receive = subject.invocation.with(&format!("receive-wal {}", server.name));
    let receiver = repository.and_then(|repository| repository.receiver(&server.name).ok());
    let is_running = receiver.flatten().is_some();
    if is_running && let Some(sql) = sql.as_deref_mut() {
        lag(sql, server, findings);
    }
    let Some(name) = server.slot_name.as_deref() else {
        if server.streaming_archiver {
            findings.failed(
                name_here,
                "there is no slot_name: WAL the server removes while receive-wal is not running is lost",
            );
        }
        return;
    };
    let Some(sql) = sql else { return };
    match ask(sql, name) {
        Ok(slot) if server.streaming_archiver => {
            findings.push(at_host(judge(slot.as_ref(), name, &receive, is_running)));
        }
        Ok(slot) => {
            let unused = slot.and_then(|slot| judge_unused(&slot, name, &receive, is_running));
            findings.extend(unused.map(at_host));
        }
        Err(error) => findings.failed(name_here, error.to_string()),
    }
}

/// How far the receiver is behind.
fn lag(sql: &mut Connection, server: &ServerConfig, findings: &mut Findings) {
    // The clients first: then none of them is ahead of the server.
    let asked = ask_for_clients(sql).and_then(|clients| Ok((clients, flushed(sql)?)));
    let (clients, flushed) = match asked {
        Ok(answers) => answers,
        Err(error) => return findings.failed(LAG, error.to_string()),
    };
    match OwnStream::among(&clients, server) {
        // The check of the slot says that nothing uses it.
        OwnStream::None => {}
        OwnStream::One(client) => {
            // Without pg_monitor, a role sees nothing of another role's connections.
            if let Some(lag) = measured(client, flushed, moment::now()) {
                findings.note(|figures| figures.lag = Some(lag));
                findings.push(judge_lag(lag));
            }
        }
        OwnStream::OneOf(count) => findings.push(Finding::warning(
            LAG,
            format!(
                "{count} receivers have the name {}, and which of them is this one is not known: set slot_name",
                server.streaming_archiver_name
            ),
        )),
    }
}

fn flushed(sql: &mut Connection) -> Result<Option<Lsn>, Error> {
    let results = sql.simple_query(FLUSHED)?;
    let flushed = results.first().and_then(|rows| rows.text(0, "flushed"));
    Ok(flushed.and_then(|text| text.parse().ok()))
}

/// The receiver runs on this host, so its reports have times of this host's clock. A report from the future is of a time
/// before the clock was set back: a receiver that does not hang sends another one soon.
fn measured(client: &StreamClient, flushed: Option<Lsn>, now: TimestampMicros) -> Option<Lag> {
    Some(Lag {
        bytes: flushed?.0.saturating_sub(client.flush_lsn?.0),
        reported_seconds: now.unix_micros().abs_diff(client.replied?.unix_micros()) / 1_000_000,
    })
}

fn judge_lag(lag: Lag) -> Finding {
    let text = format!(
        "{} behind the server, last report {} s ago",
        output::bytes(lag.bytes),
        lag.reported_seconds
    );
    match lag.bytes > 0 && lag.reported_seconds > SILENT_SECONDS {
        true => Finding::failed(
            LAG,
            format!("{text}: it hangs, or the network is cut. See what it logs, and start it again"),
        ),
        false => Finding::ok(LAG, text),
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

/// A slot that the configuration names though nothing is to be streamed: in use, it is as with Barman; out of use, it
/// fills the server's disk.
fn judge_unused(slot: &Slot, name: &str, receive: &str, is_running: bool) -> Option<Finding> {
    // A slot that was never used keeps nothing.
    if !slot.is_physical || is_running || slot.restart_lsn.is_empty() {
        return None;
    }
    let drop = format!("'{receive} --drop-slot' removes it, or set streaming_archiver = on");
    Some(match slot.is_active {
        true => Finding::ok(
            NAME,
            format!("WARNING: slot '{name}' is active but not required by the current config"),
        ),
        false => Finding::warning(
            NAME,
            format!("streaming_archiver is off, and the server keeps all WAL for slot {name}: {drop}"),
        ),
    })
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

    #[test]
    fn a_slot_that_nothing_reads_is_found_where_nothing_is_streamed() {
        let slot = |is_physical, is_active| Slot {
            is_physical,
            is_active,
            restart_lsn: "0/1000000".to_owned(),
            wal_status: "reserved".to_owned(),
        };
        let state = |slot: &Slot, is_running| {
            judge_unused(slot, "s", "/b receive-wal main", is_running).map(|finding| finding.state)
        };
        assert_eq!(state(&slot(true, false), false), Some(State::Warning));
        assert_eq!(state(&slot(true, true), false), Some(State::Ok));
        assert_eq!(state(&slot(true, true), true), None);
        assert_eq!(state(&slot(false, false), false), None);
        let unused = Slot {
            restart_lsn: String::new(),
            ..slot(true, false)
        };
        assert_eq!(state(&unused, false), None);
    }

    #[test]
    fn a_receiver_must_report_while_there_is_something_to_report() {
        let state = |bytes, reported_seconds| {
            judge_lag(Lag {
                bytes,
                reported_seconds,
            })
            .state
        };
        assert_eq!(state(0, 5), State::Ok);
        assert_eq!(state(1 << 30, 60), State::Ok, "it is behind, and reports");
        assert_eq!(state(1, 61), State::Failed);
        assert_eq!(state(0, 9000), State::Ok, "the server has nothing more");
    }

    #[test]
    fn the_last_report_is_timed_by_one_clock() {
        let now = TimestampMicros::from_unix_seconds(10_000);
        let client = StreamClient {
            flush_lsn: Some(Lsn(70)),
            replied: Some(TimestampMicros::from_unix_seconds(9_991)),
            ..StreamClient::default()
        };
        let lag = |client: &StreamClient| measured(client, Some(Lsn(100)), now);
        let expected = Lag {
            bytes: 30,
            reported_seconds: 9,
        };
        assert_eq!(lag(&client), Some(expected));
        // The clock was set back, and nothing has been reported since.
        let later = StreamClient {
            replied: Some(TimestampMicros::from_unix_seconds(20_000)),
            ..client.clone()
        };
        assert_eq!(lag(&later).map(|lag| lag.reported_seconds), Some(10_000));
        let hidden = StreamClient {
            replied: None,
            ..client
        };
        assert_eq!(lag(&hidden), None);
    }
}
