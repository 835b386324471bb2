//! The output fits its destination: the characters of the locale, the width of the terminal, a log that has times of
//! its own. And a mistyped word is reported in the form in which it was typed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};

topic! {
    once only_characters_of_the_locale_are_drawn,
    once tables_do_not_break_words,
    alone log_lines_have_no_time_in_the_journal,
    alone a_mistyped_option_of_fstab_is_named,
}

fn barmanfs(site: &Site) -> String {
    format!("{} -c {}", site.program().display(), site.config().display())
}

fn only_characters_of_the_locale_are_drawn(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.query("SELECT pg_create_restore_point('before')");
    server.archive_current_segment();
    let barmanfs = barmanfs(&site);
    for command in [
        "timeline main",
        "list-backups",
        "list-servers",
        "check main",
        "show-backup main latest",
    ] {
        // On a terminal too, where a progress line is drawn.
        for line in [
            format!("{barmanfs} {command}"),
            format!("TERM=xterm script -qec '{barmanfs} {command}' /dev/null"),
        ] {
            for locale in ["LC_ALL=C", "LC_ALL= LC_CTYPE=POSIX LANG=C.UTF-8", "LC_ALL= LANG="] {
                let run = site.sh(&format!("{locale} {line} < /dev/null"));
                assert!(run.all().is_ascii(), "{locale} {line}: {run}");
            }
        }
    }
    let drawn = site
        .sh(&format!("LC_ALL= LANG=C.UTF-8 {barmanfs} timeline main"))
        .ok();
    assert!(drawn.text().contains('●'), "{drawn}");
    assert_eq!(
        drawn.text().lines().count(),
        site.sh(&format!("LC_ALL=C {barmanfs} timeline main"))
            .ok()
            .text()
            .lines()
            .count()
    );
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().collect()
}

fn tables_do_not_break_words(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    site.backup();
    site.backup();
    let mount = Mount::new(&site);
    site.ok(&[
        "clone",
        "create",
        "main",
        "a-clone-with-quite-a-long-name-that-says-what-it-is-for",
    ]);
    let barmanfs = barmanfs(&site);
    for command in ["list-backups", "list-servers", "clone list", "timeline main"] {
        let plain = site.sh(&format!("COLUMNS=80 {barmanfs} {command}")).ok().text();
        let longest = plain.split_whitespace().map(str::len).max().unwrap_or_default();
        for columns in [40, 80, 100, 200] {
            if columns < 80 && command == "timeline main" {
                continue;
            }
            let script = format!("stty rows 24 cols {columns}; {barmanfs} {command}");
            let shown = site
                .sh(&format!(
                    "NO_COLOR=1 TERM=xterm script -qec '{script}' /dev/null < /dev/null"
                ))
                .ok();
            let shown = shown.text().replace('\r', "");
            // Ages may change meanwhile, and are short.
            let all = words(&shown);
            for word in words(&plain).into_iter().filter(|word| word.len() > 4) {
                assert!(
                    all.contains(word),
                    "{command} at {columns} breaks {word}:\n{shown}"
                );
            }
            // A line needs at least a title and one word.
            let most = columns.max(longest + 14);
            for line in shown.lines() {
                assert!(line.chars().count() <= most, "{command} at {columns}: {line}");
            }
        }
        // Programs get one line for each item.
        assert!(
            command == "timeline main" || plain.lines().count() <= 3,
            "{plain}"
        );
    }
    mount.unmount();
}

fn log_lines_have_no_time_in_the_journal() {
    let site = Site::with_repository();
    let mount = Mount::prepare(&site, "mnt");
    let (log, barmanfs, point) = (site.path("journal"), barmanfs(&site), mount.text());
    for (stream, is_the_journals) in [("$(stat -c %d:%i journal)", true), ("1:1", false)] {
        let script = format!(
            "rm -f journal; touch journal; \
             JOURNAL_STREAM={stream} exec {barmanfs} mount {point} --foreground 2> journal"
        );
        let mut daemon = site.sh_command(&script).spawn().expect("a shell");
        until("the mount answers", || mount.is_alive());
        site.ok(&["umount", &point]);
        daemon.wait().expect("it ends");
        let text = fs::read_to_string(&log).expect("a log");
        let line = text
            .lines()
            .find(|line| line.contains("Serving"))
            .expect("a line");
        assert_eq!(line.starts_with("<6>Serving"), is_the_journals, "{line}");
        assert_eq!(line.contains("INFO"), !is_the_journals, "{line}");
        let year = line.split('-').next().unwrap_or_default();
        assert_eq!(year.parse::<u32>().is_ok(), !is_the_journals, "{line}");
    }
}

fn a_mistyped_option_of_fstab_is_named() {
    let site = Site::with_repository();
    let helper = site.path("mount.fuse.barmanfs");
    std::os::unix::fs::symlink(site.program(), &helper).expect("a link");
    let mount = Mount::prepare(&site, "mnt");
    let called = |options: &str| {
        let helper: &Path = &helper;
        site.sh(&format!(
            "{} barmanfs {} -o {options}",
            helper.display(),
            mount.text()
        ))
    };
    called("rw,alow_other,nofail")
        .refused(2)
        .says(&["'alow_other'", "did you mean 'allow_other'"]);
    called("rw,cache-size=1G")
        .refused(2)
        .says(&["'cache-size'", "did you mean 'cache_size'"]);
    called("rw,speed=9").refused(2).says(&["'speed'", "known are"]);
    called("rw,uid").refused(2).says(&["'uid'", "uid=VALUE"]);
    assert!(!called("rw,alow_other").all().contains("unexpected argument"));
    let options = format!("rw,nofail,x-systemd.automount,config={}", site.config().display());
    called(&options).ok();
    assert!(mount.is_alive());
}
