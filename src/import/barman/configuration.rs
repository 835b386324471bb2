//! The section that a server needs here, from Barman's configuration.

use crate::config::secrets::HIDDEN;
use crate::config::{Config, Effect, ServerConfig};
use crate::error::Error;

/// The lines of a section for the server `name`, which has the name `from` in Barman's configuration. Passwords are not in them.
///
/// # Errors
/// When the configuration does not have this server.
pub(crate) fn section(barmans: &Config, from: &str, name: &str) -> Result<Vec<String>, Error> {
    let Some(server) = barmans.server(from) else {
        let names: Vec<&str> = barmans
            .servers
            .iter()
            .map(|server| server.name.as_str())
            .collect();
        return Err(Error::usage(format!(
            "{} has no server {from}; there are: {}",
            barmans.file.display(),
            names.join(", ")
        )));
    };
    let mut lines = vec![
        format!(
            "# From {}, server {from}. Passwords are left out: they belong into ~/.pgpass.",
            barmans.file.display()
        ),
        format!("[{name}]"),
    ];
    let (carried, left): (Vec<String>, Vec<String>) = settings(server);
    lines.extend(carried);
    if !left.is_empty() {
        lines.push("# Not carried over:".to_owned());
        lines.extend(left);
    }
    Ok(lines)
}

/// The settings that have an effect here, and the others, as comments with the reason.
fn settings(server: &ServerConfig) -> (Vec<String>, Vec<String>) {
    let (mut carried, mut left) = (Vec::new(), Vec::new());
    for setting in &server.settings {
        let value = without_password(&setting.value);
        let line = format!("{} = {value}", setting.key);
        match &setting.effect {
            Effect::Obeyed | Effect::Mapped(_) if value.contains(HIDDEN) => {
                left.push(format!(
                    "#   {line}  (write it with its password, or put that into ~/.pgpass)"
                ));
            }
            Effect::Obeyed => carried.push(line),
            Effect::Unset => {}
            Effect::Mapped(to) => carried.extend([format!("# {}: {to}", setting.key), line]),
            Effect::Nothing(why) | Effect::Wrong(why) => left.push(format!("#   {line}  ({why})")),
        }
    }
    (carried, left)
}

/// A connection string without the password that is not shown in it.
fn without_password(value: &str) -> String {
    let hidden = format!("password={HIDDEN}");
    value
        .replace(&format!("{hidden} "), "")
        .replace(&format!(" {hidden}"), "")
}
