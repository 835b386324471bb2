//! Parses the settings' values, and checks which values are allowed.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postgres::{Environment, Error};

use super::{DEFAULT_PORT, Reader, SOCKET_DIRECTORIES, shown};

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostSpec {
    /// Its address.
    pub(crate) host: Host,
    /// Its port, which is part of a Unix socket's name, too.
    pub(crate) port: u16,
}

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// A TCP host; at least one of the two is given.
    Tcp {
        /// The name to resolve, and to find in the server's certificate.
        name: Option<String>,
        /// The address to connect to, instead of resolving the name.
        address: Option<IpAddr>,
    },
    /// The directory of a Unix socket.
    Directory(PathBuf),
    /// The directory part of a socket in Linux's abstract namespace.
    Abstract(String),
}

impl HostSpec {
    /// The file name of the Unix socket in its directory.
    pub(in crate::postgres) fn socket_name(&self) -> String {
        format!(".s.PGSQL.{}", self.port)
    }

    /// The name of this host in a password file.
    pub(super) fn password_file_name(&self) -> Cow<'_, str> {
        match &self.host {
            Host::Tcp { name: Some(name), .. } => name.into(),
            Host::Tcp { name: None, address } => address.map(|it| it.to_string()).unwrap_or_default().into(),
            Host::Directory(path) if SOCKET_DIRECTORIES.iter().any(|usual| path == Path::new(usual)) => {
                "localhost".into()
            }
            Host::Directory(path) => path.to_string_lossy(),
            Host::Abstract(name) => format!("@{name}").into(),
        }
    }
}

impl fmt::Display for HostSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp {
                name: Some(name),
                address: Some(address),
            } => {
                write!(f, "server at \"{name}\" ({address}), port {}", self.port)
            }
            Host::Tcp {
                name: Some(name),
                address: None,
            } => write!(f, "server at \"{name}\", port {}", self.port),
            Host::Tcp { name: None, address } => {
                write!(
                    f,
                    "server at \"{}\", port {}",
                    address.map(|it| it.to_string()).unwrap_or_default(),
                    self.port
                )
            }
            Host::Directory(path) => {
                write!(
                    f,
                    "server on socket \"{}\"",
                    path.join(self.socket_name()).display()
                )
            }
            Host::Abstract(name) => write!(f, "server on socket \"@{name}/{}\"", self.socket_name()),
        }
    }
}

/// The servers to try; by default the Unix socket in its usual directories.
pub(super) fn hosts(reader: &Reader<'_>) -> Result<Vec<HostSpec>, Error> {
    let list = |key: &str| {
        reader
            .text(key)
            .map(|text| text.split(',').map(str::trim).collect::<Vec<_>>())
    };
    let (names, addresses) = (list("host"), list("hostaddr"));
    let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    if let Some(names) = names.as_ref().filter(|names| names.len() != count) {
        return Err(Error::settings(format!(
            "Could not match {} host names to {count} hostaddr values",
            names.len()
        )));
    }
    let ports = list("port").unwrap_or_else(|| vec![""]);
    if ports.len() != 1 && ports.len() != count {
        return Err(Error::settings(format!(
            "Could not match {} port numbers to {count} hosts",
            ports.len()
        )));
    }
    let mut hosts = Vec::with_capacity(count);
    for number in 0..count {
        let port = port_number(ports.get(number).or(ports.first()).copied().unwrap_or_default())?;
        let kinds = host_kinds(item(names.as_deref(), number), item(addresses.as_deref(), number))?;
        hosts.extend(kinds.into_iter().map(|host| HostSpec { host, port }));
    }
    Ok(hosts)
}

/// An item of a list; `None` if it is empty.
fn item<'a>(list: Option<&[&'a str]>, number: usize) -> Option<&'a str> {
    list?.get(number).copied().filter(|text| !text.is_empty())
}

/// One host; by default the usual socket directories.
fn host_kinds(name: Option<&str>, address: Option<&str>) -> Result<Vec<Host>, Error> {
    if let Some(address) = address {
        let parsed = address.parse().map_err(|_| {
            Error::settings(format!(
                "Could not parse network address {} (hostaddr)",
                shown(address)
            ))
        })?;
        return Ok(vec![Host::Tcp {
            name: name.map(str::to_owned),
            address: Some(parsed),
        }]);
    }
    name.map_or(Ok(()), check_host)?;
    Ok(match name {
        None => SOCKET_DIRECTORIES
            .iter()
            .map(|path| Host::Directory(PathBuf::from(path)))
            .collect(),
        Some(name) => vec![match name.strip_prefix('@') {
            Some(name) => Host::Abstract(name.to_owned()),
            None if name.starts_with('/') => Host::Directory(PathBuf::from(name)),
            None => Host::Tcp {
                name: Some(name.to_owned()),
                address: None,
            },
        }],
    })
}

fn port_number(text: &str) -> Result<u16, Error> {
    match text {
        "" => Ok(DEFAULT_PORT),
        _ => text.parse().ok().filter(|&port| port != 0).ok_or_else(|| {
            match text.bytes().all(|byte| byte.is_ascii_digit()) {
                true => Error::settings(format!("Invalid port number: \"{text}\"")),
                // In a URI, the text may be a password that is not encoded.
                false => Error::settings("Invalid port number").with_hint(
                    "In a URI, write \":\", \"/\" and \"@\" in a user name or password as %3A, %2F and %40",
                ),
            }
        }),
    }
}

/// Checks a host, because messages show it. It must not be the rest of a string that was split at wrong places, such as
/// `host=a;password=b`.
fn check_host(name: &str) -> Result<(), Error> {
    let is_path = name.starts_with(['/', '@']);
    let rest = name.strip_prefix('@').unwrap_or(name);
    let wrong = match is_path {
        true => rest.contains([';', '\n']) && rest.contains('='),
        false => rest.contains(|c: char| c.is_control() || c.is_whitespace() || "@;=/?&\\\"'<>".contains(c)),
    };
    match wrong {
        false => Ok(()),
        true => Err(
            Error::settings("Invalid host name in the connection string").with_hint(
                "Options are separated by blanks; in a URI, write \"@\" in a user name or password as %40",
            ),
        ),
    }
}

/// The kind of server or session that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TargetSession {
    /// The first that accepts the login.
    Any,
    /// A session that can change data.
    ReadWrite,
    /// A session that cannot.
    ReadOnly,
    /// A server that is not in recovery.
    Primary,
    /// A server in recovery.
    Standby,
    /// A standby if possible, otherwise any server.
    PreferStandby,
}

pub(super) fn target_session(reader: &Reader<'_>) -> Result<TargetSession, Error> {
    let allowed = [
        ("any", TargetSession::Any),
        ("read-write", TargetSession::ReadWrite),
        ("read-only", TargetSession::ReadOnly),
        ("primary", TargetSession::Primary),
        ("standby", TargetSession::Standby),
        ("prefer-standby", TargetSession::PreferStandby),
    ];
    Ok(reader
        .choice("target_session_attrs", &allowed)?
        .unwrap_or(TargetSession::Any))
}

/// Whether hosts and addresses are tried in random order.
pub(super) fn load_balance(reader: &Reader<'_>) -> Result<bool, Error> {
    let allowed = [("disable", false), ("random", true)];
    Ok(reader.choice("load_balance_hosts", &allowed)?.unwrap_or(false))
}

/// How long to wait for one address. Zero, negative or no value mean a sensible default.
pub(super) fn connect_timeout(reader: &Reader<'_>) -> Result<Option<Duration>, Error> {
    let seconds = reader
        .integer("connect_timeout")?
        .and_then(|seconds| u64::try_from(seconds).ok());
    Ok(seconds.filter(|&seconds| seconds > 0).map(Duration::from_secs))
}

/// TCP keepalives; `None` leaves a value to the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalives {
    /// Whether they are on.
    pub(crate) enabled: bool,
    /// Silence before the first probe.
    pub(crate) idle: Option<Duration>,
    /// Time between two probes.
    pub(crate) interval: Option<Duration>,
    /// Number of unanswered probes that end the connection.
    pub(crate) count: Option<u32>,
    /// How long data may stay unacknowledged, in milliseconds.
    pub(crate) user_timeout_ms: Option<u32>,
}

pub(super) fn keepalives(reader: &Reader<'_>) -> Result<Keepalives, Error> {
    let positive = |key| -> Result<Option<u32>, Error> {
        Ok(reader
            .integer(key)?
            .and_then(|value| u32::try_from(value).ok())
            .filter(|&value| value > 0))
    };
    let seconds = |key| Ok::<_, Error>(positive(key)?.map(|seconds| Duration::from_secs(u64::from(seconds))));
    Ok(Keepalives {
        enabled: reader.integer("keepalives")? != Some(0),
        idle: seconds("keepalives_idle")?,
        interval: seconds("keepalives_interval")?,
        count: positive("keepalives_count")?,
        user_timeout_ms: positive("tcp_user_timeout")?,
    })
}

/// The required encryption and proof of identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    /// Never TLS.
    Disable,
    /// Plain first, TLS if the server requires it.
    Allow,
    /// TLS first, plain if the server has none.
    Prefer,
    /// TLS. The server's identity does not matter.
    Require,
    /// TLS, with a certificate from a trusted authority.
    VerifyCa,
    /// The certificate must also be for that host.
    VerifyFull,
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            SSL_MODES
                .iter()
                .find(|(_, mode)| mode == self)
                .map_or("?", |(name, _)| name),
        )
    }
}

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// The trusted certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCertificates {
    /// The operating system's authorities.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// A TLS version that can be required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    /// TLS 1.2; as a lower bound this also covers the older versions, which are not supported.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Encryption and trusted certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    /// The required encryption.
    pub(crate) mode: SslMode,
    /// TLS from the first byte, without a request (PostgreSQL 17 and later).
    pub(crate) direct: bool,
    /// The trusted authorities; `None` if there is no home directory to search.
    pub(crate) roots: Option<RootCertificates>,
    /// The client's certificate; used if the file exists.
    pub(crate) certificate: Option<PathBuf>,
    /// The client's key.
    pub(crate) key: Option<PathBuf>,
    /// Whether the certificate file must exist: the settings name it, and it is not the default.
    pub(crate) certificate_required: bool,
    /// Revoked certificates.
    pub(crate) revocation_list: Option<PathBuf>,
    /// Whether to send the server's name in clear text, for proxies.
    pub(crate) send_server_name: bool,
    /// The lowest accepted version.
    pub(crate) min_version: TlsVersion,
    /// The highest offered version.
    pub(crate) max_version: TlsVersion,
}

pub(super) fn tls(reader: &Reader<'_>, environment: &Environment) -> Result<TlsSettings, Error> {
    let in_home = |name: &str| environment.home().map(|home| home.join(".postgresql").join(name));
    let file = |key: &str| reader.text(key).map(PathBuf::from);
    let roots = match reader.text("sslrootcert") {
        Some("system") => Some(RootCertificates::System),
        _ => file("sslrootcert")
            .or_else(|| in_home("root.crt"))
            .map(RootCertificates::File),
    };
    let mode = ssl_mode(reader, roots == Some(RootCertificates::System))?;
    let direct = reader
        .choice("sslnegotiation", &[("postgres", false), ("direct", true)])?
        .unwrap_or(false);
    if direct && mode < SslMode::Require {
        return Err(Error::settings(format!(
            "Weak sslmode \"{mode}\" may not be used with sslnegotiation=direct"
        ))
        .with_hint("Use sslmode require, verify-ca or verify-full"));
    }
    let send_certificate = reader
        .choice("sslcertmode", &[("allow", true), ("disable", false)])?
        .unwrap_or(true);
    let (min_version, max_version) = tls_versions(reader)?;
    Ok(TlsSettings {
        mode,
        direct,
        roots,
        certificate: send_certificate
            .then(|| file("sslcert").or_else(|| in_home("postgresql.crt")))
            .flatten(),
        key: file("sslkey").or_else(|| in_home("postgresql.key")),
        certificate_required: reader.text("sslcert").is_some(),
        revocation_list: file("sslcrl").or_else(|| in_home("root.crl").filter(|path| path.exists())),
        send_server_name: reader.text("sslsni") != Some("0"),
        min_version,
        max_version,
    })
}

fn ssl_mode(reader: &Reader<'_>, system_roots: bool) -> Result<SslMode, Error> {
    let mode = reader.choice("sslmode", &SSL_MODES)?;
    match mode {
        Some(mode) if system_roots && mode != SslMode::VerifyFull => Err(Error::settings(format!(
            "Weak sslmode \"{mode}\" may not be used with sslrootcert=system"
        ))
        .with_hint("Use sslmode=verify-full")),
        Some(mode) => Ok(mode),
        None if system_roots => Ok(SslMode::VerifyFull),
        None => Ok(SslMode::Prefer),
    }
}

fn tls_versions(reader: &Reader<'_>) -> Result<(TlsVersion, TlsVersion), Error> {
    let (v1_2, v1_3) = (TlsVersion::V1_2, TlsVersion::V1_3);
    let lowest = [
        ("TLSv1", v1_2),
        ("TLSv1.1", v1_2),
        ("TLSv1.2", v1_2),
        ("TLSv1.3", v1_3),
    ];
    let min = reader
        .choice("ssl_min_protocol_version", &lowest)?
        .unwrap_or(v1_2);
    let highest = [("TLSv1.2", v1_2), ("TLSv1.3", v1_3)];
    let max = reader
        .choice("ssl_max_protocol_version", &highest)?
        .unwrap_or(v1_3);
    match min <= max {
        true => Ok((min, max)),
        false => Err(Error::settings(
            "Invalid TLS protocol version range: the minimum is above the maximum",
        )),
    }
}

/// Whether the password exchange is bound to its TLS session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelBindingUse {
    /// Never.
    Disable,
    /// If the server supports it.
    Prefer,
    /// Always; otherwise the login fails.
    Require,
}

/// An authentication method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthMethod {
    /// Trust, or a certificate that TLS has checked.
    None,
    /// The password itself.
    Password,
    /// A salted MD5 of it.
    Md5,
    /// SCRAM-SHA-256, with channel binding or without.
    Scram,
}

/// The accepted authentication methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuthRules {
    /// The use of channel binding.
    pub(crate) channel_binding: ChannelBindingUse,
    /// The methods that the server may choose; `None` accepts all.
    pub(crate) allowed: Option<Vec<AuthMethod>>,
}

impl AuthRules {
    /// Whether the server may use this method.
    pub(in crate::postgres) fn allows(&self, method: AuthMethod) -> bool {
        self.allowed
            .as_ref()
            .is_none_or(|allowed| allowed.contains(&method))
    }
}

pub(super) fn auth(reader: &Reader<'_>) -> Result<AuthRules, Error> {
    use ChannelBindingUse::{Disable, Prefer, Require};
    let choices = [("disable", Disable), ("prefer", Prefer), ("require", Require)];
    let channel_binding = reader.choice("channel_binding", &choices)?.unwrap_or(Prefer);
    let allowed = reader.text("require_auth").map(auth_methods).transpose()?;
    Ok(AuthRules {
        channel_binding,
        allowed,
    })
}

/// Methods to accept or, if all of them begin with `!`, methods to refuse.
fn auth_methods(text: &str) -> Result<Vec<AuthMethod>, Error> {
    use AuthMethod::{Md5, None as NoMethod, Password, Scram};
    let all = [NoMethod, Password, Md5, Scram];
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    let negated = names.iter().filter(|name| name.starts_with('!')).count();
    if negated != 0 && negated != names.len() {
        return Err(Error::settings(
            "Invalid require_auth value: \"!\" must stand before all methods or none",
        ));
    }
    let mut named = Vec::new();
    for name in &names {
        match name.trim_start_matches('!') {
            "password" => named.push(Password),
            "md5" => named.push(Md5),
            "scram-sha-256" => named.push(Scram),
            "none" => named.push(NoMethod),
            // libpq knows these methods, but they are impossible here. Accepting them changes nothing.
            "gss" | "sspi" | "oauth" => {}
            _ => {
                return Err(Error::settings(format!(
                    "Invalid require_auth value: {}",
                    shown(name)
                )));
            }
        }
    }
    Ok(match negated {
        0 => named,
        _ => all.into_iter().filter(|method| !named.contains(method)).collect(),
    })
}
