//! Processes that continue after a command has returned, and mounts that are in use when they are unmounted.
//!
//! The kinds: a process in the background keeps a descriptor of its parent (a pipe that never ends, a lock that is
//! never released); and a mount is removed while a user works in it, who loses his work without a message.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::clone_commands::Stage;
use crate::common::load::fill;
use crate::common::process::{state_of, until, wait};
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};
use rustix::process::{Pid, Signal, kill_process};

topic! {
    alone a_background_mount_keeps_no_descriptor_of_its_parent,
    once a_clones_server_keeps_no_descriptor_of_its_parent,
    alone umount_refuses_a_mount_in_use_and_names_its_users,
    alone umount_ends_a_mount_in_use_lazily_or_by_force,
    once umount_does_not_interrupt_a_copy,
}

/// Runs a script that must end.
#[track_caller]
fn comes_to_its_end(site: &Site, script: &str) -> String {
    let run = site.sh(&format!("timeout 60 bash -c '{script}'"));
    assert_ne!(run.code(), Some(124), "it never ends: {script}");
    run.ok().text()
}

fn a_background_mount_keeps_no_descriptor_of_its_parent() {
    let site = Site::with_repository();
    let mount = Mount::prepare(&site, "mnt");
    let barmanfs = format!("{} -c {}", site.program().display(), site.config().display());
    let point = mount.text();
    for script in [
        // A reader that reads its output to the end.
        format!("{barmanfs} mount {point} 2>&1 | cat"),
        format!("said=$({barmanfs} mount {point} 2>&1); echo \"said:$said\""),
        // A reader that waits for the end of another descriptor.
        format!("said=$({barmanfs} mount {point} 3>&1 >/dev/null 2>&1); echo \"said:$said\""),
        format!("{barmanfs} mount {point} < <(sleep 1; echo) | cat"),
        // A lock that ends with its last holder, as scripts use it.
        format!("(flock 9; {barmanfs} mount {point}) 9>lock; flock -n lock true"),
    ] {
        comes_to_its_end(&site, &script);
        assert!(mount.is_alive(), "{script}");
        site.ok(&["umount", &point]);
    }
}

fn a_clones_server_keeps_no_descriptor_of_its_parent(install: &'static Install) {
    let stage = Stage::new(install);
    let mount = Mount::new(&stage.site);
    let site = &stage.site;
    let barmanfs = format!("{} -c {}", site.program().display(), site.config().display());
    let said = comes_to_its_end(
        site,
        &format!("said=$({barmanfs} clone create main a --start 2>&1 3>&1); echo \"$said\""),
    );
    assert!(said.contains("psql"), "{said}");
    site.ok(&["clone", "stop", "main", "a"]);
    comes_to_its_end(site, &format!("{barmanfs} clone start main a 2>&1 | cat"));
    site.ok(&["clone", "stop", "main", "a"]);
    comes_to_its_end(
        site,
        &format!("(flock 9; {barmanfs} clone start main a) 9>lock; flock -n lock true"),
    );
    site.ok(&["clone", "destroy", "main", "a", "--stop"]);
    mount.unmount();
}

/// Killed at the end of the test.
struct User(Child);

impl User {
    /// A shell that does something and stays.
    fn new(site: &Site, script: &str) -> Self {
        let mut shell = site.sh_command(&format!("{script}; echo ready; exec sleep 600"));
        let mut shell = shell.stdout(Stdio::piped()).spawn().expect("a shell");
        let mut said = [0; 6];
        let stdout = shell.stdout.as_mut().expect("it was asked for");
        std::io::Read::read_exact(stdout, &mut said).expect("it is ready");
        Self(shell)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn umount_refuses_a_mount_in_use_and_names_its_users() {
    let site = Site::with_repository();
    let mount = Mount::new(&site);
    let point = mount.text();
    for (script, says) in [
        (format!("cd {point}/.barmanfs"), "works in"),
        (format!("exec 3< {point}/README"), "has open"),
    ] {
        let user = User::new(&site, &script);
        let pid = format!("process {} (sleep)", user.0.id());
        let refused = site.barmanfs(&["umount", &point]).refused(1);
        refused.says(&["in use", &pid, says, &point, "--lazy", "--force"]);
        assert!(mount.is_alive());
    }
    // After the last user the unmount succeeds; it waits for a user that is just ending.
    let mut user = User::new(&site, &format!("cd {point}"));
    let umount = std::thread::scope(|scope| {
        let umount = scope.spawn(|| site.barmanfs(&["umount", &point]));
        std::thread::sleep(Duration::from_millis(500));
        user.0.kill().expect("it is there");
        user.0.wait().expect("it ends");
        umount.join().expect("it ends")
    });
    umount.ok();
    assert!(!mount.is_mounted());
}

fn umount_ends_a_mount_in_use_lazily_or_by_force() {
    let site = Site::with_repository();
    for how in ["--lazy", "--force"] {
        let mount = Mount::new(&site);
        let status = site.sh(&format!(
            "cat '{}'",
            mount.path(".barmanfs/status.json").display()
        ));
        let status: serde_json::Value = serde_json::from_slice(&status.ok().stdout).expect("JSON");
        let daemon = format!("/proc/{}/cmdline", status["pid"]);
        let is_at_work = || fs::read(&daemon).is_ok_and(|words| !words.is_empty());
        let user = User::new(&site, &format!("exec 3< {}/README", mount.text()));
        let readable = || {
            let own = format!("/proc/{}/fd/3", user.0.id());
            site.sh(&format!("cat {own} > /dev/null")).code() == Some(0)
        };
        site.ok(&["umount", &mount.text(), how]);
        assert!(!mount.is_mounted(), "{how}");
        assert_eq!(readable(), how == "--lazy", "{how}");
        assert_eq!(is_at_work(), how == "--lazy", "{how}");
        drop(user);
        until("the daemon ends", || !is_at_work());
        fs::remove_dir(&mount.point).expect("it is empty");
    }
}

fn umount_does_not_interrupt_a_copy(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 5);
    site.backup();
    let mount = Mount::new(&site);
    let (from, copy) = (mount.path("main/latest"), site.path("copy"));
    let mut command = crate::common::user::command("cp", &site.path(""));
    let mut cp: Child = spawn(command.arg("-a").arg(&from).arg(&copy));
    let pid = Pid::from_child(&cp);
    // The copy may have finished before it was stopped: then there is nothing to check.
    let is_at_work = stops_within(pid, &from);
    let refused = site.barmanfs(&["umount", &mount.text()]);
    kill_process(pid, Signal::CONT).expect("it is there");
    let ended = wait(&mut cp, Duration::from_secs(120)).expect("it ends");
    if is_at_work {
        refused.refused(1).says(&["(cp)", &from.to_string_lossy()]);
        assert!(ended.success());
        assert_eq!(site.checksums(&from), site.checksums(&copy));
        mount.unmount();
    }
}

/// Stops a child of this process while it has a file open in the directory: between two files it uses nothing. Returns
/// whether the child reached that point before it ended.
fn stops_within(pid: Pid, directory: &Path) -> bool {
    loop {
        kill_process(pid, Signal::STOP).expect("a child is there until it is waited for");
        let mut state = ' ';
        until("it is stopped, or has ended", || {
            state = state_of(&pid.as_raw_pid().to_string()).expect("its state");
            matches!(state, 'T' | 'Z')
        });
        if state == 'Z' {
            return false;
        }
        let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).expect("its open files");
        if open
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|path| path.starts_with(directory)))
        {
            return true;
        }
        kill_process(pid, Signal::CONT).expect("it is there");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).spawn().expect("a program")
}
