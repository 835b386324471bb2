//! Lines that README and docs tell users to install somewhere work there. The kind: a line works in the shell of its
//! author, but not where it is run: by cron, by PostgreSQL, by systemd, which have a `PATH` of their own.

use crate::common::load::fill;
use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::user::command;
use crate::common::{Install, Site};

topic! {
    alone commands_for_other_hosts_have_absolute_paths,
    once commands_for_cron_run_with_its_path,
    once scripts_find_the_newest_backup_first,
}

const TEXTS: [&str; 3] = [
    include_str!("../README.md"),
    include_str!("../docs/operation.md"),
    include_str!("../docs/recovery.md"),
];
const INSTALLED: &str = "/usr/local/bin/barmanfs";

fn all_lines() -> impl Iterator<Item = &'static str> {
    TEXTS.into_iter().flat_map(str::lines)
}

/// The commands of the lines for cron.
fn cron_lines() -> Vec<&'static str> {
    let is_time = |word: &str| word.chars().all(|c| c.is_ascii_digit() || "*/,-".contains(c));
    let lines = all_lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_cron =
            words.len() > 6 && words[..5].iter().all(|word| is_time(word)) && words[5] == "postgres";
        is_cron.then(|| line.split_once("postgres").unwrap().1.trim())
    });
    lines.collect()
}

fn commands_for_other_hosts_have_absolute_paths() {
    assert!(cron_lines().len() >= 3);
    for line in cron_lines() {
        assert!(line.starts_with(INSTALLED), "{line}");
    }
    for key in ["archive_command = '", "restore_command = '", "ExecStart="] {
        for line in all_lines().filter(|line| line.starts_with(key)) {
            assert!(line.contains(&format!("{key}{INSTALLED} ")), "{line}");
        }
    }
    let help = Site::new().barmanfs(&["wal-archive", "--help"]).ok().text();
    assert!(help.contains(&format!("'{INSTALLED} wal-archive")), "{help}");
}

fn commands_for_cron_run_with_its_path(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    // A spread checkpoint takes minutes.
    site.write_config_of(&server, "immediate_checkpoint = on\n");
    fill(&server, 1);
    server.archive_current_segment();
    let program = format!("{} -c {}", site.program().display(), site.config().display());
    for line in cron_lines() {
        let mut line = line.replace(INSTALLED, &program);
        // Directories of other programs.
        line = line.replace(
            "/var/lib/prometheus/node-exporter",
            &site.path("").display().to_string(),
        );
        if server.query("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'") != "1" {
            line = line.replace(" --amcheck", "");
        }
        if line.contains("--boot") {
            line += &format!(" --bindir {}", install.bindir.display());
        }
        let mut cron = command("/usr/bin/env", &site.path(""));
        cron.args(["-i", "PATH=/usr/bin:/bin", "sh", "-c", &line]);
        run(&mut cron).ok();
    }
    assert_eq!(site.backups().len(), 1);
    // The setting that a check recommends works there too.
    server.query("ALTER SYSTEM SET archive_command = ''");
    server.query("SELECT pg_reload_conf()");
    let checked = site.barmanfs(&["check", "main"]).refused(3).all();
    let wanted = format!("archive_command = '{}'", site.archive_command());
    assert!(checked.contains(&wanted), "{wanted} is not in {checked}");
}

fn scripts_find_the_newest_backup_first(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    let mut ids = vec![site.backup(), site.backup(), site.backup()];
    ids.reverse();
    let listed = site.ok(&["list-backups", "main", "--minimal"]);
    assert_eq!(listed.lines().collect::<Vec<_>>(), ids);
}
