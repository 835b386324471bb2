//! The mount starts and ends as an administrator expects, no matter who mounts it and how it ends.

use crate::common::load::fill;
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::user::database_user;
use crate::common::{Install, Mount, PgServer, Site};
use rustix::process::Signal;
use std::fs;
use std::process::Command;

topic! {
    once a_mount_answers_before_the_command_returns,
    once new_backups_and_segments_appear_without_a_remount,
    once root_mounts_for_the_database_user (as_root),
    once only_the_servers_asked_for_are_shown,
    once the_mount_is_read_only,
    alone signals_unmount_cleanly,
    alone the_daemon_may_have_as_many_files_open_as_it_can_get,
    alone a_mount_can_be_made_again_after_kill_9,
    alone a_mount_point_and_a_repository_inside_each_other_are_refused,
    alone an_impossible_mount_point_is_refused,
    alone umount_returns_when_the_daemon_has_ended,
    alone umount_of_an_unmounted_directory_is_refused,
}

fn a_mount_answers_before_the_command_returns(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let id = site.backup();
    let mount = Mount::prepare(&site, "mnt");
    for _ in 0..5 {
        // One shell, no wait in between.
        let line = format!(
            "{} -c {} mount {2} && cat {2}/README {2}/main/latest/PG_VERSION && ls {2}/main/{id} && {0} -c {1} umount {2}",
            site.program().display(),
            site.config().display(),
            mount.text()
        );
        site.sh(&line).ok();
        assert!(!mount.is_mounted());
    }
    let mount = Mount::new(&site);
    assert_eq!(site.list(&mount.point), [".barmanfs", "README", "main"]);
    let names = site.list(&mount.path("main"));
    for name in [id.as_str(), "latest", "oldest", "raw", "wal", "info"] {
        assert!(names.contains(&name.to_owned()), "No {name} in {names:?}");
    }
    // A real directory, so that cp -a copies its content.
    site.sh(&format!(
        "test -d '{0}' && test ! -L '{0}'",
        mount.path("main/latest").display()
    ))
    .ok();
    mount.unmount();
}

fn new_backups_and_segments_appear_without_a_remount(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let first = site.backup();
    let mount = Mount::new(&site);
    // Listed, so that the kernel would have it cached.
    assert!(site.list(&mount.path("main/raw")) == [first.clone()]);
    site.list(&mount.path("main/latest"));
    server.query("CREATE TABLE after_mounting AS SELECT 1 n");
    let file = server.query("SELECT pg_relation_filepath('after_mounting')");
    let segment = server.archive_current_segment();
    until("the segment appears", || {
        site.list(&mount.path("main/wal")).contains(&segment)
    });
    let second = site.backup();
    until("the backup appears", || {
        site.list(&mount.path("main")).contains(&second)
    });
    until("latest is the new backup", || {
        site.sh(&format!(
            "test -e '{}'",
            mount.path(&format!("main/latest/{file}")).display()
        ))
        .code()
            == Some(0)
    });
    site.sh(&format!(
        "test ! -e '{}'",
        mount.path(&format!("main/oldest/{file}")).display()
    ))
    .ok();
    site.ok(&["delete", "main", &first, "--force"]);
    until("the deleted backup goes", || {
        !site.list(&mount.path("main")).contains(&first)
    });
}

fn root_mounts_for_the_database_user(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.backup();
    let mount = Mount::prepare(&site, "mnt");
    let user = database_user();
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let arguments = [
        "mount",
        &mount.text(),
        "--allow-other",
        "--uid",
        &uid,
        "--gid",
        &gid,
    ];
    run(&mut site.own_barmanfs_command(&arguments)).ok();
    // With root's daemon the owner can still use all files of the repository.
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    let second = site.backup();
    until("the backup appears", || {
        fs::read_dir(mount.path("main"))
            .unwrap()
            .flatten()
            .any(|e| *e.file_name() == *second)
    });
    site.ok(&["verify"]);
    run(&mut site.own_barmanfs_command(&["umount", &mount.text()])).ok();
    assert!(!mount.is_mounted());
    site.backup();
    site.ok(&["delete", "main", "oldest"]);
    site.ok(&["sweep"]);
}

fn only_the_servers_asked_for_are_shown(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.write_config(&[("main", &server), ("other", &server)]);
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    site.ok(&["backup", "other", "--fast-checkpoint", "--wait-timeout", "1"]);
    let mount = Mount::prepare(&site, "mnt");
    site.ok(&["mount", &mount.text(), "--server", "other"]);
    let names = site.list(&mount.point);
    assert!(
        names.contains(&"other".into()) && !names.contains(&"main".into()),
        "{names:?}"
    );
    site.sh(&format!("test ! -e '{}'", mount.path("main").display()))
        .ok();
    site.ok(&["umount", &mount.text()]);
    let mount = Mount::new(&site);
    let names = site.list(&mount.point);
    assert!(
        names.contains(&"other".into()) && names.contains(&"main".into()),
        "{names:?}"
    );
}

fn the_mount_is_read_only(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    site.backup();
    let mount = Mount::new(&site);
    let latest = mount.path("main/latest");
    let latest = latest.display();
    for script in [
        format!("echo x > '{latest}/PG_VERSION'"),
        format!("echo x > '{latest}/new'"),
        format!("rm '{latest}/PG_VERSION'"),
        format!("mkdir '{latest}/new'"),
        format!("mv '{latest}/PG_VERSION' '{latest}/OTHER'"),
        format!("chmod 777 '{latest}/PG_VERSION'"),
    ] {
        let run = site.sh(&script);
        assert_ne!(run.code(), Some(0), "Written through the mount: {run}");
    }
    site.sh(&format!("cat '{latest}/PG_VERSION'")).ok();
}

fn the_daemon_may_have_as_many_files_open_as_it_can_get() {
    let site = Site::with_repository();
    let mount = Mount::foreground(&site, &[]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid())).expect("it runs");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .expect("the kernel tells it");
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), words.next(), "{limits}");
    mount.unmount();
}

fn signals_unmount_cleanly() {
    let site = Site::with_repository();
    for signal in [Signal::TERM, Signal::INT] {
        let mut mount = Mount::foreground(&site, &[]);
        assert_eq!(mount.end_by(signal), Some(0), "After {signal:?}");
        assert!(!mount.is_mounted(), "Still mounted after {signal:?}");
    }
    // A process has its working directory in it: it is unmounted all the same, and the daemon ends.
    let mut mount = Mount::foreground(&site, &[]);
    let mut inside = crate::common::user::command("/bin/sh", &site.path(""))
        .args(["-c", &format!("cd '{}' && exec sleep 600", mount.text())])
        .spawn()
        .unwrap();
    until("it stands there", || {
        fs::read_link(format!("/proc/{}/cwd", inside.id())).is_ok_and(|cwd| cwd.starts_with(&mount.point))
    });
    assert_eq!(mount.end_by(Signal::TERM), Some(0));
    assert!(!mount.is_mounted());
    inside.kill().unwrap();
    inside.wait().unwrap();
}

fn a_mount_can_be_made_again_after_kill_9() {
    let site = Site::with_repository();
    for _ in 0..3 {
        let mut mount = Mount::foreground(&site, &[]);
        mount.kill();
        assert!(
            mount.is_mounted() && !mount.is_alive(),
            "A dead mount stays behind"
        );
        site.ok(&["mount", &mount.text()]);
        assert!(mount.is_alive());
        site.ok(&["umount", &mount.text()]);
        assert!(!mount.is_mounted(), "The dead mount is under the new one");
    }
    // A dead mount can be unmounted too.
    let mut mount = Mount::foreground(&site, &[]);
    mount.kill();
    site.ok(&["umount", &mount.text()]);
    assert!(!mount.is_mounted());
}

fn a_mount_point_and_a_repository_inside_each_other_are_refused() {
    let site = Site::with_repository();
    for inside in ["repository", "repository/mnt", "repository/packs"] {
        let mount = Mount::prepare(&site, inside);
        refused_mount(&site, &mount, "repository");
    }
    // Another path to the same place.
    std::os::unix::fs::symlink(site.path("repository"), site.path("link")).unwrap();
    refused_mount(&site, &Mount::prepare(&site, "link/mnt"), "repository");
    // The repository inside the mount point: the mount would hide it.
    site.make_directory("outer");
    site.sh("mv repository outer/repository").ok();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n",
        site.path("outer/repository").display()
    );
    site.write_file("barmanfs.conf", config.as_bytes());
    refused_mount(&site, &Mount::prepare(&site, "outer"), "repository");
}

fn refused_mount(site: &Site, mount: &Mount, word: &str) {
    let run = site.barmanfs(&["mount", &mount.text()]);
    assert!(!mount.is_mounted(), "{run}");
    run.rejected().says(&[word]);
}

fn an_impossible_mount_point_is_refused() {
    let site = Site::with_repository();
    let missing = site.path("missing");
    let run = site.barmanfs(&["mount", &missing.to_string_lossy()]);
    run.rejected().says(&["missing"]);
    let file = site.write_file("a-file", b"");
    let run = site.barmanfs(&["mount", &file.to_string_lossy()]);
    run.rejected().says(&["a-file"]);
    // Twice on the same place.
    let mount = Mount::new(&site);
    let run = site.barmanfs(&["mount", &mount.text()]);
    run.rejected().says(&["mounted"]);
    assert!(mount.is_alive());
}

fn umount_returns_when_the_daemon_has_ended() {
    let site = Site::with_repository();
    for _ in 0..5 {
        let mount = Mount::new(&site);
        let status = mount.path(".barmanfs/status.json").display().to_string();
        let status = site.sh(&format!("cat '{status}'")).ok();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        // Empty once the daemon has ended, even if its parent has not waited for it.
        let daemon = format!("/proc/{}/cmdline", status["pid"]);
        let is_at_work = || fs::read(&daemon).is_ok_and(|words| !words.is_empty());
        assert!(is_at_work());
        // An open file, so that the daemon has a reason to stay for a moment.
        let readme = mount.path("README").display().to_string();
        site.sh(&format!(
            "sleep 1 < '{readme}' & {} umount '{}'",
            site.program().display(),
            mount.text()
        ))
        .ok();
        assert!(!is_at_work(), "The daemon is still at work");
    }
}

fn umount_of_an_unmounted_directory_is_refused() {
    let site = Site::with_repository();
    let directory = site.make_directory("empty");
    site.barmanfs(&["umount", &directory.to_string_lossy()])
        .refused(1)
        .says(&["empty"]);
    // Another file system is not unmounted.
    let run = site.barmanfs(&["umount", "/proc"]);
    run.rejected();
    assert!(
        Command::new("test")
            .args(["-e", "/proc/self/stat"])
            .status()
            .unwrap()
            .success()
    );
}
