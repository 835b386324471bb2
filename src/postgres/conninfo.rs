//! Where and how to connect: connection strings, read as in every libpq program.
//!
//! Settings that are not in the string come from the service file, then the `PG*` variables, then the defaults.

mod keys;
mod parse;
mod passfile;
mod secret;
mod service;
mod values;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Environment, Error};
use keys::Meaning;
use parse::Settings;
pub(super) use secret::Secret;
pub(crate) use values::{
    AuthMethod, AuthRules, ChannelBindingUse, Host, HostSpec, Keepalives, RootCertificates, SslMode,
    TargetSession, TlsSettings, TlsVersion,
};

/// The directories of the server's socket in distributions, the usual one first.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The port libpq uses when none is given.
const DEFAULT_PORT: u16 = 5432;

/// The database name of a replication connection in the password file.
const REPLICATION_DATABASE: &str = "replication";

/// All settings of a connection. Its formatters do not show the password.
#[derive(Clone)]
pub(crate) struct Conninfo {
    /// The servers to try, in this order; never empty.
    pub(crate) hosts: Vec<HostSpec>,
    /// The kind of server that is accepted.
    pub(crate) target_session: TargetSession,
    /// Whether they are tried in random order instead.
    pub(crate) load_balance: bool,
    /// The role.
    pub(crate) user: String,
    /// The database, if one is given.
    pub(crate) dbname: Option<String>,
    /// The connection's name in the server's `pg_stat_activity`.
    pub(crate) application_name: String,
    /// Command-line options for the server process.
    pub(crate) options: Option<String>,
    /// Time limit of a login at each address; `None` leaves it to the client.
    pub(crate) connect_timeout: Option<Duration>,
    /// How a dead peer is noticed.
    pub(crate) keepalives: Keepalives,
    /// Encryption and trusted certificates.
    pub(crate) tls: TlsSettings,
    /// The accepted authentication methods.
    pub(crate) auth: AuthRules,
    /// The operating-system user that must own the server on a Unix socket.
    pub(crate) require_peer: Option<String>,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
}

impl Conninfo {
    /// Reads a connection string, `key=value` or URI.
    ///
    /// # Errors
    /// Names an unknown key or a value that is not allowed. Never quotes a value that may be a secret.
    pub(crate) fn parse(text: &str, environment: &Environment) -> Result<Self, Error> {
        let mut settings = parse::parse(text)?;
        add_service(&mut settings, environment)?;
        add_variables(&mut settings, environment);
        settings.retain(|_, value| !value.is_empty());
        check_meanings(&settings)?;
        Self::resolve(&Reader { settings: &settings }, environment)
    }

    /// Checks that a text has the form of a connection string, as far as that can be seen without files and variables.
    ///
    /// # Errors
    /// As of [`Self::parse`].
    pub(crate) fn check_form(text: &str) -> Result<(), Error> {
        parse::parse(text).map(drop)
    }

    /// A connection string as pairs that may be shown; `None` if it cannot be read. A value is hidden if it is a secret, or
    /// if it has characters that suggest that the end of a password is in it. What says where the server is and who
    /// connects is not compared with secrets: a password may be equal to a user's name.
    pub(crate) fn without_secrets(text: &str, is_secret: impl Fn(&str) -> bool) -> Option<String> {
        let settings = parse::parse(text).ok()?;
        let can_be_shown = |key: &str, value: &str| {
            keys::can_be_shown(key, value) && (keys::is_target(key) || !is_secret(value))
        };
        let pairs = settings
            .iter()
            .map(|(key, value)| match can_be_shown(key, value) {
                true if value.contains(' ') => format!("{key}='{value}'"),
                true => format!("{key}={value}"),
                false => format!("{key}=<hidden>"),
            });
        Some(pairs.collect::<Vec<_>>().join(" "))
    }

    /// What a connection string says of where the server is and who connects. It is shown everywhere.
    pub(crate) fn targets_of(text: &str) -> Vec<String> {
        let settings = parse::parse(text).unwrap_or_default();
        let targets = settings.into_iter().filter(|(key, _)| keys::is_target(key));
        targets.map(|(_, value)| value).collect()
    }

    /// The hosts that a connection string names, each by its address if that is given; "" is the usual socket. None if the
    /// string cannot be read, or names a service, which says that elsewhere.
    pub(crate) fn hosts_of(text: &str) -> Vec<String> {
        let Ok(settings) = parse::parse(text) else {
            return Vec::new();
        };
        let names_any = ["hostaddr", "host"]
            .into_iter()
            .filter_map(|key| settings.get(key).filter(|value| !value.is_empty()))
            .next();
        match names_any {
            Some(hosts) => hosts.split(',').map(|host| host.trim().to_owned()).collect(),
            None if settings.contains_key("service") => Vec::new(),
            None => vec![String::new()],
        }
    }

    /// The files that a connection string names: keys, certificates, a password file.
    pub(crate) fn files_of(text: &str) -> Vec<String> {
        const FILES: [&str; 5] = ["passfile", "sslkey", "sslcert", "sslrootcert", "sslcrl"];
        let settings = parse::parse(text).unwrap_or_default();
        let files = settings.into_iter().filter(|(key, _)| FILES.contains(key));
        files.map(|(_, value)| value).collect()
    }

    /// The secrets in a connection string, and the string itself if it has one. One that cannot be read is a secret as a
    /// whole.
    pub(crate) fn secrets_of(text: &str) -> Vec<String> {
        let Ok(settings) = parse::parse(text) else {
            return vec![text.to_owned()];
        };
        let secret = settings.into_iter().filter(|(key, _)| keys::is_secret(key));
        let mut found: Vec<String> = secret.map(|(_, value)| value).collect();
        if !found.is_empty() {
            found.extend(encoded_password(text).map(str::to_owned));
            found.push(text.to_owned());
        }
        found
    }

    fn resolve(reader: &Reader<'_>, environment: &Environment) -> Result<Self, Error> {
        let user = match reader.text("user").or(environment.user()) {
            Some(user) => user.to_owned(),
            None => {
                return Err(
                    Error::settings("No user name: the system does not know the current user")
                        .with_hint("Give user=... in the connection string"),
                );
            }
        };
        let in_home = |name: &str| environment.home().map(|home| home.join(name));
        Ok(Self {
            hosts: values::hosts(reader)?,
            target_session: values::target_session(reader)?,
            load_balance: values::load_balance(reader)?,
            user,
            dbname: dbname(reader)?,
            application_name: reader
                .text("application_name")
                .or(reader.text("fallback_application_name"))
                .unwrap_or("barmanfs")
                .to_owned(),
            options: reader.text("options").map(str::to_owned),
            connect_timeout: values::connect_timeout(reader)?,
            keepalives: values::keepalives(reader)?,
            tls: values::tls(reader, environment)?,
            auth: values::auth(reader)?,
            require_peer: reader.text("requirepeer").map(str::to_owned),
            password: reader.text("password").map(Secret::new),
            passfile: reader
                .text("passfile")
                .map(PathBuf::from)
                .or_else(|| in_home(".pgpass")),
        })
    }

    /// The same with only this server, in any state.
    pub(super) fn only(&self, host: HostSpec) -> Self {
        Self {
            hosts: vec![host],
            target_session: TargetSession::Any,
            load_balance: false,
            ..self.clone()
        }
    }

    /// The password for this server, from the settings or the password file.
    pub(super) fn password_for(&self, host: &HostSpec, replication: bool) -> Option<Secret> {
        if let Some(password) = self.password.as_ref().filter(|password| !password.is_empty()) {
            return Some(password.clone());
        }
        let own_database = self.dbname.as_deref().unwrap_or(&self.user);
        let databases: &[&str] = match replication {
            true => &[REPLICATION_DATABASE, own_database],
            false => &[own_database],
        };
        let name = host.password_file_name();
        let wanted = passfile::Wanted {
            host: &name,
            port: host.port,
            databases,
            user: &self.user,
        };
        passfile::look_up(self.passfile.as_deref()?, wanted).filter(|password| !password.is_empty())
    }

    /// The path of the password file, for messages.
    pub(super) fn passfile(&self) -> Option<&Path> {
        self.passfile.as_deref()
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conninfo")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("dbname", &self.dbname)
            .field("application_name", &self.application_name)
            .field("tls", &self.tls)
            .field("auth", &self.auth)
            .field("password", &self.password)
            .finish_non_exhaustive()
    }
}

/// The destination in one line, for people: `host=a,b port=5432 user=x dbname=y`.
impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if number == 0 { "" } else { ", or " })?;
        }
        write!(f, ", user {}", self.user)?;
        self.dbname
            .as_ref()
            .map_or(Ok(()), |name| write!(f, ", database {name}"))
    }
}

/// A value for a message. An unusual value is not shown: it may be a string that was split at wrong places, and contain
/// a password.
fn shown(text: &str) -> String {
    const LONGEST: usize = 40;
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '!' | '+' | ' ');
    match text.len() <= LONGEST && text.chars().all(is_plain) {
        true => format!("\"{text}\""),
        false => "(not shown: it may be a part of a password)".to_owned(),
    }
}

/// The database. Some programs accept a whole connection string here, but then messages would show it.
/// The password as a URI has it, with its percent signs.
fn encoded_password(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let (who, _) = authority.rsplit_once('@')?;
    Some(who.split_once(':')?.1)
}

fn dbname(reader: &Reader<'_>) -> Result<Option<String>, Error> {
    let Some(name) = reader.text("dbname") else {
        return Ok(None);
    };
    match name.contains("://") || name.contains("password") && name.contains('=') {
        false => Ok(Some(name.to_owned())),
        true => Err(Error::settings("dbname holds a connection string")
            .with_hint("Write its options into the connection string itself")),
    }
}

/// Typed access to the settings.
#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    settings: &'a Settings,
}

impl<'a> Reader<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.settings.get(key).map(String::as_str)
    }

    /// A whole number, with optional blanks around it as in libpq.
    fn integer(&self, key: &str) -> Result<Option<i32>, Error> {
        self.text(key)
            .map(|text| {
                text.trim().parse().map_err(|_| {
                    Error::settings(format!(
                        "Invalid integer value {} for connection option \"{key}\"",
                        shown(text)
                    ))
                })
            })
            .transpose()
    }

    /// One of the allowed values, by name.
    fn choice<T: Copy>(&self, key: &str, allowed: &[(&str, T)]) -> Result<Option<T>, Error> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        match allowed.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let names: Vec<_> = allowed.iter().map(|(name, _)| *name).collect();
                Err(Error::settings(format!("Invalid {key} value: {}", shown(text)))
                    .with_hint(format!("Allowed are {}", names.join(", "))))
            }
        }
    }
}

fn add_service(settings: &mut Settings, environment: &Environment) -> Result<(), Error> {
    let name = settings
        .remove("service")
        .or_else(|| environment.variable("PGSERVICE").map(str::to_owned));
    let file = settings.remove("servicefile");
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    for (key, value) in service::settings(&name, file.as_deref(), environment)? {
        settings.entry(key).or_insert(value);
    }
    Ok(())
}

fn add_variables(settings: &mut Settings, environment: &Environment) {
    for key in keys::all() {
        let Some(value) = key.variable.and_then(|name| environment.variable(name)) else {
            continue;
        };
        if matches!(key.name, "service" | "servicefile") {
            continue;
        }
        settings.entry(key.name).or_insert_with(|| value.to_owned());
    }
    // The spelling of PostgreSQL 7.3 for sslmode=require, which libpq still supports.
    if environment
        .variable("PGREQUIRESSL")
        .is_some_and(|value| value.starts_with('1'))
    {
        settings.entry("sslmode").or_insert_with(|| "require".to_owned());
    }
}

fn check_meanings(settings: &Settings) -> Result<(), Error> {
    for (name, value) in settings {
        match keys::key(name).map(|key| key.meaning) {
            Some(Meaning::Ignored(why)) => {
                tracing::info!("Connection option \"{name}\" is ignored: {why}");
            }
            Some(Meaning::Only(allowed)) if !allowed.contains(&value.as_str()) => {
                let accepted: Vec<_> = allowed
                    .iter()
                    .filter(|value| !value.is_empty())
                    .copied()
                    .collect();
                let error = Error::settings(format!(
                    "This value of connection option \"{name}\" is not supported"
                ));
                return Err(match accepted.is_empty() {
                    true => error.with_hint("Leave the option out"),
                    false => error.with_hint(format!("Use {}", accepted.join(" or "))),
                });
            }
            _ => {}
        }
    }
    Ok(())
}
