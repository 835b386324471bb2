//! The two spellings of a connection string, `key=value` and URI, by libpq's rules.
//!
//! Error messages quote no part of the string: if the string cannot be parsed, a password may be anywhere in it.

use std::collections::BTreeMap;

use crate::postgres::Error;

use super::keys::{Key, key, nearest};

/// Settings by key. If a key is given twice, the last value counts.
pub(super) type Settings = BTreeMap<&'static str, String>;

/// Reads a connection string in either spelling.
pub(super) fn parse(text: &str) -> Result<Settings, Error> {
    match text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
    {
        Some(rest) => parse_uri(rest),
        None => parse_pairs(text),
    }
}

/// The characters that libpq's `isspace` skips.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn parse_pairs(text: &str) -> Result<Settings, Error> {
    let mut settings = Settings::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let name_end = rest.find(|c| c == '=' || is_space(c)).unwrap_or(rest.len());
        let (name, after_name) = rest.split_at(name_end);
        let Some(after_equals) = after_name.trim_start_matches(is_space).strip_prefix('=') else {
            // A word without "=" may be the end of a password with a blank, so the message does not quote it.
            return Err(
                Error::settings("Missing \"=\" after a word in the connection string").with_hint(
                    "Write key=value pairs separated by blanks, and values with blanks in single quotes",
                ),
            );
        };
        let (value, after_value) = take_value(after_equals.trim_start_matches(is_space))?;
        settings.insert(known(name)?.name, value);
        rest = after_value.trim_start_matches(is_space);
    }
    Ok(settings)
}

/// A value and the rest. A value ends at a blank, or is in single quotes. A backslash makes the next character literal.
fn take_value(text: &str) -> Result<(String, &str), Error> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && is_space(c) => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(Error::settings(
            "Unterminated quoted string in the connection string",
        ));
    }
    Ok((value, ""))
}

fn parse_uri(rest: &str) -> Result<Settings, Error> {
    let mut settings = Settings::new();
    let mut set = |name: &'static str, raw: &str| -> Result<(), Error> {
        if !raw.is_empty() {
            settings.insert(name, decode(raw)?);
        }
        Ok(())
    };
    let mut rest = rest;
    let authority = rest.split('/').next().unwrap_or_default();
    if let Some((credentials, _)) = authority.split_once('@') {
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        set("user", user)?;
        set("password", password)?;
        rest = &rest[credentials.len() + 1..];
    }
    let (hosts, ports, after_hosts) = take_hosts(rest)?;
    set("host", &hosts)?;
    set("port", &ports)?;
    let (path, query) = match after_hosts.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (after_hosts, None),
    };
    check_path(authority, path)?;
    set("dbname", path.strip_prefix('/').unwrap_or(path))?;
    for parameter in query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|text| !text.is_empty())
    {
        let (name, value) = uri_parameter(parameter)?;
        settings.insert(name, value);
    }
    Ok(settings)
}

/// An "@" in the path is probably the end of a password with a slash. The beginning of the password is then in the host
/// or the port. Messages would show both.
fn check_path(authority: &str, path: &str) -> Result<(), Error> {
    match path.contains('@') && authority.contains([':', '@']) {
        false => Ok(()),
        true => Err(Error::settings("Unexpected \"@\" behind the host of the URI").with_hint(
            "Write \"/\" in a user name or password as %2F and \"@\" as %40, also an \"@\" in the name of a database",
        )),
    }
}

/// The comma-separated hosts and ports, still encoded, and the rest.
fn take_hosts(text: &str) -> Result<(String, String, &str), Error> {
    let end = text.find(['/', '?']).unwrap_or(text.len());
    let (list, rest) = text.split_at(end);
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for item in list.split(',') {
        let (host, after) = match item.strip_prefix('[') {
            Some(inner) => inner
                .split_once(']')
                .filter(|(address, _)| !address.is_empty())
                .ok_or_else(|| Error::settings("IPv6 host address without its brackets' end in the URI"))?,
            None => item.split_at(item.find(':').unwrap_or(item.len())),
        };
        let port = match after.strip_prefix(':') {
            Some(port) => port,
            None if after.is_empty() => "",
            None => {
                return Err(Error::settings(
                    "Expected \":\" or \"/\" after the host in the URI",
                ));
            }
        };
        hosts.push(host);
        ports.push(port);
    }
    let all_empty = |items: &[&str]| items.iter().all(|item| item.is_empty());
    let ports = if all_empty(&ports) {
        String::new()
    } else {
        ports.join(",")
    };
    let hosts = if hosts.len() == 1 || !all_empty(&hosts) {
        hosts.join(",")
    } else {
        String::new()
    };
    Ok((hosts, ports, rest))
}

fn uri_parameter(parameter: &str) -> Result<(&'static str, String), Error> {
    let (name, value) = parameter
        .split_once('=')
        .ok_or_else(|| Error::settings("Missing \"=\" in a parameter of the URI"))?;
    if value.contains('=') {
        return Err(Error::settings("Extra \"=\" in a parameter of the URI").with_hint("Write it as %3D"));
    }
    let (name, value) = (decode(name)?, decode(value)?);
    // JDBC's spelling, which libpq accepts, too.
    if name == "ssl" && value == "true" {
        return Ok(("sslmode", "require".to_owned()));
    }
    Ok((known(&name)?.name, value))
}

/// Decodes percent-encoding. "+" is literal.
fn decode(text: &str) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => break,
            [b'%', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                match hex_value(*high) << 4 | hex_value(*low) {
                    0 => return Err(Error::settings("Forbidden value %00 in the URI")),
                    byte => bytes.push(byte),
                }
                after
            }
            [b'%', ..] => {
                return Err(Error::settings("Invalid percent-encoding in the URI")
                    .with_hint("Write a percent sign itself as %25"));
            }
            [byte, after @ ..] => {
                bytes.push(*byte);
                after
            }
        };
    }
    String::from_utf8(bytes).map_err(|_| Error::settings("The URI decodes to something that is not UTF-8"))
}

/// The value of a hexadecimal digit that was checked before.
fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn known(name: &str) -> Result<&'static Key, Error> {
    key(name).ok_or_else(|| unknown_key(name))
}

fn unknown_key(name: &str) -> Error {
    // The text may be the end of a password, so the message does not show it.
    let error = Error::settings("Invalid connection option in the connection string");
    match nearest(name) {
        Some(meant) => error.with_hint(format!("Is it meant to be \"{meant}\"?")),
        None => error.with_hint("The options are those of libpq: host, port, user, dbname, sslmode, ..."),
    }
}
