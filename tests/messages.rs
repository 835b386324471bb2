//! The kind: text from elsewhere in messages. Text from a server or a configuration is printed as text and never
//! interpreted by a terminal; a secret is never printed, however the string that contains it is broken; and a hint is
//! about what was refused.

use crate::common::fake::{FakeServer, LET_IN, READY, message, parameter, problem};
use crate::common::process::Run;
use crate::common::registry::topic;
use crate::common::{Install, PgServer, Site};
use std::io::Write;

topic! {
    alone control_characters_of_a_server_do_not_reach_the_terminal,
    alone an_invalid_connection_string_does_not_show_its_password,
    once a_hint_names_the_privilege_that_is_missing,
    once a_backup_reports_at_once_what_it_waits_for,
}

/// Sets a title, rings the bell, clears the screen with an 8-bit control, changes the writing direction, and forges a
/// line of a log.
const NASTY: &str =
    "a\u{1b}]0;pwned\u{7}b\u{9b}2Jc\u{202e}d\u{2066}e\u{7f}f\r\n2026-11-28T00:00:00Z ERROR forged";

#[track_caller]
fn assert_harmless(run: &Run) {
    let all = run.all();
    let bad = all.chars().find(|c| {
        (c.is_control() && !matches!(*c, '\n' | '\t'))
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    });
    assert_eq!(bad, None, "{run}");
    assert!(
        !all.lines()
            .any(|line| line.starts_with("2026-11-28T00:00:00Z ERROR forged")),
        "{run}"
    );
}

fn control_characters_of_a_server_do_not_reach_the_terminal() {
    let refusing = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(&problem(b'E', "FATAL", NASTY))
    });
    let warning = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        let version = parameter("server_version", &format!("18.1 {NASTY}"));
        client.write_all(&[LET_IN, &version, &problem(b'N', "WARNING", NASTY), READY].concat())?;
        message(&mut client, true)?;
        client.write_all(&[problem(b'E', "ERROR", NASTY).as_slice(), READY].concat())
    });
    let versionless = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(&[LET_IN, &parameter("server_version", NASTY), READY].concat())
    });
    for server in [refusing, warning, versionless] {
        let site = Site::new();
        site.write_config_with(&[("main", &server.conninfo())]);
        site.init();
        for arguments in [
            &["backup", "main", "-vv"][..],
            &["check", "main"],
            &["check", "main", "--json"],
        ] {
            let run = site.barmanfs(arguments);
            assert!(run.code().is_some_and(|code| code > 0), "{run}");
            assert_harmless(&run);
        }
    }
}

fn an_invalid_connection_string_does_not_show_its_password() {
    let site = Site::new();
    site.init();
    let service = site.write_file("services", b"[main]\nhost=/nowhere\npasword=geheim\n[geheim\n");
    for text in [
        "postgresql://u:geheim/x@/nowhere",
        "postgresql://u:12/geheim@nowhere.invalid/d",
        "postgresql://u:x@geheim@nowhere.invalid/d",
        "postgresql://u:x@geheim/y@nowhere.invalid/d",
        "postgresql://u:geheim%zz@nowhere.invalid",
        "postgresql://u:g%65heim@nowhere.invalid/d?geheim=1",
        "postgresql://u@nowhere.invalid/d?password=a&geheim=b",
        "postgresql://u@nowhere.invalid/d?sslmode=x%26password=geheim",
        "host=/nowhere;password=geheim;user=u",
        "host=/nowhere password=a geheim",
        "host=/nowhere password=a geheim=b",
        "host=/nowhere port=5432;password=geheim",
        "host=/nowhere connect_timeout=3;password=geheim",
        "host=/nowhere password='geheim",
        "host=/nowhere user=u password=geheim hostt=x",
        "service=main servicefile=SERVICE",
    ] {
        let text = text.replace("SERVICE", &service.display().to_string());
        site.write_config_with(&[("main", &text)]);
        for command in ["backup", "check"] {
            let run = site.barmanfs(&[command, "main", "-vv"]);
            assert!(run.code() != Some(0), "{text}: {run}");
            assert!(!run.all().contains("geheim"), "{text}: {run}");
        }
    }
}

fn a_hint_names_the_privilege_that_is_missing(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.query("CREATE ROLE plain LOGIN; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC");
    let as_plain = server.conninfo().replace("user=postgres", "user=plain");
    // Over SQL: the database. For replication: the attribute.
    site.write_config_with(&[("main", &as_plain)]);
    let run = site.barmanfs(&["check", "main"]).refused(3);
    let line = |name: &str| {
        let all = run.all();
        let found = all.lines().find(|line| line.contains(name)).map(str::to_owned);
        found.unwrap_or_else(|| panic!("No line about {name}: {run}"))
    };
    let (sql, streaming) = (line("PostgreSQL:"), line("PostgreSQL streaming"));
    assert!(sql.contains("GRANT CONNECT"), "{run}");
    assert!(!sql.contains("REPLICATION"), "{run}");
    assert!(streaming.contains("ALTER ROLE \"plain\" REPLICATION"), "{run}");
}

fn a_backup_reports_at_once_what_it_waits_for(install: &'static Install) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &[]);
    server.configure("checkpoint_timeout = 30s\ncheckpoint_completion_target = 0.5");
    server.start();
    site.write_config(&[("main", &server)]);
    site.barmanfs(&["backup", "main"]).ok().says(&[
        "waiting for a checkpoint of the server, which may take 15 s",
        "immediate_checkpoint = on",
    ]);
    let quick = site.barmanfs(&["backup", "main", "--fast-checkpoint"]).ok();
    assert!(!quick.all().contains("waiting for a checkpoint"), "{quick}");
}
