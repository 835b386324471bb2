//! The JSON output: `--json`, and `info/*.json` of a mount.
//!
//! A document is one object with [`SCHEMA_VERSION`] under `schema_version`; a list is under a name in it. Every key is
//! always present, with null for unknown values. A time is RFC 3339 in UTC with six digits of the second, so that times
//! sort as text; `KEY_epoch` next to it has the same time in seconds since 1970-01-01 UTC, as a number. Keys of times
//! are `time` or `until`, or end with `_time` or `_at`.

use std::str::FromStr;

use barmanfs_pg::TimestampMicros;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::archive::backup::Backup;

/// The version of the keys. It grows when a key is removed or changes its meaning, but not when one is added.
pub const SCHEMA_VERSION: u32 = 1;

/// The key of the version.
const VERSION_KEY: &str = "schema_version";
/// The key of what a user noted with a backup.
const ANNOTATIONS: &str = "annotations";
/// Suffix of the key of a time as a number.
const EPOCH: &str = "_epoch";

/// A document of one thing.
///
/// # Errors
/// When `value` cannot be serialized as JSON.
pub fn document(value: &impl Serialize) -> serde_json::Result<Value> {
    Ok(versioned(element(value)?))
}

/// A document of a list.
///
/// # Errors
/// When `values` cannot be serialized as JSON.
pub fn list(name: &str, values: &impl Serialize) -> serde_json::Result<Value> {
    let mut fields = Map::new();
    fields.insert(name.to_owned(), element(values)?);
    Ok(versioned(Value::Object(fields)))
}

/// A part of a document, with times in the same format.
///
/// # Errors
/// When `value` cannot be serialized as JSON.
pub fn element(value: &impl Serialize) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(value)?;
    tell_times(&mut value);
    Ok(value)
}

/// A backup without the listing of its root, which means nothing outside the repository.
///
/// # Errors
/// When it cannot be serialized as JSON.
pub fn backup(backup: &Backup) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(backup)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("root");
        fields.entry("snapshot").or_insert(Value::Null);
    }
    Ok(value)
}

fn versioned(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.insert(VERSION_KEY.to_owned(), SCHEMA_VERSION.into());
    }
    value
}

fn is_time(key: &str) -> bool {
    matches!(key, "time" | "until") || key.ends_with("_time") || key.ends_with("_at")
}

/// Seconds since 1970-01-01 UTC. Up to the year 2255, microseconds are exact in the number.
fn epoch(time: TimestampMicros) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "exact for all times of a backup")]
    let micros = time.unix_micros() as f64;
    micros / 1e6
}

fn tell_times(value: &mut Value) {
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(tell_times),
        Value::Object(fields) => {
            let mut numbers = Vec::new();
            for (key, value) in fields.iter_mut() {
                // Keys that a user chose mean nothing here.
                if key == ANNOTATIONS {
                    continue;
                }
                if !is_time(key) {
                    tell_times(value);
                    continue;
                }
                let time = value
                    .as_str()
                    .and_then(|text| TimestampMicros::from_str(text).ok());
                match time {
                    Some(time) => {
                        *value = serde_json::to_value(time).unwrap_or_default();
                        numbers.push((format!("{key}{EPOCH}"), epoch(time).into()));
                    }
                    None if value.is_null() => numbers.push((format!("{key}{EPOCH}"), Value::Null)),
                    None => tell_times(value),
                }
            }
            fields.extend(numbers);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_time_is_written_as_text_and_as_a_number() {
        let value = json!({
            "end_time": "2026-11-20T10:15:00.250001Z",
            "began_at": null,
            "label": "2026-11-20T10:15:00.25Z",
            "annotations": {"deployed_at": "2026-11-20T10:15:00Z"},
            "inner": [{"time": "2026-11-20T10:15:00Z"}],
        });
        assert_eq!(
            document(&value).unwrap(),
            json!({
                "schema_version": 1,
                "end_time": "2026-11-20T10:15:00.250001Z", "end_time_epoch": 1_795_169_700.250_001,
                "began_at": null, "began_at_epoch": null,
                "label": "2026-11-20T10:15:00.25Z",
                "annotations": {"deployed_at": "2026-11-20T10:15:00Z"},
                "inner": [{"time": "2026-11-20T10:15:00.000000Z", "time_epoch": 1_795_169_700.0}],
            })
        );
        assert_eq!(
            list("backups", &json!([])).unwrap(),
            json!({"schema_version": 1, "backups": []})
        );
    }
}
