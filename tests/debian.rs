//! A cluster of Debian's tools (postgresql-common): its configuration is in /etc, and it is started by pg_ctlcluster.

use std::fs;
use std::path::Path;

use crate::common::process::Run;
use crate::common::registry::topic;
use crate::common::sshd::Sshd;
use crate::common::{Install, Site};

topic! {
    once a_cluster_is_recovered_under_debians_tools,
}

/// A cluster `main` in directories of the site.
struct Cluster<'a> {
    site: &'a Site,
    major: u32,
}

impl Cluster<'_> {
    /// Runs a shell command with Debian's tools, on clusters of the site.
    fn run(&self, script: &str) -> Run {
        let top = self.site.path("");
        self.site.sh(&format!(
            "cd '{}' && export PG_CLUSTER_CONF_ROOT=$PWD/etc PGOPTIONS= && {script}",
            top.display()
        ))
    }

    fn create(&self) {
        let major = self.major;
        self.run(&format!(
            "pg_createcluster {major} main -d $PWD/data -s $PWD/sockets -l $PWD/log -p 5432 --start-conf manual \
             --pgoption listen_addresses= -- --wal-segsize=1 --username=postgres"
        ))
        .ok();
    }

    fn control(&self, action: &str) {
        let run = self.run(&format!("pg_ctlcluster {} main {action}", self.major));
        let log = fs::read_to_string(self.site.path("log")).unwrap_or_default();
        assert!(run.code() == Some(0), "{run}\n{log}");
    }

    fn query(&self, sockets: &str, sql: &str) -> String {
        let run = self.run(&format!(
            "psql -h $PWD/{sockets} -U postgres -d postgres -AXtqc \"{sql}\""
        ));
        run.ok().text().trim().to_owned()
    }

    fn configuration(&self) -> String {
        format!("etc/{}/main", self.major)
    }
}

fn a_cluster_is_recovered_under_debians_tools(_install: &'static Install) {
    let of_debian = |install: &&Install| install.bindir.starts_with("/usr/lib/postgresql");
    let found = Install::all().iter().find(of_debian);
    let (Some(install), true) = (found, Path::new("/usr/bin/pg_createcluster").exists()) else {
        println!("Debian's PostgreSQL is not among the tested ones");
        return;
    };
    let site = Site::new();
    let (cluster, major) = (
        Cluster {
            site: &site,
            major: install.major,
        },
        install.major,
    );
    site.make_directory("sockets");
    cluster.create();
    let configuration = cluster.configuration();
    let own = format!(
        "archive_mode = on\narchive_command = '{}'\nwork_mem = '9MB'\n",
        site.archive_command()
    );
    site.write_file(&format!("{configuration}/conf.d/site.conf"), own.as_bytes());
    let access = b"local all all trust\nlocal replication all trust\n";
    site.write_file(&format!("{configuration}/pg_hba.conf"), access);
    cluster.control("start");
    let conninfo = format!(
        "host={} user=postgres dbname=postgres",
        site.path("sockets").display()
    );
    site.write_config_with(&[("main", &conninfo)]);
    cluster.query("sockets", "CREATE TABLE t AS SELECT 1 n");
    site.init();
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    cluster.query("sockets", "INSERT INTO t VALUES (2)");
    site.ok(&["switch-wal", "main", "--archive"]);
    cluster.control("stop");
    cluster.run(&format!("pg_dropcluster {major} main")).ok();

    // The recipe of docs/recovery.md, on a new host.
    cluster.create();
    cluster.run("rm -r data").ok();
    let (data, etc) = (site.path("data"), site.path(&configuration));
    let (data, etc) = (data.to_str().unwrap(), etc.to_str().unwrap());
    let restored = site.ok(&["restore", "main", "auto", data, "--restore-config", etc]);
    assert!(restored.contains(etc), "{restored}");
    cluster.control("start");
    assert_eq!(
        cluster.query("data", "SELECT string_agg(n::text, ' ' ORDER BY n) FROM t"),
        "1 2"
    );
    assert_eq!(cluster.query("data", "SHOW work_mem"), "9MB");
    assert_eq!(
        cluster.query("data", "SHOW config_file"),
        format!("{etc}/postgresql.conf")
    );
    assert_eq!(cluster.query("data", "SHOW data_directory"), data);
    assert_eq!(cluster.query("data", "SHOW archive_mode"), "off");

    to_another_host(&site, etc);

    cluster.control("stop");
    cluster
        .run("sed -i '/barmanfs: begin/,/barmanfs: end/d' data/postgresql.auto.conf")
        .ok();
    cluster.control("start");
    assert_eq!(cluster.query("sockets", "SHOW archive_mode"), "on");
    assert_eq!(
        fs::read(site.path(&format!("{configuration}/pg_hba.conf"))).unwrap(),
        access
    );
    cluster.control("stop");
}

/// The configuration on another host is the one here, but for where things are.
fn to_another_host(site: &Site, etc: &str) {
    let sshd = Sshd::start(site);
    let (data, there) = (site.path("data.there"), site.path("etc.there"));
    site.make_directory("etc.there");
    site.write_file("etc.there/pg_ident.conf", b"# of before\n");
    let paths = [data.to_str().unwrap(), there.to_str().unwrap()];
    let words = [
        "restore",
        "main",
        "auto",
        paths[0],
        "--restore-config",
        paths[1],
        "--no-get-wal",
    ];
    site.ok(&[&words[..], &["--remote-ssh-command", &sshd.bare()]].concat());
    assert_eq!(
        fs::read(there.join("pg_ident.conf.before-restore")).unwrap(),
        b"# of before\n"
    );
    let own = fs::read_to_string(there.join("postgresql.conf")).unwrap();
    assert!(own.contains(&format!("data_directory = '{}'", paths[0])), "{own}");
    assert!(
        own.contains(&format!("include_dir = '{}/conf.d'", paths[1]))
            || own.contains("include_dir = 'conf.d'"),
        "{own}"
    );
    for name in ["conf.d/site.conf", "pg_hba.conf", "pg_ident.conf"] {
        let of = |directory: &Path| fs::read(directory.join(name)).unwrap();
        assert_eq!(of(Path::new(etc)), of(&there), "{name}");
    }
}
