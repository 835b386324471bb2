//! Makes a [`Config`] of what the files say. A wrong value never makes the whole unusable: it disables the server that it
//! belongs to, or is ignored where Barman ignores it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_bucket::Location;
use barmanfs_catalog::ServerName;

use super::bucket;
use super::files::{Files, GLOBAL_SECTION, Line, Merged};
use super::interpolation::Interpolation;
use super::key_places;
use super::keys::{self, Known};
use super::origin::{Notice, Origin, Problem};
use super::secrets::without_patterns;
use super::setting::{Effect, Setting, Source, Wrong, shown};
use super::values::{
    DailyShare, absolute, boolean, daily_share, given, log_level, recovery_target_action, user_name,
};
use super::{BucketKeys, Config, ConfigError, Misnamed, Model, Secrets, ServerConfig, model};
use crate::size;

/// Converts sections into a [`Config`], and collects warnings.
pub(super) struct Reader<'a> {
    files: &'a Files,
    /// Whether a repository must be named.
    needs_repository: bool,
    notices: Vec<Notice>,
    secrets: Secrets,
}

impl<'a> Reader<'a> {
    pub(super) fn new(files: &'a Files) -> Self {
        Self {
            files,
            needs_repository: true,
            notices: files.notices.clone(),
            secrets: Secrets::of(files),
        }
    }

    /// Reads a configuration that need not name a repository.
    pub(super) fn without_need_of_repository(self) -> Self {
        Self {
            needs_repository: false,
            ..self
        }
    }

    pub(super) fn read(mut self) -> Result<Config, ConfigError> {
        let mut config = Config {
            file: self.files.main.path().to_owned(),
            repository: PathBuf::new(),
            location: None,
            cache_max_bytes: bucket::CACHE_MAX_BYTES,
            log_level: None,
            log_file: None,
            barman_user: None,
            recovery_target_action: None,
            is_barmans: false,
            bucket: BucketKeys::default(),
            keys: key_places::KeyPlaces::default(),
            verify_budget: DailyShare::default(),
            servers: Vec::new(),
            models: Vec::new(),
            misnamed: Vec::new(),
            settings: Vec::new(),
            notices: Vec::new(),
            secrets: self.secrets.clone(),
        };
        for line in &self.files.global.lines {
            let effect = self.global(&mut config, line)?;
            let source = match line.from_default {
                true => Source::Default,
                false => Source::Own,
            };
            config
                .settings
                .push(self.setting(&self.files.global, line, source, effect));
        }
        if self.needs_repository && config.repository.as_os_str().is_empty() {
            return Err(self.without_repository());
        }
        for section in &self.files.sections {
            self.section(&mut config, section);
        }
        config
            .misnamed
            .extend(self.files.lost.iter().map(|problem| Misnamed {
                name: problem.origin.file().display().to_string(),
                problem: problem.clone(),
            }));
        self.notices.sort();
        self.notices.dedup();
        config.notices = self.notices;
        config.is_barmans = self.files.is_barmans;
        config.hide_secrets();
        Ok(config)
    }

    fn without_repository(&self) -> ConfigError {
        let sections = match self.files.is_barmans {
            true => "[barman] or [barmanfs]",
            false => "[barmanfs]",
        };
        let malformed = self.files.of_all.iter().chain(&self.files.lost).next();
        let malformed = malformed.map_or(String::new(), |problem| format!(" ({problem})"));
        ConfigError::Incomplete {
            file: self.files.main.path().to_owned(),
            message: format!(
                "Nothing says where the backups are: add \"repository = /var/lib/barmanfs\" to {sections}{malformed}"
            ),
        }
    }

    /// A key of the global section.
    fn global(&mut self, config: &mut Config, line: &'a Line) -> Result<Effect, ConfigError> {
        let key = line.entry.key.as_str();
        let value = match Interpolation::of(&self.files.global, &self.files.global).value(line) {
            Ok(value) => value,
            // Of these, only the repository cannot be left out.
            Err(message) if key == "repository" || key_places::is_one(key) => {
                return Err(self.at(line, &message));
            }
            Err(message) => return Ok(self.ignored(line, &message)),
        };
        let Some(value) = given(&value) else {
            return Ok(Effect::Unset);
        };
        match (keys::known(key), &self.files.not_included) {
            (Known::Global, Some(why)) if key == "configuration_files_directory" => {
                Ok(self.ignored(line, why))
            }
            (Known::Global, _) => match self.set_global(config, key, &value) {
                Ok(()) => Ok(Effect::Obeyed),
                // The default of these would be less safe than what somebody meant, or somewhere else.
                Err(message)
                    if matches!(key, "repository" | "cache" | "recovery_target_action")
                        || key_places::is_one(key) =>
                {
                    Err(self.at(line, &message))
                }
                Err(message) => Ok(self.ignored(line, &message)),
            },
            (Known::ServerOrGlobal, _) => Ok(Effect::Obeyed),
            (Known::Server, _) => Ok(self.useless(line, "it belongs into a server's section")),
            (known, _) => Ok(self.unusual(line, known)),
        }
    }

    fn section(&mut self, config: &mut Config, section: &'a Merged) {
        let misnamed = |origin: &Origin, message: String| Misnamed {
            name: section.name.clone(),
            problem: Problem {
                origin: origin.clone(),
                message,
                forbids_storing: true,
            },
        };
        if model::is_model(section) {
            let model = self.model(section);
            config.models.push(model);
            return;
        }
        match ServerName::from_str(&section.name) {
            Ok(name) => {
                let server = self.server(name, section, &config.repository);
                config.servers.push(server);
            }
            Err(error) => config.misnamed.push(misnamed(&section.origin, error.to_string())),
        }
    }

    fn server(&mut self, name: ServerName, section: &'a Merged, repository: &Path) -> ServerConfig {
        let mut server = ServerConfig::new(name, self.files.is_barmans);
        server.hooks.configuration = self.files.main.path().to_owned();
        server.secrets = self.secrets.clone();
        server.errors.extend_from_slice(&section.problems);
        server.errors.extend_from_slice(&self.files.of_all);
        // What cannot be read may say that more is kept.
        server.holds_deletions = self.files.lost.first().map(ToString::to_string);
        if let Some(line) = section.line("model")
            && given(&line.entry.value).is_some()
            && let Err(message) = boolean(&line.entry.value)
        {
            // It may be a model, and not a server.
            server.errors.push(Problem {
                origin: line.entry.origin.clone(),
                message: format!("'model' {message}"),
                forbids_storing: true,
            });
        }
        let active = model::active(self.files, &mut server, section, repository);
        let mut lines: Vec<(&Line, Source, &Merged)> = Vec::new();
        if let Some(model) = active {
            let source = Source::Model(model.name.clone());
            lines.extend(model::overrides(model).map(|line| (line, source.clone(), model)));
        }
        let mut taken: BTreeSet<&str> = lines.iter().map(|(line, ..)| line.entry.key.as_str()).collect();
        for line in &section.lines {
            if taken.insert(&line.entry.key) {
                lines.push((line, source(line), section));
            }
        }
        for line in &self.files.global.lines {
            let key = line.entry.key.as_str();
            if keys::known(key) == Known::ServerOrGlobal && taken.insert(key) {
                lines.push((line, Source::Global, section));
            }
        }
        lines.sort_by_key(|(line, ..)| keys::rank(&line.entry.key));
        for (line, source, section) in lines {
            let effect = self.set(&mut server, section, line);
            let setting = self.setting(section, line, source, effect);
            server.settings.push(setting);
        }
        self.name_idle(&mut server);
        server.errors.sort();
        // It is only shown.
        server.description = server.description.map(|text| self.secrets.hide(text));
        server
    }

    /// A model. Its values are tried, so that `config check` says what is wrong before somebody switches to it.
    fn model(&mut self, section: &'a Merged) -> Model {
        let mut scratch = model::scratch(self.files.is_barmans);
        let mut settings = Vec::new();
        for line in &section.lines {
            let key = line.entry.key.as_str();
            let effect = match &mut scratch {
                _ if key == "model" => Effect::Obeyed,
                _ if keys::is_kept_by_models(key) => self.useless(line, "a model does not set it"),
                Some(scratch) => self.set(scratch, section, line),
                None => Effect::Obeyed,
            };
            settings.push(self.setting(section, line, source(line), effect));
        }
        let cluster = model::cluster(section, self.files);
        if cluster.is_none() {
            let message = format!(
                "Model [{}] has no 'cluster': no server can be switched to it",
                section.name
            );
            self.notices.push(Notice::of_form(&section.origin, message));
        }
        Model {
            name: section.name.clone(),
            cluster,
            settings,
            errors: section.problems.clone(),
        }
    }

    /// Sets a key of a server.
    fn set(&mut self, server: &mut ServerConfig, section: &'a Merged, line: &'a Line) -> Effect {
        let key = line.entry.key.as_str();
        let known = keys::known(key);
        if !matches!(known, Known::Server | Known::ServerOrGlobal) {
            // What [DEFAULT] supplies may be meant for other sections, or for %(key)s.
            return match (known, line.from_default) {
                (Known::Global, true) | (Known::Unknown, true) => {
                    Effect::Nothing("%(key)s may refer to it".to_owned())
                }
                (Known::Global, false) => self.useless(
                    line,
                    &format!("it belongs into [{GLOBAL_SECTION}], not into a server's section"),
                ),
                (known, _) => self.unusual(line, known),
            };
        }
        let set = match Interpolation::of(section, &self.files.global).value(line) {
            Ok(value) => match given(&value) {
                Some(value) => server.set(key, &value),
                None => return Effect::Unset,
            },
            Err(message) => Err(Wrong {
                message,
                forbids_storing: keys::forbids_storing(key),
            }),
        };
        match set {
            Ok(effect) => {
                match &effect {
                    Effect::Mapped(what) => self.warn(&line.entry.origin, format!("'{key}' {what}")),
                    Effect::Nothing(why) => return self.useless(line, why),
                    Effect::Obeyed | Effect::Unset | Effect::Wrong(_) => {}
                }
                effect
            }
            Err(wrong) => self.wrong(server, line, &wrong),
        }
    }

    /// A value that is wrong disables its server, except where Barman would ignore it and that is as safe.
    fn wrong(&mut self, server: &mut ServerConfig, line: &Line, wrong: &Wrong) -> Effect {
        let key = &line.entry.key;
        if line.is_barmans && !keys::is_about_safety(key) {
            return self.ignored(line, &wrong.message);
        }
        server.errors.push(Problem {
            origin: line.entry.origin.clone(),
            message: format!("'{key}' {}", wrong.message),
            forbids_storing: wrong.forbids_storing,
        });
        Effect::Wrong(format!("{}; the server is disabled", wrong.message))
    }

    fn setting(&self, section: &Merged, line: &Line, source: Source, effect: Effect) -> Setting {
        let value = Interpolation::of(section, &self.files.global).value(line);
        Setting {
            key: line.entry.key.clone(),
            value: shown(
                &line.entry.key,
                &value.unwrap_or_else(|_| line.entry.value.clone()),
                &self.secrets,
            ),
            origin: line.entry.origin.clone(),
            source,
            effect,
        }
    }

    fn at(&self, line: &Line, message: &str) -> ConfigError {
        ConfigError::At {
            origin: line.entry.origin.clone(),
            message: format!("'{}' {}", line.entry.key, self.secrets.remove(message)),
        }
    }

    /// Warns of a wrong value that is ignored.
    fn ignored(&mut self, line: &Line, message: &str) -> Effect {
        let message = format!("{message}; it is ignored");
        self.warn(&line.entry.origin, format!("'{}' {message}", line.entry.key));
        Effect::Wrong(message)
    }

    /// A key that has no effect on servers and global section.
    fn unusual(&mut self, line: &Line, known: Known) -> Effect {
        let key = &line.entry.key;
        match (known, keys::nearest(key)) {
            (Known::NoEffect(why), _) => self.useless(line, why),
            (_, Some(meant)) => self.unknown(line, &format!("unknown: did you mean '{meant}'?")),
            (_, None) => self.unknown(line, "unknown"),
        }
    }

    /// Names what does nothing beside the other keys of the server, now that all of them are known. What is set for all
    /// servers is for those that it concerns.
    fn name_idle(&mut self, server: &mut ServerConfig) {
        let mut settings = std::mem::take(&mut server.settings);
        let own = settings
            .iter_mut()
            .filter(|setting| setting.source != Source::Global);
        for setting in own.filter(|setting| setting.effect == Effect::Obeyed) {
            if let Some(why) = server.idle(&setting.key) {
                setting.effect = self.nothing(&setting.origin, &setting.key, why);
            }
        }
        server.settings = settings;
    }

    fn useless(&mut self, line: &Line, why: &str) -> Effect {
        self.nothing(&line.entry.origin, &line.entry.key, why)
    }

    fn nothing(&mut self, origin: &Origin, key: &str, why: &str) -> Effect {
        self.notices.push(Notice {
            origin: origin.clone(),
            message: format!("'{key}' has no effect: {why}"),
            is_without_effect: true,
            is_about_a_value: true,
        });
        Effect::Nothing(why.to_owned())
    }

    fn unknown(&mut self, line: &Line, what: &str) -> Effect {
        self.notices.push(Notice {
            origin: line.entry.origin.clone(),
            message: format!("'{}' is {what}", line.entry.key),
            is_without_effect: true,
            is_about_a_value: true,
        });
        Effect::Wrong(format!("{what}; it is ignored"))
    }

    fn warn(&mut self, origin: &Origin, message: String) {
        self.notices.push(Notice {
            origin: origin.clone(),
            message,
            is_without_effect: false,
            is_about_a_value: true,
        });
    }
}

impl Config {
    /// Takes secrets out of messages, which quote values.
    fn hide_secrets(&mut self) {
        let secrets = self.secrets.clone();
        let hide = |text: &mut String| *text = secrets.remove(&without_patterns(text));
        let problems = self.servers.iter_mut().flat_map(|server| &mut server.errors);
        let misnamed = self.misnamed.iter_mut().map(|section| &mut section.problem);
        problems
            .chain(misnamed)
            .for_each(|problem| hide(&mut problem.message));
        self.notices
            .iter_mut()
            .for_each(|notice| hide(&mut notice.message));
        let of_servers = self.servers.iter_mut().flat_map(|server| &mut server.settings);
        let of_models = self.models.iter_mut().flat_map(|model| &mut model.settings);
        for setting in of_servers.chain(of_models).chain(&mut self.settings) {
            match &mut setting.effect {
                Effect::Obeyed | Effect::Unset => {}
                Effect::Mapped(text) | Effect::Nothing(text) | Effect::Wrong(text) => hide(text),
            }
        }
    }
}

/// Where a line of a section comes from.
fn source(line: &Line) -> Source {
    match line.from_default {
        true => Source::Default,
        false => Source::Own,
    }
}

impl Reader<'_> {
    /// Sets a key of the global section.
    fn set_global(&self, config: &mut Config, key: &str, value: &str) -> Result<(), String> {
        match key {
            "repository" if Location::is_url(value) => {
                let location = Location::parse(value)?;
                config.repository = bucket::home_in(&self.files.cache(), &location);
                config.location = Some(location);
                Ok(())
            }
            "repository" => {
                config.repository = absolute(value)?;
                config.location = None;
                Ok(())
            }
            "cache_max_bytes" => {
                config.cache_max_bytes =
                    size::bytes(value).map_err(|allowed| format!("is '{value}': {allowed}"))?;
                Ok(())
            }
            _ => set_global(config, key, value),
        }
    }
}

fn set_global(config: &mut Config, key: &str, value: &str) -> Result<(), String> {
    match key {
        "cache" => drop(absolute(value)?),
        "log_file" => config.log_file = Some(absolute(value)?),
        "barman_user" => config.barman_user = Some(user_name(value)?),
        "recovery_target_action" => config.recovery_target_action = Some(recovery_target_action(value)?),
        "log_level" => config.log_level = Some(log_level(value)?),
        "verify_budget" => config.verify_budget = daily_share(value)?,
        key if key_places::is_one(key) => config.keys.set(key, value)?,
        key if bucket::is_one(key) => config.bucket.set(key, value)?,
        // The include directory was read before.
        _ => {}
    }
    Ok(())
}
