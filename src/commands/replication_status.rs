//! `barmanfs replication-status`: what receives a server's WAL as a stream.

use barmanfs_pg::Lsn;

use super::App;
use crate::cli::server::{ClientSource, ClientTarget, ReplicationStatusArgs};
use crate::cluster::Host;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::health::standing::{Replication, StreamClient, each};
use crate::output::{self, Output};
use crate::report::{ReplicationClient, ReplicationStatus};

/// Runs the command. Fails if a server does not answer, after the others have been shown.
pub(crate) fn run(app: &mut App, args: &ReplicationStatusArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    let found = each(&servers, |server| status(server, args));
    if args.json.json {
        app.out.json_list("servers", &found)?;
    } else {
        for status in found.iter().filter(|status| status.error.is_none()) {
            show(&mut app.out, status, args)?;
        }
    }
    let errors = found
        .iter()
        .filter_map(|status| Some((&status.server, status.error.as_ref()?)));
    let errors: Vec<String> = errors
        .map(|(server, error)| format!("Server {server}: {error}"))
        .collect();
    match errors.as_slice() {
        [] => Ok(Outcome::Done),
        errors => Err(Error::failed(errors.join("\n"))),
    }
}

fn status(server: &ServerConfig, args: &ReplicationStatusArgs) -> ReplicationStatus {
    let wanted = |client: &StreamClient| match args.target {
        ClientTarget::All => true,
        ClientTarget::HotStandby => !client.is_wal_streamer(),
        ClientTarget::WalStreamer => client.is_wal_streamer(),
    };
    let host = match args.source {
        ClientSource::BackupHost => Host::Backup,
        ClientSource::WalHost => Host::Wal,
    };
    match Replication::ask(server, host) {
        Ok(found) => ReplicationStatus::new(server, found, wanted),
        Err(error) => ReplicationStatus::failed(server, error.to_string()),
    }
}

fn title(target: ClientTarget) -> &'static str {
    match target {
        ClientTarget::All => "streaming clients",
        ClientTarget::HotStandby => "hot standby servers",
        ClientTarget::WalStreamer => "WAL streamers",
    }
}

fn show(out: &mut Output, status: &ReplicationStatus, args: &ReplicationStatusArgs) -> Result<(), Error> {
    let (title, server) = (title(args.target), &status.server);
    out.line(format_args!("Status of {title} for server '{server}':"))?;
    if let Some(lsn) = status.server_lsn {
        let place = match status.is_in_recovery {
            Some(true) => "standby",
            _ => "master",
        };
        out.line(format_args!("  Current LSN on {place}: {lsn}"))?;
    }
    if status.streaming_clients.is_empty() {
        return out.line(format_args!("  No {title} attached"));
    }
    if !args.minimal {
        out.line(format_args!(
            "  Number of {title}: {}",
            status.streaming_clients.len()
        ))?;
    }
    for (nth, client) in (1..).zip(&status.streaming_clients) {
        match args.minimal {
            true => out.line(format_args!("  {nth}. {}", in_one_line(client)))?,
            false => show_client(out, nth, client)?,
        }
    }
    Ok(())
}

fn lsn(lsn: Option<Lsn>) -> String {
    lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string())
}

/// `W) postgres@socket S:0/3000148 W:0/3000148 P:0 AN:barmanfs_receive_wal (barmanfs)`
fn in_one_line(client: &ReplicationClient) -> String {
    let user = client.user_name.as_deref().unwrap_or("-");
    let host = client.client_address.as_deref().unwrap_or("socket");
    let (sent, written) = (lsn(client.sent_lsn), lsn(client.write_lsn));
    let letter = client
        .current_sync_state
        .as_deref()
        .and_then(|state| state.chars().next());
    let letter = letter.map_or('-', |letter| letter.to_ascii_uppercase());
    let (flushed, replayed) = (lsn(client.flush_lsn), lsn(client.replay_lsn));
    let positions = match client.is_wal_streamer() {
        true => format!("W) {user}@{host} S:{sent} W:{written}"),
        false => format!("{letter}) {user}@{host} S:{sent} F:{flushed} R:{replayed}"),
    };
    let own = if client.own { " (barmanfs)" } else { "" };
    format!(
        "{positions} P:{} AN:{}{own}",
        client.sync_priority, client.application_name
    )
}

fn show_client(out: &mut Output, nth: usize, client: &ReplicationClient) -> Result<(), Error> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let mut state = text(&client.current_sync_state);
    if let Some(first) = state.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let priority = match client.sync_priority {
        0 => String::new(),
        priority => format!("#{priority} "),
    };
    let kind = if client.is_wal_streamer() {
        "WAL streamer"
    } else {
        "standby"
    };
    let own = if client.own { " (barmanfs)" } else { "" };
    out.line(format_args!("\n  {nth}. {priority}{state} {kind}{own}"))?;
    let mut line = |name: &str, value: String| out.line(format_args!("     {name:16}: {value}"));
    line("Application name", client.application_name.clone())?;
    line("Sync stage", client.sync_stage.clone())?;
    line("Communication", client.communication.to_owned())?;
    if let Some(address) = &client.client_address {
        let port = client.client_port.unwrap_or_default();
        let host = text(&client.client_hostname);
        line("IP Address", format!("{address} / Port: {port} / Host: {host}"))?;
    }
    line("User name", text(&client.user_name))?;
    let (current, sync) = (text(&client.current_state), text(&client.current_sync_state));
    line("Current state", format!("{current} ({sync})"))?;
    if let Some(slot) = &client.replication_slot {
        line("Replication slot", slot.clone())?;
    }
    line("WAL sender PID", client.wal_sender_pid.to_string())?;
    line(
        "Started at",
        client.started.map_or_else(|| "-".to_owned(), output::second),
    )?;
    for (name, position, diff) in [
        ("Sent LSN", client.sent_lsn, client.sent_lsn_diff_bytes),
        ("Write LSN", client.write_lsn, client.write_lsn_diff_bytes),
        ("Flush LSN", client.flush_lsn, client.flush_lsn_diff_bytes),
        ("Replay LSN", client.replay_lsn, client.replay_lsn_diff_bytes),
    ] {
        let Some(position) = position else { continue };
        let diff = output::bytes(diff.unwrap_or_default());
        out.line(format_args!("     {name:11}: {position} (diff: {diff})"))?;
    }
    Ok(())
}
