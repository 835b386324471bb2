//! `barmanfs config-switch` and `barmanfs config-update`: change the configuration of servers, without editing an
//! administrator's file.

use barmanfs_catalog::{ServerName, SiteFiles};

use super::{App, receive_wal};
use crate::cli::config::{ConfigSwitchArgs, ConfigUpdateArgs};
use crate::config::{AUTOMATIC, Config, ServerConfig, Value, model_file, update};
use crate::error::{Error, Outcome};
use crate::output::printable;

/// Runs `config-switch`.
pub(crate) fn switch(app: &mut App, args: &ConfigSwitchArgs) -> Result<Outcome, Error> {
    let server = app.configured(&args.server)?.clone();
    let Some(name) = &args.model else {
        let changed = change(app, std::slice::from_ref(&server.name), |_, files| {
            Ok(files.remove(&model_file(&server.name))?)
        })?;
        app.out
            .line(format_args!("Server {} has no active model", server.name))?;
        return finish(app, &changed);
    };
    check_model(app, &server, name)?;
    if server.active_model.as_ref() == Some(name) {
        app.out.line(format_args!(
            "Model {name} of server {} is active already",
            server.name
        ))?;
        return Ok(Outcome::Done);
    }
    let changed = change(app, std::slice::from_ref(&server.name), |_, files| {
        Ok(files.write(&model_file(&server.name), format!("{name}\n").as_bytes())?)
    })?;
    app.out
        .line(format_args!("Model {name} of server {} is active", server.name))?;
    finish(app, &changed)
}

/// Refuses a model that is not there, is for other servers, or has a wrong value.
fn check_model(app: &App, server: &ServerConfig, name: &str) -> Result<(), Error> {
    let models = &app.config.models;
    let Some(model) = models.iter().find(|model| model.name == name) else {
        let is_for = |cluster: Option<&str>| cluster == Some(server.cluster());
        let names: Vec<&str> = models
            .iter()
            .filter(|model| is_for(model.cluster.as_deref()))
            .map(|model| model.name.as_str())
            .collect();
        let hint = match names.as_slice() {
            [] => format!(
                "Add a section with 'model = true' and 'cluster = {}'",
                server.cluster()
            ),
            names => format!("There are: {}", names.join(", ")),
        };
        return Err(Error::failed(format!("There is no model '{name}'")).hint(hint));
    };
    if model.cluster.as_deref() != Some(server.cluster()) {
        return Err(Error::failed(format!(
            "Model '{name}' is of cluster '{}', server '{}' is of cluster '{}'",
            model.cluster.as_deref().unwrap_or_default(),
            server.name,
            server.cluster()
        )));
    }
    let setting = model.settings.iter().find(|setting| setting.is_wrong());
    let setting = setting.map(|setting| format!("'{}' at {}", setting.key, setting.origin));
    let wrong = model.errors.first().map(ToString::to_string).or(setting);
    wrong.map_or(Ok(()), |wrong| {
        Err(
            Error::failed(format!("Model '{name}' has something wrong: {wrong}"))
                .hint("'barmanfs config check' says what"),
        )
    })
}

/// Runs `config-update`.
pub(crate) fn update(app: &mut App, args: &ConfigUpdateArgs) -> Result<Outcome, Error> {
    let changes = update::changes(&args.changes, &app.config).map_err(Error::failed)?;
    let repository = app.config.repository.clone();
    let servers: Vec<ServerName> = app
        .config
        .servers
        .iter()
        .map(|server| server.name.clone())
        .collect();
    let changed = change(app, &servers, |app, files| {
        // Read under the lock: another process may have made changes since.
        let mut sections = update::written(&repository)?;
        for (name, keys) in changes {
            sections.entry(name).or_default().extend(keys);
        }
        let text = update::render(&sections);
        let refused = |why: String| Error::failed(format!("Nothing is changed: {why}"));
        let tried = app
            .reload_with(&text)
            .map_err(|error| refused(error.to_string()))?;
        match update::worse(&app.reload()?, &tried) {
            None => Ok(files.write(AUTOMATIC, text.as_bytes())?),
            Some(why) => Err(refused(why)),
        }
    })?;
    finish(app, &changed)
}

/// What a change did to a server.
struct Changed {
    server: ServerName,
    /// `key: OLD -> NEW`
    lines: Vec<String>,
}

/// Changes files of the repository, reads the configuration again, and compares the servers before and after.
fn change(
    app: &mut App,
    servers: &[ServerName],
    work: impl FnOnce(&App, &SiteFiles<'_>) -> Result<(), Error>,
) -> Result<Vec<Changed>, Error> {
    let repository = app.repository_for_writing()?;
    let files = repository.site_files()?;
    work(app, &files)?;
    drop(files);
    let now = app.reload()?;
    let before = std::mem::replace(&mut app.config, now);
    let differences = servers.iter().map(|server| Changed {
        server: server.clone(),
        lines: differences(&before, &app.config, server),
    });
    Ok(differences.filter(|changed| !changed.lines.is_empty()).collect())
}

fn differences(before: &Config, now: &Config, server: &ServerName) -> Vec<String> {
    let values = |config: &Config| {
        config
            .server(server.as_str())
            .map(ServerConfig::effective)
            .unwrap_or_default()
    };
    let shown = |value: Option<Value>| {
        value.map_or_else(
            || "not set".to_owned(),
            |value| printable(value.to_string().as_bytes()),
        )
    };
    let pairs = values(before).into_iter().zip(values(now));
    let mut lines: Vec<String> = pairs
        .filter(|((_, before), (_, now))| before != now)
        .map(|((key, before), (_, now))| format!("{key}: {} -> {}", shown(before), shown(now)))
        .collect();
    if let (Some(before), Some(now)) = (before.server(server.as_str()), now.server(server.as_str())) {
        let pairs = before
            .connection_strings()
            .into_iter()
            .zip(now.connection_strings());
        for ((key, before), (_, now)) in pairs {
            let is_shown = lines.iter().any(|line| line.starts_with(&format!("{key}: ")));
            if before != now && !is_shown {
                lines.push(format!("{key}: a part of it that is not shown"));
            }
        }
    }
    lines
}

/// Prints the changes. A process that receives WAL has the old configuration: it ends, and its service or cron starts
/// another one.
fn finish(app: &mut App, changed: &[Changed]) -> Result<Outcome, Error> {
    let mut failed = None;
    for Changed { server, lines } in changed {
        for line in lines {
            app.out.line(format_args!("{server}: {line}"))?;
        }
        // One that has ended meanwhile needs no signal.
        if app.repository()?.receiver(server)?.is_some()
            && let Err(error) = receive_wal::stop(app, server)
            && app.repository()?.receiver(server)?.is_some()
        {
            failed.get_or_insert(
                error.context("The configuration is changed, but a receiver still has the old one"),
            );
        }
    }
    if changed.is_empty() {
        app.out.line("No value has changed")?;
    }
    failed.map_or(Ok(Outcome::Done), Err)
}
