//! The real Barman with a home of its own, beside the site of a test.

use super::clock::Clock;
use super::process::{Run, until};
use super::{PgServer, Site};
use std::path::{Path, PathBuf};

/// A Barman that backs up one server, `main`.
pub(crate) struct Barman<'a> {
    site: &'a Site,
    server: &'a PgServer,
    /// Finds Python, Barman and PostgreSQL's programs.
    environment: String,
    /// Further lines of the server's section.
    lines: String,
}

/// How the server's WAL gets to Barman, and as it is into a directory to compare with.
pub(crate) fn archive_command(site: &Site) -> String {
    let (incoming, plain) = (site.path("barman/main/incoming"), site.path("plain_wal"));
    let (incoming, plain) = (incoming.display(), plain.display());
    format!("cp %p {plain}/%f && cp %p {incoming}/.%f && mv {incoming}/.%f {incoming}/%f")
}

impl<'a> Barman<'a> {
    /// Makes the home `barman` in the site. `None` if Barman or a program that it needs is not installed.
    pub(crate) fn new(site: &'a Site, server: &'a PgServer) -> Option<Self> {
        let place =
            std::env::var("BARMANFS_TEST_BARMAN").unwrap_or("/var/cache/barmanfs-test/barman".to_owned());
        let bindir = server.install.program("initdb");
        let bindir = bindir.parent()?.display();
        // Its own Python may be in a home that the database user may not enter.
        let environment = format!(
            "PATH={bindir}:/usr/bin:/bin; PYTHONPATH=$(echo {place}/lib/python3*/site-packages); \
             export PATH PYTHONPATH; barman() {{ python3 {place}/bin/barman -c {conf} \"$@\"; }}",
            conf = site.path("barman.conf").display(),
        );
        site.make_directory("barman/main/incoming");
        site.make_directory("barman/main");
        site.make_directory("barman");
        site.make_directory("plain_wal");
        let barman = Self {
            site,
            server,
            environment,
            lines: String::new(),
        };
        barman.configure_server();
        barman.write();
        let has_programs = barman
            .sh("command -v rsync && command -v gpg && barman --version")
            .code()
            == Some(0);
        if !has_programs {
            eprintln!("Without Barman, rsync and gpg nothing of Barman's is imported");
        }
        has_programs.then_some(barman)
    }

    fn configure_server(&self) {
        // The owner of the directories that were made on the way.
        for name in ["barman/main/incoming", "barman/main", "barman"] {
            super::user::give(&self.site.path(name));
        }
    }

    /// From now on it has this clock, as its server has.
    pub(crate) fn follow(&mut self, clock: &Clock) {
        for variable in clock.environment() {
            let (name, value) = variable.split_once('=').expect("a variable");
            self.environment += &format!("; export {name}='{value}'");
        }
        // Its rsync compares the times of files.
        self.environment += "; export NO_FAKE_STAT=1";
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.site.path("barman")
    }

    /// The server's directory.
    pub(crate) fn place(&self) -> PathBuf {
        self.site.path("barman/main")
    }

    /// Replaces what the server's section has beside what every one has.
    pub(crate) fn set(&mut self, lines: &str) {
        lines.clone_into(&mut self.lines);
        self.write();
    }

    fn write(&self) {
        let user = self.site.sh("id -un").ok().text();
        let place = |name: &str| self.site.path(name).display().to_string();
        let conninfo = self.server.conninfo();
        let text = format!(
            "[barman]\nbarman_user = {user}\nbarman_home = {}\nlog_file = {}\n\
             [main]\ndescription = Test\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\narchiver = on\n\
             immediate_checkpoint = true\nbackup_options = concurrent_backup\nlocal_staging_path = {}\n\
             recovery_staging_path = {}\n{}\n",
            place("barman"),
            place("barman.log"),
            place("staging"),
            place("staging"),
            self.lines
        );
        self.site.make_directory("staging");
        self.site.write_file("barman.conf", text.as_bytes());
    }

    /// A shell in which `barman` is Barman.
    pub(crate) fn sh(&self, script: &str) -> Run {
        self.site.sh(&format!("{}; {script}", self.environment))
    }

    /// A directory with the program under its name, as on Barman's host. What it is asked for is in the file `barman_asked`.
    pub(crate) fn program(&self) -> PathBuf {
        let directory = self.site.make_directory("barman_bin");
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>'{}'\n{}\nbarman \"$@\"\n",
            self.site.path("barman_asked").display(),
            self.environment
        );
        let path = self.site.write_file("barman_bin/barman", script.as_bytes());
        self.site.sh(&format!("chmod 755 '{}'", path.display())).ok();
        directory
    }

    /// Takes a backup with these options, and archives its WAL. Returns its id.
    #[track_caller]
    pub(crate) fn backup(&self, options: &str) -> String {
        // Its ids are seconds.
        let line = format!("sleep 1; barman backup main {options}");
        let first = self.sh(&line);
        // Under another clock, one of its pauses fails now and then, before it has begun anything.
        if first.code() != Some(0) && first.stderr.contains("failed to create None directory") {
            self.sh(&line).ok();
        } else {
            first.ok();
        }
        self.server.archive_current_segment();
        let mut id = String::new();
        until("Barman has the WAL of its backup", || {
            // Without its cron, this is what finds a backup complete.
            let line = "barman archive-wal main && barman check-backup main latest; barman list-backups main | head -1";
            let said = self.sh(line).text();
            let newest = said.lines().last().unwrap_or_default().to_owned();
            id = newest.split(' ').nth(1).unwrap_or_default().to_owned();
            !newest.contains("WAITING")
        });
        id
    }

    /// Barman's own restore of a backup. Returns the directory; its tablespace is in `<directory>_ts1`.
    #[track_caller]
    pub(crate) fn restore(&self, id: &str) -> PathBuf {
        self.restore_to(id, "")
    }

    /// The same, with these options.
    #[track_caller]
    pub(crate) fn restore_to(&self, id: &str, options: &str) -> PathBuf {
        let to = self.site.path(&format!("barman_{id}"));
        let text = to.display();
        self.sh(&format!(
            "mkdir {text}_ts1 && barman restore {options} --tablespace ts1:{text}_ts1 main {id} {text}"
        ))
        .ok();
        to
    }

    /// Makes a key. Returns its fingerprint; the passphrase is `secret`.
    pub(crate) fn gpg_key(&self) -> String {
        // Where gpg looks for it by itself: the site is the home of its user.
        let home = self.site.path(".gnupg");
        let home = home.display();
        self.sh(&format!(
            "mkdir -m 700 {home} && gpg --batch --quiet --passphrase secret --pinentry-mode loopback \
             --quick-gen-key backup@example.org default default never && \
             gpg --list-keys --with-colons | awk -F: '/^fpr/{{print $10; exit}}'"
        ))
        .ok()
        .text()
    }

    /// Everything below the home with its attributes and content, to see that nothing changes.
    pub(crate) fn state(&self) -> String {
        state(self.site, &self.home())
    }
}

/// Everything below a directory with its attributes and content.
pub(crate) fn state(site: &Site, place: &Path) -> String {
    let place = place.display();
    site.sh(&format!(
        "cd {place} && find . -printf '%p %y %m %n %s %T@ %C@\\n' | sort && find . -type f -print0 | sort -z | xargs -0 cksum"
    ))
    .ok()
    .text()
}
