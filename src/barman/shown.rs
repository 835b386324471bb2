//! `show-servers` and the servers of `diagnose`: one object of Barman's keys, with what is configured and what the server
//! says.

use serde_json::{Map, Value, json};

use crate::config::{Value as ConfigValue, keys};
use crate::error::Error;
use crate::output::{Format, Output, printable};
use crate::report::{Facts, ShownHost, ShownServer};

/// `show-servers`
pub(crate) fn servers(out: &mut Output, format: Format, servers: &[ShownServer]) -> Result<(), Error> {
    let mut servers: Vec<&ShownServer> = servers.iter().collect();
    servers.sort_by(|one, other| one.server.cmp(&other.server));
    for server in servers {
        let fields = fields(server);
        match format {
            Format::Json => out.barman_result(&server.server, Value::Object(fields))?,
            Format::Console => {
                let state = match (server.active, server.disabled) {
                    (false, _) => " (inactive)",
                    (true, true) => " (WARNING: disabled)",
                    (true, false) => "",
                };
                out.line(format_args!("Server {}{state}:", server.server))?;
                for (key, value) in &fields {
                    out.line(format_args!("\t{key}: {}", as_python(value)))?;
                }
            }
        }
    }
    Ok(())
}

/// All that is shown of a server. Facts come over keys of the same name, as in Barman.
fn fields(server: &ShownServer) -> Map<String, Value> {
    let mut fields = configuration(server);
    fields.insert("passive_node".to_owned(), json!(server.passive));
    let backups = server.hosts.iter().find(|host| host.host == "backup");
    if let Some(host) = backups {
        fields.extend(status(host));
    }
    if let Some(host) = server.hosts.iter().find(|host| host.host == "wal") {
        let slot = slot(&host.facts);
        fields.insert("replication_slot".to_owned(), slot);
    }
    fields.insert("active_model".to_owned(), json!(server.active_model));
    fields
}

/// The configuration: each of Barman's keys, and ours. A key that is set nowhere and means nothing here is `null`.
pub(crate) fn configuration(server: &ShownServer) -> Map<String, Value> {
    let mut fields = Map::new();
    for key in keys::of_barman_alone() {
        fields.insert(key.to_owned(), Value::Null);
    }
    for shown in &server.configuration {
        let value = match &shown.effective {
            Some(ConfigValue::Switch(on)) => json!(on),
            Some(ConfigValue::Number(number)) => json!(number),
            Some(ConfigValue::Text(text)) => json!(text),
            None => json!(shown.value),
        };
        fields.insert(shown.key.clone(), value);
    }
    fields.insert("name".to_owned(), json!(server.server));
    fields.insert("disabled".to_owned(), json!(server.disabled));
    fields.insert("msg_list".to_owned(), json!(server.errors));
    fields
}

/// What the server says, under Barman's keys.
pub(crate) fn status(host: &ShownHost) -> Map<String, Value> {
    let facts = &host.facts;
    let setting = |name: &str| json!(facts.settings.get(name).cloned().flatten());
    let number = |name: &str| {
        let value = facts.settings.get(name).and_then(Option::as_ref);
        json!(value.and_then(|value| value.parse::<u64>().ok()))
    };
    let answers = host.answers.then_some(true);
    let mut fields = Map::new();
    let mut add = |key: &str, value: Value| {
        fields.insert(key.to_owned(), value);
    };
    for name in [
        "archive_command",
        "archive_mode",
        "config_file",
        "data_checksums",
        "data_directory",
        "hba_file",
        "hot_standby",
        "ident_file",
        "max_replication_slots",
        "max_wal_senders",
        "wal_compression",
        "wal_keep_size",
        "wal_level",
    ] {
        add(name, setting(name));
    }
    for name in ["archive_timeout", "checkpoint_timeout"] {
        add(name, number(name));
    }
    let names = facts.settings.get("synchronous_standby_names").cloned().flatten();
    let names = names.map(|names| {
        names
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect::<Vec<_>>()
    });
    add("synchronous_standby_names", json!(names));
    add("connection_error", json!(host.error));
    add("server_txt_version", json!(facts.server_version));
    add("version_supported", json!(answers));
    add("is_in_recovery", json!(facts.is_in_recovery));
    add("is_superuser", json!(facts.is_superuser));
    add("has_backup_privileges", json!(facts.has_backup_privileges));
    add(
        "has_monitoring_privileges",
        json!(facts.has_monitoring_privileges),
    );
    add("current_lsn", json!(facts.current_lsn));
    add("current_xlog", json!(facts.current_wal));
    add(
        "current_size",
        json!(facts.current_size_bytes.map(|bytes| bytes.to_string())),
    );
    add("xlog_segment_size", json!(facts.wal_segment_bytes));
    add("postgres_systemid", json!(facts.system_id));
    add("replication_slot_support", json!(answers));
    add("replication_slot", slot(facts));
    add("streaming", json!(answers));
    add("streaming_supported", json!(answers));
    add("streaming_systemid", json!(facts.system_id));
    add("timeline", json!(facts.timeline));
    add("xlogpos", json!(facts.flush_lsn));
    add("archived_count", json!(facts.archived_count));
    add("failed_count", json!(facts.failed_count));
    add("last_archived_wal", json!(facts.last_archived_wal));
    add(
        "last_archived_time",
        json!(facts.last_archived_time.map(super::units::iso)),
    );
    add("last_failed_wal", json!(facts.last_failed_wal));
    add(
        "last_failed_time",
        json!(facts.last_failed_time.map(super::units::iso)),
    );
    fields
}

/// As Python shows the record that Barman has of a slot.
fn slot(facts: &Facts) -> Value {
    let slot = facts.replication_slots.first().map(|slot| {
        let active = as_python(&json!(slot.active));
        let restart = slot
            .restart_lsn
            .map_or_else(|| "None".to_owned(), |lsn| format!("'{lsn}'"));
        format!(
            "Record(slot_name='{}', active={active}, restart_lsn={restart})",
            slot.name
        )
    });
    json!(slot)
}

/// A value as Python prints it.
fn as_python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => printable(text.as_bytes()),
        Value::Array(values) => {
            let values: Vec<String> = values
                .iter()
                .map(|value| match value {
                    Value::String(text) => format!("'{}'", printable(text.as_bytes())),
                    other => as_python(other),
                })
                .collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}
