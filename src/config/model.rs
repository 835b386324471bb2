//! Models: sections that override keys of a server, for the time when somebody switches to them.

use std::str::FromStr;

use barmanfs_catalog::ServerName;

use super::files::{Files, Line, Merged};
use super::interpolation::Interpolation;
use super::keys;
use super::origin::{File, Problem};
use super::server::ServerConfig;
use super::setting::Setting;
use super::state;
use super::values::{boolean, given};

/// A section with `model = true`.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// The section's name.
    pub(crate) name: String,
    /// The servers it is for: those with the same `cluster`.
    pub(crate) cluster: Option<String>,
    /// Its keys, and what they do when it is active.
    pub(crate) settings: Vec<Setting>,
    /// Why no server can be switched to it.
    pub(crate) errors: Vec<Problem>,
}

/// Whether a section is a model.
pub(super) fn is_model(section: &Merged) -> bool {
    let line = section.line("model");
    line.is_some_and(|line| boolean(&line.entry.value) == Ok(true))
}

/// The group of servers that a model is for.
pub(super) fn cluster(model: &Merged, files: &Files) -> Option<String> {
    given(
        &Interpolation::of(model, &files.global)
            .value(model.line("cluster")?)
            .ok()?,
    )
}

/// The lines of a model that count when it is active. An empty value overrides nothing, and directories and hooks belong to
/// the server.
pub(super) fn overrides(model: &Merged) -> impl Iterator<Item = &Line> {
    model.lines.iter().filter(|line| {
        let key = line.entry.key.as_str();
        !matches!(key, "model" | "cluster")
            && !keys::is_kept_by_models(key)
            && given(&line.entry.value).is_some()
    })
}

/// A server without a section, on which a model's values are tried.
pub(super) fn scratch(is_barmans: bool) -> Option<ServerConfig> {
    let name = ServerName::from_str("model").ok()?;
    Some(ServerConfig::new(name, is_barmans))
}

/// The active model of a server: its name, and its section if it can be used. Otherwise the server gets an error: it would
/// run with settings that nobody has chosen.
pub(super) fn active<'a>(
    files: &'a Files,
    server: &mut ServerConfig,
    section: &Merged,
    repository: &std::path::Path,
) -> Option<&'a Merged> {
    let path = state::file(repository, &state::model_file(&server.name));
    let mut fail = |message: String| {
        server.errors.push(Problem {
            origin: File::new(&path).at(1),
            message,
            forbids_storing: false,
        });
        None
    };
    let name = match state::active_model(repository, &server.name) {
        Ok(name) => name?,
        Err(error) => return fail(format!("The active model cannot be read: {error}")),
    };
    let reset = "'barmanfs config-switch SERVER --reset' returns to the server's own settings";
    let model = files
        .sections
        .iter()
        .find(|section| section.name == name && is_model(section));
    let Some(model) = model else {
        return fail(format!("The active model '{name}' is in no file: {reset}"));
    };
    let group = section
        .line("cluster")
        .and_then(|line| given(&Interpolation::of(section, &files.global).value(line).ok()?));
    if cluster(model, files).as_deref() != Some(group.as_deref().unwrap_or(&section.name)) {
        return fail(format!(
            "The active model '{name}' is of another cluster: {reset}"
        ));
    }
    if let Some(problem) = model.problems.first() {
        return fail(format!(
            "The active model '{name}' has something wrong: {problem}"
        ));
    }
    server.active_model = Some(name);
    Some(model)
}
