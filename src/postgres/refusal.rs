//! Hints for servers that refuse something because a privilege is missing, and give no hint themselves. The message may
//! be in any language, so the request determines the hint.

use super::connection::Mode;
use super::conninfo::Conninfo;

/// `insufficient_privilege`.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Maximum number of bytes kept of a query.
const EXCERPT_BYTES: usize = 1000;

/// The beginning of a query.
pub(super) fn excerpt(query: &str) -> &str {
    query.get(..EXCERPT_BYTES).unwrap_or(query)
}

/// The hint for the error of this query. An empty query is the login.
pub(super) fn hint(code: &str, query: &str, mode: Mode, settings: &Conninfo) -> Option<String> {
    if code != INSUFFICIENT_PRIVILEGE {
        return None;
    }
    let role = format!("\"{}\"", settings.user.replace('"', "\"\""));
    let word = query.split_ascii_whitespace().next().unwrap_or_default();
    let what = match (mode, word) {
        (_, "SHOW") => format!("GRANT pg_read_all_settings TO {role}"),
        (_, "CHECKPOINT") => format!("GRANT pg_checkpoint TO {role} (PostgreSQL 15 and later)"),
        (Mode::Replication, _) => format!("ALTER ROLE {role} REPLICATION"),
        (Mode::Sql, "") => format!("GRANT CONNECT ON DATABASE ... TO {role}"),
        (Mode::Sql, _) => match function(query) {
            Some(name) => format!(
                "GRANT EXECUTE ON FUNCTION {name} TO {role}, in the database of the connection string"
            ),
            None => format!("GRANT pg_monitor TO {role}"),
        },
    };
    Some(format!("The role lacks a privilege. As a superuser: {what}"))
}

/// The first function call in a query. That is what the server may refuse.
fn function(query: &str) -> Option<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    query.split('(').find_map(|before| {
        let start = before.rfind(|c: char| !is_word(c)).map_or(0, |at| at + 1);
        before.get(start..).filter(|name| name.starts_with("pg_"))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::postgres::Environment;

    #[test]
    fn the_hint_names_what_was_refused() {
        let settings = Conninfo::parse(
            "user=bar",
            &Environment::fixed("u", Path::new("/nonexistent"), &[]),
        )
        .unwrap();
        let hint = |query, mode| hint("42501", query, mode, &settings).unwrap();
        for (query, mode, expected) in [
            ("", Mode::Replication, "ALTER ROLE \"bar\" REPLICATION"),
            (
                "CREATE_REPLICATION_SLOT x",
                Mode::Replication,
                "ALTER ROLE \"bar\" REPLICATION",
            ),
            (
                "SHOW data_directory",
                Mode::Replication,
                "GRANT pg_read_all_settings TO \"bar\"",
            ),
            ("", Mode::Sql, "GRANT CONNECT"),
            (
                "SELECT pg_catalog.pg_switch_wal()::text",
                Mode::Sql,
                "FUNCTION pg_switch_wal TO \"bar\"",
            ),
            ("SELECT x FROM y", Mode::Sql, "pg_monitor"),
        ] {
            let text = hint(query, mode);
            assert!(text.contains(expected), "{query}: {text}");
        }
        assert_eq!(super::hint("28000", "", Mode::Sql, &settings), None);
    }
}
