//! Input from a server, a disk or a configuration may be broken or hostile. It is refused with a clear error, nothing
//! is written outside the repository, and existing data stays.

use crate::common::load::fill;
use crate::common::process::Run;
use crate::common::proxy::{Fate, Proxy, change_header, is_header_of};
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};

topic! {
    once a_tar_name_with_dots_is_refused,
    once an_absolute_tar_name_is_refused,
    once a_device_node_is_refused,
    once a_truncated_archive_is_refused,
    once bytes_that_do_not_match_the_manifest_are_refused,
    once a_changed_manifest_is_refused,
    once a_connection_lost_at_the_end_leaves_no_backup,
    alone unknown_and_malformed_lines_of_a_configuration_are_named,
    alone a_repository_of_a_newer_format_is_refused,
    alone a_directory_that_is_no_repository_is_refused,
}

/// A member of the archive of every cluster.
const MEMBER: &str = "base/1/PG_VERSION";

/// Takes a backup through a proxy that modifies the stream. The backup must fail, and the earlier one must stay whole.
fn refused_backup(
    install: &'static Install,
    meddler: impl FnMut(&mut Vec<u8>) -> Fate + Send + 'static,
) -> (Site, Run) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let earlier = site.backup();
    let proxy = Proxy::start(&server.sockets(), meddler);
    let text = format!(
        "[barmanfs]\nrepository = {}\n\n[main]\nconninfo = {}\nstreaming_conninfo = {}\n",
        site.repository().display(),
        server.conninfo(),
        proxy.conninfo()
    );
    let config = site.write_file("meddled.conf", text.as_bytes());
    let mut backup = crate::common::user::command(site.program(), &site.path(""));
    backup
        .arg("-c")
        .arg(config)
        .args(["backup", "main", "--fast-checkpoint"]);
    let run = crate::common::process::run(&mut backup).refused(1);

    let backups = site.backups();
    let failed = backups
        .iter()
        .find(|backup| backup["id"] != earlier.as_str())
        .expect("the failed backup is listed");
    assert_eq!(failed["status"], "FAILED");
    let mount = Mount::new(&site);
    assert_eq!(
        site.list(&mount.path("main/raw")),
        std::slice::from_ref(&earlier),
        "Something of the failed backup is shown"
    );
    mount.unmount();
    site.ok(&["verify"]);
    (site, run)
}

/// Renames the member in the archive to `name`.
fn rename_member(name: &'static str) -> impl FnMut(&mut Vec<u8>) -> Fate + Send {
    move |payload| {
        if is_header_of(payload, MEMBER) {
            change_header(payload, |header| {
                header[..100].fill(0);
                header[..name.len()].copy_from_slice(name.as_bytes());
            });
        }
        Fate::Pass
    }
}

fn a_tar_name_with_dots_is_refused(install: &'static Install) {
    let (site, run) = refused_backup(install, rename_member("base/../../../escaped"));
    run.says(&["base/../../../escaped"]);
    assert!(!site.path("escaped").exists());
}

fn an_absolute_tar_name_is_refused(install: &'static Install) {
    let (_site, run) = refused_backup(install, rename_member("/tmp/barmanfs-escaped"));
    run.says(&["/tmp/barmanfs-escaped"]);
    assert!(!std::path::Path::new("/tmp/barmanfs-escaped").exists());
}

fn a_device_node_is_refused(install: &'static Install) {
    let (_site, run) = refused_backup(install, |payload| {
        if is_header_of(payload, MEMBER) {
            change_header(payload, |header| header[156] = b'3');
        }
        Fate::Pass
    });
    run.says(&[MEMBER]);
}

fn a_truncated_archive_is_refused(install: &'static Install) {
    // Everything from the middle of the archive to its end is lost, and the connection continues as if nothing had
    // happened.
    let mut past_member = false;
    let (_site, _run) = refused_backup(install, move |payload| {
        past_member |= is_header_of(payload, MEMBER);
        // From 15 on the first byte tells the kind of message: only the archive's data is lost.
        let is_archive_data = payload.first() == Some(&b'd') || payload.len() % 512 == 0;
        if past_member && is_archive_data {
            Fate::Drop
        } else {
            Fate::Pass
        }
    });
}

fn bytes_that_do_not_match_the_manifest_are_refused(install: &'static Install) {
    let mut next_is_data = false;
    let (_site, run) = refused_backup(install, move |payload| {
        if next_is_data {
            // "16\n" becomes "36\n".
            let first = usize::from(payload[0] == b'd');
            payload[first] ^= 2;
        }
        next_is_data = is_header_of(payload, MEMBER);
        Fate::Pass
    });
    run.says(&[MEMBER, "manifest"]);
}

fn a_changed_manifest_is_refused(install: &'static Install) {
    let (_site, run) = refused_backup(install, |payload| {
        let wanted = b"\"Path\": \"base/1/PG_VERSION\"";
        if let Some(at) = payload.windows(wanted.len()).position(|window| window == wanted) {
            payload[at + 9..at + 13].copy_from_slice(b"BASE");
        }
        Fate::Pass
    });
    run.says(&["manifest"]);
}

fn a_connection_lost_at_the_end_leaves_no_backup(install: &'static Install) {
    // All of the data has arrived; the end of the manifest has not.
    let (_site, _run) = refused_backup(install, |payload| {
        let wanted = b"Manifest-Checksum";
        if payload.windows(wanted.len()).any(|window| window == wanted) {
            Fate::Cut
        } else {
            Fate::Pass
        }
    });
}

fn with_config(site: &Site, text: &str) -> Run {
    site.write_file("barmanfs.conf", text.as_bytes());
    site.barmanfs(&["list-servers"])
}

fn unknown_and_malformed_lines_of_a_configuration_are_named() {
    let site = Site::new();
    let global = format!("[barmanfs]\nrepository = {}\n", site.repository().display());
    let server = "[main]\nconninfo = host=/tmp user=postgres\n";
    // An unknown key: one line says how many there are, the command continues, and 'config check' names the line.
    let run = with_config(&site, &format!("{global}colour = blue\n{server}")).ok();
    assert!(run.stderr.contains("1 key has no effect"), "{run}");
    let checked = site.barmanfs(&["config", "check"]).refused(3);
    checked.says(&["barmanfs.conf:3", "colour", "unknown"]);
    // A wrong value: file, line, and the allowed values.
    with_config(&site, &format!("{global}log_level = shouting\n{server}")).ok();
    let checked = site.barmanfs(&["config", "check"]).refused(3);
    checked.says(&["barmanfs.conf:3", "shouting", "info"]);
    // A section that cannot be a server.
    with_config(&site, &format!("{global}[../up]\nconninfo = host=/tmp\n")).ok();
    let checked = site.barmanfs(&["config", "check"]).refused(3);
    checked.says(&["barmanfs.conf:3", "Invalid server name"]);
    // A line that is none disables the server that it belongs to; in front of all sections, every server.
    for (text, place) in [
        (
            format!("{global}{server}this line is nothing\n"),
            "barmanfs.conf:5",
        ),
        (
            format!("{global}[main\nconninfo = host=/tmp\n"),
            "barmanfs.conf:3",
        ),
        (format!("stray = 1\n{global}{server}"), "barmanfs.conf:1"),
    ] {
        with_config(&site, &text).ok();
        site.barmanfs(&["config", "check"]).refused(3).says(&[place]);
    }
    with_config(&site, "[barmanfs]\nlog_level = info\n")
        .refused(2)
        .says(&["repository"]);
    with_config(&site, "\0\u{1}\u{2}\n")
        .refused(2)
        .says(&["barmanfs.conf", "1"]);
    std::fs::remove_file(site.config()).unwrap();
    site.barmanfs(&["list-servers"])
        .refused(2)
        .says(&["barmanfs.conf"]);
}

fn a_repository_of_a_newer_format_is_refused() {
    let site = Site::with_repository();
    let path = site.repository().join("repository.json");
    let mut settings: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(settings["format_version"].is_u64(), "{settings}");
    settings["format_version"] = 99.into();
    std::fs::write(&path, settings.to_string()).unwrap();
    let mount_point = site.make_directory("mnt");
    let history = site.write_file(
        "00000002.history",
        b"1\t0/3000000\tno recovery target specified\n",
    );
    for arguments in [
        &["list-backups", "main"][..],
        &["verify"],
        &["sweep"],
        &["rebuild-catalog"],
        &["wal-archive", "main", &history.to_string_lossy()],
        &["mount", &mount_point.to_string_lossy()],
    ] {
        let run = site.barmanfs(arguments);
        run.rejected().says(&["99", "newer"]);
    }
}

fn a_directory_that_is_no_repository_is_refused() {
    let site = Site::new();
    site.make_directory("repository");
    site.write_file("repository/important.txt", b"not yours");
    site.write_file(
        "barmanfs.conf",
        format!(
            "[barmanfs]\nrepository = {}\n[main]\n",
            site.repository().display()
        )
        .as_bytes(),
    );
    let history = site.write_file(
        "00000002.history",
        b"1\t0/3000000\tno recovery target specified\n",
    );
    let run = site.barmanfs(&["wal-archive", "main", &history.to_string_lossy()]);
    run.rejected().says(&["repository"]);
    assert_eq!(site.list(&site.repository()), ["important.txt"]);
}
