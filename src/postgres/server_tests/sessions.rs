//! Logging in, running queries, replication commands, timeouts.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use barmanfs_pg::TimelineId;

use super::server::{PASSWORD, Server, installations};
use crate::postgres::{Connection, Conninfo, Environment, Error, Mode};

/// The expected result of an attempt to connect.
enum Expected {
    Plain,
    Encrypted,
    Fails(&'static str),
}
use Expected::{Encrypted, Fails, Plain};

#[test]
fn every_authentication_method_works() {
    for bin in installations() {
        let server = Server::start(&bin);
        let directory = server.directory.path().display().to_string();
        check(
            &server,
            &format!("host={directory} user=postgres dbname=postgres"),
            &Plain,
        );
        check(
            &server,
            &format!("host=@bfs-{} user=postgres dbname=postgres", server.port),
            &Plain,
        );
        check(
            &server,
            "host=127.0.0.1 user=password_user sslmode=disable",
            &Plain,
        );
        check(&server, "host=127.0.0.1 user=md5_user sslmode=disable", &Plain);
        check(&server, "host=127.0.0.1 user=scram_user sslmode=disable", &Plain);
        check(&server, "host=localhost user=scram_user sslmode=disable", &Plain);
        check(&server, "host=127.0.0.1 user=plain_user sslmode=prefer", &Plain);
        check(
            &server,
            "host=127.0.0.1 user=scram_user password=wrong sslmode=disable",
            &Fails("28P01"),
        );
        check(
            &server,
            "host=127.0.0.1 user=unknown sslmode=disable",
            &Fails("28000"),
        );
        check(
            &server,
            "host=127.0.0.1 user=md5_user require_auth=scram-sha-256",
            &Fails("require_auth"),
        );
        check(
            &server,
            "host=127.0.0.1 user=password_user require_auth=!password",
            &Fails("require_auth"),
        );
        check(
            &server,
            "host=127.0.0.1 user=scram_user sslmode=disable channel_binding=require",
            &Fails("the connection is not encrypted"),
        );
        let two = format!("host=/nonexistent,{directory} user=postgres dbname=postgres");
        check(&server, &two, &Plain);
        check(
            &server,
            "host=/nonexistent user=postgres",
            &Fails("/nonexistent/.s.PGSQL"),
        );
        if server.has_tls {
            check_tls(&server, &directory);
        } else {
            check(
                &server,
                "host=127.0.0.1 user=scram_user sslmode=require",
                &Fails("does not support TLS"),
            );
            check(&server, "host=127.0.0.1 user=scram_user sslmode=prefer", &Plain);
        }
    }
}

fn check_tls(server: &Server, directory: &str) {
    let host = "host=127.0.0.1";
    for mode in ["prefer", "require"] {
        check(
            server,
            &format!("{host} user=tls_user sslmode={mode}"),
            &Encrypted,
        );
    }
    check(server, &format!("{host} user=scram_user sslmode=allow"), &Plain);
    check(server, &format!("{host} user=tls_user sslmode=allow"), &Encrypted);
    check(
        server,
        &format!("{host} user=tls_user sslmode=disable"),
        &Fails("28000"),
    );
    check(
        server,
        &format!("{host} user=plain_user sslmode=require"),
        &Fails("28000"),
    );
    for binding in ["disable", "prefer", "require"] {
        check(
            server,
            &format!("{host} user=tls_user sslmode=require channel_binding={binding}"),
            &Encrypted,
        );
    }
    for version in ["TLSv1.2", "TLSv1.3"] {
        let both = format!("ssl_min_protocol_version={version} ssl_max_protocol_version={version}");
        check(
            server,
            &format!("{host} user=tls_user sslmode=require channel_binding=require {both}"),
            &Encrypted,
        );
    }
    let ca = format!("sslrootcert={directory}/ca.crt");
    let other = format!("sslrootcert={directory}/other.crt");
    check(
        server,
        &format!("{host} user=tls_user sslmode=verify-ca {ca}"),
        &Encrypted,
    );
    check(
        server,
        &format!("{host} user=tls_user sslmode=verify-ca {other}"),
        &Fails("UnknownIssuer"),
    );
    check(
        server,
        &format!("{host} user=tls_user sslmode=require {other}"),
        &Fails("UnknownIssuer"),
    );
    check(
        server,
        &format!("{host} user=tls_user sslmode=verify-ca"),
        &Fails("root.crt does not exist"),
    );
    check(
        server,
        &format!("host=localhost user=tls_user sslmode=verify-full {ca}"),
        &Encrypted,
    );
    check(
        server,
        &format!("{host} user=tls_user sslmode=verify-full {ca}"),
        &Fails("not valid for name"),
    );
    check(
        server,
        &format!("host=db.example {host}addr user=tls_user sslmode=verify-full {ca}")
            .replace("host=127.0.0.1addr", "hostaddr=127.0.0.1"),
        &Fails("not valid for name"),
    );
    check_client_certificate(server, directory);
    server.sql(&format!(
        "ALTER SYSTEM SET ssl_cert_file = '{directory}/self.crt'"
    ));
    server.sql(&format!("ALTER SYSTEM SET ssl_key_file = '{directory}/self.key'"));
    server.sql("SELECT pg_reload_conf()");
    await_new_certificate(server, directory);
    let own = format!("sslrootcert={directory}/self.crt");
    check(
        server,
        &format!("{host} user=tls_user sslmode=verify-full {own}"),
        &Encrypted,
    );
    check(
        server,
        &format!("host=localhost user=tls_user sslmode=verify-full {own}"),
        &Encrypted,
    );
    check(
        server,
        &format!("{host} user=tls_user sslmode=verify-ca {ca}"),
        &Fails("TLS handshake failed"),
    );
}

fn check_client_certificate(server: &Server, directory: &str) {
    let base = "host=127.0.0.1 user=cert_user sslmode=require";
    let identity = format!("sslcert={directory}/client.crt sslkey={directory}/client.key");
    check(server, &format!("{base} {identity}"), &Encrypted);
    check(server, base, &Fails("28000"));
    std::fs::set_permissions(
        format!("{directory}/client.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    check(
        server,
        &format!("{base} {identity}"),
        &Fails("group or world access"),
    );
    check(
        server,
        &format!("{base} sslcert=/nonexistent"),
        &Fails("Could not load certificate file"),
    );
}

/// Waits until the server has read its files again.
fn await_new_certificate(server: &Server, directory: &str) {
    let text = format!("host=127.0.0.1 user=tls_user sslmode=verify-ca sslrootcert={directory}/self.crt");
    let deadline = Instant::now() + Duration::from_secs(20);
    while attempt(server, &text, Mode::Sql).is_err() {
        assert!(Instant::now() < deadline, "the new certificate does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn attempt(server: &Server, text: &str, mode: Mode) -> Result<Connection, Error> {
    let password = PASSWORD.replace('\'', "\\'");
    let database = if text.contains("dbname") {
        ""
    } else {
        "dbname=postgres"
    };
    server.connect(
        &format!("password='{password}' port={} {database} {text}", server.port),
        mode,
    )
}

fn check(server: &Server, text: &str, expected: &Expected) {
    for mode in [Mode::Sql, Mode::Replication] {
        match (attempt(server, text, mode), expected) {
            (Ok(connection), Plain) if !connection.is_encrypted() => works(connection, mode),
            (Ok(connection), Encrypted) if connection.is_encrypted() => works(connection, mode),
            (Err(error), Fails(part)) => {
                let shown = format!("{error} {error:?}");
                assert!(shown.contains(part), "{text}: {shown}");
                assert!(
                    !shown.contains(PASSWORD) && !error.to_string().contains('\n'),
                    "{text}: {shown}"
                );
            }
            (Ok(connection), _) => panic!("{text}: connected, encrypted: {}", connection.is_encrypted()),
            (Err(error), _) => panic!("{text}: {error}, hint: {:?}", error.hint()),
        }
    }
}

fn works(mut connection: Connection, mode: Mode) {
    match mode {
        Mode::Replication => assert!(connection.identify_system().unwrap().system_id.0 > 0),
        Mode::Sql => {
            let results = connection
                .simple_query("SELECT 1 AS one, NULL AS none; SELECT 'x' AS y WHERE false")
                .unwrap();
            assert_eq!((results.len(), results[0].len(), results[1].len()), (2, 1, 0));
            assert_eq!(
                (results[0].text(0, "one"), results[0].text(0, "none")),
                (Some("1"), None)
            );
        }
    }
}

#[test]
fn errors_leave_the_connection_usable() {
    for bin in installations() {
        let server = Server::start(&bin);
        let mut connection = server.connect(&server.local(), Mode::Sql).unwrap();
        let error = connection.simple_query("SELECT 1/0").unwrap_err();
        assert_eq!(error.sqlstate(), Some("22012"));
        assert!(error.to_string().contains("division by zero"), "{error}");
        works(connection, Mode::Sql);

        let mut connection = server.connect(&server.local(), Mode::Sql).unwrap();
        connection
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let error = connection.simple_query("SELECT pg_sleep(20)").unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");
        assert!(connection.simple_query("SELECT 1").is_err());

        let mut connection = server.connect(&server.local(), Mode::Sql).unwrap();
        let interrupter = connection.interrupter().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            interrupter.interrupt();
        });
        let error = connection.simple_query("SELECT pg_sleep(20)").unwrap_err();
        assert!(matches!(error, Error::Closed), "{error}");
    }
}

#[test]
fn replication_commands_work() {
    for bin in installations() {
        let server = Server::start(&bin);
        let mut connection = server.connect(&server.local(), Mode::Replication).unwrap();
        let version = connection.server_version().unwrap();
        assert_eq!(
            connection.show("server_version_num").unwrap(),
            version.0.to_string()
        );
        assert_eq!(connection.show("wal_segment_size").unwrap(), "16MB");
        assert!(connection.show("x; DROP").is_err());
        assert_eq!(
            connection.show("no_such_setting").unwrap_err().sqlstate(),
            Some("42704")
        );

        let identity = connection.identify_system().unwrap();
        let by_sql = server
            .sql("SELECT system_identifier FROM pg_control_system()")
            .unwrap();
        assert_eq!(identity.system_id.to_string(), by_sql);
        assert_eq!(identity.timeline, TimelineId(1));

        connection.create_temporary_slot("temporary_1").unwrap();
        assert_eq!(
            connection
                .create_temporary_slot("temporary_1")
                .unwrap_err()
                .sqlstate(),
            Some("42710")
        );
        assert!(
            connection
                .create_temporary_slot("Bad Name")
                .unwrap_err()
                .hint()
                .is_some()
        );
        connection.create_slot("lasting").unwrap();
        if version.major() >= 15 {
            let slot = connection.read_slot("lasting").unwrap().unwrap();
            assert!(slot.restart_lsn.unwrap() <= identity.flush_lsn);
            assert_eq!(slot.restart_timeline, Some(TimelineId(1)));
            assert_eq!(connection.read_slot("absent").unwrap(), None);
        }
        connection.drop_slot("lasting", true).unwrap();
        assert_eq!(
            connection.drop_slot("lasting", false).unwrap_err().sqlstate(),
            Some("42704")
        );

        assert_eq!(connection.timeline_history(TimelineId(1)).unwrap(), None);
        assert_eq!(
            connection.timeline_history(TimelineId(7)).unwrap_err().sqlstate(),
            Some("58P01")
        );
        let content = b"1\t0/3000000\tno recovery target \xFF specified\n";
        let path = server.directory.path().join("data/pg_wal/00000007.history");
        std::fs::write(&path, content).unwrap();
        server.give(&path);
        let history = connection.timeline_history(TimelineId(7)).unwrap().unwrap();
        assert_eq!(history.content, content);
        let refused = connection.simple_query("SELECT 1").unwrap_err();
        assert!(
            refused.to_string().contains("cannot execute SQL commands"),
            "{refused}"
        );
    }
}

#[test]
fn a_silent_host_takes_only_the_connect_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for mode in ["disable", "prefer"] {
        let text = format!("host=127.0.0.1 port={port} user=u connect_timeout=1 sslmode={mode}");
        let environment = Environment::fixed("u", std::path::Path::new("/nonexistent"), &[]);
        let begun = Instant::now();
        let error =
            Connection::connect(&Conninfo::parse(&text, &environment).unwrap(), Mode::Sql).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("The server did not answer within 1 s"),
            "{error}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
