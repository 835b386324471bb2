//! Settings that are harmless in general, but whose value keeps a view from starting on another host, or leads out of
//! it.

use barmanfs_pg::conf::location;
use barmanfs_pg::pg_control::ControlFile;

use super::includes::Values;
use super::room::{kilobytes, number, room};
use super::source::{Source, Stored};
use crate::error::Result;

/// Settings that a readable standby must not have smaller than its original (`CheckRequiredParameterValues`), with
/// PostgreSQL's defaults (`guc_parameters.dat`).
pub const DEFAULT_SIZES: [(&str, u32); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// `wal_level` by its number in `pg_control`.
const WAL_LEVELS: [&str; 3] = ["minimal", "replica", "logical"];

/// The reason for using the server's own values.
const AS_IT_RAN: &str = "As the server ran, whatever its files say";

/// PostgreSQL needs 512 kB between `max_stack_depth` and the limit of the operating system, which is usually 8 MiB.
const STACK_MOST_KB: u64 = 7680;

/// Default names of the files for SSL.
const SSL_FILES: [(&str, &str); 5] = [
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_dh_params_file", ""),
];

/// A setting with the value that must apply.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::views) struct Override {
    pub(in crate::views) name: &'static str,
    pub(in crate::views) value: String,
    /// The reason, for a comment.
    pub(in crate::views) why: &'static str,
}

/// The settings that must differ from a view's files. `control` describes the server as it ran, perhaps with settings
/// from its command line.
pub(in crate::views) fn overrides(
    source: &impl Source,
    values: &Values,
    control: Option<&ControlFile>,
    major: u32,
) -> Result<Vec<Override>> {
    let mut all = control.map(|control| sizes(values, control)).unwrap_or_default();
    all.extend(room(source, values, control, major)?);
    let mut add = |name, value: &str, why| {
        all.push(Override {
            name,
            value: value.to_owned(),
            why,
        });
    };
    if has_ssl_without_its_files(source, values)? {
        add(
            "ssl",
            "off",
            "What it needs for SSL is not in this data directory, or PostgreSQL refuses it in a copy",
        );
    }
    if values
        .get("huge_pages")
        .is_some_and(|value| !is_off(value) && !value.eq_ignore_ascii_case(b"try"))
    {
        add(
            "huge_pages",
            "try",
            "Another host may have none, or the original has them",
        );
    }
    if kilobytes(values, "max_stack_depth").is_some_and(|set| set > STACK_MOST_KB << 10) {
        add(
            "max_stack_depth",
            "7MB",
            "Another host may have the usual limit, 8 MiB (ulimit -s)",
        );
    }
    if text(values, "io_method").eq_ignore_ascii_case("io_uring") {
        add("io_method", "worker", "Another host may not have io_uring");
    }
    let destinations = text(values, "log_destination");
    if destinations.to_ascii_lowercase().contains("syslog") {
        let others = destinations.split(',').map(str::trim);
        let others: Vec<_> = others
            .filter(|one| !one.trim_matches('"').eq_ignore_ascii_case("syslog"))
            .collect();
        let others = others.join(",");
        let kept = if others.is_empty() { "stderr" } else { &others };
        add("log_destination", kept, "Not among the messages of the original");
    }
    if text(values, "log_filename").contains('/') {
        add(
            "log_filename",
            "postgresql-%Y-%m-%d_%H%M%S.log",
            "Not in another directory",
        );
    }
    if !text(values, "krb_server_keyfile").is_empty() {
        add("krb_server_keyfile", "", "A file of the original's host");
    }
    Ok(all)
}

/// Recovery needs at least as much for prepared transactions and their locks as the server had, and the other settings
/// limit each other: the combination in the files may never have been tried.
fn sizes(values: &Values, control: &ControlFile) -> Vec<Override> {
    let ran_with = control.required_settings;
    let sizes = [
        ran_with.max_connections,
        ran_with.max_worker_processes,
        ran_with.max_wal_senders,
        ran_with.max_prepared_transactions,
        ran_with.max_locks_per_transaction,
    ];
    let missing = DEFAULT_SIZES
        .into_iter()
        .zip(sizes)
        .filter(|((name, default), ran_with)| {
            let set = match values.get(*name) {
                None => Some(*default),
                Some(value) => String::from_utf8_lossy(value).parse().ok(),
            };
            set.is_none_or(|set: u32| set < *ran_with)
        });
    missing
        .map(|((name, _), ran_with)| Override {
            name,
            value: ran_with.to_string(),
            why: AS_IT_RAN,
        })
        .chain(wal_level(values, control))
        .collect()
}

/// PostgreSQL refuses `minimal` together with settings that need more. A server that ran with `minimal` starts with
/// any level.
fn wal_level(values: &Values, control: &ControlFile) -> Option<Override> {
    let ran_with = WAL_LEVELS.get(usize::try_from(control.wal_level).ok()?)?;
    let set = match &*text(values, "wal_level").to_ascii_lowercase() {
        "" | "archive" | "hot_standby" => "replica".to_owned(),
        set => set.to_owned(),
    };
    let needs_more = number(values, "max_wal_senders") != Some(0)
        || values.get("summarize_wal").is_some_and(|value| !is_off(value));
    let (value, why) = match (set.as_str(), *ran_with) {
        ("minimal", "minimal") if needs_more => ("replica", "For max_wal_senders or summarize_wal"),
        (_, "minimal") => return None,
        (set, ran_with) if set == ran_with => return None,
        (_, ran_with) => (ran_with, AS_IT_RAN),
    };
    Some(Override {
        name: "wal_level",
        value: value.to_owned(),
        why,
    })
}

fn has_ssl_without_its_files(source: &impl Source, values: &Values) -> Result<bool> {
    if values.get("ssl").is_none_or(|value| is_off(value)) {
        return Ok(false);
    }
    if !text(values, "ssl_passphrase_command").is_empty() || !text(values, "ssl_crl_dir").is_empty() {
        return Ok(true);
    }
    for (name, default) in SSL_FILES {
        let path = values.get(name).map_or(default.as_bytes(), Vec::as_slice);
        if path.is_empty() {
            continue;
        }
        match location(path, b"") {
            Some(path) if source.has_file(&path)? => {
                if name == "ssl_key_file" && !is_usable_key(source, &path)? {
                    return Ok(true);
                }
            }
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// PostgreSQL refuses a key that users other than its owner may read. (It accepts root's, but a copy belongs to
/// another user.) A key with a passphrase makes it ask for that.
fn is_usable_key(source: &impl Source, path: &[u8]) -> Result<bool> {
    const WITH_PASSPHRASE: &[u8] = b"ENCRYPTED";
    Ok(match source.read(path)? {
        Stored::Text(attributes, text) => {
            let has_passphrase = text
                .windows(WITH_PASSPHRASE.len())
                .any(|at| at == WITH_PASSPHRASE);
            attributes.mode & 0o077 == 0 && !has_passphrase
        }
        _ => false,
    })
}

pub(super) fn text(values: &Values, name: &str) -> String {
    let value = values.get(name).map_or(&[][..], Vec::as_slice);
    String::from_utf8_lossy(value).into_owned()
}

/// PostgreSQL's parsing: any prefix of a word for "no" (`parse_bool`).
fn is_off(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    begins(b"off", 2) || begins(b"false", 1) || begins(b"no", 1) || value == b"0"
}

#[cfg(test)]
mod tests {
    use super::super::room::testing::{File, control, values};
    use super::*;

    #[test]
    fn a_server_that_ran_with_a_minimal_level_starts_with_any() {
        for (ran_with, set, expected) in [
            (0, "wal_level=minimal", Some("replica")),
            (0, "wal_level=minimal max_wal_senders=0", None),
            (
                0,
                "wal_level=minimal max_wal_senders=0 summarize_wal=on",
                Some("replica"),
            ),
            (0, "", None),
            (1, "wal_level=Minimal", Some("replica")),
            (1, "", None),
            (1, "wal_level=hot_standby", None),
            (2, "", Some("logical")),
        ] {
            let mut control = control(16);
            control.wal_level = ran_with;
            let level = wal_level(&values(set), &control).map(|level| level.value);
            assert_eq!(level.as_deref(), expected, "{ran_with} {set}");
        }
    }

    #[test]
    fn a_key_that_postgresql_refuses_is_not_usable() {
        for (text, mode, expected) in [
            ("-----BEGIN PRIVATE KEY-----", 0o600, true),
            ("-----BEGIN PRIVATE KEY-----", 0o640, false),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----", 0o600, false),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED",
                0o600,
                false,
            ),
        ] {
            let file = File::of("server.key", text.as_bytes(), mode);
            assert_eq!(
                is_usable_key(&file, b"server.key").unwrap(),
                expected,
                "{text} {mode:o}"
            );
        }
    }

    #[test]
    fn all_words_for_off_are_known() {
        for (value, off) in [
            ("off", true),
            ("OF", true),
            ("o", false),
            ("on", false),
            ("F", true),
            ("0", true),
            ("", false),
            ("nope", false),
        ] {
            assert_eq!(is_off(value.as_bytes()), off, "{value}");
        }
    }
}
