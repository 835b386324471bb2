//! All keys of libpq, their environment variables, and how barmanfs treats them.

/// How barmanfs treats a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It is used.
    Used,
    /// It has no meaning for backups; the reason is logged once when the key is given.
    Ignored(&'static str),
    /// Only these values are accepted. Ignoring others would be less safe than the user believes.
    Only(&'static [&'static str]),
}

/// One key of a connection string.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The environment variable that gives its default.
    pub(super) variable: Option<&'static str>,
    pub(super) meaning: Meaning,
}

const fn used(name: &'static str, variable: Option<&'static str>) -> Key {
    Key {
        name,
        variable,
        meaning: Meaning::Used,
    }
}

const fn ignored(name: &'static str, variable: Option<&'static str>, why: &'static str) -> Key {
    Key {
        name,
        variable,
        meaning: Meaning::Ignored(why),
    }
}

const fn only(name: &'static str, variable: Option<&'static str>, values: &'static [&'static str]) -> Key {
    Key {
        name,
        variable,
        meaning: Meaning::Only(values),
    }
}

const NO_GSS: &str = "GSSAPI is not supported";
const OAUTH: &str = "OAuth is not supported";

/// The keys of libpq 18, including those that only older releases know.
#[rustfmt::skip]
const KEYS: &[Key] = &[
    used("service", Some("PGSERVICE")),
    used("servicefile", Some("PGSERVICEFILE")),
    used("user", Some("PGUSER")),
    used("password", Some("PGPASSWORD")),
    used("passfile", Some("PGPASSFILE")),
    used("host", Some("PGHOST")),
    used("hostaddr", Some("PGHOSTADDR")),
    used("port", Some("PGPORT")),
    used("dbname", Some("PGDATABASE")),
    used("options", Some("PGOPTIONS")),
    used("application_name", Some("PGAPPNAME")),
    used("fallback_application_name", None),
    used("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    used("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    used("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    used("keepalives", None),
    used("keepalives_idle", None),
    used("keepalives_interval", None),
    used("keepalives_count", None),
    used("tcp_user_timeout", None),
    used("sslmode", Some("PGSSLMODE")),
    used("sslnegotiation", Some("PGSSLNEGOTIATION")),
    used("sslrootcert", Some("PGSSLROOTCERT")),
    used("sslcert", Some("PGSSLCERT")),
    used("sslkey", Some("PGSSLKEY")),
    used("sslcrl", Some("PGSSLCRL")),
    used("sslsni", Some("PGSSLSNI")),
    used("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    used("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    used("sslcertmode", Some("PGSSLCERTMODE")),
    used("channel_binding", Some("PGCHANNELBINDING")),
    used("require_auth", Some("PGREQUIREAUTH")),
    used("requirepeer", Some("PGREQUIREPEER")),
    only("sslpassword", None, &[""]),
    only("sslcrldir", Some("PGSSLCRLDIR"), &[""]),
    only("gssencmode", Some("PGGSSENCMODE"), &["disable", "prefer"]),
    only("scram_client_key", None, &[""]),
    only("scram_server_key", None, &[""]),
    ignored("replication", None, "barmanfs sets it where it is needed"),
    ignored("client_encoding", Some("PGCLIENTENCODING"), "barmanfs always uses UTF8"),
    ignored("sslcompression", Some("PGSSLCOMPRESSION"), "TLS compression is never used"),
    ignored("sslkeylogfile", None, "TLS secrets are never written to a file"),
    ignored("requiressl", Some("PGREQUIRESSL"), "sslmode takes its place"),
    ignored("krbsrvname", Some("PGKRBSRVNAME"), NO_GSS),
    ignored("gsslib", Some("PGGSSLIB"), NO_GSS),
    ignored("gssdelegation", Some("PGGSSDELEGATION"), NO_GSS),
    ignored("min_protocol_version", Some("PGMINPROTOCOLVERSION"), "barmanfs speaks protocol 3.0"),
    ignored("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), "barmanfs speaks protocol 3.0"),
    ignored("oauth_issuer", None, OAUTH),
    ignored("oauth_client_id", None, OAUTH),
    ignored("oauth_client_secret", None, OAUTH),
    ignored("oauth_scope", None, OAUTH),
    ignored("authtype", None, "it has no meaning any more"),
    ignored("tty", None, "it has no meaning any more"),
];

/// The key with exactly this name.
pub(super) fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether a key says where the server is, or who connects.
pub(super) fn is_target(name: &str) -> bool {
    matches!(name, "host" | "hostaddr" | "port" | "user" | "dbname")
}

/// Whether the value of a key is a secret.
pub(super) fn is_secret(name: &str) -> bool {
    matches!(
        name,
        "password" | "sslpassword" | "scram_client_key" | "scram_server_key" | "oauth_client_secret"
    )
}

/// Whether a value is no secret, and has nothing in it that may be a misplaced one.
pub(super) fn can_be_shown(name: &str, value: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || "./_-:,".contains(c);
    match name {
        name if is_secret(name) => false,
        "port" => value.chars().all(|c| c.is_ascii_digit() || c == ','),
        "options" | "application_name" | "fallback_application_name" => {
            value.chars().all(|c| is_plain(c) || "= ".contains(c))
        }
        _ => value.chars().all(is_plain),
    }
}

/// The key a misspelt one most likely means.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    // Two swapped letters, or one letter too many and one missing.
    const FARTHEST: usize = 2;
    KEYS.iter()
        .map(|key| (strsim::damerau_levenshtein(name, key.name), key.name))
        .filter(|(distance, _)| *distance <= FARTHEST)
        .min()
        .map(|(_, name)| name)
}

/// All keys.
pub(super) fn all() -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
}
