//! `barmanfs list-servers`.

use barmanfs_catalog::{Backup, Repository, ServerName};

use super::App;
use crate::barman;
use crate::cli::inspect::ListServersArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::output::{Align, Cell, Style, Table, second};
use crate::report::ListedServer;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: ListServersArgs) -> Result<Outcome, Error> {
    let repository = app.repository_if_made()?;
    let names = match &repository {
        Some(repository) => app.known_servers(repository, super::ALL)?,
        None => app
            .config
            .servers
            .iter()
            .map(|server| server.name.clone())
            .collect(),
    };
    let servers: Vec<ListedServer> = names
        .into_iter()
        .map(|name| describe(app, repository.as_ref(), name))
        .collect::<Result<_, _>>()?;
    if let Some(format) = app.options.format {
        barman::servers::list(&mut app.out, format, &servers, args.minimal)?;
    } else if args.json.json {
        app.out.json_list("servers", &servers)?;
    } else if args.minimal {
        for server in servers.iter().filter(|server| server.configured) {
            app.out.line(&server.name)?;
        }
    } else {
        app.out.table(&table(&servers))?;
    }
    Ok(Outcome::Done)
}

fn describe(app: &App, repository: Option<&Repository>, name: ServerName) -> Result<ListedServer, Error> {
    let configured = app.config.server(name.as_str());
    let (system_id, backups) = match repository {
        Some(repository) => (repository.system_id(&name)?, repository.backups(&name)?),
        None => (None, Vec::new()),
    };
    Ok(ListedServer {
        description: configured.and_then(|server| server.description.clone()),
        configured: configured.is_some(),
        active: configured.is_some_and(|server| server.active),
        disabled: configured.is_some_and(ServerConfig::is_disabled),
        passive: configured.is_some_and(ServerConfig::is_passive),
        system_id,
        backups: backups.iter().filter(|backup| backup.has_ended_well()).count(),
        last_backup_time: backups
            .iter()
            .rfind(|backup| backup.has_ended_well() && backup.is_of_current_history())
            .map(|Backup { begin_time, .. }| *begin_time),
        name,
    })
}

fn table(servers: &[ListedServer]) -> Table {
    let mut table = Table::new(&[
        ("Server", Align::Left),
        ("State", Align::Left),
        ("Backups", Align::Right),
        ("Last backup", Align::Left),
        ("Description", Align::Left),
    ]);
    for server in servers {
        let state = match server {
            ListedServer {
                configured: false, ..
            } => Cell::styled("not configured", Style::Yellow),
            ListedServer { disabled: true, .. } => Cell::styled("disabled", Style::Red),
            ListedServer { active: false, .. } => Cell::styled("inactive", Style::Yellow),
            ListedServer { passive: true, .. } => Cell::styled("passive", Style::Green),
            _ => Cell::styled("active", Style::Green),
        };
        table.row([
            server.name.as_str().into(),
            state,
            server.backups.to_string().into(),
            server
                .last_backup_time
                .map_or_else(|| "-".to_owned(), second)
                .into(),
            server.description.clone().unwrap_or_default().into(),
        ]);
    }
    table
}
