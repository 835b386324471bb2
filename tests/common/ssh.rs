//! Another host, without one: a program `ssh` that runs the command here, through a shell, as sshd does.

use super::Site;
use super::user::{command, database_user, give, is_root, own_command};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The `ssh` of one site, and the programs of the other host.
#[derive(Debug)]
pub(crate) struct Ssh<'a> {
    site: &'a Site,
}

impl<'a> Ssh<'a> {
    /// The other host has barmanfs, with the site's configuration.
    pub(crate) fn to_barmanfs(site: &'a Site) -> Self {
        let ssh = Self::to(site, "exit 127");
        let links = site.make_directory("links");
        for name in ["barman", "barmanfs", "barman-wal-archive", "barman-wal-restore"] {
            fs::hard_link(site.program(), links.join(name)).expect("Cannot link the program");
        }
        // Not all tests run as the owner of the repository.
        let user = database_user();
        let owner = match is_root() {
            true => format!(
                "[ $(id -u) != 0 ] || exec setpriv --reuid={} --regid={} --clear-groups \"$0\" \"$@\"\n",
                user.uid, user.gid
            ),
            false => String::new(),
        };
        for name in ["barman", "barmanfs"] {
            let line = format!(
                "{owner}exec '{}' -c '{}' \"$@\"",
                links.join(name).display(),
                site.config().display()
            );
            ssh.script(&format!("remote/{name}"), &line);
        }
        ssh
    }

    /// The other host has a program `barman` that is this script.
    pub(crate) fn to(site: &'a Site, barman: &str) -> Self {
        site.make_directory("bin");
        site.make_directory("remote");
        let ssh = Self { site };
        ssh.script("remote/barman", barman);
        let place = site.path("");
        let place = place.display();
        ssh.script(
            "bin/ssh",
            &format!(
                "while :; do case $1 in -o|-p) shift 2;; -*) shift;; *) break;; esac; done\n\
                 shift; echo \"$*\" >> {place}/ssh.log\n\
                 test ! -e {place}/cut || exit 255\n\
                 PATH={place}/remote:$PATH exec sh -c \"$*\""
            ),
        );
        ssh
    }

    /// The one that the site has already.
    pub(crate) fn of(site: &'a Site) -> Self {
        Self { site }
    }

    fn script(&self, name: &str, lines: &str) {
        let path = self
            .site
            .write_file(name, format!("#!/bin/sh\n{lines}\n").as_bytes());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("Cannot set permissions");
    }

    /// From now on, ssh fails.
    pub(crate) fn cut(&self) {
        self.site.write_file("cut", b"");
    }

    /// ssh works again.
    pub(crate) fn mend(&self) {
        fs::remove_file(self.site.path("cut")).expect("it was cut");
    }

    /// The commands that came to the other host.
    pub(crate) fn commands(&self) -> Vec<String> {
        let log = fs::read_to_string(self.site.path("ssh.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// A program of this host, by its link.
    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.site.path("links").join(name)
    }

    /// What stands before a command line of a shell, so that it finds this ssh.
    pub(crate) fn path(&self) -> String {
        format!("PATH={}:$PATH", self.site.path("bin").display())
    }

    /// A program of the database user that finds this ssh.
    pub(crate) fn client(&self, program: &Path, arguments: &[&str]) -> Command {
        self.finding(command(program, &self.site.path("")), arguments)
    }

    /// The same of the user who runs the tests.
    pub(crate) fn own_client(&self, program: &Path, arguments: &[&str]) -> Command {
        self.finding(own_command(program, &self.site.path("")), arguments)
    }

    fn finding(&self, mut command: Command, arguments: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(arguments);
        command.env("PATH", format!("{}:{path}", self.site.path("bin").display()));
        give(&self.site.path("bin"));
        command
    }
}
