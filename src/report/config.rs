//! `config check --json`.

use std::path::PathBuf;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::config::{Config, Effect, Model, ServerConfig, Setting, Source};

/// A configuration, line by line. No value in it is a secret.
#[derive(Debug, Serialize)]
pub(crate) struct ConfigReport {
    /// The main file.
    pub(crate) file: PathBuf,
    pub(crate) repository: PathBuf,
    /// Nothing is wrong.
    pub(crate) ok: bool,
    /// Why servers are disabled.
    pub(crate) errors: Vec<String>,
    /// What there is to say that belongs to no single key.
    pub(crate) warnings: Vec<String>,
    pub(crate) sections: Vec<ConfiguredSection>,
}

/// A section: the global one, a server's, or a model's.
#[derive(Debug, Serialize)]
pub(crate) struct ConfiguredSection {
    pub(crate) name: String,
    kind: &'static str,
    pub(crate) disabled: bool,
    /// The model whose keys are over a server's own.
    pub(crate) active_model: Option<String>,
    /// The keys that are set for it, also by inheritance.
    pub(crate) settings: Vec<Setting>,
    /// The values that count, defaults included; none for the global section.
    effective: Vec<EffectiveValue>,
}

/// A key and the value that counts.
#[derive(Debug, Serialize)]
struct EffectiveValue {
    key: &'static str,
    value: Option<String>,
}

impl ConfigReport {
    pub(crate) fn new(config: &Config) -> Self {
        let global = ConfiguredSection {
            name: "barmanfs".to_owned(),
            kind: "global",
            disabled: false,
            active_model: None,
            settings: config.settings.clone(),
            effective: Vec::new(),
        };
        let servers = config.servers.iter().map(ConfiguredSection::of_server);
        let models = config.models.iter().map(ConfiguredSection::of_model);
        let sections: Vec<_> = [global].into_iter().chain(servers).chain(models).collect();
        let errors: Vec<_> = config.errors().collect();
        let mut settings = sections.iter().flat_map(|section| &section.settings);
        Self {
            file: config.file.clone(),
            repository: config.shown_repository().into(),
            ok: errors.is_empty() && !settings.any(Setting::is_wrong),
            errors,
            warnings: config
                .notices
                .iter()
                .filter(|notice| !notice.is_about_a_value)
                .map(ToString::to_string)
                .collect(),
            sections,
        }
    }
}

impl ConfiguredSection {
    /// The section of a server.
    pub(crate) fn of_server(server: &ServerConfig) -> Self {
        let values = server.effective().into_iter();
        Self {
            name: server.name.to_string(),
            kind: "server",
            disabled: server.is_disabled(),
            active_model: server.active_model.clone(),
            settings: server.settings.clone(),
            effective: values
                .map(|(key, value)| EffectiveValue {
                    key,
                    value: value.map(|value| value.to_string()),
                })
                .collect(),
        }
    }
}

impl ConfiguredSection {
    /// The section of a model.
    fn of_model(model: &Model) -> Self {
        Self {
            name: model.name.clone(),
            kind: "model",
            disabled: false,
            active_model: None,
            settings: model.settings.clone(),
            effective: Vec::new(),
        }
    }
}

impl ConfiguredSection {
    /// The word for an effect, and what there is to say about it.
    pub(super) fn effect(effect: &Effect) -> (&'static str, Option<&String>) {
        match effect {
            Effect::Obeyed => ("obeyed", None),
            Effect::Unset => ("unset", None),
            Effect::Mapped(what) => ("mapped", Some(what)),
            Effect::Nothing(why) => ("none", Some(why)),
            Effect::Wrong(what) => ("wrong", Some(what)),
        }
    }

    /// The word for the section that a key comes from.
    pub(super) fn source(source: &Source) -> &'static str {
        match source {
            Source::Own => "section",
            Source::Default => "default",
            Source::Global => "global",
            Source::Model(_) => "model",
        }
    }
}

impl Serialize for Setting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (effect, message) = ConfiguredSection::effect(&self.effect);
        let source = ConfiguredSection::source(&self.source);
        let mut object = serializer.serialize_struct("Setting", 7)?;
        object.serialize_field("key", &self.key)?;
        object.serialize_field("value", &self.value)?;
        object.serialize_field("file", self.origin.file())?;
        object.serialize_field("line", &self.origin.line())?;
        object.serialize_field("source", source)?;
        object.serialize_field("effect", effect)?;
        object.serialize_field("message", &message)?;
        object.end()
    }
}
