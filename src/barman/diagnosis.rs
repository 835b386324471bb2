//! `diagnose`, in Barman's shape.

use barmanfs_catalog::{Backup, WalEntry};
use barmanfs_pg::wal_name::WalName;
use serde_json::{Map, Value, json};

use super::{backups, shown, units};
use crate::config::Config;
use crate::error::Error;
use crate::moment;
use crate::report::ShownServer;

/// The part `global`. Barman has nothing else of its host than this.
pub(crate) fn global(config: Option<&Config>, host: &Value) -> Value {
    let mut fields = Map::new();
    let settings = config
        .map(|config| config.settings.as_slice())
        .unwrap_or_default();
    for setting in settings {
        fields.insert(setting.key.clone(), json!(setting.value));
    }
    let errors: Vec<String> = config.into_iter().flat_map(Config::errors).collect();
    fields.insert("errors_list".to_owned(), json!(errors));
    json!({
        "config": fields,
        "system_info": {
            "barman_ver": super::grammar::version(),
            "kernel_ver": host["kernel"],
            "release": host["distribution"],
            "python_executable": host["program"],
            "python_ver": null,
            "rsync_ver": "",
            "ssh_ver": "",
            "timestamp": units::iso(moment::now()),
        },
    })
}

/// The part `models`.
pub(crate) fn models(config: Option<&Config>) -> Value {
    let models = config.map(|config| config.models.as_slice()).unwrap_or_default();
    let models = models.iter().map(|model| {
        let settings = model.settings.iter();
        let fields: Map<String, Value> = settings
            .map(|setting| (setting.key.clone(), json!(setting.value)))
            .collect();
        (model.name.clone(), json!({"config": fields}))
    });
    Value::Object(models.collect())
}

/// A server of the part `servers`.
pub(crate) fn server(
    server: &Option<ShownServer>,
    listed: &Result<Vec<Backup>, Error>,
    last_wal: &Result<Option<WalEntry>, Error>,
) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut messages: Vec<String> = server.iter().flat_map(|server| server.errors.clone()).collect();
    let stored = match listed {
        Ok(listed) => listed.iter().map(backup).collect(),
        Err(error) => {
            messages.push(error.to_string());
            Map::new()
        }
    };
    let mut wals = Map::new();
    if let Ok(Some(entry)) = last_wal
        && let WalName::Segment(name) = &entry.name
    {
        let wal = json!({
            "name": entry.name.to_string(),
            "size": entry.size_bytes,
            "time": units::iso(entry.archived_at),
            "compression": null,
            "encryption": null,
        });
        wals.insert(format!("{:08X}", name.timeline.0), wal);
    }
    let status = server
        .iter()
        .flat_map(|server| &server.hosts)
        .find(|host| host.host == "backup")
        .map(shown::status);
    fields.insert(
        "config".to_owned(),
        json!(server.as_ref().map(shown::configuration)),
    );
    fields.insert(
        "active_model".to_owned(),
        json!(server.as_ref().and_then(|server| server.active_model.clone())),
    );
    fields.insert("msg_list".to_owned(), json!(messages));
    fields.insert("status".to_owned(), json!(status.unwrap_or_default()));
    fields.insert("backups".to_owned(), Value::Object(stored));
    fields.insert("wals".to_owned(), json!({"last_archived_wal_per_timeline": wals}));
    fields
}

fn backup(backup: &Backup) -> (String, Value) {
    let mut fields = backups::head(backup);
    let facts = [
        ("mode", json!("postgres")),
        ("error", json!(backup.error)),
        ("begin_time", json!(units::iso(backup.begin_time))),
        ("end_time", json!(backup.end_time.map(units::iso))),
        ("begin_xlog", json!(backup.start_lsn)),
        ("end_xlog", json!(backup.stop_lsn)),
        ("timeline", json!(backup.timeline)),
        ("size", json!(backup.logical_bytes)),
        ("systemid", json!(backup.system_id)),
        ("version", json!(backup.server_version.to_string())),
    ];
    fields.extend(facts.map(|(key, value)| (key.to_owned(), value)));
    (backup.id.to_string(), Value::Object(fields))
}
