//! The changes that `config-update` makes: checked one by one, tried as a whole ([`worse`]), then written into a file of our own that is read last.
//!
//! The input is Barman's: a list of objects, each with `scope` (`server` or `model`), `server_name` or `model_name`, and keys
//! with their values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::keys::{self, Known};
use super::origin::File;
use super::state::Missing;
use super::{Config, ConfigError, Setting, model, state};
use super::{files, ini};

/// The sections of the file, with their keys.
pub(crate) type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// Reads and checks the changes. Nothing is changed if one of them is wrong.
///
/// # Errors
/// What is wrong with the first wrong one. Quotes no value, which may be a secret.
pub(crate) fn changes(json: &str, config: &Config) -> Result<Sections, String> {
    let list: Vec<Map<String, Value>> = serde_json::from_str(json).map_err(|error| {
        // The error's own text may quote a value.
        let what = if error.is_data() {
            "something else is"
        } else {
            "it is no JSON"
        };
        format!(
            "Expected a JSON list of objects: {what} at line {}, column {}",
            error.line(),
            error.column()
        )
    })?;
    let mut sections = Sections::new();
    for (nth, object) in list.iter().enumerate() {
        let (name, keys) =
            section(object, config).map_err(|message| format!("Change {}: {message}", nth + 1))?;
        sections.entry(name).or_default().extend(keys);
    }
    Ok(sections)
}

fn section(
    object: &Map<String, Value>,
    config: &Config,
) -> Result<(String, BTreeMap<String, String>), String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let is_model = match text("scope") {
        Some("server") => false,
        Some("model") => true,
        _ => return Err("'scope' must be \"server\" or \"model\"".to_owned()),
    };
    let name_key = if is_model { "model_name" } else { "server_name" };
    let name = text(name_key).ok_or_else(|| format!("'{name_key}' is missing"))?;
    let known_model = config.models.iter().any(|model| model.name == name);
    match (is_model, known_model, config.server(name).is_some()) {
        (true, _, true) => return Err(format!("'{name}' is a server, not a model")),
        (false, true, _) => return Err(format!("'{name}' is a model, not a server")),
        (false, false, false) => return Err(format!("There is no server '{name}'")),
        _ => {}
    }
    let mut keys = BTreeMap::new();
    if is_model && !known_model {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let reserved = [
            files::GLOBAL_SECTION,
            files::BARMAN_SECTION,
            files::DEFAULT_SECTION,
            "all",
        ];
        if !name.chars().all(is_name) || name.is_empty() || reserved.contains(&name) {
            return Err(
                "the name of a new model has letters, digits, '_', '-' and '.', and is no reserved word"
                    .to_owned(),
            );
        }
        if !object.contains_key("cluster") {
            return Err(format!("the new model '{name}' needs 'cluster'"));
        }
        keys.insert("model".to_owned(), "on".to_owned());
    }
    for (key, value) in object
        .iter()
        .filter(|(key, _)| *key != "scope" && *key != name_key)
    {
        let key = key.to_lowercase();
        if key == "cluster"
            && config
                .server(name)
                .is_some_and(|server| server.active_model.is_some())
        {
            return Err("'cluster' cannot be changed while a model is active".to_owned());
        }
        let value = checked(&key, value, is_model).map_err(|message| format!("'{key}' {message}"))?;
        keys.insert(key, value);
    }
    Ok((name.to_owned(), keys))
}

/// The text of a value, if the key may have it.
fn checked(key: &str, value: &Value, is_model: bool) -> Result<String, String> {
    let text = match value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => value.trim().to_owned(),
        Value::Array(_) | Value::Object(_) => return Err("is no text, number or switch".to_owned()),
    };
    if text.contains(char::is_control) {
        return Err("has a line break or another control character in its value".to_owned());
    }
    if key == "model" {
        return Err("cannot be set: a section stays a server or a model".to_owned());
    }
    if is_model && keys::is_kept_by_models(key) {
        return Err("cannot be set by a model".to_owned());
    }
    if key == "conninfo" && super::values::given(&text).is_none() {
        return Err("is empty: a server needs one".to_owned());
    }
    match keys::known(key) {
        Known::Server | Known::ServerOrGlobal => {}
        Known::NoEffect(_) => return Ok(text),
        Known::Global => return Err("is a key of the global section".to_owned()),
        Known::Unknown => return Err("is unknown".to_owned()),
    }
    if let (Some(value), Some(mut scratch)) = (super::values::given(&text), model::scratch(false)) {
        scratch.set(key, &value).map_err(|wrong| wrong.message)?;
    }
    Ok(text)
}

/// What the file of `config-update` says now.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn written(repository: &Path) -> Result<Sections, ConfigError> {
    let path = state::file(repository, state::AUTOMATIC);
    let bytes = state::read(&path).map_err(|source| ConfigError::Read {
        file: path.clone(),
        source,
    })?;
    let Some(bytes) = bytes else {
        return Ok(Sections::new());
    };
    let contents = ini::parse(&File::new(&path), &bytes);
    let mut sections = Sections::new();
    let missing = state::missing(&bytes, &contents.sections);
    let mut is_whole = missing == Missing::Of(BTreeSet::new()) && contents.stray.is_empty();
    for section in contents.sections {
        is_whole &= section.malformed.is_empty() && section.entries.iter().all(|entry| entry.is_text);
        let entries = section.entries.into_iter().map(|entry| (entry.key, entry.value));
        sections
            .entry(section.name.unwrap_or_default())
            .or_default()
            .extend(entries);
    }
    match is_whole {
        true => Ok(sections),
        false => Err(ConfigError::Incomplete {
            file: path,
            message: "The file is not as it was written, and earlier changes may be lost: remove it, then make these \
                      changes again"
                .to_owned(),
        }),
    }
}

/// What a change would make worse; `None` if nothing is.
pub(crate) fn worse(before: &Config, after: &Config) -> Option<String> {
    for server in &before.servers {
        if after.server(server.name.as_str()).is_none() {
            return Some(format!("Server '{}' would not be there any more", server.name));
        }
    }
    for server in &after.servers {
        let known = before.server(server.name.as_str());
        let is_known = |message: &str| {
            known.is_some_and(|known| known.errors.iter().any(|problem| problem.message == message))
        };
        if let Some(problem) = server.errors.iter().find(|problem| !is_known(&problem.message)) {
            return Some(format!("Server '{}' would be disabled: {problem}", server.name));
        }
        let known = known.map(|known| known.settings.as_slice()).unwrap_or_default();
        if let Some(setting) = newly_wrong(known, &server.settings) {
            return Some(format!(
                "'{}' of server '{}' would be wrong",
                setting.key, server.name
            ));
        }
    }
    for model in &after.models {
        let known = before.models.iter().find(|known| known.name == model.name);
        let known = known.map(|known| known.settings.as_slice()).unwrap_or_default();
        if let Some(setting) = newly_wrong(known, &model.settings) {
            return Some(format!(
                "'{}' of model '{}' would be wrong",
                setting.key, model.name
            ));
        }
    }
    None
}

fn newly_wrong<'a>(before: &[Setting], after: &'a [Setting]) -> Option<&'a Setting> {
    let was_wrong = |key: &str| {
        before
            .iter()
            .any(|setting| setting.key == key && setting.is_wrong())
    };
    after
        .iter()
        .find(|setting| setting.is_wrong() && !was_wrong(&setting.key))
}

/// The text of the file.
pub(crate) fn render(sections: &Sections) -> String {
    let mut text = String::new();
    for (name, keys) in sections {
        let _infallible = writeln!(text, "\n[{name}]");
        for (key, value) in keys {
            // One pair of quotes around a value is removed when it is read.
            let _infallible = writeln!(text, "{key} = \"{value}\"");
        }
    }
    state::framed(sections.keys(), &text)
}
