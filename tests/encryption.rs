//! An encrypted repository does what a plain one does, shows nothing without its key, and its key is had by the stock tool
//! `age` alone.

use crate::common::load::{fill, transact, transactions};
use crate::common::process::{Run, until};
use crate::common::registry::topic;
use crate::common::site::{TEST_RECIPIENT, encrypted};
use crate::common::tree::differences;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::fs;
use std::path::Path;

topic! {
    once everything_works_on_an_encrypted_repository_and_nothing_shows_without_its_key,
    once a_plain_repository_is_encrypted_while_it_is_in_use,
    once a_passive_node_takes_over_what_is_sealed_and_seals_it_by_its_own_key,
    alone age_opens_what_keys_are_wrapped_in,
    alone keys_are_in_no_message_and_no_dump,
}

/// Whether a text is in any pack.
fn is_shown(site: &Site, text: &str) -> bool {
    let found = site.sh(&format!(
        "grep -rqaF '{text}' '{}/packs'",
        site.repository().display()
    ));
    found.code() == Some(0)
}

fn without_key(site: &Site) -> String {
    let config = fs::read_to_string(site.config()).unwrap();
    let config = config.lines().filter(|line| !line.starts_with("key_"));
    let config: String = config.map(|line| format!("{line}\n")).collect();
    let path = site.write_file("without.conf", config.as_bytes());
    path.display().to_string()
}

fn everything_works_on_an_encrypted_repository_and_nothing_shows_without_its_key(install: &'static Install) {
    encrypted(|| {
        let (site, server) = Site::with_server(install);
        fill(&server, 1);
        server.query(
            "CREATE TABLE name_of_a_table AS SELECT 'text_of_a_row' AS t FROM generate_series(1, 3000)",
        );
        let first = site.backup();
        transact(&server, 200);
        let second = site.backup();
        site.write_config_of(&server, "backup_method = files\n");
        site.backup();
        transact(&server, 50);
        server.archive_current_segment();
        let expected = transactions(&server);
        for text in [
            "name_of_a_table",
            "text_of_a_row",
            "pgbench",
            "backup_label",
            "system_id",
            "\"main\"",
            "base/",
        ] {
            assert!(!is_shown(&site, text), "{text}");
        }

        let copy = format!("file://{}", site.path("bucket").display());
        site.ok(&["copy", &site.repository().display().to_string(), &copy]);
        site.ok(&["delete", "main", &first]);
        site.ok(&["sweep"]);
        fs::remove_file(site.repository().join("catalog.sqlite")).unwrap();
        site.ok(&["rebuild-catalog"]);
        site.ok(&["verify"]);
        let target = site.path("restored").display().to_string();
        site.ok(&["restore", "main", "auto", &target]);
        let mut restored = PgServer::on(install, Path::new(&target));
        restored.start();
        restored.wait_until_promoted();
        assert_eq!(transactions(&restored), expected);
        restored.stop("fast");
        // What is there already is compared by the names of its chunks.
        site.ok(&[
            "restore",
            "main",
            &second,
            &site.path("again").display().to_string(),
        ]);
        let mount = Mount::new(&site);
        site.ok(&["clone", "create", "main", "test"]);
        drop(mount);
        comes_back(&site, &copy);
        nothing_works_without_the_key(&site);
    });
}

fn comes_back(site: &Site, copy: &str) {
    let there = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n",
        there.repository().display()
    );
    there.write_file("barmanfs.conf", config.as_bytes());
    there.ok(&["copy", copy, &there.repository().display().to_string()]);
    let id = site.backup_ids().remove(0);
    let (left, right) = (Mount::for_all(site), Mount::for_all(&there));
    let raw = format!("main/raw/{id}");
    assert_eq!(
        differences(&left.path(&raw), &right.path(&raw), &|_| false),
        [""; 0]
    );
}

fn with_config(site: &Site, config: &str, command: &[&str]) -> Run {
    site.sh(&format!(
        "'{}' -c '{config}' {}",
        site.program().display(),
        command.join(" ")
    ))
}

fn nothing_works_without_the_key(site: &Site) {
    let packs = site.repository().join("packs");
    let before = site.checksums(&packs);
    let config = without_key(site);
    let key = site.json(&["key", "list"])["keys"][0]["key"]
        .as_str()
        .unwrap()
        .to_owned();
    for command in [
        &["list-backups", "main"][..],
        &["backup", "main"],
        &["sweep"],
        &["verify"],
        &["rebuild-catalog"],
        &["key", "rotate"],
        &["get-wal", "main", "000000010000000000000001"],
    ] {
        // PostgreSQL takes 1 of get-wal for a proof that the file is absent.
        let run = with_config(site, &config, command);
        let refused = if command[0] == "get-wal" { 201 } else { 1 };
        assert_eq!(run.code(), Some(refused), "{run}");
        let said = run.all();
        assert!(
            said.contains(&key) && said.contains("key_file"),
            "{command:?}: {said}"
        );
        assert!(!said.contains("damage"), "{command:?}: {said}");
    }
    assert_eq!(site.checksums(&packs), before);
    for command in [&["version"][..], &["key", "list"], &["config", "show"]] {
        let run = with_config(site, &config, command);
        assert!(!run.all().contains("is sealed"), "{command:?}: {run}");
    }
}

fn a_plain_repository_is_encrypted_while_it_is_in_use(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let first = site.backup();
    assert!(is_shown(&site, "backup_label") || is_shown(&site, "\"main\""));
    let config = fs::read_to_string(site.config()).unwrap();
    let line = format!("[barmanfs]\nkey_file = {}\n", site.key_file().display());
    site.write_file(
        "barmanfs.conf",
        config.replacen("[barmanfs]\n", &line, 1).as_bytes(),
    );
    let refused = site.barmanfs(&["list-backups", "main"]).rejected().all();
    assert!(refused.contains("barmanfs key init"), "{refused}");
    site.ok(&["key", "init"]);
    transact(&server, 100);
    let second = site.backup();
    server.archive_current_segment();
    let mount = Mount::for_all(&site);
    // A server may archive a file at the end.
    until("everything is sealed", || {
        let run = site.barmanfs(&["encrypt", "--json"]);
        let report: Value =
            serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
        report["complete"] == true
    });
    assert_eq!(site.backup_ids(), [first, second]);
    assert!(mount.path("main/latest/PG_VERSION").exists());
    drop(mount);
    for text in ["backup_label", "pgbench", "\"main\""] {
        assert!(!is_shown(&site, text), "{text}");
    }
    site.ok(&["verify"]);
}

fn a_passive_node_takes_over_what_is_sealed_and_seals_it_by_its_own_key(install: &'static Install) {
    encrypted(|| {
        let (primary, server) = Site::with_server(install);
        fill(&server, 1);
        primary.backup();
        server.archive_current_segment();
        let node = Site::new();
        node.follow(&primary, "");
        node.ok(&["-q", "init", "--encrypt"]);
        let refused = node.barmanfs(&["sync", "main"]).all();
        assert!(
            refused.contains("do not name chunks in the same way"),
            "{refused}"
        );
        fs::remove_dir_all(node.repository()).unwrap();
        node.ok(&[
            "-q",
            "init",
            "--encrypt",
            "--keys-of",
            &primary.repository().display().to_string(),
        ]);
        node.ok(&["sync", "main"]);
        assert_eq!(node.backup_ids(), primary.backup_ids());
        node.ok(&["verify"]);
        let key = |site: &Site| site.json(&["key", "list"])["keys"][0]["key"].clone();
        assert_ne!(key(&node), key(&primary));
        let id = node.backup_ids().remove(0);
        let (left, right) = (Mount::for_all(&primary), Mount::for_all(&node));
        let raw = format!("main/raw/{id}");
        assert_eq!(
            differences(&left.path(&raw), &right.path(&raw), &|_| false),
            [""; 0]
        );
    });
}

fn age_opens_what_keys_are_wrapped_in() {
    let site = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\nkey_file = {}\n",
        site.repository().display(),
        site.key_file().display()
    );
    site.write_file("barmanfs.conf", config.as_bytes());
    // Another one, made by the stock tool.
    site.sh(&format!("age-keygen -o '{}'", site.path("other.key").display()))
        .ok();
    let other = site
        .sh(&format!("age-keygen -y '{}'", site.path("other.key").display()))
        .ok()
        .text();
    site.ok(&[
        "-q",
        "init",
        "--encrypt",
        "--recipient",
        TEST_RECIPIENT,
        "--recipient",
        other.trim(),
    ]);
    let listed = site.json(&["key", "list"]);
    let files = listed["keys"].as_array().unwrap();
    assert_eq!(files.len(), 2, "{listed}");
    let opened = |file: &Value, key: &Path| {
        let path = file["path"].as_str().unwrap();
        site.sh(&format!("age -d -i '{}' '{path}'", key.display()))
            .ok()
            .text()
    };
    let mine = opened(&files[0], &site.key_file());
    assert!(mine.starts_with("barmanfs repository key: 1\n"), "age opened it");
    assert_eq!(opened(&files[1], &site.path("other.key")), mine);

    // What age wraps, barmanfs opens.
    let path = files[0]["path"].as_str().unwrap();
    let again = format!(
        "age -d -i '{}' '{path}' | age -r {TEST_RECIPIENT} -r {} > '{path}.new' && mv '{path}.new' '{path}'",
        site.path("other.key")
            .display()
            .to_string()
            .replace("other.key", "test.key"),
        other.trim()
    );
    site.sh(&again).ok();
    site.ok(&["key", "check"]);
    let command = format!("key_command = cat {}", site.key_file().display());
    let config = config.replace("key_file", "#key_file") + &command + "\n";
    site.write_file("barmanfs.conf", config.as_bytes());
    site.ok(&["key", "check"]);
    site.ok(&["list-servers"]);
    let passphrase = site.write_file("passphrase", b"correct horse battery\n");
    site.ok(&[
        "key",
        "add",
        "--passphrase-file",
        &passphrase.display().to_string(),
    ]);
    let config = config.replace(&command, &format!("passphrase_file = {}", passphrase.display()));
    site.write_file("barmanfs.conf", config.as_bytes());
    site.ok(&["key", "check"]);
}

fn keys_are_in_no_message_and_no_dump() {
    encrypted(|| {
        let site = Site::with_repository();
        let key = fs::read_to_string(site.key_file()).unwrap();
        let secret = key.lines().last().unwrap();
        let data = site.sh(&format!(
            "age -d -i '{}' '{}'/keys/*/1.age",
            site.key_file().display(),
            site.repository().display()
        ));
        let data = data.ok().text();
        let packs = data
            .lines()
            .find_map(|line| line.strip_prefix("packs: "))
            .unwrap();
        for command in [
            &["-vv", "key", "list"][..],
            &["-vv", "key", "check", "--json"],
            &["-vv", "diagnose"],
            &["-vv", "config", "show"],
            &["-vv", "key", "add", "--recipient", secret],
            &["-vv", "list-backups", "main"],
        ] {
            let said = site.barmanfs(command).all();
            for text in [secret, packs] {
                assert!(!said.contains(text), "{command:?}");
            }
        }
    });
}
