//! Connection strings, compared with how libpq reads them.

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::fixed("osuser", Path::new("/nonexistent/home"), variables)
}

fn parsed(text: &str) -> Result<Conninfo, Error> {
    Conninfo::parse(text, &environment(&[]))
}

/// Hosts, user, database and password in one line, to compare at a glance.
fn summary(conninfo: &Conninfo) -> String {
    let hosts: Vec<String> = conninfo
        .hosts
        .iter()
        .map(|spec| match &spec.host {
            Host::Tcp { name, address } => {
                let address = address.map(|it| format!("={it}")).unwrap_or_default();
                format!("{}{address}:{}", name.as_deref().unwrap_or_default(), spec.port)
            }
            Host::Directory(path) => format!("{}:{}", path.display(), spec.port),
            Host::Abstract(name) => format!("@{name}:{}", spec.port),
        })
        .collect();
    let password = conninfo
        .password
        .as_ref()
        .map(|it| String::from_utf8_lossy(it.expose()).into_owned());
    format!(
        "{} {} {} {}",
        hosts.join(","),
        conninfo.user,
        conninfo.dbname.as_deref().unwrap_or("-"),
        password.as_deref().unwrap_or("-")
    )
}

#[test]
fn both_spellings_mean_the_same_as_to_libpq() {
    let cases = [
        ("", "/var/run/postgresql:5432,/tmp:5432 osuser - -"),
        ("host=db port=6432 user=u dbname=d password=p", "db:6432 u d p"),
        ("  host = db\n\tuser =u  ", "db:5432 u - -"),
        (r"user=u password='it''s'", r"ERR Missing"),
        (
            r"user=u password='it\'s \\ok'",
            r"/var/run/postgresql:5432,/tmp:5432 u - it's \ok",
        ),
        (r"host=db user=u password=a\ b\\c", r"db:5432 u - a b\c"),
        ("host='db'user='u'", "db:5432 u - -"),
        ("host=one host=two", "two:5432 osuser - -"),
        ("host='' user=''", "/var/run/postgresql:5432,/tmp:5432 osuser - -"),
        ("host=/srv/sock port=1", "/srv/sock:1 osuser - -"),
        ("host=@pg", "@pg:5432 osuser - -"),
        ("host=a,b,c port=1,2,3", "a:1,b:2,c:3 osuser - -"),
        (
            "host=a,,b port=1",
            "a:1,/var/run/postgresql:1,/tmp:1,b:1 osuser - -",
        ),
        ("host=a,b port=,7", "a:5432,b:7 osuser - -"),
        ("host=db hostaddr=::1", "db=::1:5432 osuser - -"),
        ("hostaddr=10.0.0.1", "=10.0.0.1:5432 osuser - -"),
        ("postgresql://", "/var/run/postgresql:5432,/tmp:5432 osuser - -"),
        ("postgres://u:p@db:6432/d", "db:6432 u d p"),
        ("postgresql://db/d?user=u&password=p%26%3D", "db:5432 u d p&="),
        ("postgresql://u%40x:a%3Ab%2F@db", "db:5432 u@x - a:b/"),
        ("postgresql://u:pa?ss@db", "db:5432 u - pa?ss"),
        ("postgresql://[::1]:6432/d", "::1:6432 osuser d -"),
        (
            "postgresql://a:1,b,[fe80::2]:3/",
            "a:1,b:5432,fe80::2:3 osuser - -",
        ),
        ("postgresql://a:1,b:2,c:3/d", "a:1,b:2,c:3 osuser d -"),
        ("postgresql://a,b/d?port=7", "a:7,b:7 osuser d -"),
        ("postgresql://%2Fsrv%2Fsock/d", "/srv/sock:5432 osuser d -"),
        ("postgresql:///d?host=/srv/sock&port=9", "/srv/sock:9 osuser d -"),
        ("postgresql://?user=u", "/var/run/postgresql:5432,/tmp:5432 u - -"),
        ("postgresql://db?a+b=c", "ERR Invalid connection option"),
        ("postgresql://db/d+e", "db:5432 osuser d+e -"),
    ];
    for (text, expected) in cases {
        match (parsed(text), expected.strip_prefix("ERR ")) {
            (Ok(conninfo), None) => assert_eq!(summary(&conninfo), expected, "{text}"),
            (Err(error), Some(start)) => assert!(error.to_string().starts_with(start), "{text}: {error}"),
            (other, _) => panic!(
                "{text}: {:?}",
                other.map(|it| summary(&it)).map_err(|it| it.to_string())
            ),
        }
    }
}

#[test]
fn invalid_strings_are_reported_without_values() {
    let cases = [
        ("host=db geheim", "Missing \"=\""),
        ("host=db password='geheim", "Unterminated quoted string"),
        ("hosst=geheim", "Invalid connection option"),
        ("host=db password=a geheim=b", "Invalid connection option"),
        ("host=db;password=geheim", "Invalid host name"),
        ("host=/tmp;password=geheim user=u", "Invalid host name"),
        ("sslmode=prefer;password=geheim", "Invalid sslmode value"),
        ("connect_timeout=5;password=geheim", "Invalid integer value"),
        ("hostaddr=::1;password=geheim", "Could not parse network address"),
        ("port=5432;password=geheim", "Invalid port number"),
        (
            "dbname='host=db password=geheim'",
            "dbname holds a connection string",
        ),
        ("postgresql://u:geheim/x@db/d", "Unexpected \"@\""),
        ("postgresql://u:12/geheim@db/d", "Unexpected \"@\""),
        ("postgresql://u:ge/heim@db:5432/geheim", "Unexpected \"@\""),
        ("postgresql://u:x@geheim/y@db/d", "Unexpected \"@\""),
        ("postgresql://u:x@geheim@db/d", "Invalid host name"),
        ("postgresql://u@realm:geheim@db/d", "Invalid port number"),
        ("postgresql://u:p@db/d?geheim=b", "Invalid connection option"),
        ("postgresql://u:p@db/d?password=a&geheim", "Missing \"=\""),
        ("postgresql://u:p@db/d?port=%67eheim%2f", "Invalid port number"),
        (
            "postgresql://u:p@db/d?sslmode=x%26password%3dgeheim",
            "Invalid sslmode value",
        ),
        (
            "target_session_attrs=master",
            "Invalid target_session_attrs value: \"master\"",
        ),
        (
            "load_balance_hosts=yes",
            "Invalid load_balance_hosts value: \"yes\"",
        ),
        ("port=0 password=geheim", "Invalid port number: \"0\""),
        ("port=65536", "Invalid port number"),
        ("port=x", "Invalid port number"),
        ("host=a,b port=1,2,3", "Could not match 3 port numbers to 2 hosts"),
        (
            "host=a,b hostaddr=::1",
            "Could not match 2 host names to 1 hostaddr",
        ),
        ("hostaddr=db", "Could not parse network address \"db\""),
        ("sslmode=verify", "Invalid sslmode value: \"verify\""),
        ("sslmode=require sslrootcert=system", "Weak sslmode \"require\""),
        ("sslmode=prefer sslnegotiation=direct", "Weak sslmode \"prefer\""),
        ("channel_binding=yes", "Invalid channel_binding value"),
        ("require_auth=scram-sha-256,!md5", "Invalid require_auth value"),
        (
            "require_auth=kerberos",
            "Invalid require_auth value: \"kerberos\"",
        ),
        (
            "connect_timeout=soon",
            "Invalid integer value \"soon\" for connection option \"connect_timeout\"",
        ),
        (
            "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "Invalid TLS protocol version range",
        ),
        (
            "sslpassword=geheim",
            "This value of connection option \"sslpassword\" is not supported",
        ),
        (
            "gssencmode=require",
            "This value of connection option \"gssencmode\" is not supported",
        ),
        ("service=absent", "Definition of service \"absent\" not found"),
        ("postgresql://u:geheim@[::1/d", "IPv6 host address"),
        ("postgresql://[]/d", "IPv6 host address"),
        ("postgresql://[::1]x/d", "Expected \":\" or \"/\""),
        ("postgresql://u:geheim%zz@db", "Invalid percent-encoding"),
        ("postgresql://u:geheim%4@db", "Invalid percent-encoding"),
        ("postgresql://u:geheim%00@db", "Forbidden value %00"),
        ("postgresql://db?user", "Missing \"=\" in a parameter"),
        ("postgresql://db?user=a=b", "Extra \"=\" in a parameter"),
    ];
    for (text, expected) in cases {
        let error = parsed(text).map(|it| summary(&it)).unwrap_err();
        let shown = format!("{error} {error:?} {:?}", error.hint());
        assert!(error.to_string().starts_with(expected), "{text}: {error}");
        assert!(!shown.contains("geheim"), "{text}: {shown}");
    }
}

#[test]
fn a_misspelt_key_is_recognised() {
    let hint = |text| {
        parsed(text)
            .map(|it| summary(&it))
            .unwrap_err()
            .hint()
            .map(str::to_owned)
    };
    assert_eq!(hint("hosst=x").unwrap(), "Is it meant to be \"host\"?");
    assert!(hint("zebra=x").unwrap().contains("libpq"));
}

#[test]
fn target_session_attrs_and_load_balancing_are_read() {
    let target = |text| parsed(text).unwrap().target_session;
    assert_eq!(target(""), TargetSession::Any);
    assert_eq!(
        target("target_session_attrs=read-write"),
        TargetSession::ReadWrite
    );
    assert_eq!(
        target("postgresql://a,b/?target_session_attrs=prefer-standby"),
        TargetSession::PreferStandby
    );
    let variables = [
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGLOADBALANCEHOSTS", "random"),
    ];
    let conninfo = Conninfo::parse("host=a,b", &environment(&variables)).unwrap();
    assert_eq!(conninfo.target_session, TargetSession::Standby);
    assert!(conninfo.load_balance);
    assert!(!parsed("host=a,b").unwrap().load_balance);
    // The name of a database may contain an "@" where it cannot belong to a password.
    assert_eq!(
        parsed("postgresql://db/d@x").unwrap().dbname.as_deref(),
        Some("d@x")
    );
}

#[test]
fn nothing_shows_the_password() {
    for text in ["password=geheim host=db", "postgresql://u:geheim@db/d"] {
        let environment = environment(&[("PGPASSWORD", "geheim")]);
        let conninfo = Conninfo::parse(text, &environment).unwrap();
        let shown = format!("{conninfo} {conninfo:?} {environment:?}");
        assert!(!shown.contains("geheim"), "{shown}");
    }
}

#[test]
fn the_string_comes_before_the_service_and_the_service_before_variables() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    std::fs::write(&file, "[main]\nhost=from-service\nport=2\nuser=from-service\n").unwrap();
    let variables = [
        ("PGHOST", "from-variable"),
        ("PGPORT", "3"),
        ("PGUSER", "from-variable"),
        ("PGDATABASE", "from-variable"),
        ("PGSERVICE", "main"),
        ("PGSERVICEFILE", file.to_str().unwrap()),
        ("PGAPPNAME", ""),
    ];
    let conninfo = Conninfo::parse("user=from-string", &environment(&variables)).unwrap();
    assert_eq!(summary(&conninfo), "from-service:2 from-string from-variable -");
    assert_eq!(conninfo.application_name, "barmanfs");
}

#[test]
fn tls_settings_and_their_defaults() {
    let mode = |text| parsed(text).unwrap().tls.mode;
    assert_eq!(mode(""), SslMode::Prefer);
    assert_eq!(mode("sslrootcert=system"), SslMode::VerifyFull);
    assert_eq!(mode("postgresql://db?ssl=true"), SslMode::Require);
    let required = Conninfo::parse("", &environment(&[("PGREQUIRESSL", "1")])).unwrap();
    assert_eq!(required.tls.mode, SslMode::Require);
    let tls = parsed("sslrootcert=/r sslcert=/c sslkey=/k sslsni=0 ssl_min_protocol_version=TLSv1")
        .unwrap()
        .tls;
    assert_eq!(tls.roots, Some(RootCertificates::File("/r".into())));
    assert_eq!((tls.certificate, tls.key), (Some("/c".into()), Some("/k".into())));
    assert!(tls.certificate_required && !tls.send_server_name);
    assert_eq!(tls.min_version, TlsVersion::V1_2);
    let tls = parsed("").unwrap().tls;
    assert_eq!(
        tls.roots,
        Some(RootCertificates::File(
            "/nonexistent/home/.postgresql/root.crt".into()
        ))
    );
    assert!(!tls.certificate_required && tls.send_server_name);
    assert_eq!(
        parsed("sslcertmode=disable sslcert=/c").unwrap().tls.certificate,
        None
    );
}

#[test]
fn require_auth_lists_and_excludes() {
    let rules = |text| parsed(text).unwrap().auth;
    assert!(rules("").allows(AuthMethod::Password));
    assert!(rules("require_auth=scram-sha-256").allows(AuthMethod::Scram));
    assert!(!rules("require_auth=scram-sha-256").allows(AuthMethod::None));
    assert!(!rules("require_auth=!password,!md5").allows(AuthMethod::Md5));
    assert!(rules("require_auth=!password,!md5").allows(AuthMethod::Scram));
    assert_eq!(
        rules("channel_binding=require").channel_binding,
        ChannelBindingUse::Require
    );
}

#[test]
fn timeouts_and_keepalives() {
    let timeout = |text| parsed(text).unwrap().connect_timeout;
    assert_eq!(timeout(""), None);
    assert_eq!(timeout("connect_timeout=0"), None);
    assert_eq!(timeout("connect_timeout=-1"), None);
    assert_eq!(timeout("connect_timeout=' 7 '"), Some(Duration::from_secs(7)));
    let keepalives =
        parsed("keepalives_idle=5 keepalives_interval=0 keepalives_count=3 tcp_user_timeout=900");
    let expected = Keepalives {
        enabled: true,
        idle: Some(Duration::from_secs(5)),
        interval: None,
        count: Some(3),
        user_timeout_ms: Some(900),
    };
    assert_eq!(keepalives.unwrap().keepalives, expected);
    assert!(!parsed("keepalives=0").unwrap().keepalives.enabled);
}

#[test]
fn passwords_are_found_by_what_libpq_calls_the_host() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pass");
    std::fs::write(
        &file,
        "localhost:5432:*:u:default socket\n/srv:*:*:u:other socket\ndb:*:replication:u:stream\ndb:*:d:u:sql\n\
         10.0.0.1:*:*:u:by address\n",
    )
    .unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let variables = [("PGPASSFILE", file.to_str().unwrap())];
    let found = |text: &str, replication| {
        let conninfo = Conninfo::parse(text, &environment(&variables)).unwrap();
        let password = conninfo.password_for(&conninfo.hosts[0], replication);
        password.map(|it| String::from_utf8(it.expose().to_vec()).unwrap())
    };
    assert_eq!(found("user=u", false).as_deref(), Some("default socket"));
    assert_eq!(
        found("user=u host=/tmp", false).as_deref(),
        Some("default socket")
    );
    assert_eq!(found("user=u host=/srv", false).as_deref(), Some("other socket"));
    assert_eq!(found("user=u host=db dbname=d", true).as_deref(), Some("stream"));
    assert_eq!(found("user=u host=db dbname=d", false).as_deref(), Some("sql"));
    assert_eq!(found("user=u host=db hostaddr=10.0.0.1", false), None);
    assert_eq!(
        found("user=u hostaddr=10.0.0.1", false).as_deref(),
        Some("by address")
    );
    assert_eq!(
        found("user=u host=db password=given", true).as_deref(),
        Some("given")
    );
    assert_eq!(found("user=other host=db", true), None);
}

#[test]
fn what_is_shown_of_a_connection_string_has_no_secret() {
    let shown = |text: &str| Conninfo::without_secrets(text, |_| false);
    assert_eq!(
        shown("host=db1 user=barman password='geh eim' options='-c search_path=x'").as_deref(),
        Some("host=db1 options='-c search_path=x' password=<hidden> user=barman")
    );
    assert_eq!(
        shown("postgresql://u:geheim@db1:6432/d?sslmode=require").as_deref(),
        Some("dbname=d host=db1 password=<hidden> port=6432 sslmode=require user=u")
    );
    for text in [
        "host=db;password=geheim",
        "sslmode=prefer;password=geheim",
        "port=5432;password=geheim",
        "dbname='host=db password=geheim'",
        "postgresql://u@realm:geheim@db/d",
        "postgresql://u:x@geheim@db/d",
        "host=db geheim",
    ] {
        let shown = shown(text).unwrap_or_default();
        assert!(!shown.contains("geheim"), "{text}: {shown}");
        assert!(Conninfo::check_form(text).is_ok() || shown.is_empty(), "{text}");
    }
}
