//! A server that starts from a backup is never more open than the original was: on a clone, on a copy, or of a boot
//! test.
//!
//! The kind: `pg_hba.conf` and access to a socket or an address decide who may connect. The file is copied, so `trust`
//! stays, and access must not become wider. The originals here trust every user who can enter a directory that no other
//! user can enter.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::clone_commands::Stage;
use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer};

topic! {
    edges a_clones_server_accepts_only_the_user_it_runs_as(as_root),
    edges a_server_started_by_hand_accepts_only_its_user(as_root),
    once other_users_are_accepted_on_request(as_root),
    once a_socket_directory_is_removed_with_its_server(as_root),
    once a_boot_test_accepts_no_other_user(as_root),
}

/// The usual socket directories of servers.
const USUAL: [&str; 2] = ["/tmp", "/var/run/postgresql"];

/// An address of this host other than the usual loopback address.
const ELSEWHERE: &str = "127.0.0.2";

fn stage(install: &'static Install) -> Stage {
    let mut stage = Stage::new(install);
    stage.own = true;
    stage
}

/// A query by a user of this host, as the superuser of the database.
fn ask(install: &Install, user: &str, host: &str, port: u64) -> Run {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), "--init-groups"]);
    let group = run(Command::new("id").args(["-g", user])).ok().text();
    command.arg(format!("--regid={group}")).arg("--");
    command.arg(install.program("psql")).args([
        "-XAtqw",
        "-U",
        "postgres",
        "-h",
        host,
        "-p",
        &port.to_string(),
    ]);
    let question = "COPY (SELECT 1) TO PROGRAM 'id -un'; SELECT current_user";
    command.args(["-c", question, "postgres"]);
    command.env("PGCONNECT_TIMEOUT", "10").current_dir("/");
    run(&mut command)
}

/// Only the server's own user of this host can connect, by any path.
#[track_caller]
fn assert_closed(install: &Install, sockets: &str, port: u64) {
    // During recovery the server may accept no connections at all.
    until("it takes connections", || {
        ask(install, "postgres", sockets, port).code() == Some(0)
    });
    let ways = USUAL
        .iter()
        .copied()
        .chain([sockets, "127.0.0.1", "::1", ELSEWHERE]);
    for way in ways {
        let asked = ask(install, "nobody", way, port);
        assert_ne!(asked.code(), Some(0), "nobody got in by {way}: {asked}");
        // Not even a password is asked for.
        assert!(
            !asked.stderr.contains("authentication"),
            "nobody was listened to by {way}: {asked}"
        );
    }
    assert_eq!(ask(install, "postgres", sockets, port).ok().text(), "postgres");
    let socket = Path::new(sockets).join(format!(".s.PGSQL.{port}"));
    let mode = fs::metadata(&socket).expect("a socket").mode();
    assert_eq!(mode & 0o7777, 0o700, "{}", socket.display());
    assert_eq!(
        fs::metadata(sockets).expect("a directory").mode() & 0o077,
        0,
        "{sockets}"
    );
}

fn a_clones_server_accepts_only_the_user_it_runs_as(install: &'static Install) {
    let stage = stage(install);
    let mount = Mount::for_all(&stage.site);
    let made = stage
        .clone(&["create", "main", "x", "--start", "--replay"])
        .ok()
        .text();
    let (sockets, port) = stage.reached_at("x");
    assert_closed(install, &sockets, port);
    assert!(made.contains(&format!("psql -h {sockets} -p {port} ")), "{made}");
    // The line that was printed for the clone works.
    let line = made.lines().last().unwrap_or_default();
    let line = line.split_once("psql").expect("a line to type").1;
    let psql = install.program("psql");
    let typed = format!("{} {line} -U postgres -XAtc 'SELECT 7'", psql.display());
    assert_eq!(stage.site.sh(&typed).ok().text(), "7");
    // With the settings that lead back into its own configuration.
    stage.query("x", "ALTER SYSTEM RESET ALL");
    stage.clone(&["stop", "main", "x"]).ok();
    stage.clone(&["start", "main", "x"]).ok();
    let (sockets, port) = stage.reached_at("x");
    assert_closed(install, &sockets, port);
    stage.clone(&["destroy", "main", "x", "--stop"]).ok();
    drop(mount);
}

/// Starts the server with `pg_ctl` and only a port, as a DBA does.
fn start_by_hand(stage: &Stage, data: &Path, port: u64) -> Run {
    let (pg_ctl, log) = (stage.install.program("pg_ctl"), stage.site.path("by-hand.log"));
    stage.site.sh(&format!(
        "'{}' -s -w -D '{}' -l '{}' -o '-p {port}' start",
        pg_ctl.display(),
        data.display(),
        log.display()
    ))
}

/// Stops the server at the end, whatever the outcome of the test.
struct ByHand<'a>(&'a Stage, PathBuf);

impl Drop for ByHand<'_> {
    fn drop(&mut self) {
        let pg_ctl = self.0.install.program("pg_ctl");
        let _ = self.0.site.sh(&format!(
            "'{}' -s -w -m immediate -D '{}' stop",
            pg_ctl.display(),
            self.1.display()
        ));
    }
}

fn a_server_started_by_hand_accepts_only_its_user(install: &'static Install) {
    let stage = stage(install);
    // One original got its listen addresses on its command line: they are not in its files. The other's files open it
    // as widely as only the original may be.
    let mount = Mount::for_all(&stage.site);
    for lines in [
        "",
        "listen_addresses = '*'\nunix_socket_directories = '/tmp'\nunix_socket_permissions = 0777\n",
    ] {
        stage.primary.configure(lines);
        stage.site.backup();
        let clone = mount.path("main/live/by-hand");
        stage.site.sh(&format!("mkdir '{}'", clone.display())).ok();
        let copy = stage
            .site
            .copy(&mount.path("main/latest"), &format!("copy{}", lines.len()));
        let now = stage
            .site
            .copy(&mount.path("main/pitr/now"), &format!("now{}", lines.len()));
        for (data, port) in [(clone, 25_901), (copy, 25_902), (now, 25_903)] {
            let server = ByHand(&stage, data);
            start_by_hand(&stage, &server.1, port).ok();
            assert_closed(install, server.1.to_str().unwrap(), port);
        }
        stage
            .site
            .sh(&format!("rmdir '{}'", mount.path("main/live/by-hand").display()))
            .ok();
    }
    drop(mount);
}

fn other_users_are_accepted_on_request(install: &'static Install) {
    let stage = stage(install);
    let mount = Mount::for_all(&stage.site);
    let created = stage
        .clone(&["create", "main", "team", "--share", "nogroup"])
        .ok();
    let (sockets, port) = stage.reached_at("team");
    created.says(&[&sockets, "group nogroup"]);
    assert_eq!(ask(install, "nobody", &sockets, port).ok().text(), "postgres");
    assert_ne!(ask(install, "daemon", &sockets, port).code(), Some(0));
    assert_ne!(ask(install, "nobody", "127.0.0.1", port).code(), Some(0));
    let directory = fs::metadata(&sockets).unwrap();
    assert_eq!(directory.mode() & 0o777, 0o750);
    stage.clone(&["stop", "main", "team"]).ok();
    assert!(!Path::new(&sockets).exists());

    stage
        .clone(&["start", "main", "team", "--share", "no-such-group"])
        .refused(2)
        .says(&["no-such-group"]);
    assert_eq!(stage.listed("team")["running"], false);

    stage
        .clone(&["start", "main", "team", "--listen", ELSEWHERE])
        .ok()
        .says(&[ELSEWHERE]);
    let (_, port) = stage.reached_at("team");
    assert_eq!(ask(install, "nobody", ELSEWHERE, port).ok().text(), "postgres");
    assert_ne!(ask(install, "nobody", "127.0.0.1", port).code(), Some(0));
    stage.clone(&["destroy", "main", "team", "--stop"]).ok();
    drop(mount);
}

fn a_socket_directory_is_removed_with_its_server(install: &'static Install) {
    let stage = stage(install);
    let mount = Mount::for_all(&stage.site);
    stage
        .clone(&["create", "main", "team", "--share", "nogroup"])
        .ok();
    let (first, _) = stage.reached_at("team");
    // A killed server does not clean up; starting the clone again, or removing it, does.
    let kill = || {
        let clone = mount.path("main/live/team");
        let mut server = PgServer::on_mount(install, &clone, &stage.site.path("team"));
        let postmaster = server.postmaster();
        server.end_without_data(postmaster);
    };
    kill();
    assert!(Path::new(&first).exists());
    stage.clone(&["start", "main", "team", "--share", "nogroup"]).ok();
    let (second, _) = stage.reached_at("team");
    assert!(!Path::new(&first).exists() && Path::new(&second).exists());
    kill();
    stage.clone(&["destroy", "main", "team"]).ok();
    assert!(!Path::new(&second).exists());
    drop(mount);
}

fn a_boot_test_accepts_no_other_user(install: &'static Install) {
    let stage = stage(install);
    let sql = "\\set ON_ERROR_STOP on\n\
        SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) = \
            'listen_addresses= unix_socket_group= unix_socket_permissions=0700' AS closed FROM pg_settings \
            WHERE name IN ('listen_addresses', 'unix_socket_group', 'unix_socket_permissions') \\gset\n\
        \\if :closed\n\\else\nSELECT 1/0;\n\\endif\n\
        COPY (SELECT setting FROM pg_settings WHERE name = 'unix_socket_directories') TO PROGRAM \
            'xargs stat -c \"%a %U\" > SEEN';\n";
    let seen = stage.site.path("seen");
    let file = stage
        .site
        .write_file("q.sql", sql.replace("SEEN", &seen.to_string_lossy()).as_bytes());
    let bindir = install.bindir.to_string_lossy();
    stage.site.ok(&[
        "verify",
        "main",
        "latest",
        "--boot",
        "--bindir",
        &bindir,
        "--sql",
        &file.to_string_lossy(),
    ]);
    assert_eq!(fs::read_to_string(seen).unwrap(), "700 postgres\n");
}
