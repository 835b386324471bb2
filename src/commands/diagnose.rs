//! `barmanfs diagnose`: one document with what somebody needs who looks for a fault from afar.
//!
//! It works on a damaged site: each part is read for itself, and what cannot be read is an `error` in its place. Every text
//! of the document is searched for secrets before it is printed.

mod host;
mod log;
mod repository;
mod server;

use serde_json::{Map, Value, json};

use crate::barman;
use crate::cli::GlobalOptions;
use crate::config::secrets::without_patterns;
use crate::config::{Config, ConfigError, Secrets};
use crate::error::{Error, Outcome};
use crate::health::standing::each;
use crate::invocation::Invocation;
use crate::moment;
use crate::output::{Format, Output};
use crate::report::ConfigReport;
use server::Diagnosed;

/// Runs the command, with a configuration that may not be readable. It fails only then.
pub(crate) fn run(
    out: &mut Output,
    options: &GlobalOptions,
    config: Result<&Config, &ConfigError>,
) -> Result<Outcome, Error> {
    let secrets = config.map_or_else(|_| Secrets::default(), |config| config.secrets.clone());
    let secrets = secrets.with(std::env::var("PGPASSWORD").ok());
    let invocation = Invocation::current(options.config.as_deref());
    let servers = config.map_or_else(
        |_| Vec::new(),
        |config| {
            let names = server::names(config);
            let checks = server::checks(config, &invocation);
            each(&names, |name| Diagnosed::of(config, name, &checks))
        },
    );
    let mut document = match options.format {
        Some(_) => barmans(config, &servers),
        None => document(config, &servers),
    };
    hide(&mut document, &secrets);
    match (options.format, document) {
        (Some(Format::Json), Value::Object(parts)) => {
            for (name, value) in parts {
                out.barman_result(&name, value)?;
            }
        }
        (Some(_), document) => out.line(format_args!("{document:#}"))?,
        (None, document) => out.json(&document)?,
    }
    match config {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => Err(Error::failed(secrets.remove(&error.to_string()))),
    }
}

fn document(config: Result<&Config, &ConfigError>, servers: &[Diagnosed]) -> Value {
    let configuration = match config {
        Ok(config) => part(to_value(&ConfigReport::new(config))),
        Err(error) => part(Err(Error::failed(error.to_string()))),
    };
    let of_config = |read: fn(&Config) -> Value| match config {
        Ok(config) => read(config),
        Err(_) => part(Err(Error::failed("The configuration does not say where it is"))),
    };
    json!({
        "time": moment::now(),
        "host": host::of(),
        "configuration": configuration,
        "repository": of_config(repository::of),
        "mounts": of_config(repository::mounts),
        "servers": servers.iter().map(Diagnosed::value).collect::<Vec<_>>(),
        "log": of_config(log::of),
    })
}

/// The same in Barman's shape.
fn barmans(config: Result<&Config, &ConfigError>, servers: &[Diagnosed]) -> Value {
    let named = servers.iter().map(|server| {
        let fields = barman::diagnosis::server(&server.shown, &server.backups, &server.last_wal);
        (server.name.clone(), Value::Object(fields))
    });
    json!({
        "global": barman::diagnosis::global(config.ok(), &host::of()),
        "models": barman::diagnosis::models(config.ok()),
        "servers": named.collect::<Map<_, _>>(),
    })
}

/// What was read, with `error` beside it; or the reason why it could not be read.
fn part(read: Result<Value, Error>) -> Value {
    let (mut fields, error) = match read {
        Ok(Value::Object(fields)) => (fields, None),
        Ok(value) => (Map::from_iter([("list".to_owned(), value)]), None),
        Err(error) => (Map::new(), Some(error.to_string())),
    };
    fields.insert("error".to_owned(), json!(error));
    Value::Object(fields)
}

fn to_value(value: &impl serde::Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::failed(error.to_string()))
}

/// Takes secrets out of all texts.
fn hide(value: &mut Value, secrets: &Secrets) {
    match value {
        Value::String(text) => *text = secrets.remove(&without_patterns(text)),
        Value::Array(values) => values.iter_mut().for_each(|value| hide(value, secrets)),
        Value::Object(fields) => fields.values_mut().for_each(|value| hide(value, secrets)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_cannot_be_read_is_its_error() {
        assert_eq!(part(Ok(json!({"a": 1}))), json!({"a": 1, "error": null}));
        assert_eq!(part(Ok(json!([1]))), json!({"list": [1], "error": null}));
        assert_eq!(part(Err(Error::failed("gone"))), json!({"error": "gone"}));
    }

    #[test]
    fn no_text_keeps_a_secret_however_deep_it_is() {
        let secrets = Secrets::default().with(Some("hunter2".to_owned()));
        let mut value = json!({"a": [{"b": "x hunter2", "c": "PGPASSWORD=y z"}], "d": 2});
        hide(&mut value, &secrets);
        assert_eq!(
            value,
            json!({"a": [{"b": "x <hidden>", "c": "PGPASSWORD=<hidden> z"}], "d": 2})
        );
    }
}
