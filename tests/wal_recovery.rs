//! Recovery through `restore_command`: to the last committed transaction, and never a promotion because the mount is
//! gone.

use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::{Install, Load, Mount, PgServer, Site};
use rustix::process::Signal;

topic! {
    with_postgres recovery_reaches_the_last_commit,
    edges get_wal_as_restore_command_reaches_the_last_commit,
    edges a_daemon_killed_during_recovery_ends_it_without_promotion,
    edges a_mount_lost_during_recovery_ends_it_without_promotion,
    with_postgres a_restore_point_is_reached,
}

/// The first line of `info/restore_command` that is not a comment.
fn restore_command(site: &Site, mount: &Mount) -> String {
    let text = site
        .sh(&format!(
            "cat '{}/main/info/restore_command'",
            mount.point.display()
        ))
        .ok()
        .text();
    text.lines()
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .expect("a command")
        .to_owned()
}

/// A copy of `latest` that continues recovery after the backup's end.
fn copy_that_recovers(site: &Site, mount: &Mount, install: &'static Install, command: &str) -> PgServer {
    let copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    let command = command.replace('\'', "''");
    copy.configure_auto(&format!(
        "restore_command = '{command}'\nrecovery_target = ''\nrecovery_target_timeline = 'latest'"
    ));
    copy
}

/// A backup, then changes that are only in the archive.
fn site_with_work_after_the_backup(install: &'static Install) -> (Site, PgServer) {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&primary, 2);
    site.backup();
    let load = Load::start(&primary);
    transact(&primary, 3000);
    load.stop();
    transact(&primary, 10);
    primary.archive_current_segment();
    (site, primary)
}

#[track_caller]
fn assert_all_is_there(copy: &PgServer, primary: &PgServer) {
    copy.wait_until_promoted();
    assert_eq!(
        transactions(copy),
        transactions(primary),
        "Transactions are missing"
    );
    assert_sums_agree(copy);
    copy.assert_sound();
}

fn recovery_reaches_the_last_commit(install: &'static Install) {
    let (site, primary) = site_with_work_after_the_backup(install);
    let mount = Mount::new(&site);
    let command = restore_command(&site, &mount);
    let mut copy = copy_that_recovers(&site, &mount, install, &command);
    copy.start();
    assert_all_is_there(&copy, &primary);
}

fn get_wal_as_restore_command_reaches_the_last_commit(install: &'static Install) {
    let (site, primary) = site_with_work_after_the_backup(install);
    let mount = Mount::new(&site);
    let command = format!(
        "{} -c {} get-wal main %f %p",
        site.program().display(),
        site.config().display()
    );
    let mut copy = copy_that_recovers(&site, &mount, install, &command);
    mount.unmount();
    copy.start();
    assert_all_is_there(&copy, &primary);
}

/// The restore command, with an event that happens once before the segment of this number is fetched.
fn with_event(site: &Site, command: &str, before: u32, event: &str) -> String {
    let count = site.path("count");
    let count = count.display();
    format!("echo >> {count}; test $(wc -l < {count}) -ne {before} || {{ {event}; }}; {command}")
}

fn a_daemon_killed_during_recovery_ends_it_without_promotion(install: &'static Install) {
    let (site, primary) = site_with_work_after_the_backup(install);
    let mut mount = Mount::foreground(&site, &[]);
    let command = restore_command(&site, &mount);
    let kill = with_event(&site, &command, 5, &format!("kill -9 {}; sleep 0.2", mount.pid()));
    let mut copy = copy_that_recovers(&site, &mount, install, &kill);
    assert_recovery_stops(&mut copy);
    mount.kill();
    assert_recovers_once_mounted_again(&site, mount, copy, &primary);
}

fn a_mount_lost_during_recovery_ends_it_without_promotion(install: &'static Install) {
    let (site, primary) = site_with_work_after_the_backup(install);
    let mut mount = Mount::foreground(&site, &[]);
    let command = restore_command(&site, &mount);
    let unmount = format!(
        "kill -TERM {}; while test -e {}/README; do sleep 0.05; done",
        mount.pid(),
        mount.text()
    );
    let mut copy = copy_that_recovers(&site, &mount, install, &with_event(&site, &command, 5, &unmount));
    assert_recovery_stops(&mut copy);
    mount.end_by(Signal::TERM);
    assert_recovers_once_mounted_again(&site, mount, copy, &primary);
}

/// FATAL in the log, no promotion, the same timeline.
#[track_caller]
fn assert_recovery_stops(copy: &mut PgServer) {
    let started = copy.try_start();
    if started.code() == Some(0) {
        // The copy is consistent already, so it accepted connections; now it must shut down.
        until("the server stops", || !copy.data.join("postmaster.pid").exists());
    }
    let log = copy.log();
    assert!(
        log.contains("FATAL:  could not restore file"),
        "No FATAL in the log:\n{log}"
    );
    assert!(
        !log.contains("selected new timeline ID"),
        "The copy was promoted with WAL missing:\n{log}"
    );
    assert_eq!(copy.timeline(), 1);
}

fn assert_recovers_once_mounted_again(site: &Site, mount: Mount, mut copy: PgServer, primary: &PgServer) {
    drop(mount);
    let _mount = Mount::new(site);
    copy.start();
    assert_all_is_there(&copy, primary);
}

fn a_restore_point_is_reached(install: &'static Install) {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&primary, 1);
    site.backup();
    transact(&primary, 500);
    primary.query("SELECT pg_create_restore_point('before_migration')");
    let wanted = transactions(&primary);
    primary.query("DROP TABLE pgbench_accounts");
    primary.archive_current_segment();
    let mount = Mount::new(&site);
    let command = restore_command(&site, &mount);
    let mut copy = copy_that_recovers(&site, &mount, install, &command);
    copy.configure_auto("recovery_target_name = 'before_migration'\nrecovery_target_action = 'promote'");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(transactions(&copy), wanted);
    assert_sums_agree(&copy);
}
