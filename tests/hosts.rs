//! The kind: a connection string means something else here than to libpq. With a primary and a standby, each string is
//! given to psql of the same installation. barmanfs must connect to the same server, or to none.

use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::standby::standby_of;
use crate::common::{Install, PgServer, Site};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

topic! {
    once lists_of_hosts_mean_the_same_as_in_psql,
}

struct Pair {
    site: Site,
    primary: PgServer,
    standby: PgServer,
}

impl Pair {
    /// Replaces placeholders by the socket directories: `P` and `S` in braces, `%P` and `%S` encoded for a URI.
    fn expand(&self, text: &str) -> String {
        let (primary, standby) = (self.primary.sockets(), self.standby.sockets());
        let encoded = |path: &Path| path.display().to_string().replace('/', "%2F");
        text.replace("{%P}", &encoded(&primary))
            .replace("{%S}", &encoded(&standby))
            .replace("{P}", &primary.display().to_string())
            .replace("{S}", &standby.display().to_string())
    }

    /// The server that psql connects to.
    fn psql(&self, text: &str, variables: &[(String, String)]) -> Option<&'static str> {
        let mut psql = self.primary.command("psql");
        psql.envs(variables.iter().cloned())
            .args(["-XAtq", "-c", "SELECT pg_is_in_recovery()", "-d", text]);
        match run(&mut psql).text().as_str() {
            "f" => Some("primary"),
            "t" => Some("standby"),
            _ => None,
        }
    }

    /// The server that barmanfs connects to, for SQL and for replication.
    fn barmanfs(
        &self,
        text: &str,
        variables: &[(String, String)],
    ) -> (Option<&'static str>, Option<&'static str>, Run) {
        self.site.write_config_with(&[("main", text)]);
        let mut check = self.site.barmanfs_command(&["check", "main"]);
        let run = run(check.envs(variables.iter().cloned()));
        let taken = |name: &str| {
            let all = run.all();
            let line = all.lines().find(|line| line.contains(name))?.to_owned();
            // If all is well, the line has the path of the socket that was used.
            let is = |server: &PgServer| {
                let socket = format!("server on socket \"{}/", server.sockets().display());
                line.contains(": OK (") && line.contains(&socket)
            };
            match (is(&self.primary), is(&self.standby)) {
                (true, false) => Some("primary"),
                (false, true) => Some("standby"),
                _ => None,
            }
        };
        let (sql, streaming) = (taken("PostgreSQL:"), taken("PostgreSQL streaming"));
        (sql, streaming, run)
    }

    #[track_caller]
    fn assert_same(&self, text: &str, variables: &[(&str, &str)]) -> Run {
        let text = self.expand(text);
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), self.expand(value)))
            .collect();
        let expected = self.psql(&text, &variables);
        let (sql, streaming, run) = self.barmanfs(&text, &variables);
        assert_eq!(
            (sql, streaming),
            (expected, expected),
            "{text} {variables:?}: {run}"
        );
        run
    }
}

const BASE: &str = "user=postgres dbname=postgres";

fn lists_of_hosts_mean_the_same_as_in_psql(install: &'static Install) {
    let (site, primary) = Site::with_server(install);
    // Gives the server another port, through the name of its socket.
    let link = |server: &PgServer, port: u16| {
        let directory = server.sockets().display().to_string();
        site.sh(&format!("ln -sf .s.PGSQL.5432 '{directory}/.s.PGSQL.{port}'"))
            .ok();
    };
    let standby = standby_of(&site, &primary, install, "standby");
    link(&primary, 6001);
    link(&standby, 6002);
    let mut pair = Pair {
        site,
        primary,
        standby,
    };
    for hosts in ["{P},{S}", "{S},{P}", "/nowhere,{S},{P}", "{S}", "{P}"] {
        for target in [
            "any",
            "read-write",
            "read-only",
            "primary",
            "standby",
            "prefer-standby",
        ] {
            pair.assert_same(&format!("host={hosts} {BASE} target_session_attrs={target}"), &[]);
        }
    }
    for text in [
        "host={P},{S} port=6001,6002",
        "host={P},{S} port=1,6002",
        "host={P},{S} port=6001,1",
        "host={S},{P} port=5432",
        "host={S},{P} port=,6001 target_session_attrs=primary",
        "host={S},{P} port=1,2,3",
        "host={P},{S} target_session_attrs=nonsense",
        "host={P} load_balance_hosts=nonsense",
    ] {
        pair.assert_same(&format!("{text} {BASE}"), &[]);
    }
    pair.assert_same(
        "postgresql://postgres@{%S},{%P}/postgres?target_session_attrs=read-write",
        &[],
    );
    pair.assert_same("postgresql://postgres@{%P}:1,{%S}:6002/postgres", &[]);
    let variables = [("PGHOST", "{S},{P}"), ("PGTARGETSESSIONATTRS", "primary")];
    pair.assert_same(BASE, &variables);
    pair.assert_same(&format!("{BASE} target_session_attrs=any"), &variables);
    let services = "[both]\nhost={S},{P}\nport=6002,6001\ntarget_session_attrs=read-write\nuser=postgres\ndbname=postgres\n";
    let services = pair.site.write_file("services", pair.expand(services).as_bytes());
    let services = services.display().to_string();
    pair.assert_same("service=both", &[("PGSERVICEFILE", services.as_str())]);
    let run = pair.assert_same(
        &format!("host=/nowhere,{{S}} {BASE} target_session_attrs=primary"),
        &[],
    );
    run.says(&["/nowhere/.s.PGSQL.5432", "standby.s/.s.PGSQL.5432", "hot standby"]);
    passwords(&pair);
    random_order(&pair);
    // A standby that accepts no connections is skipped.
    pair.standby.configure("hot_standby = off");
    pair.standby.stop("fast");
    let _not_ready_for_psql = pair.standby.try_start();
    pair.assert_same(&format!("host={{S}},{{P}} {BASE}"), &[]);
}

/// Each host has its own line in the password file; a wrong one ends the search.
fn passwords(pair: &Pair) {
    pair.primary
        .query("CREATE ROLE p LOGIN REPLICATION PASSWORD 'right'");
    for server in [&pair.primary, &pair.standby] {
        let hba = server.data.join("pg_hba.conf");
        let text = std::fs::read_to_string(&hba).expect("Cannot read pg_hba.conf");
        std::fs::write(&hba, format!("local all,replication p scram-sha-256\n{text}"))
            .expect("Cannot write it");
        server.query("SELECT pg_reload_conf()");
    }
    let lsn = pair.primary.query("SELECT pg_current_wal_flush_lsn()");
    until("the role is on the standby", || {
        pair.standby
            .query(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"))
            == "t"
    });
    let text = pair.expand("{P}:*:*:p:wrong\n{S}:5432:*:p:wrong\n{S}:6002:*:p:right\n");
    let file = pair.site.write_file("pgpass", text.as_bytes());
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("Cannot set permissions");
    let file = file.display().to_string();
    let variables = [("PGPASSFILE", file.as_str())];
    for hosts in [
        "host={S},{P} port=6002,6001",
        "host={P},{S} port=6001,6002",
        "host={P},{S} port=1,6002",
        "host={S},{S} port=5432,6002",
        "host={S},{S} port=1,6002",
    ] {
        pair.assert_same(&format!("{hosts} user=p dbname=postgres"), &variables);
    }
}

fn random_order(pair: &Pair) {
    let text = pair.expand(&format!("host={{P}},{{S}} {BASE} load_balance_hosts=random"));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        seen.extend(pair.barmanfs(&text, &[]).1);
        if seen.len() == 2 {
            return;
        }
    }
    panic!("40 times the same server: {seen:?}");
}
